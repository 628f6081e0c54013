//! The 8 bits that a block of an image is rounded to.

use std::ops::Range;

use super::{Images, Normalise};
use crate::Activation;
use crate::simd::{Element, LANES, Simd, load_up_to};

/// Steps between the smallest and the largest number of a block; one less than bytes have, for the rounding of the zero
/// point.
const STEPS: f32 = 254.0;

/// Evenly spaced numbers: `x` becomes the byte nearest to `x / scale + zero_point`. Zero is among them, since there is zero
/// around an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub scale: f32,
    pub zero_point: f32,
}

impl Grid {
    /// That of numbers between `low` and `high`, and zero.
    fn between(low: f32, high: f32) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = match (high - low) / STEPS {
            scale if scale > 0.0 => scale,
            _ => 1.0,
        };
        Self { scale, zero_point: (-low / scale).ceil() }
    }

    /// That of the pixels of `rows` × `columns` of an image after what is done to them first.
    #[inline(always)]
    pub(super) fn of_pixels<S: Simd, A: Element>(
        s: S,
        images: &Images<A>,
        normalise: Option<&Normalise>,
        image: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Self {
        let Images { data, height, width, channels, .. } = *images;
        let mut low = s.splat(f32::MAX);
        let mut high = s.splat(f32::MIN);
        for row in rows {
            for column in columns.clone() {
                let pixel = &data[((image * height + row) * width + column) * channels..][..channels];
                for (i, xs) in pixel.chunks(LANES).enumerate() {
                    let mut x = load_up_to(s, xs);
                    if let Some(normalise) = normalise {
                        let (a, b) = normalise.coefficients[image * 2 * channels..].split_at(channels);
                        let lanes = i * LANES..channels.min((i + 1) * LANES);
                        x = s.mul_add(x, load_up_to(s, &a[lanes.clone()]), load_up_to(s, &b[lanes]));
                    }
                    low = s.min(low, x);
                    high = s.max(high, x);
                }
            }
        }
        let low = -s.largest(s.sub(s.splat(0.0), low));
        let high = s.largest(high);
        if low > high {
            return Self::between(0.0, 0.0);
        }
        let activation = normalise.map_or(Activation::None, |normalise| normalise.activation);
        let (low, high) = activation.range(low, high);
        Self::between(low, high)
    }

    /// The byte that zero is, four times.
    pub(super) fn zero_word(self) -> u32 {
        u32::from(self.zero_point as u8) * 0x0101_0101
    }
}
