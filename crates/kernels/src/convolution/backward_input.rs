use super::forward::{MAX_TAPS, conv2d_as};
use super::{ConvWeights, Geometry, Images};
use crate::gemm::F32;
use crate::memory::Scratch;
use crate::simd::Element;
use crate::{Epilogue, Isa};

/// The gradient of the input of [`conv2d`](super::conv2d) from that of its result, `d_out`, whose height and width are
/// those that `geometry`, the forward convolution's, says. `weight` is `[out, in, kernel, kernel]`; `d_images`, `[batch,
/// height, width, in]`, is overwritten. Products are computed in f32.
///
/// It is a convolution itself (Dumoulin & Visin 2016, section 4): with flipped kernels, input and output channels swapped,
/// and, where the stride is above 1, other taps for each place of an input pixel between two strides.
///
/// # Panics
/// The shapes do not belong together; the kernel is larger than 8×8, or not larger than the padding.
pub fn conv2d_backward_input<W: Element, T: Element>(
    isa: Isa,
    scratch: &Scratch,
    d_out: &Images<T>,
    weight: &[W],
    geometry: &Geometry,
    (height, width, channels_in): (usize, usize, usize),
    d_images: &mut [T],
) {
    d_out.check();
    assert_eq!((d_out.height, d_out.width), (geometry.height, geometry.width), "the size of the result");
    assert_eq!(d_images.len(), d_out.batch * height * width * channels_in, "the gradient of the input is like it");
    if d_images.is_empty() {
        return;
    }
    if d_out.data.is_empty() {
        d_images.fill(T::default());
        return;
    }
    let kernel = super::kernel_of(weight.len(), d_out.channels, channels_in);
    assert!(kernel * kernel <= MAX_TAPS, "a kernel of {kernel}×{kernel}");
    let shape = (d_out.channels, channels_in, kernel);
    let (weights, padding) = ConvWeights::transposed(isa, weight, shape, geometry.stride, geometry.padding);
    let geometry = Geometry { stride: 1, padding, height, width };
    conv2d_as::<F32, T, T>(isa, scratch, d_out, None, &weights, &geometry, &Epilogue::default(), d_images);
}
