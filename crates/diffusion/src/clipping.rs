//! Limits on a predicted picture.

use candle_core::Tensor;

use crate::config::SchedulerConfig;
use crate::error::Result;

/// What is done to a predicted `x_0` before it is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Clipping {
    None,
    /// Values are cut at ±`range`.
    Clip {
        range: f64,
    },
    /// Dynamic thresholding (Saharia et al., "Imagen", 2022, section 2.3): each picture is cut at
    /// ±s and divided by s, where s is the `ratio`-quantile of its absolute values, but at least 1
    /// and at most `max`.
    Threshold {
        ratio: f64,
        max: f64,
    },
}

impl Clipping {
    pub(crate) fn from_config(config: &SchedulerConfig) -> Result<Self> {
        if config.flag("thresholding") {
            let ratio = config.positive("dynamic_thresholding_ratio")?;
            if ratio > 1.0 {
                return Err(config.unsupported("dynamic_thresholding_ratio", "0 to 1"));
            }
            let max = config.positive("sample_max_value")?;
            Ok(Self::Threshold { ratio, max })
        } else if config.flag("clip_sample") {
            let range = config.positive("clip_sample_range")?;
            Ok(Self::Clip { range })
        } else {
            Ok(Self::None)
        }
    }

    /// Applies the limits to `[batch, ...]` predicted pictures.
    pub(crate) fn apply(self, original_sample: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(original_sample),
            Self::Clip { range } => Ok(original_sample.clamp(-range, range)?),
            Self::Threshold { ratio, max } => {
                let limit = |index| -> Result<Tensor> {
                    let picture = original_sample.narrow(0, index, 1)?;
                    let absolute = picture.abs()?.flatten_all()?.to_vec1::<f32>()?;
                    let s = f64::from(quantile(absolute, ratio)).max(1.0).min(max);
                    Ok(picture.clamp(-s, s)?.affine(1.0 / s, 0.0)?)
                };
                let pictures: Vec<Tensor> = (0..original_sample.dim(0)?).map(limit).collect::<Result<_>>()?;
                Ok(Tensor::cat(&pictures, 0)?)
            }
        }
    }
}

/// The `ratio`-quantile, linear between values, in single precision as `torch.quantile`; there is
/// at least one value.
fn quantile(mut values: Vec<f32>, ratio: f64) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len() - 1;
    let rank = ratio as f32 * last as f32;
    let low = (rank.floor() as usize).min(last);
    let high = (low + 1).min(last);
    values[low] + (rank - low as f32) * (values[high] - values[low])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SchedulerKind;
    use candle_core::Device;

    #[test]
    fn quantiles_lie_between_values() {
        let values = vec![3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!(quantile(values.clone(), 0.5), 3.0);
        assert_eq!(quantile(values.clone(), 0.625), 3.5);
        assert_eq!(quantile(values, 1.0), 5.0);
        assert_eq!(quantile(vec![7.0], 0.995), 7.0);
    }

    #[test]
    fn each_picture_has_its_own_threshold() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::Ddim)
            .with("thresholding", true)?
            .with("dynamic_thresholding_ratio", 1.0)?
            .with("sample_max_value", 3.0)?;
        let clipping = Clipping::from_config(&config)?;
        let pictures = Tensor::new(&[[0.5f32, -0.25], [2.0, -1.0], [6.0, -1.5]], &Device::Cpu)?;
        let limited = clipping.apply(pictures)?.to_vec2::<f32>()?;
        assert_eq!(limited, [[0.5, -0.25], [1.0, -0.5], [1.0, -0.5]]);
        Ok(())
    }

    #[test]
    fn clipping_cuts_at_the_range() -> Result<()> {
        let config = SchedulerConfig::new(SchedulerKind::Ddim).with("clip_sample_range", 0.5)?;
        let pictures = Tensor::new(&[-2f32, -0.25, 0.75], &Device::Cpu)?;
        let limited = Clipping::from_config(&config)?.apply(pictures)?;
        assert_eq!(limited.to_vec1::<f32>()?, [-0.5, -0.25, 0.5]);
        Ok(())
    }
}
