use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::silu;

/// The largest piece, in elements, that is normalised at once. A decoder's last layers hold a gigabyte at 1024 pixels;
/// in pieces the temporaries of the composition stay small beside it.
const PIECE: usize = 1 << 24;

/// Group normalisation (Wu & He 2018): every group of `channels / groups` channels of an image is brought to mean 0
/// and variance 1 together, in f32, then scaled by `weight` and moved by `bias`, both `[channels]`.
///
/// `xs` is `[batch, channels, height, width]`; so is the result.
pub fn group_norm(xs: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    in_pieces(xs, groups, weight, bias, eps, Ok)
}

/// `silu(group_norm(xs))`, which is how a VAE's residual block uses it.
pub fn group_norm_silu(xs: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    in_pieces(xs, groups, weight, bias, eps, |ys| silu(&ys))
}

fn in_pieces(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: impl Fn(Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("group norm: {channels} channels do not divide into {groups} groups");
    }
    let per_group = channels / groups;
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
        activation(normed.broadcast_mul(&weight)?.broadcast_add(&bias)?)?.to_dtype(xs.dtype())
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
    pub fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(channels, "weight")?, bias: vb.get(channels, "bias")?, groups, eps })
    }

    /// The norm alone; shapes as in [`group_norm`].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        group_norm(xs, self.groups, &self.weight, &self.bias, self.eps)
    }

    /// The norm followed by SiLU; shapes as in [`group_norm_silu`].
    pub fn forward_silu(&self, xs: &Tensor) -> Result<Tensor> {
        group_norm_silu(xs, self.groups, &self.weight, &self.bias, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// In pieces or at once, every group has mean 0 and variance 1 before the weights.
    #[test]
    fn groups_are_standardised_in_pieces_too() -> Result<()> {
        let device = Device::Cpu;
        for size in [8, 1024] {
            let xs = Tensor::randn(3f32, 2.0, (1, 36, size, size), &device)?;
            let ones = Tensor::ones(36, DType::F32, &device)?;
            let ys = group_norm(&xs, 9, &ones, &ones.zeros_like()?, 1e-6)?.reshape((9, ()))?;
            let mean = ys.mean(1)?.abs()?.max(0)?.to_scalar::<f32>()?;
            let variance = (ys.sqr()?.mean(1)? - 1.0)?.abs()?.max(0)?.to_scalar::<f32>()?;
            assert!(mean < 1e-3 && variance < 1e-3, "{size}: mean {mean}, variance off by {variance}");
        }
        Ok(())
    }
}
