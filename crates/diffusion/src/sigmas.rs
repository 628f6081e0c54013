//! Sequences of noise levels σ, and the way between σ and training timesteps.

use crate::beta_distribution::symmetric_beta_quantile;
use crate::config::SchedulerConfig;
use crate::error::Result;
use crate::timesteps::linspace;

/// Curvature of the Karras sequence; the paper's value.
const RHO: f64 = 7.0;
/// Both parameters of the beta distribution; the paper's value.
const BETA: f64 = 0.6;

/// How the noise levels of an inference are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SigmaSpacing {
    /// They are those of the timesteps.
    Timesteps,
    /// Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    /// equation 5.
    Karras,
    /// Evenly in ln σ.
    Exponential,
    /// Lee et al., "Beta Sampling is All You Need", 2024.
    Beta,
    /// Evenly in λ = −ln σ of the single-precision schedule (Lu et al., 2022).
    Lu,
}

impl SigmaSpacing {
    pub(crate) fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let flags = [
            ("use_karras_sigmas", Self::Karras),
            ("use_lu_lambdas", Self::Lu),
            ("use_exponential_sigmas", Self::Exponential),
            ("use_beta_sigmas", Self::Beta),
        ];
        let mut set = flags.into_iter().filter(|(field, _)| config.flag(field));
        match (set.next(), set.next()) {
            (None, _) => Ok(Self::Timesteps),
            (Some((_, spacing)), None) => Ok(spacing),
            (Some((first, _)), Some((second, _))) => {
                let supported = format!("only one of `{first}` and `{second}`");
                Err(config.unsupported(second, supported))
            }
        }
    }

    /// `steps` noise levels from `max` down to `min`; `None` if they follow the timesteps.
    pub(crate) fn between(self, min: f64, max: f64, steps: usize) -> Option<Vec<f64>> {
        let sigmas = match self {
            Self::Timesteps => return None,
            Self::Karras => {
                let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
                let sigma = |ramp: f64| (high + ramp * (low - high)).powf(RHO);
                linspace(0.0, 1.0, steps).into_iter().map(sigma).collect()
            }
            Self::Exponential => exponentials(linspace(max.ln(), min.ln(), steps)),
            Self::Lu => exponentials(linspace(ln_f32(max), ln_f32(min), steps)),
            Self::Beta => {
                let sigma = |ramp: f64| min + symmetric_beta_quantile(1.0 - ramp, BETA) * (max - min);
                linspace(0.0, 1.0, steps).into_iter().map(sigma).collect()
            }
        };
        Some(sigmas)
    }
}

fn exponentials(logarithms: Vec<f64>) -> Vec<f64> {
    logarithms.into_iter().map(f64::exp).collect()
}

/// The natural logarithm, rounded to single precision.
fn ln_f32(value: f64) -> f64 {
    f64::from(value.ln() as f32)
}

/// The training timestep, with its fraction, at which the noise level is `sigma`: linear in ln σ
/// between timesteps, and the first or last timestep beyond them. `sigmas` are those of the
/// training timesteps, rising; there are at least two.
pub(crate) fn sigma_to_timestep(sigma: f64, sigmas: &[f64]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let below = sigmas.partition_point(|level| ln_f32(*level) <= log_sigma);
    let index = below.saturating_sub(1).min(sigmas.len() - 2);
    let (low, high) = (ln_f32(sigmas[index]), ln_f32(sigmas[index + 1]));
    let fraction = if low < high { ((low - log_sigma) / (low - high)).clamp(0.0, 1.0) } else { 0.0 };
    (1.0 - fraction) * index as f64 + fraction * (index + 1) as f64
}

/// The value at a fractional `index`, linear between elements and constant beyond the ends, as
/// `numpy.interp`. There is at least one value.
pub(crate) fn interpolate(index: f64, values: &[f64]) -> f64 {
    let last = values.len() - 1;
    let index = index.clamp(0.0, last as f64);
    let low = index.floor() as usize;
    if low == last {
        return values[last];
    }
    (values[low + 1] - values[low]) * (index - low as f64) + values[low]
}

/// `(α, σ′)` of the variance-preserving form `α·x_0 + σ′·ε` whose noise over signal is `sigma`.
pub(crate) fn alpha_sigma(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    (alpha, sigma * alpha)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SchedulerKind;

    #[test]
    fn every_spacing_falls_from_max_to_min() {
        use SigmaSpacing::{Beta, Exponential, Karras, Lu};
        for spacing in [Karras, Exponential, Beta, Lu] {
            let sigmas = spacing.between(0.01, 157.0, 20).unwrap_or_default();
            assert_eq!(sigmas.len(), 20);
            assert!(sigmas.is_sorted_by(|a, b| a > b), "{spacing:?}");
            assert!((sigmas[0] / 157.0 - 1.0).abs() < 1e-6, "{spacing:?}");
            assert!((sigmas[19] / 0.01 - 1.0).abs() < 1e-6, "{spacing:?}");
        }
        assert_eq!(SigmaSpacing::Timesteps.between(0.01, 157.0, 20), None);
    }

    #[test]
    fn timesteps_come_back_from_their_sigmas() {
        let sigmas: Vec<f64> = (0..100).map(|i| (f64::from(i) * 0.1 - 4.0).exp()).collect();
        for timestep in [0.0f64, 0.5, 7.25, 98.0, 99.0] {
            let sigma = (timestep * 0.1 - 4.0).exp();
            assert!((sigma_to_timestep(sigma, &sigmas) - timestep).abs() < 1e-4);
        }
        assert_eq!(sigma_to_timestep(0.0, &sigmas), 0.0);
        assert_eq!(sigma_to_timestep(1e9, &sigmas), 99.0);
    }

    #[test]
    fn interpolation_stops_at_the_ends() {
        let values = [1.0, 3.0, 4.0];
        let found = [-1.0, 0.0, 0.5, 1.5, 2.0, 7.0].map(|index| interpolate(index, &values));
        assert_eq!(found, [1.0, 1.0, 2.0, 3.5, 4.0, 4.0]);
    }

    #[test]
    fn two_spacings_at_once_are_refused() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::EulerDiscrete)
            .with("use_karras_sigmas", true)?
            .with("use_beta_sigmas", true)?;
        let error = SigmaSpacing::from_config(&config).err();
        let message = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("use_karras_sigmas"), "{message}");
        Ok(())
    }
}
