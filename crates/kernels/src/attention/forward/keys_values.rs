//! Keys and values in the order in which the two products read them.

use std::marker::PhantomData;

use crate::attention::Heads;
use crate::gemm::{Int8, LARGEST_BYTE, Product, Words, load_f32, padded_stride, store_f32};
use crate::isa::Body;
use crate::memory::{Line, LineWords, ZERO};
use crate::simd::{Element, LANES, Simd, load_up_to};
use crate::{Isa, Matrix};

/// Groups of keys that a thread works on at a time; a multiple of [`LANES`].
const KEY_GROUPS: usize = 128;

/// How a head's packed keys and values lie in memory. Keys stand as they are, one row of words after another; then what the
/// scores of each block of them are multiplied with. Of the values, for one block of keys after another, each column's words.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub size: usize,
    pub keys: usize,
    /// Groups along a head's width.
    pub size_steps: usize,
    /// Groups of keys in a block.
    pub key_groups: usize,
    pub key_blocks: usize,
    /// Vectors across a tile of queries.
    pub vectors: usize,
}

impl Sizes {
    pub fn new<K: Words, P: Words, T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
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

    pub fn key_lines(&self) -> usize {
        (self.keys * self.size_steps).div_ceil(LANES)
    }

    /// Lines of the values of a block of keys.
    pub fn value_lines(&self) -> usize {
        self.size * self.key_groups / LANES
    }

    /// Lines of the blocks' scales.
    pub fn scale_lines(&self) -> usize {
        self.key_blocks.div_ceil(LANES)
    }

    pub fn head_lines(&self) -> usize {
        self.key_lines() + self.scale_lines() + self.key_blocks * self.value_lines()
    }

    /// Lines of a tile of packed queries.
    pub fn query_lines(&self) -> usize {
        self.size_steps * self.vectors
    }

    /// Lines that packing a tile of queries takes.
    pub fn query_copy_lines(&self) -> usize {
        self.vectors * padded_stride(self.size_steps)
    }

    /// Lines of a tile of sums of weighted values.
    pub fn sum_lines(&self) -> usize {
        self.size * self.vectors
    }
}

/// A head's keys and values, as the left operands of the two products.
pub(super) struct PackHead<'a, K, P, T> {
    pub heads: &'a Heads<'a, T>,
    pub image: usize,
    pub head: usize,
    pub sizes: Sizes,
    pub lines: &'a mut [Line],
    pub products: PhantomData<(K, P)>,
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
