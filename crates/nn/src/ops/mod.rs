//! The operations the networks are written in.
//!
//! Each file is one operation: its meaning as a plain composition of candle operations, which runs on every device and
//! defines what is right, and a fast form for the CPU from [`pixart_kernels`], with its gradient. `tests` holds every
//! fast form to the composition.
//!
//! Layouts: tokens are `[batch, n, width]`, images `[batch, channels, height, width]`; on the CPU the channels of a pixel
//! stand together in memory all the way through a network, whatever the order of the dimensions says.
//!
//! Precision: norms and softmax are computed in f32 whatever the tensors' dtype is, and products are summed in f32.

mod activation;
mod attention;
mod conv2d;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod embedding;
mod gated_residual;
mod group_norm;
mod layer_norm;
mod linear;
mod optimizer;
mod packed_linear;
mod rms_norm;
#[cfg(test)]
mod tests;
mod upsample;

pub use activation::{activation, silu};
pub use attention::{Scores, attention, cross_attention, self_attention};
pub use conv2d::{Conv2d, Padding, conv2d};
pub use embedding::Embedding;
pub use gated_residual::gated_residual;
pub use group_norm::{GroupNorm, group_norm};
pub use layer_norm::{LayerNorm, layer_norm, layer_norm_modulate};
pub use linear::{Linear, linear, rounded_gram, rounded_product};
pub use optimizer::{adamw, approach, follow, momentum, squares};
pub use packed_linear::quantise;
pub use pixart_kernels::{Activation, AdamW, ByteMatrix};
pub use rms_norm::{RmsNorm, rms_norm};
pub use upsample::upsample_nearest_2x;

use candle_core::{DType, Device, Result, Tensor};

/// Returns what `form`, of `cuda`, gives if this program was built for NVIDIA GPUs and `condition` holds.
macro_rules! return_on_cuda {
    ($condition:expr, $form:expr) => {
        #[cfg(feature = "cuda")]
        {
            use super::cuda;
            if $condition {
                return $form;
            }
        }
    };
}
use return_on_cuda;

/// Whether products of f32 may round what is multiplied to TF32's 10 bits, on NVIDIA GPUs that multiply such several times as fast, in all
/// that this program computes. At first they may not.
pub fn allow_tf32(allow: bool) {
    candle_core::cuda::set_gemm_reduced_precision_f32(allow);
}

/// The dtype in which compositions multiply matrices of `dtype` on `device`: candle's CPU backend has no bf16 product and
/// a slow f16 one, so both become f32 there.
pub fn product_dtype(device: &Device, dtype: DType) -> DType {
    match (device, dtype) {
        (Device::Cpu, DType::BF16 | DType::F16) => DType::F32,
        _ => dtype,
    }
}

/// Images `[batch, channels, height, width]` as `[batch, height, width, channels]`, contiguous; nothing moves where they
/// stand so in memory already.
fn channels_last(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 2, 3, 1))?.contiguous()
}

/// The way back from [`channels_last`]; nothing moves.
fn channels_first(xs: &Tensor) -> Result<Tensor> {
    xs.permute((0, 3, 1, 2))
}

/// Images `[batch, channels, height, width]` as tokens `[batch, height · width, channels]`.
pub fn image_to_tokens(xs: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    channels_last(xs)?.reshape((batch, height * width, channels))
}

/// Tokens `[batch, height · width, channels]` as images `[batch, channels, height, width]`.
pub fn tokens_to_image(xs: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    channels_first(&xs.reshape((batch, height, width, channels))?)
}

/// The dtype that this processor computes fastest in: bf16 where it multiplies bf16 faster than f32, else f32.
pub fn fastest_cpu_dtype() -> DType {
    match pixart_kernels::Isa::chosen() {
        Ok(isa) if isa.has_fast_bf16() => DType::BF16,
        _ => DType::F32,
    }
}
