use rayon::prelude::*;

use super::{rows_per_task, sum_of_squares, sum_over_rows, whole_rows};
use crate::isa::{Body, Isa};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// `xs / rms(xs) · weight` for each row of `xs`, `[rows, width]`, where `rms` is the root of the mean square
/// (Zhang & Sennrich 2019). `weight` is `[width]`, `ys` is like `xs`.
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm<T: Element>(isa: Isa, xs: &[T], width: usize, eps: f32, weight: &[f32], ys: &mut [T]) {
    whole_rows(xs.len(), width);
    assert_eq!(ys.len(), xs.len(), "RMS norm: the result's length");
    assert_eq!(weight.len(), width, "RMS norm: the weight's length");
    let task = rows_per_task(width) * width;
    xs.par_chunks(task).zip(ys.par_chunks_mut(task)).for_each(|(xs, ys)| isa.run(Forward { xs, eps, weight, ys }));
}

/// One over the root of the mean square of a row.
#[inline(always)]
fn inverse_rms<S: Simd, T: Element>(s: S, xs: &[T], eps: f32) -> f32 {
    1.0 / (sum_of_squares(s, xs, 0.0) / xs.len() as f32 + eps).sqrt()
}

struct Forward<'a, T> {
    xs: &'a [T],
    eps: f32,
    weight: &'a [f32],
    ys: &'a mut [T],
}

impl<T: Element> Body for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        for (xs, ys) in self.xs.chunks_exact(width).zip(self.ys.chunks_exact_mut(width)) {
            let inverse = s.splat(inverse_rms(s, xs, self.eps));
            for_each_vector!(width, |start, vector| {
                let normed = s.mul(vector::load(s, xs, start), inverse);
                vector::store(s, s.mul(normed, vector::load(s, self.weight, start)), ys, start);
            });
        }
    }
}

/// The gradients of [`rms_norm`]: `dys` is that of its result, `dxs` becomes that of its input, both `[rows, width]`,
/// and `d_weight`, `[width]`, that of its weight. Nothing is added to: everything is overwritten.
///
/// # Panics
/// If the lengths do not fit.
#[expect(clippy::too_many_arguments, reason = "the forward pass's arguments, and its gradients")]
pub fn rms_norm_backward<T: Element>(
    isa: Isa,
    xs: &[T],
    width: usize,
    eps: f32,
    weight: &[f32],
    dys: &[T],
    dxs: &mut [T],
    d_weight: &mut [f32],
) {
    let rows = whole_rows(xs.len(), width);
    assert!(dys.len() == xs.len() && dxs.len() == xs.len(), "RMS norm: the gradients' lengths");
    assert!(weight.len() == width && d_weight.len() == width, "RMS norm: the lengths of the weight and its gradient");
    sum_over_rows(width, rows, dxs, [d_weight], |first_row, dxs, d_weight| {
        let part = first_row * width..first_row * width + dxs.len();
        let (xs, dys) = (&xs[part.clone()], &dys[part]);
        isa.run(Backward { xs, eps, weight, dys, dxs, d_weight });
    });
}

struct Backward<'a, T> {
    xs: &'a [T],
    eps: f32,
    weight: &'a [f32],
    dys: &'a [T],
    dxs: &'a mut [T],
    d_weight: &'a mut [f32],
}

impl<T: Element> Body for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.weight.len();
        let rows = self.xs.chunks_exact(width).zip(self.dys.chunks_exact(width));
        for ((xs, dys), dxs) in rows.zip(self.dxs.chunks_exact_mut(width)) {
            let inverse = s.splat(inverse_rms(s, xs, self.eps));
            let mut along = s.splat(0.0);
            for_each_vector!(width, |start, vector| {
                let normed = s.mul(vector::load(s, xs, start), inverse);
                let d_weight = s.mul(vector::load(s, dys, start), normed);
                along = s.mul_add(d_weight, vector::load(s, self.weight, start), along);
                let sum = vector::load(s, self.d_weight, start);
                vector::store(s, s.add(sum, d_weight), self.d_weight, start);
            });
            let along = s.splat(s.sum(along) / width as f32);
            for_each_vector!(width, |start, vector| {
                let normed = s.mul(vector::load(s, xs, start), inverse);
                let d_normed = s.mul(vector::load(s, dys, start), vector::load(s, self.weight, start));
                let dx = s.mul(s.sub(d_normed, s.mul(normed, along)), inverse);
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

    const EPS: f32 = 1e-2;

    fn normed(xs: &[f64]) -> (Vec<f64>, f64) {
        let mean_square = xs.iter().map(|x| x * x).sum::<f64>() / xs.len() as f64;
        let inverse = 1.0 / (mean_square + f64::from(EPS)).sqrt();
        (xs.iter().map(|x| x * inverse).collect(), inverse)
    }

    fn check<T: TestElement>() {
        for (width, rows) in WIDTHS.into_iter().flat_map(|width| [1, 2, 5].map(|rows| (width, rows))) {
            let (xs, dys) = (random::<T>(rows * width, 1), random::<T>(rows * width, 2));
            let weight = random::<f32>(width, 3);
            let (mut ys, mut dxs, mut d_weight) = (Vec::new(), Vec::new(), vec![0.0; width]);
            for (xs, dys) in wide(&xs).chunks(width).zip(wide(&dys).chunks(width)) {
                let (normed, inverse) = normed(xs);
                let d_normed: Vec<f64> = dys.iter().zip(wide(&weight)).map(|(dy, w)| dy * w).collect();
                let along = d_normed.iter().zip(&normed).map(|(d, x)| d * x).sum::<f64>() / width as f64;
                for i in 0..width {
                    ys.push(normed[i] * f64::from(weight[i]));
                    dxs.push(inverse * (d_normed[i] - normed[i] * along));
                    d_weight[i] += dys[i] * normed[i];
                }
            }
            for isa in Isa::available() {
                let what = format!("{isa:?}, {rows} rows of {width}");
                let mut found = vec![T::default(); xs.len()];
                rms_norm(isa, &xs, width, EPS, &weight, &mut found);
                assert_close(&found, &ys, 1e-6, &what);
                let mut sums = vec![9f32; width];
                rms_norm_backward(isa, &xs, width, EPS, &weight, &dys, &mut found, &mut sums);
                // A row of one number leaves a difference that is small beside its terms.
                assert_close(&found, &dxs, if width == 1 { 1e-4 } else { 2e-6 }, &what);
                assert_close(&sums, &d_weight, 2e-6, &what);
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        check::<f32>();
        check::<bf16>();
    }

    /// The gradient the other test trusts, against differences of the definition.
    #[test]
    fn gradient_is_the_slope() {
        let width = 33;
        let (xs, dys, weight) = (random::<f32>(width, 1), random::<f32>(width, 2), random::<f32>(width, 3));
        let loss = |xs: &[f64]| -> f64 {
            let outer = wide(&dys).into_iter().zip(wide(&weight)).map(|(dy, w)| dy * w);
            normed(xs).0.iter().zip(outer).map(|(y, dy)| y * dy).sum()
        };
        let slopes = slopes(&wide(&xs), loss);
        let mut dxs = vec![0f32; width];
        rms_norm_backward(Isa::Portable, &xs, width, EPS, &weight, &dys, &mut dxs, &mut vec![0f32; width]);
        assert_close(&dxs, &slopes, 1e-5, "slopes");
    }

    #[test]
    fn threads_do_not_matter() {
        let (rows, width) = (300, 1152);
        let (xs, dys) = (random::<bf16>(rows * width, 1), random::<bf16>(rows * width, 2));
        let weight = random::<f32>(width, 3);
        let work = || {
            let isa = *Isa::available().last().expect("there is always one");
            let (mut ys, mut dxs) = (vec![bf16::ZERO; xs.len()], vec![bf16::ZERO; xs.len()]);
            let mut d_weight = vec![0f32; width];
            rms_norm(isa, &xs, width, EPS, &weight, &mut ys);
            rms_norm_backward(isa, &xs, width, EPS, &weight, &dys, &mut dxs, &mut d_weight);
            (ys, dxs, d_weight)
        };
        assert_same_in_any_threads(work, "RMS norm");
    }
}
