//! Weights in 8 bits that stay where they are, in memory or in a mapped file.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Int8, MAX_VECTORS, Product, Words};
use crate::isa::{Body, Isa};
use crate::memory::Line;
use crate::simd::{Element, LANES, Simd};
use crate::{Matrix, simd};

/// Bytes that several hold together: a vector, or a part of a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Weights `[rows, depth]` in 8 bits: signed bytes, row after row, and what those of each row are multiplied with. Cloning
/// copies none of them.
#[derive(Clone)]
pub struct ByteMatrix {
    /// One after the other.
    pieces: Vec<Piece>,
    depth: usize,
    scales: Arc<Vec<f32>>,
}

#[derive(Clone)]
struct Piece {
    bytes: SharedBytes,
    rows: Range<usize>,
}

impl std::fmt::Debug for ByteMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "ByteMatrix({} × {})", self.scales.len(), self.depth)
    }
}

impl ByteMatrix {
    /// `bytes` row after row, each of `depth`; a scale for each.
    ///
    /// # Panics
    /// There are more or fewer bytes.
    pub fn new(bytes: SharedBytes, scales: Vec<f32>, depth: usize) -> Self {
        let (len, rows) = ((*bytes).as_ref().len(), scales.len());
        assert_eq!(len, rows * depth, "{rows} rows of {depth} bytes");
        Self { pieces: vec![Piece { bytes, rows: 0..rows }], depth, scales: Arc::new(scales) }
    }

    /// Rounds each row of `matrix` to multiples of its largest absolute value over 127, so that no byte is -128. The scale of
    /// a row that is not all finite is NaN.
    ///
    /// # Panics
    /// A row's elements do not stand side by side.
    pub fn quantise<T: Element>(isa: Isa, matrix: Matrix<T>) -> Self {
        assert_eq!(matrix.column_stride, 1, "a row's elements stand side by side");
        let mut bytes = vec![0u8; matrix.rows * matrix.columns];
        let mut scales = vec![0f32; matrix.rows];
        // Many rows at a time, so that little time goes into handing them out.
        const ROWS: usize = 16;
        let parts = bytes.par_chunks_mut((ROWS * matrix.columns).max(1)).zip(scales.par_chunks_mut(ROWS));
        parts.enumerate().for_each_init(Vec::new, |words, (part, (bytes, scales))| {
            isa.run(Quantise { matrix, first: part * ROWS, bytes, scales, words });
        });
        Self::new(Arc::new(bytes), scales, matrix.columns)
    }

    /// The rows of several matrices of the same depth, one after the other.
    ///
    /// # Panics
    /// There are none, or their depths differ.
    pub fn joined(parts: &[Self]) -> Self {
        let depth = parts[0].depth;
        let mut pieces = Vec::new();
        let mut scales = Vec::new();
        for part in parts {
            assert_eq!(part.depth, depth, "matrices of different depths");
            let moved = |rows: &Range<usize>| rows.start + scales.len()..rows.end + scales.len();
            pieces
                .extend(part.pieces.iter().map(|piece| Piece { bytes: piece.bytes.clone(), rows: moved(&piece.rows) }));
            scales.extend_from_slice(&part.scales);
        }
        Self { pieces, depth, scales: Arc::new(scales) }
    }

    /// Rows and their depth.
    pub fn shape(&self) -> (usize, usize) {
        (self.scales.len(), self.depth)
    }

    /// What each row is multiplied with.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// All bytes, if they stand in one piece.
    pub fn whole(&self) -> Option<&[u8]> {
        match &self.pieces[..] {
            [piece] => Some((*piece.bytes).as_ref()),
            _ => None,
        }
    }

    /// The bytes of a row, signed.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.starting_at(row)[..self.depth]
    }

    /// The bytes of `row` and of all rows after it that stand behind it.
    #[inline(always)]
    pub(crate) fn starting_at(&self, row: usize) -> &[u8] {
        match self.pieces.iter().find(|piece| piece.rows.contains(&row)) {
            Some(piece) => &(*piece.bytes).as_ref()[(row - piece.rows.start) * self.depth..],
            None => &[],
        }
    }

    /// The numbers that they stand for.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.scales.len() * self.depth];
        values.par_chunks_mut(self.depth.max(1)).enumerate().for_each(|(row, values)| {
            for (x, byte) in values.iter_mut().zip(self.row(row)) {
                *x = f32::from(*byte as i8) * self.scales[row];
            }
        });
        values
    }

    /// Packs `vectors` times sixteen rows from `first` on, and tells the sum of each row's bytes.
    #[inline(always)]
    pub(crate) fn pack<S: Simd, P: Words>(
        &self,
        s: S,
        first: usize,
        vectors: usize,
        lines: &mut [Line],
    ) -> [f32; MAX_VECTORS * LANES] {
        /// How far ahead of its use a row is asked for; the processor does not foresee so many rows at once.
        const AHEAD: usize = 512;
        let mut sums = [0f32; MAX_VECTORS * LANES];
        let words = self.depth.div_ceil(Int8::GROUP);
        let ones = s.splat_bits(0x0101_0101);
        let steps = lines.len() / vectors;
        for (vector, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate().take(vectors) {
            let rows: [&[u8]; LANES] = std::array::from_fn(|i| match first + vector * LANES + i {
                row if row < self.scales.len() => self.row(row),
                _ => &[],
            });
            let mut sum = s.splat_bits(0);
            for word in (0..words).step_by(LANES) {
                let mut block = [s.splat_bits(0); LANES];
                for (row, bits) in rows.iter().zip(&mut block) {
                    let at = (word * Int8::GROUP).min(row.len());
                    s.prefetch(row.as_ptr().wrapping_add(at + AHEAD));
                    *bits = match row[at..].first_chunk() {
                        Some(whole) => s.load_bytes(whole),
                        None => {
                            let mut bytes = [0; LANES * Int8::GROUP];
                            bytes[..row.len() - at].copy_from_slice(&row[at..]);
                            s.load_bytes(&bytes)
                        }
                    };
                }
                let columns = s.transpose(block);
                for (i, column) in columns.iter().enumerate().take(words - word) {
                    sum = s.dot_u8_i8(sum, ones, *column);
                    let parts = Int8::GROUP / P::GROUP;
                    for (part, widened) in P::widen(s, *column).iter().enumerate().take(parts) {
                        let step = (word + i) * parts + part;
                        if step < steps {
                            s.store_bits(*widened, &mut lines[step * vectors + vector].0);
                        }
                    }
                }
            }
            s.store(s.to_f32(sum), sums);
        }
        sums
    }
}

/// See [`ByteMatrix::quantise`].
struct Quantise<'a, T> {
    matrix: Matrix<'a, T>,
    first: usize,
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
    words: &'a mut Vec<u32>,
}

impl<T: Element> Body for Quantise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Matrix { data, columns, row_stride, .. } = self.matrix;
        self.words.resize(columns.div_ceil(Int8::GROUP), 0);
        for (i, (bytes, scale)) in self.bytes.chunks_exact_mut(columns).zip(self.scales).enumerate() {
            let xs = &data[(self.first + i) * row_stride..][..columns];
            // Zero times a number is zero, but for those that are not finite.
            let mut zeros = s.splat(0.0);
            for xs in xs.chunks(LANES) {
                zeros = s.mul_add(simd::load_up_to(s, xs), s.splat(0.0), zeros);
            }
            *scale = match s.sum(zeros) {
                0.0 => Int8::left_scale(s, xs),
                _ => f32::NAN,
            };
            Int8::left_row(s, xs, *scale, self.words);
            for (bytes, word) in bytes.chunks_mut(Int8::GROUP).zip(&*self.words) {
                bytes.copy_from_slice(&(word ^ Int8::LEFT_TO_RIGHT).to_le_bytes()[..bytes.len()]);
            }
        }
    }
}
