//! Denoising diffusion probabilistic models (Ho et al., 2020), with fixed or learned variance
//! (Nichol and Dhariwal, 2021).

use candle_core::Tensor;

use crate::clipping::Clipping;
use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::noise::NoiseSource;
use crate::prediction::{PredictionType, split_variance};
use crate::schedule::{NoiseSchedule, noisy};
use crate::solver::{Solver, Step, check_index};
use crate::timesteps::TimestepSpacing;

/// Smallest variance, which keeps its logarithm finite.
const MIN_VARIANCE: f64 = 1e-20;

/// Where the variance of a step comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variance {
    /// `β̃_t`, the posterior's.
    FixedSmall,
    /// `β_t`.
    FixedLarge,
    /// The second half of the model output.
    Learned,
    /// The second half of the model output says where between the logarithms of `β̃_t` (−1) and
    /// `β_t` (+1) it lies (Nichol and Dhariwal, 2021, equation 15).
    LearnedRange,
}

impl Variance {
    fn from_config(config: &SchedulerConfig) -> Result<Self> {
        match config.word("variance_type") {
            // The logarithm is undone before use. Null, which a config converted from DPM-Solver
            // has, leaves the posterior's variance.
            "fixed_small" | "fixed_small_log" | "" => Ok(Self::FixedSmall),
            "fixed_large" => Ok(Self::FixedLarge),
            "learned" => Ok(Self::Learned),
            "learned_range" => Ok(Self::LearnedRange),
            // Among them fixed_large_log, of which diffusers takes the root of a negative logarithm.
            _ => {
                let supported = "fixed_small, fixed_small_log, fixed_large, learned, learned_range";
                Err(config.unsupported("variance_type", supported))
            }
        }
    }

    fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::LearnedRange)
    }
}

pub(crate) struct Ddpm {
    timesteps: Vec<f64>,
    /// ᾱ at each timestep, and at last 1.
    alphas_cumprod: Vec<f64>,
    variance: Variance,
    prediction: PredictionType,
    clipping: Clipping,
}

impl Ddpm {
    pub(crate) fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::from_config(config)?;
        let train = schedule.alphas_cumprod().len();
        let spacing = TimestepSpacing::from_config(config)?;
        let mut timesteps = spacing.down_to_first(train, steps, config.integer("steps_offset"));
        timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
        let prediction = PredictionType::from_config(config)?;
        prediction.require_signal(config, &schedule, &timesteps)?;
        let mut alphas_cumprod = schedule.alphas_at(&timesteps)?;
        alphas_cumprod.push(1.0);
        Ok(Self {
            timesteps,
            alphas_cumprod,
            variance: Variance::from_config(config)?,
            prediction,
            clipping: Clipping::from_config(config)?,
        })
    }

    /// Noise of the step's variance. `large` is `β_t`, `small` is `β̃_t`.
    fn scaled_noise(&self, noise: Tensor, learned: Option<&Tensor>, (small, large): (f64, f64)) -> Result<Tensor> {
        let scaled = match (self.variance, learned) {
            (Variance::Learned, Some(variance)) => (noise * variance.sqrt()?)?,
            (Variance::LearnedRange, Some(fraction)) => {
                // Half of the logarithm is that of the standard deviation.
                let (low, high) = (0.5 * small.ln(), 0.5 * large.ln());
                let log = fraction.affine(0.5 * (high - low), 0.5 * (high + low))?;
                (noise * log.exp()?)?
            }
            (Variance::FixedLarge, _) => noise.affine(large.sqrt(), 0.0)?,
            _ => noise.affine(small.sqrt(), 0.0)?,
        };
        Ok(scaled)
    }
}

impl Solver for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn uses_learned_variance(&self) -> bool {
        self.variance.is_learned()
    }

    fn step(&mut self, model_output: &Tensor, index: usize, sample: &Tensor, source: &mut NoiseSource) -> Result<Step> {
        check_index(index, self.timesteps.len())?;
        let (model_output, learned) = if self.variance.is_learned() {
            let (noise, variance) = split_variance(model_output, sample)?;
            (noise, Some(variance))
        } else {
            (model_output.clone(), None)
        };
        let (alpha, alpha_prev) = (self.alphas_cumprod[index], self.alphas_cumprod[index + 1]);
        let scales = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let original = self.prediction.original_sample(&model_output, sample, scales)?;
        let original = self.clipping.apply(original)?;

        // The posterior's mean and variance (equation 7), between two timesteps any distance apart.
        let current_alpha = alpha / alpha_prev;
        let current_beta = 1.0 - current_alpha;
        let original_weight = alpha_prev.sqrt() * current_beta / (1.0 - alpha);
        let sample_weight = current_alpha.sqrt() * (1.0 - alpha_prev) / (1.0 - alpha);
        let mean = combine(&[(original_weight, &original), (sample_weight, sample)])?;

        let prev_sample = if self.timesteps[index] > 0.0 {
            let noise = source.randn_tensor(sample.shape(), sample.device())?;
            let posterior = (1.0 - alpha_prev) / (1.0 - alpha) * current_beta;
            let variances = (posterior.max(MIN_VARIANCE), current_beta);
            (mean + self.scaled_noise(noise, learned.as_ref(), variances)?)?
        } else {
            mean
        };
        Ok(Step { prev_sample, pred_original_sample: Some(original) })
    }

    fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, index: usize) -> Result<Tensor> {
        check_index(index, self.timesteps.len())?;
        noisy(original_samples, noise, self.alphas_cumprod[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Generator;
    use crate::kind::SchedulerKind;
    use candle_core::{DType, Device};

    #[test]
    fn a_learned_range_ends_at_the_fixed_variances() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::Ddpm);
        let sample = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let step = |kind: &str, fraction: Option<f64>| -> Result<Vec<f32>> {
            let config = config.clone().with("variance_type", kind)?;
            let mut solver = Ddpm::new(&config, 10)?;
            let zeros = sample.zeros_like()?;
            let output = match fraction {
                Some(fraction) => Tensor::cat(&[zeros.clone(), zeros.affine(0.0, fraction)?], 1)?,
                None => zeros,
            };
            assert_eq!(solver.uses_learned_variance(), kind.starts_with("learned"));
            let step = solver.step(&output, 3, &sample, &mut Generator::new(0).into())?;
            Ok(step.prev_sample.flatten_all()?.to_vec1()?)
        };
        for (fixed, fraction) in [("fixed_small", -1.0), ("fixed_large", 1.0)] {
            let (fixed, learned) = (step(fixed, None)?, step("learned_range", Some(fraction))?);
            for (a, b) in fixed.iter().zip(&learned) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
        }
        assert!(step("learned", None).is_err());
        assert!(step("fixed_large_log", None).is_err());
        Ok(())
    }
}
