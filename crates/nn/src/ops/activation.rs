use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pixart_kernels::{Activation, activate, activate_backward};

use super::cpu::{self, View, for_dtype};
use super::return_on_cuda;

/// SiLU: `x·sigmoid(x)`, any shape.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    activation(xs, Activation::Silu)
}

/// Any [`Activation`], any shape.
pub fn activation(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    if activation == Activation::None {
        return Ok(xs.clone());
    }
    return_on_cuda!(cuda::is_fast(&[xs]), cuda::activation(xs, activation));
    match cpu::is_fast(&[xs]) {
        true => xs.contiguous()?.apply_op1(Activate(activation)),
        false => activation_composed(xs, activation),
    }
}

/// What [`activation`] means.
pub(super) fn activation_composed(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::None => Ok(xs.clone()),
        Activation::GeluTanh => xs.gelu(),
        Activation::Silu => xs.silu(),
    }
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (isa, xs) = (cpu::isa()?, View::new(storage, layout));
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(layout.shape(), |ys| {
            activate(isa, self.0, xs.slice()?, ys);
            Ok(())
        }))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let isa = cpu::isa()?;
        cpu::with_views([xs, &d_ys.contiguous()?], |[xs, d_ys]| {
            for_dtype!(xs.dtype(), T => cpu::filled::<T>(xs.layout.shape(), |d_xs| {
                activate_backward(isa, self.0, xs.slice()?, d_ys.slice()?, d_xs);
                Ok(())
            }))
        })
        .map(Some)
    }
}
