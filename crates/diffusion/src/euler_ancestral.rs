//! Euler's method with ancestral noise: each step goes below its level and is filled up with fresh
//! noise (k-diffusion's `sample_euler_ancestral`, by Katherine Crowson).

use candle_core::Tensor;

use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::euler::{init_noise_sigma, normalised};
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::sigma_schedule::SigmaSchedule;
use crate::solver::{Solver, Step};

pub(crate) struct EulerAncestral {
    schedule: SigmaSchedule,
    init_noise_sigma: f64,
    prediction: PredictionType,
}

impl EulerAncestral {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let schedule = SigmaSchedule::karras_style(config, steps)?;
        Ok(Self {
            init_noise_sigma: init_noise_sigma(config, &schedule)?,
            prediction: PredictionType::from_config(config)?,
            schedule,
        })
    }
}

impl Solver for EulerAncestral {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: &Tensor, index: usize) -> Result<Tensor> {
        normalised(sample, self.schedule.sigma_pair(index)?.0)
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        let (sigma, sigma_next) = self.schedule.sigma_pair(index)?;
        let original = self.prediction.original_sample_exploding(model_output, sample, sigma)?;
        // σ'² = σ_down² + σ_up², with σ_down/σ' = σ'/σ.
        let ratio = sigma_next / sigma;
        let sigma_up = sigma_next * (1.0 - ratio * ratio).max(0.0).sqrt();
        let kept = ratio * ratio;
        // Drawn at the last step too, where it weighs nothing.
        let noise = source.randn_tensor(sample.shape(), sample.device())?;
        let prev_sample = combine(&[(kept, sample), (1.0 - kept, &original), (sigma_up, &noise)])?;
        Ok(Step { prev_sample, pred_original_sample: Some(original) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        self.schedule.add_noise_exploding(original_samples, noise, index)
    }
}
