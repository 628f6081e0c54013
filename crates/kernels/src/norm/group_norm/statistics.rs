use rayon::prelude::*;

use super::GroupNorm;
use crate::isa::{Body, Isa};
use crate::norm::rows_per_sum;
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};

/// What is known of the groups of channels of images, or of a part of their pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupStatistics {
    /// Numbers in each group of each image.
    count: f64,
    /// Of each group of each image, `[batch, groups]`, the mean and the sum of squared distances from it.
    moments: Vec<(f64, f64)>,
}

impl GroupStatistics {
    /// Of `count` numbers in each group of each image, the mean and the variance, `[batch, groups]`.
    pub fn new(count: usize, moments: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let count = count as f64;
        Self { count, moments: moments.into_iter().map(|(mean, variance)| (mean, variance * count)).collect() }
    }

    /// Adds those of other pixels of the same images.
    ///
    /// # Panics
    /// They have another number of groups.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.moments.len(), other.moments.len(), "statistics of other groups");
        let count = self.count + other.count;
        for ((mean, squares), (of_other, more)) in self.moments.iter_mut().zip(&other.moments) {
            let distance = of_other - *mean;
            *squares += more + distance * distance * self.count * other.count / count;
            *mean += distance * other.count / count;
        }
        self.count = count;
    }

    /// Mean and inverse standard deviation of each group of each image.
    pub(super) fn normalisers(&self, eps: f32) -> impl Iterator<Item = (f64, f64)> {
        self.moments.iter().map(move |(mean, squares)| (*mean, 1.0 / (squares / self.count + f64::from(eps)).sqrt()))
    }
}

/// Those of `xs`, `[batch, pixels, channels]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn group_norm_statistics<T: Element>(isa: Isa, xs: &[T], norm: &GroupNorm) -> GroupStatistics {
    let GroupNorm { batch, channels, groups, .. } = *norm;
    let pixels = norm.pixels(xs.len());
    let piece = rows_per_sum(channels);
    let pieces = pixels.div_ceil(piece);
    // For each piece and group the mean, and the sum of squared distances from it.
    let mut moments = vec![(0f64, 0f64); batch * pieces * groups];
    moments.par_chunks_mut(groups).enumerate().for_each_init(
        || vec![0f32; 3 * channels],
        |sums, (i, moments)| {
            let (image, first) = (i / pieces, i % pieces * piece);
            let count = piece.min(pixels - first);
            let xs = &xs[(image * pixels + first) * channels..][..count * channels];
            isa.run(ChannelSums { xs, channels, sums });
            moments_of_groups(sums, count, moments);
        },
    );
    let moments_of = |image: usize, group: usize| {
        let pieces = moments[image * pieces * groups..].chunks_exact(groups).take(pieces);
        pieces.enumerate().map(move |(i, moments)| (piece.min(pixels - i * piece) as f64, moments[group]))
    };
    let of_group = |i: usize| {
        let (image, group) = (i / groups, i % groups);
        let mean = moments_of(image, group).map(|(count, (mean, _))| count * mean).sum::<f64>() / pixels as f64;
        let squares: f64 = moments_of(image, group)
            .map(|(count, (part, squares))| squares + count * (channels / groups) as f64 * (part - mean).powi(2))
            .sum();
        (mean, squares)
    };
    let moments = (0..batch * groups).into_par_iter().map(of_group).collect();
    GroupStatistics { count: (pixels * (channels / groups)) as f64, moments }
}

/// Of each channel of a few pixels: a number near its mean, the sum of the distances from that number, and the sum of
/// their squares. Distances from a number that is not near the mean would be squared to something large, of which f32
/// keeps too few digits.
struct ChannelSums<'a, T> {
    /// `[pixels, channels]`.
    xs: &'a [T],
    channels: usize,
    /// `[3, channels]`, overwritten.
    sums: &'a mut [f32],
}

impl<T: Element> Body for ChannelSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        // Four vectors are two lines of cache in bf16, and as many sums as hide the time an addition takes.
        const VECTORS: usize = 4;
        let mut start = 0;
        while start + VECTORS * LANES <= self.channels {
            self.columns::<S, VECTORS>(s, start);
            start += VECTORS * LANES;
        }
        while start < self.channels {
            self.columns::<S, 1>(s, start);
            start += LANES;
        }
    }
}

impl<T: Element> ChannelSums<'_, T> {
    #[inline(always)]
    fn columns<S: Simd, const VECTORS: usize>(&mut self, s: S, start: usize) {
        let columns = start..self.channels.min(start + VECTORS * LANES);
        let mut means = [s.splat(0.0); VECTORS];
        for pixel in self.xs.chunks_exact(self.channels) {
            let xs = &pixel[columns.clone()];
            for (v, mean) in means.iter_mut().enumerate() {
                *mean = s.add(*mean, load_up_to(s, &xs[v * LANES..]));
            }
        }
        let pixels = self.xs.len() / self.channels;
        for mean in &mut means {
            *mean = s.mul(*mean, s.splat(1.0 / pixels as f32));
        }
        let (mut distances, mut squares) = ([s.splat(0.0); VECTORS], [s.splat(0.0); VECTORS]);
        for pixel in self.xs.chunks_exact(self.channels) {
            let xs = &pixel[columns.clone()];
            for v in 0..VECTORS {
                let distance = s.sub(load_up_to(s, &xs[v * LANES..]), means[v]);
                distances[v] = s.add(distances[v], distance);
                squares[v] = s.mul_add(distance, distance, squares[v]);
            }
        }
        for (sums, vectors) in self.sums.chunks_exact_mut(self.channels).zip([means, distances, squares]) {
            let sums = &mut sums[columns.clone()];
            for (v, vector) in vectors.into_iter().enumerate() {
                store_up_to(s, vector, &mut sums[v * LANES..]);
            }
        }
    }
}

/// From the [`ChannelSums`] of `pixels` pixels to the mean of each group and the sum of squared distances from it.
fn moments_of_groups(sums: &[f32], pixels: usize, moments: &mut [(f64, f64)]) {
    let (channels, pixels) = (sums.len() / 3, pixels as f64);
    let per_group = channels / moments.len();
    let channel = |c: usize| {
        let [near, distance, square] = [0, 1, 2].map(|n| f64::from(sums[n * channels + c]));
        (near + distance / pixels, square - distance * distance / pixels)
    };
    for (group, moments) in moments.iter_mut().enumerate() {
        let of_group = || (group * per_group..(group + 1) * per_group).map(channel);
        let mean = of_group().map(|(mean, _)| mean).sum::<f64>() / per_group as f64;
        *moments = (mean, of_group().map(|(part, squares)| squares + pixels * (part - mean).powi(2)).sum());
    }
}
