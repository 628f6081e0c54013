//! Low-rank adaptation (Hu et al. 2021, "LoRA"): a weight and a small correction of it.

use candle_core::{DType, Result, Tensor};

/// `weight + scale · b · a`, in the dtype of `weight`: of a linear layer `[out, in]` with `a` `[rank, in]` and `b` `[out, rank]`,
/// or of a convolution `[out, in, height, width]` with `a` `[rank, in, height, width]` and `b` `[out, rank, 1, 1]`.
///
/// # Errors
/// Shapes that do not go together.
pub fn adapted(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (rank, out) = (a.dim(0)?, b.dim(0)?);
    let wide = |xs: &Tensor, rows: usize| xs.to_dtype(DType::F32)?.reshape((rows, ()));
    let correction = (wide(b, out)?.matmul(&wide(a, rank)?)? * scale)?;
    (weight.to_dtype(DType::F32)? + correction.reshape(weight.shape())?)?.to_dtype(weight.dtype())
}
