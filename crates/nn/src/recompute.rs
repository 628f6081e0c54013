//! Training with little memory: a part of a network forgets what it computed on the way, and computes it again when its
//! gradient is asked for (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use crate::computed::with_gradient;

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
        let (storage, layout) = result.storage_and_layout();
        let all = self.gradients.clone();
        with_gradient(&inputs, storage.try_clone(layout)?, result.shape().clone(), move |gradient| {
            let inputs = detached.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
            let result = compute([0, 1, 2].map(|i| inputs[i].as_tensor()))?;
            // The gradient of this sum is the given one.
            let mut gradients = (result * gradient)?.sum_all()?.backward()?;
            forget_origins(&mut gradients);
            let of_inputs = inputs.iter().map(|input| gradients.remove(input)).collect();
            all.lock().unwrap_or_else(PoisonError::into_inner).push(gradients);
            Ok(of_inputs)
        })
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
