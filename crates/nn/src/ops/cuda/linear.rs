use candle_core::{DType, Result, Shape, Tensor};

use super::super::linear::{check_depth, result_shape};
use super::kernel::{Argument, Buffer, cuda_device, elements, launch, named, product};
use super::with_gradient;

/// From so many rows on, a gradient of weights is summed up in this many parts side by side: alone, a product of few rows and columns
/// and many terms leaves most of a GPU idle.
const TALL: usize = 8192;
const PARTS: usize = 16;

/// Rows that one block sums up, and the most blocks that are one above the other.
const SUMMED: usize = 256;
const BLOCKS: usize = 1 << 15;

/// `xs · weightᵀ + bias`, see [`super::super::linear()`].
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (width_out, width_in) = weight.dims2()?;
    check_depth(xs.shape(), width_in)?;
    let shape = result_shape(xs.shape(), width_out);
    let rows = xs.detach().contiguous()?.reshape(((), width_in))?;
    let matrix = weight.detach().contiguous()?;
    let ys = biased(product(&rows, &matrix.t()?)?, (rows.dim(0)?, width_out, 1), bias)?;
    let bias_dtype = bias.map(Tensor::dtype);
    let inputs: Vec<&Tensor> = [xs, weight].into_iter().chain(bias).collect();
    let xs_shape = xs.shape().clone();
    with_gradient(&inputs, ys, shape, move |d_ys| {
        let d_ys = d_ys.reshape(((), width_out))?;
        let mut gradients = vec![d_ys.matmul(&matrix)?.reshape(&xs_shape)?, product_of_columns(&d_ys, &rows)?];
        if let Some(dtype) = bias_dtype {
            gradients.push(sum_of_rows(&d_ys)?.to_dtype(dtype)?);
        }
        Ok(gradients)
    })
}

/// Adds a bias to results `[images, channels, size]`, or to rows where the size is 1.
pub(super) fn biased(
    ys: Buffer,
    (images, channels, size): (usize, usize, usize),
    bias: Option<&Tensor>,
) -> Result<Buffer> {
    let Some(bias) = bias else { return Ok(ys) };
    let bias = bias.detach().contiguous()?;
    if bias.dims() != [channels] {
        candle_core::bail!("a bias of {:?} for {channels} channels", bias.shape());
    }
    let count = images * channels * size;
    let sizes = [count, channels, size].map(Argument::integer);
    let arguments = [&[ys.argument()?, Argument::of(&bias)?], &sizes[..]].concat();
    launch(cuda_device(&bias)?, &named("add_bias", bias.dtype()), elements(count), &arguments)?;
    Ok(ys)
}

/// `xsᵀ · ys` of matrices `[rows, m]` and `[rows, n]`.
fn product_of_columns(xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
    let ((rows, m), n) = (xs.dims2()?, ys.dim(1)?);
    if rows < TALL || !rows.is_multiple_of(PARTS) {
        return xs.t()?.matmul(ys);
    }
    let part = |xs: &Tensor, width: usize| xs.reshape((PARTS, rows / PARTS, width));
    let parts = part(xs, m)?.transpose(1, 2)?.matmul(&part(ys, n)?)?;
    column_sums(&parts, None, PARTS, m * n, PARTS)?.reshape((m, n))?.to_dtype(xs.dtype())
}

/// The sum of the rows of `[rows, width]`, in f32: `[width]`.
fn sum_of_rows(xs: &Tensor) -> Result<Tensor> {
    let (rows, width) = xs.dims2()?;
    let sums = column_sums(xs, None, rows, width, SUMMED.max(rows.div_ceil(BLOCKS)))?;
    let parts = sums.dim(0)?;
    if parts == 1 { sums.squeeze(0) } else { column_sums(&sums, None, parts, width, parts)?.squeeze(0) }
}

/// For each group of rows, `group` of them, the sums of `xs`, or of `xs · ys`, over it: `[rows / group rounded up, width]`, f32.
pub(super) fn column_sums(xs: &Tensor, ys: Option<&Tensor>, rows: usize, width: usize, group: usize) -> Result<Tensor> {
    let (device, groups) = (cuda_device(xs)?, rows.div_ceil(group));
    let sums = Buffer::new(device, DType::F32, groups * width)?;
    let arguments = [
        Argument::of(xs)?,
        ys.map_or(Ok(Argument::NONE), Argument::of)?,
        sums.argument()?,
        Argument::integer(rows),
        Argument::integer(width),
        Argument::integer(group),
    ];
    let sizes = ((width.div_ceil(32) as u32, groups as u32, 1), (32, 8, 1));
    launch(device, &named("column_sums", xs.dtype()), sizes, &arguments)?;
    Ok(sums.into_tensor(Shape::from((groups, width))))
}
