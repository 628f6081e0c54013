use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use pixart_kernels::Gate;

use super::cpu::{self, View, for_dtype};
use super::return_on_cuda;

/// `xs + gate · ys`: `xs` and `ys` are `[batch, n, width]`, `gate` is `[batch, 1, width]`.
pub fn gated_residual(xs: &Tensor, gate: &Tensor, ys: &Tensor) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs, gate, ys]), cuda::gated_residual(xs, gate, ys));
    match cpu::is_fast(&[xs, gate, ys]) {
        true => xs.contiguous()?.apply_op3(gate, &ys.contiguous()?, GatedResidual),
        false => gated_residual_composed(xs, gate, ys),
    }
}

/// What [`gated_residual`] means.
pub(super) fn gated_residual_composed(xs: &Tensor, gate: &Tensor, ys: &Tensor) -> Result<Tensor> {
    xs + ys.broadcast_mul(gate)?
}

struct GatedResidual;

impl CustomOp3 for GatedResidual {
    fn name(&self) -> &'static str {
        "gated residual"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        ys: &CpuStorage,
        ys_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let isa = cpu::isa()?;
        let (xs, ys) = (View::new(xs, xs_layout), View::new(ys, ys_layout));
        let gate = View::new(gate, gate_layout).to_f32()?;
        let (_, rows, width) = xs_layout.shape().dims3()?;
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(xs_layout.shape(), |out| {
            let gate = Gate { values: &gate, rows };
            pixart_kernels::gated_residual(isa, xs.slice()?, width, &gate, ys.slice()?, out);
            Ok(())
        }))
    }

    fn bwd(
        &self,
        _: &Tensor,
        gate: &Tensor,
        ys: &Tensor,
        _: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let isa = cpu::isa()?;
        let d_out = d_out.contiguous()?;
        let (_, rows, width) = ys.dims3()?;
        let values = cpu::f32_values(gate)?;
        let mut d_gate = vec![0f32; values.len()];
        let d_ys = cpu::with_views([ys, &d_out], |[ys, d_out]| {
            for_dtype!(ys.dtype(), T => cpu::filled::<T>(ys.layout.shape(), |d_ys| {
                let gate = Gate { values: &values, rows };
                pixart_kernels::gated_residual_backward::<T>(
                    isa, width, &gate, ys.slice()?, d_out.slice()?, d_ys, &mut d_gate,
                );
                Ok(())
            }))
        })?;
        Ok((Some(d_out), Some(cpu::gradient_of(gate, d_gate)?), Some(d_ys)))
    }
}
