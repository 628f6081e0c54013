//! The parameters that training changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use pixart_weights::{Weights, write_tensors};

use crate::initialise::Initialise;

/// Named variables of one network, f32, in the order of their names. The network makes them by asking for them.
#[derive(Clone, Default)]
pub struct Parameters {
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl Parameters {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a network takes its weights from to become trainable: each is a new variable with the values that
    /// `initialise` draws.
    pub fn fresh(&self, initialise: impl Initialise + 'static, device: &Device) -> VarBuilder<'static> {
        self.builder(Source::Fresh(Box::new(initialise)), device)
    }

    /// As [`Parameters::fresh`], with the values of a checkpoint. Asking for a weight that it lacks is an error.
    pub fn from_weights(&self, weights: Weights, device: &Device) -> VarBuilder<'static> {
        let stored = weights.var_builder(DType::F32, device);
        self.builder(Source::Stored(weights, stored), device)
    }

    fn builder(&self, source: Source, device: &Device) -> VarBuilder<'static> {
        let backend = Backend { parameters: self.clone(), source };
        VarBuilder::from_backend(Box::new(backend), DType::F32, device.clone())
    }

    /// The variables with their names.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().iter().map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// How many numbers they are.
    pub fn count(&self) -> usize {
        self.lock().values().map(|variable| variable.elem_count()).sum()
    }

    /// Writes all of them to a safetensors file.
    pub fn save(&self, path: &Path) -> pixart_weights::Result<()> {
        let all = self.all();
        let tensors: Vec<_> = all.iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
        write_tensors(path, &tensors)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        // Variables are only ever added whole, so a panic elsewhere leaves a sound map.
        self.variables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the first values come from.
enum Source {
    Fresh(Box<dyn Initialise>),
    Stored(Weights, VarBuilder<'static>),
}

struct Backend {
    parameters: Parameters,
    source: Source,
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut variables = self.parameters.lock();
        let variable = match variables.get(name) {
            Some(variable) => variable.clone(),
            None => {
                let values = match &self.source {
                    Source::Fresh(initialise) => {
                        Tensor::from_vec(initialise.values(name, shape.dims()), shape.clone(), device)?
                    }
                    Source::Stored(_, stored) => stored.get(shape.clone(), name)?,
                };
                let variable = Var::from_tensor(&values.to_dtype(DType::F32)?)?;
                variables.insert(name.into(), variable.clone());
                variable
            }
        };
        if variable.shape() != &shape {
            candle_core::bail!("{name} is {:?}, not {shape:?}", variable.shape());
        }
        variable.as_tensor().to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        match self.parameters.lock().get(name) {
            Some(variable) => variable.as_tensor().to_dtype(dtype),
            None => candle_core::bail!("{name} is asked for without its shape"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match &self.source {
            // A new network has what its config says, and nothing optional.
            Source::Fresh(_) => false,
            Source::Stored(weights, _) => weights.tensors().contains_key(name),
        }
    }
}
