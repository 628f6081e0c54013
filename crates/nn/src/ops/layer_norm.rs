use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;

/// Layer normalisation over the last dimension, without weights, computed in f32 (Ba et al. 2016).
pub fn layer_norm(xs: &Tensor, eps: f64) -> Result<Tensor> {
    normalised(xs, eps)?.to_dtype(xs.dtype())
}

/// `layer_norm(xs) · (1 + scale) + shift`: the adaptive norm of a DiT block (Peebles & Xie 2023, section 3.2).
///
/// `xs` is `[batch, n, width]`, `shift` and `scale` are `[batch, 1, width]`.
pub fn layer_norm_modulate(xs: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (scale.to_dtype(DType::F32)? + 1.0)?;
    let shift = shift.to_dtype(DType::F32)?;
    normalised(xs, eps)?.broadcast_mul(&scale)?.broadcast_add(&shift)?.to_dtype(xs.dtype())
}

fn normalised(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let xs = xs.to_dtype(DType::F32)?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

/// A [`layer_norm`] with a learned weight and bias, as the query-key norm of some PixArt-Σ checkpoints has.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both `[width]`.
    pub fn new(width: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = normalised(xs, self.eps)?.broadcast_mul(&self.weight.to_dtype(DType::F32)?)?;
        ys.broadcast_add(&self.bias.to_dtype(DType::F32)?)?.to_dtype(xs.dtype())
    }
}
