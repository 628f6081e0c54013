use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pixart_kernels::upsample_nearest_2x_backward;

use super::cpu::{self, View, for_dtype};
use super::{channels_first, channels_last, return_on_cuda};

/// Doubles height and width by repeating pixels: `[batch, channels, h, w]` to `[batch, channels, 2h, 2w]`.
pub fn upsample_nearest_2x(xs: &Tensor) -> Result<Tensor> {
    return_on_cuda!(cuda::is_fast(&[xs]) && cuda::fits(4 * xs.elem_count()), cuda::upsample_nearest_2x(xs));
    match cpu::is_fast(&[xs]) {
        true => channels_first(&channels_last(xs)?.apply_op1(Upsample)?),
        false => upsample_nearest_2x_composed(xs),
    }
}

/// What [`upsample_nearest_2x`] means.
pub(super) fn upsample_nearest_2x_composed(xs: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = xs.dims4()?;
    xs.upsample_nearest2d(2 * height, 2 * width)
}

/// Of images `[batch, height, width, channels]`.
struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = View::new(storage, layout);
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let shape = (batch, 2 * height, 2 * width, channels);
        for_dtype!(xs.dtype(), T => cpu::filled_storage::<T>(shape, |ys| {
            pixart_kernels::upsample_nearest_2x(&xs.images()?, ys);
            Ok(())
        }))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let isa = cpu::isa()?;
        cpu::with_views([&d_ys.contiguous()?], |[d_ys]| {
            for_dtype!(d_ys.dtype(), T => cpu::filled::<T>(xs.shape(), |d_xs| {
                upsample_nearest_2x_backward(isa, &d_ys.images()?, d_xs);
                Ok(())
            }))
        })
        .map(Some)
    }
}
