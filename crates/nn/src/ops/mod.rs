//! The operations the networks are written in.
//!
//! Each file is one operation: its meaning as a plain composition of candle operations, which runs on every device and
//! defines what is right. Layouts: tokens are `[batch, n, width]`, images `[batch, channels, height, width]`.
//!
//! Precision: norms and softmax are computed in f32 whatever the tensors' dtype is; candle multiplies no matrices in
//! bf16 on a CPU, so there products are computed in f32 and rounded back (see [`product_dtype`]).

mod activation;
mod attention;
mod conv2d;
mod gated_residual;
mod group_norm;
mod layer_norm;
mod linear;
mod rms_norm;
mod upsample;

pub use activation::{gelu_tanh, silu};
pub use attention::attention;
pub use conv2d::{Conv2d, Padding, conv2d};
pub use gated_residual::gated_residual;
pub use group_norm::{GroupNorm, group_norm, group_norm_silu};
pub use layer_norm::{LayerNorm, layer_norm, layer_norm_modulate};
pub use linear::{Linear, linear};
pub use rms_norm::{RmsNorm, rms_norm};
pub use upsample::upsample_nearest_2x;

use candle_core::{DType, Device};

/// The dtype in which `device` multiplies matrices of `dtype`: candle's CPU backend has no bf16 product and a slow f16
/// one, so both become f32 there.
pub fn product_dtype(device: &Device, dtype: DType) -> DType {
    match (device, dtype) {
        (Device::Cpu, DType::BF16 | DType::F16) => DType::F32,
        _ => dtype,
    }
}
