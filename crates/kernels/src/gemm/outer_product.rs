use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::outer::{Rows, Run, add_outer_products};
use super::{Bf16, F32, Product, load_f32, outer_matrices};
use crate::Arithmetic;
use crate::isa::{Body, Isa};
use crate::matrix::Matrix;
use crate::memory::{Buffer, Line, Scratch, Shared, ZERO, line_words};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

/// Words of each column that are multiplied before a thread goes on to the next tile: those of a tile, of both operands, stay in its
/// first-level cache.
const STEPS: usize = 128;

/// The greatest height and width of the part of the result that a thread works on at a time: its sums and the words of
/// both operands, 0.6 MB, stay in a second-level cache, and what stands outside is read but few times.
const BLOCK: [usize; 2] = [28 * 14, 192];

/// The least height of such a part where there would be fewer of them than threads.
const LEAST_HEIGHT: usize = 4 * 14;

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
    match arithmetic.on(isa) {
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
    let (m, n) = (left.columns, right.columns);
    let across = n.div_ceil(BLOCK[1]);
    let for_threads = rayon::current_num_threads().div_ceil(across).min(m.div_ceil(LEAST_HEIGHT));
    let height = m.div_ceil(m.div_ceil(BLOCK[0]).max(for_threads));
    let out = &Shared::new(out);
    (0..m.div_ceil(height) * across).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, block| {
            let (top, first) = (block / across * height, block % across * BLOCK[1]);
            isa.run(Block::<P, A, B> {
                product: PhantomData,
                left,
                right,
                buffer,
                top: top..m.min(top + height),
                across: first..n.min(first + BLOCK[1]),
                out,
            });
        },
    );
}

/// Products of elements whose sums are f32.
pub(super) trait OuterProduct: Send + Sync {
    /// Rows of an operand that its words hold.
    const ROWS: usize;

    /// The words of up to sixteen columns of so many rows; of a row that is not there nothing is given.
    fn words<S: Simd, T: Element>(s: S, rows: [&[T]; 2]) -> S::Bits;

    /// See [`add_outer_products`].
    fn add<S: Simd>(
        s: S,
        operands: (Rows, Rows),
        steps: usize,
        size: (usize, usize),
        tile: &mut [Line],
        tile_stride: usize,
    );
}

/// [`OuterProduct::add`] by `$product`; that its sums are f32 with all instructions cannot be said of a type parameter.
macro_rules! adds {
    ($product:ty) => {
        #[inline(always)]
        fn add<S: Simd>(
            s: S,
            operands: (Rows, Rows),
            steps: usize,
            size: (usize, usize),
            tile: &mut [Line],
            tile_stride: usize,
        ) {
            let runs = (&[Run { left: 0, right: 0 }][..], steps);
            add_outer_products::<$product, S>(s, operands, runs, size, tile, tile_stride);
        }
    };
}

impl OuterProduct for F32 {
    const ROWS: usize = Self::GROUP;

    #[inline(always)]
    fn words<S: Simd, T: Element>(s: S, rows: [&[T]; 2]) -> S::Bits {
        s.as_bits(load_up_to(s, rows[0]))
    }

    adds!(F32);
}

impl OuterProduct for Bf16 {
    const ROWS: usize = Self::GROUP;

    #[inline(always)]
    fn words<S: Simd, T: Element>(s: S, rows: [&[T]; 2]) -> S::Bits {
        s.pair_bf16(load_up_to(s, rows[0]), load_up_to(s, rows[1]))
    }

    adds!(Bf16);
}

/// A part of the result.
struct Block<'a, 'b, P, A, B> {
    product: PhantomData<P>,
    left: Matrix<'a, A>,
    right: Matrix<'a, B>,
    buffer: &'a mut Buffer<'b>,
    top: Range<usize>,
    across: Range<usize>,
    out: &'a Shared<'a, f32>,
}

impl<P: OuterProduct, A: Element, B: Element> Body for Block<'_, '_, P, A, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (high, wide) = (S::TILE_ROWS, S::TILE_VECTORS);
        // Tiles above each other, and beside each other.
        let (down, beside) = (self.top.len().div_ceil(high), self.across.len().div_ceil(wide * LANES));
        let stride = beside * wide;
        let lines = self.buffer.lines(down * high * stride + (down + stride) * STEPS);
        let (sums, words) = lines.split_at_mut(down * high * stride);
        let (left, right) = words.split_at_mut(down * STEPS);
        sums.fill(ZERO);
        for first in (0..self.left.rows).step_by(STEPS * P::ROWS) {
            let rows = first..self.left.rows.min(first + STEPS * P::ROWS);
            let steps = rows.len().div_ceil(P::ROWS);
            pack::<P, S, A>(s, self.left, rows.clone(), self.top.clone(), (high, 1), left);
            pack::<P, S, B>(s, self.right, rows, self.across.clone(), (wide * LANES, wide), right);
            let (left, right) = (line_words(left), line_words(right));
            for column in 0..beside {
                let right = Rows { words: right, start: column * STEPS * wide * LANES, stride: wide * LANES };
                let wide = wide.min(self.across.len().div_ceil(LANES) - column * wide);
                for row in 0..down {
                    let left = Rows { words: left, start: row * STEPS * LANES, stride: LANES };
                    let size = (high.min(self.top.len() - row * high), wide);
                    let tile = &mut sums[row * high * stride + column * S::TILE_VECTORS..];
                    P::add(s, (left, right), steps, size, tile, stride);
                }
            }
        }
        // SAFETY: this part of the result is this block's alone.
        unsafe { write_sums(s, sums, stride, self.top, self.across, self.right.columns, self.out) };
    }
}

/// Writes words of `rows` and `columns`: those of `width` columns, which take `vectors` lines, at [`STEPS`] steps, then
/// those of as many more.
#[inline(always)]
fn pack<P: OuterProduct, S: Simd, T: Element>(
    s: S,
    matrix: Matrix<T>,
    rows: Range<usize>,
    columns: Range<usize>,
    (width, vectors): (usize, usize),
    lines: &mut [Line],
) {
    let end = rows.end;
    for (step, row) in rows.step_by(P::ROWS).enumerate() {
        let rows: [&[T]; 2] = std::array::from_fn(|i| match row + i < end && i < P::ROWS {
            true => &matrix.data[(row + i) * matrix.row_stride..][..columns.end],
            false => &[],
        });
        for (part, column) in columns.clone().step_by(width).enumerate() {
            for vector in 0..vectors {
                let at = column + vector * LANES;
                let from = |row: &'_ [T]| -> Range<usize> { at.min(row.len())..row.len().min(at + LANES) };
                let words = P::words(s, [&rows[0][from(rows[0])], &rows[1][from(rows[1])]]);
                s.store_bits(words, &mut lines[part * STEPS * vectors + step * vectors + vector].0);
            }
        }
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
