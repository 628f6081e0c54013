//! The products are computed transposed: a tile of scores has keys down and queries across, so that a query is a lane, and
//! the softmax needs no sums or maxima across lanes; its weights are written where the second product reads them.
//!
//! In 8 bits the first product is of bytes (as in SageAttention, Zhang et al. 2024): keys less their mean, which adds the same
//! to all scores of a query and so changes nothing, rounded with one scale for each block of keys, queries with one each.

mod keys_values;
mod softmax;

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use self::keys_values::{PackHead, Sizes};
pub(super) use self::softmax::Weights;
use self::softmax::{Exponents, Running, raw_score, softmax};
use super::{Heads, ScoreBias};
use crate::gemm::{
    Bf16, F32, Int8, Left, MAX_VECTORS, Product, Right, Soon, TILE_LINES, Words, ZERO_POINT, load_f32, multiply,
    pack_rows, store_f32,
};
use crate::isa::Body;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};
use crate::threads::least_pieces_per_thread;
use crate::{Arithmetic, Isa};

/// Tiles of queries that a thread works on at a time, for each block of keys that it reads.
const QUERY_TILES: usize = 4;

/// `out = softmax(q · kᵀ · scale + bias) · v` for every head; `out` is `[batch · n, heads · size]`. Products are computed
/// in `arithmetic`, the softmax in f32. In int8 it is queries and keys alone that are rounded to bytes; weights and values are
/// multiplied as in [`Arithmetic::Bf16`].
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
    match arithmetic.on(isa) {
        Arithmetic::F32 => attention_as::<F32, F32, T>(isa, scratch, heads, out),
        Arithmetic::Bf16 => attention_as::<Bf16, Bf16, T>(isa, scratch, heads, out),
        Arithmetic::Int8 if isa.has_fast_bf16() => attention_as::<Int8, Bf16, T>(isa, scratch, heads, out),
        Arithmetic::Int8 => attention_as::<Int8, F32, T>(isa, scratch, heads, out),
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
        let mut exponents = [Exponents::scaled(s, self.heads.scale * std::f32::consts::LOG2_E); QUERY_TILES];
        for (index, exponents) in exponents.iter_mut().enumerate().take(tiles) {
            self.pack_queries(s, tile(index), exponents);
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
                        self.softmax::<S, F32>(s, keys.len(), Exponents::scaled(s, 1.0), running)
                    }
                    None => self.softmax::<S, K>(s, keys.len(), of_block, running),
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
    /// Packs a tile of queries. Where they are rounded, their own scales come into the exponents, and what the keys'
    /// [`ZERO_POINT`] adds to the products goes out of them.
    #[inline(always)]
    fn pack_queries<S: Simd>(&mut self, s: S, tile: Tile, exponents: &mut Exponents<S>) {
        let q = self.heads.part(&self.heads.q, self.image, self.head);
        let lines = &mut self.work.queries[tile.index * self.sizes.query_lines()..][..self.sizes.query_lines()];
        let mut scales = [1f32; MAX_VECTORS * LANES];
        pack_rows::<S, K, T>(s, &q, tile.first, lines, &mut scales, &mut self.work.query_copy);
        if K::GROUP != Int8::GROUP {
            return;
        }
        for (v, scales) in scales.as_chunks().0.iter().enumerate().take(S::TILE_VECTORS) {
            let mut sum = s.splat_bits(0);
            for line in lines.iter().skip(v).step_by(S::TILE_VECTORS) {
                sum = s.dot_u8_i8(sum, s.splat_bits(0x0101_0101), s.load_bits(&line.0));
            }
            exponents.scale[v] = s.mul(exponents.scale[v], s.load(scales));
            exponents.offset[v] = s.mul(s.mul(s.to_f32(sum), s.splat(-ZERO_POINT)), exponents.scale[v]);
        }
    }

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
                    let score = s.mul_add(raw_score::<S, K>(s, line), exponents.scale[v], bias);
                    store_f32(s, s.max(score, s.splat(f32::MIN)), line);
                }
            }
        }
    }

    /// See [`softmax`]; the scores are sums of the product `R`.
    #[inline(always)]
    fn softmax<S: Simd, R: Product>(
        &mut self,
        s: S,
        keys: usize,
        exponents: Exponents<S>,
        running: &mut Running<S>,
    ) -> [S::F32; MAX_VECTORS] {
        let scores = &self.work.scores[..keys * S::TILE_VECTORS];
        match S::TILE_VECTORS {
            1 => softmax::<S, R, K, P, 1>(s, scores, exponents, running, self.work.weights),
            _ => softmax::<S, R, K, P, 2>(s, scores, exponents, running, self.work.weights),
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
