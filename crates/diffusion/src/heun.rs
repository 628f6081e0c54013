//! Heun's method on the probability-flow equation (Karras et al., 2022, Algorithm 1): an Euler
//! step, then the same step again with the mean of the slopes at its two ends. The last step, to a
//! level of zero, is Euler's alone.

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::euler::{init_noise_sigma, normalised};
use crate::noise::NoiseSource;
use crate::prediction::PredictionType;
use crate::sigma_schedule::SigmaSchedule;
use crate::solver::{Solver, Step};

pub(crate) struct Heun {
    /// Every level but the first and last stands twice.
    schedule: SigmaSchedule,
    init_noise_sigma: f64,
    prediction: PredictionType,
    clipping: Clipping,
    /// The first half of a step, until the second is done.
    half: Option<Half>,
}

struct Half {
    index: usize,
    /// Where the step began.
    sample: Tensor,
    /// The slope there.
    derivative: Tensor,
}

impl Heun {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let mut schedule = SigmaSchedule::karras_style(config, steps)?;
        let init_noise_sigma = init_noise_sigma(config, &schedule)?;
        let zero = schedule.sigmas.pop().unwrap_or_default();
        schedule.sigmas = all_but_first_twice(&schedule.sigmas);
        schedule.sigmas.push(zero);
        schedule.timesteps = all_but_first_twice(&schedule.timesteps);
        Ok(Self {
            schedule,
            init_noise_sigma,
            prediction: PredictionType::from_config(config)?,
            clipping: Clipping::from_config(config)?,
            half: None,
        })
    }
}

fn all_but_first_twice(values: &[f64]) -> Vec<f64> {
    values.iter().flat_map(|value| [*value, *value]).skip(1).collect()
}

impl Solver for Heun {
    fn timesteps(&self) -> &[f64] {
        &self.schedule.timesteps
    }

    fn order(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: &Tensor, index: usize) -> Result<Tensor> {
        normalised(sample, self.schedule.sigma_pair(index)?.0)
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, _: &mut NoiseSource) -> Result<Step> {
        let (sigma, sigma_next) = self.schedule.sigma_pair(index)?;
        let original = self.prediction.original_sample_exploding(model_output, sample, sigma)?;
        let original = self.clipping.apply(original)?;
        // The slope (x − x_0)/σ is the predicted noise, unless the picture was clipped.
        let derivative = match self.clipping {
            Clipping::None => self.prediction.epsilon_exploding(model_output, sample, sigma)?,
            _ => combine(&[(1.0 / sigma, sample), (-1.0 / sigma, &original)])?,
        };
        let half = self.half.take().filter(|half| half.index + 1 == index);
        let prev_sample = match half {
            None => {
                let prev_sample = combine(&[(1.0, sample), (sigma_next - sigma, &derivative)])?;
                self.half = Some(Half { index, sample: sample.clone(), derivative });
                prev_sample
            }
            Some(Half { sample: start, derivative: first, .. }) => {
                let (sigma_start, _) = self.schedule.sigma_pair(index - 1)?;
                let weight = 0.5 * (sigma - sigma_start);
                combine(&[(1.0, &start), (weight, &first), (weight, &derivative)])?
            }
        };
        Ok(Step { prev_sample, pred_original_sample: Some(original) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        self.schedule.add_noise_exploding(original_samples, noise, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaussian;
    use crate::kind::SchedulerKind;

    #[test]
    fn both_network_calls_of_a_step_are_listed() -> Result<()> {
        let heun = Heun::new(&SchedulerConfig::new(SchedulerKind::HeunDiscrete), 4)?;
        assert_eq!(heun.timesteps(), [999.0, 666.0, 666.0, 333.0, 333.0, 0.0, 0.0]);
        assert_eq!(heun.schedule.sigmas.len(), 8);
        assert_eq!(heun.schedule.sigmas[1], heun.schedule.sigmas[2]);
        assert_eq!(heun.schedule.sigmas[7], 0.0);
        Ok(())
    }

    #[test]
    fn the_method_is_of_second_order() -> Result<()> {
        let error = |steps| -> Result<f64> {
            let config = SchedulerConfig::new(SchedulerKind::HeunDiscrete)
                .with("use_karras_sigmas", true)?
                .with("beta_end", 0.02)?;
            let mut heun = Heun::new(&config, steps)?;
            let sigmas = heun.schedule.sigmas.clone();
            gaussian::error(&mut heun, &sigmas, false)
        };
        let gain = error(15)? / error(30)?;
        assert!(gain > 3.5, "{gain}");
        Ok(())
    }
}
