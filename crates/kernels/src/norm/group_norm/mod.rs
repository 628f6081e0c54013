//! Group normalisation of images whose channels stand together.

mod backward;
mod statistics;
#[cfg(test)]
mod tests;

pub use backward::group_norm_backward;
pub use statistics::{GroupStatistics, group_norm_statistics};

use rayon::prelude::*;

use super::{rows_per_task, whole_rows};
use crate::activation::Activation;
use crate::isa::{Body, Isa};
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// A group normalisation (Wu & He 2018) of images `[batch, pixels, channels]`: in every image each group of
/// `channels / groups` neighbouring channels is brought to mean 0 and variance 1 together, then every channel is
/// multiplied by its weight and moved by its bias.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Number of images.
    pub batch: usize,
    /// Channels of a pixel.
    pub channels: usize,
    /// Groups of channels: a divisor of `channels`.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// `[channels]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: &'a [f32],
    /// Applied after the norm.
    pub activation: Activation,
}

impl GroupNorm<'_> {
    /// The number of pixels of each image. Panics where something does not fit.
    #[track_caller]
    fn pixels(&self, elements: usize) -> usize {
        let Self { batch, channels, groups, .. } = *self;
        assert!(batch > 0 && groups > 0, "group norm: {batch} images, {groups} groups");
        assert!(channels.is_multiple_of(groups), "group norm: {channels} channels do not divide into {groups} groups");
        assert!(
            self.weight.len() == channels && self.bias.len() == channels,
            "group norm: weight and bias must have one element for each of {channels} channels"
        );
        let pixels = whole_rows(elements, batch * channels);
        assert!(pixels > 0, "group norm: images without pixels");
        pixels
    }
}

/// The norm of `xs`, `[batch, pixels, channels]`, as a factor and a summand for each channel of each image: the norm,
/// before its activation, is `xs · a + b`. Gives `[batch, 2, channels]`, `a` then `b`.
///
/// # Panics
/// If the lengths do not fit.
pub fn group_norm_coefficients<T: Element>(isa: Isa, xs: &[T], norm: &GroupNorm) -> Vec<f32> {
    group_norm_coefficients_of(&group_norm_statistics(isa, xs, norm), norm)
}

/// As [`group_norm_coefficients`], of images of which the statistics are known.
///
/// # Panics
/// They are of other groups.
pub fn group_norm_coefficients_of(statistics: &GroupStatistics, norm: &GroupNorm) -> Vec<f32> {
    let statistics: Vec<_> = statistics.normalisers(norm.eps).collect();
    assert_eq!(statistics.len(), norm.batch * norm.groups, "statistics of other groups");
    let mut coefficients = vec![0f32; norm.batch * 2 * norm.channels];
    let images = coefficients.chunks_exact_mut(2 * norm.channels);
    for (image, statistics) in images.zip(statistics.chunks_exact(norm.groups)) {
        let (factors, summands) = image.split_at_mut(norm.channels);
        for (c, (factor, summand)) in factors.iter_mut().zip(summands).enumerate() {
            let (mean, inverse) = statistics[c / (norm.channels / norm.groups)];
            let exact = inverse * f64::from(norm.weight[c]);
            (*factor, *summand) = (exact as f32, (f64::from(norm.bias[c]) - mean * exact) as f32);
        }
    }
    coefficients
}

/// `activation(group_norm(xs))`; `xs` is `[batch, pixels, channels]`, and so is `ys`. Reads `xs` twice.
///
/// # Panics
/// If the lengths do not fit.
pub fn group_norm<T: Element>(isa: Isa, xs: &[T], norm: &GroupNorm, ys: &mut [T]) {
    assert_eq!(ys.len(), xs.len(), "group norm: the result's length");
    let coefficients = group_norm_coefficients(isa, xs, norm);
    let image = xs.len() / norm.batch;
    let task = rows_per_task(norm.channels) * norm.channels;
    (xs.par_chunks(image), ys.par_chunks_mut(image), coefficients.par_chunks(2 * norm.channels))
        .into_par_iter()
        .for_each(|(xs, ys, coefficients)| {
            xs.par_chunks(task).zip(ys.par_chunks_mut(task)).for_each(|(xs, ys)| {
                isa.run(Apply { xs, coefficients, activation: norm.activation, ys });
            });
        });
}

struct Apply<'a, T> {
    xs: &'a [T],
    /// `[2, channels]`.
    coefficients: &'a [f32],
    activation: Activation,
    ys: &'a mut [T],
}

impl<T: Element> Body for Apply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.coefficients.len() / 2;
        let (factors, summands) = self.coefficients.split_at(channels);
        for (xs, ys) in self.xs.chunks_exact(channels).zip(self.ys.chunks_exact_mut(channels)) {
            for_each_vector!(channels, |start, vector| {
                let (factor, summand) = (vector::load(s, factors, start), vector::load(s, summands, start));
                let normed = s.mul_add(vector::load(s, xs, start), factor, summand);
                vector::store(s, self.activation.apply(s, normed), ys, start);
            });
        }
    }
}
