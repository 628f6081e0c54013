use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::Heads;
use crate::gemm::{
    Bf16, F32, Left, MAX_ROWS, MAX_VECTORS, Right, TILE_LINES, Words, load_f32, multiply, pack_rows, padded_stride,
    store_f32,
};
use crate::isa::Body;
use crate::math::exp2;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};
use crate::{Arithmetic, Isa};

/// Keys that a thread works on at a time; an even number of the widest tiles.
const KEYS: usize = 256;

/// Tiles of queries that a thread works on at a time, for each block of keys that it reads.
const QUERY_TILES: usize = 4;

/// Vectors of scores in a row of a block of keys.
const SCORE_VECTORS: usize = KEYS / LANES;

/// `out = softmax(q · kᵀ · scale + bias) · v` for every head; `out` is `[batch · n, heads · size]`. Products are computed
/// in `arithmetic` (f32 or bf16), the softmax in f32.
///
/// # Panics
/// The shapes do not belong together, the scale is not above 0, or `arithmetic` is int8.
pub fn attention<T: Element>(isa: Isa, scratch: &Scratch, arithmetic: Arithmetic, heads: &Heads<T>, out: &mut [T]) {
    heads.check();
    assert_eq!(out.len(), heads.q.rows * heads.q.columns, "the result is like q");
    if out.is_empty() {
        return;
    }
    if heads.keys() == 0 {
        out.fill(T::default());
        return;
    }
    match arithmetic {
        Arithmetic::F32 => attention_as::<F32, T>(isa, scratch, heads, out),
        Arithmetic::Bf16 => attention_as::<Bf16, T>(isa, scratch, heads, out),
        Arithmetic::Int8 => panic!("attention in int8 is not there"),
    }
}

/// Sizes, in lines, of a head's packed keys and values.
#[derive(Clone, Copy)]
struct Sizes {
    size: usize,
    keys: usize,
    /// Groups along a head's width, and along the keys.
    size_steps: usize,
    key_steps: usize,
    /// Vectors across a panel of keys or of values.
    vectors: usize,
}

impl Sizes {
    fn new<P: Words, T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
        let (size, keys) = (heads.size(), heads.keys());
        let (size_steps, key_steps) = (size.div_ceil(P::GROUP), keys.div_ceil(P::GROUP));
        Self { size, keys, size_steps, key_steps, vectors: isa.tile_vectors() }
    }

    fn key_lines(&self) -> usize {
        self.keys.div_ceil(LANES) * self.size_steps
    }

    fn value_lines(&self) -> usize {
        self.size.div_ceil(LANES) * self.key_steps
    }

    fn head_lines(&self) -> usize {
        self.key_lines() + self.value_lines()
    }
}

fn attention_as<P: Words, T: Element>(isa: Isa, scratch: &Scratch, heads: &Heads<T>, out: &mut [T]) {
    let sizes = Sizes::new::<P, T>(isa, heads);
    let mut buffer = scratch.take();
    let packed = buffer.lines(heads.batch * heads.heads * sizes.head_lines());
    packed.par_chunks_mut(sizes.head_lines()).enumerate().for_each_init(
        || scratch.take(),
        |buffer, (head, lines)| {
            let row_words = padded_stride(sizes.size_steps);
            let words = LineWords::new(buffer.lines(sizes.vectors * row_words));
            let (image, head) = (head / heads.heads, head % heads.heads);
            isa.run(PackHead::<P, T> { heads, image, head, sizes, lines, words, product: PhantomData });
        },
    );
    let packed = &*packed;
    let at_once = QUERY_TILES * isa.tile_rows();
    let blocks = heads.queries().div_ceil(at_once);
    let out = &Shared::new(out);
    (0..heads.batch * heads.heads * blocks).into_par_iter().with_max_len(4).for_each_init(
        || scratch.take(),
        |buffer, piece| {
            let (head, first) = (piece / blocks, piece % blocks * at_once);
            isa.run(Block::<P, T> {
                heads,
                sizes,
                packed: &packed[head * sizes.head_lines()..][..sizes.head_lines()],
                image: head / heads.heads,
                head: head % heads.heads,
                queries: first..heads.queries().min(first + at_once),
                work: Work::new::<P>(buffer, &sizes, isa.tile_rows()),
                out,
                product: PhantomData,
            });
        },
    );
}

/// A head's keys and values, packed as the right operands of the two products.
struct PackHead<'a, P, T> {
    heads: &'a Heads<'a, T>,
    image: usize,
    head: usize,
    sizes: Sizes,
    lines: &'a mut [Line],
    words: LineWords<'a>,
    product: PhantomData<P>,
}

impl<P: Words, T: Element> Body for PackHead<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let sizes = self.sizes;
        let part = |matrix| self.heads.part(matrix, self.image, self.head);
        let (k, v) = (part(&self.heads.k), part(&self.heads.v).transposed());
        let mut scales = [1f32; MAX_VECTORS * LANES];
        let (key_lines, value_lines) = self.lines.split_at_mut(sizes.key_lines());
        for (matrix, lines, steps) in [(k, key_lines, sizes.size_steps), (v, value_lines, sizes.key_steps)] {
            for (panel, lines) in lines.chunks_mut(sizes.vectors * steps).enumerate() {
                let first = panel * sizes.vectors * LANES;
                pack_rows::<S, P, T>(s, &matrix, first, lines, &mut scales, &mut self.words);
            }
        }
    }
}

/// What a thread keeps while it works on a block of queries.
struct Work<'a> {
    /// The queries' words.
    queries: LineWords<'a>,
    /// Scores of one tile of queries with one block of keys: row after row.
    scores: &'a mut [Line],
    /// Their softmax's words: row after row.
    weights: LineWords<'a>,
    /// Sums of weighted values so far: query after query.
    sums: &'a mut [Line],
}

/// Words from one row of weights to the next.
fn weight_words<P: Words>() -> usize {
    padded_stride(KEYS / P::GROUP)
}

impl<'a> Work<'a> {
    fn new<P: Words>(buffer: &'a mut crate::memory::Buffer, sizes: &Sizes, tile_rows: usize) -> Self {
        let rows = QUERY_TILES * tile_rows;
        let queries = rows * padded_stride(sizes.size_steps) / LANES;
        let (scores, weights) = (tile_rows * SCORE_VECTORS, tile_rows * weight_words::<P>() / LANES);
        let sums = rows * sizes.size.div_ceil(LANES);
        let lines = buffer.lines(queries + scores + weights + sums);
        let (queries, lines) = lines.split_at_mut(queries);
        let (scores, lines) = lines.split_at_mut(scores);
        let (weights, sums) = lines.split_at_mut(weights);
        Self { queries: LineWords::new(queries), scores, weights: LineWords::new(weights), sums }
    }
}

/// Some queries of one head.
struct Block<'a, P, T> {
    heads: &'a Heads<'a, T>,
    sizes: Sizes,
    packed: &'a [Line],
    image: usize,
    head: usize,
    queries: Range<usize>,
    work: Work<'a>,
    out: &'a Shared<'a, T>,
    product: PhantomData<P>,
}

/// The most queries of a block.
const MAX_QUERIES: usize = QUERY_TILES * MAX_ROWS;

impl<P: Words, T: Element> Body for Block<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Sizes { size, keys, size_steps, .. } = self.sizes;
        let (row_words, out_vectors) = (padded_stride(size_steps), size.div_ceil(LANES));
        let q = &self.heads.q;
        let first_row = self.image * self.heads.queries() + self.queries.start;
        for (i, words) in self.work.queries.chunks_exact_mut(row_words).enumerate().take(self.queries.len()) {
            let start = (first_row + i) * q.row_stride + self.head * size;
            P::left_row(s, &q.data[start..start + size], 1.0, words);
        }
        self.work.sums[..self.queries.len() * out_vectors].fill(ZERO);
        // Of each query: the largest score so far (times log2 e), and the sum of weights relative to it.
        let mut largest = [f32::MIN; MAX_QUERIES];
        let mut totals = [0f32; MAX_QUERIES];
        for start in (0..keys).step_by(KEYS) {
            let block = start..keys.min(start + KEYS);
            for first in (0..self.queries.len()).step_by(S::TILE_ROWS) {
                let rows = S::TILE_ROWS.min(self.queries.len() - first);
                self.scores(s, first, rows, &block);
                for r in 0..rows {
                    let query = first + r;
                    let bias =
                        self.heads.bias.as_ref().map(|bias| {
                            &bias.row(self.image, self.head, self.queries.start + query, keys)[block.clone()]
                        });
                    let scores = &mut self.work.scores[r * SCORE_VECTORS..][..block.len().div_ceil(LANES)];
                    let words = &mut self.work.weights[r * weight_words::<P>()..][..weight_words::<P>()];
                    let scale = self.heads.scale * std::f32::consts::LOG2_E;
                    let (new, total) = softmax::<S, P>(s, scores, block.len(), scale, bias, largest[query], words);
                    let kept = if new == largest[query] { 1.0 } else { (largest[query] - new).exp2() };
                    totals[query] = totals[query] * kept + total;
                    if kept != 1.0 {
                        for line in &mut self.work.sums[query * out_vectors..][..out_vectors] {
                            let scaled = s.mul(load_f32(s, line), s.splat(kept));
                            store_f32(s, scaled, line);
                        }
                    }
                    largest[query] = new;
                }
                self.add_values(s, first, rows, &block);
            }
        }
        for (i, total) in totals.iter().enumerate().take(self.queries.len()) {
            let inverse = s.splat(1.0 / total);
            let at = (first_row + i) * q.columns + self.head * size;
            // SAFETY: a query's part of a head belongs to this block alone.
            let out = unsafe { self.out.part(at, size) };
            for (line, out) in self.work.sums[i * out_vectors..].iter().zip(out.chunks_mut(LANES)) {
                store_up_to(s, s.mul(load_f32(s, line), inverse), out);
            }
        }
    }
}

impl<P: Words, T: Element> Block<'_, P, T> {
    /// Scores of a tile of queries with a block of keys.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, first: usize, rows: usize, keys: &Range<usize>) {
        let Sizes { size_steps, vectors, .. } = self.sizes;
        let row_words = padded_stride(size_steps);
        let left = Left {
            words: &self.work.queries,
            start: first * row_words,
            row_stride: row_words,
            segments: &[0],
            steps: size_steps,
        };
        for vector in (0..keys.len().div_ceil(LANES)).step_by(vectors) {
            let lines = &self.packed[(keys.start / LANES + vector) * size_steps..];
            let across = vectors.min(keys.len().div_ceil(LANES) - vector);
            multiply::<S, P>(
                s,
                left,
                Right::new(lines),
                (rows, across),
                &mut self.work.scores[vector..],
                SCORE_VECTORS,
            );
        }
    }

    /// Adds the values of a block of keys, weighted, to the sums of a tile of queries.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, s: S, first: usize, rows: usize, keys: &Range<usize>) {
        let Sizes { size, key_steps, vectors, .. } = self.sizes;
        let out_vectors = size.div_ceil(LANES);
        let steps = keys.len().div_ceil(P::GROUP);
        let left = Left { words: &self.work.weights, start: 0, row_stride: weight_words::<P>(), segments: &[0], steps };
        let values = &self.packed[self.sizes.key_lines()..];
        let mut tile = [ZERO; TILE_LINES];
        for vector in (0..out_vectors).step_by(vectors) {
            let across = vectors.min(out_vectors - vector);
            let lines = &values[vector * key_steps + keys.start / P::GROUP * across..];
            multiply::<S, P>(s, left, Right::new(lines), (rows, across), &mut tile, MAX_VECTORS);
            for (r, lines) in tile.chunks_exact(MAX_VECTORS).enumerate().take(rows) {
                let sums = &mut self.work.sums[(first + r) * out_vectors + vector..][..across];
                for (sum, line) in sums.iter_mut().zip(lines) {
                    store_f32(s, s.add(load_f32(s, sum), load_f32(s, line)), sum);
                }
            }
        }
    }
}

/// Turns a row of raw scores into weights `2^(score · scale + bias · log2 e - largest)` and writes their words; `largest`
/// becomes the largest exponent so far, and is returned with the sum of the weights. `scale` has the factor log2 e in it.
#[inline(always)]
fn softmax<S: Simd, P: Words>(
    s: S,
    scores: &mut [Line],
    keys: usize,
    scale: f32,
    bias: Option<&[f32]>,
    largest: f32,
    words: &mut [u32],
) -> (f32, f32) {
    // Lanes beyond the last key hold what stood in memory; they must not be the largest, and weigh nothing.
    let beyond = keys % LANES;
    let mut last_weights = [1f32; LANES];
    if beyond != 0
        && let Some(last) = scores.last_mut()
    {
        last.0[beyond..].fill(f32::MIN.to_bits());
        last_weights[beyond..].fill(0.0);
    }
    let mut scale = s.splat(scale);
    if let Some(bias) = bias {
        for (line, bias) in scores.iter_mut().zip(bias.chunks(LANES)) {
            let bias = s.mul(load_up_to(s, bias), s.splat(std::f32::consts::LOG2_E));
            let score = s.mul_add(load_f32(s, line), scale, bias);
            store_f32(s, s.max(score, s.splat(f32::MIN)), line);
        }
        scale = s.splat(1.0);
    }
    let mut most = [s.splat(f32::MIN); 2];
    for lines in scores.chunks(2) {
        for (most, line) in most.iter_mut().zip(lines) {
            *most = s.max(*most, load_f32(s, line));
        }
    }
    let most = s.mul(s.splat(s.largest(s.max(most[0], most[1]))), scale);
    let new = s.largest(s.max(most, s.splat(largest)));
    let minus_new = s.splat(-new);
    let mut totals = [s.splat(0.0); 2];
    let last = scores.len() - 1;
    for (i, (line, words)) in scores.iter().zip(words.chunks_mut(LANES / P::GROUP)).enumerate() {
        let mut weight = exp2::<S, P>(s, s.mul_add(load_f32(s, line), scale, minus_new));
        if i == last {
            weight = s.mul(weight, s.load(&last_weights));
        }
        totals[i % 2] = s.add(totals[i % 2], weight);
        P::store_words(s, weight, words);
    }
    (new, s.sum(s.add(totals[0], totals[1])))
}
