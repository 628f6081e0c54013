//! Latent consistency distillation (Luo et al. 2023, "Latent Consistency Models", algorithm 1; PixArt-δ, Chen et al. 2024,
//! section 3): a student is to say from `z_t` what it says one step of the teacher, or several, later.

use candle_core::Tensor;
use pixart_diffusion::{NoiseSchedule, SchedulerConfig, SchedulerKind, StepOptions};
use serde::{Deserialize, Serialize};

use super::hybrid_loss::{TIMESTEPS, column, signal_to_noise};
use crate::Result;
use crate::random::pick;

/// Standard deviation of the data, and what timesteps are multiplied with, in the consistency function.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

/// The settings of a distillation. The default is what PixArt-δ was published with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsistencySettings {
    /// Timesteps evenly from noise to picture; all of them are learned, as published, unless `solver_steps` is given.
    pub ddim_steps: usize,
    /// Learns only those timesteps at which the LCM solver asks when it draws in so many steps: 999, 759, 499 and 259 in 4, among
    /// which are those of 2 steps and of 1. What a small network has no room to learn everywhere it may learn there.
    pub solver_steps: Option<usize>,
    /// The share of images that are renoised from what the student draws rather than from the data, 0 as published. It draws them as the
    /// solver would, from noise alone, and so learns to go on from its own pictures, which are not quite like the data.
    pub own_pictures: f64,
    /// How many of the timesteps that are learned on the student is compared, 1 as published. What one timestep learns from the next reaches the
    /// first ones after many steps of training, and takes along what each of them got wrong; the longer the way, the less so. With 0 it is
    /// compared at the same timestep, to a target that was distilled before, and the teacher is not asked.
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
        Self {
            ddim_steps: 50,
            solver_steps: None,
            own_pictures: 0.0,
            skip: 1,
            teacher_steps: 1,
            guidance_scale: 4.5,
            huber_c: 1e-3,
            snr_power: 0.0,
        }
    }
}

impl ConsistencySettings {
    /// The timesteps that are learned, from the last to the first: 19, 39 … 999.
    fn timesteps(&self) -> Result<Vec<usize>, String> {
        if self.ddim_steps == 0 || !TIMESTEPS.is_multiple_of(self.ddim_steps) {
            return Err(format!("ddim_steps is {}; it divides {TIMESTEPS}", self.ddim_steps));
        }
        let steps = self.solver_steps.unwrap_or(self.ddim_steps);
        if !(1..=self.ddim_steps).contains(&steps) {
            return Err(format!("solver_steps is {steps}; it is from 1 to ddim_steps, {}", self.ddim_steps));
        }
        let solver = SchedulerConfig::new(SchedulerKind::Lcm)
            .with("original_inference_steps", self.ddim_steps)
            .and_then(|config| config.solver(steps, &StepOptions::default()))
            .map_err(|error| error.to_string())?;
        Ok(solver.timesteps().iter().rev().map(|t| *t as usize).collect())
    }

    /// Steps of the teacher's for an image.
    pub(crate) fn teacher_passes(&self) -> usize {
        if self.skip == 0 { 0 } else { self.teacher_steps }
    }

    pub(crate) fn validate(&self) -> Result<(), String> {
        let timesteps = self.timesteps()?;
        if !(0..=timesteps.len()).contains(&self.skip) {
            let found = self.skip;
            return Err(format!(
                "skip is {found}; it is from 0 to the timesteps that are learned, {}",
                timesteps.len()
            ));
        }
        // The shortest way is from one of the timesteps to the next, or from the last one to 0.
        let ways = timesteps.windows(2).map(|pair| pair[1] - pair[0]);
        let most = ways.fold(timesteps[0], usize::min).max(1);
        if !(1..=most).contains(&self.teacher_steps) {
            return Err(format!("teacher_steps is {}; it is from 1 to {most}", self.teacher_steps));
        }
        if !(0.0..=1.0).contains(&self.own_pictures) {
            return Err(format!("own_pictures is {}; it is from 0 to 1", self.own_pictures));
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
    timesteps: Vec<usize>,
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
    /// Settings that are out of range.
    pub fn new(settings: ConsistencySettings) -> Result<Self> {
        settings.validate().map_err(candle_core::Error::Msg)?;
        Ok(Self {
            timesteps: settings.timesteps().map_err(candle_core::Error::Msg)?,
            settings,
            schedule: NoiseSchedule::from_config(&SchedulerConfig::new(SchedulerKind::Ddpm))?,
        })
    }

    /// The timesteps that are learned, from the last to the first: 19, 39 … 999.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// Where the student draws, one after another, before it is asked at timestep `index`: at the first timestep, then at any of those
    /// that are left, which a draw from 0..1 picks, as the solver does in some number of steps.
    pub fn way_to(&self, index: usize, mut draw: impl FnMut() -> f32) -> Vec<usize> {
        let mut way = vec![];
        let mut at = self.timesteps.len() - 1;
        while at > index {
            way.push(at);
            at = index + pick(draw(), at - index);
        }
        way
    }

    /// How many passes such a way takes, on the average over all timesteps.
    pub(crate) fn passes_to_own_pictures(&self) -> f64 {
        // Over n timesteps a way takes 1 + 1/2 + … + 1/n of them.
        let count = self.timesteps.len();
        (1..count).map(|n| (count - n) as f64 / n as f64).sum::<f64>() / count as f64
    }

    /// What the student draws from noise on `ways`, which are ordered from the longest to the shortest, and the `latents` where a way has
    /// nothing in it. `noise` gives some of the latents' shape for each of a way's timesteps; `student` is given the first few images.
    pub fn own_pictures(
        &self,
        latents: &Tensor,
        ways: &[Vec<usize>],
        mut noise: impl FnMut() -> Result<Tensor>,
        student: impl Fn(&Tensor, &[usize]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut pictures = latents.clone();
        for round in 0.. {
            let ts: Vec<usize> =
                ways.iter().map_while(|way| way.get(round).map(|index| self.timesteps[*index])).collect();
            if ts.is_empty() {
                break;
            }
            let (drawn, others) = (ts.len(), ways.len() - ts.len());
            let noise = noise()?.narrow(0, 0, drawn)?;
            let z = match round {
                0 => noise,
                _ => self.schedule.add_noise(&pictures.narrow(0, 0, drawn)?, &noise, &ts)?,
            };
            let own = self.consistent(&z, &student(&z, &ts)?, &ts)?.detach();
            pictures = match others {
                0 => own,
                _ => Tensor::cat(&[own, pictures.narrow(0, drawn, others)?], 0)?,
            };
        }
        Ok(pictures)
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
        let grid = &self.timesteps;
        let ts: Vec<usize> = indices.iter().map(|index| grid[*index]).collect();
        let ss: Vec<usize> =
            indices.iter().map(|index| index.checked_sub(self.settings.skip).map_or(0, |index| grid[index])).collect();

        let z_t = self.schedule.add_noise(latents, noise, &ts)?;
        let mut z_s = z_t.clone();
        let steps = self.settings.teacher_passes();
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
        let weights = column(&ts, latents.device(), |t| self.weight(t))?;
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
