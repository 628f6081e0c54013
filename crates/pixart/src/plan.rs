use candle_core::{DType, Tensor};
use pixart_diffusion::{SchedulerConfig, SchedulerKind, Solver, StepOptions};
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;

use crate::{Error, Request, Result, nearest_bin};

/// The longest side of a picture: beyond it, a decoder needs hundreds of gigabytes.
pub(crate) const MAX_PIXELS: usize = 8192;

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
            check_finite(&embeds.prompt_embeds, "the prompt embeddings")?;
            check_finite(&embeds.prompt_attention_mask, "the prompt's attention mask")?;
            let (found, wanted) = (embeds.prompt_embeds.dim(2)?, transformer.caption_channels.unwrap_or(0));
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
        if pixels == 0 || pixels > MAX_PIXELS {
            return Err(Error::request(format!(
                "a {name} of {pixels} pixels cannot be drawn; it is 1 to {MAX_PIXELS}"
            )));
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
    check_finite(latents, "the latents")
}

/// Refuses NaN and infinity, of which nothing but a black picture would come.
pub(crate) fn check_finite(tensor: &Tensor, what: &str) -> Result<()> {
    // NaN fails the comparison, and so does infinity.
    let finite = tensor.to_dtype(DType::F32)?.abs()?.flatten_all()?.le(f32::MAX)?.min(0)?.to_scalar::<u8>()?;
    match finite {
        1 => Ok(()),
        _ => Err(Error::Compute(format!("{what} hold values that are not finite (NaN or infinity)"))),
    }
}
