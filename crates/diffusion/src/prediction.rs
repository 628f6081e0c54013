//! What a network predicts, and the picture and the noise that follow from it.

use candle_core::Tensor;

use crate::combine::combine;
use crate::config::SchedulerConfig;
use crate::error::{Error, Result};
use crate::kind::SchedulerKind;
use crate::schedule::NoiseSchedule;

/// What the model output stands for, in `x_t = α·x_0 + σ·ε`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// The picture x_0.
    Sample,
    /// `v = α·ε − σ·x_0` (Salimans and Ho, "Progressive Distillation", 2022, appendix D).
    VPrediction,
}

impl PredictionType {
    pub(crate) fn from_config(config: &SchedulerConfig) -> Result<Self> {
        let mut choices = vec![("epsilon", Self::Epsilon), ("v_prediction", Self::VPrediction)];
        if config.kind() != SchedulerKind::EulerAncestralDiscrete {
            choices.push(("sample", Self::Sample));
        }
        if config.kind() == SchedulerKind::EulerDiscrete {
            // An old name that some configs still have.
            choices.push(("original_sample", Self::Sample));
        }
        config.choice("prediction_type", &choices)
    }

    /// Refuses to divide by a signal of zero: noise says nothing about the picture there.
    pub(crate) fn require_signal(
        self,
        config: &SchedulerConfig,
        schedule: &NoiseSchedule,
        timesteps: &[f64],
    ) -> Result<()> {
        let alphas = schedule.alphas_at(timesteps)?;
        if self == Self::Epsilon && alphas.contains(&0.0) {
            let supported = "false, or prediction_type v_prediction or sample";
            return Err(config.unsupported("rescale_betas_zero_snr", supported));
        }
        Ok(())
    }

    /// `x_0`, where `sample = α·x_0 + σ·ε`.
    pub(crate) fn original_sample(
        self,
        model_output: &Tensor,
        sample: &Tensor,
        (alpha, sigma): (f64, f64),
    ) -> Result<Tensor> {
        match self {
            Self::Epsilon => combine(&[(1.0 / alpha, sample), (-sigma / alpha, model_output)]),
            Self::Sample => Ok(model_output.clone()),
            Self::VPrediction => combine(&[(alpha, sample), (-sigma, model_output)]),
        }
    }

    /// `ε`, where `sample = α·x_0 + σ·ε`.
    pub(crate) fn epsilon(self, model_output: &Tensor, sample: &Tensor, (alpha, sigma): (f64, f64)) -> Result<Tensor> {
        match self {
            Self::Epsilon => Ok(model_output.clone()),
            Self::Sample => combine(&[(1.0 / sigma, sample), (-alpha / sigma, model_output)]),
            Self::VPrediction => combine(&[(alpha, model_output), (sigma, sample)]),
        }
    }

    /// `x_0`, where `sample = x_0 + σ·ε` and the network saw the sample over `√(σ²+1)`.
    pub(crate) fn original_sample_exploding(
        self,
        model_output: &Tensor,
        sample: &Tensor,
        sigma: f64,
    ) -> Result<Tensor> {
        match self {
            Self::Epsilon => combine(&[(1.0, sample), (-sigma, model_output)]),
            Self::Sample => Ok(model_output.clone()),
            Self::VPrediction => {
                let variance = sigma * sigma + 1.0;
                combine(&[(1.0 / variance, sample), (-sigma / variance.sqrt(), model_output)])
            }
        }
    }

    /// `ε`, where `sample = x_0 + σ·ε` and the network saw the sample over `√(σ²+1)`.
    pub(crate) fn epsilon_exploding(self, model_output: &Tensor, sample: &Tensor, sigma: f64) -> Result<Tensor> {
        match self {
            Self::Epsilon => Ok(model_output.clone()),
            Self::Sample => combine(&[(1.0 / sigma, sample), (-1.0 / sigma, model_output)]),
            Self::VPrediction => {
                let variance = sigma * sigma + 1.0;
                combine(&[(sigma / variance, sample), (1.0 / variance.sqrt(), model_output)])
            }
        }
    }
}

/// Whether the config says that the network also predicts a variance, for schedulers that have no
/// use for it.
pub(crate) fn has_learned_variance(config: &SchedulerConfig) -> Result<bool> {
    match config.word("variance_type") {
        "learned" | "learned_range" => Ok(true),
        // Empty is null; the others come with configs converted from DDPM.
        "" | "fixed_small" | "fixed_small_log" | "fixed_large" | "fixed_large_log" => Ok(false),
        _ => Err(config.unsupported("variance_type", "null, learned, learned_range")),
    }
}

/// The noise and the variance channels of a model output `[batch, 2·channels, ...]`.
///
/// # Errors
/// If the model output has not twice as many channels as the sample.
pub(crate) fn split_variance(model_output: &Tensor, sample: &Tensor) -> Result<(Tensor, Tensor)> {
    let (got, channels) = (model_output.dim(1)?, sample.dim(1)?);
    let expected = 2 * channels;
    if got != expected {
        return Err(Error::Channels { got, expected });
    }
    let part = |start| model_output.narrow(1, start, channels);
    Ok((part(0)?, part(channels)?))
}

/// The model output without variance channels, if it has any.
pub(crate) fn without_variance(model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
    if model_output.dim(1)? == sample.dim(1)? {
        Ok(model_output.clone())
    } else {
        Ok(split_variance(model_output, sample)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The largest difference between two tensors.
    fn gap(a: &Tensor, b: &Tensor) -> Result<f32> {
        Ok((a - b)?.abs()?.max_all()?.to_vec0()?)
    }

    #[test]
    fn all_predictions_of_one_truth_agree() -> Result<()> {
        let x0 = Tensor::new(&[[0.5f32, -1.0, 2.0]], &Device::Cpu)?;
        let noise = Tensor::new(&[[1f32, 0.25, -0.75]], &Device::Cpu)?;
        let (alpha, sigma) = (0.6, 0.8);
        let sample = combine(&[(alpha, &x0), (sigma, &noise)])?;
        let exploding = combine(&[(1.0, &x0), (sigma / alpha, &noise)])?;
        let v = combine(&[(alpha, &noise), (-sigma, &x0)])?;
        for (kind, output) in
            [(PredictionType::Epsilon, &noise), (PredictionType::Sample, &x0), (PredictionType::VPrediction, &v)]
        {
            let found = kind.original_sample(output, &sample, (alpha, sigma))?;
            assert!(gap(&found, &x0)? < 1e-6, "{kind:?}");
            let found = kind.epsilon(output, &sample, (alpha, sigma))?;
            assert!(gap(&found, &noise)? < 1e-6, "{kind:?}");
            let found = kind.original_sample_exploding(output, &exploding, sigma / alpha)?;
            assert!(gap(&found, &x0)? < 1e-6, "{kind:?}");
            let found = kind.epsilon_exploding(output, &exploding, sigma / alpha)?;
            assert!(gap(&found, &noise)? < 1e-6, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn channels_are_split_or_named() -> Result<()> {
        let sample = Tensor::zeros((1, 2, 3), candle_core::DType::F32, &Device::Cpu)?;
        let output = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((1, 4, 3))?;
        let (noise, variance) = split_variance(&output, &sample)?;
        assert_eq!(noise.flatten_all()?.to_vec1::<f32>()?, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(variance.flatten_all()?.to_vec1::<f32>()?, [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        assert!(split_variance(&sample, &sample).is_err());
        assert_eq!(without_variance(&sample, &sample)?.dims(), sample.dims());
        assert_eq!(without_variance(&output, &sample)?.dims(), sample.dims());
        Ok(())
    }
}
