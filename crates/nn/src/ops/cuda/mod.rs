//! Fast forms for NVIDIA GPUs, in f32 and in bf16: kernels of our own, and products by cuBLAS.
//!
//! All work of a device goes to one stream, see [`crate::cuda`], in whose order memory is given and taken back: whatever a tensor holds is
//! there when a later kernel reads it.

mod attention;
mod convolution;
mod kernel;
mod linear;
mod norm;
mod optimizer;

pub(super) use attention::{attention, cross_attention, self_attention};
pub(super) use convolution::{conv2d, upsample_nearest_2x};
pub(super) use linear::linear;
pub(super) use norm::{Affine, group_norm, norm};
pub(super) use optimizer::{adamw, approach, follow, momentum, squares};

use candle_core::{DType, Result, Shape, Storage, Tensor};
use pixart_kernels::Activation;

use kernel::{Argument, Buffer, launch_elements};

/// Whether kernels, which count in 32 bits, count so many elements.
pub(super) fn fits(elements: usize) -> bool {
    elements <= 1 << 30
}

/// Whether all of these are on an NVIDIA GPU and of one dtype that the kernels compute in.
pub(super) fn is_fast(tensors: &[&Tensor]) -> bool {
    let dtype = tensors[0].dtype();
    let can =
        |xs: &&Tensor| xs.dtype() == dtype && xs.device().is_cuda() && xs.elem_count() > 0 && fits(xs.elem_count());
    matches!(dtype, DType::F32 | DType::BF16) && tensors.iter().all(can)
}

/// What a kernel has computed from `inputs`, with its gradient, see [`crate::computed::with_gradient`].
fn with_gradient(
    inputs: &[&Tensor],
    result: Buffer,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    crate::computed::with_gradient(inputs, Storage::Cuda(result.into_storage()), shape.into(), move |d_ys| {
        Ok(backward(d_ys)?.into_iter().map(Some).collect())
    })
}

/// As the kernels know them.
fn number_of(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::GeluTanh => 1,
        Activation::Silu => 2,
    }
}

/// An activation with its gradient.
pub(super) fn activation(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    let kind = Argument::Integer(number_of(activation));
    let detached = xs.detach().contiguous()?;
    let ys = Buffer::like(&detached)?;
    launch_elements("activation_forward", &detached, &[Argument::of(&detached)?, ys.argument()?], &[kind])?;
    with_gradient(&[xs], ys, xs.shape(), move |d_ys| {
        let d_xs = Buffer::like(&detached)?;
        let tensors = [Argument::of(&detached)?, Argument::of(d_ys)?, d_xs.argument()?];
        launch_elements("activation_backward", &detached, &tensors, &[kind])?;
        Ok(vec![d_xs.into_tensor(detached.shape())])
    })
}

/// `xs + gate · ys`, see [`super::gated_residual()`].
pub(super) fn gated_residual(xs: &Tensor, gate: &Tensor, ys: &Tensor) -> Result<Tensor> {
    let (batch, rows, width) = ys.dims3()?;
    if xs.shape() != ys.shape() || gate.dims() != [batch, 1, width] {
        candle_core::bail!("a gate of {:?} for {:?} and {:?}", gate.shape(), xs.shape(), ys.shape());
    }
    let (base, factor, other) = (xs.detach().contiguous()?, gate.detach().contiguous()?, ys.detach().contiguous()?);
    let sizes = [width, rows].map(Argument::integer);
    let out = Buffer::like(&other)?;
    let tensors = [Argument::of(&base)?, Argument::of(&factor)?, Argument::of(&other)?, out.argument()?];
    launch_elements("gated", &other, &tensors, &sizes)?;
    with_gradient(&[xs, gate, ys], out, xs.shape(), move |d_out| {
        let d_ys = Buffer::like(&other)?;
        let tensors = [Argument::NONE, Argument::of(&factor)?, Argument::of(d_out)?, d_ys.argument()?];
        launch_elements("gated", &other, &tensors, &sizes)?;
        let d_gate = linear::column_sums(d_out, Some(&other), batch * rows, width, rows)?;
        let d_gate = d_gate.reshape(factor.shape())?.to_dtype(factor.dtype())?;
        Ok(vec![d_out.clone(), d_gate, d_ys.into_tensor(other.shape())])
    })
}
