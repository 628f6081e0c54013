//! Operations whose result is known before candle is told of them.

use std::sync::{Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Error, Layout, MetalStorage, Result, Shape, Storage, Tensor};

/// What was computed from `inputs`, one to three of them, with its gradient: `backward` is given that of the result, contiguous, and gives
/// theirs, in their order. What it remembers is detached.
pub(crate) fn with_gradient(
    inputs: &[&Tensor],
    result: Storage,
    shape: Shape,
    backward: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(Tensor::from_storage(result, shape, BackpropOp::none(), false));
    }
    let op = Computed { result: Mutex::new(Some((result, shape))), backward };
    match inputs {
        // In the place of inputs that there are none of stands the first, to which they add no gradient.
        [a] => a.apply_op3(a, a, op),
        [a, b] => a.apply_op3(b, a, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => candle_core::bail!("an operation of {} inputs", inputs.len()),
    }
}

struct Computed<F> {
    /// Until the operation has taken it.
    result: Mutex<Option<(Storage, Shape)>>,
    backward: F,
}

impl<F> Computed<F> {
    fn take<S>(&self, of_device: impl Fn(Storage) -> Option<S>) -> Result<(S, Shape)> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (storage, shape) =
            result.ok_or_else(|| Error::Msg("an operation was asked for its result twice".into()))?;
        let storage = of_device(storage);
        Ok((storage.ok_or_else(|| Error::Msg("a result is not where its inputs are".into()))?, shape))
    }
}

impl<F: Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync> CustomOp3 for Computed<F> {
    fn name(&self) -> &'static str {
        "computed"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take(|storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None })
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take(|storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None })
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.take(|storage| if let Storage::Metal(storage) = storage { Some(storage) } else { None })
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = (self.backward)(&gradient.detach().contiguous()?)?.into_iter();
        let mut next = || gradients.next().flatten();
        Ok((next(), next(), next()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::random;

    /// The product of all inputs, as candle computes it and as known before: values, gradients of every input, and of one that stays.
    #[test]
    fn gradients_reach_the_inputs_that_there_are() -> Result<()> {
        for count in 1..=3 {
            let inputs: Vec<_> = (0..count).map(|_| Var::from_tensor(&random((3, 5))?)).collect::<Result<_>>()?;
            let tensors: Vec<&Tensor> = inputs.iter().map(Var::as_tensor).collect();
            let product = |but: Option<usize>| -> Result<Tensor> {
                let factors = tensors.iter().enumerate().filter(|(i, _)| Some(*i) != but);
                factors.map(|(_, xs)| xs.detach()).try_fold(Tensor::ones_like(tensors[0])?, |product, xs| product * xs)
            };
            let others = (0..count).map(|i| product(Some(i))).collect::<Result<Vec<_>>>()?;
            let known = product(None)?;
            let (storage, layout) = known.storage_and_layout();
            let (storage, shape) = (storage.try_clone(layout)?, known.shape().clone());
            let found = with_gradient(&tensors, storage, shape, move |d| {
                others.iter().map(|xs| Ok(Some((d * xs)?))).collect()
            })?;
            let expected = tensors[1..].iter().try_fold(tensors[0].clone(), |product, xs| product * *xs)?;
            let weights = random((3, 5))?;
            let [found, expected] = [found, expected].map(|ys| (ys * &weights)?.sum_all()?.backward());
            let (found, expected) = (found?, expected?);
            for input in &inputs {
                let values =
                    |gradients: &candle_core::backprop::GradStore| gradients.get(input).map(Tensor::to_vec2::<f32>);
                let (Some(found), Some(expected)) = (values(&found), values(&expected)) else { panic!("no gradient") };
                for (found, expected) in found?.concat().into_iter().zip(expected?.concat()) {
                    assert!((found - expected).abs() < 1e-6, "{count} inputs: {found}, {expected}");
                }
            }
        }
        Ok(())
    }
}
