//! Opening the model that the arguments name.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use pixart::Pipeline;
use pixart_diffusion::SchedulerConfig;
use pixart_weights::Weights;

use crate::args::{ComputeArgs, ModelArgs};
use crate::progress::Progress;

/// Opens the pipeline, loading bars shown on `progress`.
///
/// `scheduler` takes the place of the model's own.
pub fn pipeline(
    args: &ModelArgs,
    keep_loaded: bool,
    scheduler: Option<SchedulerConfig>,
    progress: &Arc<Progress>,
) -> Result<Pipeline> {
    set_threads(&args.compute)?;
    let loading = progress.clone();
    let mut builder = Pipeline::builder(&args.model)
        .device(args.compute.device)
        .precision(args.dtype)
        .keep_loaded(keep_loaded)
        .on_load(move |load| loading.load(load));
    if let Some(scheduler) = scheduler {
        builder = builder.scheduler(scheduler);
    }
    for (part, path) in args.parts.named() {
        builder = builder.part(part, path);
    }
    if let Some(lora) = &args.parts.lora {
        builder = builder.lora(lora, args.parts.lora_scale);
    }
    Ok(builder.open()?)
}

/// Sets how many threads compute; else one for each core does.
pub fn set_threads(args: &ComputeArgs) -> Result<()> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
    }
    Ok(())
}

/// The lines of a prompts file; empty ones are passed over.
pub fn prompts(path: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read the prompts file {}", path.display()))?;
    let prompts: Vec<String> = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(Into::into)
        .collect();
    if prompts.is_empty() {
        bail!("the prompts file {} holds no prompt", path.display());
    }
    Ok(prompts)
}

/// The tensor `latents` of a safetensors file.
pub fn latents(path: &Path, device: &Device) -> Result<Tensor> {
    Ok(Weights::open(path)?.tensor("latents", DType::F32, device)?)
}
