//! Matrix products.

mod epilogue;
mod outer;
mod outer_product;
mod pack;
mod packed;
mod tile;
mod words;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use epilogue::*;
pub(crate) use outer::*;
pub(crate) use pack::*;
pub(crate) use tile::*;
pub(crate) use words::Words;

pub use epilogue::{Epilogue, Gate, Residual};
pub use outer_product::{column_sums, outer_product};
pub use packed::{Arithmetic, Packed};

use crate::isa::Body;
use crate::memory::{LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd};
use crate::{Isa, Matrix};

/// Bytes of the left matrix that a thread works on at a time: half of a common second-level cache, beside which a panel
/// of the right matrix finds room.
const LEFT_BYTES: usize = 512 << 10;

/// The most rows of the left matrix that a thread works on at a time.
const LEFT_TILES: usize = 8;

/// `out = epilogue(left · rightᵀ)`: `left` is `[rows, depth]`, `right` a packed `[columns, depth]`, `out` `[rows,
/// columns]`.
///
/// # Panics
/// The shapes do not belong together.
pub fn gemm<A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: Matrix<A>,
    right: &Packed,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    assert_eq!(left.columns, right.depth, "a left matrix of depth {} for a right one of {}", left.columns, right.depth);
    assert_eq!(right.taps, 1, "these weights were packed for a convolution");
    assert_eq!(out.len(), left.rows * right.columns, "the result is {}×{}", left.rows, right.columns);
    epilogue.check(left.rows, right.columns);
    if out.is_empty() {
        return;
    }
    match right.arithmetic {
        Arithmetic::F32 => gemm_as::<F32, A, T>(isa, scratch, left, right, epilogue, out),
        Arithmetic::Bf16 => gemm_as::<Bf16, A, T>(isa, scratch, left, right, epilogue, out),
        Arithmetic::Int8 => gemm_as::<Int8, A, T>(isa, scratch, left, right, epilogue, out),
    }
}

/// How a product is cut into pieces of work, each for one thread. It does not depend on the number of threads.
struct Cut {
    rows_at_once: usize,
    panels_at_once: usize,
    row_blocks: usize,
    panel_blocks: usize,
}

impl Cut {
    fn new(isa: Isa, rows: usize, panels: usize, row_words: usize) -> Self {
        let tile_rows = isa.tile_rows();
        let tiles = (LEFT_BYTES / (4 * row_words * tile_rows)).clamp(1, LEFT_TILES).min(rows.div_ceil(tile_rows));
        let row_blocks = rows.div_ceil(tiles * tile_rows);
        // Enough pieces for threads that do not finish together, none so small that copying its rows shows.
        let panel_blocks = 32usize.div_ceil(row_blocks).min(panels.div_ceil(4));
        let panels_at_once = panels.div_ceil(panel_blocks);
        Self {
            rows_at_once: tiles * tile_rows,
            panels_at_once,
            row_blocks,
            panel_blocks: panels.div_ceil(panels_at_once),
        }
    }
}

fn gemm_as<P: Words, A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: Matrix<A>,
    right: &Packed,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    let row_words = padded_stride(right.steps);
    let (rows, panels) = (left.rows, right.panels());
    let cut = Cut::new(isa, rows, panels, row_words);
    let out = &Shared::new(out);
    let pieces = (0..cut.row_blocks * cut.panel_blocks).into_par_iter().with_max_len(1);
    pieces.for_each_init(
        || scratch.take(),
        |buffer, piece| {
            let first_row = piece / cut.panel_blocks * cut.rows_at_once;
            let first_panel = piece % cut.panel_blocks * cut.panels_at_once;
            isa.run(Piece::<P, A, T> {
                left,
                right,
                epilogue,
                out,
                rows: first_row..rows.min(first_row + cut.rows_at_once),
                panels: first_panel..panels.min(first_panel + cut.panels_at_once),
                words: LineWords::new(buffer.lines(cut.rows_at_once * row_words / LANES)),
                row_words,
                product: std::marker::PhantomData,
            });
        },
    );
}

/// Words from one row to the next that are at least `words` and an odd number of lines, so that equal places of the rows
/// of a tile fall into different sets of the cache.
pub(crate) fn padded_stride(words: usize) -> usize {
    (words.div_ceil(LANES) | 1) * LANES
}

/// Some rows of a product by some panels.
struct Piece<'a, P, A, T> {
    left: Matrix<'a, A>,
    right: &'a Packed,
    epilogue: &'a Epilogue<'a, T>,
    out: &'a Shared<'a, T>,
    rows: Range<usize>,
    panels: Range<usize>,
    words: LineWords<'a>,
    row_words: usize,
    product: std::marker::PhantomData<P>,
}

/// The most rows of a piece.
const MAX_PIECE_ROWS: usize = LEFT_TILES * MAX_ROWS;

impl<P: Words, A: Element, T: Element> Body for Piece<'_, P, A, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut scales = [1f32; MAX_PIECE_ROWS];
        copy_rows::<S, P, A>(s, &self.left, self.rows.clone(), &mut self.words, self.row_words, &mut scales);
        let mut tile = [ZERO; TILE_LINES];
        for panel in self.panels.clone() {
            let (lines, vectors) = self.right.panel(panel);
            let next = if panel + 1 < self.panels.end { self.right.panel(panel + 1).0 } else { &[] };
            for first in (0..self.rows.len()).step_by(S::TILE_ROWS) {
                let rows = S::TILE_ROWS.min(self.rows.len() - first);
                let left = Left {
                    words: &self.words,
                    start: first * self.row_words,
                    row_stride: self.row_words,
                    segments: &[0],
                    steps: self.right.steps,
                };
                let place = Place {
                    row: self.rows.start + first,
                    row_step: 1,
                    rows,
                    column: panel * self.right.panel_vectors * LANES,
                };
                prefetch_tile(s, place, self.right, self.out);
                let soon = if first + rows == self.rows.len() { next } else { &[] };
                multiply::<S, P>(s, left, Right { lines, soon }, (rows, vectors), &mut tile, MAX_VECTORS);
                let row_scales = (self.right.arithmetic == Arithmetic::Int8).then(|| &scales[first..first + rows]);
                // SAFETY: every tile of the result belongs to exactly one piece.
                unsafe { write_tile(s, &tile, place, self.right, row_scales, self.epilogue, self.out) };
            }
        }
    }
}

/// Copies rows of the left matrix to where a tile reads them, converted to what the product is made of.
#[inline(always)]
fn copy_rows<S: Simd, P: Words, A: Element>(
    s: S,
    left: &Matrix<A>,
    rows: Range<usize>,
    words: &mut [u32],
    row_words: usize,
    scales: &mut [f32],
) {
    if left.column_stride == 1 {
        for ((row, words), scale) in rows.zip(words.chunks_exact_mut(row_words)).zip(scales) {
            let row = &left.data[row * left.row_stride..][..left.columns];
            *scale = P::left_scale(s, row);
            P::left_row(s, row, *scale, words);
        }
        return;
    }
    // A transposed matrix: sixteen elements along the depth at a time, of all rows, so that memory is read in order.
    let whole_row = |row: usize| (0..left.columns).map(move |column| left.at(row, column).to_f32());
    if P::GROUP == 4 {
        for (scale, row) in scales.iter_mut().zip(rows.clone()) {
            let largest = whole_row(row).fold(0f32, |largest, x| largest.max(x.abs()));
            *scale = P::left_scale(s, &[largest]);
        }
    }
    for start in (0..left.columns).step_by(LANES) {
        let len = LANES.min(left.columns - start);
        for (i, row) in rows.clone().enumerate() {
            let mut xs = [0f32; LANES];
            for (column, x) in xs[..len].iter_mut().enumerate() {
                *x = left.at(row, start + column).to_f32();
            }
            let from = i * row_words + start / P::GROUP;
            P::left_row(s, &xs[..len], scales[i], &mut words[from..from + len.div_ceil(P::GROUP)]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
