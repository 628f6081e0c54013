//! The products are computed transposed: a tile of scores has keys down and queries across, so that a query is a lane, and
//! the softmax needs no sums or maxima across lanes; its weights are written where the second product reads them.
//!
//! In 8 bits the first product is of bytes (as in SageAttention, Zhang et al. 2024): keys less their mean, which adds the same
//! to all scores of a query and so changes nothing, rounded with one scale for each block of keys, queries with one each.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::{Heads, ScoreBias};
use crate::gemm::{
    Bf16, F32, Int8, LARGEST_BYTE, Left, MAX_VECTORS, Product, Right, Soon, TILE_LINES, Words, ZERO_POINT, load_f32,
    multiply, pack_rows, padded_stride, store_f32,
};
use crate::isa::Body;
use crate::math::exp2;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};
use crate::threads::least_pieces_per_thread;
use crate::{Arithmetic, Isa, Matrix};

/// Groups of keys that a thread works on at a time; a multiple of [`LANES`].
const KEY_GROUPS: usize = 128;

/// Tiles of queries that a thread works on at a time, for each block of keys that it reads.
const QUERY_TILES: usize = 4;

/// `out = softmax(q · kᵀ · scale + bias) · v` for every head; `out` is `[batch · n, heads · size]`. Products are computed
/// in `arithmetic`, the softmax in f32. In int8 it is queries and keys alone that are rounded to bytes; weights and values are
/// multiplied in bf16, or in f32 where that is no slower.
///
/// # Panics
/// The shapes do not belong together, or the scale is not above 0.
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
        Arithmetic::F32 => attention_as::<F32, F32, T>(isa, scratch, heads, out),
        Arithmetic::Bf16 => attention_as::<Bf16, Bf16, T>(isa, scratch, heads, out),
        Arithmetic::Int8 if isa.has_fast_bf16() => attention_as::<Int8, Bf16, T>(isa, scratch, heads, out),
        Arithmetic::Int8 => attention_as::<Int8, F32, T>(isa, scratch, heads, out),
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

/// How a head's packed keys and values lie in memory. Keys stand as they are, one row of words after another; then what the
/// scores of each block of them are multiplied with. Of the values, for one block of keys after another, each column's words.
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
    fn new<K: Words, P: Words, T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
        let (size, keys) = (heads.size(), heads.keys());
        let groups = keys.div_ceil(P::GROUP);
        let key_groups = KEY_GROUPS.min(groups.next_multiple_of(LANES));
        Self {
            size,
            keys,
            size_steps: size.div_ceil(K::GROUP),
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

    /// Lines of the blocks' scales.
    fn scale_lines(&self) -> usize {
        self.key_blocks.div_ceil(LANES)
    }

    fn head_lines(&self) -> usize {
        self.key_lines() + self.scale_lines() + self.key_blocks * self.value_lines()
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

/// Queries are multiplied with keys as `K`, weights with values as `P`.
fn attention_as<K: Words, P: Weights, T: Element>(isa: Isa, scratch: &Scratch, heads: &Heads<T>, out: &mut [T]) {
    let sizes = Sizes::new::<K, P, T>(isa, heads);
    let mut buffer = scratch.take();
    let packed = buffer.lines(heads.batch * heads.heads * sizes.head_lines());
    // Packing an element costs about as much as some multiplications.
    let heads_per_thread = least_pieces_per_thread(64 * sizes.keys * sizes.size, P::GROUP);
    packed.par_chunks_mut(sizes.head_lines()).enumerate().with_min_len(heads_per_thread).for_each(|(head, lines)| {
        let (image, head) = (head / heads.heads, head % heads.heads);
        isa.run(PackHead::<K, P, T> { heads, image, head, sizes, lines, products: PhantomData });
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
            isa.run(Block::<K, P, T> {
                heads,
                sizes,
                packed: &packed[head * sizes.head_lines()..][..sizes.head_lines()],
                image: head / heads.heads,
                head: head % heads.heads,
                queries: first..heads.queries().min(first + at_once),
                work: Work::new(buffer, &sizes, P::GROUP),
                out,
                products: PhantomData,
            });
        },
    );
}

/// A head's keys and values, as the left operands of the two products.
struct PackHead<'a, K, P, T> {
    heads: &'a Heads<'a, T>,
    image: usize,
    head: usize,
    sizes: Sizes,
    lines: &'a mut [Line],
    products: PhantomData<(K, P)>,
}

impl<K: Words, P: Words, T: Element> Body for PackHead<'_, K, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let sizes = self.sizes;
        let part = |matrix| self.heads.part(matrix, self.image, self.head);
        let (k, v) = (part(&self.heads.k), part(&self.heads.v));
        let (key_lines, lines) = self.lines.split_at_mut(sizes.key_lines());
        let (scale_lines, value_lines) = lines.split_at_mut(sizes.scale_lines());
        let mut words = LineWords::new(key_lines);
        let mut scales = LineWords::new(scale_lines);
        if K::GROUP == Int8::GROUP {
            round_keys::<S, K, T>(s, &k, sizes.key_groups * P::GROUP, &mut words, &mut scales);
        } else {
            scales.fill(1f32.to_bits());
            for (key, words) in words.chunks_exact_mut(sizes.size_steps).enumerate().take(sizes.keys) {
                K::left_row(s, &k.data[key * k.row_stride..][..sizes.size], 1.0, words);
            }
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

/// Keys, less their mean, as bytes. The scale of each `at_once` of them goes to `scales`, as bits.
#[inline(always)]
fn round_keys<S: Simd, K: Words, T: Element>(
    s: S,
    keys: &Matrix<T>,
    at_once: usize,
    words: &mut [u32],
    scales: &mut [u32],
) {
    let size = keys.columns;
    let part = |key: usize, column: usize| {
        load_up_to(s, &keys.data[key * keys.row_stride + column..][..LANES.min(size - column)])
    };
    let mut means = vec![ZERO; size.div_ceil(LANES)];
    for (column, mean) in (0..size).step_by(LANES).zip(&mut means) {
        let mut sum = s.splat(0.0);
        for key in 0..keys.rows {
            sum = s.add(sum, part(key, column));
        }
        store_f32(s, s.mul(sum, s.splat(1.0 / keys.rows as f32)), mean);
    }
    let steps = size.div_ceil(K::GROUP);
    for (first, scale) in (0..keys.rows).step_by(at_once).zip(scales) {
        let block = first..keys.rows.min(first + at_once);
        let mut largest = s.splat(0.0);
        for (column, mean) in (0..size).step_by(LANES).zip(&means) {
            for key in block.clone() {
                let x = s.sub(part(key, column), load_f32(s, mean));
                largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
            }
        }
        let step = match s.largest(largest) {
            0.0 => 1.0,
            largest => largest / LARGEST_BYTE,
        };
        *scale = step.to_bits();
        let inverse = s.splat(1.0 / step);
        for (key, words) in words[first * steps..].chunks_exact_mut(steps).enumerate().take(block.len()) {
            let words = words.chunks_mut(LANES / K::GROUP);
            for ((column, mean), words) in (0..size).step_by(LANES).zip(&means).zip(words) {
                K::store_words(s, s.mul(s.sub(part(first + key, column), load_f32(s, mean)), inverse), words);
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
struct Block<'a, K, P, T> {
    heads: &'a Heads<'a, T>,
    sizes: Sizes,
    packed: &'a [Line],
    image: usize,
    head: usize,
    queries: Range<usize>,
    work: Work<'a>,
    out: &'a Shared<'a, T>,
    products: PhantomData<(K, P)>,
}

/// A tile of queries: one in each lane.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    /// The first of them, and how many.
    first: usize,
    queries: usize,
}

/// Of each query, what turns its raw scores into exponents of 2: they are multiplied with `scale`, and `offset` is added.
#[derive(Clone, Copy)]
struct Exponents<S: Simd> {
    scale: [S::F32; MAX_VECTORS],
    offset: [S::F32; MAX_VECTORS],
}

/// Of each query, the largest exponent so far (of 2), and the sum of weights relative to it.
#[derive(Clone, Copy)]
struct Running<S: Simd> {
    largest: [S::F32; MAX_VECTORS],
    totals: [S::F32; MAX_VECTORS],
}

impl<K: Words, P: Weights, T: Element> Body for Block<'_, K, P, T> {
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
        let scale = s.splat(self.heads.scale * std::f32::consts::LOG2_E);
        let mut exponents =
            [Exponents::<S> { scale: [scale; MAX_VECTORS], offset: [s.splat(0.0); MAX_VECTORS] }; QUERY_TILES];
        for (index, exponents) in exponents.iter_mut().enumerate().take(tiles) {
            let lines = &mut self.work.queries[index * self.sizes.query_lines()..][..self.sizes.query_lines()];
            let mut scales = [1f32; MAX_VECTORS * LANES];
            pack_rows::<S, K, T>(s, &q, tile(index).first, lines, &mut scales, &mut self.work.query_copy);
            if K::GROUP == Int8::GROUP {
                for (v, scales) in scales.as_chunks().0.iter().enumerate().take(S::TILE_VECTORS) {
                    let mut sum = s.splat_bits(0);
                    for line in lines.iter().skip(v).step_by(S::TILE_VECTORS) {
                        sum = s.dot_u8_i8(sum, s.splat_bits(0x0101_0101), s.load_bits(&line.0));
                    }
                    exponents.scale[v] = s.mul(scale, s.load(scales));
                    exponents.offset[v] = s.mul(s.mul(s.to_f32(sum), s.splat(-ZERO_POINT)), exponents.scale[v]);
                }
            }
        }
        let scale_lines = &self.packed[self.sizes.key_lines()..][..self.sizes.scale_lines()];
        let block_scales = crate::memory::line_words(scale_lines);
        self.work.sums.fill(ZERO);
        let start = Running::<S> { largest: [s.splat(f32::MIN); MAX_VECTORS], totals: [s.splat(0.0); MAX_VECTORS] };
        let mut running = [start; QUERY_TILES];
        for (block, block_scale) in block_scales.iter().enumerate().take(self.sizes.key_blocks) {
            let at_once = self.sizes.key_groups * P::GROUP;
            let keys = block * at_once..self.sizes.keys.min((block + 1) * at_once);
            let block_scale = s.splat(f32::from_bits(*block_scale));
            for (index, running) in running.iter_mut().enumerate().take(tiles) {
                self.scores(s, index, &keys);
                let Exponents { scale, offset } = exponents[index];
                let of_block = Exponents {
                    scale: scale.map(|x| s.mul(x, block_scale)),
                    offset: offset.map(|x| s.mul(x, block_scale)),
                };
                let kept = match self.heads.bias {
                    Some(bias) => {
                        self.add_bias(s, &bias, tile(index), &keys, of_block);
                        let exponents =
                            Exponents { scale: [s.splat(1.0); MAX_VECTORS], offset: [s.splat(0.0); MAX_VECTORS] };
                        self.softmax::<S, false>(s, keys.len(), exponents, running)
                    }
                    None if K::GROUP == Int8::GROUP => self.softmax::<S, true>(s, keys.len(), of_block, running),
                    None => self.softmax::<S, false>(s, keys.len(), of_block, running),
                };
                self.add_values(s, index, block, keys.len(), kept);
            }
        }
        for (index, running) in running.iter().enumerate().take(tiles) {
            self.write(s, tile(index), running);
        }
    }
}

impl<K: Words, P: Weights, T: Element> Block<'_, K, P, T> {
    /// Raw scores of a tile of queries with a block of keys.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, tile: usize, keys: &Range<usize>) {
        let Sizes { size_steps, .. } = self.sizes;
        let words = crate::memory::line_words(&self.packed[..self.sizes.key_lines()]);
        let lines = &self.work.queries[tile * self.sizes.query_lines()..][..self.sizes.query_lines()];
        for key in keys.clone().step_by(s.tile_rows(K::GROUP)) {
            let rows = s.tile_rows(K::GROUP).min(keys.end - key);
            let left =
                Left { words, start: key * size_steps, row_stride: size_steps, segments: &[0], steps: size_steps };
            let next = &words[(key + rows) * size_steps..];
            let soon = soon::<S, K>(s, &next[..next.len().min(rows * size_steps)], lines.len());
            let scores = &mut self.work.scores[(key - keys.start) * S::TILE_VECTORS..];
            multiply::<S, K>(s, left, Right { lines, soon }, (rows, S::TILE_VECTORS), scores, S::TILE_VECTORS);
        }
    }

    /// Turns raw scores into exponents of 2, with the bias.
    #[inline(always)]
    fn add_bias<S: Simd>(&mut self, s: S, bias: &ScoreBias, tile: Tile, keys: &Range<usize>, exponents: Exponents<S>) {
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
                    let bias = s.mul_add(s.as_f32(*column), s.splat(std::f32::consts::LOG2_E), exponents.offset[v]);
                    let score = match K::GROUP == Int8::GROUP {
                        true => raw_score::<S, true>(s, line),
                        false => raw_score::<S, false>(s, line),
                    };
                    let score = s.mul_add(score, exponents.scale[v], bias);
                    store_f32(s, s.max(score, s.splat(f32::MIN)), line);
                }
            }
        }
    }

    /// See [`softmax`].
    #[inline(always)]
    fn softmax<S: Simd, const BYTES: bool>(
        &mut self,
        s: S,
        keys: usize,
        exponents: Exponents<S>,
        running: &mut Running<S>,
    ) -> [S::F32; MAX_VECTORS] {
        let scores = &self.work.scores[..keys * S::TILE_VECTORS];
        match S::TILE_VECTORS {
            1 => softmax::<S, K, P, 1, BYTES>(s, scores, exponents, running, self.work.weights),
            _ => softmax::<S, K, P, 2, BYTES>(s, scores, exponents, running, self.work.weights),
        }
    }

    /// Adds the values of a block of keys, weighted, to the sums of a tile of queries, of which `kept` is kept.
    #[inline(always)]
    fn add_values<S: Simd>(&mut self, s: S, tile: usize, block: usize, keys: usize, kept: [S::F32; MAX_VECTORS]) {
        let Sizes { size, key_groups, .. } = self.sizes;
        let steps = keys.div_ceil(P::GROUP);
        let before = self.sizes.key_lines() + self.sizes.scale_lines();
        let values = &self.packed[before + block * self.sizes.value_lines()..];
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

/// A line of raw scores as numbers: those of a product of bytes, or any other.
#[inline(always)]
fn raw_score<S: Simd, const BYTES: bool>(s: S, line: &Line) -> S::F32 {
    match BYTES {
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

/// Turns raw scores, `V` lines for each key, into weights `2^(exponent - largest)`, where `largest` becomes the largest
/// exponent so far. Returns what sums relative to the one before are to be multiplied with.
#[inline(always)]
fn softmax<S: Simd, K: Product, P: Weights, const V: usize, const BYTES: bool>(
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
                most[v] = s.max(most[v], raw_score::<S, BYTES>(s, &scores[v]));
            }
        }
    }
    for scores in last {
        for v in 0..V {
            most[0][v] = s.max(most[0][v], raw_score::<S, BYTES>(s, &scores[v]));
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
                let exponent = s.mul_add(raw_score::<S, BYTES>(s, &scores[group + i][v]), scale[v], minus_largest[v]);
                xs[i] = weight::<S, K, P>(s, exponent);
                totals[i][v] = s.add(totals[i][v], xs[i]);
            }
            s.store_bits(P::group(s, xs), &mut weights[v].0);
        }
    }
    // Half a group at the end.
    for last in &scores[whole..] {
        for v in 0..V {
            let exponent = s.mul_add(raw_score::<S, BYTES>(s, &last[v]), scale[v], minus_largest[v]);
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
