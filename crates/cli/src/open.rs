//! Opening the model that the arguments name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};
use pixart::{LoadProgress, Pipeline, PipelineBuilder, decode_picture};
use pixart_weights::{Part, Weights};

use crate::allocator;
use crate::args::{ComputeArgs, LimitArgs, ModelArgs};
use crate::progress::Progress;

/// Opens the pipeline, loading bars shown on `progress`.
pub fn pipeline(args: &ModelArgs, keep_loaded: bool, progress: &Arc<Progress>) -> Result<Pipeline> {
    Ok(configured(args, keep_loaded, progress)?.open()?)
}

/// What opens the model with all that `args` say of it.
pub fn configured(args: &ModelArgs, keep_loaded: bool, progress: &Arc<Progress>) -> Result<PipelineBuilder> {
    set_threads(&args.compute)?;
    let builder = builder(&model(args.model.as_deref())?, args, progress).keep_loaded(keep_loaded);
    Ok(with_parts(builder, args))
}

/// With the parts and the LoRA that are named.
pub fn with_parts(mut builder: PipelineBuilder, args: &ModelArgs) -> PipelineBuilder {
    for (part, path) in args.parts.named() {
        builder = builder.part(part, path);
    }
    if let Some(lora) = &args.parts.lora {
        builder = builder.lora(lora, args.parts.lora_scale);
    }
    builder
}

/// What opens the model in `folder` on the device and in the precision that `args` name.
pub fn builder(folder: &Path, args: &ModelArgs, progress: &Arc<Progress>) -> PipelineBuilder {
    if args.vae_tiling {
        allocator::return_memory();
    }
    let loading = progress.clone();
    Pipeline::builder(folder).device(args.compute.device).precision(args.dtype).vae_tiling(args.vae_tiling).on_load(
        move |load| {
            return_text_encoder(&load);
            loading.load(load);
        },
    )
}

/// A text encoder takes several times as much memory as what is read when it is done, and would be kept beside it: until that was read, what
/// is freed is returned.
fn return_text_encoder(load: &LoadProgress) {
    match load.part {
        Part::TextEncoder => allocator::return_for_now(true),
        _ if load.read >= load.total => allocator::return_for_now(false),
        _ => {}
    }
}

/// With a limit of memory, if there is one.
pub fn limited(builder: PipelineBuilder, args: &LimitArgs) -> PipelineBuilder {
    if args.memory_limit.is_some() {
        allocator::return_memory();
    }
    builder.memory_limit(args.memory_limit.map(|limit| limit.as_u64()))
}

/// With the ControlNet that is named, if one is.
pub fn with_control(builder: PipelineBuilder, control: Option<&Path>) -> PipelineBuilder {
    match control {
        Some(path) => builder.part(Part::ControlNet, path),
        None => builder,
    }
}

/// The folder that is named, else that of the model that comes with the program.
pub fn model(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => Ok(path.into()),
        None => pixart_bundled::folder().context("no model is named with --model"),
    }
}

/// Sets how many threads compute; without a number, one for each core does. The one that calls is one of them: were all others
/// than it, it would hand over each operation and sleep, and a small one takes less time than its sleep.
pub fn set_threads(args: &ComputeArgs) -> Result<()> {
    start_threads(args.threads.map_or(0, Into::into))
}

/// So many threads; 0 for one of each core.
pub fn start_threads(threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
    pool.build_global().context("cannot start threads")
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

/// A picture of any of the usual formats, before `background` (brightness) where it is transparent.
pub fn picture(path: &Path, background: u8) -> Result<RgbImage> {
    let about = || format!("cannot read the picture {}", path.display());
    let bytes = std::fs::read(path).with_context(about)?;
    decode_picture(&bytes, Rgb([background; 3])).with_context(about)
}

/// The tensor `latents` of a safetensors file.
pub fn latents(path: &Path, device: &Device) -> Result<Tensor> {
    Ok(Weights::open(path)?.tensor("latents", DType::F32, device)?)
}
