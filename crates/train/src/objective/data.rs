//! What the steps of all stages on features are given.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use candle_core::{Device, Tensor};

use crate::features::{Batch, Features};
use crate::order::Order;
use crate::random::generator;
use crate::{Recipe, Result};

/// Features, and the order they come in.
pub(crate) struct Data {
    pub features: Arc<Features>,
    order: Arc<Order>,
    pub seed: u64,
    pub device: Device,
    /// What a GPU will be given next, which is made while it computes.
    ahead: Mutex<Option<(Part, JoinHandle<Result<Drawn>>)>>,
}

/// A step, and which of how many parts of its batch.
type Part = (u64, usize, usize);

/// Items, and all that is random about their latents, on the CPU.
pub(crate) struct Drawn {
    pub batch: Batch,
    pub draws: Draws,
}

/// Standard normal, of the latents' shape.
pub(crate) struct Draws {
    latents: Tensor,
    noise: Tensor,
}

impl Data {
    pub(crate) fn open(recipe: &Recipe, folder: &Path, device: &Device) -> Result<Self> {
        let features = Features::open(folder)?;
        let order = Order::new(features.sizes(), recipe.batch_size, recipe.seed);
        Ok(Self {
            features: Arc::new(features),
            order: Arc::new(order),
            seed: recipe.seed,
            device: device.clone(),
            ahead: Mutex::new(None),
        })
    }

    /// Height and width of the largest picture.
    pub(crate) fn largest(&self) -> (usize, usize) {
        self.features.sizes().max_by_key(|(height, width)| height * width).unwrap_or_default()
    }

    /// The items of part `part` of `parts` of the batch of step `step`.
    pub(crate) fn items(&self, step: u64, part: usize, parts: usize) -> Vec<usize> {
        items(&self.order, (step, part, parts))
    }

    /// That part of the batch, and the draws for it.
    pub(crate) fn drawn(&self, step: u64, part: usize, parts: usize) -> Result<Drawn> {
        let wanted = (step, part, parts);
        if self.device.is_cpu() {
            return draw(&self.features, &self.order, self.seed, wanted);
        }
        // What is there is only ever replaced whole.
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let drawn = match ahead.take() {
            Some((made, handle)) if made == wanted => match handle.join() {
                Ok(drawn) => drawn,
                Err(panic) => std::panic::resume_unwind(panic),
            },
            _ => draw(&self.features, &self.order, self.seed, wanted),
        };
        let next = if part + 1 < parts { (step, part + 1, parts) } else { (step + 1, 0, parts) };
        let (features, order, seed) = (self.features.clone(), self.order.clone(), self.seed);
        *ahead = Some((next, std::thread::spawn(move || draw(&features, &order, seed, next))));
        drawn
    }

    /// Latents drawn from a batch's moments and scaled as transformers take them, and noise of their shape.
    pub(crate) fn latents(&self, batch: &Batch, draws: &Draws, scaling_factor: f64) -> Result<(Tensor, Tensor)> {
        let moments = batch.moments.to_device(&self.device)?;
        let channels = moments.dim(1)? / 2;
        let (mean, logvar) = (moments.narrow(1, 0, channels)?, moments.narrow(1, channels, channels)?);
        let deviation = (logvar * 0.5)?.exp()?;
        let sample = (&mean + (draws.latents.to_device(&self.device)? * deviation)?)?;
        Ok(((sample * scaling_factor)?, draws.noise.to_device(&self.device)?))
    }
}

fn items(order: &Order, (step, part, parts): Part) -> Vec<usize> {
    let items = order.batch(step);
    let size = items.len() / parts;
    items[part * size..(part + 1) * size].to_vec()
}

fn draw(features: &Features, order: &Order, seed: u64, wanted: Part) -> Result<Drawn> {
    let batch = features.batch(&items(order, wanted))?;
    let (count, channels, height, width) = batch.moments.dims4()?;
    let draw = |purpose: &str| {
        let mut generator = generator(seed, purpose, &[wanted.0, wanted.1 as u64]);
        generator.randn_tensor((count, channels / 2, height, width), &Device::Cpu)
    };
    let (latents, noise) = rayon::join(|| draw("latents"), || draw("noise"));
    Ok(Drawn { batch, draws: Draws { latents: latents?, noise: noise? } })
}
