use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor};
use pixart_kernels::{Activation, Arithmetic, Epilogue, Matrix, Packed, column_sums, gemm, outer_product};

use super::cpu::{self, CpuElement, SCRATCH, View, for_dtype};
use super::packed_linear::PackedLinear;
use super::{activation, fastest_cpu_dtype, gated_residual, product_dtype, return_on_cuda};
use crate::{ByteWeight, LowRank, NamedWeights};

/// `xs · weightᵀ + bias`.
///
/// `xs` is `[..., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[..., out]` in the dtype of `xs`.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_to(xs, weight, bias, xs.dtype())
}

/// As [`linear`], with `xs` in any dtype and the result in `dtype`; what is multiplied is rounded to the dtype of `weight`.
pub fn linear_to(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
    let fast = |tensor_dtype| cpu::is_fast_dtype(xs.device(), tensor_dtype);
    if ![xs.dtype(), weight.dtype(), dtype].into_iter().all(fast) {
        return linear_of_tensors(&xs.to_dtype(weight.dtype())?, weight, bias)?.to_dtype(dtype);
    }
    match bias {
        Some(bias) => cpu::with_rows(xs)?.apply_op3(&weight.contiguous()?, bias, Product { dtype }),
        None => cpu::with_rows(xs)?.apply_op2(&weight.contiguous()?, Product { dtype }),
    }
}

/// A map of tensors of one dtype that the kernels for the CPU do not take.
fn linear_of_tensors(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    return_on_cuda!(
        cuda::is_fast(&[&[xs, weight], bias.as_slice()].concat())
            && cuda::fits(result_shape(xs.shape(), weight.dim(0)?).elem_count()),
        cuda::linear(xs, weight, bias)
    );
    linear_composed(xs, weight, bias)
}

/// `xs · weightᵀ` of matrices in f32, `[n, in]` and `[out, in]`, with both rounded to bf16 where a CPU multiplies that faster; sums
/// and the result are f32.
pub fn rounded_product(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let dtype = if xs.device().is_cpu() { fastest_cpu_dtype() } else { weight.dtype() };
    linear_to(xs, &weight.to_dtype(dtype)?, None, xs.dtype())
}

/// `xsᵀ · xs`, `[m, m]` of `[n, m]`, as [`rounded_product`] computes.
pub fn rounded_gram(xs: &Tensor) -> Result<Tensor> {
    match cpu::is_fast(&[xs]) {
        true => xs.contiguous()?.apply_op1_no_bwd(&RoundedGram),
        false => xs.t()?.matmul(xs),
    }
}

struct RoundedGram;

impl CustomOp1 for RoundedGram {
    fn name(&self) -> &'static str {
        "rounded gram"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, isa) = (View::new(xs, layout), cpu::isa()?);
        let (_, width) = layout.shape().dims2()?;
        cpu::filled_storage::<f32>((width, width), |out| {
            outer_product(isa, &SCRATCH, Arithmetic::Bf16, xs.rows::<f32>()?, xs.rows::<f32>()?, out);
            Ok(())
        })
    }
}

/// What [`linear`] means.
pub(super) fn linear_composed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = product_dtype(xs.device(), xs.dtype());
    let shape = result_shape(xs.shape(), weight.dim(0)?);
    let rows = xs.elem_count() / weight.dim(1)?.max(1);
    // One tall matrix, whatever the batch, so that the product is a single large one.
    let ys = xs.reshape((rows, ()))?.to_dtype(dtype)?.matmul(&weight.to_dtype(dtype)?.t()?)?;
    let ys = match bias {
        Some(bias) => ys.broadcast_add(&bias.to_dtype(dtype)?)?,
        None => ys,
    };
    ys.to_dtype(xs.dtype())?.reshape(shape)
}

pub(super) fn result_shape(xs: &Shape, width: usize) -> Shape {
    let mut dims = xs.dims().to_vec();
    dims.pop();
    dims.push(width);
    dims.into()
}

/// A learned [`linear`] map.
#[derive(Debug, Clone)]
pub struct Linear {
    weights: Weights,
}

#[derive(Debug, Clone)]
enum Weights {
    /// Weights and biases of maps that are computed as one, their outputs side by side: `[out, in]` and `[out]` each.
    Tensors(Vec<(Tensor, Option<Tensor>)>),
    /// On the CPU, weights that do not change: in the order in which the product reads them, or in 8 bits.
    Packed(PackedLinear),
    /// Elsewhere, weights in 8 bits.
    Bytes(Arc<ByteLinear>),
}

impl Linear {
    /// Reads `weight` `[width_out, width_in]` and `bias` `[width_out]`.
    pub fn new(width_in: usize, width_out: usize, vb: NamedWeights) -> Result<Self> {
        Self::with_bias(width_in, width_out, true, vb)
    }

    /// As [`Linear::new`], with the bias only if `bias` says so.
    pub fn with_bias(width_in: usize, width_out: usize, bias: bool, vb: NamedWeights) -> Result<Self> {
        Self::joined(width_in, width_out, bias, &[vb])
    }

    /// Several maps of the same input as one, whose result has theirs side by side: one product instead of several.
    pub fn joined(width_in: usize, width_out: usize, bias: bool, parts: &[NamedWeights]) -> Result<Self> {
        let biases = |vb: &NamedWeights| if bias { vb.get(width_out, "bias").map(Some) } else { Ok(None) };
        let biases = parts.iter().map(biases).collect::<Result<Vec<_>>>()?;
        let bytes = parts.iter().map(|vb| vb.bytes((width_out, width_in), "weight")).collect::<Result<Vec<_>>>()?;
        if let Some(bytes) = bytes.into_iter().collect::<Option<Vec<_>>>() {
            return Self::of_bytes(&ByteWeight::joined(&bytes)?, join_biases(&biases)?, parts);
        }
        let weights = parts.iter().map(|vb| vb.get((width_out, width_in), "weight"));
        let read = weights.zip(biases).map(|(weight, bias)| Ok((weight?, bias))).collect::<Result<Vec<_>>>()?;
        // Weights that are trained, or made from such, change from step to step.
        if read.iter().any(|(weight, _)| weight.track_op()) {
            return Ok(Self { weights: Weights::Tensors(read) });
        }
        let (weight, bias) = join(&read)?;
        let weights = match cpu::is_fast(&[&weight]) {
            true => Weights::Packed(PackedLinear::new(&weight, bias.as_ref())?.of_parts(parts)),
            false => Weights::Tensors(vec![(weight, bias)]),
        };
        Ok(Self { weights })
    }

    /// Weights in 8 bits.
    fn of_bytes(weight: &ByteWeight, bias: Option<Tensor>, parts: &[NamedWeights]) -> Result<Self> {
        let vb = &parts[0];
        let weights = match cpu::is_fast_dtype(vb.device(), vb.dtype()) {
            true => Weights::Packed(PackedLinear::of_bytes(weight, bias.as_ref(), vb)?.of_parts(parts)),
            false => Weights::Bytes(Arc::new(ByteLinear::new(weight, bias, vb.device())?)),
        };
        Ok(Self { weights })
    }

    /// Whether inputs are rounded to 8 bits, as the weights are.
    pub fn rounds_inputs(&self) -> bool {
        matches!(&self.weights, Weights::Packed(packed) if packed.rounds_inputs())
    }

    /// `[..., width_in]` to `[..., width_out]`.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Packed(packed) => cpu::with_rows(xs)?.apply_op1(packed.clone()),
            Weights::Tensors(parts) => {
                let (weight, bias) = join(parts)?;
                linear(xs, &weight, bias.as_ref())
            }
            Weights::Bytes(bytes) => bytes.forward(xs),
        }
    }

    /// `forward(xs)` in another dtype: that of the weights where they are computed with in less than `xs`.
    pub fn forward_in(&self, xs: &Tensor, dtype: DType) -> Result<Tensor> {
        match &self.weights {
            Weights::Packed(packed) if !xs.track_op() && cpu::is_fast_dtype(xs.device(), dtype) => {
                packed.fused(xs, dtype, Activation::None, None)
            }
            Weights::Tensors(_) => self.forward_to(xs, dtype),
            _ => self.forward(&xs.to_dtype(dtype)?),
        }
    }

    /// `activation(forward(xs))`.
    pub fn forward_activated(&self, xs: &Tensor, function: Activation) -> Result<Tensor> {
        match &self.weights {
            Weights::Packed(packed) if !xs.track_op() => packed.fused(xs, xs.dtype(), function, None),
            _ => activation(&self.forward(xs)?, function),
        }
    }

    /// `residual + gate · forward(xs)`: `residual` is of the result's shape, `[batch, n, width_out]`, and dtype, `gate`, where
    /// there is one, `[batch, 1, width_out]`.
    pub fn forward_residual(&self, xs: &Tensor, residual: &Tensor, gate: Option<&Tensor>) -> Result<Tensor> {
        let tracked = xs.track_op() || residual.track_op() || gate.is_some_and(Tensor::track_op);
        let dtype = residual.dtype();
        match (&self.weights, gate) {
            (Weights::Packed(packed), _) if !tracked && cpu::is_fast(&[residual]) => {
                packed.fused(xs, dtype, Activation::None, Some((residual, gate)))
            }
            (_, Some(gate)) => gated_residual(residual, &gate.to_dtype(dtype)?, &self.forward_to(xs, dtype)?),
            (_, None) => residual + self.forward_to(xs, dtype)?,
        }
    }

    /// `forward(xs)`, written in `dtype`. What comes from a residual stream may have more digits than the weights.
    fn forward_to(&self, xs: &Tensor, dtype: DType) -> Result<Tensor> {
        match &self.weights {
            Weights::Tensors(parts) => {
                let (weight, bias) = join(parts)?;
                linear_to(xs, &weight, bias.as_ref(), dtype)
            }
            Weights::Packed(_) | Weights::Bytes(_) => self.forward(xs)?.to_dtype(dtype),
        }
    }
}

/// The weights and biases of several maps as those of one.
fn join(parts: &[(Tensor, Option<Tensor>)]) -> Result<(Tensor, Option<Tensor>)> {
    if let [part] = parts {
        return Ok(part.clone());
    }
    let weights: Vec<_> = parts.iter().map(|(weight, _)| weight).collect();
    let biases: Vec<_> = parts.iter().map(|(_, bias)| bias.clone()).collect();
    Ok((Tensor::cat(&weights, 0)?, join_biases(&biases)?))
}

fn join_biases(biases: &[Option<Tensor>]) -> Result<Option<Tensor>> {
    let biases: Vec<_> = biases.iter().flatten().collect();
    if biases.is_empty() { Ok(None) } else { Tensor::cat(&biases, 0).map(Some) }
}

/// What a linear map with weights in 8 bits means, but for the rounding of its inputs: its weights become numbers whenever it
/// is used.
#[derive(Debug)]
pub(super) struct ByteLinear {
    /// `[out, in]`, u8: 128 is zero.
    bytes: Tensor,
    /// `[out, 1]`.
    scales: Tensor,
    /// `[in]`.
    factors: Option<Tensor>,
    low_rank: Vec<LowRank>,
    bias: Option<Tensor>,
}

impl ByteLinear {
    pub(super) fn new(weight: &ByteWeight, bias: Option<Tensor>, device: &Device) -> Result<Self> {
        let (rows, depth) = weight.matrix.shape();
        // As unsigned bytes, which tensors hold.
        let bytes: Vec<u8> = (0..rows).flat_map(|row| weight.matrix.row(row)).map(|byte| byte ^ 0x80).collect();
        Ok(Self {
            bytes: Tensor::from_vec(bytes, (rows, depth), device)?,
            scales: Tensor::from_slice(weight.matrix.scales(), (rows, 1), device)?,
            factors: weight.input_factors.as_ref().map(|factors| Tensor::new(&factors[..], device)).transpose()?,
            low_rank: weight.low_rank.clone(),
            bias,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let dtype = product_dtype(xs.device(), xs.dtype());
        let mut weight = (self.bytes.to_dtype(DType::F32)? - 128.0)?.broadcast_mul(&self.scales)?;
        if let Some(factors) = &self.factors {
            weight = weight.broadcast_mul(factors)?;
        }
        let mut ys = linear_of_tensors(xs, &weight.to_dtype(dtype)?, self.bias.as_ref())?;
        for LowRank { down, up } in &self.low_rank {
            ys = (ys + linear_composed(&linear_composed(xs, down, None)?, up, None)?)?;
        }
        Ok(ys)
    }
}

pub(super) fn check_depth(xs: &Shape, depth: usize) -> Result<()> {
    match xs.dims().last() {
        Some(&width) if width == depth => Ok(()),
        _ => candle_core::bail!("a linear map of {depth} inputs was given {xs:?}"),
    }
}

/// `d_ys · weight`, in `arithmetic`, written as `T`.
pub(super) fn gradient_of_input<T: CpuElement, W: CpuElement>(
    arithmetic: Arithmetic,
    shape: &Shape,
    weight: Matrix<W>,
    d_ys: &Tensor,
) -> Result<Tensor> {
    let isa = cpu::isa()?;
    let packed = Packed::new(isa, arithmetic, weight.transposed());
    let d_ys = cpu::with_rows(d_ys)?;
    for_dtype!(d_ys.dtype(), D => cpu::with_views([&d_ys], |[d_ys]| {
        cpu::filled::<T>(shape, |d_xs| {
            gemm(isa, &SCRATCH, d_ys.rows::<D>()?, &packed, &Epilogue::default(), d_xs);
            Ok(())
        })
    }))
}

/// A product with weights that are tensors, for training, in their arithmetic.
struct Product {
    /// Of the result.
    dtype: DType,
}

impl Product {
    fn forward(&self, xs: View, weight: View, bias: Option<View>) -> Result<(CpuStorage, Shape)> {
        let isa = cpu::isa()?;
        let (width_out, width_in) = weight.layout.shape().dims2()?;
        check_depth(xs.layout.shape(), width_in)?;
        let bias = bias.map(View::to_f32).transpose()?;
        let packed = for_dtype!(weight.dtype(), W => Packed::new(isa, W::ARITHMETIC, weight.rows::<W>()?));
        for_dtype!(xs.dtype(), X => for_dtype!(self.dtype, T => {
            cpu::filled_storage::<T>(result_shape(xs.layout.shape(), width_out), |out| {
                let epilogue = Epilogue { bias: bias.as_deref(), ..Epilogue::default() };
                gemm(isa, &SCRATCH, xs.rows::<X>()?, &packed, &epilogue, out);
                Ok(())
            })
        }))
    }

    fn backward(&self, xs: &Tensor, weight: &Tensor, d_ys: &Tensor) -> Result<(Tensor, Tensor)> {
        let isa = cpu::isa()?;
        let (xs, d_ys) = (cpu::with_rows(xs)?, cpu::with_rows(d_ys)?);
        let arithmetic = for_dtype!(weight.dtype(), W => W::ARITHMETIC);
        let d_xs = for_dtype!(weight.dtype(), W => cpu::with_views([weight], |[weight]| {
            for_dtype!(xs.dtype(), X => gradient_of_input::<X, W>(arithmetic, xs.shape(), weight.rows::<W>()?, &d_ys))
        }))?;
        let mut d_weight = vec![0f32; weight.elem_count()];
        for_dtype!(xs.dtype(), X => for_dtype!(d_ys.dtype(), D => cpu::with_views([&xs, &d_ys], |[xs, d_ys]| {
            outer_product(isa, &SCRATCH, arithmetic, d_ys.rows::<D>()?, xs.rows::<X>()?, &mut d_weight);
            Ok(())
        })))?;
        Ok((d_xs, cpu::gradient_of(weight, d_weight)?))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(View::new(xs, xs_layout), View::new(weight, weight_layout), None)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_xs, d_weight) = self.backward(xs, weight, d_ys)?;
        Ok((Some(d_xs), Some(d_weight)))
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = View::new(bias, bias_layout);
        self.forward(View::new(xs, xs_layout), View::new(weight, weight_layout), Some(bias))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (d_xs, d_weight) = self.backward(xs, weight, d_ys)?;
        let (isa, mut d_bias) = (cpu::isa()?, vec![0f32; bias.elem_count()]);
        cpu::with_views([&d_ys.contiguous()?], |[d_ys]| {
            for_dtype!(d_ys.dtype(), T => column_sums(isa, d_ys.slice::<T>()?, &mut d_bias));
            Ok(())
        })?;
        Ok((Some(d_xs), Some(d_weight), Some(cpu::gradient_of(bias, d_bias)?)))
    }
}
