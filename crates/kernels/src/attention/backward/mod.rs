mod softmax;
mod work;

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::Heads;
use super::forward::Weights;
use crate::gemm::{Bf16, F32, Left, MAX_VECTORS, Right, TILE_LINES, load_f32, multiply, pack_rows, store_f32};
use crate::isa::Body;
use crate::memory::{Line, LineWords, Scratch, Shared, ZERO, line_words};
use crate::simd::{Element, LANES, Simd, load_up_to, store_up_to};
use crate::{Arithmetic, Isa, Matrix};
use softmax::softmax_backward;
use work::{Sizes, Work};

/// The gradients of [`attention`](super::attention) from that of its result, `d_out` `[batch · n, heads · size]`: `d_q`
/// like it, `d_k` and `d_v` `[batch · m, heads · size]`, all overwritten. Products are computed in `arithmetic` (f32 or bf16), all
/// else in f32.
///
/// Neither weights nor the forward's result are needed: they are computed again, a block of queries at a time (as in Dao
/// et al. 2022, algorithm 4, but with all keys of a block at once). With P the weights and ∘ by elements,
/// `dP = dO · Vᵀ`, `dS = P ∘ (dP - rowsum(P ∘ dP)) · scale`, `dQ = dS · K`, `dK = dSᵀ · Q` and `dV = Pᵀ · dO`; the last two
/// are computed transposed, `Qᵀ · dS` and `dOᵀ · P`, so that only what is narrow has to be turned.
///
/// # Panics
/// The shapes do not belong together, the scale is not above 0, or `arithmetic` is int8.
#[allow(clippy::too_many_arguments, reason = "one operation, whose operands these are")]
pub fn attention_backward<T: Element>(
    isa: Isa,
    scratch: &Scratch,
    arithmetic: Arithmetic,
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
    let d_out = Matrix::new(d_out, heads.q.rows, width);
    let gradients = [Shared::new(d_q), Shared::new(d_k), Shared::new(d_v)];
    match arithmetic.on(isa) {
        Arithmetic::F32 => backward_as::<F32, T>(isa, scratch, heads, &d_out, &gradients),
        Arithmetic::Bf16 => backward_as::<Bf16, T>(isa, scratch, heads, &d_out, &gradients),
        Arithmetic::Int8 => panic!("attention in int8 is not there"),
    }
}

fn backward_as<P: Weights, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    heads: &Heads<T>,
    d_out: &Matrix<T>,
    gradients: &[Shared<T>; 3],
) {
    let sizes = Sizes::new::<P, T>(isa, heads);
    (0..heads.batch * heads.heads).into_par_iter().with_max_len(1).for_each_init(
        || scratch.take(),
        |buffer, head| {
            let (image, head) = (head / heads.heads, head % heads.heads);
            let work = Work::new(buffer.lines(sizes.lines()), &sizes);
            isa.run(Head::<P, T> { heads, d_out, gradients, image, head, sizes, work, product: PhantomData });
        },
    );
}

/// One head of one image.
struct Head<'a, P, T> {
    heads: &'a Heads<'a, T>,
    d_out: &'a Matrix<'a, T>,
    /// Of queries, keys and values.
    gradients: &'a [Shared<'a, T>; 3],
    image: usize,
    head: usize,
    sizes: Sizes,
    work: Work<'a>,
    product: PhantomData<P>,
}

impl<P: Weights, T: Element> Body for Head<'_, P, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let sizes = self.sizes;
        self.pack(s);
        self.work.d_keys.fill(ZERO);
        self.work.d_values.fill(ZERO);
        for start in (0..sizes.queries).step_by(sizes.block) {
            let rows = start..sizes.queries.min(start + sizes.block);
            self.scores(s, rows.clone());
            let (keys, stride) = (sizes.keys, sizes.score_stride());
            let Heads { scale, bias, .. } = self.heads;
            for (row, query) in rows.clone().enumerate() {
                let bias = bias.as_ref().map(|bias| bias.row(self.image, self.head, query, keys));
                let row = row * stride..(row + 1) * stride;
                let (scores, d_scores) = (&mut self.work.scores[row.clone()], &mut self.work.d_scores[row]);
                softmax_backward(s, scores, d_scores, keys, *scale, bias);
            }
            self.add_keys_and_values(s, rows.len());
            self.write_queries(s, rows);
        }
        self.write_keys_and_values(s);
    }
}

impl<P: Weights, T: Element> Head<'_, P, T> {
    /// Packs keys and values.
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S) {
        let Sizes { size, keys, vectors, .. } = self.sizes;
        let (k, v) = (self.part(&self.heads.k), self.part(&self.heads.v));
        let mut scales = [1f32; MAX_VECTORS * LANES];
        let mut words = LineWords::new(self.work.words);
        for (matrix, lines, depth) in [
            (k, &mut *self.work.keys, size),
            (v, &mut *self.work.values, size),
            (k.transposed(), &mut *self.work.keys_across, keys),
        ] {
            for (panel, lines) in lines.chunks_mut(vectors * self.sizes.words(depth)).enumerate() {
                pack_rows::<S, P, T>(s, &matrix, panel * vectors * LANES, lines, &mut scales, &mut words);
            }
        }
    }

    /// This head's part.
    #[inline(always)]
    fn part<'b>(&self, matrix: &Matrix<'b, T>) -> Matrix<'b, T> {
        self.heads.part(matrix, self.image, self.head)
    }

    /// `queries · keysᵀ` and `d_outs · valuesᵀ`, unscaled, of some queries; and these turned.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        let sizes = self.sizes;
        let (steps, row_stride) = (sizes.words(sizes.size), sizes.stride(sizes.size));
        let (stride, across) = (sizes.score_stride(), sizes.vectors_of_keys());
        let (queries, d_outs) = (self.part(&self.heads.q), self.part(self.d_out));
        let work = &mut self.work;
        for (matrix, turned, right, out) in [
            (queries, &mut *work.queries_across, &*work.keys, &mut *work.scores),
            (d_outs, &mut *work.d_outs_across, &*work.values, &mut *work.d_scores),
        ] {
            turn::<S, P, T>(s, &matrix, rows.clone(), sizes.stride(sizes.block), turned);
            let mut words = LineWords::new(&mut *work.rows);
            for (row, words) in rows.clone().zip(words.chunks_exact_mut(row_stride)) {
                P::left_row(s, &matrix.data[row * matrix.row_stride..][..sizes.size], 1.0, words);
            }
            let words = line_words(work.rows);
            for vector in (0..across).step_by(sizes.vectors) {
                for first in (0..rows.len()).step_by(s.tile_rows(P::GROUP)) {
                    let left = Left { words, start: first * row_stride, row_stride, segments: &[0], steps };
                    let tile = (s.tile_rows(P::GROUP).min(rows.len() - first), sizes.vectors.min(across - vector));
                    let out = &mut out[first * stride + vector..];
                    multiply::<S, P>(s, left, Right::new(&right[vector * steps..]), tile, out, stride);
                }
            }
        }
    }

    /// Adds to the gradients of keys `queriesᵀ · d_scores`, and to those of values `d_outsᵀ · weights`.
    #[inline(always)]
    fn add_keys_and_values<S: Simd>(&mut self, s: S, rows: usize) {
        let sizes = self.sizes;
        let (across, stride) = (sizes.vectors_of_keys(), sizes.score_stride());
        let (steps, row_stride) = (sizes.words(rows), sizes.stride(sizes.block));
        let mut products = [ZERO; TILE_LINES];
        let work = &mut self.work;
        for (left, scores, packed, sums) in [
            (&*work.queries_across, &*work.d_scores, &mut *work.d_scores_packed, &mut *work.d_keys),
            (&*work.d_outs_across, &*work.scores, &mut *work.weights_packed, &mut *work.d_values),
        ] {
            for vector in (0..across).step_by(sizes.vectors) {
                let vectors = sizes.vectors.min(across - vector);
                let panel = &mut packed[vector * steps..][..vectors * steps];
                for (step, lines) in panel.chunks_exact_mut(vectors).enumerate() {
                    for (v, line) in lines.iter_mut().enumerate() {
                        let mut group = [s.splat(0.0); 2];
                        for (i, xs) in group.iter_mut().enumerate().take(P::GROUP) {
                            let row = step * P::GROUP + i;
                            if row < rows {
                                *xs = load_f32(s, &scores[row * stride + vector + v]);
                            }
                        }
                        s.store_bits(P::group(s, group), &mut line.0);
                    }
                }
                let words = line_words(left);
                for first in (0..sizes.size).step_by(s.tile_rows(P::GROUP)) {
                    let left = Left { words, start: first * row_stride, row_stride, segments: &[0], steps };
                    let high = s.tile_rows(P::GROUP).min(sizes.size - first);
                    multiply::<S, P>(s, left, Right::new(panel), (high, vectors), &mut products, MAX_VECTORS);
                    for (row, products) in products.chunks_exact(MAX_VECTORS).enumerate().take(high) {
                        let sums = &mut sums[(first + row) * across + vector..][..vectors];
                        for (sum, product) in sums.iter_mut().zip(products) {
                            store_f32(s, s.add(load_f32(s, sum), load_f32(s, product)), sum);
                        }
                    }
                }
            }
        }
    }

    /// Writes the gradients of some queries, `d_scores · keys`.
    #[inline(always)]
    fn write_queries<S: Simd>(&mut self, s: S, rows: Range<usize>) {
        let sizes = self.sizes;
        let (across, score_stride) = (sizes.vectors_of_size(), sizes.score_stride());
        let (steps, row_stride) = (sizes.words(sizes.keys), sizes.stride(sizes.keys));
        let work = &mut self.work;
        let mut words = LineWords::new(&mut *work.d_score_rows);
        let scores = work.d_scores.chunks_exact(score_stride).take(rows.len());
        for (lines, words) in scores.zip(words.chunks_exact_mut(row_stride)) {
            for (vector, line) in lines.iter().enumerate().take(sizes.vectors_of_keys()) {
                let words = &mut words[vector * LANES / P::GROUP..];
                let count = (LANES / P::GROUP).min(steps - vector * LANES / P::GROUP);
                P::store_words(s, load_f32(s, line), &mut words[..count]);
            }
        }
        let words = line_words(work.d_score_rows);
        for vector in (0..across).step_by(sizes.vectors) {
            let right = &work.keys_across[vector * steps..];
            for first in (0..rows.len()).step_by(s.tile_rows(P::GROUP)) {
                let left = Left { words, start: first * row_stride, row_stride, segments: &[0], steps };
                let tile = (s.tile_rows(P::GROUP).min(rows.len() - first), sizes.vectors.min(across - vector));
                let out = &mut work.d_queries[first * across + vector..];
                multiply::<S, P>(s, left, Right::new(right), tile, out, across);
            }
        }
        let first = self.image * sizes.queries + rows.start;
        for (row, lines) in self.work.d_queries.chunks_exact(across).enumerate().take(rows.len()) {
            // SAFETY: a head's part of a gradient belongs to that head's task alone.
            let out = unsafe { self.gradients[0].part(self.place(first + row), sizes.size) };
            for (line, out) in lines.iter().zip(out.chunks_mut(LANES)) {
                store_up_to(s, load_f32(s, line), out);
            }
        }
    }

    /// Writes the gradients of keys and values.
    #[inline(always)]
    fn write_keys_and_values<S: Simd>(&mut self, s: S) {
        let Sizes { size, keys, .. } = self.sizes;
        let across = self.sizes.vectors_of_keys();
        for (sums, gradient) in [(&*self.work.d_keys, &self.gradients[1]), (&*self.work.d_values, &self.gradients[2])] {
            for vector in 0..across {
                for first in (0..size).step_by(LANES) {
                    let columns = LANES.min(size - first);
                    let rows =
                        s.transpose(std::array::from_fn(|i| s.load_bits(&sums[(first + i) * across + vector].0)));
                    for (i, row) in rows.iter().enumerate().take(keys - (vector * LANES).min(keys)) {
                        let place = self.place(self.image * keys + vector * LANES + i);
                        // SAFETY: a head's part of a gradient belongs to that head's task alone.
                        let out = unsafe { gradient.part(place + first, columns) };
                        store_up_to(s, s.as_f32(*row), out);
                    }
                }
            }
        }
    }

    /// Where this head's part of a row begins.
    #[inline(always)]
    fn place(&self, row: usize) -> usize {
        row * self.heads.q.columns + self.head * self.sizes.size
    }
}

/// Writes some rows of a matrix turned, as a left operand whose depth they are: a row for each column, `stride` words after each
/// other.
#[inline(always)]
fn turn<S: Simd, P: Weights, T: Element>(
    s: S,
    matrix: &Matrix<T>,
    rows: Range<usize>,
    stride: usize,
    lines: &mut [Line],
) {
    let mut words = LineWords::new(lines);
    for first in (0..rows.len().div_ceil(P::GROUP)).step_by(LANES) {
        for column in (0..matrix.columns).step_by(LANES) {
            let columns = LANES.min(matrix.columns - column);
            let mut block = [s.splat_bits(0); LANES];
            for (i, bits) in block.iter_mut().enumerate() {
                let row = rows.start + (first + i) * P::GROUP;
                let part = |row: usize| load_up_to(s, &matrix.data[row * matrix.row_stride + column..][..columns]);
                let mut group = [s.splat(0.0); 2];
                for (j, xs) in group.iter_mut().enumerate().take(P::GROUP) {
                    if row + j < rows.end {
                        *xs = part(row + j);
                    }
                }
                *bits = P::group(s, group);
            }
            for (i, column_words) in s.transpose(block).iter().enumerate().take(columns) {
                if let Some(to) = words[(column + i) * stride + first..].first_chunk_mut() {
                    s.store_bits(*column_words, to);
                }
            }
        }
    }
}
