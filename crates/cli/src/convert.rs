use anyhow::{Result, bail};
use pixart::read_scheduler;
use pixart_nn::transformer::TransformerConfig;
use pixart_weights::{
    Lora, Part, PipelineFolder, convert_controlnet, convert_network, convert_pipeline, convert_transformer,
    is_original_controlnet,
};

use crate::args::ConvertArgs;
use crate::output::print;

pub fn run(args: ConvertArgs) -> Result<()> {
    if args.source.is_dir() {
        return of_folder(&args);
    }
    if !args.parts.are_none() {
        bail!("parts and LoRAs are put into a model folder, {} is a file", args.source.display());
    }
    if args.scheduler.is_some() || args.dtype.is_some() {
        bail!("--scheduler and --dtype go with a model folder; convert the folder that is written once more");
    }
    if is_original_controlnet(&args.source)? {
        if args.model.is_some() {
            bail!("--model goes with a transformer; {} is a ControlNet", args.source.display());
        }
        let config = convert_controlnet(&args.source, &args.output)?;
        return print(&format!("{}  ControlNet: {} copied blocks", args.output.display(), config.num_layers));
    }
    let base = args.model.as_ref().map(PipelineFolder::open).transpose()?;
    let config = convert_transformer(&args.source, base.as_ref(), &args.output)?;
    describe(&args, if base.is_some() { "pipeline" } else { "transformer" }, &config)
}

fn of_folder(args: &ConvertArgs) -> Result<()> {
    if args.model.is_some() {
        bail!("--model goes with a .pth file; {} is a folder", args.source.display());
    }
    if let Some(dtype) = args.only_dtype()
        && !args.source.join("model_index.json").exists()
    {
        convert_network(&args.source, dtype, &args.output)?;
        return print(&format!("{}  network in {}", args.output.display(), dtype.name()));
    }
    let mut folder = PipelineFolder::open(&args.source)?;
    for (part, path) in args.parts.named() {
        folder = folder.with_part(part, path)?;
    }
    if let Some(lora) = &args.parts.lora {
        folder = folder.with_lora(Lora::open(lora)?.scaled(args.parts.lora_scale));
    }
    let scheduler = match &args.scheduler {
        Some(name) => Some(read_scheduler(&folder.scheduler_path())?.named(name)?.to_json()),
        None => None,
    };
    convert_pipeline(&folder, args.dtype, scheduler.as_ref(), &args.output)?;
    describe(args, "pipeline", &PipelineFolder::open(&args.output)?.config(Part::Transformer)?)
}

fn describe(args: &ConvertArgs, what: &str, config: &TransformerConfig) -> Result<()> {
    print(&format!(
        "{}  {what}: {} layers, {} heads of {}, native size {} latent pixels",
        args.output.display(),
        config.num_layers,
        config.num_attention_heads,
        config.attention_head_dim,
        config.sample_size
    ))
}
