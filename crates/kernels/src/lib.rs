//! The arithmetic of PixArt's networks on a CPU: matrix products, attention, convolution, norms, and their gradients.
//!
//! Plain slices in, plain slices out; threads are [`rayon`]'s. A kernel is written once, over vectors of sixteen lanes,
//! and compiled for every [`Isa`]: AVX-512, AVX2 and plain Rust, chosen at run time. Operands that stay the same, weights,
//! are packed once ([`Packed`], [`ConvWeights`]); working memory is the caller's ([`Scratch`]). What a kernel computes
//! depends neither on the number of threads nor on what stood in its memory before.
//!
//! ```
//! use pixart_kernels::{Activation, Arithmetic, Epilogue, Isa, Matrix, Packed, Scratch, gemm};
//!
//! # fn main() -> Result<(), String> {
//! let isa = Isa::chosen()?;
//! let (xs, weight, bias) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0.5; 3]);
//! let packed = Packed::new(isa, Arithmetic::F32, Matrix::new(&weight, 3, 2));
//! let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
//! let mut ys = [0f32; 6];
//! gemm(isa, &Scratch::new(), Matrix::new(&xs, 2, 2), &packed, &epilogue, &mut ys);
//! assert_eq!(ys, [1.5, 2.5, 3.5, 3.5, 4.5, 7.5]);
//! # Ok(()) }
//! ```

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
mod threads;

pub use activation::Activation;
pub use adamw::{AdamW, adamw};
pub use attention::{Heads, ScoreBias, attention, attention_backward};
pub use convolution::{
    ConvWeights, Geometry, Images, Normalise, conv2d, conv2d_backward_input, conv2d_backward_weight,
    upsample_nearest_2x, upsample_nearest_2x_backward,
};
pub use elementwise::{activate, activate_backward};
pub use gated_residual::{gated_residual, gated_residual_backward};
pub use gemm::{
    Arithmetic, ByteMatrix, Epilogue, Gate, Packed, Residual, SharedBytes, column_maxima, column_sums, gemm,
    outer_product,
};
pub use isa::Isa;
pub use matrix::Matrix;
pub use memory::{Scratch, arbitrary};
pub use norm::{
    Affine, GroupNorm, GroupStatistics, group_norm, group_norm_backward, group_norm_coefficients,
    group_norm_coefficients_of, group_norm_statistics, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward,
    softmax, softmax_backward,
};
pub use peak::arithmetic_peak;
pub use simd::{Element, LANES};
