use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::rows::{CopyRows, StoreRows};
use super::{Heads, ScoreBias};
use crate::gemm::{
    F32, Left, MAX_VECTORS, PackRows, Right, Rows, Run, add_outer_products, load_f32, multiply, padded_stride,
    store_f32,
};
use crate::isa::Body;
use crate::math::exp2;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to};
use crate::{Isa, Matrix};

/// Bytes that the weights of a block of queries and their gradients take: half of a common second-level cache.
const BLOCK_BYTES: usize = 512 << 10;

/// Queries of a block, at least and at most: enough that adding the block's part to the gradients of keys and values is
/// little beside computing it.
const BLOCK_QUERIES: [usize; 2] = [56, 112];

/// The gradients of [`attention`](super::attention) from that of its result, `d_out` `[batch · n, heads · size]`: `d_q`
/// like it, `d_k` and `d_v` `[batch · m, heads · size]`, all overwritten. Products are computed in f32.
///
/// Neither weights nor the forward's result are needed: they are computed again, a block of queries at a time (as in Dao
/// et al. 2022, algorithm 4, but with all keys of a block at once). With P the weights and ∘ by elements,
/// `dP = dO · Vᵀ`, `dS = P ∘ (dP - rowsum(P ∘ dP)) · scale`, `dQ = dS · K`, `dK = dSᵀ · Q` and `dV = Pᵀ · dO`.
///
/// # Panics
/// The shapes do not belong together, or the scale is not above 0.
pub fn attention_backward<T: Element>(
    isa: Isa,
    scratch: &Scratch,
    heads: &Heads<T>,
    d_out: &[T],
    d_q: &mut [T],
    d_k: &mut [T],
    d_v: &mut [T],
) {
    heads.check();
    let width = heads.q.columns;
    assert!([d_out.len(), d_q.len()] == [heads.q.rows * width; 2], "the gradients of q and of the result are like q");
    assert!([d_k.len(), d_v.len()] == [heads.k.rows * width; 2], "the gradients of k and v are like them");
    if d_q.is_empty() || d_k.is_empty() {
        for gradient in [d_q, d_k, d_v] {
            gradient.fill(T::default());
        }
        return;
    }
    let sizes = Sizes::new(isa, heads);
    let d_out = Matrix::new(d_out, heads.q.rows, width);
    let (d_q, d_k, d_v) = (&Shared::new(d_q), &Shared::new(d_k), &Shared::new(d_v));
    (0..heads.batch * heads.heads).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, head| {
            let (image, head) = (head / heads.heads, head % heads.heads);
            let work = Work::new(buffer.lines(sizes.lines()), &sizes);
            Head { isa, heads, d_out: &d_out, image, head, sizes, work }.run([d_q, d_k, d_v]);
        },
    );
}

/// Sizes of one head's work.
#[derive(Clone, Copy)]
struct Sizes {
    size: usize,
    queries: usize,
    keys: usize,
    /// Queries of a block.
    block: usize,
    /// Vectors across a tile.
    vectors: usize,
}

impl Sizes {
    fn new<T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
        let (size, queries, keys) = (heads.size(), heads.queries(), heads.keys());
        let [least, most] = BLOCK_QUERIES;
        let block = (BLOCK_BYTES / (2 * 4 * padded_stride(keys))).clamp(least, most);
        let block = block.next_multiple_of(isa.tile_rows()).min(queries);
        Self { size, queries, keys, block, vectors: isa.tile_vectors() }
    }

    /// Vectors of a head's width, and of a row of scores.
    fn vectors_of_size(&self) -> usize {
        self.size.div_ceil(LANES)
    }

    fn vectors_of_keys(&self) -> usize {
        self.keys.div_ceil(LANES)
    }

    /// Lines from one row to the next of queries, and of scores.
    fn query_stride(&self) -> usize {
        padded_stride(self.size) / LANES
    }

    fn score_stride(&self) -> usize {
        padded_stride(self.keys) / LANES
    }

    /// Lines of the parts of [`Work`], in their order.
    fn parts(&self) -> [usize; 10] {
        let packed = self.vectors_of_keys() * self.size;
        let (queries, scores) = (self.block * self.query_stride(), self.block * self.score_stride());
        let (across, words) = (self.keys * self.vectors_of_size(), self.vectors * LANES * self.query_stride());
        [packed, packed, across, words, queries, queries, scores, scores, across, across]
    }

    fn lines(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// What a thread keeps while it works on a head.
struct Work<'a> {
    /// Keys and values, packed with a head's width as depth; keys, packed with the keys as depth.
    keys: &'a mut [Line],
    values: &'a mut [Line],
    keys_across: &'a mut [Line],
    /// Room to pack in.
    words: &'a mut [Line],
    /// Of a block of queries: row after row, the queries and the gradients of their results.
    queries: &'a mut [Line],
    d_outs: &'a mut [Line],
    /// Likewise their scores, then weights, with all keys, and the gradients of these.
    scores: &'a mut [Line],
    d_scores: &'a mut [Line],
    /// Gradients of keys and values so far: key after key.
    d_keys: &'a mut [Line],
    d_values: &'a mut [Line],
}

impl<'a> Work<'a> {
    fn new(mut rest: &'a mut [Line], sizes: &Sizes) -> Self {
        let [keys, values, keys_across, words, queries, d_outs, scores, d_scores, d_keys, d_values] =
            sizes.parts().map(|lines| {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(lines);
                rest = after;
                part
            });
        Self { keys, values, keys_across, words, queries, d_outs, scores, d_scores, d_keys, d_values }
    }
}

/// One head of one image.
struct Head<'a, T> {
    isa: Isa,
    heads: &'a Heads<'a, T>,
    d_out: &'a Matrix<'a, T>,
    image: usize,
    head: usize,
    sizes: Sizes,
    work: Work<'a>,
}

impl<T: Element> Head<'_, T> {
    fn run(mut self, [d_q, d_k, d_v]: [&Shared<T>; 3]) {
        let (isa, sizes, image, head) = (self.isa, self.sizes, self.image, self.head);
        self.pack();
        self.work.d_keys.fill(ZERO);
        self.work.d_values.fill(ZERO);
        for start in (0..sizes.queries).step_by(sizes.block) {
            let rows = start..sizes.queries.min(start + sizes.block);
            let stride = sizes.query_stride();
            for (matrix, lines) in [(&self.heads.q, &mut *self.work.queries), (self.d_out, &mut *self.work.d_outs)] {
                isa.run(CopyRows { matrix: self.heads.part(matrix, image, head), rows: rows.clone(), lines, stride });
            }
            let Heads { scale, bias, .. } = *self.heads;
            isa.run(Block { sizes, rows: rows.clone(), work: &mut self.work, scale, bias, image, head });
            let lines = &self.work.queries[..rows.len() * stride];
            self.store(lines, stride, d_q, image * sizes.queries + start);
        }
        let (first, stride) = (image * sizes.keys, sizes.vectors_of_size());
        self.store(self.work.d_keys, stride, d_k, first);
        self.store(self.work.d_values, stride, d_v, first);
    }

    /// Packs keys and values.
    fn pack(&mut self) {
        let Sizes { size, keys, vectors, .. } = self.sizes;
        let part = |matrix| self.heads.part(matrix, self.image, self.head);
        let (k, v) = (part(&self.heads.k), part(&self.heads.v));
        let mut scales = [1f32; MAX_VECTORS * LANES];
        let mut words = LineWords::new(self.work.words);
        for (matrix, lines, steps) in [
            (k, &mut *self.work.keys, size),
            (v, &mut *self.work.values, size),
            (k.transposed(), &mut *self.work.keys_across, keys),
        ] {
            for (panel, lines) in lines.chunks_mut(vectors * steps).enumerate() {
                self.isa.run(PackRows::<F32, T> {
                    matrix,
                    first: panel * vectors * LANES,
                    lines,
                    scales: &mut scales,
                    words: &mut words,
                    product: PhantomData,
                });
            }
        }
    }

    /// Writes rows, `stride` lines after each other, to this head's part of a gradient, from row `first` on.
    fn store(&self, lines: &[Line], stride: usize, out: &Shared<T>, first: usize) {
        let (size, width) = (self.sizes.size, self.heads.q.columns);
        self.isa.run(StoreRows { lines, stride, out, start: first * width + self.head * size, size, width });
    }
}

/// Some queries of a head, once they have been copied, with all its keys: leaves their gradients in their place, and adds
/// their parts to those of keys and values. Nothing in it depends on the type of activations, so that it is compiled once.
struct Block<'a, 'b> {
    sizes: Sizes,
    rows: Range<usize>,
    work: &'a mut Work<'b>,
    scale: f32,
    bias: Option<ScoreBias<'a>>,
    image: usize,
    head: usize,
}

impl Body for Block<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.scores(s);
        let (keys, stride) = (self.sizes.keys, self.sizes.score_stride());
        for (row, query) in self.rows.clone().enumerate() {
            let bias = self.bias.as_ref().map(|bias| bias.row(self.image, self.head, query, keys));
            let row = row * stride..(row + 1) * stride;
            let (scores, d_scores) = (&mut self.work.scores[row.clone()], &mut self.work.d_scores[row]);
            softmax_backward(s, scores, d_scores, keys, self.scale, bias);
        }
        self.keys_and_values(s);
        self.queries(s);
    }
}

impl Block<'_, '_> {
    /// `queries · keysᵀ` and `d_outs · valuesᵀ`, unscaled.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S) {
        let Sizes { size, vectors, .. } = self.sizes;
        let (stride, across) = (self.sizes.score_stride(), self.sizes.vectors_of_keys());
        let row_stride = self.sizes.query_stride() * LANES;
        for (left, right, out) in [
            (&mut *self.work.queries, &*self.work.keys, &mut *self.work.scores),
            (&mut *self.work.d_outs, &*self.work.values, &mut *self.work.d_scores),
        ] {
            let words = &LineWords::new(left);
            for vector in (0..across).step_by(vectors) {
                for first in (0..self.rows.len()).step_by(S::TILE_ROWS) {
                    let left = Left { words, start: first * row_stride, row_stride, segments: &[0], steps: size };
                    let tile = (S::TILE_ROWS.min(self.rows.len() - first), vectors.min(across - vector));
                    let out = &mut out[first * stride + vector..];
                    multiply::<S, F32>(s, left, Right::new(&right[vector * size..]), tile, out, stride);
                }
            }
        }
    }

    /// Adds to the gradients of keys `d_scoresᵀ · queries`, and to those of values `weightsᵀ · d_outs`.
    #[inline(always)]
    fn keys_and_values<S: Simd>(&mut self, s: S) {
        let Sizes { keys, vectors, .. } = self.sizes;
        let across = self.sizes.vectors_of_size();
        let (left_stride, right_stride) = (self.sizes.score_stride() * LANES, self.sizes.query_stride() * LANES);
        for (left, right, sums) in [
            (&mut *self.work.d_scores, &mut *self.work.queries, &mut *self.work.d_keys),
            (&mut *self.work.scores, &mut *self.work.d_outs, &mut *self.work.d_values),
        ] {
            let (left, right) = (&LineWords::new(left), &LineWords::new(right));
            for first in (0..keys).step_by(S::TILE_ROWS) {
                for vector in (0..across).step_by(vectors) {
                    let left = Rows { words: left, start: first, stride: left_stride };
                    let right = Rows { words: right, start: vector * LANES, stride: right_stride };
                    let tile = (S::TILE_ROWS.min(keys - first), vectors.min(across - vector));
                    let sums = &mut sums[first * across + vector..];
                    let runs = [Run { left: 0, right: 0 }];
                    add_outer_products::<F32, _>(s, (left, right), (&runs, self.rows.len()), tile, sums, across);
                }
            }
        }
    }

    /// Replaces queries by their gradients, `d_scores · keys`.
    #[inline(always)]
    fn queries<S: Simd>(&mut self, s: S) {
        let Sizes { keys, vectors, .. } = self.sizes;
        let (stride, across) = (self.sizes.query_stride(), self.sizes.vectors_of_size());
        let row_stride = self.sizes.score_stride() * LANES;
        let words = &LineWords::new(self.work.d_scores);
        for vector in (0..across).step_by(vectors) {
            for first in (0..self.rows.len()).step_by(S::TILE_ROWS) {
                let left = Left { words, start: first * row_stride, row_stride, segments: &[0], steps: keys };
                let right = &self.work.keys_across[vector * keys..];
                let tile = (S::TILE_ROWS.min(self.rows.len() - first), vectors.min(across - vector));
                let out = &mut self.work.queries[first * stride + vector..];
                multiply::<S, F32>(s, left, Right::new(right), tile, out, stride);
            }
        }
    }
}

/// Of one query: turns the products of `scores` with the keys, unscaled, into weights, and `d_scores`, the gradients of
/// the weights, into those of the products.
#[inline(always)]
fn softmax_backward<S: Simd>(
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
