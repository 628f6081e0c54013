//! What changes parameters where they are.

use candle_core::{DType, Result, Tensor, Var};
use pixart_kernels::AdamW;

use super::kernel::{Argument, Buffer, cuda_device, elements, launch};

/// A step of AdamW, see [`super::super::adamw()`].
pub(crate) fn adamw(parameter: &Var, gradient: &Tensor, moments: &Var, settings: &AdamW) -> Result<()> {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *settings;
    let count = parameter.elem_count();
    if gradient.elem_count() != count || moments.elem_count() != 2 * count {
        candle_core::bail!("AdamW: {} moments and a gradient of {}", moments.elem_count(), gradient.elem_count());
    }
    let correction = |beta: f64| 1.0 - beta.powf(f64::from(step));
    let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
    let first = Argument::of(moments)?;
    let numbers = [
        1.0 - lr * weight_decay,
        lr / correction(beta1),
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        eps,
        correction(beta2).sqrt().recip(),
    ];
    let tensors = [
        Argument::of(parameter)?,
        Argument::of(&gradient)?,
        first,
        first.from(count, DType::F32),
        Argument::integer(count),
    ];
    let numbers = numbers.map(|x| Argument::Float(x as f32));
    launch(cuda_device(parameter)?, "adamw", elements(count), &[&tensors[..], &numbers].concat())
}

/// Nesterov's momentum of a gradient: changes what is remembered, the first of `moments`, and gives what is to be followed.
pub(crate) fn momentum(gradient: &Tensor, moments: &Var, momentum: f64) -> Result<Tensor> {
    let (device, count) = (cuda_device(moments)?, gradient.elem_count());
    if moments.elem_count() != 2 * count {
        candle_core::bail!("momentum: {} moments of a gradient of {count}", moments.elem_count());
    }
    let wide = gradient.to_dtype(DType::F32)?.contiguous()?;
    let out = Buffer::new(device, DType::F32, count)?;
    let arguments = [
        Argument::of(&wide)?,
        Argument::of(moments)?,
        out.argument()?,
        Argument::integer(count),
        Argument::Float(momentum as f32),
    ];
    launch(device, "momentum", elements(count), &arguments)?;
    Ok(out.into_tensor(gradient.shape()))
}

/// `xs` becomes `kept · xs + factor · ys`.
pub(crate) fn follow(xs: &Var, ys: &Tensor, kept: f64, factor: f64) -> Result<()> {
    change("combine", xs, ys, &[kept, factor])
}

/// `xs` goes the part `factor` of the way to `ys`.
pub(crate) fn approach(xs: &Tensor, ys: &Tensor, factor: f64) -> Result<()> {
    change("approach", xs, ys, &[factor])
}

fn change(kernel: &str, xs: &Tensor, ys: &Tensor, factors: &[f64]) -> Result<()> {
    let count = xs.elem_count();
    if ys.elem_count() != count || xs.dtype() != DType::F32 || ys.dtype() != DType::F32 {
        candle_core::bail!("{kernel}: {:?} and {:?}", xs.shape(), ys.shape());
    }
    let ys = ys.contiguous()?;
    let tensors = [Argument::of(xs)?, Argument::of(&ys)?, Argument::integer(count)];
    let factors: Vec<_> = factors.iter().map(|x| Argument::Float(*x as f32)).collect();
    launch(cuda_device(xs)?, kernel, elements(count), &[&tensors[..], &factors].concat())
}

/// The sum of squares of each tensor, read in one go.
pub(crate) fn squares(tensors: &[Tensor]) -> Result<Vec<f32>> {
    let Some(first) = tensors.first() else { return Ok(vec![]) };
    let device = cuda_device(first)?;
    let sums = Buffer::new(device, DType::F32, tensors.len())?;
    for (i, xs) in tensors.iter().enumerate() {
        let xs = xs.to_dtype(DType::F32)?.contiguous()?;
        let arguments = [Argument::of(&xs)?, sums.argument()?.from(i, DType::F32), Argument::integer(xs.elem_count())];
        launch(device, "squares", ((1, 1, 1), (1024, 1, 1)), &arguments)?;
    }
    sums.into_tensor(tensors.len()).to_vec1()
}
