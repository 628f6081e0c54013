use crate::NamedWeights;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use pixart_kernels::Affine;

use super::cpu::{self, View, for_dtype};
use super::return_on_cuda;

/// `layer_norm(xs) · (1 + scale) + shift`, in `dtype`: the adaptive norm of a DiT block (Peebles & Xie 2023, section 3.2).
/// The layer norm is over the last dimension, without weights, in f32 (Ba et al. 2016).
///
/// `xs` is `[batch, n, width]`, `shift` and `scale` are `[batch, 1, width]`.
pub fn layer_norm_modulate(xs: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64, dtype: DType) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs]) && matches!(dtype, DType::F32 | DType::BF16), {
        let affine = cuda::Affine { scale, shift: Some(shift), one_more: true };
        cuda::norm(xs, &affine, eps, true, dtype)
    });
    let fast = cpu::is_fast_dtype(xs.device(), dtype) && [xs, shift, scale].iter().all(|xs| cpu::is_fast(&[xs]));
    match fast {
        true => xs.contiguous()?.apply_op3(shift, scale, Modulate { eps, one_more: true, dtype }),
        false => layer_norm_modulate_composed(xs, shift, scale, eps, dtype),
    }
}

/// What [`layer_norm_modulate`] means.
pub(super) fn layer_norm_modulate_composed(
    xs: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
    eps: f64,
    dtype: DType,
) -> Result<Tensor> {
    let scale = (scale.to_dtype(DType::F32)? + 1.0)?;
    let shift = shift.to_dtype(DType::F32)?;
    normalised(xs, eps)?.broadcast_mul(&scale)?.broadcast_add(&shift)?.to_dtype(dtype)
}

fn normalised(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let xs = xs.to_dtype(DType::F32)?;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

/// A layer norm with a learned weight and bias, as the query-key norm of some PixArt-Σ checkpoints has.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias`, both `[width]`.
    pub fn new(width: usize, eps: f64, vb: NamedWeights) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")?, eps })
    }

    /// `[..., width]` to the same shape.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        layer_norm(xs, &self.weight, &self.bias, self.eps)
    }
}

/// Layer norm over the last dimension, in f32, then `· weight + bias`, both `[width]` (Ba et al. 2016).
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs, weight, bias]), {
        let affine = cuda::Affine { scale: weight, shift: Some(bias), one_more: false };
        cuda::norm(xs, &affine, eps, true, xs.dtype())
    });
    match cpu::is_fast(&[xs, weight, bias]) {
        true => xs.contiguous()?.apply_op3(bias, weight, Modulate { eps, one_more: false, dtype: xs.dtype() }),
        false => layer_norm_composed(xs, weight, bias, eps),
    }
}

/// What [`layer_norm`] means.
pub(super) fn layer_norm_composed(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let ys = normalised(xs, eps)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    ys.broadcast_add(&bias.to_dtype(DType::F32)?)?.to_dtype(xs.dtype())
}

/// Layer norm, times `scale` (plus one, if `one_more`), plus `shift`; both have as many rows as groups of rows of `xs`.
struct Modulate {
    eps: f64,
    one_more: bool,
    dtype: DType,
}

impl Modulate {
    fn scale(&self, mut scale: Vec<f32>) -> Vec<f32> {
        if self.one_more {
            scale.iter_mut().for_each(|scale| *scale += 1.0);
        }
        scale
    }
}

/// The width of rows, and how many share each of the groups of `width` values.
fn rows_and_width(xs: &Shape, values: usize) -> Result<(usize, usize)> {
    match xs.dims().last() {
        Some(&width) if width > 0 && values >= width => Ok(((xs.elem_count() / width) / (values / width), width)),
        _ => candle_core::bail!("{values} values do not modulate rows of {xs:?}"),
    }
}

impl CustomOp3 for Modulate {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (isa, xs) = (cpu::isa()?, View::new(xs, layout));
        let shift = View::new(shift, shift_layout).to_f32()?;
        let scale = self.scale(View::new(scale, scale_layout).to_f32()?);
        let (rows, width) = rows_and_width(layout.shape(), scale.len())?;
        let affine = Affine { scale: &scale, shift: &shift, rows };
        for_dtype!(xs.dtype(), A => for_dtype!(self.dtype, T => cpu::filled_storage::<T>(layout.shape(), |ys| {
            pixart_kernels::layer_norm(isa, xs.slice::<A>()?, width, self.eps as f32, Some(&affine), ys);
            Ok(())
        })))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let isa = cpu::isa()?;
        let shifts = cpu::f32_values(shift)?;
        let scales = self.scale(cpu::f32_values(scale)?);
        let (rows, width) = rows_and_width(xs.shape(), scales.len())?;
        let (mut d_scale, mut d_shift) = (vec![0f32; scales.len()], vec![0f32; shifts.len()]);
        let affine = Affine { scale: &scales, shift: &shifts, rows };
        let d_ys = d_ys.to_dtype(xs.dtype())?.contiguous()?;
        let d_xs = cpu::with_views([xs, &d_ys], |[xs, d_ys]| {
            for_dtype!(xs.dtype(), T => cpu::filled::<T>(xs.layout.shape(), |d_xs| {
                let d_affine = Some((&mut d_scale[..], &mut d_shift[..]));
                pixart_kernels::layer_norm_backward::<T>(
                    isa, xs.slice()?, width, self.eps as f32, Some(&affine), d_ys.slice()?, d_xs, d_affine,
                );
                Ok(())
            }))
        })?;
        Ok((Some(d_xs), Some(cpu::gradient_of(shift, d_shift)?), Some(cpu::gradient_of(scale, d_scale)?)))
    }
}
