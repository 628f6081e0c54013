//! Matrix products.

mod bytes;
mod column_maxima;
mod epilogue;
mod left;
mod outer;
mod outer_matrices;
mod outer_product;
mod pack;
mod packed;
mod tile;
mod words;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use rayon::prelude::*;

pub(crate) use epilogue::*;
pub(crate) use outer::*;
pub(crate) use pack::*;
pub(crate) use packed::Panel;
pub(crate) use tile::*;
pub(crate) use words::{LARGEST_BYTE, Words, ZERO_POINT};

pub use bytes::{ByteMatrix, SharedBytes};
pub use column_maxima::column_maxima;
pub use epilogue::{Epilogue, Gate, Residual};
pub use outer_product::{column_sums, outer_product};
pub use packed::{Arithmetic, Packed};

use crate::isa::Body;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, MATRIX_ROWS, Simd};
use crate::threads::threads_for;
use crate::{Isa, Matrix};

/// Bytes of the left matrix that a thread works on at a time: five eighths of a common second-level cache, beside which a
/// panel of the right matrix finds room.
const LEFT_BYTES: usize = 640 << 10;

/// The most rows of the left matrix that a thread works on at a time.
const LEFT_ROWS: usize = 528;

/// Panels of the right matrix that go through a block of rows together, if they are no larger than so many bytes.
/// Instructions for whole matrices are so fast that the result's way to memory counts: tiles beside each other are then
/// written one after the other.
const MOST_TOGETHER: usize = 4;
const THIN_PANEL: usize = 64 << 10;

/// `out = epilogue(left · rightᵀ)`: `left` is `[rows, depth]`, `right` a packed `[columns, depth]`, `out` `[rows, columns]`.
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
    let (rows, depth) = (left.rows, left.columns);
    assert_eq!(depth, right.depth, "a left matrix of depth {depth} for a right one of {}", right.depth);
    assert_eq!(right.taps, 1, "these weights were packed for a convolution");
    assert_eq!(out.len(), rows * right.columns, "the result is {rows}×{}", right.columns);
    epilogue.check(rows, right.columns);
    if out.is_empty() {
        return;
    }
    match right.arithmetic.on(isa) {
        Arithmetic::F32 => gemm_as::<F32, A, T>(isa, scratch, &left, right, epilogue, out),
        Arithmetic::Bf16 => gemm_as::<Bf16, A, T>(isa, scratch, &left, right, epilogue, out),
        Arithmetic::Int8 => gemm_as::<Int8, A, T>(isa, scratch, &left, right, epilogue, out),
    }
}

fn gemm_as<P: Words, A: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: &Matrix<A>,
    right: &Packed,
    epilogue: &Epilogue<T>,
    out: &mut [T],
) {
    let (rows, depth) = (left.rows, left.columns);
    let steps = right.steps_in::<P>();
    let row_words = padded_stride(steps);
    let tile_rows = isa.tile_rows(P::GROUP);
    let most_rows = (LEFT_BYTES / (4 * row_words)).clamp(tile_rows, LEFT_ROWS);
    // Blocks of equal height.
    let rows_at_once = rows.div_ceil(rows.div_ceil(most_rows)).next_multiple_of(tile_rows).min(rows);
    let work = Work::new(rows.div_ceil(rows_at_once), right.panels());
    let is_thin = size_of::<Line>() * right.panel_vectors * steps <= THIN_PANEL;
    let together = if tile_rows == MATRIX_ROWS && is_thin { MOST_TOGETHER } else { 1 };
    let out = &Shared::new(out);
    let threads = threads_for(rows * depth * right.columns, P::GROUP);
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        let mut room = scratch.take();
        while let Some(block) = work.block() {
            let first = block * rows_at_once;
            isa.run(Block {
                left,
                right,
                epilogue,
                out,
                rows: first..rows.min(first + rows_at_once),
                panels: &work.blocks[block],
                words: LineWords::new(scratch.take().lines(rows_at_once * row_words / LANES)),
                row_words,
                together,
                room: room.lines(together * right.panel_room::<P>()),
                product: PhantomData::<P>,
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
    left: &'a Matrix<'a, A>,
    right: &'a Packed,
    epilogue: &'a Epilogue<'a, T>,
    out: &'a Shared<'a, T>,
    rows: Range<usize>,
    panels: &'a Panels,
    words: LineWords<'a>,
    row_words: usize,
    /// Panels that go through the rows together.
    together: usize,
    /// For so many panels that are put in order or widened.
    room: &'a mut [Line],
    product: PhantomData<P>,
}

/// The most rows of a block.
const MAX_BLOCK_ROWS: usize = LEFT_ROWS.next_multiple_of(MAX_ROWS);

impl<P: Words, A: Element, T: Element> Body for Block<'_, P, A, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut scales = [1f32; MAX_BLOCK_ROWS];
        let factors = self.right.left_factors();
        self.left.copy::<S, P>(s, factors, self.rows.clone(), &mut self.words, self.row_words, &mut scales);
        let mut tile = [ZERO; TILE_LINES];
        let tile_rows = s.tile_rows(P::GROUP);
        let tiles = self.rows.len().div_ceil(tile_rows);
        let past_caches = goes_past_caches(tile_rows, self.right.columns, self.out);
        while let Some(panels) = self.panels.take() {
            for start in panels.clone().step_by(self.together) {
                let mut together = [const { None }; MOST_TOGETHER];
                let count = self.together.min(panels.end - start);
                let mut room = &mut *self.room;
                for (panel, slot) in (start..start + count).zip(&mut together) {
                    let (own, rest) = room.split_at_mut(self.right.panel_room::<P>());
                    let packed = self.right.panel_in::<S, P>(s, panel, own);
                    let soon = Soon::new(self.right.memory_of(panel + count), tiles, packed.lines.len());
                    *slot = Some((panel, packed, soon));
                    room = rest;
                }
                for (index, first) in (0..self.rows.len()).step_by(tile_rows).enumerate() {
                    let rows = tile_rows.min(self.rows.len() - first);
                    let left = Left {
                        words: &self.words,
                        start: first * self.row_words,
                        row_stride: self.row_words,
                        segments: &[0],
                        steps: self.right.steps_in::<P>(),
                    };
                    for (panel, Panel { lines, vectors, sums }, soon) in together.iter().flatten() {
                        let place = Place {
                            row: self.rows.start + first,
                            row_step: 1,
                            rows,
                            column: panel * self.right.panel_vectors * LANES,
                            past_caches,
                        };
                        prefetch_tile(s, place, self.right, self.epilogue, self.out);
                        let size = (rows, *vectors);
                        let right = Right { lines, soon: soon.of_tile(index) };
                        multiply::<S, P>(s, left, right, size, &mut tile, MAX_VECTORS);
                        let quantised = (self.right.arithmetic == Arithmetic::Int8).then_some(Quantised {
                            scales: Scales::Rows(&scales[first..first + rows]),
                            zero_point: ZERO_POINT,
                            sums,
                        });
                        // SAFETY: every tile of the result belongs to exactly one thread.
                        unsafe {
                            write_tile::<S, P, T>(s, &tile, place, self.right, quantised, self.epilogue, self.out)
                        };
                    }
                }
            }
        }
        if past_caches {
            s.finish_lines();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
