//! Timing of each stage of a pipeline.

use std::time::Instant;

use candle_core::{DType, Tensor};
use pixart_nn::transformer::{Condition, SizeConditions};
use pixart_weights::Part;
use serde::Serialize;

use crate::plan::MAX_PIXELS;
use crate::{Error, Pipeline, Request, Result, device_name, peak_rss_bytes};

/// What to time.
#[derive(Debug, Clone, Copy)]
pub struct BenchOptions {
    /// Width and height of the image in pixels.
    pub size: usize,
    /// How often each stage is timed.
    pub runs: usize,
    /// Whether each stage runs once before it is timed. Without, the first pass pays for memory that is touched for the
    /// first time, which hardly shows where a pass takes a minute.
    pub warm_up: bool,
    /// Passes of the transformer that make an image.
    pub steps: usize,
}

/// Medians, in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Width and height of the image in pixels.
    pub size: usize,
    /// The dtype of the computation.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// Threads that compute on a CPU.
    pub threads: usize,
    /// Timed runs of each stage.
    pub runs: usize,
    /// Reading all weights.
    pub load_s: f64,
    /// Encoding one prompt; none where the folder has no text encoder.
    pub encode_s: Option<f64>,
    /// One pass of the transformer over one image, without guidance.
    pub transformer_s: f64,
    /// The same with a ControlNet, where the pipeline has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controlled_s: Option<f64>,
    /// Decoding one image.
    pub decode_s: f64,
    /// All steps and the decoding, embeddings given.
    pub image_s: f64,
    /// The most memory that was resident.
    pub peak_rss_bytes: Option<u64>,
}

/// Times the stages of `pipeline`, with random latents and, for the transformer, random embeddings of full length.
pub fn bench(pipeline: &mut Pipeline, options: &BenchOptions) -> Result<BenchReport> {
    let multiple = pipeline.vae_config().downscale() * pipeline.transformer_config().patch_size;
    if options.size > MAX_PIXELS {
        return Err(Error::request(format!("a size of {} is above {MAX_PIXELS}", options.size)));
    }
    if options.size == 0 || !options.size.is_multiple_of(multiple) {
        return Err(Error::request(format!("a size of {} is not divisible by {multiple}", options.size)));
    }
    if options.runs == 0 || options.steps == 0 {
        return Err(Error::request("zero runs or zero steps measure nothing; ask for 1 or more"));
    }
    let mut load_s = 0.0;
    let mut load = |stage: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        load_s += seconds(stage)?;
        Ok(())
    };
    let encode_s = if pipeline.parts.loader.folder.part_path(Part::TextEncoder).exists() {
        load(&mut || pipeline.parts.text_encoder().map(|_| ()))?;
        Some(median(encode_seconds(pipeline, options)?))
    } else {
        None
    };

    let controlled = pipeline.parts.controlnet_config.is_some();
    load(&mut || pipeline.parts.transformer(&pipeline.transformer_config, controlled).map(|_| ()))?;
    let device = pipeline.device().clone();
    let config = pipeline.transformer_config();
    let side = options.size / pipeline.vae_config().downscale();
    let latents = Tensor::randn(0f32, 1.0, (1, config.in_channels, side, side), &device)?;
    let tokens = pipeline.parts.loader.folder.kind().max_sequence_length();
    let embeds = Tensor::randn(0f32, 1.0, (1, tokens, config.caption_channels.unwrap_or(0)), &device)?;
    let size = config.has_size_conditions();
    let size = size.then(|| SizeConditions::new(options.size, options.size, 1, &device)).transpose()?;
    let timestep = Tensor::new(&[500f32], &device)?;
    load(&mut || pipeline.parts.vae(&pipeline.vae_config).map(|_| ()))?;

    let transformer = pipeline.parts.transformer(&pipeline.transformer_config, controlled)?;
    let text = transformer.project_text(&embeds, None)?;
    let condition = if controlled { Some(transformer.condition(&latents, 1.0)?) } else { None };
    let pass = |pipeline: &mut Pipeline, condition: Option<&Condition>| -> Result<()> {
        let transformer = pipeline.parts.transformer(&pipeline.transformer_config, controlled)?;
        let prediction = transformer.forward_controlled(&latents, &timestep, &text, size.as_ref(), condition)?;
        Ok(wait_for(&prediction)?)
    };
    if options.warm_up {
        pass(pipeline, condition.as_ref())?;
        pipeline.decode(&latents)?;
    }
    let (mut passes, mut controlled_passes, mut decodes, mut images) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.runs {
        let start = Instant::now();
        for _ in 0..options.steps {
            passes.push(seconds(|| pass(pipeline, None))?);
        }
        decodes.push(seconds(|| pipeline.decode(&latents).map(|_| ()))?);
        images.push(start.elapsed().as_secs_f64());
        for _ in 0..if controlled { options.steps } else { 0 } {
            controlled_passes.push(seconds(|| pass(pipeline, condition.as_ref()))?);
        }
    }
    Ok(BenchReport {
        size: options.size,
        dtype: pipeline.precision_name().into(),
        device: device_name(&device),
        threads: rayon::current_num_threads(),
        runs: options.runs,
        load_s,
        encode_s,
        transformer_s: median(passes),
        controlled_s: controlled.then(|| median(controlled_passes)),
        decode_s: median(decodes),
        image_s: median(images),
        peak_rss_bytes: peak_rss_bytes(),
    })
}

/// Times the text encoder, which is kept loaded meanwhile.
fn encode_seconds(pipeline: &mut Pipeline, options: &BenchOptions) -> Result<Vec<f64>> {
    let prompts = vec!["a small cactus with a happy face in the Sahara desert".to_string()];
    let request = Request { prompts, guidance_scale: Some(1.0), ..Request::default() };
    let keep_loaded = std::mem::replace(&mut pipeline.parts.keep_loaded, true);
    // Not the files of all parts, which a request looks for first.
    let mut encode = || pipeline.encode_request(&request).map(|(_, timings)| timings.encode.as_secs_f64());
    let warm_up = if options.warm_up { encode().map(|_| ()) } else { Ok(()) };
    let times = warm_up.and_then(|()| (0..options.runs).map(|_| encode()).collect());
    pipeline.parts.keep_loaded = keep_loaded;
    pipeline.parts.release_text_encoder();
    times
}

/// A GPU computes behind the program's back; reading one number of a result waits for it.
fn wait_for(result: &Tensor) -> candle_core::Result<()> {
    result.flatten_all()?.narrow(0, 0, 1)?.to_dtype(DType::F32)?.to_vec1::<f32>().map(|_| ())
}

fn seconds(stage: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    stage()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => f64::NAN,
        values if values.len() % 2 == 1 => values[middle],
        values => (values[middle - 1] + values[middle]) / 2.0,
    }
}
