//! Matrix products.

mod epilogue;
mod outer;
mod outer_product;
mod pack;
mod packed;
mod tile;
mod words;

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

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
const LEFT_TILES: usize = 16;

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

fn gemm_as<P: Words, A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: Matrix<A>,
    right: &Packed,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    let row_words = padded_stride(right.steps);
    let tiles = (LEFT_BYTES / (4 * row_words * isa.tile_rows())).clamp(1, LEFT_TILES);
    let rows_at_once = left.rows.min(tiles * isa.tile_rows());
    let work = Work::new(left.rows.div_ceil(rows_at_once), right.panels());
    let out = &Shared::new(out);
    (0..rayon::current_num_threads()).into_par_iter().with_max_len(1).for_each(|_| {
        while let Some(block) = work.block() {
            let first = block * rows_at_once;
            isa.run(Block::<P, A, T> {
                left,
                right,
                epilogue,
                out,
                rows: first..left.rows.min(first + rows_at_once),
                panels: &work.blocks[block],
                words: LineWords::new(scratch.take().lines(rows_at_once * row_words / LANES)),
                row_words,
                product: std::marker::PhantomData,
            });
        }
    });
}

/// What is left to do of a product: blocks of rows, and of each the panels. A thread begins a block and goes through its
/// panels; when all are begun, it joins in where most is left, so that threads end together.
struct Work {
    next: AtomicUsize,
    blocks: Vec<Panels>,
}

impl Work {
    fn new(blocks: usize, panels: usize) -> Self {
        Self { next: AtomicUsize::new(0), blocks: (0..blocks).map(|_| Panels::new(panels)).collect() }
    }

    /// A block of which some panels are left, unless other threads take them meanwhile.
    fn block(&self) -> Option<usize> {
        let next = self.next.fetch_add(1, Relaxed);
        if next < self.blocks.len() {
            return Some(next);
        }
        let left = |block: &usize| self.blocks[*block].left.load(Relaxed);
        (0..self.blocks.len()).max_by_key(left).filter(|block| left(block) > 0)
    }
}

/// The panels of a block of rows.
struct Panels {
    all: usize,
    /// How many of them, the last ones, no thread has taken.
    left: AtomicUsize,
}

impl Panels {
    fn new(all: usize) -> Self {
        Self { all, left: AtomicUsize::new(all) }
    }

    /// Takes the next few: fewer towards the end.
    fn take(&self) -> Option<Range<usize>> {
        let after = |left: usize| left - left.div_ceil(8);
        let left = self.left.fetch_update(Relaxed, Relaxed, |left| (left > 0).then(|| after(left))).ok()?;
        Some(self.all - left..self.all - after(left))
    }
}

/// Words from one row to the next that are at least `words` and an odd number of lines, so that equal places of the rows
/// of a tile fall into different sets of the cache.
pub(crate) fn padded_stride(words: usize) -> usize {
    (words.div_ceil(LANES) | 1) * LANES
}

/// Some rows of a product.
struct Block<'a, P, A, T> {
    left: Matrix<'a, A>,
    right: &'a Packed,
    epilogue: &'a Epilogue<'a, T>,
    out: &'a Shared<'a, T>,
    rows: Range<usize>,
    panels: &'a Panels,
    words: LineWords<'a>,
    row_words: usize,
    product: std::marker::PhantomData<P>,
}

/// The most rows of a block.
const MAX_BLOCK_ROWS: usize = LEFT_TILES * MAX_ROWS;

impl<P: Words, A: Element, T: Element> Body for Block<'_, P, A, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut scales = [1f32; MAX_BLOCK_ROWS];
        copy_rows::<S, P, A>(s, &self.left, self.rows.clone(), &mut self.words, self.row_words, &mut scales);
        let mut tile = [ZERO; TILE_LINES];
        while let Some(panels) = self.panels.take() {
            for panel in panels {
                let (lines, vectors) = self.right.panel(panel);
                let tiles = self.rows.len().div_ceil(S::TILE_ROWS);
                let mut soon = Soon::new(self.right.lines_after(panel), tiles, lines.len());
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
                    prefetch_tile(s, place, self.right, self.epilogue, self.out);
                    multiply::<S, P>(s, left, Right { lines, soon }, (rows, vectors), &mut tile, MAX_VECTORS);
                    let row_scales = (self.right.arithmetic == Arithmetic::Int8).then(|| &scales[first..first + rows]);
                    // SAFETY: every tile of the result belongs to exactly one thread.
                    unsafe { write_tile(s, &tile, place, self.right, row_scales, self.epilogue, self.out) };
                    soon.advance();
                }
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
