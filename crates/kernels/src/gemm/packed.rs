use std::marker::PhantomData;
use std::sync::Arc;

use rayon::prelude::*;

use super::pack::PackRows;
use super::words::Words;
use super::{Bf16, ByteMatrix, F32, Int8, MAX_VECTORS, Product, padded_stride, store_f32};
use crate::isa::Body;
use crate::memory::{Line, ZERO, line_bytes};
use crate::simd::{Element, LANES, Simd};
use crate::{Isa, Matrix};

/// In what a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 throughout.
    F32,
    /// Operands in bf16, sums in f32. Without [`Isa::has_fast_bf16`] products are computed in f32: packed weights are rounded to bf16,
    /// all else is as it is.
    Bf16,
    /// Operands in 8 bits, sums in i32: weights with one scale an output, activations with one scale a row.
    Int8,
}

impl Arithmetic {
    /// Elements in a group of 32 bits.
    fn group(self) -> usize {
        match self {
            Self::F32 => F32::GROUP,
            Self::Bf16 => Bf16::GROUP,
            Self::Int8 => Int8::GROUP,
        }
    }

    /// In what these products are computed.
    pub(crate) fn on(self, isa: Isa) -> Self {
        match self {
            Self::Bf16 if !isa.has_fast_bf16() => Self::F32,
            _ => self,
        }
    }
}

/// The right operand of a product, weights mostly, in the order in which the product reads it. Made once, used often.
///
/// It is cut into panels of as many columns as a tile is wide. A panel holds, for each group along the depth, one or two
/// lines: that group of each column. Weights in 8 bits may stay as they are in memory or on disk; a panel of them is put in
/// order when a product comes to it, which costs little beside a product of many rows. So is one of bf16 made of f32 where these
/// are multiplied.
#[derive(Clone)]
pub struct Packed {
    pub(crate) arithmetic: Arithmetic,
    /// Columns of the result.
    pub(crate) columns: usize,
    /// Elements of a run along the depth, and runs: the taps of a convolution, or one.
    pub(crate) depth: usize,
    pub(crate) taps: usize,
    /// Vectors across a panel; the last may have fewer.
    pub(crate) panel_vectors: usize,
    pub(crate) lines: Vec<Line>,
    /// What stands in for lines.
    bytes: Option<ByteMatrix>,
    /// Of weights in 8 bits, what the sums of each column are multiplied with.
    pub(crate) scales: Vec<f32>,
    /// For products in int8, the sum of each column's bytes, unless it is found with the lines.
    byte_sums: Vec<f32>,
    /// For products in int8, `[depth]`: what the left matrix is multiplied with before it is rounded.
    left_factors: Option<Arc<Vec<f32>>>,
}

/// A panel of the right operand, as a tile reads it.
pub(crate) struct Panel<'a> {
    pub lines: &'a [Line],
    pub vectors: usize,
    /// For products in int8, the sum of each column's bytes.
    pub sums: [f32; MAX_VECTORS * LANES],
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Packed({:?}, {} × {} × {})", self.arithmetic, self.columns, self.taps, self.depth)
    }
}

impl Packed {
    /// Packs `weight` `[out, in]` for products `x · weightᵀ`.
    pub fn new<T: Element>(isa: Isa, arithmetic: Arithmetic, weight: Matrix<T>) -> Self {
        match arithmetic {
            Arithmetic::F32 => Self::from_matrix::<F32, T>(isa, arithmetic, weight),
            Arithmetic::Bf16 => Self::from_matrix::<Bf16, T>(isa, arithmetic, weight),
            Arithmetic::Int8 => Self::from_matrix::<Int8, T>(isa, arithmetic, weight),
        }
    }

    /// Weights in 8 bits, for products in any arithmetic. They stay where they are.
    pub fn from_bytes(isa: Isa, arithmetic: Arithmetic, weight: ByteMatrix) -> Self {
        let (columns, depth) = weight.shape();
        let mut packed = Self::empty(isa, arithmetic, columns, depth, 1);
        packed.scales = weight.scales().to_vec();
        packed.bytes = Some(weight);
        packed
    }

    /// The same weights in the order in which the product reads them: what [`Packed::from_bytes`] leaves to every product.
    /// Only for [`Arithmetic::Int8`], since others would need more memory for them; they stay as they are.
    pub fn in_order(mut self, isa: Isa) -> Self {
        if self.arithmetic != Arithmetic::Int8 || self.bytes.is_none() {
            return self;
        }
        let steps = self.steps();
        let mut lines = vec![ZERO; self.columns.div_ceil(LANES) * steps];
        let mut sums = vec![0f32; self.columns];
        let panels = lines.par_chunks_mut((self.panel_vectors * steps).max(1));
        panels.zip(sums.par_chunks_mut(self.panel_vectors * LANES)).enumerate().for_each(|(panel, (lines, sums))| {
            isa.run(PackPanel { packed: &self, panel, lines, sums });
        });
        (self.lines, self.byte_sums, self.bytes) = (lines, sums, None);
        self
    }

    /// With `factors` `[depth]`, by which the left matrix is multiplied, column by column, before it is rounded; zero takes a
    /// column out of the product.
    ///
    /// # Panics
    /// There are more or fewer, or the product is not in int8.
    pub fn with_left_factors(self, factors: Vec<f32>) -> Self {
        assert_eq!(factors.len(), self.depth, "a factor for each column of the left matrix");
        assert_eq!(self.arithmetic, Arithmetic::Int8, "only what is rounded is multiplied first");
        Self { left_factors: Some(Arc::new(factors)), ..self }
    }

    fn from_matrix<P: Words, T: Element>(isa: Isa, arithmetic: Arithmetic, weight: Matrix<T>) -> Self {
        let mut packed = Self::empty(isa, arithmetic, weight.rows, weight.columns, 1);
        let steps = packed.steps();
        packed.lines = vec![ZERO; weight.rows.div_ceil(LANES) * steps];
        let mut scales = vec![1f32; weight.rows];
        let columns = packed.panel_vectors * LANES;
        let panels = packed.lines.par_chunks_mut((packed.panel_vectors * steps).max(1));
        panels.zip(scales.par_chunks_mut(columns)).enumerate().for_each_init(
            Vec::new,
            |words, (panel, (lines, scales))| {
                words.resize(padded_stride(steps) * columns, 0);
                isa.run(PackRows::<P, T> {
                    matrix: weight,
                    first: panel * columns,
                    lines,
                    scales,
                    words,
                    product: PhantomData,
                });
            },
        );
        if arithmetic == Arithmetic::Int8 {
            packed.byte_sums = packed.sum_bytes();
            packed.scales = scales;
        }
        packed
    }

    /// The sum of the bytes of each column.
    fn sum_bytes(&self) -> Vec<f32> {
        let panels = (0..self.panels()).flat_map(|panel| {
            let (lines, vectors) = self.panel(panel);
            (0..vectors * LANES).map(move |lane| {
                let lines = lines.iter().skip(lane / LANES).step_by(vectors);
                let bytes = lines.flat_map(|line| line.0[lane % LANES].to_le_bytes());
                bytes.map(|byte| byte as i8 as i32).sum::<i32>() as f32
            })
        });
        panels.take(self.columns).collect()
    }

    fn empty(isa: Isa, arithmetic: Arithmetic, columns: usize, depth: usize, taps: usize) -> Self {
        Self {
            arithmetic,
            columns,
            depth,
            taps,
            panel_vectors: isa.tile_vectors(),
            lines: Vec::new(),
            bytes: None,
            scales: Vec::new(),
            byte_sums: Vec::new(),
            left_factors: None,
        }
    }

    /// Packs the right operand whose element for column `c` of the result, tap and place along the depth is
    /// `element(c, tap, depth)`.
    pub(crate) fn with_taps(
        isa: Isa,
        arithmetic: Arithmetic,
        columns: usize,
        depth: usize,
        taps: usize,
        element: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        // Rows with every run filled up to whole groups pack like those of a matrix.
        let run = depth.next_multiple_of(arithmetic.group());
        let mut rows = vec![0f32; columns * taps * run];
        rows.par_chunks_mut((taps * run).max(1)).enumerate().for_each(|(column, row)| {
            for (tap, row) in row.chunks_exact_mut(run).enumerate() {
                for (i, x) in row[..depth].iter_mut().enumerate() {
                    *x = element(column, tap, i);
                }
            }
        });
        let mut packed = Self::new(isa, arithmetic, Matrix::new(&rows, columns, taps * run));
        (packed.depth, packed.taps) = (depth, taps);
        packed
    }

    /// Groups of a run.
    fn steps(&self) -> usize {
        self.depth.div_ceil(self.arithmetic.group())
    }

    /// Groups of a run in products `P`, which may have smaller ones than those that were packed.
    pub(crate) fn steps_in<P: Product>(&self) -> usize {
        self.depth.div_ceil(P::GROUP)
    }

    /// Whether panels become f32 for products `P`.
    #[inline(always)]
    fn is_widened<P: Product>(&self) -> bool {
        self.arithmetic == Arithmetic::Bf16 && P::GROUP == F32::GROUP
    }

    /// Lines that a thread needs as room for a panel in products `P`.
    pub(crate) fn panel_room<P: Product>(&self) -> usize {
        match self.bytes.is_some() || self.is_widened::<P>() {
            true => self.panel_vectors * self.taps * self.steps_in::<P>(),
            false => 0,
        }
    }

    /// Panel `panel` for products `P`; `room` is [`Packed::panel_room`] lines.
    #[inline(always)]
    pub(crate) fn panel_in<'a, S: Simd, P: Words>(&'a self, s: S, panel: usize, room: &'a mut [Line]) -> Panel<'a> {
        let first = panel * self.panel_vectors * LANES;
        match &self.bytes {
            Some(bytes) => {
                let vectors = self.panel_vectors.min((self.columns - first).div_ceil(LANES));
                let lines = &mut room[..vectors * self.steps_in::<P>()];
                let sums = bytes.pack::<S, P>(s, first, vectors, lines);
                Panel { lines, vectors, sums }
            }
            None if self.is_widened::<P>() => {
                let (pairs, vectors) = self.panel(panel);
                let lines = &mut room[..vectors * self.taps * self.depth];
                let runs = pairs.chunks_exact((vectors * self.steps()).max(1));
                for (pairs, lines) in runs.zip(lines.chunks_exact_mut((vectors * self.depth).max(1))) {
                    widen_pairs(s, pairs, vectors, lines);
                }
                Panel { lines, vectors, sums: [0f32; MAX_VECTORS * LANES] }
            }
            None => {
                assert_eq!(P::GROUP, self.arithmetic.group(), "these lines were packed for other products");
                let mut sums = [0f32; MAX_VECTORS * LANES];
                let of_columns = &self.byte_sums[first.min(self.byte_sums.len())..];
                for (sum, of_column) in sums.iter_mut().zip(of_columns) {
                    *sum = *of_column;
                }
                let (lines, vectors) = self.panel(panel);
                Panel { lines, vectors, sums }
            }
        }
    }

    /// The bytes from which panel `panel` will be read, none if there is no such panel.
    #[inline(always)]
    pub(crate) fn memory_of(&self, panel: usize) -> &[u8] {
        match &self.bytes {
            Some(bytes) => {
                let memory = bytes.starting_at(panel * self.panel_vectors * LANES);
                &memory[..memory.len().min(self.panel_vectors * LANES * self.depth)]
            }
            None => line_bytes(self.lines_of(panel)),
        }
    }

    /// The lines of panel `panel`, and how many vectors it is wide.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> (&[Line], usize) {
        let lines = self.lines_of(panel);
        (lines, (lines.len() / (self.taps * self.steps()).max(1)).clamp(1, MAX_VECTORS))
    }

    /// The lines of panel `panel`, none if there is no such panel.
    #[inline(always)]
    fn lines_of(&self, panel: usize) -> &[Line] {
        let panel_lines = self.panel_vectors * self.taps * self.steps();
        let start = (panel * panel_lines).min(self.lines.len());
        &self.lines[start..(start + panel_lines).min(self.lines.len())]
    }

    /// How many panels there are.
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(self.panel_vectors * LANES)
    }

    /// The matrix that was packed, `[columns, taps · depth]` row after row, rounded as packing rounds it: for products
    /// with its transpose, and so for gradients through weights that are kept packed only.
    pub fn unpack(&self) -> Vec<f32> {
        let mut values = match &self.bytes {
            Some(bytes) => bytes.to_f32(),
            None => self.unpack_lines(),
        };
        if let Some(factors) = &self.left_factors {
            values
                .par_chunks_mut(self.depth)
                .for_each(|row| row.iter_mut().zip(&**factors).for_each(|(x, factor)| *x *= factor));
        }
        values
    }

    fn unpack_lines(&self) -> Vec<f32> {
        match self.arithmetic {
            Arithmetic::F32 => self.unpack_as::<F32>(|_, word, _| f32::from_bits(word)),
            Arithmetic::Bf16 => self.unpack_as::<Bf16>(|_, word, i| f32::from_bits(word >> (16 * i) << 16)),
            Arithmetic::Int8 => {
                self.unpack_as::<Int8>(|column, word, i| word.to_le_bytes()[i] as i8 as f32 * self.scales[column])
            }
        }
    }

    /// `element(column, word, i)` is element `i` of a group, in a word of that column.
    fn unpack_as<P: Words>(&self, element: impl Fn(usize, u32, usize) -> f32 + Sync) -> Vec<f32> {
        let (columns, row) = self.shape();
        let mut out = vec![0f32; columns * row];
        let (width, steps) = (self.panel_vectors * LANES, self.steps());
        out.par_chunks_mut((width * row).max(1)).enumerate().for_each(|(panel, out)| {
            let (lines, vectors) = self.panel(panel);
            for tap in 0..self.taps {
                // Few steps at a time, so that their lines stay in the cache while one row after another reads them.
                for start in (0..steps).step_by(32) {
                    for (lane, out) in out.chunks_exact_mut(row).enumerate() {
                        let run = &mut out[tap * self.depth..][..self.depth];
                        let groups = run.chunks_mut(P::GROUP).enumerate().skip(start).take(32);
                        for (step, group) in groups {
                            let line = &lines[(tap * steps + step) * vectors + lane / LANES];
                            for (i, x) in group.iter_mut().enumerate() {
                                *x = element(panel * width + lane, line.0[lane % LANES], i);
                            }
                        }
                    }
                }
            }
        });
        out
    }

    /// What the left matrix is multiplied with first; see [`Packed::with_left_factors`].
    pub fn left_factors(&self) -> Option<&[f32]> {
        self.left_factors.as_ref().map(|factors| &factors[..])
    }

    /// In what it is multiplied.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Columns of the result, and the depth of the product.
    pub fn shape(&self) -> (usize, usize) {
        (self.columns, self.taps * self.depth)
    }

    /// Memory it takes, that of weights which stay where they are not counted.
    pub fn size_in_bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.scales[..]) + size_of_val(&self.byte_sums[..])
    }
}

/// The bf16 of a run of a panel as f32: a step of pairs becomes two steps, the last one's second only where there is room for it.
#[inline(always)]
fn widen_pairs<S: Simd>(s: S, pairs: &[Line], vectors: usize, lines: &mut [Line]) {
    for (pairs, lines) in pairs.chunks_exact(vectors).zip(lines.chunks_mut(2 * vectors)) {
        for (vector, pair) in pairs.iter().enumerate() {
            for (step, values) in s.split_bf16(s.load_bits(&pair.0)).into_iter().enumerate() {
                if let Some(line) = lines.get_mut(step * vectors + vector) {
                    store_f32(s, values, line);
                }
            }
        }
    }
}

/// See [`Packed::in_order`].
struct PackPanel<'a> {
    packed: &'a Packed,
    panel: usize,
    lines: &'a mut [Line],
    sums: &'a mut [f32],
}

impl Body for PackPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sums = self.packed.panel_in::<S, Int8>(s, self.panel, self.lines).sums;
        self.sums.copy_from_slice(&sums[..self.sums.len()]);
    }
}
