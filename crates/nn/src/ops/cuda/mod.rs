//! Fast forms for NVIDIA GPUs, in f32 and in bf16: kernels of our own, and products by cuBLAS.
//!
//! All work of a device goes to one stream, see [`crate::cuda`], in whose order memory is given and taken back: whatever a tensor holds is
//! there when a later kernel reads it.

mod attention;
mod convolution;
mod kernel;
mod linear;
mod norm;
mod training;

pub(super) use attention::{attention, cross_attention, self_attention};
pub(super) use convolution::{conv2d, upsample_nearest_2x};
pub(super) use linear::linear;
pub(super) use norm::{Affine, group_norm, norm};
pub(super) use training::{adamw, approach, follow, momentum, squares};

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Tensor,
};
use pixart_kernels::Activation;

use kernel::{Argument, Buffer, launch_elements};

/// The most elements that kernels count in 32 bits.
const ELEMENTS: usize = 1 << 30;

/// Whether kernels count so many elements.
pub(super) fn fits(elements: usize) -> bool {
    elements <= ELEMENTS
}

/// Whether all of these are on an NVIDIA GPU and of one dtype that the kernels compute in.
pub(super) fn is_fast(tensors: &[&Tensor]) -> bool {
    let dtype = tensors[0].dtype();
    let fits = |xs: &&Tensor| xs.dtype() == dtype && xs.device().is_cuda() && (1..=ELEMENTS).contains(&xs.elem_count());
    matches!(dtype, DType::F32 | DType::BF16) && tensors.iter().all(fits)
}

/// What was computed from `inputs`, one to three of them, with its gradient: `backward` is given that of the result and gives theirs, in
/// their order. What it remembers is detached.
fn with_gradient(
    inputs: &[&Tensor],
    result: Buffer,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(result.into_tensor(shape));
    }
    let op = Computed { result: Mutex::new(Some((result.into_storage(), shape.into()))), backward };
    match inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => candle_core::bail!("an operation of {} inputs", inputs.len()),
    }
}

struct Computed<F> {
    /// Until the operation has taken it.
    result: Mutex<Option<(CudaStorage, Shape)>>,
    backward: F,
}

impl<F: Fn(&Tensor) -> Result<Vec<Tensor>>> Computed<F> {
    fn take(&self) -> Result<(CudaStorage, Shape)> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.ok_or_else(|| Error::Msg("an operation was asked for its result twice".into()))
    }

    fn gradients<const N: usize>(&self, d_ys: &Tensor) -> Result<[Option<Tensor>; N]> {
        let gradients = (self.backward)(&d_ys.detach().contiguous()?)?;
        let gradients: Vec<_> = gradients.into_iter().map(Some).collect();
        gradients.try_into().map_err(|_| Error::Msg(format!("gradients of other than {N} inputs")))
    }
}

fn not_on_a_cpu() -> Result<(CpuStorage, Shape)> {
    candle_core::bail!("an operation of a GPU was given tensors of the CPU")
}

impl<F: Fn(&Tensor) -> Result<Vec<Tensor>>> CustomOp1 for Computed<F> {
    fn name(&self) -> &'static str {
        "computed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_a_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let [gradient] = self.gradients(d_ys)?;
        Ok(gradient)
    }
}

impl<F: Fn(&Tensor) -> Result<Vec<Tensor>>> CustomOp2 for Computed<F> {
    fn name(&self) -> &'static str {
        "computed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_a_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients(d_ys)?.into())
    }
}

impl<F: Fn(&Tensor) -> Result<Vec<Tensor>>> CustomOp3 for Computed<F> {
    fn name(&self) -> &'static str {
        "computed"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        not_on_a_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients(d_ys)?.into())
    }
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
    let sizes = [Argument::Integer(width as i32), Argument::Integer(rows as i32)];
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
