//! Multistep sampling of latent consistency models (Luo et al., "Latent Consistency Models", 2023,
//! Algorithm 3).

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::schedule::{NoiseSchedule, noisy};
use crate::solver::{Solver, Step, check_index};

/// Standard deviation of the data, in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

pub(crate) struct Lcm {
    timesteps: Vec<f64>,
    /// ᾱ at each timestep.
    alphas_cumprod: Vec<f64>,
    timestep_scaling: f64,
    prediction: PredictionType,
    clipping: Clipping,
}

impl Lcm {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize, strength: f64) -> Result<Self> {
        let schedule = NoiseSchedule::from_config(config)?;
        let original_steps = Self::original_inference_steps(config)?;
        let grid = (original_steps as f64 * strength.clamp(0.0, 1.0)) as usize;
        if grid < steps || strength > 1.0 {
            let least = steps as f64 / original_steps as f64;
            let supported = format!("for {steps} steps of {original_steps}, {least} to 1");
            return Err(Error::InvalidOption { option: "strength", value: strength, supported });
        }
        let timesteps = timesteps(schedule.alphas_cumprod().len() / original_steps, grid, steps);
        let prediction = PredictionType::from_config(config)?;
        prediction.require_signal(config, &schedule, &timesteps)?;
        Ok(Self {
            alphas_cumprod: schedule.alphas_at(&timesteps)?,
            timesteps,
            timestep_scaling: config.positive("timestep_scaling")?,
            prediction,
            clipping: Clipping::from_config(config)?,
        })
    }

    /// The size of the grid of timesteps that the model was distilled on.
    pub(crate) fn original_inference_steps(config: &SchedulerConfig) -> Result<usize> {
        let train = config.num_train_timesteps()?;
        config.count("original_inference_steps", 1, train as i64)
    }
}

/// Evenly chosen timesteps of the first `grid` ones of the distillation grid `k·stride − 1`, from the top.
fn timesteps(stride: usize, grid: usize, steps: usize) -> Vec<f64> {
    let jump = grid as f64 / steps as f64;
    (0..steps)
        .map(|step| {
            let skipped = (step as f64 * jump).floor() as usize;
            ((grid - skipped) * stride - 1) as f64
        })
        .collect()
}

/// `(c_skip, c_out)` of the consistency function, which is the identity at time 0 (equation 9).
fn boundary_scalings(scaled_timestep: f64) -> (f64, f64) {
    let norm = scaled_timestep.powi(2) + SIGMA_DATA.powi(2);
    (SIGMA_DATA.powi(2) / norm, scaled_timestep / norm.sqrt())
}

impl Solver for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        check_index(index, self.timesteps.len())?;
        let alpha = self.alphas_cumprod[index];
        let scales = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let original = self.prediction.original_sample(model_output, sample, scales)?;
        let original = self.clipping.apply(original)?;

        let (c_skip, c_out) = boundary_scalings(self.timesteps[index] * self.timestep_scaling);
        let denoised = combine(&[(c_out, &original), (c_skip, sample)])?;
        let prev_sample = match self.alphas_cumprod.get(index + 1) {
            Some(alpha) => {
                let noise = source.randn_tensor(sample.shape(), sample.device())?;
                noisy(&denoised, &noise, *alpha)?
            }
            None => denoised.clone(),
        };
        Ok(Step { prev_sample, pred_original_sample: Some(denoised) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        check_index(index, self.timesteps.len())?;
        noisy(original_samples, noise, self.alphas_cumprod[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timesteps_come_from_the_distillation_grid() {
        assert_eq!(timesteps(20, 50, 4), [999.0, 759.0, 499.0, 259.0]);
        assert_eq!(timesteps(20, 50, 1), [999.0]);
        assert_eq!(timesteps(20, 50, 50)[48..], [39.0, 19.0]);
    }

    #[test]
    fn the_boundary_is_the_identity() {
        assert_eq!(boundary_scalings(0.0), (1.0, 0.0));
        let (c_skip, c_out) = boundary_scalings(9990.0);
        assert!(c_skip < 1e-8 && (c_out - 1.0).abs() < 1e-8);
    }
}
