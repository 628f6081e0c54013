use crate::NamedWeights;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use pixart_kernels::{Activation, GroupStatistics, group_norm_coefficients_of, group_norm_statistics};

use super::activation::activation_composed;
use super::cpu::{self, View, for_dtype};
use super::{channels_first, channels_last, return_on_cuda};

/// The largest piece, in elements, that is normalised at once. A decoder's last layers hold a gigabyte at 1024 pixels;
/// in pieces the temporaries of the composition stay small beside it.
const PIECE: usize = 1 << 24;

/// Group normalisation (Wu & He 2018), then `activation`: every group of `channels / groups` channels of an image is
/// brought to mean 0 and variance 1 together, in f32, then scaled by `weight` and moved by `bias`, both `[channels]`.
///
/// `xs` is `[batch, channels, height, width]`; so is the result.
pub fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs, weight, bias]), cuda::group_norm(xs, groups, weight, bias, eps, activation));
    if !cpu::is_fast(&[xs, weight, bias]) {
        return group_norm_composed(xs, groups, weight, bias, eps, activation);
    }
    let norm = Norm { groups, eps: eps as f32, activation };
    channels_first(&channels_last(xs)?.apply_op3(weight, bias, norm)?)
}

/// What [`group_norm`] means.
pub(super) fn group_norm_composed(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let per_group = channels_of_group(channels, groups)?;
    let groups_at_once = (PIECE / (batch * per_group * height * width).max(1)).clamp(1, groups);
    let piece = |first: usize, count: usize| -> Result<Tensor> {
        let (start, len) = (first * per_group, count * per_group);
        let part =
            xs.narrow(1, start, len)?.to_dtype(DType::F32)?.reshape((batch, count, per_group * height, width))?;
        // Rows first, then their means: a sum of millions of numbers in one go would lose digits.
        let mean = |xs: &Tensor| xs.mean_keepdim(3)?.mean_keepdim(2);
        let centred = part.broadcast_sub(&mean(&part)?)?;
        let variance = mean(&centred.sqr()?)?;
        let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape((batch, len, height, width))?;
        let weight = weight.narrow(0, start, len)?.to_dtype(DType::F32)?.reshape((1, len, 1, 1))?;
        let bias = bias.narrow(0, start, len)?.to_dtype(DType::F32)?.reshape((1, len, 1, 1))?;
        let affine = normed.broadcast_mul(&weight)?.broadcast_add(&bias)?;
        activation_composed(&affine, activation)?.to_dtype(xs.dtype())
    };
    if groups_at_once == groups {
        return piece(0, groups);
    }
    let pieces = (0..groups)
        .step_by(groups_at_once)
        .map(|first| piece(first, groups_at_once.min(groups - first)))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&pieces, 1)
}

/// How many channels each group has. Errors: there is no such number.
pub(super) fn channels_of_group(channels: usize, groups: usize) -> Result<usize> {
    match groups > 0 && channels.is_multiple_of(groups) {
        true => Ok(channels / groups),
        false => candle_core::bail!("group norm: {channels} channels do not divide into {groups} groups"),
    }
}

/// A learned group norm.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Reads `weight` and `bias`, both `[channels]`.
    pub fn new(groups: usize, channels: usize, eps: f64, vb: NamedWeights) -> Result<Self> {
        Ok(Self { weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")?, groups, eps })
    }

    /// The norm alone; shapes as in [`group_norm`].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        group_norm(xs, self.groups, &self.weight, &self.bias, self.eps, Activation::None)
    }

    /// The norm followed by SiLU, which is how a VAE's residual block uses it; shapes as in [`group_norm`].
    pub fn forward_silu(&self, xs: &Tensor) -> Result<Tensor> {
        group_norm(xs, self.groups, &self.weight, &self.bias, self.eps, Activation::Silu)
    }

    /// Whether it is learned with [`group_norm`]'s gradient.
    pub(super) fn is_tracked(&self) -> bool {
        self.weight.track_op() || self.bias.track_op()
    }

    /// What it needs to know of images, or of some of their rows, `[batch, channels, height, width]`.
    pub fn statistics(&self, xs: &Tensor) -> Result<GroupStatistics> {
        if cpu::is_fast(&[xs]) {
            let xs = channels_last(xs)?;
            return self.with_kernel(xs.shape(), |norm| {
                let isa = cpu::isa()?;
                cpu::with_views(
                    [&xs],
                    |[xs]| for_dtype!(xs.dtype(), T => Ok(group_norm_statistics::<T>(isa, xs.slice()?, norm))),
                )
            });
        }
        let (batch, channels, height, width) = xs.dims4()?;
        let (rows, columns) = (channels / self.groups * height, width);
        let xs = xs.reshape((batch * self.groups, rows, columns))?.to_dtype(DType::F32)?;
        let mean = |xs: &Tensor| xs.mean_keepdim(2)?.mean_keepdim(1);
        let means = mean(&xs)?;
        let variances = mean(&xs.broadcast_sub(&means)?.sqr()?)?;
        let values = |xs: &Tensor| xs.flatten_all()?.to_vec1::<f32>();
        let moments = values(&means)?.into_iter().zip(values(&variances)?);
        let moments = moments.map(|(mean, variance)| (f64::from(mean), f64::from(variance)));
        Ok(GroupStatistics::new(rows * columns, moments))
    }

    /// The norm of images `[batch, channels, _, _]` that have these statistics, as factors and summands: `[batch, 2, channels]`.
    pub fn coefficients(&self, batch: usize, statistics: &GroupStatistics) -> Result<Vec<f32>> {
        let channels = self.weight.dim(0)?;
        self.with_kernel(&(batch, 1, 1, channels).into(), |norm| Ok(group_norm_coefficients_of(statistics, norm)))
    }

    /// Calls `run` with the kernel of this norm for images `[batch, height, width, channels]`.
    fn with_kernel<R>(&self, xs: &Shape, run: impl FnOnce(&pixart_kernels::GroupNorm) -> Result<R>) -> Result<R> {
        let norm = Norm { groups: self.groups, eps: self.eps as f32, activation: Activation::None };
        let values = |xs: &Tensor| xs.to_dtype(DType::F32)?.to_vec1::<f32>();
        let (weight, bias) = (values(&self.weight)?, values(&self.bias)?);
        run(&norm.kernel(xs, &weight, &bias)?)
    }
}

/// The norm of images `[batch, height, width, channels]`.
struct Norm {
    groups: usize,
    eps: f32,
    activation: Activation,
}

impl Norm {
    fn kernel<'a>(&self, xs: &Shape, weight: &'a [f32], bias: &'a [f32]) -> Result<pixart_kernels::GroupNorm<'a>> {
        let (batch, height, width, channels) = xs.dims4()?;
        let Self { groups, eps, activation } = *self;
        channels_of_group(channels, groups)?;
        if weight.len() != channels || bias.len() != channels || batch * height * width == 0 {
            candle_core::bail!("group norm: {} weights for images of {xs:?}, channels last", weight.len());
        }
        Ok(pixart_kernels::GroupNorm { batch, channels, groups, eps, weight, bias, activation })
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "group norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (isa, xs) = (cpu::isa()?, View::new(xs, layout));
        let (weight, bias) = (View::new(weight, weight_layout).to_f32()?, View::new(bias, bias_layout).to_f32()?);
        let norm = self.kernel(layout.shape(), &weight, &bias)?;
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(layout.shape(), |ys| {
            pixart_kernels::group_norm(isa, xs.slice()?, &norm, ys);
            Ok(())
        }))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let isa = cpu::isa()?;
        let (weights, biases) = (cpu::f32_values(weight)?, cpu::f32_values(bias)?);
        let norm = self.kernel(xs.shape(), &weights, &biases)?;
        let (mut d_weight, mut d_bias) = (vec![0f32; weights.len()], vec![0f32; biases.len()]);
        let d_xs = cpu::with_views([xs, &d_ys.contiguous()?], |[xs, d_ys]| {
            for_dtype!(xs.dtype(), T => cpu::filled::<T>(xs.layout.shape(), |d_xs| {
                pixart_kernels::group_norm_backward::<T>(
                    isa, xs.slice()?, &norm, d_ys.slice()?, d_xs, &mut d_weight, &mut d_bias,
                );
                Ok(())
            }))
        })?;
        Ok((Some(d_xs), Some(cpu::gradient_of(weight, d_weight)?), Some(cpu::gradient_of(bias, d_bias)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// In pieces or at once, every group has mean 0 and variance 1 before the weights.
    #[test]
    fn groups_are_standardised_in_pieces_too() -> Result<()> {
        for size in [8, 1024] {
            let xs = ((random((1, 36, size, size))? * 2.0)? + 3.0)?;
            let ones = Tensor::ones(36, DType::F32, xs.device())?;
            let ys =
                group_norm_composed(&xs, 9, &ones, &ones.zeros_like()?, 1e-6, Activation::None)?.reshape((9, ()))?;
            let mean = ys.mean(1)?.abs()?.max(0)?.to_scalar::<f32>()?;
            let variance = (ys.sqr()?.mean(1)? - 1.0)?.abs()?.max(0)?.to_scalar::<f32>()?;
            assert!(mean < 1e-3 && variance < 1e-3, "{size}: mean {mean}, variance off by {variance}");
        }
        Ok(())
    }
}
