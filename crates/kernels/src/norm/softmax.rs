use rayon::prelude::*;

use super::{rows_per_task, whole_rows};
use crate::isa::{Body, Isa};
use crate::math;
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// `e^(x - max) / Σ e^(x - max)` over each row of `xs`, `[rows, width]`; `ys` is like `xs`. A row of nothing but -∞
/// gives NaN.
///
/// # Panics
/// If the lengths do not fit.
pub fn softmax<T: Element>(isa: Isa, xs: &[T], width: usize, ys: &mut [T]) {
    whole_rows(xs.len(), width);
    assert_eq!(ys.len(), xs.len(), "softmax: the result's length");
    let task = rows_per_task(width) * width;
    let row = || vec![0f32; width];
    xs.par_chunks(task).zip(ys.par_chunks_mut(task)).for_each_init(row, |row, (xs, ys)| {
        isa.run(Forward { xs, row, ys });
    });
}

struct Forward<'a, T> {
    xs: &'a [T],
    /// Room for the exponentials of a row: rounded to bf16 twice they would lose a digit.
    row: &'a mut [f32],
    ys: &'a mut [T],
}

impl<T: Element> Body for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.row.len();
        for (xs, ys) in self.xs.chunks_exact(width).zip(self.ys.chunks_exact_mut(width)) {
            let mut largest = s.splat(f32::NEG_INFINITY);
            for_each_vector!(width, |start, vector| {
                largest = s.max(largest, vector::load_or(s, xs, start, f32::NEG_INFINITY));
            });
            let largest = s.splat(s.largest(largest));
            let mut sum = s.splat(0.0);
            for_each_vector!(width, |start, vector| {
                let exponential = math::exp(s, s.sub(vector::load_or(s, xs, start, f32::NEG_INFINITY), largest));
                sum = s.add(sum, exponential);
                vector::store(s, exponential, self.row, start);
            });
            let factor = s.splat(1.0 / s.sum(sum));
            for_each_vector!(width, |start, vector| {
                vector::store(s, s.mul(vector::load(s, self.row, start), factor), ys, start);
            });
        }
    }
}

/// The gradient of [`softmax`] from its result `ys` and that one's gradient `dys`: `y · (dy - Σ y·dy)` over each row;
/// all `[rows, width]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn softmax_backward<T: Element>(isa: Isa, ys: &[T], width: usize, dys: &[T], dxs: &mut [T]) {
    whole_rows(ys.len(), width);
    assert!(dys.len() == ys.len() && dxs.len() == ys.len(), "softmax: the gradients' lengths");
    let task = rows_per_task(width) * width;
    (ys.par_chunks(task), dys.par_chunks(task), dxs.par_chunks_mut(task))
        .into_par_iter()
        .for_each(|(ys, dys, dxs)| isa.run(Backward { ys, width, dys, dxs }));
}

struct Backward<'a, T> {
    ys: &'a [T],
    width: usize,
    dys: &'a [T],
    dxs: &'a mut [T],
}

impl<T: Element> Body for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        let rows = self.ys.chunks_exact(width).zip(self.dys.chunks_exact(width));
        for ((ys, dys), dxs) in rows.zip(self.dxs.chunks_exact_mut(width)) {
            let mut along = s.splat(0.0);
            for_each_vector!(width, |start, vector| {
                along = s.mul_add(vector::load(s, ys, start), vector::load(s, dys, start), along);
            });
            let along = s.splat(s.sum(along));
            for_each_vector!(width, |start, vector| {
                let dx = s.mul(vector::load(s, ys, start), s.sub(vector::load(s, dys, start), along));
                vector::store(s, dx, dxs, start);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{TestElement, WIDTHS, assert_close, assert_same_in_any_threads, random, slopes, wide};

    fn reference(xs: &[f64]) -> Vec<f64> {
        let largest = xs.iter().fold(f64::NEG_INFINITY, |largest, x| largest.max(*x));
        let exponentials: Vec<f64> = xs.iter().map(|x| (x - largest).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.iter().map(|x| x / sum).collect()
    }

    fn check<T: TestElement>() {
        for (width, rows) in WIDTHS.into_iter().flat_map(|width| [1, 2, 5].map(|rows| (width, rows))) {
            // Far below zero, where what stands past the end of a row would be the largest if it were taken for 0.
            let xs: Vec<T> =
                random::<T>(rows * width, 1).iter().map(|x| T::from_f32(4.0 * x.to_f32() - 200.0)).collect();
            let dys = random::<T>(rows * width, 2);
            let expected: Vec<f64> = wide(&xs).chunks(width).flat_map(reference).collect();
            for isa in Isa::available() {
                let what = format!("{isa:?}, {rows} rows of {width}");
                let mut ys = vec![T::default(); xs.len()];
                softmax(isa, &xs, width, &mut ys);
                assert_close(&ys, &expected, 1e-6, &what);

                let gradient: Vec<f64> = wide(&ys)
                    .chunks(width)
                    .zip(wide(&dys).chunks(width))
                    .flat_map(|(ys, dys)| {
                        let along: f64 = ys.iter().zip(dys).map(|(y, dy)| y * dy).sum();
                        ys.iter().zip(dys).map(|(y, dy)| y * (dy - along)).collect::<Vec<_>>()
                    })
                    .collect();
                let mut dxs = vec![T::default(); xs.len()];
                softmax_backward(isa, &ys, width, &dys, &mut dxs);
                assert_close(&dxs, &gradient, 2e-6, &what);
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        check::<f32>();
        check::<bf16>();
    }

    /// The gradient's formula, against differences of the definition.
    #[test]
    fn gradient_is_the_slope() {
        let width = 33;
        let (xs, dys) = (random::<f32>(width, 1), random::<f32>(width, 2));
        let loss = |xs: &[f64]| reference(xs).iter().zip(wide(&dys)).map(|(y, dy)| y * dy).sum::<f64>();
        let slopes = slopes(&wide(&xs), loss);
        let (mut ys, mut dxs) = (vec![0f32; width], vec![0f32; width]);
        softmax(Isa::Portable, &xs, width, &mut ys);
        softmax_backward(Isa::Portable, &ys, width, &dys, &mut dxs);
        assert_close(&dxs, &slopes, 1e-5, "slopes");
    }

    /// Masked positions get nothing; a row of them all is NaN, as everywhere.
    #[test]
    fn minus_infinity_masks() {
        for isa in Isa::available() {
            let mut xs = vec![f32::NEG_INFINITY; 40];
            (xs[3], xs[18]) = (1e30, 1e30);
            let mut ys = vec![9f32; 40];
            softmax(isa, &xs, 20, &mut ys);
            let expected: Vec<f32> = (0..20).map(|i| if i == 3 || i == 18 { 0.5 } else { 0.0 }).collect();
            assert_eq!(ys[..20], expected, "{isa:?}");
            assert!(ys[20..].iter().all(|y| y.is_nan()), "{isa:?}: {:?}", &ys[20..]);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (rows, width) = (300, 333);
        let (xs, dys) = (random::<bf16>(rows * width, 1), random::<bf16>(rows * width, 2));
        let work = || {
            let isa = *Isa::available().last().expect("there is always one");
            let (mut ys, mut dxs) = (vec![bf16::ZERO; xs.len()], vec![bf16::ZERO; xs.len()]);
            softmax(isa, &xs, width, &mut ys);
            softmax_backward(isa, &ys, width, &dys, &mut dxs);
            (ys, dxs)
        };
        assert_same_in_any_threads(work, "softmax");
    }
}
