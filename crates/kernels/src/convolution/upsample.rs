use rayon::prelude::*;

use super::Images;
use crate::Isa;
use crate::isa::Body;
use crate::simd::{Element, Simd};
use crate::sweep::for_each_vector;

/// Every pixel four times: `out` is `[batch, 2 · height, 2 · width, channels]`. Before a convolution,
/// [`ConvWeights::doubling`](super::ConvWeights::doubling) does without.
///
/// # Panics
/// The shapes do not belong together.
pub fn upsample_nearest_2x<T: Element>(images: &Images<T>, out: &mut [T]) {
    images.check();
    assert_eq!(out.len(), 4 * images.data.len(), "twice as many pixels in height and in width");
    if out.is_empty() {
        return;
    }
    let row = images.width * images.channels;
    out.par_chunks_exact_mut(4 * row).zip(images.data.par_chunks_exact(row)).for_each(|(out, row)| {
        let (first, second) = out.split_at_mut(2 * row.len());
        let pixels = row.chunks_exact(images.channels).zip(first.chunks_exact_mut(2 * images.channels));
        for (pixel, out) in pixels {
            let (left, right) = out.split_at_mut(images.channels);
            left.copy_from_slice(pixel);
            right.copy_from_slice(pixel);
        }
        second.copy_from_slice(first);
    });
}

/// The gradient of [`upsample_nearest_2x`] from that of its result, `d_out`: the sums of squares of 2×2 pixels, `d_images`
/// `[batch, height / 2, width / 2, channels]`, which is overwritten.
///
/// # Panics
/// The shapes do not belong together.
pub fn upsample_nearest_2x_backward<T: Element>(isa: Isa, d_out: &Images<T>, d_images: &mut [T]) {
    d_out.check();
    assert!(d_out.height.is_multiple_of(2) && d_out.width.is_multiple_of(2), "the result has an even size");
    assert_eq!(4 * d_images.len(), d_out.data.len(), "half as many pixels in height and in width");
    if d_images.is_empty() {
        return;
    }
    let (row, channels) = (d_out.width * d_out.channels, d_out.channels);
    let rows = d_out.data.par_chunks_exact(2 * row).zip(d_images.par_chunks_exact_mut(row / 2));
    rows.for_each(|(rows, out)| isa.run(AddSquares { rows, channels, out }));
}

/// Adds up squares of two rows.
struct AddSquares<'a, T> {
    rows: &'a [T],
    channels: usize,
    out: &'a mut [T],
}

impl<T: Element> Body for AddSquares<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (above, below) = self.rows.split_at(self.rows.len() / 2);
        let pairs = above.chunks_exact(2 * self.channels).zip(below.chunks_exact(2 * self.channels));
        for ((above, below), out) in pairs.zip(self.out.chunks_exact_mut(self.channels)) {
            let ((a, b), (c, d)) = (above.split_at(self.channels), below.split_at(self.channels));
            for_each_vector!(self.channels, |start, vector| {
                let first = s.add(vector::load(s, a, start), vector::load(s, b, start));
                let second = s.add(vector::load(s, c, start), vector::load(s, d, start));
                vector::store(s, s.add(first, second), out, start);
            });
        }
    }
}
