use candle_core::{DType, Result, Tensor};
use pixart_kernels::Geometry;

use super::kernel::{Argument, Buffer, THREADS, cuda_device, elements, launch, launch_elements, named, product};
use super::linear::{biased, column_sums};
use super::with_gradient;

/// How a kernel of pixels sees images `[batch, channels, height, width]`.
#[derive(Debug, Clone, Copy)]
struct Sight {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    kernel: usize,
    /// Of the result.
    geometry: Geometry,
}

impl Sight {
    /// Numbers that the kernel sees at each place, and places in an image that it comes to.
    fn columns(&self) -> (usize, usize) {
        (self.channels * self.kernel * self.kernel, self.geometry.height * self.geometry.width)
    }

    /// Whether each place is a pixel and sees that alone.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.geometry.stride == 1 && self.geometry.padding == 0
    }

    /// What is seen at each place, as columns: `[batch, depth, places]`.
    fn look(&self, xs: &Tensor) -> Result<Tensor> {
        let (depth, places) = self.columns();
        if self.is_pointwise() {
            return xs.reshape((self.batch, depth, places));
        }
        let columns = Buffer::new(cuda_device(xs)?, xs.dtype(), self.batch * depth * places)?;
        self.launch("image_to_columns", xs, columns.argument()?, places)?;
        Ok(columns.into_tensor((self.batch, depth, places)))
    }

    /// The gradient of the images, of that of what was seen.
    fn gather(&self, columns: &Tensor) -> Result<Tensor> {
        let shape = (self.batch, self.channels, self.height, self.width);
        if self.is_pointwise() {
            return columns.reshape(shape);
        }
        let pixels = self.height * self.width;
        let xs = Buffer::new(cuda_device(columns)?, columns.dtype(), self.batch * self.channels * pixels)?;
        self.launch("columns_to_image", columns, xs.argument()?, pixels)?;
        Ok(xs.into_tensor(shape))
    }

    /// A kernel with a thread for each of `count` places of a plane.
    fn launch(&self, name: &str, from: &Tensor, to: Argument, count: usize) -> Result<()> {
        let Self { batch, channels, height, width, kernel, geometry } = *self;
        let sizes = [height, width, geometry.height, geometry.width, kernel, geometry.stride, geometry.padding]
            .map(Argument::integer);
        let grid = (count.div_ceil(THREADS as usize) as u32, channels as u32, batch as u32);
        let arguments = [&[Argument::of(from)?, to], &sizes[..]].concat();
        launch(cuda_device(from)?, &named(name, from.dtype()), (grid, (THREADS, 1, 1)), &arguments)
    }
}

/// A convolution of images `[batch, channels, height, width]` with `weight` `[out, channels, kernel, kernel]`.
pub(crate) fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    let ((batch, channels, height, width), (out, channels_in, kernel, _)) = (xs.dims4()?, weight.dims4()?);
    if channels != channels_in {
        candle_core::bail!("a convolution of {channels_in} channels was given {channels}");
    }
    let sight = Sight { batch, channels, height, width, kernel, geometry };
    let (depth, places) = sight.columns();
    let input = xs.detach().contiguous()?;
    let matrix = weight.detach().contiguous()?.reshape((1, out, depth))?.broadcast_as((batch, out, depth))?;
    let ys = biased(product(&matrix, &sight.look(&input)?)?, (batch, out, places), bias)?;
    let (weight_shape, bias_dtype) = (weight.shape().clone(), bias.map(Tensor::dtype));
    let inputs: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    with_gradient(&inputs, ys, (batch, out, geometry.height, geometry.width), move |d_ys| {
        let d_ys = d_ys.reshape((batch, out, places))?;
        let d_xs = sight.gather(&matrix.transpose(1, 2)?.matmul(&d_ys)?)?;
        let of_images = d_ys.matmul(&sight.look(&input)?.transpose(1, 2)?)?;
        let d_weight = column_sums(&of_images, None, batch, out * depth, batch)?.reshape(&weight_shape)?;
        let mut gradients = vec![d_xs, d_weight.to_dtype(input.dtype())?];
        if let Some(dtype) = bias_dtype {
            let sums = row_sums(&d_ys)?.reshape((batch, out))?;
            gradients.push(column_sums(&sums, None, batch, out, batch)?.squeeze(0)?.to_dtype(dtype)?);
        }
        Ok(gradients)
    })
}

/// The sums of the last dimension, in f32.
fn row_sums(xs: &Tensor) -> Result<Tensor> {
    let width = xs.dim(candle_core::D::Minus1)?;
    let (device, rows) = (cuda_device(xs)?, xs.elem_count() / width);
    let sums = Buffer::new(device, DType::F32, rows)?;
    let arguments = [Argument::of(xs)?, sums.argument()?, Argument::integer(width)];
    launch(device, &named("row_sums", xs.dtype()), ((rows as u32, 1, 1), (THREADS, 1, 1)), &arguments)?;
    Ok(sums.into_tensor(rows))
}

/// Images `[batch, channels, height, width]`, twice as high and wide.
pub(crate) fn upsample_nearest_2x(xs: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let input = xs.detach().contiguous()?;
    let sizes = [height, width].map(Argument::integer);
    let count = 4 * xs.elem_count();
    let ys = Buffer::new(cuda_device(xs)?, xs.dtype(), count)?;
    let arguments = [Argument::of(&input)?, ys.argument()?, Argument::integer(count)];
    let arguments = [&arguments, &sizes[..]].concat();
    launch(cuda_device(xs)?, &named("upsample_forward", xs.dtype()), elements(count), &arguments)?;
    with_gradient(&[xs], ys, (batch, channels, 2 * height, 2 * width), move |d_ys| {
        let d_xs = Buffer::like(&input)?;
        launch_elements("upsample_backward", &input, &[Argument::of(d_ys)?, d_xs.argument()?], &sizes)?;
        Ok(vec![d_xs.into_tensor(input.shape())])
    })
}
