//! The parameters that training changes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use pixart_nn::NamedWeights;
use pixart_nn::lora::adapted;
use pixart_weights::{LoraConfig, PEFT_PREFIX, Weights, write_tensors};

use crate::initialise::{Initialise, UniformFanIn};

/// Named variables, f32, in the order of their names, and what networks get their weights from. The first network that is
/// built makes them by asking for them; all others share them.
///
/// ```
/// # fn main() -> candle_core::Result<()> {
/// use candle_core::{DType, Device};
/// use pixart_train::{Parameters, UniformFanIn};
///
/// let parameters = Parameters::fresh(UniformFanIn { seed: 1 }, &Device::Cpu);
/// let layer = pixart_nn::ops::Linear::new(3, 2, parameters.builder(DType::F32))?;
/// assert_eq!(parameters.count(), 8);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Parameters {
    variables: Arc<Mutex<BTreeMap<String, Var>>>,
    source: Arc<Source>,
    device: Device,
}

/// Where weights come from when they are first asked for.
enum Source {
    Fresh(Box<dyn Initialise>),
    Stored(Stored),
    /// Weights on disk, and for what is not there, others.
    Extended {
        base: Stored,
        others: Box<dyn Initialise>,
    },
    /// Weights that stay, with corrections that are trained.
    Adapted {
        base: Stored,
        config: LoraConfig,
        start: Option<Weights>,
        fresh: UniformFanIn,
    },
}

/// Weights on disk, and those of them that were read and stay as they are.
struct Stored {
    weights: Weights,
    builder: NamedWeights<'static>,
    kept: Mutex<HashMap<(String, DType), Tensor>>,
}

impl Stored {
    fn new(weights: Weights, device: &Device) -> Self {
        let builder = weights.named(DType::F32, device);
        Self { weights, builder, kept: Mutex::default() }
    }

    /// A weight that stays, from memory if it was asked for before.
    fn keep(&self, name: &str, shape: &Shape, dtype: DType) -> Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = kept.get(&(name.to_string(), dtype)) {
            return Ok(tensor.clone());
        }
        let tensor = self.builder.get(shape.clone(), name)?.to_dtype(dtype)?;
        kept.insert((name.to_string(), dtype), tensor.clone());
        Ok(tensor)
    }
}

impl Parameters {
    fn from_source(source: Source, device: &Device) -> Self {
        Self { variables: Arc::default(), source: Arc::new(source), device: device.clone() }
    }

    /// Whatever networks ask for becomes a variable with the values that `initialise` draws.
    pub fn fresh(initialise: impl Initialise + 'static, device: &Device) -> Self {
        Self::from_source(Source::Fresh(Box::new(initialise)), device)
    }

    /// Whatever networks ask for becomes a variable with the values of a checkpoint. Asking for a weight that it lacks is an
    /// error.
    pub fn stored(weights: Weights, device: &Device) -> Self {
        Self::from_source(Source::Stored(Stored::new(weights, device)), device)
    }

    /// As [`Parameters::stored`], with the values that `others` draws for what the checkpoint lacks.
    pub fn extended(weights: Weights, others: impl Initialise + 'static, device: &Device) -> Self {
        Self::from_source(Source::Extended { base: Stored::new(weights, device), others: Box::new(others) }, device)
    }

    /// The weights of a checkpoint, which stay; the variables are a LoRA's corrections of those layers that `config` names.
    /// They start from the adapter `start`, or as PEFT makes them: by `seed`, and so that they change nothing at first.
    pub fn adapted(weights: Weights, config: LoraConfig, start: Option<Weights>, seed: u64, device: &Device) -> Self {
        let base = Stored::new(weights, device);
        Self::from_source(Source::Adapted { base, config, start, fresh: UniformFanIn { seed } }, device)
    }

    /// For another network, new and of other names, whose variables are trained and kept along with these.
    pub(crate) fn with_fresh(&self, initialise: impl Initialise + 'static) -> Self {
        self.with_source(Source::Fresh(Box::new(initialise)))
    }

    /// For another network, from a checkpoint and of other names, as [`Parameters::with_fresh`].
    pub(crate) fn with_stored(&self, weights: Weights) -> Self {
        self.with_source(Source::Stored(Stored::new(weights, &self.device)))
    }

    fn with_source(&self, source: Source) -> Self {
        Self { source: Arc::new(source), ..self.clone() }
    }

    /// What a network takes its weights from, in `dtype`. Gradients of what it computes reach the variables.
    pub fn builder(&self, dtype: DType) -> NamedWeights<'static> {
        self.backend(dtype, true)
    }

    /// As [`Parameters::builder`], for a network that has the present values and no gradients.
    pub fn detached(&self, dtype: DType) -> NamedWeights<'static> {
        self.backend(dtype, false)
    }

    fn backend(&self, dtype: DType, tracked: bool) -> NamedWeights<'static> {
        let backend = Backend { parameters: self.clone(), tracked };
        VarBuilder::from_backend(Box::new(backend), dtype, self.device.clone()).into()
    }

    /// The variables with their names.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().iter().map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// How many numbers they are.
    pub fn count(&self) -> usize {
        self.lock().values().map(|variable| variable.elem_count()).sum()
    }

    /// How many numbers the weights are that stay, of which networks have asked for some.
    pub(crate) fn base_count(&self) -> usize {
        match &*self.source {
            Source::Adapted { base, .. } => {
                let kept = base.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.values().map(Tensor::elem_count).sum()
            }
            Source::Fresh(_) | Source::Stored(_) | Source::Extended { .. } => 0,
        }
    }

    /// Writes all of them to a safetensors file.
    pub fn save(&self, path: &Path) -> pixart_weights::Result<()> {
        self.save_part("", path)
    }

    /// Writes those whose names begin with `prefix`, without it, to a safetensors file.
    pub(crate) fn save_part(&self, prefix: &str, path: &Path) -> pixart_weights::Result<()> {
        let all = self.all();
        let tensors =
            all.iter().filter_map(|(name, variable)| Some((name.strip_prefix(prefix)?, variable.as_tensor())));
        write_tensors(path, &tensors.collect::<Vec<_>>())
    }

    /// Gives those whose names begin with `prefix` the values that `value` has for their names without it.
    pub(crate) fn set_part(&self, prefix: &str, value: impl Fn(&str) -> crate::Result<Tensor>) -> crate::Result<()> {
        for (name, variable) in self.all() {
            if let Some(name) = name.strip_prefix(prefix) {
                variable.set(&value(name)?)?;
            }
        }
        Ok(())
    }

    /// Where the variables are.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        // Variables are only ever added whole, so a panic elsewhere leaves a sound map.
        self.variables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The variable `name`, which gets its first values from `first` if it is new.
    fn variable(&self, name: &str, shape: &Shape, first: impl FnOnce() -> Result<Tensor>) -> Result<Var> {
        let mut variables = self.lock();
        let variable = match variables.get(name) {
            Some(variable) => variable.clone(),
            None => {
                let variable = Var::from_tensor(&first()?.to_dtype(DType::F32)?)?;
                variables.insert(name.into(), variable.clone());
                variable
            }
        };
        if variable.shape() != shape {
            candle_core::bail!("{name} is {:?}, not {shape:?}", variable.shape());
        }
        Ok(variable)
    }
}

struct Backend {
    parameters: Parameters,
    tracked: bool,
}

impl Backend {
    fn value(&self, variable: &Var) -> Tensor {
        if self.tracked { variable.as_tensor().clone() } else { variable.as_detached_tensor() }
    }

    fn fresh(&self, initialise: &dyn Initialise, name: &str, shape: &Shape) -> Result<Tensor> {
        Tensor::from_vec(initialise.values(name, shape.dims()), shape.clone(), &self.parameters.device)
    }

    /// One half of a layer's correction, `[rank, in]` or `[out, rank]`, for convolutions with their kernel.
    fn correction(
        &self,
        name: String,
        shape: Vec<usize>,
        start: Option<&Weights>,
        first: impl FnOnce(&str, &Shape) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shape = Shape::from(shape);
        let variable = self.parameters.variable(&name, &shape, || match start {
            Some(start) => {
                Ok(start.tensor(&name, DType::F32, &self.parameters.device).map_err(candle_core::Error::wrap)?)
            }
            None => first(&name, &shape),
        })?;
        Ok(self.value(&variable))
    }
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, _: &Device) -> Result<Tensor> {
        let variable = match &*self.parameters.source {
            Source::Fresh(initialise) => {
                self.parameters.variable(name, &shape, || self.fresh(initialise.as_ref(), name, &shape))?
            }
            Source::Stored(stored) => {
                self.parameters.variable(name, &shape, || stored.builder.get(shape.clone(), name))?
            }
            Source::Extended { base, others } => {
                self.parameters.variable(name, &shape, || match base.weights.tensors().contains_key(name) {
                    true => base.builder.get(shape.clone(), name),
                    false => self.fresh(others.as_ref(), name, &shape),
                })?
            }
            Source::Adapted { base, config, start, fresh } => {
                let weight = base.keep(name, &shape, dtype)?;
                let Some(module) = name.strip_suffix(".weight").filter(|module| config.adapts(module)) else {
                    return Ok(weight);
                };
                let (mut a, mut b) = (shape.dims().to_vec(), vec![1; shape.rank()]);
                (b[0], b[1], a[0]) = (a[0], config.r, config.r);
                let half = |letter: char| format!("{PEFT_PREFIX}{module}.lora_{letter}.weight");
                let a = self.correction(half('A'), a, start.as_ref(), |name, shape| self.fresh(fresh, name, shape))?;
                let zeros = |_: &str, shape: &Shape| Tensor::zeros(shape, DType::F32, &self.parameters.device);
                let b = self.correction(half('B'), b, start.as_ref(), zeros)?;
                return adapted(&weight, &a, &b, config.scale());
            }
        };
        self.value(&variable).to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        match self.parameters.lock().get(name) {
            Some(variable) => self.value(variable).to_dtype(dtype),
            None => candle_core::bail!("{name} is asked for without its shape"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        match &*self.parameters.source {
            // A new network has what its config says, and nothing optional.
            Source::Fresh(_) => false,
            Source::Stored(stored) | Source::Extended { base: stored, .. } | Source::Adapted { base: stored, .. } => {
                stored.weights.tensors().contains_key(name)
            }
        }
    }
}
