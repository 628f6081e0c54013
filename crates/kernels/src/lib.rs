//! kernels
mod activation;
mod adamw;
mod attention;
mod convolution;
mod elementwise;
mod gated_residual;
mod gemm;
mod isa;
mod math;
mod matrix;
mod memory;
mod norm;
mod peak;
mod simd;
mod sweep;
#[cfg(test)]
mod testing;
pub use isa::Isa;
pub use peak::arithmetic_peak;
pub use simd::{Element, LANES};

pub use activation::Activation;
pub use adamw::{AdamW, adamw};
pub use attention::{Heads, ScoreBias, attention, attention_backward};
pub use convolution::{
    ConvWeights, Geometry, Images, Normalise, conv2d, conv2d_backward_input, conv2d_backward_weight,
    upsample_nearest_2x, upsample_nearest_2x_backward,
};
pub use elementwise::{activate, activate_backward, add, convert, multiply};
pub use gated_residual::{gated_residual, gated_residual_backward};
pub use gemm::{Arithmetic, Epilogue, Gate, Packed, Residual, column_sums, gemm, outer_product};
pub use matrix::Matrix;
pub use memory::Scratch;
pub use norm::{
    Affine, GroupNorm, group_norm, group_norm_backward, group_norm_coefficients, layer_norm, layer_norm_backward,
    rms_norm, rms_norm_backward, softmax, softmax_backward,
};
