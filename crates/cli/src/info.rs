use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::DType;
use pixart::{DeviceChoice, MemoryEstimate, Pipeline, Precision, Request};
use pixart_diffusion::{SchedulerConfig, StepOptions};
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;
use pixart_weights::{Part, PipelineFolder, Weights, controlnet_config, read_json, read_tokenizer};

use crate::args::InfoArgs;
use crate::open;
use crate::output::print;

pub fn run(args: InfoArgs) -> Result<()> {
    let folder = PipelineFolder::open(open::model(args.folder.as_deref())?)?;
    print(&format!("{}  {}", folder.path().display(), folder.kind().class_name()))?;
    let mut problems = Vec::new();
    for part in folder.parts() {
        print(&part_line(&folder, part, &mut problems))?;
    }
    print(&tokenizer_line(&folder, &mut problems))?;
    print(&scheduler_line(&folder, &mut problems))?;
    if let (Ok(transformer), Ok(vae)) =
        (folder.config::<TransformerConfig>(Part::Transformer), folder.config::<VaeConfig>(Part::Vae))
    {
        let native = transformer.sample_size * vae.downscale();
        let conditions = if transformer.has_size_conditions() { ", told the image's size" } else { "" };
        print(&format!("native size    {native}x{native}{conditions}"))?;
    }
    for problem in problems {
        print(&format!("problem        {problem}"))?;
    }
    if args.memory { print(&memory_table(&folder)?) } else { Ok(()) }
}

/// What the stages of a picture take of memory, by dtype and size (Markdown). Of 8 bits, the dtype of the rest is named too.
fn memory_table(folder: &PipelineFolder) -> Result<String> {
    const SIZES: [usize; 4] = [512, 1024, 2048, 4096];
    type Stage = (&'static str, fn(&MemoryEstimate) -> u64);
    let stages: [Stage; 4] = [
        ("encoding a prompt", |estimate| estimate.encode),
        ("denoising", |estimate| estimate.denoise),
        ("decoding", |estimate| estimate.decode),
        ("decoding in rows, the transformer gone", |estimate| estimate.decode_least),
    ];
    let mut table = format!("\n| {:18} | {:38} | {} |\n", "GB", "", SIZES.map(|size| format!("{size:5}²")).join(" | "));
    table += &format!("| {} | {} | {} |", "-".repeat(18), "-".repeat(38), ["-----:"; SIZES.len()].join(" | "));
    // Weights that are stored in 8 bits stay so.
    let precisions: &[Precision] = match folder.stored_scheme(Part::Transformer)? {
        Some(_) => &[Precision::F32, Precision::Bf16],
        None => &[Precision::F32, Precision::Bf16, Precision::Int8Weights, Precision::Int8],
    };
    for precision in precisions {
        let pipeline = Pipeline::builder(folder.path()).device(DeviceChoice::Cpu).precision(*precision).open()?;
        let name = pipeline.precision_and_dtype();
        let estimates = SIZES.map(|size| {
            let size = Some(size);
            let request = Request { width: size, height: size, resolution_binning: false, ..Request::new("") };
            pipeline.memory_estimate(&request)
        });
        let estimates = estimates.into_iter().collect::<pixart::Result<Vec<_>>>()?;
        for (stage, bytes) in stages {
            let bytes: Vec<String> =
                estimates.iter().map(|estimate| format!("{:6.2}", bytes(estimate) as f64 / 1e9)).collect();
            table += &format!("\n| {name:18} | {stage:38} | {} |", bytes.join(" | "));
        }
    }
    Ok(table)
}

/// Class, size and dtypes of a part; what is wrong with it goes to `problems`.
fn part_line(folder: &PipelineFolder, part: Part, problems: &mut Vec<String>) -> String {
    let name = part.name();
    let weights = match folder.weights(part, DType::F32) {
        Ok(weights) => weights,
        Err(error) => {
            problems.push(error.to_string());
            return format!("{name:14} none");
        }
    };
    if let Err(problem) = validate(folder, part) {
        problems.push(problem);
    }
    let class = read_json(&folder.config_path(part)).ok().and_then(|json| {
        let class = json.get("_class_name").or_else(|| json.get("architectures")?.get(0))?;
        class.as_str().map(|class| format!("{class}, "))
    });
    format!("{name:14} {}{}", class.unwrap_or_default(), weights_text(&weights))
}

fn validate(folder: &PipelineFolder, part: Part) -> Result<(), String> {
    let told = |result: Result<(), String>| {
        result.map_err(|reason| format!("{}: {reason}", folder.config_path(part).display()))
    };
    let read = |error: pixart_weights::Error| error.to_string();
    match part {
        Part::Transformer => told(folder.config::<TransformerConfig>(part).map_err(read)?.validate()),
        Part::Vae => told(folder.config::<VaeConfig>(part).map_err(read)?.validate()),
        Part::TextEncoder => told(folder.config::<T5Config>(part).map_err(read)?.validate()),
        Part::ControlNet => {
            let base = folder.config(Part::Transformer).map_err(read)?;
            let weights = folder.weights(part, DType::F32).map_err(read)?;
            controlnet_config(&folder.part_path(part), &weights, &base).map(|_| ()).map_err(read)
        }
    }
}

fn weights_text(weights: &Weights) -> String {
    let mut dtypes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in weights.tensors().values() {
        *dtypes.entry(tensor.dtype.name()).or_default() += 1;
    }
    let dtypes: Vec<_> = dtypes.into_keys().collect();
    let files = weights.paths().count();
    format!(
        "{}, {}, {}, {files} {}",
        with_unit(weights.parameters() as f64, "parameters"),
        dtypes.join(" and "),
        with_unit(weights.size_in_bytes() as f64, "B").replace(" B", "B"),
        if files == 1 { "file" } else { "files" }
    )
}

/// 611 M parameters, 2.4 GB.
fn with_unit(value: f64, unit: &str) -> String {
    let (scaled, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    if prefix.is_empty() { format!("{scaled} {unit}") } else { format!("{scaled:.1} {prefix} {unit}") }
}

fn tokenizer_line(folder: &PipelineFolder, problems: &mut Vec<String>) -> String {
    match read_tokenizer(&folder.tokenizer_path()) {
        Ok(tokenizer) => {
            let (vocabulary, length) = (tokenizer.get_vocab_size(true), folder.kind().max_sequence_length());
            format!("tokenizer      {vocabulary} tokens, prompts of up to {length}")
        }
        Err(error) => {
            problems.push(error.to_string());
            "tokenizer      none".into()
        }
    }
}

fn scheduler_line(folder: &PipelineFolder, problems: &mut Vec<String>) -> String {
    let path = folder.scheduler_path();
    let config = std::fs::read_to_string(&path)
        .map_err(|error| error.to_string())
        .and_then(|text| SchedulerConfig::from_json(&text).map_err(|error| error.to_string()));
    match config {
        Ok(config) => {
            if let Err(error) = config.solver(1, &StepOptions::default()) {
                problems.push(format!("{}: {error}", path.display()));
            }
            format!("scheduler      {} ({})", config.kind().class_name(), config.kind().name())
        }
        Err(error) => {
            problems.push(format!("{}: {error}", path.display()));
            "scheduler      none".into()
        }
    }
}
