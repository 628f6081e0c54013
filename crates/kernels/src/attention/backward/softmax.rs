//! The gradient of a row's softmax.

use crate::gemm::{F32, load_f32, store_f32};
use crate::math::exp2;
use crate::memory::Line;
use crate::simd::{LANES, Simd, load_up_to};

/// Of one query: turns the products of `scores` with the keys, unscaled, into weights, and `d_scores`, the gradients of
/// the weights, into those of the products.
#[inline(always)]
pub(super) fn softmax_backward<S: Simd>(
    s: S,
    scores: &mut [Line],
    d_scores: &mut [Line],
    keys: usize,
    scale: f32,
    bias: Option<&[f32]>,
) {
    let vectors = keys.div_ceil(LANES);
    let (scores, d_scores) = (&mut scores[..vectors], &mut d_scores[..vectors]);
    // Lanes beyond the last key hold what stood in memory.
    if !keys.is_multiple_of(LANES) {
        scores[vectors - 1].0[keys % LANES..].fill(f32::MIN.to_bits());
        d_scores[vectors - 1].0[keys % LANES..].fill(0);
    }
    // Exponents of 2, as in the forward pass.
    let mut exponent_scale = s.splat(scale * std::f32::consts::LOG2_E);
    if let Some(bias) = bias {
        for (line, bias) in scores.iter_mut().zip(bias.chunks(LANES)) {
            let bias = s.mul(load_up_to(s, bias), s.splat(std::f32::consts::LOG2_E));
            let score = s.mul_add(load_f32(s, line), exponent_scale, bias);
            store_f32(s, s.max(score, s.splat(f32::MIN)), line);
        }
        exponent_scale = s.splat(1.0);
    }
    let mut largest = s.splat(f32::MIN);
    for line in &*scores {
        largest = s.max(largest, load_f32(s, line));
    }
    let minus_largest = s.sub(s.splat(0.0), s.mul(s.splat(s.largest(largest)), exponent_scale));
    // The sums of the weights and of their products with their gradients, both before the weights are divided.
    let (mut total, mut dot) = (s.splat(0.0), s.splat(0.0));
    for (score, gradient) in scores.iter_mut().zip(&*d_scores) {
        let weight = exp2::<S, F32>(s, s.mul_add(load_f32(s, score), exponent_scale, minus_largest));
        total = s.add(total, weight);
        dot = s.mul_add(weight, load_f32(s, gradient), dot);
        store_f32(s, weight, score);
    }
    let inverse = 1.0 / s.sum(total);
    let (mean, scale, inverse) = (s.splat(s.sum(dot) * inverse), s.splat(scale), s.splat(inverse));
    for (score, gradient) in scores.iter_mut().zip(d_scores) {
        let weight = s.mul(load_f32(s, score), inverse);
        store_f32(s, weight, score);
        let d_score = s.mul(s.mul(weight, scale), s.sub(load_f32(s, gradient), mean));
        store_f32(s, d_score, gradient);
    }
}
