use std::ops::Range;

use super::{Epilogue, Finish, Int8, LeftRows, Packed, Product, Words, gemm_then};
use crate::Matrix;
use crate::isa::{Body, Isa};
use crate::memory::{Scratch, Shared, line_floats_mut};
use crate::simd::{Element, LANES, Simd};
use crate::sweep::for_each_vector;

/// Activations in 8 bits, as the products of [`Arithmetic::Int8`](crate::Arithmetic::Int8) take them: of each row unsigned
/// bytes around 128, and a scale, its largest absolute value over 127.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantisedRows {
    rows: usize,
    columns: usize,
    /// Four bytes in a word, the first in the lowest bits; each row begins a word.
    words: Vec<u32>,
    scales: Vec<f32>,
}

impl QuantisedRows {
    /// Without rows; memory is taken when something is first written to it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Becomes `matrix`, quantised.
    ///
    /// # Panics
    /// A row's elements do not stand side by side.
    pub fn quantise<T: Element>(&mut self, isa: Isa, matrix: Matrix<T>) {
        assert_eq!(matrix.column_stride, 1, "a row's elements stand side by side");
        let writer = self.writer(matrix.rows, matrix.columns);
        isa.run(Quantise { matrix, writer });
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// What each row is multiplied with.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    fn row_words(&self) -> usize {
        self.columns.div_ceil(Int8::GROUP)
    }

    /// Makes room for another shape.
    fn writer(&mut self, rows: usize, columns: usize) -> Writer<'_> {
        (self.rows, self.columns) = (rows, columns);
        let row_words = self.row_words();
        self.words.resize(rows * row_words, 0);
        self.scales.resize(rows, 0.0);
        Writer { words: Shared::new(&mut self.words), scales: Shared::new(&mut self.scales), row_words }
    }
}

impl LeftRows for &QuantisedRows {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    #[inline(always)]
    fn copy<S: Simd, P: Words>(
        &self,
        _: S,
        factors: Option<&[f32]>,
        rows: Range<usize>,
        words: &mut [u32],
        row_words: usize,
        scales: &mut [f32],
    ) {
        assert_eq!(P::GROUP, Int8::GROUP, "rows in 8 bits are for products in int8");
        assert!(factors.is_none(), "what is rounded already cannot be multiplied first");
        let from = self.words.chunks_exact(self.row_words().max(1)).skip(rows.start);
        for (row, words) in from.zip(words.chunks_exact_mut(row_words)).take(rows.len()) {
            words[..row.len()].copy_from_slice(row);
        }
        scales[..rows.len()].copy_from_slice(&self.scales[rows]);
    }
}

/// Rows on their way into a [`QuantisedRows`].
struct Writer<'a> {
    words: Shared<'a, u32>,
    scales: Shared<'a, f32>,
    row_words: usize,
}

impl Writer<'_> {
    /// # Safety
    /// No other thread may write this row meanwhile.
    #[inline(always)]
    unsafe fn write<S: Simd, T: Element>(&self, s: S, row: usize, xs: &[T]) {
        let scale = Int8::left_scale(s, xs);
        // SAFETY: this row's words and scale are this thread's, as the caller promises.
        let (words, scales) =
            unsafe { (self.words.part(row * self.row_words, self.row_words), self.scales.part(row, 1)) };
        Int8::left_row(s, xs, scale, words);
        scales[0] = scale;
    }
}

struct Quantise<'a, T> {
    matrix: Matrix<'a, T>,
    writer: Writer<'a>,
}

impl<T: Element> Body for Quantise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Matrix { data, rows, columns, row_stride, .. } = self.matrix;
        for row in 0..rows {
            // SAFETY: no other thread writes these rows.
            unsafe { self.writer.write(s, row, &data[row * row_stride..][..columns]) };
        }
    }
}

/// The largest absolute value of each column, by which those are found that 8 bits beside the others would not do for.
///
/// # Panics
/// A row's elements do not stand side by side.
pub fn column_maxima<T: Element>(isa: Isa, matrix: Matrix<T>) -> Vec<f32> {
    assert_eq!(matrix.column_stride, 1, "a row's elements stand side by side");
    let mut maxima = vec![0f32; matrix.columns];
    isa.run(Maxima { matrix, maxima: &mut maxima });
    maxima
}

struct Maxima<'a, T> {
    matrix: Matrix<'a, T>,
    maxima: &'a mut [f32],
}

impl<T: Element> Body for Maxima<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Matrix { data, rows, columns, row_stride, .. } = self.matrix;
        for row in 0..rows {
            let xs = &data[row * row_stride..][..columns];
            for_each_vector!(columns, |start, vector| {
                let x = vector::load(s, xs, start);
                let largest = s.max(vector::load(s, self.maxima, start), s.max(x, s.sub(s.splat(0.0), x)));
                vector::store(s, largest, self.maxima, start);
            });
        }
    }
}

/// As [`gemm`](crate::gemm), with the result in 8 bits, for a product in int8 to take: each row is quantised by its largest
/// value as soon as it is complete.
///
/// # Panics
/// As [`gemm`](crate::gemm).
pub fn gemm_quantised(
    isa: Isa,
    scratch: &Scratch,
    left: impl LeftRows,
    right: &Packed,
    epilogue: &Epilogue<f32>,
    out: &mut QuantisedRows,
) {
    let (rows, columns) = (left.shape().0, right.columns);
    let mut buffer = scratch.take();
    let values = &mut line_floats_mut(buffer.lines((rows * columns).div_ceil(LANES)))[..rows * columns];
    let finish = QuantiseRows { writer: out.writer(rows, columns), columns };
    gemm_then(isa, scratch, &left, right, epilogue, values, &finish);
}

struct QuantiseRows<'a> {
    writer: Writer<'a>,
    columns: usize,
}

impl Finish<f32> for QuantiseRows<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, rows: Range<usize>, out: &Shared<f32>) {
        for row in rows {
            // SAFETY: the rows are complete, so that no thread writes to them any more, and this thread alone has them to
            // finish.
            unsafe { self.writer.write(s, row, out.part(row * self.columns, self.columns)) };
        }
    }
}
