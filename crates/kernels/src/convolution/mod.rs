//! 2-D convolution of channels-last images, as a product whose left rows are read from the image itself.
//!
//! A thread copies a block of the image, with the border that the kernel reaches over, into its working memory, and
//! converts, pads and, where asked for, normalises it on the way. A row of a tile is then an output pixel: its depth is
//! one run of channels for each tap of the kernel, at distances that are the same for all pixels. The image is never
//! unfolded.

mod backward_input;
mod backward_weight;
mod forward;
mod grid;
mod upsample;
mod weights;

pub use backward_input::conv2d_backward_input;
pub use backward_weight::conv2d_backward_weight;
pub use forward::conv2d;
pub use upsample::{upsample_nearest_2x, upsample_nearest_2x_backward};
pub use weights::ConvWeights;

use crate::Activation;
use crate::simd::Element;

/// Images in a slice: `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Number of images.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

impl<T: Element> Images<'_, T> {
    fn check(&self) {
        let Images { data, batch, height, width, channels } = self;
        assert_eq!(data.len(), batch * height * width * channels, "images of {batch}×{height}×{width}×{channels}");
    }
}

/// Height and width of kernels `[out, in, kernel, kernel]` in a slice of `len` elements.
///
/// # Panics
/// There is no such number.
fn kernel_of(len: usize, channels_out: usize, channels_in: usize) -> usize {
    let kernel = (len / (channels_out * channels_in)).isqrt();
    let needed = channels_out * channels_in * kernel * kernel;
    assert!(len > 0 && len == needed, "{len} weights are no square kernels of {channels_out}×{channels_in} channels");
    kernel
}

/// How a kernel moves over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// From one output pixel to the next, in input pixels.
    pub stride: usize,
    /// Zeros above the image and to its left. Whatever lies beyond the right and the lower edge is zero too.
    pub padding: usize,
    /// Height of the result.
    pub height: usize,
    /// Width of the result.
    pub width: usize,
}

/// What happens to the input of a convolution first: `activation(x · a + b)`, with `a` and `b` for each channel of each
/// image; a group norm, once its statistics are known.
#[derive(Debug, Clone, Copy)]
pub struct Normalise<'a> {
    /// `[batch, 2, channels]`: a, then b.
    pub coefficients: &'a [f32],
    /// Applied last.
    pub activation: Activation,
}

#[cfg(test)]
mod tests;
