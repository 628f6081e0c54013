//! Training with little memory: a part of a network forgets what it computed on the way, and computes it again when its
//! gradient is asked for (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, Error, Layout, MetalStorage, Result, Shape, Storage, Tensor, Var,
};

/// Where the gradients of parameters go that only recomputed parts know: a backward pass through the whole network gives
/// those of all other tensors.
#[derive(Clone, Default)]
pub struct Recomputation {
    gradients: Arc<Mutex<Vec<GradStore>>>,
}

impl std::fmt::Debug for Recomputation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recomputation")
    }
}

impl Recomputation {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the gradients of recomputed parts to those that a backward pass has given.
    pub fn add_to(&self, gradients: &mut GradStore) -> Result<()> {
        // Stores are only ever added whole.
        let mut recomputed = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        recomputed.drain(..).try_for_each(|part| gradients.extend(part))
    }

    /// `compute(inputs)`, of which only the result is kept.
    pub(crate) fn run(
        &self,
        inputs: [&Tensor; 3],
        compute: impl Fn([&Tensor; 3]) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        let detached = inputs.map(Tensor::detach);
        // All that was computed on the way ends here.
        let result = compute(detached.each_ref())?.detach().contiguous()?;
        let part = Part { compute, result: Mutex::new(Some(result)), gradients: self.gradients.clone() };
        let [a, b, c] = inputs;
        a.apply_op3(b, c, part)
    }
}

/// Lets go of what gradients were computed from, which they remember and so keep in memory.
pub fn forget_origins(gradients: &mut GradStore) {
    let ids: Vec<_> = gradients.get_ids().copied().collect();
    for id in ids {
        if let Some(gradient) = gradients.get_id(id).map(Tensor::detach) {
            gradients.insert_id(id, gradient);
        }
    }
}

struct Part<F> {
    compute: F,
    /// Until the operation has taken it.
    result: Mutex<Option<Tensor>>,
    gradients: Arc<Mutex<Vec<GradStore>>>,
}

impl<F> Part<F> {
    fn storage<S>(&self, of_device: impl Fn(Storage) -> Option<S>) -> Result<(S, Shape)> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = result.ok_or_else(|| Error::Msg("a recomputed part was asked for its result twice".into()))?;
        let (storage, layout) = result.storage_and_layout();
        let storage = of_device(storage.try_clone(layout)?);
        let storage = storage.ok_or_else(|| Error::Msg("a recomputed part changed its device".into()))?;
        Ok((storage, result.shape().clone()))
    }
}

impl<F: Fn([&Tensor; 3]) -> Result<Tensor> + Send + Sync> CustomOp3 for Part<F> {
    fn name(&self) -> &'static str {
        "recomputed"
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
        self.storage(|storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None })
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
        self.storage(|storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None })
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
        self.storage(|storage| if let Storage::Metal(storage) = storage { Some(storage) } else { None })
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs = [Var::from_tensor(a)?, Var::from_tensor(b)?, Var::from_tensor(c)?];
        let result = (self.compute)(inputs.each_ref().map(Var::as_tensor))?;
        // The gradient of this sum is the given one.
        let mut gradients = (result * gradient.detach())?.sum_all()?.backward()?;
        forget_origins(&mut gradients);
        let of_inputs = inputs.map(|input| gradients.remove(&input));
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner).push(gradients);
        Ok(of_inputs.into())
    }
}
