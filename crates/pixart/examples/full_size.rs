//! Compares a full-size checkpoint with what diffusers computed from it: `tools/reference/full_size.py` writes both.
//!
//! `cargo run --release --example full_size -- FOLDER [text|transformer|latents|image]` prints the largest difference,
//! relative to the largest value, of the text encoder (where there is one), of a transformer pass, of the final latents
//! of four LCM steps and of a decoded image; or of one of them.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart::{DeviceChoice, Pipeline, Precision, PromptEmbeds, Request, Seeds, peak_rss_bytes};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{Part, PipelineFolder, read_tensors};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The seed that the reference script draws its latents with.
const SEED: u64 = 5;

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn get(&self, name: &str) -> Result<&Tensor> {
        Ok(self.0.get(name).ok_or_else(|| format!("golden.safetensors holds no {name}"))?)
    }
}

fn main() -> Result {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("name the folder that full_size.py wrote")?;
    let only = arguments.next();
    let wanted = |check: &str| only.as_deref().is_none_or(|only| only == check);
    let golden = Golden(read_tensors(&Path::new(&path).join("golden.safetensors"), &Device::Cpu)?);
    let folder = PipelineFolder::open(&path)?;
    if wanted("text") && golden.get("t5.input_ids").is_ok() {
        text(&folder, &golden)?;
    }
    if wanted("transformer") {
        transformer(&folder, &golden)?;
    }
    if wanted("latents") {
        latents(&folder, &golden)?;
    }
    if wanted("image") {
        image(&folder, &golden)?;
    }
    if let Some(bytes) = peak_rss_bytes() {
        println!("peak memory {:.2} GB", bytes as f64 / 1e9);
    }
    Ok(())
}

fn text(folder: &PipelineFolder, golden: &Golden) -> Result {
    let config: T5Config = folder.config(Part::TextEncoder)?;
    let vb = folder.weights(Part::TextEncoder, DType::F32)?.named(DType::F32, &Device::Cpu);
    let input_ids = golden.get("t5.input_ids")?.to_dtype(DType::U32)?;
    let output = T5Encoder::new(&config, vb)?.forward(&input_ids, golden.get("t5.attention_mask")?)?;
    report("text encoder", &output, golden.get("t5.last_hidden_state")?)
}

fn transformer(folder: &PipelineFolder, golden: &Golden) -> Result {
    let config: TransformerConfig = folder.config(Part::Transformer)?;
    let vb = folder.weights(Part::Transformer, DType::F32)?.named(DType::F32, &Device::Cpu);
    let transformer = PixArtTransformer::new(&config, vb)?;
    let text = transformer.project_text(golden.get("prompt_embeds")?, Some(golden.get("prompt_attention_mask")?))?;
    let size = match config.has_size_conditions() {
        true => Some(SizeConditions {
            resolution: golden.get("transformer.resolution")?.clone(),
            aspect_ratio: golden.get("transformer.aspect_ratio")?.clone(),
        }),
        false => None,
    };
    let (latents, timestep) = (golden.get("transformer.hidden_states")?, golden.get("transformer.timestep")?);
    let output = transformer.forward(latents, timestep, &text, size.as_ref())?;
    report("transformer pass", &output, golden.get("transformer.output")?)
}

fn latents(folder: &PipelineFolder, golden: &Golden) -> Result {
    let mut pipeline = Pipeline::builder(folder.path()).device(DeviceChoice::Cpu).precision(Precision::F32).open()?;
    let embeds = PromptEmbeds {
        prompt_embeds: golden.get("prompt_embeds")?.clone(),
        prompt_attention_mask: golden.get("prompt_attention_mask")?.clone(),
        negative: None,
    };
    let request = Request { seeds: Seeds::Shared(SEED), ..Request::from_embeds(embeds) };
    let generated = pipeline.generate(&request)?;
    let timings = generated.timings;
    println!("4 steps {:.1} s, decode {:.1} s", timings.denoise.as_secs_f64(), timings.decode.as_secs_f64());
    report("latents after 4 LCM steps", &generated.latents, golden.get("lcm.final_latents")?)
}

fn image(folder: &PipelineFolder, golden: &Golden) -> Result {
    let config: VaeConfig = folder.config(Part::Vae)?;
    let vb = folder.weights(Part::Vae, DType::F32)?.named(DType::F32, &Device::Cpu);
    let decoded = AutoencoderKl::new(&config, vb)?.decode(golden.get("vae.latents")?)?;
    report("decoded image", &decoded, golden.get("vae.decoded")?)
}

fn report(what: &str, found: &Tensor, golden: &Tensor) -> Result {
    let largest = |xs: &Tensor| xs.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let error = largest(&(found - golden)?)? / largest(golden)?;
    println!("{what}: {:?}, relative error {error:.1e}", found.dims());
    Ok(())
}
