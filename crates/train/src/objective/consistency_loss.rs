//! Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ, Chen et al. 2024,
//! section 3): a student is to say from `z_t` what it says one step of the teacher later.

use candle_core::Tensor;
use pixart_diffusion::{NoiseSchedule, SchedulerConfig, SchedulerKind};
use serde::{Deserialize, Serialize};

use super::hybrid_loss::{TIMESTEPS, column};
use crate::Result;

/// Standard deviation of the data, and what timesteps are multiplied with, in the consistency function.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

/// The settings of a distillation. The default is what PixArt-δ was published with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsistencySettings {
    /// Steps of the teacher's solver from noise to picture.
    pub ddim_steps: usize,
    /// Strength ω of the teacher's guidance: `conditional + ω (conditional − unconditional)`. In the terms of `pixart generate`
    /// that is a guidance scale of ω + 1.
    pub guidance_scale: f64,
    /// Differences well below it count by their squares, those well above it by their size.
    pub huber_c: f64,
}

impl Default for ConsistencySettings {
    fn default() -> Self {
        Self { ddim_steps: 50, guidance_scale: 4.5, huber_c: 1e-3 }
    }
}

impl ConsistencySettings {
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.ddim_steps == 0 || !TIMESTEPS.is_multiple_of(self.ddim_steps) {
            return Err(format!("ddim_steps is {}; it divides {TIMESTEPS}", self.ddim_steps));
        }
        if !self.guidance_scale.is_finite() {
            return Err(format!("guidance_scale is {}", self.guidance_scale));
        }
        if !(self.huber_c.is_finite() && self.huber_c > 0.0) {
            return Err(format!("huber_c is {}", self.huber_c));
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
    /// For each image, which of the teacher's steps is taken: 0 is the last, to the picture.
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
    /// Where the teacher's step led.
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

    /// The teacher's timesteps, from the last to the first: 19, 39 … 999.
    pub fn timesteps(&self) -> Vec<usize> {
        (1..=self.settings.ddim_steps).map(|step| step * self.stride() - 1).collect()
    }

    fn stride(&self) -> usize {
        TIMESTEPS / self.settings.ddim_steps
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
        let ss: Vec<usize> = ts.iter().map(|t| t.saturating_sub(self.stride())).collect();
        let before: Vec<usize> =
            indices.iter().map(|index| index.checked_sub(1).map_or(0, |index| grid[index])).collect();

        let z_t = self.schedule.add_noise(latents, noise, &ts)?;
        let [conditional, unconditional] = teacher(&z_t, &ts)?;
        let omega = self.settings.guidance_scale;
        let guided = |with: &Tensor, without: &Tensor| with + ((with - without)? * omega)?;
        let (x0, x0_without) = (self.x0(&z_t, &conditional, &ts)?, self.x0(&z_t, &unconditional, &ts)?);
        let (x0, noise) = (guided(&x0, &x0_without)?, guided(&conditional, &unconditional)?);
        let z_s = self.schedule.add_noise(&x0, &noise, &before)?.detach();

        let target = self.consistent(&z_s, &target(&z_s, &ss)?, &ss)?.detach();
        let prediction = self.consistent(&z_t, &student(&z_t, &ts)?, &ts)?;
        let c = self.settings.huber_c;
        let huber = (((&prediction - &target)?.sqr()? + c * c)?.sqrt()? - c)?;
        Ok(ConsistencyTerms { loss: huber.mean_all()?, prediction, target, z_s })
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
