use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::product_dtype;

/// Where zeros are put around an image before a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// This many on every side.
    Same(usize),
    /// One column on the right and one row at the bottom, as the VAE's downsampling has it.
    RightBottom,
}

/// 2-D convolution: `xs` `[batch, in, height, width]`, `weight` `[out, in, k, k]`, `bias` `[out]`.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Tensor> {
    let dtype = product_dtype(xs.device(), xs.dtype());
    let input = xs.to_dtype(dtype)?;
    let (input, padding) = match padding {
        Padding::Same(padding) => (input, padding),
        Padding::RightBottom => (input.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?, 0),
    };
    let ys = input.conv2d(&weight.to_dtype(dtype)?, padding, stride, 1, 1)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(dtype)?.reshape((1, (), 1, 1))?)?,
        None => ys,
    };
    ys.to_dtype(xs.dtype())
}

/// A learned [`conv2d`].
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// Reads `weight` `[channels_out, channels_in, kernel, kernel]` and `bias` `[channels_out]`.
    pub fn new(
        channels_in: usize,
        channels_out: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
        vb: VarBuilder,
    ) -> Result<Self> {
        let weight = vb.get((channels_out, channels_in, kernel, kernel), "weight")?;
        Ok(Self { weight, bias: vb.get(channels_out, "bias")?, stride, padding })
    }

    /// A 3×3 convolution that keeps the size.
    pub fn three(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(channels_in, channels_out, 3, 1, Padding::Same(1), vb)
    }

    /// A 1×1 convolution.
    pub fn one(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(channels_in, channels_out, 1, 1, Padding::Same(0), vb)
    }

    /// Shapes as in [`conv2d`].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        conv2d(xs, &self.weight, Some(&self.bias), self.stride, self.padding)
    }
}
