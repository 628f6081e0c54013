//! The noise levels and timesteps that an inference of the σ-based schedulers goes through.

use candle_core::Tensor;

use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::kind::SchedulerKind;
use crate::prediction::PredictionType;
use crate::schedule::NoiseSchedule;
use crate::sigmas::{SigmaSpacing, alpha_sigma, interpolate, sigma_to_timestep};
use crate::timesteps::{TimestepSpacing, linspace_f32};

/// Noise levels σ (noise over signal) from high to low, and the timestep of each but the last.
#[derive(Debug, Clone)]
pub(crate) struct SigmaSchedule {
    /// What the network is told at each step.
    pub(crate) timesteps: Vec<f64>,
    /// The level at each step, and then the one that the last step leads to; single precision.
    pub(crate) sigmas: Vec<f64>,
}

/// The level that the last step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinalSigma {
    Zero,
    Min,
}

fn final_sigma(config: &SchedulerConfig) -> Result<FinalSigma> {
    let choices = [("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::Min)];
    config.choice("final_sigmas_type", &choices)
}

/// A bound on the levels, which some classes let the config set.
fn bound(config: &SchedulerConfig, field: &str, otherwise: f64) -> Result<f64> {
    match config.optional_number(field) {
        Some(_) => config.positive(field),
        None => Ok(otherwise),
    }
}

impl SigmaSchedule {
    /// Of the Euler and Heun schedulers: levels at the timesteps themselves, down to the lowest.
    pub(crate) fn karras_style(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let train_sigmas = NoiseSchedule::from_config(config)?.sigmas();
        let train = train_sigmas.len();
        let offset = config.integer("steps_offset");
        let spacing = TimestepSpacing::from_config(config)?;
        let mut timesteps = spacing.down_to_first(train, steps, offset);
        round_to_f32(&mut timesteps);

        let log_linear = [("linear", false), ("log_linear", true)];
        let mut sigmas: Vec<f64> = if config.choice("interpolation_type", &log_linear)? {
            let (low, high) = (train_sigmas[0].ln(), train_sigmas[train - 1].ln());
            let logarithms = linspace_f32(high, low, steps + 1);
            logarithms.into_iter().map(|l| f64::from(l.exp())).collect()
        } else {
            timesteps.iter().map(|t| interpolate(*t, &train_sigmas)).collect()
        };
        let min = bound(config, "sigma_min", sigmas[sigmas.len() - 1])?;
        let max = bound(config, "sigma_max", sigmas[0])?;
        if let Some(spaced) = SigmaSpacing::from_config(config)?.between(min, max, steps) {
            timesteps = to_timesteps(&spaced, &train_sigmas);
            sigmas = spaced;
        }
        sigmas.push(match final_sigma(config)? {
            FinalSigma::Zero => 0.0,
            FinalSigma::Min => train_sigmas[0],
        });
        round_to_f32(&mut sigmas);

        let continuous = [("discrete", false), ("continuous", true)];
        let predicts_v = config.choice("timestep_type", &continuous)?
            && PredictionType::from_config(config)? == PredictionType::VPrediction;
        if predicts_v {
            // The network of Karras et al. is told ln(σ)/4 (table 1, c_noise).
            let levels = &sigmas[..sigmas.len() - 1];
            timesteps = levels.iter().map(|sigma| 0.25 * sigma.ln()).collect();
        }
        round_to_f32(&mut timesteps);
        Ok(Self { timesteps, sigmas })
    }

    /// Of the DPM, UniPC and SA solvers: levels at whole timesteps, of which the lowest is above
    /// timestep 0.
    pub(crate) fn multistep(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::from_config(config)?;
        let train_sigmas = schedule.sigmas();
        let train = train_sigmas.len();
        let last = last_timestep(config, &schedule)?;
        let offset = config.integer("steps_offset");
        let spacing = TimestepSpacing::from_config(config)?;
        let mut timesteps = spacing.above_first(last, train, steps, offset);

        let min = bound(config, "sigma_min", train_sigmas[0])?;
        let max = bound(config, "sigma_max", train_sigmas[train - 1])?;
        let sigma_spacing = SigmaSpacing::from_config(config)?;
        let spaced = sigma_spacing.between(min, max, steps);
        let lowest = spaced.as_ref().and_then(|sigmas| sigmas.last().copied());
        let mut sigmas: Vec<f64> = match spaced {
            None => timesteps.iter().map(|t| interpolate(*t, &train_sigmas)).collect(),
            Some(spaced) => {
                timesteps = to_timesteps(&spaced, &train_sigmas);
                // Some spacings are rounded to whole timesteps, all others cut off.
                if rounds_timesteps(config, sigma_spacing) {
                    timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
                }
                timesteps.iter_mut().for_each(|t| *t = t.trunc());
                spaced
            }
        };
        sigmas.push(match (config.kind(), final_sigma(config)?) {
            // SA-Solver has no choice: its first one stands for the only one.
            (SchedulerKind::SaSolver, _) | (SchedulerKind::UniPcMultistep, FinalSigma::Min) => {
                lowest.unwrap_or(train_sigmas[0])
            }
            (_, FinalSigma::Min) => train_sigmas[0],
            (_, FinalSigma::Zero) => 0.0,
        });
        round_to_f32(&mut sigmas);
        Ok(Self { timesteps, sigmas })
    }

    /// The largest number of steps of [`multistep`](Self::multistep) with distinct timesteps.
    pub(crate) fn multistep_max_steps(config: &SchedulerConfig) -> Result<usize> {
        let schedule = NoiseSchedule::from_config(config)?;
        Ok(match TimestepSpacing::from_config(config)? {
            TimestepSpacing::Trailing => schedule.alphas_cumprod().len(),
            _ => last_timestep(config, &schedule)? - 1,
        })
    }

    /// The number of steps.
    pub(crate) fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// The level at step `index`, and the one that the step leads to.
    pub(crate) fn sigma_pair(&self, index: usize) -> Result<(f64, f64)> {
        if index < self.len() {
            Ok((self.sigmas[index], self.sigmas[index + 1]))
        } else {
            let len = self.len();
            Err(Error::StepOutOfRange { index, len })
        }
    }

    /// `λ = −ln σ` at step `index`.
    pub(crate) fn lambda(&self, index: usize) -> f64 {
        -self.sigmas[index].ln()
    }

    /// The highest level.
    pub(crate) fn max(&self) -> f64 {
        self.sigmas.iter().copied().fold(0.0, f64::max)
    }

    /// `x_0 + σ·ε` at step `index`.
    pub(crate) fn add_noise_exploding(
        &self,
        original_samples: &Tensor,
        noise: &Tensor,
        index: usize,
    ) -> Result<Tensor> {
        let (sigma, _) = self.sigma_pair(index)?;
        combine(&[(1.0, original_samples), (sigma, noise)])
    }

    /// `α·x_0 + σ′·ε` at step `index`, with `α² + σ′² = 1`.
    pub(crate) fn add_noise_preserving(
        &self,
        original_samples: &Tensor,
        noise: &Tensor,
        index: usize,
    ) -> Result<Tensor> {
        let (alpha, sigma) = alpha_sigma(self.sigma_pair(index)?.0);
        combine(&[(alpha, original_samples), (sigma, noise)])
    }
}

fn to_timesteps(sigmas: &[f64], train_sigmas: &[f64]) -> Vec<f64> {
    sigmas.iter().map(|sigma| sigma_to_timestep(*sigma, train_sigmas)).collect()
}

fn round_to_f32(values: &mut [f64]) {
    values.iter_mut().for_each(|value| *value = f64::from(*value as f32));
}

/// The number of training timesteps that are not clipped off at the noisy end.
fn last_timestep(config: &SchedulerConfig, schedule: &NoiseSchedule) -> Result<usize> {
    let lambda_min = config.optional_number("lambda_min_clipped").unwrap_or(f64::NEG_INFINITY);
    match schedule.timesteps_above(lambda_min) {
        0 | 1 => Err(config.unsupported("lambda_min_clipped", "values that leave some timesteps")),
        last => Ok(last),
    }
}

/// Whether timesteps that come from noise levels are rounded before they are cut to whole numbers.
fn rounds_timesteps(config: &SchedulerConfig, spacing: SigmaSpacing) -> bool {
    match (config.kind(), spacing) {
        (SchedulerKind::DpmSolverMultistep, SigmaSpacing::Karras | SigmaSpacing::Lu) => {
            config.word("beta_schedule") != "squaredcos_cap_v2"
        }
        (_, SigmaSpacing::Karras) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_solver_visits_the_published_timesteps() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::DpmSolverMultistep);
        let schedule = SigmaSchedule::multistep(&config, 4)?;
        assert_eq!(schedule.timesteps, [999.0, 749.0, 500.0, 250.0]);
        assert!((schedule.sigmas[0] - 157.407).abs() < 1e-2);
        assert_eq!(schedule.sigmas[4], 0.0);
        Ok(())
    }

    #[test]
    fn every_spacing_keeps_levels_and_timesteps_in_step() -> Result<()> {
        let spacings = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];
        for kind in [
            SchedulerKind::DpmSolverMultistep,
            SchedulerKind::UniPcMultistep,
            SchedulerKind::SaSolver,
            SchedulerKind::EulerDiscrete,
            SchedulerKind::HeunDiscrete,
        ] {
            for spacing in spacings {
                let config = SchedulerConfig::new(kind).with(spacing, true)?;
                let schedule = match kind {
                    SchedulerKind::EulerDiscrete | SchedulerKind::HeunDiscrete => {
                        SigmaSchedule::karras_style(&config, 9)?
                    }
                    _ => SigmaSchedule::multistep(&config, 9)?,
                };
                assert_eq!((schedule.len(), schedule.sigmas.len()), (9, 10), "{kind} {spacing}");
                assert!(schedule.timesteps[0] > 990.0, "{kind} {spacing}");
                assert!(schedule.timesteps.is_sorted_by(|a, b| a > b), "{kind} {spacing}");
                assert!(schedule.sigma_pair(9).is_err());
            }
        }
        Ok(())
    }
}
