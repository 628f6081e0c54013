//! Rows of a head on their way into and out of working memory.

use std::ops::Range;

use crate::Matrix;
use crate::gemm::{F32, Words, load_f32};
use crate::isa::Body;
use crate::memory::{Line, LineWords, Shared};
use crate::simd::{Element, LANES, Simd, store_up_to};

/// Copies rows of a matrix as f32, with zeros to the end of their last line; they start `stride` lines after each other.
pub(super) struct CopyRows<'a, T> {
    pub matrix: Matrix<'a, T>,
    pub rows: Range<usize>,
    pub lines: &'a mut [Line],
    pub stride: usize,
}

impl<T: Element> Body for CopyRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, lines) in self.rows.zip(self.lines.chunks_exact_mut(self.stride)) {
            let row = &self.matrix.data[row * self.matrix.row_stride..][..self.matrix.columns];
            F32::left_row(s, row, 1.0, &mut LineWords::new(lines));
        }
    }
}

/// Writes rows of `size`, `stride` lines after each other, to a head's part of `out`, rows of `width`; the first of them
/// to `start`.
pub(super) struct StoreRows<'a, T> {
    pub lines: &'a [Line],
    pub stride: usize,
    pub out: &'a Shared<'a, T>,
    pub start: usize,
    pub size: usize,
    pub width: usize,
}

impl<T: Element> Body for StoreRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, lines) in self.lines.chunks_exact(self.stride).enumerate() {
            // SAFETY: a head's part of a gradient belongs to that head's task alone.
            let out = unsafe { self.out.part(self.start + row * self.width, self.size) };
            for (line, out) in lines.iter().zip(out.chunks_mut(LANES)) {
                store_up_to(s, load_f32(s, line), out);
            }
        }
    }
}
