//! Scaled dot-product attention, tiled, with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022): the matrix
//! of scores is never written out.

mod backward;
mod forward;

pub use backward::attention_backward;
pub use forward::attention;

use crate::Matrix;
use crate::simd::Element;

/// Queries, keys and values of many heads at once. A row of a matrix is a token: the heads side by side. Rows of all
/// images of a batch follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, T> {
    /// `[batch · n, heads · size]`.
    pub q: Matrix<'a, T>,
    /// `[batch · m, heads · size]`.
    pub k: Matrix<'a, T>,
    /// Like `k`.
    pub v: Matrix<'a, T>,
    /// Images.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// What scores are multiplied with; above 0.
    pub scale: f32,
    /// Added to the scores.
    pub bias: Option<ScoreBias<'a>>,
}

/// What is added to scores, after the scale: a mask, or a bias by position.
#[derive(Debug, Clone, Copy)]
pub struct ScoreBias<'a> {
    /// Rows of m values, one for each key.
    pub values: &'a [f32],
    /// From one image's rows to the next image's; 0 if all have the same.
    pub batch_stride: usize,
    /// From one head's rows to the next head's; 0 if all have the same.
    pub head_stride: usize,
    /// From one query's row to the next query's; 0 if all have the same.
    pub query_stride: usize,
}

impl<T: Element> Heads<'_, T> {
    /// Width of a head.
    pub(crate) fn size(&self) -> usize {
        self.q.columns / self.heads
    }

    /// Queries of an image.
    pub(crate) fn queries(&self) -> usize {
        self.q.rows / self.batch
    }

    /// Keys of an image.
    pub(crate) fn keys(&self) -> usize {
        self.k.rows / self.batch
    }

    /// The rows of one image in `matrix`, one of queries, keys or values, of one head.
    #[inline(always)]
    pub(crate) fn part<'b>(&self, matrix: &Matrix<'b, T>, image: usize, head: usize) -> Matrix<'b, T> {
        let (rows, size) = (matrix.rows / self.batch, self.size());
        let start = image * rows * matrix.row_stride + head * size;
        Matrix::strided(&matrix.data[start..], rows, size, matrix.row_stride)
    }

    /// # Panics
    /// The shapes do not belong together.
    fn check(&self) {
        let Self { q, k, v, batch, heads, .. } = self;
        assert!(*batch > 0 && *heads > 0 && q.rows % batch == 0 && k.rows % batch == 0 && q.columns % heads == 0);
        assert!(q.columns == k.columns && k.columns == v.columns && k.rows == v.rows, "q, k and v do not fit together");
        assert!([q, k, v].iter().all(|matrix| matrix.column_stride == 1), "a token's elements stand side by side");
        assert!(self.scale > 0.0, "a scale of {}", self.scale);
        if let Some(bias) = &self.bias {
            let last = (batch - 1) * bias.batch_stride
                + (heads - 1) * bias.head_stride
                + self.queries().saturating_sub(1) * bias.query_stride;
            assert!(last + self.keys() <= bias.values.len(), "a bias of {} values is too short", bias.values.len());
        }
    }
}

impl<'a> ScoreBias<'a> {
    /// The row of values for one query.
    #[inline(always)]
    pub(crate) fn row(&self, image: usize, head: usize, query: usize, keys: usize) -> &'a [f32] {
        &self.values[image * self.batch_stride + head * self.head_stride + query * self.query_stride..][..keys]
    }
}

#[cfg(test)]
mod tests;
