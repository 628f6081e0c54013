//! What a thread needs for a head, and how large it is.

use crate::Isa;
use crate::attention::Heads;
use crate::attention::forward::Weights;
use crate::gemm::padded_stride;
use crate::memory::Line;
use crate::simd::{Element, LANES};

/// Bytes that the weights of a block of queries and their gradients take: half of a common second-level cache.
const BLOCK_BYTES: usize = 512 << 10;

/// Queries of a block, at least and at most: enough that adding the block's part to the gradients of keys and values is
/// little beside computing it.
const BLOCK_QUERIES: [usize; 2] = [56, 112];

/// Sizes of one head's work.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub size: usize,
    pub queries: usize,
    pub keys: usize,
    /// Queries of a block.
    pub block: usize,
    /// Vectors across a tile.
    pub vectors: usize,
    /// Numbers in a word of a product's operand.
    pub group: usize,
}

impl Sizes {
    pub(super) fn new<P: Weights, T: Element>(isa: Isa, heads: &Heads<T>) -> Self {
        let (size, queries, keys) = (heads.size(), heads.queries(), heads.keys());
        let [least, most] = BLOCK_QUERIES;
        let block = (BLOCK_BYTES / (2 * 4 * padded_stride(keys))).clamp(least, most);
        let block = block.next_multiple_of(isa.tile_rows(P::GROUP)).min(queries);
        Self { size, queries, keys, block, vectors: isa.tile_vectors(), group: P::GROUP }
    }

    /// Vectors of a head's width, and of a row of scores.
    pub(super) fn vectors_of_size(&self) -> usize {
        self.size.div_ceil(LANES)
    }

    pub(super) fn vectors_of_keys(&self) -> usize {
        self.keys.div_ceil(LANES)
    }

    /// Words of so many numbers.
    pub(super) fn words(&self, numbers: usize) -> usize {
        numbers.div_ceil(self.group)
    }

    /// Words from row to row of a left operand that is so deep.
    pub(super) fn stride(&self, depth: usize) -> usize {
        padded_stride(self.words(depth))
    }

    /// Lines from one row of scores to the next.
    pub(super) fn score_stride(&self) -> usize {
        padded_stride(self.keys) / LANES
    }

    /// Lines of the parts of [`Work`], in their order.
    pub(super) fn parts(&self) -> [usize; 15] {
        let Self { size, keys, block, vectors, .. } = *self;
        let (across, of_keys) = (self.vectors_of_size(), self.vectors_of_keys());
        let rows = |rows: usize, depth: usize| rows * self.stride(depth) / LANES;
        let packed = of_keys * self.words(size);
        let scores = block * self.score_stride();
        let panels = of_keys * self.words(block);
        [
            packed,
            packed,
            across * self.words(keys),
            rows(vectors * LANES, size),
            rows(block, size),
            rows(size.next_multiple_of(LANES), block.next_multiple_of(LANES * self.group)),
            rows(size.next_multiple_of(LANES), block.next_multiple_of(LANES * self.group)),
            scores,
            scores,
            panels,
            panels,
            rows(block, keys),
            block * across,
            size.next_multiple_of(LANES) * of_keys,
            size.next_multiple_of(LANES) * of_keys,
        ]
    }

    pub(super) fn lines(&self) -> usize {
        self.parts().iter().sum()
    }
}

/// What a thread keeps while it works on a head.
pub(super) struct Work<'a> {
    /// Keys and values, packed with a head's width as depth; keys, packed with the keys as depth.
    pub keys: &'a mut [Line],
    pub values: &'a mut [Line],
    pub keys_across: &'a mut [Line],
    /// Room to pack in.
    pub words: &'a mut [Line],
    /// Rows of a block of queries, or of the gradients of their results, as a left operand.
    pub rows: &'a mut [Line],
    /// The same turned: a row for each column of a head, with the queries as depth.
    pub queries_across: &'a mut [Line],
    pub d_outs_across: &'a mut [Line],
    /// Of a block of queries their scores with all keys, then weights, and the gradients of these: row after row.
    pub scores: &'a mut [Line],
    pub d_scores: &'a mut [Line],
    /// Weights and gradients of scores as right operands, with the queries as depth.
    pub weights_packed: &'a mut [Line],
    pub d_scores_packed: &'a mut [Line],
    /// The gradients of scores as a left operand.
    pub d_score_rows: &'a mut [Line],
    /// Gradients of a block of queries, row after row.
    pub d_queries: &'a mut [Line],
    /// Gradients of keys and values so far: a row for each column of a head.
    pub d_keys: &'a mut [Line],
    pub d_values: &'a mut [Line],
}

impl<'a> Work<'a> {
    pub(super) fn new(mut rest: &'a mut [Line], sizes: &Sizes) -> Self {
        let mut parts = sizes.parts().into_iter().map(|lines| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(lines);
            rest = after;
            part
        });
        let mut next = || parts.next().unwrap_or_default();
        Self {
            keys: next(),
            values: next(),
            keys_across: next(),
            words: next(),
            rows: next(),
            queries_across: next(),
            d_outs_across: next(),
            scores: next(),
            d_scores: next(),
            weights_packed: next(),
            d_scores_packed: next(),
            d_score_rows: next(),
            d_queries: next(),
            d_keys: next(),
            d_values: next(),
        }
    }
}
