//! The innermost loop of products over rows, `leftᵀ · right`: the gradients of weights, of keys and of values. A step
//! adds the outer product of a row of each operand; both are read where they stand, so that neither is transposed or
//! packed.

use super::{Product, load_f32, store_f32};
use crate::memory::Line;
use crate::simd::{LANES, Simd};

/// An operand: rows of words, in runs whose rows stand at equal distances. A word is an f32, or the bf16 of two rows.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub words: &'a [u32],
    /// Where the part that is multiplied starts, from the start of a run.
    pub start: usize,
    /// From one row of a run to the next.
    pub stride: usize,
}

/// Where a run of rows starts in the left operand and in the right one.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub left: usize,
    pub right: usize,
}

/// Adds to `tile` the product over all `runs` of `steps` rows each: `columns` numbers of the left rows by `vectors`
/// vectors of the right ones. The rows of the tile start `tile_stride` lines after each other. `columns` is 1 to
/// [`Simd::TILE_ROWS`], `vectors` 1 to [`Simd::TILE_VECTORS`].
#[inline(always)]
pub(crate) fn add_outer_products<P: Product<Sum<S> = S::F32>, S: Simd>(
    s: S,
    (left, right): (Rows, Rows),
    (runs, steps): (&[Run], usize),
    (columns, vectors): (usize, usize),
    tile: &mut [Line],
    tile_stride: usize,
) {
    assert!(1 <= columns && columns <= S::TILE_ROWS && 1 <= vectors && vectors <= S::TILE_VECTORS && steps > 0);
    assert!(vectors <= tile_stride && (columns - 1) * tile_stride + vectors <= tile.len());
    let left_end = left.start + (steps - 1) * left.stride + columns;
    let right_end = right.start + (steps - 1) * right.stride + vectors * LANES;
    let within = |run: &Run| run.left + left_end <= left.words.len() && run.right + right_end <= right.words.len();
    assert!(runs.iter().all(within));
    macro_rules! tiles {
        ($($columns:literal)+) => {
            match (columns, vectors) {
                $(
                    // SAFETY: the assertions above are what `add_columns` asks for.
                    ($columns, 1) if S::TILE_ROWS >= $columns => unsafe {
                        add_columns::<P, S, $columns, 1>(s, (left, right), (runs, steps), tile, tile_stride)
                    },
                    // SAFETY: as above.
                    ($columns, 2) if S::TILE_ROWS >= $columns && S::TILE_VECTORS >= 2 => unsafe {
                        add_columns::<P, S, $columns, 2>(s, (left, right), (runs, steps), tile, tile_stride)
                    },
                )+
                _ => unreachable!("a tile has at most {} rows and {} vectors", S::TILE_ROWS, S::TILE_VECTORS),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// `steps` rows of every run must lie within the words of each operand, with `C` words of the left and `V` vectors of the
/// right; `tile` must hold `V` lines in each of `C` rows.
#[inline(always)]
unsafe fn add_columns<P: Product<Sum<S> = S::F32>, S: Simd, const C: usize, const V: usize>(
    s: S,
    (left, right): (Rows, Rows),
    (runs, steps): (&[Run], usize),
    tile: &mut [Line],
    tile_stride: usize,
) {
    // From zero, and added to the tile in the end: sums of sums lose fewer digits than one long sum.
    let mut sums = [[P::zero(s); V]; C];
    for run in runs {
        // SAFETY: the caller promises that what is read lies within the words.
        unsafe {
            let mut factors = left.words.as_ptr().add(run.left + left.start);
            let mut row = right.words.as_ptr().add(run.right + right.start);
            for _ in 0..steps {
                let mut vectors = [s.splat_bits(0); V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = s.load_bits(&*row.add(v * LANES).cast());
                }
                for (c, sums) in sums.iter_mut().enumerate() {
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = P::multiply_add(s, *sum, *factors.add(c), vector);
                    }
                }
                // What comes after the last row is never read.
                factors = factors.wrapping_add(left.stride);
                row = row.wrapping_add(right.stride);
            }
        }
    }
    let mut row = tile.as_mut_ptr();
    for sums in &sums {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: the caller promises that the tile has these lines.
            let line = unsafe { &mut *row.add(v) };
            let total = s.add(load_f32(s, line), *sum);
            store_f32(s, total, line);
        }
        row = row.wrapping_add(tile_stride);
    }
}
