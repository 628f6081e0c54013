//! An autoencoder: pictures to latents and back (Rombach et al. 2022, section 3.1), with a loss that needs no other network.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use pixart_nn::vae::{AutoencoderKl, Posterior, VaeConfig};
use pixart_scenes::{Scene, Split};
use pixart_weights::{Part, open_part, write_json};
use rayon::prelude::*;

use super::{Loss, Objective, WEIGHTS};
use crate::grid::grid;
use crate::random::generator;
use crate::{AutoencoderRecipe, Error, Footprint, Parameters, Recipe, Result, UniformFanIn};

/// Scales at which edges are compared: each has half of the pixels of the one before along a side.
const SCALES: usize = 3;

/// Scenes of the validation grid, and of those that the latents' scale is measured on.
const VALIDATION_SCENES: usize = 8;

/// Numbers that are kept for the backward pass for each that a layer gives: its input, normed and not, and gradients.
const KEPT_OF_LAYER: u64 = 5;

/// Training of an autoencoder on scenes.
pub struct AutoencoderObjective {
    parameters: Parameters,
    dtype: DType,
    recipe: AutoencoderRecipe,
    /// Whose latents it is to have.
    teacher: Option<AutoencoderKl>,
    /// The teacher's, or the base's where the decoder alone is trained: latents stay what they are.
    kept_scale: Option<f64>,
    seed: u64,
    batch_size: usize,
    size: usize,
    crop: usize,
    device: Device,
}

impl AutoencoderObjective {
    /// A new autoencoder, for scenes of `size` pixels of which it is shown parts of `crop`.
    pub fn new(
        recipe: &Recipe,
        stage: &AutoencoderRecipe,
        (size, crop): (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let (parameters, base) = match &stage.base {
            Some(base) => {
                let (config, weights) = open_part::<VaeConfig>(base, Part::Vae, DType::F32)?;
                (Parameters::stored(weights, device), Some(config))
            }
            None => (Parameters::fresh(UniformFanIn { seed: recipe.seed }, device), None),
        };
        // Asking for the parameters makes them.
        AutoencoderKl::new(&stage.network, parameters.builder(DType::F32))?;
        let teacher = stage.teacher.as_ref().map(|folder| teacher(folder, &stage.network, device)).transpose()?;
        let kept_scale = match &teacher {
            Some(teacher) => Some(teacher.config().scaling_factor),
            None => base.filter(|_| stage.decoder_only).map(|config| config.scaling_factor),
        };
        Ok(Self {
            parameters,
            dtype: recipe.precision.dtype(),
            recipe: stage.clone(),
            teacher,
            kept_scale,
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            size,
            crop,
            device: device.clone(),
        })
    }

    /// The network for pictures that are looked at: as it is now, in f32, without gradients.
    fn network(&self) -> Result<AutoencoderKl> {
        Ok(AutoencoderKl::new(&self.recipe.network, self.parameters.detached(DType::F32))?)
    }

    /// Images of a part of a step, `[batch, 3, crop, crop]` in -1..1.
    fn images(&self, step: u64, part: usize, parts: usize) -> Result<Tensor> {
        let batch = self.batch_size / parts;
        let images: Vec<Vec<f32>> = (0..batch)
            .into_par_iter()
            .map(|i| {
                let index = (step - 1) * self.batch_size as u64 + (part * batch + i) as u64;
                let mut random = generator(self.seed, "crop", &[index]);
                let scene_seed = u64::from(random.rand(1)[0].to_bits()) << 32 | index;
                let free = (self.size - self.crop + 1) as f32;
                let corner = random.rand(2).into_iter().map(|x| (x * free) as usize).collect::<Vec<_>>();
                let picture = Scene::random(scene_seed, Split::Train).draw(self.size as u32);
                pixels(picture.pixels(), self.size, (corner[0], corner[1]), self.crop)
            })
            .collect();
        Ok(Tensor::from_vec(images.concat(), (batch, 3, self.crop, self.crop), &self.device)?)
    }

    /// Scenes that are not trained on, whole: `[count, 3, size, size]`.
    fn validation_images(&self) -> Result<Tensor> {
        let scenes = (0..VALIDATION_SCENES as u64).map(|i| {
            let picture = Scene::random(i, Split::Test).draw(self.size as u32);
            pixels(picture.pixels(), self.size, (0, 0), self.size)
        });
        let values = scenes.collect::<Vec<_>>().concat();
        Ok(Tensor::from_vec(values, (VALIDATION_SCENES, 3, self.size, self.size), &self.device)?)
    }

    /// Latents with noise, of each picture as much as a draw for it says.
    fn disturbed(&self, latents: &Tensor, step: u64, part: usize) -> Result<Tensor> {
        if self.recipe.latent_noise == 0.0 {
            return Ok(latents.clone());
        }
        let mut random = generator(self.seed, "latent noise", &[step, part as u64]);
        // Latents that are learned too must not come to be larger so that noise is less of them.
        let std = deviation(&latents.detach())?;
        let amounts = random.rand(latents.dim(0)?).into_iter();
        let amounts: Vec<f32> = amounts.map(|draw| (self.recipe.latent_noise * std) as f32 * draw).collect();
        let amounts = Tensor::from_vec(amounts, (latents.dim(0)?, 1, 1, 1), &self.device)?;
        let noise = random.randn_tensor(latents.shape().clone(), &self.device)?.broadcast_mul(&amounts)?;
        Ok((latents + noise)?)
    }

    /// What latents are to be multiplied with to have a standard deviation of 1.
    fn scaling_factor(&self) -> Result<f64> {
        if let Some(kept) = self.kept_scale {
            return Ok(kept);
        }
        Ok(1.0 / deviation(&self.network()?.encode(&self.validation_images()?)?.mean)?.max(1e-6))
    }
}

/// The autoencoder in `folder`, if a network as `network` says can have its latents.
fn teacher(folder: &Path, network: &VaeConfig, device: &Device) -> Result<AutoencoderKl> {
    let (config, weights) = open_part::<VaeConfig>(folder, Part::Vae, DType::F32)?;
    let latents = |config: &VaeConfig| (config.latent_channels, config.downscale());
    if latents(&config) != latents(network) {
        let ((channels, downscale), (its_channels, its_downscale)) = (latents(network), latents(&config));
        return Err(Error::folder(
            folder,
            format!(
                "it has latents of {its_channels} channels, {its_downscale} pixels wide each; \
                 stage.autoencoder.network has {channels} and {downscale}"
            ),
        ));
    }
    Ok(AutoencoderKl::new(&config, weights.named(DType::F32, device))?)
}

/// The square of the 2-Wasserstein distance of what two encoders say, averaged over all latent pixels: how far the means are
/// from each other, and the standard deviations.
fn distance(a: &Posterior, b: &Posterior) -> Result<Tensor> {
    let means = (&a.mean - &b.mean)?.sqr()?;
    Ok((means + (a.std()? - b.std()?)?.sqr()?)?.mean_all()?)
}

/// The standard deviation of all that `latents` hold.
fn deviation(latents: &Tensor) -> Result<f64> {
    let centred = latents.broadcast_sub(&latents.mean_all()?)?;
    Ok(f64::from(centred.sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt()))
}

impl Objective for AutoencoderObjective {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss> {
        let images = self.images(step, part, parts)?;
        let network = AutoencoderKl::new(&self.recipe.network, self.parameters.builder(self.dtype))?;
        let posterior = match &self.teacher {
            Some(teacher) => teacher.encode(&images)?,
            None if self.recipe.decoder_only => self.network()?.encode(&images)?,
            None => network.encode(&images)?,
        };
        let noise = generator(self.seed, "noise", &[step, part as u64])
            .randn_tensor(posterior.mean.shape().clone(), &self.device)?;
        let latents = self.disturbed(&posterior.sample(&noise)?, step, part)?;
        let reconstructed = network.decode(&latents)?;
        // Distances make edges sharp; their squares bring colours right, which distances alone do late.
        let difference = (&reconstructed - &images)?;
        let (pixels, squares) = (difference.abs()?.mean_all()?, difference.sqr()?.mean_all()?);
        let edges = edge_difference(&reconstructed, &images)?;
        let mut total = ((&pixels + &squares)? + (&edges * self.recipe.edge_weight)?)?;
        let mut terms = vec![("pixels", pixels), ("squares", squares), ("edges", edges)];
        if let Some(teacher) = &self.teacher {
            let scale = teacher.config().scaling_factor;
            let latents = (distance(&network.encode(&images)?, &posterior)? * scale.powi(2))?;
            total = (total + &latents)?;
            terms.push(("latents", latents));
        } else {
            // 0.5 · (mean² + variance − 1 − log variance), averaged over all latent pixels.
            let divergence = ((posterior.mean.sqr()? + posterior.logvar.exp()?)? - &posterior.logvar)?;
            let divergence = ((divergence.mean_all()? - 1.0)? * 0.5)?;
            total = (total + (&divergence * self.recipe.kl_weight)?)?;
            terms.push(("kl", divergence));
        }
        Ok(Loss { total, terms, recomputation: None })
    }

    fn footprint(&self) -> Result<Footprint> {
        let levels = self.recipe.network.block_out_channels.len();
        let (mut macs, mut kept) = (0.0, 0u64);
        for (name, variable) in self.parameters.all() {
            if variable.rank() < 2 {
                continue;
            }
            let side = (self.crop >> level_of(&name, levels)) as u64;
            macs += variable.elem_count() as f64 * (side * side) as f64;
            kept += variable.dim(0)? as u64 * side * side;
        }
        let trained = self.parameters.count() as u64;
        Ok(Footprint {
            trained,
            averaged: trained,
            parameters: trained,
            frozen_bytes: 0,
            bytes_per_picture: KEPT_OF_LAYER * kept * self.dtype.size_in_bytes() as u64,
            flops_per_picture: 3.0 * 2.0 * macs,
        })
    }

    fn validate(&self) -> Result<RgbImage> {
        let images = self.validation_images()?;
        let network = self.network()?;
        let reconstructed = network.decode(&network.encode(&images)?.mean)?;
        let pictures = |images: Tensor| -> Result<Vec<RgbImage>> {
            (0..VALIDATION_SCENES).map(|i| Ok(pixart::to_pixels(&images.narrow(0, i, 1)?)?)).collect()
        };
        Ok(grid(&[pictures(images)?, pictures(reconstructed)?]))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let network = VaeConfig { scaling_factor: self.scaling_factor()?, ..self.recipe.network.clone() };
        let mut config = serde_json::json!({ "_class_name": "AutoencoderKL", "sample_size": self.size });
        if let (Some(config), Ok(serde_json::Value::Object(fields))) =
            (config.as_object_mut(), serde_json::to_value(&network))
        {
            config.extend(fields);
        }
        write_json(&folder.join("config.json"), &config)?;
        Ok(self.parameters.save(&folder.join(WEIGHTS))?)
    }
}

/// How often the pixels were halved where the layer `name` computes, in a network of `levels` levels.
fn level_of(name: &str, levels: usize) -> usize {
    let block = |kind: &str| -> Option<usize> { name.split_once(kind)?.1.split('.').next()?.parse().ok() };
    let deepest = levels - 1;
    if let Some(block) = block("down_blocks.") {
        block + usize::from(name.contains("downsamplers"))
    } else if let Some(block) = block("up_blocks.") {
        deepest.saturating_sub(block + usize::from(name.contains("upsamplers")))
    } else if name.starts_with("encoder.conv_in") || name.starts_with("decoder.conv_out") {
        0
    } else {
        deepest
    }
}

/// Part of an RGB8 picture of `size` × `size` as channels in -1..1: from `corner` (row, column), `crop` × `crop`.
fn pixels(rgb: &[u8], size: usize, corner: (usize, usize), crop: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(3 * crop * crop);
    for channel in 0..3 {
        for row in corner.0..corner.0 + crop {
            let row = &rgb[3 * (row * size + corner.1)..][..3 * crop];
            values.extend(row.iter().skip(channel).step_by(3).map(|byte| f32::from(*byte) / 127.5 - 1.0));
        }
    }
    values
}

/// How differently two batches of images change from pixel to pixel, on the average over [`SCALES`] scales: what a blurred
/// edge costs.
fn edge_difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut difference = (a - b)?.contiguous()?;
    let mut sum = Tensor::zeros((), DType::F32, a.device())?;
    for scale in 0..SCALES {
        if scale > 0 {
            difference = difference.avg_pool2d(2)?;
        }
        for dim in [2, 3] {
            let len = difference.dim(dim)? - 1;
            let step = (difference.narrow(dim, 1, len)? - difference.narrow(dim, 0, len)?)?;
            sum = (sum + step.abs()?.mean_all()?)?;
        }
    }
    Ok((sum / (2 * SCALES) as f64)?)
}
