use candle_core::{Result, Tensor};

/// `xs + gate · ys`: `xs` and `ys` are `[batch, n, width]`, `gate` is `[batch, 1, width]`.
pub fn gated_residual(xs: &Tensor, gate: &Tensor, ys: &Tensor) -> Result<Tensor> {
    xs + ys.broadcast_mul(gate)?
}
