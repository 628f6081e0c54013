use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;

/// `xs / rms(xs) · weight` over the last dimension, computed in f32 (Zhang & Sennrich 2019).
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = xs.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let ys = wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    ys.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(xs.dtype())
}

/// A learned [`rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight` `[width]`.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, eps })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        rms_norm(xs, &self.weight, self.eps)
    }
}
