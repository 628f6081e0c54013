use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use pixart_nn::NamedWeights;
use pixart_nn::ops::approach;
use pixart_weights::{Weights, write_tensors};

use crate::objective::is_result;
use crate::{Parameters, Result};

/// An exponential moving average of parameters: `average ← decay · average + (1 − decay) · parameter` after each step.
pub struct Ema {
    parameters: Parameters,
    averages: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Of the parameters that are the result, not of those of networks that are trained along. Starts at their present values.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        let result = parameters.all().into_iter().filter(|(name, _)| is_result(name));
        let copies = result.map(|(name, variable)| Ok((name, variable.as_detached_tensor().copy()?)));
        Ok(Self { parameters: parameters.clone(), averages: copies.collect::<Result<_>>()? })
    }

    /// Takes in the parameters' present values; `decay` is the part that the average keeps.
    pub fn update(&mut self, decay: f64) -> Result<()> {
        for (name, variable) in self.parameters.all() {
            if let Some(average) = self.averages.get_mut(&name) {
                approach(average, &variable.as_detached_tensor(), 1.0 - decay)?;
            }
        }
        Ok(())
    }

    /// Calls `run` with the averages in the parameters' place.
    pub fn in_place<R>(&self, run: impl FnOnce() -> Result<R>) -> Result<R> {
        let own: Vec<(Var, Tensor)> = self
            .parameters
            .all()
            .into_iter()
            .map(|(_, variable)| Ok((variable.clone(), variable.as_detached_tensor().copy()?)))
            .collect::<Result<_>>()?;
        for (name, variable) in self.parameters.all() {
            if let Some(average) = self.averages.get(&name) {
                variable.set(average)?;
            }
        }
        let result = run();
        for (variable, own) in own {
            variable.set(&own)?;
        }
        result
    }

    /// What a network takes the averages from, in `dtype`.
    pub fn builder(&self, dtype: DType) -> NamedWeights<'static> {
        let device = self.averages.values().next().map_or(Device::Cpu, |average| average.device().clone());
        let averages = self.averages.iter().map(|(name, average)| (name.clone(), average.clone()));
        VarBuilder::from_tensors(averages.collect(), dtype, &device).into()
    }

    /// Writes the averages.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors: Vec<_> = self.averages.iter().map(|(name, average)| (name.as_str(), average)).collect();
        Ok(write_tensors(path, &tensors)?)
    }

    /// Goes on from what [`Ema::save`] wrote.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let weights = Weights::open(path)?;
        for (name, average) in &mut self.averages {
            *average = weights.tensor(name, DType::F32, average.device())?;
        }
        Ok(())
    }
}
