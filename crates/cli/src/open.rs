//! Opening the model that the arguments name.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use pixart::Pipeline;
use pixart_weights::Part;

use crate::args::{ComputeArgs, ModelArgs};
use crate::progress::Progress;

/// Opens the pipeline, loading bars shown on `progress`.
pub fn pipeline(args: &ModelArgs, keep_loaded: bool, progress: &Arc<Progress>) -> Result<Pipeline> {
    set_threads(&args.compute)?;
    let loading = progress.clone();
    let mut builder = Pipeline::builder(&args.model)
        .device(args.compute.device)
        .precision(args.compute.dtype)
        .keep_loaded(keep_loaded)
        .on_load(move |load| loading.load(load));
    let parts =
        [(Part::Transformer, &args.transformer), (Part::Vae, &args.vae), (Part::TextEncoder, &args.text_encoder)];
    for (part, path) in parts {
        if let Some(path) = path {
            builder = builder.part(part, path);
        }
    }
    Ok(builder.open()?)
}

fn set_threads(args: &ComputeArgs) -> Result<()> {
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
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect();
    if prompts.is_empty() {
        bail!("the prompts file {} holds no prompt", path.display());
    }
    Ok(prompts)
}

/// The tensor `latents` of a safetensors file.
pub fn latents(path: &Path, device: &Device) -> Result<Tensor> {
    let mut tensors = pixart_weights::read_tensors(path, device)?;
    let names: Vec<_> = tensors.keys().cloned().collect();
    match tensors.remove("latents") {
        Some(latents) => Ok(latents),
        None => bail!("{} holds no tensor \"latents\" but {}", path.display(), names.join(", ")),
    }
}
