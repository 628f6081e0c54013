//! Euler's method on the probability-flow equation, with optional churn (Karras et al., 2022,
//! Algorithm 2 without its second-order correction).

use candle_core::Tensor;

use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::sigma_schedule::SigmaSchedule;
use crate::solver::{Solver, Step, StepOptions};
use crate::timesteps::TimestepSpacing;

pub(crate) struct Euler {
    schedule: SigmaSchedule,
    init_noise_sigma: f64,
    prediction: PredictionType,
    options: StepOptions,
}

impl Euler {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize, options: &StepOptions) -> Result<Self> {
        for (option, value) in [("s_churn", options.s_churn), ("s_noise", options.s_noise)] {
            if !(0.0..f64::INFINITY).contains(&value) {
                return Err(Error::InvalidOption { option, value, supported: "0 or more".into() });
            }
        }
        let schedule = SigmaSchedule::karras_style(config, steps)?;
        Ok(Self {
            init_noise_sigma: init_noise_sigma(config, &schedule)?,
            prediction: PredictionType::from_config(config)?,
            schedule,
            options: *options,
        })
    }

    /// Algorithm 2's γ: the share by which the noise level is raised before a step.
    fn gamma(&self, sigma: f64) -> f64 {
        let StepOptions { s_churn, s_tmin, s_tmax, .. } = self.options;
        if (s_tmin..=s_tmax).contains(&sigma) {
            let share = s_churn / (self.schedule.sigmas.len() - 1) as f64;
            share.min(std::f64::consts::SQRT_2 - 1.0)
        } else {
            0.0
        }
    }
}

/// The standard deviation of a sample at the highest noise level: with `leading` timesteps, which
/// do not begin at the end of the training schedule, the picture's own part counts too.
pub(crate) fn init_noise_sigma(config: &SchedulerConfig, schedule: &SigmaSchedule) -> Result<f64> {
    let max = schedule.max();
    Ok(match TimestepSpacing::from_config(config)? {
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
    })
}

/// The sample over the standard deviation that it has at level `sigma` if the data have 1.
pub(crate) fn normalised(sample: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(sample.affine(1.0 / (sigma * sigma + 1.0).sqrt(), 0.0)?)
}

impl Solver for Euler {
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
        let gamma = self.gamma(sigma);
        let sigma_hat = sigma * (gamma + 1.0);
        let sample = if gamma > 0.0 {
            let noise = source.randn_tensor(sample.shape(), sample.device())?;
            let spread = self.options.s_noise * (sigma_hat * sigma_hat - sigma * sigma).sqrt();
            combine(&[(1.0, sample), (spread, &noise)])?
        } else {
            sample.clone()
        };
        // The network's v belongs to the level at which it was called.
        let level = match self.prediction {
            PredictionType::VPrediction => sigma,
            PredictionType::Epsilon | PredictionType::Sample => sigma_hat,
        };
        let original = self.prediction.original_sample_exploding(model_output, &sample, level)?;
        // x + (σ' − σ)·(x − x_0)/σ
        let kept = sigma_next / sigma_hat;
        let prev_sample = combine(&[(kept, &sample), (1.0 - kept, &original)])?;
        Ok(Step { prev_sample, pred_original_sample: Some(original) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        self.schedule.add_noise_exploding(original_samples, noise, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SchedulerKind;

    #[test]
    fn churn_keeps_to_its_range() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::EulerDiscrete);
        let options = StepOptions { s_churn: 2.0, s_tmin: 0.1, s_tmax: 50.0, ..StepOptions::default() };
        let euler = Euler::new(&config, 10, &options)?;
        assert_eq!([0.05, 1.0, 60.0].map(|sigma| euler.gamma(sigma)), [0.0, 0.2, 0.0]);
        let options = StepOptions { s_churn: 100.0, ..options };
        let euler = Euler::new(&config, 10, &options)?;
        assert!((euler.gamma(1.0) - 0.41421356).abs() < 1e-8);
        let options = StepOptions { s_churn: -1.0, ..options };
        assert!(Euler::new(&config, 10, &options).is_err());
        Ok(())
    }
}
