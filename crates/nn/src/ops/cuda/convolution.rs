use candle_core::{Result, Tensor};
use pixart_kernels::Geometry;

use super::kernel::{Argument, Buffer, cuda_device, launch, launch_elements, named, product, rows};
use super::linear::{biased, product_of_columns, sum_of_rows};
use super::with_gradient;

/// How a kernel of pixels sees images `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy)]
struct Sight {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    kernel: usize,
    /// Of the result.
    geometry: Geometry,
}

impl Sight {
    /// Places that the kernel comes to, and pixels that it sees at each, times channels.
    fn columns(&self) -> (usize, usize) {
        let places = self.batch * self.geometry.height * self.geometry.width;
        (places, self.kernel * self.kernel * self.channels)
    }

    fn sizes(&self) -> [Argument; 8] {
        let Self { height, width, channels, kernel, geometry, .. } = *self;
        [height, width, channels, geometry.height, geometry.width, kernel, geometry.stride, geometry.padding]
            .map(|x| Argument::Integer(x as i32))
    }

    /// Whether each place is a pixel and sees that alone.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.geometry.stride == 1 && self.geometry.padding == 0
    }

    /// What is seen at each place, as rows.
    fn look(&self, xs: &Tensor) -> Result<Tensor> {
        let (places, depth) = self.columns();
        if self.is_pointwise() {
            return xs.reshape((places, depth));
        }
        let columns = Buffer::new(cuda_device(xs)?, xs.dtype(), places * depth)?;
        let tensors = [Argument::of(xs)?, columns.argument()?, Argument::Integer(places as i32)];
        let arguments = [&tensors[..], &self.sizes()].concat();
        launch(cuda_device(xs)?, &named("image_to_columns", xs.dtype()), rows(places), &arguments)?;
        Ok(columns.into_tensor((places, depth)))
    }

    /// The gradient of the images, of that of what was seen.
    fn gather(&self, columns: &Tensor) -> Result<Tensor> {
        let shape = (self.batch, self.height, self.width, self.channels);
        if self.is_pointwise() {
            return columns.reshape(shape);
        }
        let pixels = self.batch * self.height * self.width;
        let xs = Buffer::new(cuda_device(columns)?, columns.dtype(), pixels * self.channels)?;
        let tensors = [Argument::of(columns)?, xs.argument()?, Argument::Integer(pixels as i32)];
        let arguments = [&tensors[..], &self.sizes()].concat();
        launch(cuda_device(columns)?, &named("columns_to_image", columns.dtype()), rows(pixels), &arguments)?;
        Ok(xs.into_tensor(shape))
    }
}

/// A convolution of images `[batch, height, width, channels]` with `weight` `[out, channels, kernel, kernel]`.
pub(crate) fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    let ((batch, height, width, channels), (out, channels_in, kernel, _)) = (xs.dims4()?, weight.dims4()?);
    if channels != channels_in {
        candle_core::bail!("a convolution of {channels_in} channels was given {channels}");
    }
    let sight = Sight { batch, height, width, channels, kernel, geometry };
    let input = xs.detach().contiguous()?;
    let matrix = weight.detach().permute((0, 2, 3, 1))?.contiguous()?.reshape((out, kernel * kernel * channels))?;
    let (places, _) = sight.columns();
    let ys = biased(product(&sight.look(&input)?, &matrix)?, (places, out), bias)?;
    let bias_dtype = bias.map(Tensor::dtype);
    let inputs: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    with_gradient(&inputs, ys, (batch, geometry.height, geometry.width, out), move |d_ys| {
        let d_ys = d_ys.reshape((places, out))?;
        let d_xs = sight.gather(&d_ys.matmul(&matrix)?)?;
        let d_weight = product_of_columns(&d_ys, &sight.look(&input)?)?;
        let d_weight = d_weight.reshape((out, kernel, kernel, channels))?.permute((0, 3, 1, 2))?.contiguous()?;
        let mut gradients = vec![d_xs, d_weight];
        if let Some(dtype) = bias_dtype {
            gradients.push(sum_of_rows(&d_ys)?.to_dtype(dtype)?);
        }
        Ok(gradients)
    })
}

/// Images `[batch, height, width, channels]`, twice as high and wide.
pub(crate) fn upsample_nearest_2x(xs: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = xs.dims4()?;
    let input = xs.detach().contiguous()?;
    let sizes = [height, width, channels].map(|x| Argument::Integer(x as i32));
    let shape = (batch, 2 * height, 2 * width, channels);
    let ys = Buffer::new(cuda_device(xs)?, xs.dtype(), 4 * xs.elem_count())?;
    let arguments = [Argument::of(&input)?, ys.argument()?, Argument::Integer(4 * xs.elem_count() as i32)];
    let grid = super::kernel::elements(4 * xs.elem_count());
    launch(cuda_device(xs)?, &named("upsample_forward", xs.dtype()), grid, &[&arguments, &sizes[..]].concat())?;
    with_gradient(&[xs], ys, shape, move |d_ys| {
        let d_xs = Buffer::like(&input)?;
        launch_elements("upsample_backward", &input, &[Argument::of(d_ys)?, d_xs.argument()?], &sizes)?;
        Ok(vec![d_xs.into_tensor(input.shape())])
    })
}
