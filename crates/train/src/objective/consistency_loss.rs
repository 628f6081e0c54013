//! Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ, Chen et al. 2024,
//! section 3): a student is to say from `z_t` what it says one step of the teacher, or several, later.

use candle_core::Tensor;
use pixart_diffusion::{NoiseSchedule, SchedulerConfig, SchedulerKind};
use serde::{Deserialize, Serialize};

use super::hybrid_loss::{TIMESTEPS, column, signal_to_noise};
use crate::Result;

/// Standard deviation of the data, and what timesteps are multiplied with, in the consistency function.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

/// The settings of a distillation. The default is what PixArt-δ was published with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsistencySettings {
    /// Timesteps that are learned, evenly from noise to picture.
    pub ddim_steps: usize,
    /// How many of those timesteps on the student is compared, 1 as published. What one timestep learns from the next reaches the
    /// first ones after many steps of training, and takes along what each of them got wrong; the longer the way, the less so.
    pub skip: usize,
    /// Steps of DDIM that the teacher takes on that way, 1 as published. Each costs two of its evaluations.
    pub teacher_steps: usize,
    /// Strength ω of the teacher's guidance: `conditional + ω (conditional − unconditional)`. In the terms of `pixart generate`
    /// that is a guidance scale of ω + 1.
    pub guidance_scale: f64,
    /// Differences well below it count by their squares, those well above it by their size.
    pub huber_c: f64,
    /// The power of the signal-to-noise ratio ᾱ / (1 − ᾱ) that an image counts with, from 0 to 1. At 0, as published, differences
    /// between pictures count, and a difference in predicted noise comes to `√((1 − ᾱ) / ᾱ)` times as much in the picture: 157
    /// times at timestep 999, once at 259. At ½ differences in predicted noise count, so that what the last steps draw is
    /// learned as much as what the first ones do.
    pub snr_power: f64,
}

impl Default for ConsistencySettings {
    fn default() -> Self {
        Self { ddim_steps: 50, skip: 1, teacher_steps: 1, guidance_scale: 4.5, huber_c: 1e-3, snr_power: 0.0 }
    }
}

impl ConsistencySettings {
    /// From one timestep that is learned to the next.
    fn stride(&self) -> usize {
        TIMESTEPS / self.ddim_steps
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.ddim_steps == 0 || !TIMESTEPS.is_multiple_of(self.ddim_steps) {
            return Err(format!("ddim_steps is {}; it divides {TIMESTEPS}", self.ddim_steps));
        }
        if !(1..=self.ddim_steps).contains(&self.skip) {
            return Err(format!("skip is {}; it is from 1 to ddim_steps, {}", self.skip, self.ddim_steps));
        }
        // The shortest way is from the first of the timesteps to 0.
        let most = (self.stride() - 1).max(1);
        if !(1..=most).contains(&self.teacher_steps) {
            return Err(format!("teacher_steps is {}; it is from 1 to {most}", self.teacher_steps));
        }
        if !self.guidance_scale.is_finite() {
            return Err(format!("guidance_scale is {}", self.guidance_scale));
        }
        if !(self.huber_c.is_finite() && self.huber_c > 0.0) {
            return Err(format!("huber_c is {}", self.huber_c));
        }
        if !(0.0..=1.0).contains(&self.snr_power) {
            return Err(format!("snr_power is {}; it is from 0 to 1", self.snr_power));
        }
        Ok(())
    }
}

/// The loss of a distillation.
pub struct ConsistencyLoss {
    settings: ConsistencySettings,
    schedule: NoiseSchedule,
}

/// What a step is given.
pub struct ConsistencyInputs<'a> {
    /// `[batch, channels, height, width]`, as a transformer takes them.
    pub latents: &'a Tensor,
    /// Standard normal, of the same shape.
    pub noise: &'a Tensor,
    /// For each image, which of the timesteps that are learned it has: 0 is the last, next to the picture.
    pub indices: &'a [usize],
}

/// What a step comes to.
pub struct ConsistencyTerms {
    /// The loss, a scalar.
    pub loss: Tensor,
    /// What the student says, of the latents' shape.
    pub prediction: Tensor,
    /// What it is to say.
    pub target: Tensor,
    /// Where the teacher's steps led.
    pub z_s: Tensor,
}

impl ConsistencyLoss {
    /// For PixArt's schedule.
    ///
    /// # Errors
    /// Never, but that a schedule is made from a config.
    pub fn new(settings: ConsistencySettings) -> Result<Self> {
        Ok(Self { settings, schedule: NoiseSchedule::from_config(&SchedulerConfig::new(SchedulerKind::Ddpm))? })
    }

    /// The timesteps that are learned, from the last to the first: 19, 39 … 999.
    pub fn timesteps(&self) -> Vec<usize> {
        (1..=self.settings.ddim_steps).map(|step| step * self.settings.stride() - 1).collect()
    }

    /// The loss of a step, of the noise that networks predict in latents at timesteps: the student's, which gradients go
    /// through, the target's, and the teacher's with and without text.
    pub fn terms(
        &self,
        inputs: &ConsistencyInputs,
        student: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
        target: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
        teacher: impl Fn(&Tensor, &[usize]) -> Result<[Tensor; 2]>,
    ) -> Result<ConsistencyTerms> {
        let ConsistencyInputs { latents, noise, indices } = inputs;
        let grid = self.timesteps();
        let ts: Vec<usize> = indices.iter().map(|index| grid[*index]).collect();
        let ss: Vec<usize> =
            indices.iter().map(|index| index.checked_sub(self.settings.skip).map_or(0, |index| grid[index])).collect();

        let z_t = self.schedule.add_noise(latents, noise, &ts)?;
        let mut z_s = z_t.clone();
        let steps = self.settings.teacher_steps;
        for step in 0..steps {
            let on_the_way = |done| ts.iter().zip(&ss).map(|(t, s)| t - (t - s) * done / steps).collect::<Vec<_>>();
            let (from, to) = (on_the_way(step), on_the_way(step + 1));
            let [conditional, unconditional] = teacher(&z_s, &from)?;
            let noise = (&conditional + ((&conditional - unconditional)? * self.settings.guidance_scale)?)?;
            z_s = self.schedule.add_noise(&self.x0(&z_s, &noise, &from)?, &noise, &to)?.detach();
        }

        let target = self.consistent(&z_s, &target(&z_s, &ss)?, &ss)?.detach();
        let prediction = self.consistent(&z_t, &student(&z_t, &ts)?, &ts)?;
        let c = self.settings.huber_c;
        let huber = (((&prediction - &target)?.sqr()? + c * c)?.sqrt()? - c)?;
        let weights = column(&ts, z_t.device(), |t| self.weight(t))?;
        Ok(ConsistencyTerms { loss: huber.broadcast_mul(&weights)?.mean_all()?, prediction, target, z_s })
    }

    /// How much an image counts.
    fn weight(&self, t: usize) -> f64 {
        signal_to_noise(self.schedule.alphas_cumprod()[t]).powf(self.settings.snr_power)
    }

    /// The picture in `z` that has this noise.
    fn x0(&self, z: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let loudness = column(ts, z.device(), |t| (1.0 - self.schedule.alphas_cumprod()[t]).sqrt())?;
        let signal = column(ts, z.device(), |t| self.schedule.alphas_cumprod()[t].sqrt().recip())?;
        Ok((z - noise.broadcast_mul(&loudness)?)?.broadcast_mul(&signal)?)
    }

    /// The consistency function `c_skip · z + c_out · x0`, which is `z` itself at timestep 0.
    fn consistent(&self, z: &Tensor, noise: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let scaled = |t: usize| TIMESTEP_SCALING * t as f64;
        let variance = SIGMA_DATA * SIGMA_DATA;
        let skip = column(ts, z.device(), |t| variance / (scaled(t).powi(2) + variance))?;
        let out = column(ts, z.device(), |t| scaled(t) / (scaled(t).powi(2) + variance).sqrt())?;
        Ok((z.broadcast_mul(&skip)? + self.x0(z, noise, ts)?.broadcast_mul(&out)?)?)
    }
}
