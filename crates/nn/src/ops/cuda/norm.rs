use candle_core::{DType, Result, Tensor};
use pixart_kernels::Activation;

use super::super::group_norm::channels_of_group;
use super::kernel::{Argument, Buffer, cuda_device, launch, launch_elements, named, rows};
use super::linear::column_sums;
use super::{number_of, with_gradient};

/// What rows are multiplied with after a norm, and what is added.
pub(crate) struct Affine<'a> {
    /// One row for each group of rows of the same length.
    pub scale: &'a Tensor,
    /// Of the same shape.
    pub shift: Option<&'a Tensor>,
    /// Whether 1 is added to the scale.
    pub one_more: bool,
}

/// Each row of the last dimension divided by its root mean square, with its mean taken away before if `centred`; then `affine`. The
/// result is in `dtype`.
pub(crate) fn norm(xs: &Tensor, affine: &Affine, eps: f64, centred: bool, dtype: DType) -> Result<Tensor> {
    let width = xs.dim(candle_core::D::Minus1)?;
    let input = xs.detach().contiguous()?;
    let wide = |xs: &Tensor| xs.detach().to_dtype(DType::F32)?.contiguous();
    let (scale, shift) = (wide(affine.scale)?, affine.shift.map(wide).transpose()?);
    let (count, groups) = (input.elem_count() / width, scale.elem_count() / width);
    let alike = affine.shift.is_none_or(|shift| shift.shape() == affine.scale.shape());
    if groups * width != scale.elem_count() || !count.is_multiple_of(groups.max(1)) || groups == 0 || !alike {
        candle_core::bail!("{:?} does not modulate rows of {:?}", scale.shape(), xs.shape());
    }
    let settings = [
        Argument::integer(count),
        Argument::integer(width),
        Argument::integer(count / groups),
        Argument::Float(eps as f32),
        Argument::Float(if affine.one_more { 1.0 } else { 0.0 }),
        Argument::Integer(i32::from(centred)),
    ];
    let device = cuda_device(xs)?.clone();
    let ys = Buffer::new(&device, dtype, input.elem_count())?;
    let shift = shift.as_ref().map_or(Ok(Argument::NONE), Argument::of)?;
    let tensors = [Argument::of(&input)?, Argument::of(&scale)?, shift, ys.argument()?];
    let name = format!("{}_{}", named("norm_forward", input.dtype()), dtype.as_str());
    launch(&device, &name, rows(count), &[&tensors, &settings[..]].concat())?;

    let inputs: Vec<&Tensor> = [xs, affine.scale].into_iter().chain(affine.shift).collect();
    let affines: Vec<_> = inputs[1..].iter().map(|affine| (affine.shape().clone(), affine.dtype())).collect();
    with_gradient(&inputs, ys, xs.shape(), move |d_ys| {
        let d_ys = d_ys.to_dtype(input.dtype())?;
        let (d_xs, moments) = (Buffer::like(&input)?, Buffer::new(&device, DType::F32, 2 * count)?);
        let tensors =
            [Argument::of(&input)?, Argument::of(&scale)?, Argument::of(&d_ys)?, d_xs.argument()?, moments.argument()?];
        let name = named("norm_backward", input.dtype());
        launch(&device, &name, rows(count), &[&tensors, &settings[..]].concat())?;
        let sums = || Buffer::new(&device, DType::F32, groups * width);
        let (d_scale, d_shift) = (sums()?, sums()?);
        let tensors = [
            Argument::of(&input)?,
            Argument::of(&d_ys)?,
            moments.argument()?,
            d_scale.argument()?,
            d_shift.argument()?,
        ];
        let sizes = ((width.div_ceil(32) as u32, groups as u32, 1), (32, 8, 1));
        let name = named("norm_columns", input.dtype());
        launch(&device, &name, sizes, &[&tensors, &settings[..3]].concat())?;
        let mut gradients = vec![d_xs.into_tensor(input.shape())];
        for ((shape, dtype), gradient) in affines.iter().zip([d_scale, d_shift]) {
            gradients.push(gradient.into_tensor(shape).to_dtype(*dtype)?);
        }
        Ok(gradients)
    })
}

/// Threads of a block that goes through a group or a channel.
const THREADS: u32 = 512;

/// The group norm of images `[batch, channels, height, width]`, then `activation`; `weight` and `bias` are `[channels]`.
pub(crate) fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    if weight.dims() != [channels] || bias.dims() != [channels] {
        candle_core::bail!("group norm: weights of {:?} for {channels} channels", weight.shape());
    }
    let (pixels, per_group) = (height * width, channels_of_group(channels, groups)?);
    let device = cuda_device(xs)?.clone();
    let input = xs.detach().contiguous()?;
    let (weights, biases) = (weight.detach().contiguous()?, bias.detach().contiguous()?);
    let blocks = |count: usize| ((count as u32, 1, 1), (THREADS, 1, 1));

    let moments = Buffer::new(&device, DType::F32, 2 * batch * groups)?;
    let arguments = [
        Argument::of(&input)?,
        moments.argument()?,
        Argument::integer(pixels * per_group),
        Argument::Float(eps as f32),
    ];
    launch(&device, &named("group_moments", input.dtype()), blocks(batch * groups), &arguments)?;
    let moments = moments.into_tensor((batch, groups, 2));
    let ys = Buffer::like(&input)?;
    let tensors = [
        Argument::of(&input)?,
        Argument::of(&moments)?,
        Argument::of(&weights)?,
        Argument::of(&biases)?,
        ys.argument()?,
    ];
    let sizes = [
        Argument::integer(pixels),
        Argument::integer(channels),
        Argument::integer(per_group),
        Argument::Integer(number_of(activation)),
    ];
    launch_elements("group_norm_forward", &input, &tensors, &sizes)?;

    with_gradient(&[xs, weight, bias], ys, xs.shape(), move |d_ys| {
        let sums = || Buffer::new(&device, DType::F32, batch * channels);
        let (products, sums) = (sums()?, sums()?);
        let given = [
            Argument::of(&input)?,
            Argument::of(&moments)?,
            Argument::of(&weights)?,
            Argument::of(&biases)?,
            Argument::of(d_ys)?,
        ];
        let arguments = [&given[..], &[products.argument()?, sums.argument()?], &sizes].concat();
        launch(&device, &named("group_norm_sums", input.dtype()), blocks(batch * channels), &arguments)?;
        let (products, sums) = (products.into_tensor((batch, channels)), sums.into_tensor((batch, channels)));
        let wide = weights.to_dtype(DType::F32)?;
        let means = |sums: &Tensor| -> Result<Tensor> {
            let sums = sums.broadcast_mul(&wide)?.reshape((batch, groups, per_group))?.sum(2)?;
            sums / (per_group * pixels) as f64
        };
        let (mean_products, means) = (means(&products)?, means(&sums)?);
        let d_xs = Buffer::like(&input)?;
        let own = [Argument::of(&mean_products)?, Argument::of(&means)?, d_xs.argument()?];
        launch_elements("group_norm_backward", &input, &[&given[..], &own].concat(), &sizes)?;
        let over_images = |sums: &Tensor| column_sums(sums, None, batch, channels, batch)?.squeeze(0);
        Ok(vec![
            d_xs.into_tensor(input.shape()),
            over_images(&products)?.to_dtype(weights.dtype())?,
            over_images(&sums)?.to_dtype(biases.dtype())?,
        ])
    })
}
