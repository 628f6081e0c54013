use half::bf16;

use super::*;
use crate::activation::tests::{ALL, reference};
use crate::testing::{TestElement, assert_close, assert_same_in_any_threads, random, slopes, wide};

const EPS: f32 = 1e-6;

/// Channels, groups, and pixels: vectors whole and not, groups inside a vector and across, several pieces.
const SHAPES: [(usize, usize, usize); 8] =
    [(8, 4, 5), (12, 3, 33), (36, 9, 17), (64, 1, 2), (33, 11, 700), (80, 16, 9), (128, 32, 600), (2, 2, 1000)];

fn example<'a>(
    channels: usize,
    groups: usize,
    weight: &'a [f32],
    bias: &'a [f32],
    activation: Activation,
) -> GroupNorm<'a> {
    GroupNorm { batch: 2, channels, groups, eps: EPS, weight, bias, activation }
}

/// The normed values before weight and bias, and the inverse deviation that goes with each.
fn normed(xs: &[f64], norm: &GroupNorm) -> (Vec<f64>, Vec<f64>) {
    let means = means_over_groups(xs, norm);
    let squares: Vec<f64> = xs.iter().zip(&means).map(|(x, mean)| (x - mean).powi(2)).collect();
    let inverses: Vec<f64> =
        means_over_groups(&squares, norm).into_iter().map(|v| 1.0 / (v + f64::from(norm.eps)).sqrt()).collect();
    let normed = xs.iter().zip(means).zip(&inverses).map(|((x, mean), inverse)| (x - mean) * inverse).collect();
    (normed, inverses)
}

/// For each element the mean of the group it is in.
fn means_over_groups(xs: &[f64], norm: &GroupNorm) -> Vec<f64> {
    let (image, per_group) = (xs.len() / norm.batch, norm.channels / norm.groups);
    let group = |i: usize| i / image * norm.groups + i % norm.channels / per_group;
    let mut sums = vec![0f64; norm.batch * norm.groups];
    xs.iter().enumerate().for_each(|(i, x)| sums[group(i)] += x);
    (0..xs.len()).map(|i| sums[group(i)] / (image / norm.groups) as f64).collect()
}

fn forward(xs: &[f64], norm: &GroupNorm) -> Vec<f64> {
    let affine = |(i, x): (usize, f64)| {
        let c = i % norm.channels;
        reference(norm.activation, x * f64::from(norm.weight[c]) + f64::from(norm.bias[c])).0
    };
    normed(xs, norm).0.into_iter().enumerate().map(affine).collect()
}

/// The gradients of input, weight and bias.
fn backward(xs: &[f64], norm: &GroupNorm, dys: &[f64]) -> [Vec<f64>; 3] {
    let (normed, inverses) = normed(xs, norm);
    let (mut d_weight, mut d_bias) = (vec![0f64; norm.channels], vec![0f64; norm.channels]);
    let mut d_normed = Vec::new();
    for (i, (x, dy)) in normed.iter().zip(dys).enumerate() {
        let c = i % norm.channels;
        let weight = f64::from(norm.weight[c]);
        let gradient = dy * reference(norm.activation, x * weight + f64::from(norm.bias[c])).1;
        d_weight[c] += gradient * x;
        d_bias[c] += gradient;
        d_normed.push(gradient * weight);
    }
    let means = means_over_groups(&d_normed, norm);
    let products: Vec<f64> = d_normed.iter().zip(&normed).map(|(d, x)| d * x).collect();
    let along = means_over_groups(&products, norm);
    let dxs = (0..xs.len()).map(|i| inverses[i] * (d_normed[i] - means[i] - normed[i] * along[i])).collect();
    [dxs, d_weight, d_bias]
}

fn check<T: TestElement>() {
    for ((channels, groups, pixels), activation) in SHAPES.into_iter().zip(ALL.into_iter().cycle()) {
        let (weight, bias) = (random::<f32>(channels, 1), random::<f32>(channels, 2));
        let norm = example(channels, groups, &weight, &bias, activation);
        let (xs, dys) = (random::<T>(2 * pixels * channels, 3), random::<T>(2 * pixels * channels, 4));
        let ys = forward(&wide(&xs), &norm);
        let [dxs, d_weight, d_bias] = backward(&wide(&xs), &norm, &wide(&dys));
        for isa in Isa::available() {
            let what = format!("{isa:?}, {pixels} pixels of {channels} channels in {groups} groups, {activation:?}");
            let mut found = vec![T::default(); xs.len()];
            group_norm(isa, &xs, &norm, &mut found);
            assert_close(&found, &ys, 2e-6, &what);
            let (mut weights, mut biases) = (vec![9f32; channels], vec![9f32; channels]);
            group_norm_backward(isa, &xs, &norm, &dys, &mut found, &mut weights, &mut biases);
            assert_close(&found, &dxs, 3e-6, &what);
            assert_close(&weights, &d_weight, 3e-6, &what);
            assert_close(&biases, &d_bias, 3e-6, &what);
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
    let (channels, pixels) = (6, 5);
    let (weight, bias) = (random::<f32>(channels, 1), random::<f32>(channels, 2));
    for activation in ALL {
        let norm = example(channels, 3, &weight, &bias, activation);
        let (xs, dys) = (random::<f32>(2 * pixels * channels, 3), random::<f32>(2 * pixels * channels, 4));
        let loss = |xs: &[f64]| forward(xs, &norm).iter().zip(wide(&dys)).map(|(y, dy)| y * dy).sum::<f64>();
        let slopes = slopes(&wide(&xs), loss);
        let mut dxs = vec![0f32; xs.len()];
        let (mut d_weight, mut d_bias) = (vec![0f32; channels], vec![0f32; channels]);
        group_norm_backward(Isa::Portable, &xs, &norm, &dys, &mut dxs, &mut d_weight, &mut d_bias);
        assert_close(&dxs, &slopes, 1e-5, &format!("{activation:?}"));
    }
}

/// A million numbers whose mean is a thousand times their deviation, and with a first pixel far from all others.
#[test]
fn statistics_keep_their_digits() {
    let (channels, pixels) = (16, 1 << 16);
    let (weight, bias) = (vec![1f32; channels], vec![0f32; channels]);
    let norm = GroupNorm { batch: 1, ..example(channels, 4, &weight, &bias, Activation::None) };
    let mut xs: Vec<f32> = random::<f32>(pixels * channels, 1).into_iter().map(|x| x + 1000.0).collect();
    for outlier in [false, true] {
        if outlier {
            xs[..channels].fill(0.0);
        }
        let values = wide(&xs);
        let (normed, inverses) = normed(&values, &norm);
        for isa in Isa::available() {
            let found = group_norm_coefficients(isa, &xs, &norm);
            for c in 0..channels {
                let what = format!("{isa:?}, channel {c}, outlier: {outlier}");
                let (factor, summand) = (f64::from(found[c]), f64::from(found[channels + c]));
                assert!((factor / inverses[c] - 1.0).abs() < 3e-7, "{what}: {factor}, not {}", inverses[c]);
                let expected = normed[c] - values[c] * inverses[c];
                assert!((summand / expected - 1.0).abs() < 3e-7, "{what}: {summand}, not {expected}");
            }
        }
    }
}

/// Statistics of parts of images, added up, are those of the images.
#[test]
fn statistics_add_up() {
    let (channels, groups) = (12, 3);
    let (weight, bias) = (random::<f32>(channels, 1), random::<f32>(channels, 2));
    let norm = GroupNorm { batch: 1, ..example(channels, groups, &weight, &bias, Activation::None) };
    let mut xs = random::<f32>(300 * channels, 3);
    xs[..100 * channels].iter_mut().for_each(|x| *x = 5.0 * *x + 40.0);
    for isa in Isa::available() {
        let mut added = group_norm_statistics(isa, &xs[..37 * channels], &norm);
        for part in [37..100, 100..101, 101..300] {
            added.add(&group_norm_statistics(isa, &xs[part.start * channels..part.end * channels], &norm));
        }
        let (found, expected) = (group_norm_coefficients_of(&added, &norm), group_norm_coefficients(isa, &xs, &norm));
        for (x, y) in found.iter().zip(&expected) {
            assert!((x - y).abs() <= 3e-7 * y.abs(), "{isa:?}: {x}, not {y}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let (channels, pixels) = (36, 3000);
    let (weight, bias) = (random::<f32>(channels, 1), random::<f32>(channels, 2));
    let norm = example(channels, 9, &weight, &bias, Activation::Silu);
    let (xs, dys) = (random::<bf16>(2 * pixels * channels, 3), random::<bf16>(2 * pixels * channels, 4));
    let work = || {
        let isa = *Isa::available().last().expect("there is always one");
        let (mut ys, mut dxs) = (xs.clone(), xs.clone());
        let (mut d_weight, mut d_bias) = (vec![0f32; channels], vec![0f32; channels]);
        group_norm(isa, &xs, &norm, &mut ys);
        group_norm_backward(isa, &xs, &norm, &dys, &mut dxs, &mut d_weight, &mut d_bias);
        (ys, dxs, d_weight, d_bias)
    };
    assert_same_in_any_threads(work, "group norm");
}

#[test]
#[should_panic(expected = "10 channels do not divide into 4 groups")]
fn a_ragged_group_is_refused() {
    let norm = example(10, 4, &[1.0; 10], &[0.0; 10], Activation::None);
    group_norm_coefficients(Isa::Portable, &[0f32; 40], &norm);
}
