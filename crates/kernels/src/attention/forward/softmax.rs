//! Raw scores become weights.

use crate::gemm::{Bf16, F32, Int8, MAX_VECTORS, Product, Words, load_f32};
use crate::math::exp2;
use crate::memory::Line;
use crate::simd::Simd;

/// In what the weights of the softmax go into the second product.
pub(in crate::attention) trait Weights: Words {
    /// The word of each lane's first [`Product::GROUP`] numbers.
    fn group<S: Simd>(s: S, xs: [S::F32; 2]) -> S::Bits;
}

impl Weights for F32 {
    #[inline(always)]
    fn group<S: Simd>(s: S, [x, _]: [S::F32; 2]) -> S::Bits {
        s.as_bits(x)
    }
}

impl Weights for Bf16 {
    #[inline(always)]
    fn group<S: Simd>(s: S, [low, high]: [S::F32; 2]) -> S::Bits {
        s.pair_bf16(low, high)
    }
}

/// Of each query, what turns its raw scores into exponents of 2: they are multiplied with `scale`, and `offset` is added.
#[derive(Clone, Copy)]
pub(super) struct Exponents<S: Simd> {
    pub scale: [S::F32; MAX_VECTORS],
    pub offset: [S::F32; MAX_VECTORS],
}

impl<S: Simd> Exponents<S> {
    /// The same for all queries.
    #[inline(always)]
    pub fn scaled(s: S, scale: f32) -> Self {
        Self { scale: [s.splat(scale); MAX_VECTORS], offset: [s.splat(0.0); MAX_VECTORS] }
    }
}

/// Of each query, the largest exponent so far (of 2), and the sum of weights relative to it.
#[derive(Clone, Copy)]
pub(super) struct Running<S: Simd> {
    pub largest: [S::F32; MAX_VECTORS],
    pub totals: [S::F32; MAX_VECTORS],
}

/// A line of raw scores, sums of the product `R`, as numbers.
#[inline(always)]
pub(super) fn raw_score<S: Simd, R: Product>(s: S, line: &Line) -> S::F32 {
    match R::GROUP == Int8::GROUP {
        true => s.to_f32(s.load_bits(&line.0)),
        false => load_f32(s, line),
    }
}

/// `2^exponent`, as exact as the scores are and the product with the values needs it.
#[inline(always)]
fn weight<S: Simd, K: Product, P: Product>(s: S, exponent: S::F32) -> S::F32 {
    match K::GROUP == Int8::GROUP {
        true => exp2::<S, Bf16>(s, exponent),
        false => exp2::<S, P>(s, exponent),
    }
}

/// Turns raw scores of the product `R`, `V` lines for each key, into weights `2^(exponent - largest)`, where `largest` becomes the largest
/// exponent so far. Returns what sums relative to the one before are to be multiplied with.
#[inline(always)]
pub(super) fn softmax<S: Simd, R: Product, K: Product, P: Weights, const V: usize>(
    s: S,
    scores: &[Line],
    Exponents { scale, offset }: Exponents<S>,
    running: &mut Running<S>,
    weights: &mut [Line],
) -> [S::F32; MAX_VECTORS] {
    let scores = scores.as_chunks::<V>().0;
    let mut most = [[s.splat(f32::MIN); V]; 2];
    let (pairs, last) = scores.as_chunks::<2>();
    for pair in pairs.iter() {
        for (most, scores) in most.iter_mut().zip(pair) {
            for v in 0..V {
                most[v] = s.max(most[v], raw_score::<S, R>(s, &scores[v]));
            }
        }
    }
    for scores in last {
        for v in 0..V {
            most[0][v] = s.max(most[0][v], raw_score::<S, R>(s, &scores[v]));
        }
    }
    let mut kept = [s.splat(1.0); MAX_VECTORS];
    let mut minus_largest = [s.splat(0.0); V];
    for v in 0..V {
        let largest = s.max(running.largest[v], s.mul_add(s.max(most[0][v], most[1][v]), scale[v], offset[v]));
        // To f32's precision: it is exactly 1 where the largest stays.
        kept[v] = exp2::<S, F32>(s, s.sub(running.largest[v], largest));
        running.largest[v] = largest;
        minus_largest[v] = s.sub(offset[v], largest);
    }
    let mut totals = [[s.splat(0.0); V]; 2];
    let whole = scores.len() / P::GROUP * P::GROUP;
    for (group, weights) in (0..whole).step_by(P::GROUP).zip(weights.as_chunks_mut::<V>().0) {
        for v in 0..V {
            let mut xs = [s.splat(0.0); 2];
            for i in 0..P::GROUP {
                let exponent = s.mul_add(raw_score::<S, R>(s, &scores[group + i][v]), scale[v], minus_largest[v]);
                xs[i] = weight::<S, K, P>(s, exponent);
                totals[i][v] = s.add(totals[i][v], xs[i]);
            }
            s.store_bits(P::group(s, xs), &mut weights[v].0);
        }
    }
    // Half a group at the end.
    for last in &scores[whole..] {
        for v in 0..V {
            let exponent = s.mul_add(raw_score::<S, R>(s, &last[v]), scale[v], minus_largest[v]);
            let weight = weight::<S, K, P>(s, exponent);
            totals[0][v] = s.add(totals[0][v], weight);
            let bits = P::group(s, [weight, s.splat(0.0)]);
            s.store_bits(bits, &mut weights[whole / P::GROUP * V + v].0);
        }
    }
    for v in 0..V {
        running.totals[v] = s.mul_add(running.totals[v], kept[v], s.add(totals[0][v], totals[1][v]));
    }
    kept
}
