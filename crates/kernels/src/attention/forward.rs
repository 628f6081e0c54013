//! The products are computed transposed: a tile of scores has keys down and queries across, so that a query is a lane, and
//! the softmax needs no sums or maxima across lanes; its weights are written where the second product reads them.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, ScoreBias};
use crate::gemm::{
    Bf16, F32, Left, MAX_VECTORS, Right, Soon, TILE_LINES, Words, load_f32, multiply, pack_rows, padded_stride,
    store_f32,
};
use crate::isa::Body;
use crate::math::exp2;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};
use crate::threads::least_pieces_per_thread;
use crate::{Arithmetic, Isa};

/// Groups of keys that a thread works on at a time; a multiple of [`LANES`].
const KEY_GROUPS: usize = 128;

/// Tiles of queries that a thread works on at a time, for each block of keys that it reads.
const QUERY_TILES: usize = 4;

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

/// In what the weights of the softmax go into the second product.
pub(super) trait Weights: Words {
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

/// How a head's packed keys and values lie in memory. Keys stand as they are, one row of words after another. Of the values,
/// for one block of keys after another, each column's words.
#[derive(Clone, Copy)]
struct Sizes {
    size: usize,
    keys: usize,
    /// Groups along a head's width.
    size_steps: usize,
    /// Groups of keys in a block.
    key_groups: usize,
    key_blocks: usize,
    /// Vectors across a tile of queries.
    vectors: usize,
}

impl Sizes {
    fn new<P: Words, T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
        let (size, keys) = (heads.size(), heads.keys());
        let groups = keys.div_ceil(P::GROUP);
        let key_groups = KEY_GROUPS.min(groups.next_multiple_of(LANES));
        Self {
            size,
            keys,
            size_steps: size.div_ceil(P::GROUP),
            key_groups,
            key_blocks: groups.div_ceil(key_groups),
            vectors: isa.tile_vectors(),
        }
    }

    fn key_lines(&self) -> usize {
        (self.keys * self.size_steps).div_ceil(LANES)
    }

    /// Lines of the values of a block of keys.
    fn value_lines(&self) -> usize {
        self.size * self.key_groups / LANES
    }

    fn head_lines(&self) -> usize {
        self.key_lines() + self.key_blocks * self.value_lines()
    }

    /// Lines of a tile of packed queries.
    fn query_lines(&self) -> usize {
        self.size_steps * self.vectors
    }

    /// Lines that packing a tile of queries takes.
    fn query_copy_lines(&self) -> usize {
        self.vectors * padded_stride(self.size_steps)
    }

    /// Lines of a tile of sums of weighted values.
    fn sum_lines(&self) -> usize {
        self.size * self.vectors
    }
}

fn attention_as<P: Weights, T: Element>(isa: Isa, scratch: &Scratch, heads: &Heads<T>, out: &mut [T]) {
    let sizes = Sizes::new::<P, T>(isa, heads);
    let mut buffer = scratch.take();
    let packed = buffer.lines(heads.batch * heads.heads * sizes.head_lines());
    // Packing an element costs about as much as some multiplications.
    let heads_per_thread = least_pieces_per_thread(64 * sizes.keys * sizes.size, P::GROUP);
    packed.par_chunks_mut(sizes.head_lines()).enumerate().with_min_len(heads_per_thread).for_each(|(head, lines)| {
        let (image, head) = (head / heads.heads, head % heads.heads);
        isa.run(PackHead::<P, T> { heads, image, head, sizes, lines, product: PhantomData });
    });
    let packed = &*packed;
    let at_once = QUERY_TILES * sizes.vectors * LANES;
    let blocks = heads.queries().div_ceil(at_once);
    let blocks_per_thread =
        least_pieces_per_thread(2 * at_once.min(heads.queries()) * sizes.keys * sizes.size, P::GROUP);
    let out = &Shared::new(out);
    let pieces = (0..heads.batch * heads.heads * blocks).into_par_iter();
    // Where both cannot be, the minimum holds.
    pieces.with_max_len(4).with_min_len(blocks_per_thread).for_each_init(
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
                work: Work::new(buffer, &sizes, P::GROUP),
                out,
                product: PhantomData,
            });
        },
    );
}

/// A head's keys and values, as the left operands of the two products.
struct PackHead<'a, P, T> {
    heads: &'a Heads<'a, T>,
    image: usize,
    head: usize,
    sizes: Sizes,
    lines: &'a mut [Line],
    product: PhantomData<P>,
}

impl<P: Words, T: Element> Body for PackHead<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sizes = self.sizes;
        let part = |matrix| self.heads.part(matrix, self.image, self.head);
        let (k, v) = (part(&self.heads.k), part(&self.heads.v));
        let (key_lines, value_lines) = self.lines.split_at_mut(sizes.key_lines());
        let mut words = LineWords::new(key_lines);
        for (key, words) in words.chunks_exact_mut(sizes.size_steps).enumerate().take(sizes.keys) {
            P::left_row(s, &k.data[key * k.row_stride..][..sizes.size], 1.0, words);
        }
        // Sixteen groups of keys by sixteen columns at a time.
        for (block, lines) in value_lines.chunks_exact_mut(sizes.value_lines()).enumerate() {
            for first in (0..sizes.key_groups).step_by(LANES) {
                for column in (0..sizes.size).step_by(LANES) {
                    let columns = LANES.min(sizes.size - column);
                    let mut rows = [s.splat_bits(0); LANES];
                    for (i, row) in rows.iter_mut().enumerate() {
                        let key = (block * sizes.key_groups + first + i) * P::GROUP;
                        let part = |key: usize| &v.data[key * v.row_stride + column..][..columns];
                        *row = match P::GROUP.min(sizes.keys.saturating_sub(key)) {
                            0 => continue,
                            1 => s.load_bits(&P::across(&[part(key)])),
                            _ => s.load_bits(&P::across(&[part(key), part(key + 1)])),
                        };
                    }
                    for (i, words) in s.transpose(rows).iter().enumerate().take(columns) {
                        let line = ((column + i) * sizes.key_groups + first) / LANES;
                        s.store_bits(*words, &mut lines[line].0);
                    }
                }
            }
        }
    }
}

/// What a thread keeps while it works on a block of queries.
struct Work<'a> {
    /// The queries, tile after tile, as right operands of the first product.
    queries: &'a mut [Line],
    /// Where they are copied to on the way.
    query_copy: LineWords<'a>,
    /// Scores of one tile of queries with one block of keys: key after key.
    scores: &'a mut [Line],
    /// Their softmax, as the right operand of the second product.
    weights: &'a mut [Line],
    /// Sums of weighted values so far: tile after tile, column after column.
    sums: &'a mut [Line],
}

impl<'a> Work<'a> {
    fn new(buffer: &'a mut crate::memory::Buffer, sizes: &Sizes, group: usize) -> Self {
        let weights = sizes.key_groups * sizes.vectors;
        let parts = [QUERY_TILES * sizes.query_lines(), sizes.query_copy_lines(), group * weights, weights];
        let lines = buffer.lines(parts.iter().sum::<usize>() + QUERY_TILES * sizes.sum_lines());
        let (queries, lines) = lines.split_at_mut(parts[0]);
        let (query_copy, lines) = lines.split_at_mut(parts[1]);
        let (scores, lines) = lines.split_at_mut(parts[2]);
        let (weights, sums) = lines.split_at_mut(parts[3]);
        Self { queries, query_copy: LineWords::new(query_copy), scores, weights, sums }
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

/// A tile of queries: one in each lane.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    /// The first of them, and how many.
    first: usize,
    queries: usize,
}

/// Of each query, the largest exponent so far (of 2), and the sum of weights relative to it.
#[derive(Clone, Copy)]
struct Running<S: Simd> {
    largest: [S::F32; MAX_VECTORS],
    totals: [S::F32; MAX_VECTORS],
}

impl<P: Weights, T: Element> Body for Block<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        const { assert!(S::TILE_VECTORS <= MAX_VECTORS) };
        let across = S::TILE_VECTORS * LANES;
        let tiles = self.queries.len().div_ceil(across);
        let queries = self.queries.clone();
        let tile = |index: usize| {
            let first = queries.start + index * across;
            Tile { index, first, queries: across.min(queries.end - first) }
        };
        let q = self.heads.part(&self.heads.q, self.image, self.head);
        for index in 0..tiles {
            let lines = &mut self.work.queries[index * self.sizes.query_lines()..][..self.sizes.query_lines()];
            let mut scales = [1f32; MAX_VECTORS * LANES];
            pack_rows::<S, P, T>(s, &q, tile(index).first, lines, &mut scales, &mut self.work.query_copy);
        }
        self.work.sums.fill(ZERO);
        let start = Running::<S> { largest: [s.splat(f32::MIN); MAX_VECTORS], totals: [s.splat(0.0); MAX_VECTORS] };
        let mut running = [start; QUERY_TILES];
        for block in 0..self.sizes.key_blocks {
            let at_once = self.sizes.key_groups * P::GROUP;
            let keys = block * at_once..self.sizes.keys.min((block + 1) * at_once);
            for (index, running) in running.iter_mut().enumerate().take(tiles) {
                self.scores(s, index, &keys);
                let mut scale = self.heads.scale * std::f32::consts::LOG2_E;
                if let Some(bias) = self.heads.bias {
                    self.add_bias(s, &bias, tile(index), &keys);
                    scale = 1.0;
                }
                let scores = &self.work.scores[..keys.len() * S::TILE_VECTORS];
                let kept = match S::TILE_VECTORS {
                    1 => softmax::<S, P, 1>(s, scores, scale, running, self.work.weights),
                    _ => softmax::<S, P, 2>(s, scores, scale, running, self.work.weights),
                };
                self.add_values(s, index, block, keys.len(), kept);
            }
        }
        for (index, running) in running.iter().enumerate().take(tiles) {
            self.write(s, tile(index), running);
        }
    }
}

impl<P: Weights, T: Element> Block<'_, P, T> {
    /// Scores of a tile of queries with a block of keys.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, tile: usize, keys: &Range<usize>) {
        let Sizes { size_steps, .. } = self.sizes;
        let words = crate::memory::line_words(&self.packed[..self.sizes.key_lines()]);
        let lines = &self.work.queries[tile * self.sizes.query_lines()..][..self.sizes.query_lines()];
        for key in keys.clone().step_by(s.tile_rows(P::GROUP)) {
            let rows = s.tile_rows(P::GROUP).min(keys.end - key);
            let left =
                Left { words, start: key * size_steps, row_stride: size_steps, segments: &[0], steps: size_steps };
            let next = &words[(key + rows) * size_steps..];
            let soon = soon::<S, P>(s, &next[..next.len().min(rows * size_steps)], lines.len());
            let scores = &mut self.work.scores[(key - keys.start) * S::TILE_VECTORS..];
            multiply::<S, P>(s, left, Right { lines, soon }, (rows, S::TILE_VECTORS), scores, S::TILE_VECTORS);
        }
    }

    /// Turns raw scores into exponents of 2, with the bias.
    #[inline(always)]
    fn add_bias<S: Simd>(&mut self, s: S, bias: &ScoreBias, tile: Tile, keys: &Range<usize>) {
        let scale = s.splat(self.heads.scale * std::f32::consts::LOG2_E);
        let row = |query: usize| &bias.row(self.image, self.head, query, self.sizes.keys)[keys.clone()];
        for (chunk, scores) in
            self.work.scores[..keys.len() * S::TILE_VECTORS].chunks_mut(LANES * S::TILE_VECTORS).enumerate()
        {
            let part = |query: usize| {
                let row = &row(query)[chunk * LANES..];
                &row[..row.len().min(LANES)]
            };
            for v in 0..S::TILE_VECTORS {
                let mut columns = [s.splat_bits(0); LANES];
                if bias.query_stride == 0 {
                    for (column, x) in columns.iter_mut().zip(part(0)) {
                        *column = s.as_bits(s.splat(*x));
                    }
                } else {
                    for (i, column) in columns.iter_mut().enumerate().take(tile.queries.saturating_sub(v * LANES)) {
                        *column = s.as_bits(load_up_to(s, part(tile.first + v * LANES + i)));
                    }
                    columns = s.transpose(columns);
                }
                for (key, column) in columns.iter().enumerate().take(scores.len() / S::TILE_VECTORS) {
                    let line = &mut scores[key * S::TILE_VECTORS + v];
                    let bias = s.mul(s.as_f32(*column), s.splat(std::f32::consts::LOG2_E));
                    let score = s.mul_add(load_f32(s, line), scale, bias);
                    store_f32(s, s.max(score, s.splat(f32::MIN)), line);
                }
            }
        }
    }

    /// Adds the values of a block of keys, weighted, to the sums of a tile of queries, of which `kept` is kept.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, s: S, tile: usize, block: usize, keys: usize, kept: [S::F32; MAX_VECTORS]) {
        let Sizes { size, key_groups, .. } = self.sizes;
        let steps = keys.div_ceil(P::GROUP);
        let values = &self.packed[self.sizes.key_lines() + block * self.sizes.value_lines()..];
        let words = crate::memory::line_words(&values[..self.sizes.value_lines()]);
        let lines = &self.work.weights[..steps * S::TILE_VECTORS];
        let sums = &mut self.work.sums[tile * self.sizes.sum_lines()..][..self.sizes.sum_lines()];
        // Tiles of equal height: one of few rows would wait for its own sums.
        let height = size.div_ceil(size.div_ceil(s.tile_rows(P::GROUP)));
        let mut products = [ZERO; TILE_LINES];
        for (column, sums) in (0..size).step_by(height).zip(sums.chunks_mut(height * S::TILE_VECTORS)) {
            let rows = height.min(size - column);
            let left = Left { words, start: column * key_groups, row_stride: key_groups, segments: &[0], steps };
            let next = &words[(column + rows) * key_groups..];
            let soon = soon::<S, P>(s, &next[..next.len().min(rows * key_groups)], lines.len());
            let vectors = S::TILE_VECTORS;
            multiply::<S, P>(s, left, Right { lines, soon }, (rows, vectors), &mut products, vectors);
            for (sums, products) in sums.chunks_exact_mut(vectors).zip(products.chunks_exact(vectors)) {
                for (v, (sum, product)) in sums.iter_mut().zip(products).enumerate() {
                    store_f32(s, s.mul_add(load_f32(s, sum), kept[v], load_f32(s, product)), sum);
                }
            }
        }
    }

    /// Writes what a tile's queries have gathered.
    #[inline(always)]
    fn write<S: Simd>(&mut self, s: S, tile: Tile, running: &Running<S>) {
        let size = self.sizes.size;
        let sums = &self.work.sums[tile.index * self.sizes.sum_lines()..][..self.sizes.sum_lines()];
        let width = self.heads.q.columns;
        for (v, total) in running.totals.iter().enumerate().take(S::TILE_VECTORS) {
            let inverse = s.div(s.splat(1.0), *total);
            for column in (0..size).step_by(LANES) {
                let columns = LANES.min(size - column);
                let mut rows = [s.splat_bits(0); LANES];
                for (i, row) in rows.iter_mut().enumerate().take(columns) {
                    let sum = load_f32(s, &sums[(column + i) * S::TILE_VECTORS + v]);
                    *row = s.as_bits(s.mul(sum, inverse));
                }
                let queries = s.transpose(rows);
                for (i, query) in queries.iter().enumerate().take(tile.queries.saturating_sub(v * LANES)) {
                    let row = self.image * self.heads.queries() + tile.first + v * LANES + i;
                    // SAFETY: a query's part of a head belongs to this block alone.
                    let out = unsafe { self.out.part(row * width + self.head * size + column, columns) };
                    store_up_to(s, s.as_f32(*query), out);
                }
            }
        }
    }
}

/// What to bring nearer during a product of so many `vectors`. Instructions for whole matrices read so fast that the hints would
/// only stand in their way: keys and values are in the second-level cache.
#[inline(always)]
fn soon<S: Simd, P: Words>(s: S, words: &[u32], vectors: usize) -> Soon {
    match P::GROUP > 1 && s.has_matrices() {
        true => Soon::new::<u32>(&[], 1, vectors),
        false => Soon::new(words, 1, vectors),
    }
}

/// Turns raw scores, `V` lines for each key, into weights `2^(score · scale - largest)`, where `largest` becomes the largest
/// exponent so far. Returns what sums relative to the one before are to be multiplied with.
#[inline(always)]
fn softmax<S: Simd, P: Weights, const V: usize>(
    s: S,
    scores: &[Line],
    scale: f32,
    running: &mut Running<S>,
    weights: &mut [Line],
) -> [S::F32; MAX_VECTORS] {
    let scores = scores.as_chunks::<V>().0;
    let scale = s.splat(scale);
    let mut most = [[s.splat(f32::MIN); V]; 2];
    let (pairs, last) = scores.as_chunks::<2>();
    for pair in pairs.iter() {
        for (most, scores) in most.iter_mut().zip(pair) {
            for v in 0..V {
                most[v] = s.max(most[v], load_f32(s, &scores[v]));
            }
        }
    }
    for scores in last {
        for v in 0..V {
            most[0][v] = s.max(most[0][v], load_f32(s, &scores[v]));
        }
    }
    let mut kept = [s.splat(1.0); MAX_VECTORS];
    let mut minus_largest = [s.splat(0.0); V];
    for v in 0..V {
        let largest = s.max(running.largest[v], s.mul(s.max(most[0][v], most[1][v]), scale));
        // To f32's precision: it is exactly 1 where the largest stays.
        kept[v] = exp2::<S, F32>(s, s.sub(running.largest[v], largest));
        running.largest[v] = largest;
        minus_largest[v] = s.sub(s.splat(0.0), largest);
    }
    let mut totals = [[s.splat(0.0); V]; 2];
    let whole = scores.len() / P::GROUP * P::GROUP;
    for (group, weights) in (0..whole).step_by(P::GROUP).zip(weights.as_chunks_mut::<V>().0) {
        for v in 0..V {
            let mut xs = [s.splat(0.0); 2];
            for i in 0..P::GROUP {
                let exponent = s.mul_add(load_f32(s, &scores[group + i][v]), scale, minus_largest[v]);
                xs[i] = exp2::<S, P>(s, exponent);
                totals[i][v] = s.add(totals[i][v], xs[i]);
            }
            s.store_bits(P::group(s, xs), &mut weights[v].0);
        }
    }
    // Half a group at the end.
    for last in &scores[whole..] {
        for v in 0..V {
            let weight = exp2::<S, P>(s, s.mul_add(load_f32(s, &last[v]), scale, minus_largest[v]));
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
