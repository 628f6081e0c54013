use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::outer::{Rows, Run, add_outer_products};
use super::{Bf16, F32, Product, Words, load_f32, outer_matrices};
use crate::Arithmetic;
use crate::isa::{Body, Isa};
use crate::matrix::Matrix;
use crate::memory::{Line, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

/// Rows that are multiplied before a thread goes on to the next tile: those of a few tiles stay in its cache.
const ROWS: usize = 512;

/// Columns of the result, in its height and in its width, that a thread works on at a time: of both operands together,
/// [`ROWS`] rows of them fill half of a common second-level cache.
const BLOCK: [usize; 2] = [8 * 14, 128];

/// `out = leftᵀ · right`, summed in f32: `left` is `[rows, m]`, `right` `[rows, n]`, `out` `[m, n]`. The gradient of weights, from
/// those of a layer's result and from its input. Both are multiplied in `arithmetic`, f32 or bf16.
///
/// # Panics
/// The shapes do not belong together, a row's elements do not stand side by side, or `arithmetic` is int8.
pub fn outer_product<A: Element, B: Element>(
    isa: Isa,
    scratch: &Scratch,
    arithmetic: Arithmetic,
    left: Matrix<A>,
    right: Matrix<B>,
    out: &mut [f32],
) {
    assert_eq!(left.rows, right.rows, "both operands have as many rows");
    assert_eq!(out.len(), left.columns * right.columns, "the result is {}×{}", left.columns, right.columns);
    assert!(left.column_stride == 1 && right.column_stride == 1, "a row's elements stand side by side");
    if left.rows == 0 || out.is_empty() {
        out.fill(0.0);
        return;
    }
    match arithmetic {
        Arithmetic::Bf16 if isa == Isa::Amx => outer_matrices::multiply(isa, scratch, left, right, out),
        Arithmetic::Bf16 => multiply::<Bf16, A, B>(isa, scratch, left, right, out),
        Arithmetic::F32 => multiply::<F32, A, B>(isa, scratch, left, right, out),
        Arithmetic::Int8 => panic!("products over rows in int8 are not there"),
    }
}

fn multiply<P: OuterProduct, A: Element, B: Element>(
    isa: Isa,
    scratch: &Scratch,
    left: Matrix<A>,
    right: Matrix<B>,
    out: &mut [f32],
) {
    let (mut left_copy, mut right_copy) = (scratch.take(), scratch.take());
    let (left_words, left_stride) = words::<P, A>(isa, left, 1, &mut left_copy);
    let (right_words, right_stride) = words::<P, B>(isa, right, LANES, &mut right_copy);
    let (rows, m, n) = (left.rows.div_ceil(P::GROUP), left.columns, right.columns);
    let across = n.div_ceil(BLOCK[1]);
    let out = &Shared::new(out);
    (0..m.div_ceil(BLOCK[0]) * across).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, block| {
            let (top, first) = (block / across * BLOCK[0], block % across * BLOCK[1]);
            isa.run(Block::<P> {
                product: PhantomData,
                left: Rows { words: left_words, start: 0, stride: left_stride },
                right: Rows { words: right_words, start: 0, stride: right_stride },
                rows,
                sums: buffer.lines(BLOCK[0] * BLOCK[1] / LANES),
                top: top..m.min(top + BLOCK[0]),
                across: first..n.min(first + BLOCK[1]),
                width: n,
                out,
            });
        },
    );
}

/// The matrix as words and the distance of their rows: where it stands, if it is f32 with rows of whole multiples of
/// `multiple`, else in `buffer`.
pub(super) fn words<'a, P: OuterProduct, T: Element>(
    isa: Isa,
    matrix: Matrix<'a, T>,
    multiple: usize,
    buffer: &'a mut crate::memory::Buffer,
) -> (&'a [u32], usize) {
    if P::GROUP == F32::GROUP
        && let Some(data) = T::as_f32(matrix.data)
        && matrix.columns.is_multiple_of(multiple)
    {
        return (crate::memory::as_words(data), matrix.row_stride);
    }
    let stride = matrix.columns.next_multiple_of(LANES);
    let lines = buffer.lines(matrix.rows.div_ceil(P::GROUP) * stride / LANES);
    lines.par_chunks_mut(stride / LANES).enumerate().for_each(|(group, lines)| {
        let row = |row: usize| &matrix.data[row * matrix.row_stride..][..matrix.columns];
        let (first, second) = (group * P::GROUP, group * P::GROUP + 1);
        let second = (P::GROUP == 2 && second < matrix.rows).then(|| row(second));
        isa.run(CopyRows::<P, T> { product: PhantomData, first: row(first), second, lines });
    });
    (crate::memory::line_words(lines), stride)
}

/// Writes the words of one row, or of two.
struct CopyRows<'a, P, T> {
    product: PhantomData<P>,
    first: &'a [T],
    second: Option<&'a [T]>,
    lines: &'a mut [Line],
}

impl<P: OuterProduct, T: Element> Body for CopyRows<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let from = |row: &'_ [T], at: usize| -> std::ops::Range<usize> { at.min(row.len())..row.len().min(at + LANES) };
        for (i, line) in self.lines.iter_mut().enumerate() {
            let first = &self.first[from(self.first, i * LANES)];
            let second = self.second.map(|second| &second[from(second, i * LANES)]);
            if P::GROUP == Bf16::GROUP {
                let second = second.map_or(s.splat(0.0), |second| load_up_to(s, second));
                s.store_bits(s.pair_bf16(load_up_to(s, first), second), &mut line.0);
                continue;
            }
            line.0 = P::across(&[first]);
        }
    }
}

/// Products of elements whose sums are f32.
pub(super) trait OuterProduct: Words + Send + Sync {
    fn add<S: Simd>(
        s: S,
        operands: (Rows, Rows),
        runs: (&[Run], usize),
        size: (usize, usize),
        tile: &mut [Line],
        tile_stride: usize,
    );
}

macro_rules! outer_product_of {
    ($($product:ty),+) => {$(
        impl OuterProduct for $product {
            #[inline(always)]
            fn add<S: Simd>(
                s: S,
                operands: (Rows, Rows),
                runs: (&[Run], usize),
                size: (usize, usize),
                tile: &mut [Line],
                tile_stride: usize,
            ) {
                add_outer_products::<$product, S>(s, operands, runs, size, tile, tile_stride);
            }
        }
    )+};
}

outer_product_of!(F32, Bf16);

/// A block of the result.
struct Block<'a, P> {
    product: PhantomData<P>,
    left: Rows<'a>,
    right: Rows<'a>,
    rows: usize,
    /// Room for the block's sums, [`BLOCK`] numbers.
    sums: &'a mut [Line],
    top: Range<usize>,
    across: Range<usize>,
    width: usize,
    out: &'a Shared<'a, f32>,
}

/// Lines of a row of a block's sums.
const SUM_LINES: usize = BLOCK[1] / LANES;

impl<P: OuterProduct> Body for Block<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.sums.fill(ZERO);
        let vectors = self.across.len().div_ceil(LANES);
        for row in (0..self.rows).step_by(ROWS) {
            let steps = ROWS.min(self.rows - row);
            for vector in (0..vectors).step_by(S::TILE_VECTORS) {
                let right = Rows { start: row * self.right.stride + self.across.start + vector * LANES, ..self.right };
                let wide = S::TILE_VECTORS.min(vectors - vector);
                for column in (0..self.top.len()).step_by(S::TILE_ROWS) {
                    let left = Rows { start: row * self.left.stride + self.top.start + column, ..self.left };
                    let high = S::TILE_ROWS.min(self.top.len() - column);
                    let sums = &mut self.sums[column * SUM_LINES + vector..];
                    let runs = &[Run { left: 0, right: 0 }];
                    P::add(s, (left, right), (runs, steps), (high, wide), sums, SUM_LINES);
                }
            }
        }
        // SAFETY: this part of the result is this block's alone.
        unsafe { write_sums(s, self.sums, SUM_LINES, self.top, self.across, self.width, self.out) };
    }
}

/// Writes a block's sums, whose rows start `stride` lines after each other, to its part of a result that is `width` wide.
///
/// # Safety
/// No other thread may use this part of the result meanwhile.
#[inline(always)]
pub(super) unsafe fn write_sums<S: Simd>(
    s: S,
    sums: &[Line],
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    width: usize,
    out: &Shared<f32>,
) {
    for (row, lines) in rows.zip(sums.chunks_exact(stride)) {
        // SAFETY: as the caller promises.
        let out = unsafe { out.part(row * width + columns.start, columns.len()) };
        for (line, out) in lines.iter().zip(out.chunks_mut(LANES)) {
            store_up_to(s, load_f32(s, line), out);
        }
    }
}

/// Sums over rows: `xs` is `[rows, width]`, `sums` `[width]`. The gradient of a bias.
///
/// # Panics
/// The lengths do not belong together.
pub fn column_sums<T: Element>(isa: Isa, xs: &[T], sums: &mut [f32]) {
    let width = sums.len();
    assert!(width > 0 && xs.len().is_multiple_of(width), "{} elements are no rows of {width}", xs.len());
    sums.fill(0.0);
    // Pieces of fixed size, so that the order does not depend on the number of threads.
    let pieces: Vec<Vec<f32>> = xs
        .par_chunks(256 * width)
        .map(|xs| {
            let mut sums = vec![0f32; width];
            isa.run(AddRows { xs, sums: &mut sums });
            sums
        })
        .collect();
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = pieces.iter().map(|piece| f64::from(piece[i])).sum::<f64>() as f32;
    }
}

struct AddRows<'a, T> {
    xs: &'a [T],
    sums: &'a mut [f32],
}

impl<T: Element> Body for AddRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.xs.chunks_exact(self.sums.len()) {
            for (sums, xs) in self.sums.chunks_mut(LANES).zip(row.chunks(LANES)) {
                store_up_to(s, s.add(load_up_to(s, sums), load_up_to(s, xs)), sums);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::numbers;
    use half::bf16;

    #[test]
    fn outer_products_are_the_definition() {
        let scratch = Scratch::new();
        for isa in Isa::available() {
            for (rows, m, n) in [(1, 1, 1), (7, 15, 33), (600, 31, 16), (17, 130, 160), (33, 16, 300)] {
                let (left, right) = (numbers(rows * (m + 2), 1), numbers(rows * n, 2));
                let expected = |i: usize, j: usize| -> f64 {
                    (0..rows).map(|r| left[r * (m + 2) + i] as f64 * right[r * n + j] as f64).sum()
                };
                let mut out = vec![f32::NAN; m * n];
                let strided = Matrix::strided(&left, rows, m, m + 2);
                outer_product(isa, &scratch, Arithmetic::F32, strided, Matrix::new(&right, rows, n), &mut out);
                for (at, found) in out.iter().enumerate() {
                    let expected = expected(at / n, at % n);
                    assert!((*found as f64 - expected).abs() < 2e-5, "{isa:?} {rows} {m}×{n}: {found}, not {expected}");
                }
                let narrow = |xs: &[f32]| xs.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
                let wide = |xs: &[bf16]| xs.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
                let (left, right) = (narrow(&left[..rows * m]), narrow(&right));
                let (mut a, mut b) = (vec![0f32; m * n], vec![0f32; m * n]);
                let narrowed = (Matrix::new(&left, rows, m), Matrix::new(&right, rows, n));
                outer_product(isa, &scratch, Arithmetic::Bf16, narrowed.0, narrowed.1, &mut a);
                let (wide_left, wide_right) = (wide(&left), wide(&right));
                let widened = (Matrix::new(&wide_left, rows, m), Matrix::new(&wide_right, rows, n));
                outer_product(isa, &scratch, Arithmetic::F32, widened.0, widened.1, &mut b);
                // Sums of pairs, in another order.
                let mut mixed = vec![0f32; m * n];
                outer_product(isa, &scratch, Arithmetic::Bf16, widened.0, narrowed.1, &mut mixed);
                assert_eq!(mixed, a, "numbers that are bf16 already are not changed");
                for (a, b) in a.iter().zip(&b) {
                    assert!((a - b).abs() < 2e-5, "{isa:?} {rows} {m}×{n}: {a}, not {b}");
                }
            }
        }
    }

    #[test]
    fn columns_are_summed() {
        for isa in Isa::available() {
            for (rows, width) in [(1, 1), (700, 17), (3, 33)] {
                let xs = numbers(rows * width, 1);
                let mut sums = vec![f32::NAN; width];
                column_sums(isa, &xs, &mut sums);
                for (i, found) in sums.into_iter().enumerate() {
                    let expected: f64 = xs.iter().skip(i).step_by(width).map(|x| *x as f64).sum();
                    assert!((found as f64 - expected).abs() < 2e-5, "{isa:?}: {found}, not {expected}");
                }
            }
        }
    }
}
