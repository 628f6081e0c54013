//! The left operand of a product.

use std::ops::Range;

use super::Words;
use crate::Matrix;
use crate::simd::{Element, LANES, Simd};

/// How many rows ahead of its use a short row is asked for.
const ROWS_AHEAD: usize = 8;

impl<A: Element> Matrix<'_, A> {
    /// Asks for a row that is part of a much longer one, such as a head of a token: a processor does not foresee the way from one to
    /// the next. The row may lie beyond the last.
    #[inline(always)]
    fn prefetch_short_row<S: Simd>(&self, s: S, row: usize) {
        if 4 * self.columns > self.row_stride {
            return;
        }
        let start = self.data.as_ptr().wrapping_add(row * self.row_stride);
        for column in (0..self.columns).step_by(64 / size_of::<A>()) {
            s.prefetch(start.wrapping_add(column));
        }
        s.prefetch(start.wrapping_add(self.columns.saturating_sub(1)));
    }

    /// Copies `rows` to where tiles of a product read them, as the words that it is made of: to `words`, each row `row_words`
    /// after the one before, with a scale for each. `factors` multiply the columns first, if the product is in int8.
    #[inline(always)]
    pub(super) fn copy<S: Simd, P: Words>(
        &self,
        s: S,
        factors: Option<&[f32]>,
        rows: Range<usize>,
        words: &mut [u32],
        row_words: usize,
        scales: &mut [f32],
    ) {
        if let Some(factors) = factors {
            let mut multiplied = vec![0f32; self.columns];
            for ((row, words), scale) in rows.zip(words.chunks_exact_mut(row_words)).zip(scales) {
                for (column, (x, factor)) in multiplied.iter_mut().zip(factors).enumerate() {
                    *x = self.at(row, column).to_f32() * factor;
                }
                *scale = P::left_scale(s, &multiplied);
                P::left_row(s, &multiplied, *scale, words);
            }
            return;
        }
        if self.column_stride == 1 {
            for ((row, words), scale) in rows.zip(words.chunks_exact_mut(row_words)).zip(scales) {
                self.prefetch_short_row(s, row + ROWS_AHEAD);
                let row = &self.data[row * self.row_stride..][..self.columns];
                *scale = P::left_scale(s, row);
                P::left_row(s, row, *scale, words);
            }
            return;
        }
        // A transposed matrix: sixteen elements along the depth at a time, of all rows, so that memory is read in order.
        let whole_row = |row: usize| (0..self.columns).map(move |column| self.at(row, column).to_f32());
        if P::GROUP == 4 {
            for (scale, row) in scales.iter_mut().zip(rows.clone()) {
                let largest = whole_row(row).fold(0f32, |largest, x| largest.max(x.abs()));
                *scale = P::left_scale(s, &[largest]);
            }
        }
        for start in (0..self.columns).step_by(LANES) {
            let len = LANES.min(self.columns - start);
            for (i, row) in rows.clone().enumerate() {
                let mut xs = [0f32; LANES];
                for (column, x) in xs[..len].iter_mut().enumerate() {
                    *x = self.at(row, start + column).to_f32();
                }
                let from = i * row_words + start / P::GROUP;
                P::left_row(s, &xs[..len], scales[i], &mut words[from..from + len.div_ceil(P::GROUP)]);
            }
        }
    }
}
