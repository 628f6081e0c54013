use candle_core::{DType, Tensor};
use pixart_diffusion::{SchedulerConfig, SchedulerKind, Solver, StepOptions};
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;

use crate::{Error, Request, Result, nearest_bin};

/// The longest side of a picture: beyond it, a decoder needs hundreds of gigabytes.
pub(crate) const MAX_PIXELS: usize = 8192;

/// Tokens of a pass where several small pictures share it: fewer keep threads waiting for each other, more no longer fit the
/// processor's second-level caches.
const TOKENS_AT_ONCE: usize = 512;

/// A request, checked, with every default settled: what is known before any weight is read.
pub(crate) struct Plan {
    pub solver: Box<dyn Solver>,
    pub steps: usize,
    /// The solver's step to begin with: 0, but for a picture that is started from.
    pub first_step: usize,
    pub guidance_scale: f64,
    /// Shape of the latents: `[images, channels, height, width]`.
    pub latents_shape: (usize, usize, usize, usize),
    /// Pictures of a pass, each with its unguided twin.
    pub images_at_once: usize,
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
        let strength = request.init.as_ref().map_or(1.0, |init| init.strength);
        let options = StepOptions { eta: request.eta, strength, ..StepOptions::default() };
        let solver = scheduler.solver(steps, &options)?;
        let first_step = first_step(steps, strength, solver.as_ref(), distilled)?;
        check_control(request, solver.timesteps().len() - first_step)?;

        let downscale = vae.downscale();
        let native = transformer.sample_size * downscale;
        let default = default_size(request, native);
        let wanted = (request.height.unwrap_or(default.0), request.width.unwrap_or(default.1));
        let drawn = drawn_size(request, wanted, native, downscale * transformer.patch_size)?;
        let images = request.num_prompts() * request.num_images_per_prompt;
        let latents_shape = (images, transformer.in_channels, drawn.0 / downscale, drawn.1 / downscale);
        let tokens = latents_shape.2 * latents_shape.3 / transformer.patch_size.pow(2);
        let images_at_once = (TOKENS_AT_ONCE / (rows_of_image(guidance_scale) * tokens)).clamp(1, images);
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
        Ok(Self { solver, steps, first_step, guidance_scale, latents_shape, images_at_once, drawn, wanted })
    }

    /// Whether the prediction is guided, and so the unconditional one is needed too.
    pub(crate) fn is_guided(&self) -> bool {
        self.rows_of_image() == 2
    }

    /// Rows of a pass that belong to one picture: with guidance, the unguided one and the guided one.
    pub(crate) fn rows_of_image(&self) -> usize {
        rows_of_image(self.guidance_scale)
    }
}

fn rows_of_image(guidance_scale: f64) -> usize {
    if guidance_scale > 1.0 { 2 } else { 1 }
}

/// The step from which on `strength` of the way is left. Of an LCM all steps are taken, on a shorter way.
fn first_step(steps: usize, strength: f64, solver: &dyn Solver, distilled: bool) -> Result<usize> {
    if distilled {
        return Ok(0);
    }
    match (steps as f64 * strength) as usize {
        0 => Err(Error::request(format!("a strength of {strength} leaves none of {steps} steps; raise one of them"))),
        left => Ok((steps - left.min(steps)) * solver.order()),
    }
}

/// Refuses a ControlNet that would be followed in none of the steps.
fn check_control(request: &Request, steps: usize) -> Result<()> {
    match &request.control {
        Some(control) if !(0..steps).any(|step| control.applies(step, steps)) => Err(Error::request(format!(
            "from {} to {} of {steps} steps there is not a whole one that control could apply to; widen the share or raise \
             the steps",
            control.start, control.end
        ))),
        _ => Ok(()),
    }
}

/// Height and width if the request names none: the native size, in the shape of its image where the model has seen others.
fn default_size(request: &Request, native: usize) -> (usize, usize) {
    let init = request.init.as_ref().map(|init| init.image.dimensions());
    let shape = init.or_else(|| request.control.as_ref().map(|control| control.map.dimensions()));
    let named = request.height.is_some() || request.width.is_some();
    shape
        .filter(|_| !named && request.resolution_binning)
        .and_then(|(width, height)| nearest_bin(native, height as usize, width as usize))
        .unwrap_or((native, native))
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
