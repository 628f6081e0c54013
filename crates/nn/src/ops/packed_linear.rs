use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use pixart_kernels::{
    Activation, Arithmetic, ByteMatrix, Epilogue, Gate, Matrix, Packed, Residual, column_maxima, gemm,
};

use super::cpu::{self, CpuElement, SCRATCH, View, for_dtype};
use super::linear::{check_depth, gradient_of_input, result_shape};
use crate::{ByteWeight, LowRank, NamedWeights, Observer};

/// How many times as large as the median of all columns' largest inputs those of a column are that is kept out of the
/// rounding. Normally distributed inputs differ by less than two times.
const OUTLIER: f32 = 8.0;

/// At most one column in so many is kept out of the rounding.
const COLUMNS_AN_OUTLIER: usize = 16;

/// Rounds a weight `[out, in]` (f32, on the CPU) to 8 bits; see [`ByteMatrix::quantise`].
pub fn quantise(weight: &Tensor) -> Result<ByteMatrix> {
    let isa = cpu::isa()?;
    cpu::with_views([weight], |[weight]| Ok(ByteMatrix::quantise(isa, weight.rows::<f32>()?)))
}

/// Frozen weights, packed, and a bias in f32.
#[derive(Clone)]
pub(super) struct PackedLinear {
    weight: Arc<Packed>,
    bias: Option<Arc<Vec<f32>>>,
    /// What is added to the product in higher precision.
    low_rank: Option<Arc<[Packed; 2]>>,
    /// Where columns of uncommonly large inputs are looked for, the weights that they are multiplied with.
    outliers: Option<ByteMatrix>,
    /// Who looks at the inputs, and under what names.
    observer: Option<(Observer, Arc<[String]>)>,
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "PackedLinear({:?})", self.weight)
    }
}

impl PackedLinear {
    /// The weights that `parts` name are what this is made of, for whoever looks at inputs.
    pub(super) fn of_parts(mut self, parts: &[NamedWeights]) -> Self {
        let names = || parts.iter().map(|part| part.full_name("weight")).collect();
        self.observer = parts[0].observer().map(|observer| (observer.clone(), names()));
        self
    }

    pub(super) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let isa = cpu::isa()?;
        let packed = cpu::with_views(
            [weight],
            |[weight]| for_dtype!(weight.dtype(), T => Ok(Packed::new(isa, T::ARITHMETIC, weight.rows::<T>()?))),
        )?;
        let bias = bias.map(cpu::f32_values).transpose()?.map(Arc::new);
        Ok(Self { weight: Arc::new(packed), bias, low_rank: None, outliers: None, observer: None })
    }

    /// Weights in 8 bits; what is not rounded is computed in the dtype of `vb`.
    pub(super) fn of_bytes(weight: &ByteWeight, bias: Option<&Tensor>, vb: &NamedWeights) -> Result<Self> {
        let isa = cpu::isa()?;
        let precise = for_dtype!(vb.dtype(), T => T::ARITHMETIC);
        let arithmetic = if weight.rounds_inputs { Arithmetic::Int8 } else { precise };
        let mut packed = Packed::from_bytes(isa, arithmetic, weight.matrix.clone());
        if !vb.is_used_once() {
            packed = packed.in_order(isa);
        }
        if let Some(factors) = &weight.input_factors {
            if !weight.rounds_inputs {
                candle_core::bail!("inputs that are not rounded are not multiplied first");
            }
            packed = packed.with_left_factors(factors.clone());
        }
        let low_rank = match &weight.low_rank[..] {
            [] => None,
            parts => {
                let side = |of: fn(&LowRank) -> &Tensor, dim| {
                    let tensors: Vec<_> = parts.iter().map(of).collect();
                    let side = Tensor::cat(&tensors, dim)?.to_dtype(DType::F32)?;
                    let (rows, columns) = side.dims2()?;
                    Ok::<_, candle_core::Error>(Packed::new(
                        isa,
                        precise,
                        Matrix::new(&cpu::f32_values(&side)?, rows, columns),
                    ))
                };
                Some(Arc::new([side(|part| &part.down, 0)?, side(|part| &part.up, 1)?]))
            }
        };
        let outliers = (weight.rounds_inputs && weight.finds_outliers).then(|| weight.matrix.clone());
        let bias = bias.map(cpu::f32_values).transpose()?.map(Arc::new);
        Ok(Self { weight: Arc::new(packed), bias, low_rank, outliers, observer: None })
    }

    pub(super) fn rounds_inputs(&self) -> bool {
        self.weight.arithmetic() == Arithmetic::Int8
    }

    /// What becomes of the product, which `addend` is added to.
    fn epilogue<'a, T>(&'a self, activation: Activation, addend: Option<&'a [f32]>) -> Epilogue<'a, T> {
        Epilogue { addend, bias: self.bias.as_ref().map(|bias| &bias[..]), activation, residual: None }
    }

    /// The weights to multiply `xs` with, and what to add to the product.
    fn of_rows<A: CpuElement>(&self, xs: Matrix<A>) -> Result<(Arc<Packed>, Option<Vec<f32>>)> {
        let isa = cpu::isa()?;
        if let Some((observer, names)) = &self.observer {
            observer(names, &column_maxima(isa, xs));
        }
        let product = |left: Matrix<f32>, right: &Packed, addend: Option<&[f32]>| {
            let mut out = pixart_kernels::arbitrary(left.rows() * right.shape().0);
            gemm(isa, &SCRATCH, left, right, &Epilogue { addend, ..Epilogue::default() }, &mut out);
            out
        };
        let mut addend = None;
        if let Some(low_rank) = &self.low_rank {
            let [down, up] = &**low_rank;
            let mut few = pixart_kernels::arbitrary::<f32>(xs.rows() * down.shape().0);
            gemm(isa, &SCRATCH, xs, down, &Epilogue::default(), &mut few);
            addend = Some(product(Matrix::new(&few, xs.rows(), down.shape().0), up, None));
        }
        let Some(matrix) = &self.outliers else { return Ok((self.weight.clone(), addend)) };
        let columns = outliers(&column_maxima(isa, xs));
        if columns.is_empty() {
            return Ok((self.weight.clone(), addend));
        }
        let mut factors = self.weight.left_factors().map_or_else(|| vec![1.0; xs.columns()], <[f32]>::to_vec);
        let taken: Vec<f32> = columns.iter().map(|column| std::mem::replace(&mut factors[*column], 0.0)).collect();
        let few: Vec<f32> = (0..xs.rows())
            .flat_map(|row| {
                columns.iter().zip(&taken).map(move |(column, factor)| xs.get(row, *column).to_f32() * factor)
            })
            .collect();
        let weights: Vec<f32> = (0..matrix.shape().0)
            .flat_map(|row| {
                let (bytes, scale) = (matrix.row(row), matrix.scales()[row]);
                columns.iter().map(move |column| f32::from(bytes[*column] as i8) * scale)
            })
            .collect();
        let up = Packed::new(isa, A::ARITHMETIC, Matrix::new(&weights, matrix.shape().0, columns.len()));
        let addend = product(Matrix::new(&few, xs.rows(), columns.len()), &up, addend.as_deref());
        Ok((Arc::new(Packed::clone(&self.weight).with_left_factors(factors)), Some(addend)))
    }

    /// The product with all that follows it in one go, in `dtype`, without a gradient.
    pub(super) fn fused(
        &self,
        xs: &Tensor,
        dtype: DType,
        activation: Activation,
        residual: Option<(&Tensor, Option<&Tensor>)>,
    ) -> Result<Tensor> {
        let xs = cpu::with_rows(xs)?;
        check_depth(xs.shape(), self.weight.shape().1)?;
        let (residual, gate) = match residual {
            Some((residual, gate)) => (Some(residual.contiguous()?), gate),
            None => (None, None),
        };
        let gate = gate.map(cpu::f32_values).transpose()?;
        for_dtype!(xs.dtype(), A => for_dtype!(dtype, T => match &residual {
            Some(residual) => cpu::with_views([&xs, residual], |[xs, residual]| {
                self.multiply::<A, T>(xs, activation, Some(residual.slice()?), gate.as_deref())
            }),
            None => cpu::with_views([&xs], |[xs]| self.multiply::<A, T>(xs, activation, None, None)),
        }))
    }

    fn multiply<A: CpuElement, T: CpuElement>(
        &self,
        xs: View,
        activation: Activation,
        residual: Option<&[T]>,
        gate: Option<&[f32]>,
    ) -> Result<Tensor> {
        let shape = result_shape(xs.layout.shape(), self.weight.shape().0);
        if residual.is_some_and(|residual| residual.len() != shape.elem_count()) {
            candle_core::bail!("a linear map to {shape:?} is added to a residual of another shape");
        }
        let rows = shape.dims().iter().rev().nth(1).copied().unwrap_or(1);
        let gate = gate.map(|values| Gate { values, rows });
        let residual = residual.map(|xs| Residual { xs, gate });
        let isa = cpu::isa()?;
        cpu::filled::<T>(shape, |out| {
            let (weight, addend) = self.of_rows(xs.rows::<A>()?)?;
            let epilogue = Epilogue { residual, ..self.epilogue(activation, addend.as_deref()) };
            gemm(isa, &SCRATCH, xs.rows::<A>()?, &weight, &epilogue, out);
            Ok(())
        })
    }
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (isa, xs) = (cpu::isa()?, View::new(storage, layout));
        let shape = result_shape(layout.shape(), self.weight.shape().0);
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(shape, |out| {
            check_depth(layout.shape(), self.weight.shape().1)?;
            let (weight, addend) = self.of_rows(xs.rows::<T>()?)?;
            gemm(isa, &SCRATCH, xs.rows::<T>()?, &weight, &self.epilogue(Activation::None, addend.as_deref()), out);
            Ok(())
        }))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        if self.low_rank.is_some() {
            candle_core::bail!("no gradient goes through weights in 8 bits with a LoRA beside them");
        }
        let (columns, depth) = self.weight.shape();
        let weight = self.weight.unpack();
        let weight = Matrix::new(&weight, columns, depth);
        for_dtype!(xs.dtype(), T => gradient_of_input::<T, f32>(T::ARITHMETIC, xs.shape(), weight, d_ys)).map(Some)
    }
}

/// The columns whose largest inputs, of which these are the absolute values, are so large that others rounded beside them would
/// lose their digits.
fn outliers(maxima: &[f32]) -> Vec<usize> {
    let mut sorted = maxima.to_vec();
    sorted.sort_by(f32::total_cmp);
    let most = maxima.len() / COLUMNS_AN_OUTLIER;
    let (Some(median), Some(bound)) = (sorted.get(maxima.len() / 2), sorted.len().checked_sub(most + 1)) else {
        return Vec::new();
    };
    let bound = sorted[bound].max(OUTLIER * median);
    (0..maxima.len()).filter(|column| maxima[*column] > bound).collect()
}
