//! What a picture starts from: noise, or another picture with noise.

use candle_core::{DType, Device, Tensor};
use image::GrayImage;
use pixart_diffusion::{NoiseSource, Solver};
use pixart_nn::vae::Posterior;

use crate::image::fit;
use crate::plan::Plan;
use crate::{InitImage, Request, Result, Seeds};

/// Brightness from which on a mask's pixel is drawn anew: half of the way.
const MASK_THRESHOLD: u8 = 128;

/// Latents to begin with.
pub(crate) struct Start {
    pub latents: Tensor,
    kept: Option<Kept>,
}

/// What stays of a picture outside of a mask.
struct Kept {
    /// Without noise.
    latents: Tensor,
    noise: Tensor,
    /// `[1, 1, height, width]`: 1 where something new is drawn, else 0.
    mask: Tensor,
}

impl Start {
    /// Draws noise from `source`, after what samples the latents of a picture to start from, which `posterior` holds: the order
    /// in which diffusers' pipelines draw.
    pub(crate) fn new(
        plan: &Plan,
        request: &Request,
        posterior: Option<(&InitImage, Posterior, f64)>,
        source: &mut NoiseSource,
        device: &Device,
    ) -> Result<Self> {
        let init = match posterior {
            Some((init, posterior, factor)) => Some((init, (sample(&posterior, plan, request, source)? * factor)?)),
            None => None,
        };
        let noise = match &request.latents {
            Some(latents) => latents.to_device(device)?.to_dtype(DType::F32)?,
            None => source.randn_tensor(plan.latents_shape, device)?,
        };
        let loud = (&noise * plan.solver.init_noise_sigma())?;
        let Some((init, clean)) = init else { return Ok(Self { latents: loud, kept: None }) };
        let Some(mask) = &init.mask else {
            return Ok(Self { latents: plan.solver.add_noise(&clean, &noise, plan.first_step)?, kept: None });
        };
        // Nothing of the picture needs to shine through where all is drawn anew.
        let latents = if init.strength < 1.0 { plan.solver.add_noise(&clean, &noise, plan.first_step)? } else { loud };
        let mask = latent_mask(mask, plan, device)?;
        Ok(Self { latents, kept: Some(Kept { latents: clean, noise, mask }) })
    }

    /// Puts the picture back where the mask keeps it, as noisy as `latents` are before step `next`, or clean after the last.
    pub(crate) fn keep(&self, latents: Tensor, solver: &dyn Solver, next: usize) -> Result<Tensor> {
        let Some(Kept { latents: clean, noise, mask }) = &self.kept else { return Ok(latents) };
        let kept = match next < solver.timesteps().len() {
            true => solver.add_noise(clean, noise, next)?,
            false => clean.clone(),
        };
        let outside = mask.affine(-1.0, 1.0)?;
        Ok((kept.broadcast_mul(&outside)? + latents.broadcast_mul(mask)?)?)
    }
}

/// Latents of a picture for every image of the batch: images of one stream share them, as in diffusers.
fn sample(posterior: &Posterior, plan: &Plan, request: &Request, source: &mut NoiseSource) -> Result<Tensor> {
    let (images, channels, height, width) = plan.latents_shape;
    let device = posterior.mean.device();
    match request.seeds {
        Seeds::Shared(_) => {
            let noise = source.randn_tensor((1, channels, height, width), device)?;
            Ok(posterior.sample(&noise)?.repeat((images, 1, 1, 1))?)
        }
        Seeds::PerImage(_) => {
            let noise = source.randn_tensor(plan.latents_shape, device)?;
            let every = |xs: &Tensor| xs.repeat((images, 1, 1, 1));
            let posterior = Posterior { mean: every(&posterior.mean)?, logvar: every(&posterior.logvar)? };
            Ok(posterior.sample(&noise)?)
        }
    }
}

/// A mask at the latents' size: the value at the corner of each of their pixels.
fn latent_mask(mask: &GrayImage, plan: &Plan, device: &Device) -> Result<Tensor> {
    let (_, _, height, width) = plan.latents_shape;
    let mask = fit(mask, plan.wanted, plan.drawn);
    let (rows, columns) = (plan.drawn.0 / height, plan.drawn.1 / width);
    let at = |row: usize, column: usize| mask.get_pixel((column * columns) as u32, (row * rows) as u32)[0];
    let values = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
    let values: Vec<f32> = values.map(|(row, column)| f32::from(u8::from(at(row, column) >= MASK_THRESHOLD))).collect();
    Ok(Tensor::from_vec(values, (1, 1, height, width), device)?)
}
