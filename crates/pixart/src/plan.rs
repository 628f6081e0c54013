use candle_core::{DType, Tensor};
use pixart_diffusion::{SchedulerConfig, SchedulerKind, Solver, StepOptions};
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;

use crate::{Error, Request, Result, nearest_bin};

/// A request, checked, with every default settled: what is known before any weight is read.
pub(crate) struct Plan {
    pub solver: Box<dyn Solver>,
    pub steps: usize,
    pub guidance_scale: f64,
    /// Shape of the latents: `[images, channels, height, width]`.
    pub latents_shape: (usize, usize, usize, usize),
    /// Size that is drawn, in pixels: height, width.
    pub drawn: (usize, usize),
    /// Size of the picture, in pixels: height, width.
    pub wanted: (usize, usize),
}

impl Plan {
    pub(crate) fn new(
        request: &Request,
        scheduler: &SchedulerConfig,
        transformer: &TransformerConfig,
        vae: &VaeConfig,
    ) -> Result<Self> {
        request.check()?;
        let distilled = scheduler.kind() == SchedulerKind::Lcm;
        let steps = request.steps.unwrap_or(if distilled { 4 } else { 20 });
        let guidance_scale = request.guidance_scale.unwrap_or(if distilled { 0.0 } else { 4.5 });
        let solver = scheduler.solver(steps, &StepOptions { eta: request.eta, ..StepOptions::default() })?;

        let downscale = vae.downscale();
        let native = transformer.sample_size * downscale;
        let wanted = (request.height.unwrap_or(native), request.width.unwrap_or(native));
        let drawn = drawn_size(request, wanted, native, downscale * transformer.patch_size)?;
        let images = request.num_prompts() * request.num_images_per_prompt;
        let latents_shape = (images, transformer.in_channels, drawn.0 / downscale, drawn.1 / downscale);
        if let Some(latents) = &request.latents {
            check_latents(latents, latents_shape)?;
        }
        if let Some(embeds) = &request.prompt_embeds {
            let (found, wanted) = (embeds.prompt_embeds.dims()[2], transformer.caption_channels.unwrap_or(0));
            if found != wanted {
                return Err(Error::request(format!(
                    "the prompt embeddings are {found} wide, this transformer takes {wanted}: another text encoder made them"
                )));
            }
        }
        Ok(Self { solver, steps, guidance_scale, latents_shape, drawn, wanted })
    }

    /// Whether the prediction is guided, and so the unconditional one is needed too.
    pub(crate) fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }
}

fn drawn_size(
    request: &Request,
    (height, width): (usize, usize),
    native: usize,
    multiple: usize,
) -> Result<(usize, usize)> {
    for (name, pixels) in [("height", height), ("width", width)] {
        if pixels == 0 || pixels > 16384 {
            return Err(Error::request(format!("a {name} of {pixels} pixels cannot be drawn; it is 1 to 16384")));
        }
    }
    if request.resolution_binning
        && let Some(bin) = nearest_bin(native, height, width)
    {
        return Ok(bin);
    }
    for (name, pixels) in [("height", height), ("width", width)] {
        if !pixels.is_multiple_of(multiple) {
            let below = (pixels / multiple * multiple).max(multiple);
            let above = pixels.next_multiple_of(multiple);
            return Err(Error::request(format!(
                "a {name} of {pixels} pixels is not divisible by {multiple}; the nearest are {below} and {above}"
            )));
        }
    }
    Ok((height, width))
}

fn check_latents(latents: &Tensor, wanted: (usize, usize, usize, usize)) -> Result<()> {
    let wanted: [usize; 4] = wanted.into();
    if latents.dims() != wanted {
        return Err(Error::request(format!("the latents are {:?}, this request asks for {wanted:?}", latents.dims())));
    }
    let sum = latents.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    if !sum.is_finite() {
        return Err(Error::request("the latents hold values that are not finite"));
    }
    Ok(())
}
