//! How latent consistency distillation is done.

use pixart_diffusion::{SchedulerConfig, SchedulerKind, StepOptions};
use serde::{Deserialize, Serialize};

use super::hybrid_loss::TIMESTEPS;

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
    /// The power of the signal-to-noise ratio ᾱ / (1 − ᾱ) that timesteps are drawn in proportion to, from 0 to 1. At 0, as published, all
    /// are drawn equally often and differences between pictures count, and a difference in predicted noise comes to `√((1 − ᾱ) / ᾱ)` times as much in the picture: 157
    /// times at timestep 999, once at 259. At ½ differences in predicted noise count, so that what the last steps draw is
    /// learned as much as what the first ones do.
    pub snr_power: f64,
    /// In place of `snr_power`, how often each of the timesteps that are learned is drawn, in proportion, from the first, 999, to the last. The solver's
    /// steps are not equally hard to learn.
    pub timestep_shares: Option<Vec<f64>>,
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
            timestep_shares: None,
        }
    }
}

impl ConsistencySettings {
    /// The timesteps that are learned, from the last to the first: 19, 39 … 999.
    pub(super) fn timesteps(&self) -> Result<Vec<usize>, String> {
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
        if let Some(shares) = &self.timestep_shares {
            if shares.len() != timesteps.len() {
                let (given, learned) = (shares.len(), timesteps.len());
                return Err(format!("timestep_shares has {given} numbers; {learned} timesteps are learned"));
            }
            let fits = |share: &f64| share.is_finite() && *share >= 0.0;
            if !shares.iter().all(fits) || shares.iter().sum::<f64>() <= 0.0 {
                return Err(format!("timestep_shares is {shares:?}; none is below 0, and one is above"));
            }
            if self.snr_power != 0.0 {
                return Err("timestep_shares stands in place of snr_power, which is given too".into());
            }
        }
        Ok(())
    }
}
