//! What optimisers do to parameters, where these are.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Error, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var};
use pixart_kernels::AdamW;

use super::{cpu, return_on_cuda};

/// One step of AdamW (Loshchilov & Hutter 2019, algorithm 2), as `torch.optim.AdamW` takes it: changes `parameter` and its
/// `moments`, `[2, ...]`, the first one and then the second, which are zeros before the first step. All are f32;
/// `gradient` is of the parameter's shape.
pub fn adamw(parameter: &Var, gradient: &Tensor, moments: &Var, settings: &AdamW) -> Result<()> {
    return_on_cuda!(on_cuda(&[parameter, moments]), cuda::adamw(parameter, gradient, moments, settings));
    if parameter.device().is_cpu() && parameter.dtype() == DType::F32 {
        let update = Update { moments, settings };
        return parameter.inplace_op2(&gradient.to_dtype(DType::F32)?.contiguous()?, &update);
    }
    adamw_composed(parameter, gradient, moments, settings)
}

/// What [`adamw`] means.
pub(super) fn adamw_composed(parameter: &Var, gradient: &Tensor, moments: &Var, settings: &AdamW) -> Result<()> {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = *settings;
    let correction = |beta: f64| 1.0 - beta.powf(f64::from(step));
    let first = ((moments.get(0)? * beta1)? + (gradient * (1.0 - beta1))?)?;
    let second = ((moments.get(1)? * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
    let root = ((&second / correction(beta2))?.sqrt()? + eps)?;
    let change = ((&first / correction(beta1))? / root)?;
    parameter.set(&((parameter.as_tensor() * (1.0 - lr * weight_decay))? - (change * lr)?)?)?;
    moments.set(&Tensor::stack(&[first, second], 0)?)
}

/// Whether the kernels for NVIDIA GPUs take what an optimiser has, which is f32.
#[cfg(feature = "cuda")]
fn on_cuda(tensors: &[&Tensor]) -> bool {
    super::cuda::is_fast(tensors) && tensors[0].dtype() == DType::F32
}

/// Nesterov's momentum of a gradient: changes what is remembered, the first of `moments` `[2, ...]`, and gives what is to be followed,
/// f32 and of the gradient's shape.
pub fn momentum(gradient: &Tensor, moments: &Var, momentum: f64) -> Result<Tensor> {
    return_on_cuda!(on_cuda(&[moments]), cuda::momentum(gradient, moments, momentum));
    momentum_composed(gradient, moments, momentum)
}

/// What [`momentum`] means.
pub(super) fn momentum_composed(gradient: &Tensor, moments: &Var, momentum: f64) -> Result<Tensor> {
    let gradient = (gradient.to_dtype(DType::F32)?.detach() * (1.0 - momentum))?;
    let moments = moments.as_detached_tensor();
    let first = ((moments.get(0)? * momentum)? + &gradient)?;
    moments.slice_set(&first.unsqueeze(0)?, 0, 0)?;
    (first * momentum)? + gradient
}

/// `parameter` becomes `kept · parameter + factor · update`, all in f32.
pub fn follow(parameter: &Var, update: &Tensor, kept: f64, factor: f64) -> Result<()> {
    return_on_cuda!(on_cuda(&[parameter, update]), cuda::follow(parameter, update, kept, factor));
    parameter.set(&((parameter.as_detached_tensor() * kept)? + (update * factor)?)?)
}

/// `average`, in f32, goes the part `factor` of the way to `xs`; where both are the same it stays the same.
pub fn approach(average: &mut Tensor, xs: &Tensor, factor: f64) -> Result<()> {
    return_on_cuda!(on_cuda(&[average, xs]), cuda::approach(average, xs, factor));
    *average = (&*average + ((xs - &*average)? * factor)?)?;
    Ok(())
}

/// The sum of the squares of each tensor, in f32.
pub fn squares(tensors: &[Tensor]) -> Result<Vec<f32>> {
    return_on_cuda!(!tensors.is_empty() && tensors.iter().all(|xs| on_cuda(&[xs])), cuda::squares(tensors));
    tensors.iter().map(|xs| xs.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()).collect()
}

struct Update<'a> {
    moments: &'a Var,
    settings: &'a AdamW,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let gradient = cpu::View::new(gradient, gradient_layout).slice::<f32>()?;
        let parameter = RefCell::new(elements_mut(parameter, layout)?);
        self.moments.inplace_op1(&UpdateBoth { parameter, gradient, settings: self.settings })
    }
}

/// Candle lends one tensor at a time to be changed: this has the parameter already.
struct UpdateBoth<'a> {
    parameter: RefCell<&'a mut [f32]>,
    gradient: &'a [f32],
    settings: &'a AdamW,
}

impl InplaceOp1 for UpdateBoth<'_> {
    fn name(&self) -> &'static str {
        "adamw moments"
    }

    fn cpu_fwd(&self, moments: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let mut parameter = self.parameter.borrow_mut();
        let moments = elements_mut(moments, layout)?;
        if moments.len() != 2 * parameter.len() || self.gradient.len() != parameter.len() {
            candle_core::bail!("AdamW: {} moments of {} parameters", moments.len(), parameter.len());
        }
        let (first, second) = moments.split_at_mut(parameter.len());
        pixart_kernels::adamw(cpu::isa()?, &mut parameter, self.gradient, first, second, self.settings);
        Ok(())
    }
}

fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => Err(Error::Msg("AdamW changes contiguous f32 tensors only".into())),
    }
}
