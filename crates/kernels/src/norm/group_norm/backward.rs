use rayon::prelude::*;

use super::{GroupNorm, group_norm_coefficients_of, group_norm_statistics};
use crate::activation::Activation;
use crate::isa::{Body, Isa};
use crate::norm::{rows_per_sum, rows_per_task};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// The gradients of [`group_norm`](super::group_norm()): `dys` is that of its result, `dxs` becomes that of its input,
/// both `[batch, pixels, channels]`, and `d_weight` and `d_bias`, `[channels]`, those of its weights. Nothing is added
/// to: everything is overwritten.
///
/// # Panics
/// If the lengths do not fit.
pub fn group_norm_backward<T: Element>(
    isa: Isa,
    xs: &[T],
    norm: &GroupNorm,
    dys: &[T],
    dxs: &mut [T],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let GroupNorm { batch, channels, groups, activation, .. } = *norm;
    let pixels = norm.pixels(xs.len());
    assert!(dys.len() == xs.len() && dxs.len() == xs.len(), "group norm: the gradients' lengths");
    assert!(
        d_weight.len() == channels && d_bias.len() == channels,
        "group norm: the lengths of the gradients of weight and bias"
    );
    let statistics = group_norm_statistics(isa, xs, norm);
    let coefficients = group_norm_coefficients_of(&statistics, norm);
    let statistics: Vec<_> = statistics.normalisers(norm.eps).collect();
    let mut tables = vec![0f32; batch * Table::ROWS * channels];
    for (image, table) in tables.chunks_exact_mut(Table::ROWS * channels).enumerate() {
        table[..2 * channels].copy_from_slice(&coefficients[image * 2 * channels..][..2 * channels]);
        for c in 0..channels {
            let (mean, inverse) = statistics[image * groups + c / (channels / groups)];
            (table[2 * channels + c], table[3 * channels + c]) = (mean as f32, inverse as f32);
        }
    }

    let totals = weight_gradients(isa, xs, norm, dys, &tables);
    for (n, gradient) in [d_weight, d_bias].into_iter().enumerate() {
        for (c, gradient) in gradient.iter_mut().enumerate() {
            *gradient = totals.chunks_exact(channels).skip(n).step_by(2).map(|totals| totals[c]).sum::<f64>() as f32;
        }
    }

    let per_group = channels / groups;
    for (image, table) in tables.chunks_exact_mut(Table::ROWS * channels).enumerate() {
        for group in 0..groups {
            let of_group = group * per_group..(group + 1) * per_group;
            let inverse = statistics[image * groups + group].1;
            // The means over the group of the gradient of the normed values, and of that times the normed values.
            let [along, mean] = [0, 1].map(|n| {
                let totals = &totals[(2 * image + n) * channels..][..channels];
                let sum: f64 = of_group.clone().map(|c| f64::from(norm.weight[c]) * totals[c]).sum();
                (inverse * sum / (pixels * per_group) as f64) as f32
            });
            table[4 * channels..5 * channels][of_group.clone()].fill(mean);
            table[5 * channels..][of_group].fill(along);
        }
    }
    let (image, task) = (pixels * channels, rows_per_task(channels) * channels);
    (xs.par_chunks(image), dys.par_chunks(image), dxs.par_chunks_mut(image), tables.par_chunks(Table::ROWS * channels))
        .into_par_iter()
        .for_each(|(xs, dys, dxs, table)| {
            let table = Table::new(table, channels);
            (xs.par_chunks(task), dys.par_chunks(task), dxs.par_chunks_mut(task))
                .into_par_iter()
                .for_each(|(xs, dys, dxs)| isa.run(InputGradient { xs, dys, table, activation, dxs }));
        });
}

/// The gradients of weight and bias from each image alone, `[batch, 2, channels]`.
fn weight_gradients<T: Element>(isa: Isa, xs: &[T], norm: &GroupNorm, dys: &[T], tables: &[f32]) -> Vec<f64> {
    let GroupNorm { batch, channels, activation, .. } = *norm;
    let pixels = norm.pixels(xs.len());
    let piece = rows_per_sum(channels);
    let pieces = pixels.div_ceil(piece);
    let mut sums = vec![0f32; batch * pieces * 2 * channels];
    sums.par_chunks_mut(2 * channels).enumerate().for_each(|(i, sums)| {
        let (image, first) = (i / pieces, i % pieces * piece);
        let start = (image * pixels + first) * channels;
        let part = start..start + piece.min(pixels - first) * channels;
        let table = Table::new(&tables[image * Table::ROWS * channels..], channels);
        isa.run(WeightGradients { xs: &xs[part.clone()], dys: &dys[part], table, activation, sums });
    });
    let mut totals = vec![0f64; batch * 2 * channels];
    for (totals, sums) in totals.chunks_exact_mut(2 * channels).zip(sums.chunks_exact(pieces * 2 * channels)) {
        for sums in sums.chunks_exact(2 * channels) {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(*sum));
        }
    }
    totals
}

/// What the backward pass needs to know of each channel of an image, `[channels]` each.
#[derive(Clone, Copy)]
struct Table<'a> {
    factors: &'a [f32],
    summands: &'a [f32],
    means: &'a [f32],
    inverses: &'a [f32],
    /// What is taken off the gradient of the input everywhere.
    offsets: &'a [f32],
    /// What is taken off it for each unit of the normed input.
    slopes: &'a [f32],
}

impl<'a> Table<'a> {
    const ROWS: usize = 6;

    fn new(table: &'a [f32], channels: usize) -> Self {
        let row = |n: usize| &table[n * channels..][..channels];
        Self { factors: row(0), summands: row(1), means: row(2), inverses: row(3), offsets: row(4), slopes: row(5) }
    }
}

struct WeightGradients<'a, T> {
    xs: &'a [T],
    dys: &'a [T],
    table: Table<'a>,
    activation: Activation,
    /// `[2, channels]`: of the weight, of the bias.
    sums: &'a mut [f32],
}

impl<T: Element> Body for WeightGradients<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table = &self.table;
        let channels = table.factors.len();
        let (of_weight, of_bias) = self.sums.split_at_mut(channels);
        for (xs, dys) in self.xs.chunks_exact(channels).zip(self.dys.chunks_exact(channels)) {
            for_each_vector!(channels, |start, vector| {
                let x = vector::load(s, xs, start);
                let normed =
                    s.mul(s.sub(x, vector::load(s, table.means, start)), vector::load(s, table.inverses, start));
                let (factor, summand) = (vector::load(s, table.factors, start), vector::load(s, table.summands, start));
                let slope = self.activation.gradient(s, s.mul_add(x, factor, summand));
                let gradient = s.mul(vector::load(s, dys, start), slope);
                let (weight, bias) = (vector::load(s, of_weight, start), vector::load(s, of_bias, start));
                vector::store(s, s.mul_add(gradient, normed, weight), of_weight, start);
                vector::store(s, s.add(gradient, bias), of_bias, start);
            });
        }
    }
}

struct InputGradient<'a, T> {
    xs: &'a [T],
    dys: &'a [T],
    table: Table<'a>,
    activation: Activation,
    dxs: &'a mut [T],
}

impl<T: Element> Body for InputGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let table = &self.table;
        let channels = table.factors.len();
        let pixels = self.xs.chunks_exact(channels).zip(self.dys.chunks_exact(channels));
        for ((xs, dys), dxs) in pixels.zip(self.dxs.chunks_exact_mut(channels)) {
            for_each_vector!(channels, |start, vector| {
                let x = vector::load(s, xs, start);
                let normed =
                    s.mul(s.sub(x, vector::load(s, table.means, start)), vector::load(s, table.inverses, start));
                let (factor, summand) = (vector::load(s, table.factors, start), vector::load(s, table.summands, start));
                let slope = self.activation.gradient(s, s.mul_add(x, factor, summand));
                let gradient = s.mul(vector::load(s, dys, start), slope);
                let offset = vector::load(s, table.offsets, start);
                let removed = s.mul_add(normed, vector::load(s, table.slopes, start), offset);
                vector::store(s, s.sub(s.mul(gradient, factor), removed), dxs, start);
            });
        }
    }
}
