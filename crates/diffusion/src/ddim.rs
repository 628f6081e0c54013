//! Denoising diffusion implicit models (Song et al., 2020, equations 12 and 16).

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::schedule::{NoiseSchedule, noisy};
use crate::solver::{Solver, Step, StepOptions, check_index};
use crate::timesteps::TimestepSpacing;

pub(crate) struct Ddim {
    timesteps: Vec<f64>,
    /// ᾱ at each timestep, and at the one that its step leads to.
    alphas_cumprod: Vec<(f64, f64)>,
    eta: f64,
    prediction: PredictionType,
    clipping: Clipping,
}

impl Ddim {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize, options: &StepOptions) -> Result<Self> {
        let eta = options.eta;
        if !(0.0..=1.0).contains(&eta) {
            let supported = "0 to 1";
            return Err(Error::InvalidOption { option: "eta", value: eta, supported: supported.into() });
        }
        let schedule = NoiseSchedule::from_config(config)?;
        let train = schedule.alphas_cumprod().len();
        let spacing = TimestepSpacing::from_config(config)?;
        let mut timesteps = spacing.down_to_first(train, steps, config.integer("steps_offset"));
        timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        let prediction = PredictionType::from_config(config)?;
        prediction.require_signal(config, &schedule, &timesteps)?;

        // A step always goes down by the same stride, whatever the spacing of the timesteps.
        let stride = (train / steps) as f64;
        let last = if config.flag("set_alpha_to_one") { 1.0 } else { schedule.alphas_cumprod()[0] };
        let previous = |timestep: &f64| match schedule.alphas_at(&[*timestep - stride]) {
            Ok(alphas) => alphas[0],
            Err(_) => last,
        };
        let alphas = schedule.alphas_at(&timesteps)?;
        let alphas_cumprod = alphas.into_iter().zip(timesteps.iter().map(previous)).collect();
        Ok(Self { timesteps, alphas_cumprod, eta, prediction, clipping: Clipping::from_config(config)? })
    }
}

impl Solver for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        check_index(index, self.timesteps.len())?;
        let (alpha, alpha_prev) = self.alphas_cumprod[index];
        let scales = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let original = self.prediction.original_sample(model_output, sample, scales)?;
        let original = self.clipping.apply(original)?;
        let epsilon = self.prediction.epsilon(model_output, sample, scales)?;

        let variance = (1.0 - alpha_prev) / (1.0 - alpha) * (1.0 - alpha / alpha_prev);
        let std_dev = self.eta * variance.sqrt();
        let direction = (1.0 - alpha_prev - std_dev * std_dev).max(0.0).sqrt();
        let noise;
        let mut terms = vec![(alpha_prev.sqrt(), &original), (direction, &epsilon)];
        if self.eta > 0.0 {
            noise = source.randn_tensor(sample.shape(), sample.device())?;
            terms.push((std_dev, &noise));
        }
        let prev_sample = combine(&terms)?;
        Ok(Step { prev_sample, pred_original_sample: Some(original) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        check_index(index, self.timesteps.len())?;
        noisy(original_samples, noise, self.alphas_cumprod[index].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SchedulerKind;

    #[test]
    fn the_last_step_leads_to_the_final_alpha() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::Ddim);
        let solver = Ddim::new(&config, 4, &StepOptions::default())?;
        assert_eq!(solver.timesteps, [750.0, 500.0, 250.0, 0.0]);
        assert_eq!(solver.alphas_cumprod[0].1, solver.alphas_cumprod[1].0);
        assert_eq!(solver.alphas_cumprod[3].1, 1.0);
        let config = config.with("set_alpha_to_one", false)?;
        let solver = Ddim::new(&config, 4, &StepOptions::default())?;
        assert_eq!(solver.alphas_cumprod[3].1, solver.alphas_cumprod[3].0);
        Ok(())
    }

    #[test]
    fn eta_has_a_range() {
        let config = SchedulerConfig::new(SchedulerKind::Ddim);
        for eta in [-0.1, 1.1, f64::NAN] {
            let options = StepOptions { eta, ..StepOptions::default() };
            assert!(Ddim::new(&config, 4, &options).is_err(), "{eta}");
        }
    }
}
