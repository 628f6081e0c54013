//! Packing of a panel of the right operand.

use std::marker::PhantomData;

use super::{Words, padded_stride};
use crate::Matrix;
use crate::isa::Body;
use crate::memory::Line;
use crate::simd::{Element, LANES, Simd};

/// Packs rows `first ..` of `matrix`, the columns of a product, into the lines of one panel, and tells their scales.
/// `words` has room for the words of a whole panel's rows, padded.
pub(crate) struct PackRows<'a, P, T> {
    pub matrix: Matrix<'a, T>,
    pub first: usize,
    pub lines: &'a mut [Line],
    pub scales: &'a mut [f32],
    pub words: &'a mut [u32],
    pub product: PhantomData<P>,
}

impl<P: Words, T: Element> Body for PackRows<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        pack_rows::<S, P, T>(s, &self.matrix, self.first, self.lines, self.scales, self.words);
    }
}

/// See [`PackRows`].
#[inline(always)]
pub(crate) fn pack_rows<S: Simd, P: Words, T: Element>(
    s: S,
    matrix: &Matrix<T>,
    first: usize,
    lines: &mut [Line],
    scales: &mut [f32],
    words: &mut [u32],
) {
    let steps = matrix.columns.div_ceil(P::GROUP);
    if steps == 0 {
        return;
    }
    let vectors = lines.len() / steps;
    let rows = (matrix.rows - first).min(vectors * LANES);
    if matrix.row_stride == 1 && P::LEFT_TO_RIGHT == 0 {
        pack_across::<P, T>(matrix, first, lines, vectors);
        return;
    }
    let stride = padded_stride(steps);
    matrix.copy::<S, P>(s, None, first..first + rows, words, stride, scales);
    // Whole blocks of sixteen rows by sixteen words; rows beyond the last hold what stood in memory, and go unused.
    let flip = P::LEFT_TO_RIGHT;
    for vector in 0..vectors {
        let words = &words[vector * LANES * stride..][..LANES * stride];
        for step in (0..steps).step_by(LANES) {
            let row =
                |i: usize| words[i * stride + step..].first_chunk().map_or(s.splat_bits(0), |row| s.load_bits(row));
            let columns = s.transpose(std::array::from_fn(row));
            // Iterators over the lines would not be inlined here, nor compiled with the instructions.
            for (i, column) in columns.iter().enumerate().take(steps - step) {
                let line = &mut lines[(step + i) * vectors + vector].0;
                s.store_bits(*column, line);
                if flip != 0 {
                    line.iter_mut().for_each(|word| *word ^= flip);
                }
            }
        }
    }
}

/// As [`pack_rows`], of a matrix whose columns stand side by side in memory: what is packed into a line does so too.
#[inline(always)]
fn pack_across<P: Words, T: Element>(matrix: &Matrix<T>, first: usize, lines: &mut [Line], vectors: usize) {
    for (step, lines) in lines.chunks_exact_mut(vectors).enumerate() {
        for (vector, line) in lines.iter_mut().enumerate() {
            let row = first + vector * LANES;
            let len = LANES.min(matrix.rows.saturating_sub(row));
            if len == 0 {
                break;
            }
            let at = |i: usize| &matrix.data[row + (step * P::GROUP + i) * matrix.column_stride..][..len];
            line.0 = match P::GROUP.min(matrix.columns - step * P::GROUP) {
                1 => P::across(&[at(0)]),
                _ => P::across(&[at(0), at(1)]),
            };
        }
    }
}
