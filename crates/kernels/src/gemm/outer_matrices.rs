//! Products over rows by instructions for whole matrices, in bf16. They take the left operand turned.

use std::ops::Range;

use rayon::prelude::*;

use super::outer::Rows;
use super::outer_product::{OuterProduct, write_sums};
use super::{Bf16, Left, MAX_VECTORS, Product, TILE_LINES, load_f32, multiply_rows, padded_stride, store_f32};
use crate::isa::{Body, Isa};
use crate::matrix::Matrix;
use crate::memory::{Buffer, Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, MATRIX_ROWS, Simd};

/// `leftᵀ · right` by instructions for whole matrices, which take the left operand transposed.
pub(super) fn multiply<A: Element, B: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: Matrix<A>,
    right: Matrix<B>,
    out: &mut [f32],
) {
    let (mut left_copy, mut right_copy, mut turned) = (scratch.take(), scratch.take(), scratch.take());
    let (left_words, left_stride) = words(isa, left, &mut left_copy);
    let (right_words, right_stride) = words(isa, right, &mut right_copy);
    let (groups, m, n) = (left.rows.div_ceil(Bf16::GROUP), left.columns, right.columns);
    let turned_stride = padded_stride(groups);
    let turned = turned.lines(left_stride * turned_stride / LANES);
    turned.par_chunks_mut(turned_stride).enumerate().for_each(|(part, lines)| {
        let rows = Rows { words: left_words, start: part * LANES, stride: left_stride };
        isa.run(Turn { rows, groups, stride: turned_stride, words: LineWords::new(lines) });
    });
    let turned = crate::memory::line_words(turned);
    let across = n.div_ceil(MATRIX_BLOCK);
    let out = &Shared::new(out);
    (0..m.div_ceil(MATRIX_BLOCK) * across).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, block| {
            let (top, first) = (block / across * MATRIX_BLOCK, block % across * MATRIX_BLOCK);
            isa.run(MatrixBlock {
                left: (turned, turned_stride),
                right: Rows { words: right_words, start: 0, stride: right_stride },
                groups,
                sums: buffer.lines(MATRIX_BLOCK * MATRIX_BLOCK / LANES),
                top: top..m.min(top + MATRIX_BLOCK),
                across: first..n.min(first + MATRIX_BLOCK),
                width: n,
                out,
            });
        },
    );
}

/// The matrix as words of two rows in `buffer`, and the distance of those.
fn words<'a, T: Element>(isa: Isa, matrix: Matrix<T>, buffer: &'a mut Buffer) -> (&'a [u32], usize) {
    let stride = matrix.columns.next_multiple_of(LANES);
    let lines = buffer.lines(matrix.rows.div_ceil(Bf16::GROUP) * stride / LANES);
    lines.par_chunks_mut(stride / LANES).enumerate().for_each(|(group, lines)| {
        let row = |row: usize| &matrix.data[row * matrix.row_stride..][..matrix.columns];
        let (first, second) = (group * Bf16::GROUP, group * Bf16::GROUP + 1);
        let second = if second < matrix.rows { row(second) } else { &[] };
        isa.run(CopyRows { first: row(first), second, lines });
    });
    (crate::memory::line_words(lines), stride)
}

/// Writes the words of two rows, of which the second may not be there.
struct CopyRows<'a, T> {
    first: &'a [T],
    second: &'a [T],
    lines: &'a mut [Line],
}

impl<T: Element> Body for CopyRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, line) in self.lines.iter_mut().enumerate() {
            let part = |row: &'_ [T]| -> Range<usize> { (i * LANES).min(row.len())..row.len().min((i + 1) * LANES) };
            let rows = [self.first, self.second].map(|row| &row[part(row)]);
            s.store_bits(Bf16::words(s, rows), &mut line.0);
        }
    }
}

/// Rows and columns of the result that a thread works on at a time, and groups of rows of the operands: of few, a tile takes longer
/// to be added to the sums than to be computed.
const MATRIX_BLOCK: usize = 128;
const MATRIX_ROWS_AT_ONCE: usize = 2048;

/// Makes sixteen columns of words into rows, `stride` words after each other.
struct Turn<'a> {
    rows: Rows<'a>,
    groups: usize,
    stride: usize,
    words: LineWords<'a>,
}

impl Body for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Rows { words, start, stride } = self.rows;
        for first in (0..self.groups).step_by(LANES) {
            let row = |i: usize| match first + i {
                group if group < self.groups => {
                    words[group * stride + start..].first_chunk().map_or(s.splat_bits(0), |row| s.load_bits(row))
                }
                _ => s.splat_bits(0),
            };
            let columns = s.transpose(std::array::from_fn(row));
            for (i, column) in columns.iter().enumerate() {
                if let Some(to) = self.words[i * self.stride + first..].first_chunk_mut() {
                    s.store_bits(*column, to);
                }
            }
        }
    }
}

/// A block of the result, by instructions for whole matrices.
struct MatrixBlock<'a> {
    /// Transposed, and the distance of its rows.
    left: (&'a [u32], usize),
    right: Rows<'a>,
    groups: usize,
    sums: &'a mut [Line],
    top: Range<usize>,
    across: Range<usize>,
    width: usize,
    out: &'a Shared<'a, f32>,
}

impl Body for MatrixBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const SUM_LINES: usize = MATRIX_BLOCK / LANES;
        let vectors = self.across.len().div_ceil(LANES);
        let mut tile = [ZERO; TILE_LINES];
        for group in (0..self.groups).step_by(MATRIX_ROWS_AT_ONCE) {
            let steps = MATRIX_ROWS_AT_ONCE.min(self.groups - group);
            for vector in (0..vectors).step_by(MAX_VECTORS) {
                let wide = MAX_VECTORS.min(vectors - vector);
                let right =
                    Rows { start: group * self.right.stride + self.across.start + vector * LANES, ..self.right };
                for column in (0..self.top.len()).step_by(MATRIX_ROWS) {
                    let high = MATRIX_ROWS.min(self.top.len() - column);
                    let (words, row_stride) = self.left;
                    let start = (self.top.start + column) * row_stride + group;
                    let left = Left { words, start, row_stride, segments: &[0], steps };
                    multiply_rows(s, left, right, (high, wide), &mut tile);
                    for (row, lines) in tile.chunks_exact(MAX_VECTORS).enumerate().take(high) {
                        for (v, line) in lines.iter().enumerate().take(wide) {
                            let sum = &mut self.sums[(column + row) * SUM_LINES + vector + v];
                            let before = if group == 0 { s.splat(0.0) } else { load_f32(s, sum) };
                            store_f32(s, s.add(before, load_f32(s, line)), sum);
                        }
                    }
                }
            }
        }
        // SAFETY: this part of the result is this block's alone.
        unsafe { write_sums(s, self.sums, SUM_LINES, self.top, self.across, self.width, self.out) };
    }
}
