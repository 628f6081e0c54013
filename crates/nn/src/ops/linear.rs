use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::product_dtype;

/// `xs · weightᵀ + bias`.
///
/// `xs` is `[..., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[..., out]` in the dtype of `xs`.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = product_dtype(xs.device(), xs.dtype());
    let mut shape = xs.dims().to_vec();
    let width_in = shape.pop().unwrap_or(0);
    let rows = xs.elem_count() / width_in.max(1);
    shape.push(weight.dim(0)?);
    // One tall matrix, whatever the batch, so that the product is a single large one.
    let ys = xs.reshape((rows, width_in))?.to_dtype(dtype)?.matmul(&weight.to_dtype(dtype)?.t()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(dtype)?)?,
        None => ys,
    };
    ys.to_dtype(xs.dtype())?.reshape(shape)
}

/// A learned [`linear`] map.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `weight` `[width_out, width_in]` and `bias` `[width_out]`.
    pub fn new(width_in: usize, width_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::with_bias(width_in, width_out, true, vb)
    }

    /// As [`Linear::new`], with the bias only if `bias` says so.
    pub fn with_bias(width_in: usize, width_out: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((width_out, width_in), "weight")?;
        let bias = if bias { Some(vb.get(width_out, "bias")?) } else { None };
        Ok(Self { weight, bias })
    }

    /// `[..., width_in]` to `[..., width_out]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        linear(xs, &self.weight, self.bias.as_ref())
    }
}
