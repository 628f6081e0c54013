//! Noise schedules: how much of the picture is left at each training timestep.

use candle_core::Tensor;

use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::kind::SchedulerKind;
use crate::timesteps::linspace_f32;

/// What is left of alphas_cumprod at the last timestep of a schedule rescaled to zero signal, in
/// schedulers that divide by it: the smallest positive float16.
const TERMINAL_ALPHA: f32 = 1.0 / (1u32 << 24) as f32;
/// The largest beta of the schedules that are given as a curve of alphas_cumprod.
const MAX_BETA: f64 = 0.999;

/// The noise schedule of a variance-preserving diffusion,
/// `x_t = √ᾱ_t · x_0 + √(1−ᾱ_t) · ε` (Ho et al., 2020, equation 4).
///
/// Values are rounded to single precision in the places where torch rounds them in diffusers.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// The schedule of a scheduler config.
    ///
    /// # Errors
    /// If the config asks for a beta schedule that its scheduler does not have, or if the betas do
    /// not lie between 0 and 1.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let betas = betas(config)?;
        let mut alphas_cumprod = cumulative_alphas(&betas);
        if !alphas_cumprod.iter().all(|alpha| 0.0 < *alpha && *alpha < 1.0) {
            let supported = "schedules with both signal and noise at every timestep";
            return Err(config.unsupported("num_train_timesteps", supported));
        }
        if config.flag("rescale_betas_zero_snr") {
            alphas_cumprod = cumulative_alphas(&zero_terminal_snr(&alphas_cumprod));
            let divides_by_alpha = matches!(
                config.kind(),
                SchedulerKind::DpmSolverMultistep
                    | SchedulerKind::EulerDiscrete
                    | SchedulerKind::EulerAncestralDiscrete
                    | SchedulerKind::UniPcMultistep
            );
            if let Some(last) = alphas_cumprod.last_mut()
                && divides_by_alpha
            {
                *last = TERMINAL_ALPHA;
            }
        }
        let alphas_cumprod = alphas_cumprod.into_iter().map(f64::from).collect();
        Ok(Self { alphas_cumprod })
    }

    /// `ᾱ_t`, the share of signal in the variance, of every training timestep from 0 on; falling.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// `σ_t = √((1−ᾱ_t)/ᾱ_t)`, the noise over the signal, of every training timestep; rising.
    pub fn sigmas(&self) -> Vec<f64> {
        let sigma = |alpha: &f64| {
            let alpha = *alpha as f32;
            f64::from(((1.0 - alpha) / alpha).sqrt())
        };
        self.alphas_cumprod.iter().map(sigma).collect()
    }

    /// `√ᾱ_t · original_samples + √(1−ᾱ_t) · noise`, with one timestep for each batch element.
    ///
    /// `original_samples` and `noise` are `[batch, ...]` of one shape and dtype; so is the result.
    ///
    /// # Errors
    /// If there are not as many timesteps as batch elements, a timestep is not in the schedule, or
    /// the tensors do not agree.
    pub fn add_noise(&self, original_samples: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
        let batch = original_samples.dim(0)?;
        if timesteps.len() != batch {
            let got = timesteps.len();
            return Err(Error::BatchMismatch { got, batch });
        }
        let timesteps: Vec<f64> = timesteps.iter().map(|t| *t as f64).collect();
        let alphas = self.alphas_at(&timesteps)?;
        let mut shape = vec![1; original_samples.rank()];
        shape[0] = batch;
        let column = |values: Vec<f32>| -> Result<Tensor> {
            let column = Tensor::from_vec(values, shape.as_slice(), original_samples.device())?;
            Ok(column.to_dtype(original_samples.dtype())?)
        };
        let signal = column(alphas.iter().map(|a| a.sqrt() as f32).collect())?;
        let spread = column(alphas.iter().map(|a| (1.0 - a).sqrt() as f32).collect())?;
        let signal = original_samples.broadcast_mul(&signal)?;
        Ok((signal + noise.broadcast_mul(&spread)?)?)
    }

    /// `ᾱ` at these training timesteps.
    pub(crate) fn alphas_at(&self, timesteps: &[f64]) -> Result<Vec<f64>> {
        let max = self.alphas_cumprod.len() - 1;
        let at = |timestep: &f64| {
            if (0.0..=max as f64).contains(timestep) {
                Ok(self.alphas_cumprod[*timestep as usize])
            } else {
                let timestep = *timestep;
                Err(Error::TimestepOutOfRange { timestep, max })
            }
        };
        timesteps.iter().map(at).collect()
    }

    /// How many timesteps are left once those with a `λ_t = ln(√ᾱ_t/√(1−ᾱ_t))` below `lambda_min`
    /// are cut off at the noisy end.
    pub(crate) fn timesteps_above(&self, lambda_min: f64) -> usize {
        let lambda = |alpha: f64| {
            let alpha = alpha as f32;
            alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln()
        };
        let above = |alpha: &&f64| f64::from(lambda(**alpha)) >= lambda_min;
        self.alphas_cumprod.iter().filter(above).count()
    }
}

/// `√ᾱ · original_samples + √(1−ᾱ) · noise`.
pub(crate) fn noisy(original_samples: &Tensor, noise: &Tensor, alpha_cumprod: f64) -> Result<Tensor> {
    let (signal, spread) = (alpha_cumprod.sqrt(), (1.0 - alpha_cumprod).sqrt());
    combine(&[(signal, original_samples), (spread, noise)])
}

/// The betas of a config, before any rescaling.
fn betas(config: &SchedulerConfig) -> Result<Vec<f32>> {
    let count = config.num_train_timesteps()?;
    if let Some(betas) = config.numbers("trained_betas") {
        if betas.len() != count || !betas.iter().all(|beta| is_beta(*beta)) {
            let supported = format!("{count} numbers between 0 and 1, one for each timestep");
            return Err(config.unsupported("trained_betas", supported));
        }
        return Ok(betas.into_iter().map(|beta| beta as f32).collect());
    }
    match beta_curve(config)? {
        BetaCurve::Between(between) => {
            let bound = |field: &str| match config.optional_number(field) {
                Some(beta) if is_beta(beta) => Ok(beta),
                _ => Err(config.unsupported(field, "numbers between 0 and 1")),
            };
            Ok(between(bound("beta_start")?, bound("beta_end")?, count))
        }
        BetaCurve::AlphaBar(alpha_bar) => {
            let at = |index: usize| alpha_bar(index as f64 / count as f64);
            let beta = |index: usize| (1.0 - at(index + 1) / at(index)).min(MAX_BETA) as f32;
            Ok((0..count).map(beta).collect())
        }
    }
}

fn is_beta(beta: f64) -> bool {
    0.0 < beta && beta < 1.0
}

/// Where betas come from when they are not listed.
#[derive(Clone, Copy)]
enum BetaCurve {
    /// A curve from the first beta to the last, at so many timesteps.
    Between(fn(f64, f64, usize) -> Vec<f32>),
    /// A curve of alphas_cumprod over time from 0 to 1.
    AlphaBar(fn(f64) -> f64),
}

fn beta_curve(config: &SchedulerConfig) -> Result<BetaCurve> {
    let mut choices = vec![
        ("linear", BetaCurve::Between(linspace_f32)),
        ("scaled_linear", BetaCurve::Between(scaled_linear)),
        ("squaredcos_cap_v2", BetaCurve::AlphaBar(cosine)),
    ];
    match config.kind() {
        SchedulerKind::Ddpm => {
            choices.push(("sigmoid", BetaCurve::Between(sigmoid)));
            choices.push(("laplace", BetaCurve::AlphaBar(laplace)));
        }
        SchedulerKind::HeunDiscrete => choices.push(("exp", BetaCurve::AlphaBar(exponential))),
        _ => {}
    }
    config.choice("beta_schedule", &choices)
}

/// Squares of a line: the schedule of latent diffusion (Rombach et al., 2021).
fn scaled_linear(start: f64, end: f64, count: usize) -> Vec<f32> {
    let roots = linspace_f32(start.sqrt(), end.sqrt(), count);
    roots.into_iter().map(|root| root * root).collect()
}

/// A logistic curve over −6 to 6, between the two betas.
fn sigmoid(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (range, start) = ((end - start) as f32, start as f32);
    let logistic = |x: f32| (1.0 / (1.0 + (-f64::from(x)).exp())) as f32;
    let points = linspace_f32(-6.0, 6.0, count);
    points.into_iter().map(|x| logistic(x) * range + start).collect()
}

/// Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, equation 17.
fn cosine(time: f64) -> f64 {
    let angle = (time + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
    angle.cos().powi(2)
}

/// A Laplace distribution of log-SNR (Hang et al., "Improved Noise Schedule for Diffusion
/// Training", 2024).
fn laplace(time: f64) -> f64 {
    let sign = 1f64.copysign(0.5 - time);
    let half_log = -0.5 * sign * (1.0 - 2.0 * (0.5 - time).abs() + 1e-6).ln();
    let snr = half_log.exp();
    (snr / (1.0 + snr)).sqrt()
}

fn exponential(time: f64) -> f64 {
    (-12.0 * time).exp()
}

/// The running product of `1 − beta`, carried in double precision as torch does.
fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - *beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// The betas that shift and stretch √ᾱ so that the last timestep has no signal and the first is
/// unchanged (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
/// Algorithm 1).
fn zero_terminal_snr(alphas_cumprod: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let stretch = first / (first - last);
    let stretched = roots.into_iter().map(|root| (root - last) * stretch);
    let mut previous = 1.0;
    let beta = |root: f32| {
        let alpha_cumprod = root * root;
        let alpha = alpha_cumprod / previous;
        previous = alpha_cumprod;
        1.0 - alpha
    };
    stretched.map(beta).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use serde_json::{Value, json};

    fn schedule(fields: &[(&str, Value)]) -> Result<NoiseSchedule> {
        let mut config = SchedulerConfig::new(SchedulerKind::Ddim);
        for (field, value) in fields {
            config = config.with(field, value.clone())?;
        }
        NoiseSchedule::from_config(&config)
    }

    #[test]
    fn the_linear_schedule_is_torchs_to_the_last_bit() -> Result<()> {
        let alphas = schedule(&[])?.alphas_cumprod;
        assert_eq!(alphas.len(), 1000);
        let known = [(0, 0.9999), (499, 0.078587234), (999, 4.0358304e-5)];
        for (timestep, alpha) in known {
            assert_eq!(alphas[timestep] as f32, alpha, "timestep {timestep}");
        }
        Ok(())
    }

    #[test]
    fn a_rescaled_schedule_ends_without_signal() -> Result<()> {
        let plain = schedule(&[])?;
        let rescaled = schedule(&[("rescale_betas_zero_snr", json!(true))])?;
        assert_eq!(rescaled.alphas_cumprod[999], 0.0);
        assert!((rescaled.alphas_cumprod[0] - plain.alphas_cumprod[0]).abs() < 1e-6);
        assert!(rescaled.alphas_cumprod.is_sorted_by(|a, b| a > b));
        Ok(())
    }

    #[test]
    fn impossible_betas_are_refused() {
        for (field, value) in [
            ("beta_start", json!(0.0)),
            ("beta_end", json!(1.5)),
            ("beta_end", json!("NaN")),
            ("beta_schedule", json!("exp")),
            ("trained_betas", json!([0.1, 0.2])),
            ("num_train_timesteps", json!(0)),
            ("num_train_timesteps", json!(1_000_000)),
        ] {
            let error = schedule(&[(field, value)]).err();
            let message = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(field), "{field}: {message}");
        }
    }

    #[test]
    fn noise_is_added_to_each_element_at_its_own_timestep() -> Result<()> {
        let schedule = schedule(&[])?;
        let original = Tensor::new(&[[1f32, -1.0], [1.0, -1.0]], &Device::Cpu)?;
        let noise = Tensor::new(&[[0f32, 0.0], [2.0, 2.0]], &Device::Cpu)?;
        let noisy = schedule.add_noise(&original, &noise, &[10, 999])?.to_vec2::<f32>()?;
        let alphas = schedule.alphas_cumprod();
        assert!((f64::from(noisy[0][0]) - alphas[10].sqrt()).abs() < 1e-6);
        let last = 2.0 * (1.0 - alphas[999]).sqrt() - alphas[999].sqrt();
        assert!((f64::from(noisy[1][1]) - last).abs() < 1e-6);
        assert!(schedule.add_noise(&original, &noise, &[1]).is_err());
        assert!(schedule.add_noise(&original, &noise, &[1, 1000]).is_err());
        Ok(())
    }
}
