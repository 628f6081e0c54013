use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use pixart_kernels::ByteMatrix;

/// What a network reads its weights from: tensors by name, and matrices that are held in 8 bits.
#[derive(Clone)]
pub struct NamedWeights<'a> {
    tensors: VarBuilder<'a>,
    bytes: Option<Arc<dyn BytesByName>>,
    tables: Option<Arc<dyn RowsByName>>,
    used_once: bool,
    observer: Option<Observer>,
}

/// Is told, whenever a linear layer is used, the names of its weights and the largest absolute values of its inputs by column.
pub type Observer = Arc<dyn Fn(&[String], &[f32]) + Send + Sync>;

/// Where weights in 8 bits come from.
pub trait BytesByName: Send + Sync {
    /// The weight `name`, whose first dimension is `rows` and whose others have `depth` elements together, if it is held in
    /// 8 bits. Errors: it has another shape, or cannot be read.
    fn bytes(&self, name: &str, shape: (usize, usize)) -> Result<Option<ByteWeight>>;
}

/// Where tables are of which only some rows are needed.
pub trait RowsByName: Send + Sync {
    /// What reads rows of the tensor `name`, which has this shape, in `dtype` and to `device`; none if it has to be read whole.
    fn rows(&self, name: &str, shape: (usize, usize), dtype: DType, device: &Device) -> Result<Option<ReadRows>>;
}

/// Reads rows of a table, one after the other: `[n, width]`. Errors: there is no such row; it cannot be read.
pub type ReadRows = Arc<dyn Fn(&[u32]) -> Result<Tensor> + Send + Sync>;

/// A weight in 8 bits: a map of `x` to `(x · input_factors) · matrixᵀ + Σ x · downᵀ · upᵀ`.
#[derive(Debug, Clone)]
pub struct ByteWeight {
    /// `[out, in]`.
    pub matrix: ByteMatrix,
    /// Whether inputs are rounded to 8 bits as well, each row with a scale of its own; else only the weight is.
    pub rounds_inputs: bool,
    /// Where inputs are rounded: `[in]`, what they are multiplied with first. Zero takes a column out of the product.
    pub input_factors: Option<Vec<f32>>,
    /// Where inputs are rounded: looks for columns of uncommonly large inputs whenever it is used, and keeps those out of the
    /// rounding (LLM.int8(), Dettmers et al. 2022).
    pub finds_outliers: bool,
    /// What is added in higher precision: LoRAs, and columns that were taken out of the product.
    pub low_rank: Vec<LowRank>,
}

/// A map by way of few numbers.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[rank, in]`.
    pub down: Tensor,
    /// `[out, rank]`.
    pub up: Tensor,
}

impl ByteWeight {
    /// Only the matrix, inputs rounded if `rounds_inputs`.
    pub fn new(matrix: ByteMatrix, rounds_inputs: bool) -> Self {
        Self { matrix, rounds_inputs, input_factors: None, finds_outliers: false, low_rank: Vec::new() }
    }

    /// Maps of the same input as one, their outputs one after the other.
    ///
    /// # Errors
    /// They round their inputs differently.
    pub(crate) fn joined(parts: &[Self]) -> Result<Self> {
        let first = &parts[0];
        let differs =
            |part: &Self| part.rounds_inputs != first.rounds_inputs || part.input_factors != first.input_factors;
        if parts.iter().any(differs) {
            candle_core::bail!("maps of the same input round it differently");
        }
        let matrices: Vec<_> = parts.iter().map(|part| part.matrix.clone()).collect();
        let matrix = ByteMatrix::joined(&matrices);
        let mut low_rank = Vec::new();
        let mut before = 0;
        for part in parts {
            let rows = part.matrix.shape().0;
            for LowRank { down, up } in &part.low_rank {
                let up = up.pad_with_zeros(0, before, matrix.shape().0 - before - rows)?;
                low_rank.push(LowRank { down: down.clone(), up });
            }
            before += rows;
        }
        let finds_outliers = parts.iter().any(|part| part.finds_outliers);
        Ok(Self { matrix, low_rank, finds_outliers, ..first.clone() })
    }
}

impl<'a> From<VarBuilder<'a>> for NamedWeights<'a> {
    fn from(tensors: VarBuilder<'a>) -> Self {
        Self { tensors, bytes: None, tables: None, used_once: false, observer: None }
    }
}

impl NamedWeights<'_> {
    /// With weights in 8 bits, which go before tensors of their names.
    pub fn with_bytes(self, bytes: Arc<dyn BytesByName>) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// With tables whose rows are read when they are asked for.
    pub fn with_tables(self, tables: Arc<dyn RowsByName>) -> Self {
        Self { tables: Some(tables), ..self }
    }

    /// A network goes through these weights once before they are dropped: those in 8 bits then stay where they are, for it
    /// would cost more to put them in order than it saves.
    pub fn used_once(self) -> Self {
        Self { used_once: true, ..self }
    }

    pub(crate) fn is_used_once(&self) -> bool {
        self.used_once
    }

    /// Has the inputs of linear layers looked at; only on the CPU.
    pub fn observed_by(self, observer: Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    pub(crate) fn observer(&self) -> Option<&Observer> {
        self.observer.as_ref()
    }

    /// The whole name of the tensor `name`.
    pub(crate) fn full_name(&self, name: &str) -> String {
        match self.tensors.prefix() {
            prefix if prefix.is_empty() => name.into(),
            prefix => format!("{prefix}.{name}"),
        }
    }

    /// What is below the name `name`.
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { tensors: self.tensors.pp(name), ..self.clone() }
    }

    /// The tensor `name`. Errors: there is none, or one of another shape.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        self.tensors.get(shape, name)
    }

    /// The weight `name` if it is held in 8 bits; see [`BytesByName::bytes`].
    pub(crate) fn bytes(&self, shape: (usize, usize), name: &str) -> Result<Option<ByteWeight>> {
        match &self.bytes {
            Some(bytes) => bytes.bytes(&self.full_name(name), shape),
            None => Ok(None),
        }
    }

    /// What reads rows of the tensor `name`, if it may stay where it is; see [`RowsByName::rows`].
    pub(crate) fn rows(&self, shape: (usize, usize), name: &str) -> Result<Option<ReadRows>> {
        match &self.tables {
            Some(tables) => tables.rows(&self.full_name(name), shape, self.dtype(), self.device()),
            None => Ok(None),
        }
    }

    /// Whether there is a tensor `name`.
    pub fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_tensor(name)
    }

    /// The dtype that tensors are given in.
    pub fn dtype(&self) -> DType {
        self.tensors.dtype()
    }

    /// The same weights in another dtype.
    pub fn set_dtype(self, dtype: DType) -> Self {
        Self { tensors: self.tensors.set_dtype(dtype), ..self }
    }

    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        self.tensors.device()
    }
}
