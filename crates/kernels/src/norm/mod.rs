//! Normalisations and what they share: sums along a row, and sums over rows.
//!
//! Statistics are in f32 within a piece of fixed size and in f64 across pieces, in the order of the pieces: the result
//! does not depend on the number of threads.

mod group_norm;
mod layer_norm;
mod rms_norm;
mod softmax;

pub use group_norm::{
    GroupNorm, GroupStatistics, group_norm, group_norm_backward, group_norm_coefficients, group_norm_coefficients_of,
    group_norm_statistics,
};
pub use layer_norm::{Affine, layer_norm, layer_norm_backward};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use softmax::{softmax, softmax_backward};

use rayon::prelude::*;

use crate::simd::{Element, LANES, Simd};
use crate::sweep::for_each_vector;

/// Elements that a thread takes at once: enough to be worth waking one that sleeps, few enough that threads end together.
pub(crate) const ELEMENTS_PER_TASK: usize = 1 << 16;

/// Rows of `width` that a thread takes at once where each is computed for itself.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width).max(1)
}

/// Rows of `width` that are summed in f32 before the sums are added up in f64: not so many that f32 loses digits.
fn rows_per_sum(width: usize) -> usize {
    (ELEMENTS_PER_TASK / width).clamp(1, 256)
}

/// Panics unless `len` is a number of whole rows of `width`; gives that number.
#[track_caller]
pub(crate) fn whole_rows(len: usize, width: usize) -> usize {
    assert!(width > 0, "rows must have a width");
    assert!(len.is_multiple_of(width), "{len} elements are no whole number of rows of {width}");
    len / width
}

/// Sums over rows that come of a sweep which also writes something for every row.
///
/// `out` is `[groups, rows, width]`. `sweep(first_row, out, sums)` is called for pieces of it, none of them across two
/// groups: it writes `out`, the rows from `first_row` (of all) on, and adds to `sums`, `[N, width]`, which starts as
/// zeros. `totals[n]` becomes the sums of each group, `[groups, width]`.
pub(crate) fn sum_over_rows<T: Element, const N: usize>(
    width: usize,
    rows: usize,
    out: &mut [T],
    totals: [&mut [f32]; N],
    sweep: impl Fn(usize, &mut [T], &mut [f32]) + Sync,
) {
    if out.is_empty() {
        totals.into_iter().for_each(|totals| totals.fill(0.0));
        return;
    }
    let piece = rows_per_sum(width);
    let pieces = rows.div_ceil(piece);
    let groups = out.len() / (rows * width);
    let mut sums = vec![0f32; groups * pieces * N * width];
    out.par_chunks_mut(rows * width).zip(sums.par_chunks_mut(pieces * N * width)).enumerate().for_each(
        |(group, (out, sums))| {
            out.par_chunks_mut(piece * width)
                .zip(sums.par_chunks_mut(N * width))
                .enumerate()
                .for_each(|(i, (out, sums))| sweep(group * rows + i * piece, out, sums));
        },
    );
    for (n, totals) in totals.into_iter().enumerate() {
        assert_eq!(totals.len(), groups * width, "sums over rows need one row for each group");
        for (totals, sums) in totals.chunks_exact_mut(width).zip(sums.chunks_exact(pieces * N * width)) {
            const COLUMNS: usize = 256;
            totals.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, totals)| {
                let mut wide = [0f64; COLUMNS];
                for sums in sums.chunks_exact(N * width) {
                    for (wide, sum) in wide.iter_mut().zip(&sums[n * width + i * COLUMNS..(n + 1) * width]) {
                        *wide += f64::from(*sum);
                    }
                }
                for (total, wide) in totals.iter_mut().zip(wide) {
                    *total = wide as f32;
                }
            });
        }
    }
}

/// Vectors that are summed side by side, since one addition waits for the one before it.
const CHAINS: usize = 4;

/// The sum of a row.
#[inline(always)]
fn sum<S: Simd, T: Element>(s: S, xs: &[T]) -> f32 {
    let mut sums = [s.splat(0.0); CHAINS];
    let (blocks, rest) = xs.as_chunks::<{ CHAINS * LANES }>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = s.add(*sum, T::load(s, x));
        }
    }
    for_each_vector!(rest.len(), |start, vector| {
        sums[0] = s.add(sums[0], vector::load(s, rest, start));
    });
    sum_of_chains(s, sums)
}

/// The sum of `(x - centre)²` of a row.
#[inline(always)]
fn sum_of_squares<S: Simd, T: Element>(s: S, xs: &[T], centre: f32) -> f32 {
    let centres = s.splat(centre);
    let mut sums = [s.splat(0.0); CHAINS];
    let (blocks, rest) = xs.as_chunks::<{ CHAINS * LANES }>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks().0) {
            let x = s.sub(T::load(s, x), centres);
            *sum = s.mul_add(x, x, *sum);
        }
    }
    for_each_vector!(rest.len(), |start, vector| {
        let x = s.sub(vector::load_or(s, rest, start, centre), centres);
        sums[0] = s.mul_add(x, x, sums[0]);
    });
    sum_of_chains(s, sums)
}

#[inline(always)]
fn sum_of_chains<S: Simd>(s: S, sums: [S::F32; CHAINS]) -> f32 {
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Body, Isa};
    use crate::testing::{WIDTHS, random, wide};

    struct Sums<'a>(&'a [f32], f32);

    impl Body for Sums<'_> {
        type Output = [f32; 2];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; 2] {
            [sum(s, self.0), sum_of_squares(s, self.0, self.1)]
        }
    }

    #[test]
    fn sums_of_a_row_are_right() {
        for isa in Isa::available() {
            for width in WIDTHS {
                let xs = random::<f32>(width, width as u64);
                let [sum, squares] = isa.run(Sums(&xs, 5.0));
                let expected: f64 = wide(&xs).iter().sum();
                assert!((f64::from(sum) - expected).abs() < 1e-6 * width as f64, "{isa:?}, {width}: {sum}");
                let expected: f64 = wide(&xs).iter().map(|x| (x - 5.0).powi(2)).sum();
                assert!((f64::from(squares) / expected - 1.0).abs() < 1e-6, "{isa:?}, {width}: {squares}");
            }
        }
    }

    /// Groups of more rows than one piece has, and more columns than are added up at once.
    #[test]
    fn sums_over_rows_are_exact() {
        let (groups, rows, width) = (3, 1000, 300);
        let value = |row: usize, column: usize| row * 7 + column;
        let mut out = vec![0f32; groups * rows * width];
        let (mut ones, mut numbers) = (vec![7f32; groups * width], vec![7f32; groups * width]);
        sum_over_rows(width, rows, &mut out, [&mut ones, &mut numbers], |first_row, out, sums| {
            let (ones, numbers) = sums.split_at_mut(width);
            for (i, row) in out.chunks_exact_mut(width).enumerate() {
                row.fill((first_row + i) as f32);
                ones.iter_mut().for_each(|x| *x += 1.0);
                numbers.iter_mut().enumerate().for_each(|(column, x)| *x += value(first_row + i, column) as f32);
            }
        });
        for (row, out) in out.chunks_exact(width).enumerate() {
            assert!(out.iter().all(|x| *x == row as f32), "row {row}");
        }
        assert!(ones.iter().all(|x| *x == rows as f32));
        for (i, number) in numbers.into_iter().enumerate() {
            let (group, column) = (i / width, i % width);
            let expected: usize = (group * rows..(group + 1) * rows).map(|row| value(row, column)).sum();
            assert_eq!(number, expected as f32, "group {group}, column {column}");
        }
    }
}
