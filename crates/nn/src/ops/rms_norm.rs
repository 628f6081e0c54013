use crate::NamedWeights;
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};

use super::cpu::{self, View, for_dtype};
use super::return_on_cuda;

/// `xs / rms(xs) · weight` over the last dimension, computed in f32 (Zhang & Sennrich 2019).
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs]), {
        let affine = cuda::Affine { scale: weight, shift: None, one_more: false };
        cuda::norm(xs, &affine, eps, false, xs.dtype())
    });
    let fast = cpu::is_fast(&[xs]) && cpu::is_fast(&[weight]);
    match fast {
        true => xs.contiguous()?.apply_op2(weight, RootMeanSquare { eps: eps as f32 }),
        false => rms_norm_composed(xs, weight, eps),
    }
}

/// What [`rms_norm`] means.
pub(super) fn rms_norm_composed(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = xs.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let ys = wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    ys.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(xs.dtype())
}

/// A learned [`rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Reads `weight` `[width]`.
    pub fn new(width: usize, eps: f64, vb: NamedWeights) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, eps })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        rms_norm(xs, &self.weight, self.eps)
    }
}

struct RootMeanSquare {
    eps: f32,
}

impl CustomOp2 for RootMeanSquare {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (isa, xs) = (cpu::isa()?, View::new(xs, layout));
        let weight = View::new(weight, weight_layout).to_f32()?;
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(layout.shape(), |ys| {
            pixart_kernels::rms_norm(isa, xs.slice()?, weight.len(), self.eps, &weight, ys);
            Ok(())
        }))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (isa, weights) = (cpu::isa()?, cpu::f32_values(weight)?);
        let mut d_weight = vec![0f32; weights.len()];
        let d_xs = cpu::with_views([xs, &d_ys.contiguous()?], |[xs, d_ys]| {
            for_dtype!(xs.dtype(), T => cpu::filled::<T>(xs.layout.shape(), |d_xs| {
                pixart_kernels::rms_norm_backward::<T>(
                    isa, xs.slice()?, weights.len(), self.eps, &weights, d_ys.slice()?, d_xs, &mut d_weight,
                );
                Ok(())
            }))
        })?;
        Ok((Some(d_xs), Some(cpu::gradient_of(weight, d_weight)?)))
    }
}
