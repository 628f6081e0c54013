use rayon::prelude::*;

use super::{rows_per_task, sum, sum_of_squares, sum_over_rows, whole_rows};
use crate::isa::{Body, Isa};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// What a normalised row is multiplied by and what is added to it.
///
/// An adaptive norm has one of each for every image, and `rows` is its number of tokens; a learned one has a single
/// group, and `rows` is the number of all rows.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// `[groups, width]`. For `x·(1 + scale)` the caller adds the 1.
    pub scale: &'a [f32],
    /// `[groups, width]`.
    pub shift: &'a [f32],
    /// Consecutive rows that each group of `scale` and `shift` is used for.
    pub rows: usize,
}

impl Affine<'_> {
    #[track_caller]
    fn check(&self, width: usize, rows: usize) {
        assert_eq!(self.scale.len(), self.shift.len(), "scale and shift differ in length");
        let groups = whole_rows(self.scale.len(), width);
        assert_eq!(groups * self.rows, rows, "{groups} groups of {} rows are not the {rows} rows given", self.rows);
    }

    #[inline(always)]
    fn of_row(&self, row: usize, width: usize) -> (&[f32], &[f32]) {
        let start = row / self.rows * width;
        (&self.scale[start..start + width], &self.shift[start..start + width])
    }
}

/// Layer normalisation (Ba et al. 2016) of each row of `xs`, `[rows, width]`, to mean 0 and variance 1, then
/// `· scale + shift` if `affine` is given: with a scale per image, the adaptive norm of a DiT block (Peebles & Xie
/// 2023, section 3.2). `ys` is of the shape of `xs`.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm<A: Element, T: Element>(
    isa: Isa,
    xs: &[A],
    width: usize,
    eps: f32,
    affine: Option<&Affine>,
    ys: &mut [T],
) {
    let rows = whole_rows(xs.len(), width);
    assert_eq!(ys.len(), xs.len(), "layer norm: the result's length");
    if let Some(affine) = affine {
        affine.check(width, rows);
    }
    let task = rows_per_task(width);
    xs.par_chunks(task * width).zip(ys.par_chunks_mut(task * width)).enumerate().for_each(|(i, (xs, ys))| {
        isa.run(Forward { xs, width, eps, affine, first_row: i * task, ys });
    });
}

/// The mean of a row and one over its standard deviation.
#[inline(always)]
fn statistics<S: Simd, T: Element>(s: S, xs: &[T], eps: f32) -> (f32, f32) {
    let mean = sum(s, xs) / xs.len() as f32;
    let variance = sum_of_squares(s, xs, mean) / xs.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}

struct Forward<'a, A, T> {
    xs: &'a [A],
    width: usize,
    eps: f32,
    affine: Option<&'a Affine<'a>>,
    first_row: usize,
    ys: &'a mut [T],
}

impl<A: Element, T: Element> Body for Forward<'_, A, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.width;
        for (i, (xs, ys)) in self.xs.chunks_exact(width).zip(self.ys.chunks_exact_mut(width)).enumerate() {
            let (mean, inverse) = statistics(s, xs, self.eps);
            let (mean, inverse) = (s.splat(mean), s.splat(inverse));
            match self.affine.map(|affine| affine.of_row(self.first_row + i, width)) {
                Some((scale, shift)) => {
                    for_each_vector!(width, |start, vector| {
                        let normed = s.mul(s.sub(vector::load(s, xs, start), mean), inverse);
                        let (scale, shift) = (vector::load(s, scale, start), vector::load(s, shift, start));
                        vector::store(s, s.mul_add(normed, scale, shift), ys, start);
                    });
                }
                None => {
                    for_each_vector!(width, |start, vector| {
                        let normed = s.mul(s.sub(vector::load(s, xs, start), mean), inverse);
                        vector::store(s, normed, ys, start);
                    });
                }
            }
        }
    }
}

/// The gradients of [`layer_norm`]: `dys` is that of its result, `dxs` becomes that of its input, both `[rows, width]`,
/// and `d_affine` those of scale and shift, both `[groups, width]`. Nothing is added to: everything is overwritten.
///
/// # Panics
/// If the lengths do not fit, or `d_affine` is asked for without an `affine`.
#[expect(clippy::too_many_arguments, reason = "the forward pass's arguments, and its gradients")]
pub fn layer_norm_backward<T: Element>(
    isa: Isa,
    xs: &[T],
    width: usize,
    eps: f32,
    affine: Option<&Affine>,
    dys: &[T],
    dxs: &mut [T],
    d_affine: Option<(&mut [f32], &mut [f32])>,
) {
    let rows = whole_rows(xs.len(), width);
    assert!(dys.len() == xs.len() && dxs.len() == xs.len(), "layer norm: the gradients' lengths");
    if let Some(affine) = affine {
        affine.check(width, rows);
    }
    let sweep = |first_row: usize, dxs: &mut [T], sums: Option<&mut [f32]>| {
        let part = first_row * width..first_row * width + dxs.len();
        let (xs, dys) = (&xs[part.clone()], &dys[part]);
        isa.run(Backward { xs, width, eps, affine, first_row, dys, dxs, sums });
    };
    match (affine, d_affine) {
        (Some(affine), Some((d_scale, d_shift))) => {
            assert!(
                d_scale.len() == affine.scale.len() && d_shift.len() == affine.scale.len(),
                "layer norm: the lengths of the gradients of scale and shift"
            );
            sum_over_rows(width, affine.rows, dxs, [d_scale, d_shift], |row, dxs, sums| sweep(row, dxs, Some(sums)));
        }
        (None, Some(_)) => panic!("layer norm: gradients of a scale and shift that are not there"),
        (_, None) => {
            let task = rows_per_task(width);
            dxs.par_chunks_mut(task * width).enumerate().for_each(|(i, dxs)| sweep(i * task, dxs, None));
        }
    }
}

struct Backward<'a, T> {
    xs: &'a [T],
    width: usize,
    eps: f32,
    affine: Option<&'a Affine<'a>>,
    first_row: usize,
    dys: &'a [T],
    dxs: &'a mut [T],
    /// `[2, width]`: the sums of the scale's and the shift's gradients.
    sums: Option<&'a mut [f32]>,
}

impl<T: Element> Body for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = self.width;
        let rows = self.xs.chunks_exact(width).zip(self.dys.chunks_exact(width));
        for (i, ((xs, dys), dxs)) in rows.zip(self.dxs.chunks_exact_mut(width)).enumerate() {
            let (mean, inverse) = statistics(s, xs, self.eps);
            let (mean, inverse) = (s.splat(mean), s.splat(inverse));
            if let Some(sums) = &mut self.sums {
                let (d_scale, d_shift) = sums.split_at_mut(width);
                for_each_vector!(width, |start, vector| {
                    let normed = s.mul(s.sub(vector::load(s, xs, start), mean), inverse);
                    let dy = vector::load(s, dys, start);
                    let (scale, shift) = (vector::load(s, d_scale, start), vector::load(s, d_shift, start));
                    vector::store(s, s.mul_add(dy, normed, scale), d_scale, start);
                    vector::store(s, s.add(dy, shift), d_shift, start);
                });
            }
            let scale = self.affine.map(|affine| affine.of_row(self.first_row + i, width).0);
            let (mut sum, mut sum_normed) = (s.splat(0.0), s.splat(0.0));
            for_each_vector!(width, |start, vector| {
                let normed = s.mul(s.sub(vector::load(s, xs, start), mean), inverse);
                // Past the end of the row this is 0, whatever `normed` is there.
                let dy = vector::load(s, dys, start);
                let d_normed = match scale {
                    Some(scale) => s.mul(dy, vector::load(s, scale, start)),
                    None => dy,
                };
                sum = s.add(sum, d_normed);
                sum_normed = s.mul_add(d_normed, normed, sum_normed);
            });
            let (sum, sum_normed) = (s.splat(s.sum(sum) / width as f32), s.splat(s.sum(sum_normed) / width as f32));
            for_each_vector!(width, |start, vector| {
                let normed = s.mul(s.sub(vector::load(s, xs, start), mean), inverse);
                let dy = vector::load(s, dys, start);
                let d_normed = match scale {
                    Some(scale) => s.mul(dy, vector::load(s, scale, start)),
                    None => dy,
                };
                let dx = s.sub(s.sub(d_normed, sum), s.mul(normed, sum_normed));
                vector::store(s, s.mul(dx, inverse), dxs, start);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{TestElement, WIDTHS, assert_close, assert_same_in_any_threads, random, slopes, wide};

    const EPS: f32 = 1e-6;

    fn normed(xs: &[f64]) -> (Vec<f64>, f64) {
        let n = xs.len() as f64;
        let mean = xs.iter().sum::<f64>() / n;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + f64::from(EPS)).sqrt();
        (xs.iter().map(|x| (x - mean) * inverse).collect(), inverse)
    }

    fn check<T: TestElement>() {
        for (width, (groups, rows)) in WIDTHS.into_iter().flat_map(|width| [(1, 5), (2, 1), (3, 2)].map(|g| (width, g)))
        {
            let xs = random::<T>(groups * rows * width, 1);
            let dys = random::<T>(xs.len(), 2);
            let (scale, shift) = (random::<f32>(groups * width, 3), random::<f32>(groups * width, 4));
            for learned in [true, false] {
                let factor = |row: usize, i: usize| if learned { scale[row / rows * width + i] } else { 1.0 } as f64;
                let (mut ys, mut dxs) = (Vec::new(), Vec::new());
                let (mut d_scale, mut d_shift) = (vec![0.0; groups * width], vec![0.0; groups * width]);
                for (row, (xs, dys)) in wide(&xs).chunks(width).zip(wide(&dys).chunks(width)).enumerate() {
                    let (normed, inverse) = normed(xs);
                    let d_normed: Vec<f64> = dys.iter().enumerate().map(|(i, dy)| dy * factor(row, i)).collect();
                    let mean = d_normed.iter().sum::<f64>() / width as f64;
                    let along = d_normed.iter().zip(&normed).map(|(d, x)| d * x).sum::<f64>() / width as f64;
                    for i in 0..width {
                        let column = row / rows * width + i;
                        let shift = if learned { f64::from(shift[column]) } else { 0.0 };
                        ys.push(normed[i] * factor(row, i) + shift);
                        dxs.push(inverse * (d_normed[i] - mean - normed[i] * along));
                        d_scale[column] += dys[i] * normed[i];
                        d_shift[column] += dys[i];
                    }
                }
                let affine = learned.then_some(Affine { scale: &scale, shift: &shift, rows });
                for isa in Isa::available() {
                    let what = format!("{isa:?}, {groups} × {rows} rows of {width}, learned: {learned}");
                    let mut found = vec![T::default(); xs.len()];
                    layer_norm(isa, &xs, width, EPS, affine.as_ref(), &mut found);
                    assert_close(&found, &ys, 2e-6, &what);
                    if width == 1 {
                        // One number is its own mean: what is left of the gradient is rounding, times 1/√eps.
                        continue;
                    }
                    let mut found = vec![T::default(); xs.len()];
                    layer_norm_backward(isa, &xs, width, EPS, affine.as_ref(), &dys, &mut found, None);
                    assert_close(&found, &dxs, 5e-6, &what);
                    if learned {
                        let mut again = vec![T::default(); xs.len()];
                        let (mut scales, mut shifts) = (vec![9f32; scale.len()], vec![9f32; scale.len()]);
                        let d_affine = Some((&mut scales[..], &mut shifts[..]));
                        layer_norm_backward(isa, &xs, width, EPS, affine.as_ref(), &dys, &mut again, d_affine);
                        assert_eq!(found, again, "{what}");
                        assert_close(&scales, &d_scale, 2e-6, &what);
                        assert_close(&shifts, &d_shift, 2e-6, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        check::<f32>();
        check::<bf16>();
    }

    /// The gradient the other tests trust, against differences of the definition.
    #[test]
    fn gradient_is_the_slope() {
        let width = 33;
        let (xs, dys) = (random::<f32>(width, 1), random::<f32>(width, 2));
        let loss = |xs: &[f64]| normed(xs).0.iter().zip(wide(&dys)).map(|(y, dy)| y * dy).sum::<f64>();
        let slopes = slopes(&wide(&xs), loss);
        let mut dxs = vec![0f32; width];
        layer_norm_backward(Isa::Portable, &xs, width, EPS, None, &dys, &mut dxs, None);
        assert_close(&dxs, &slopes, 1e-5, "slopes");
    }

    /// A mean that is large beside the deviation costs no more digits than it must.
    #[test]
    fn a_large_mean_is_no_harm() {
        let width = 1152;
        let xs: Vec<f32> = random::<f32>(width, 1).into_iter().map(|x| x + 1000.0).collect();
        for isa in Isa::available() {
            let mut ys = vec![0f32; width];
            layer_norm(isa, &xs, width, EPS, None, &mut ys);
            assert_close(&ys, &normed(&wide(&xs)).0, 3e-5, &format!("{isa:?}"));
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (groups, rows, width) = (2, 150, 1152);
        let (xs, dys) = (random::<bf16>(groups * rows * width, 1), random::<bf16>(groups * rows * width, 2));
        let (scale, shift) = (random::<f32>(groups * width, 3), random::<f32>(groups * width, 4));
        let affine = Affine { scale: &scale, shift: &shift, rows };
        let work = || {
            let isa = *Isa::available().last().expect("there is always one");
            let (mut ys, mut dxs) = (vec![bf16::ZERO; xs.len()], vec![bf16::ZERO; xs.len()]);
            let (mut d_scale, mut d_shift) = (vec![0f32; scale.len()], vec![0f32; scale.len()]);
            layer_norm(isa, &xs, width, EPS, Some(&affine), &mut ys);
            let d_affine = Some((&mut d_scale[..], &mut d_shift[..]));
            layer_norm_backward(isa, &xs, width, EPS, Some(&affine), &dys, &mut dxs, d_affine);
            (ys, dxs, d_scale, d_shift)
        };
        assert_same_in_any_threads(work, "layer norm");
    }

    #[test]
    #[should_panic(expected = "are not the 4 rows given")]
    fn too_few_groups_are_refused() {
        let affine = Affine { scale: &[1.0; 8], shift: &[0.0; 8], rows: 3 };
        layer_norm(Isa::Portable, &[0f32; 32], 8, EPS, Some(&affine), &mut [0f32; 32]);
    }
}
