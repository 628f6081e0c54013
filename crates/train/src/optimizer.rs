//! AdamW over all parameters of a network, or Muon over its matrices and AdamW over the others.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use pixart_nn::ops::{AdamW, adamw};
use pixart_weights::{Weights, write_tensors};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Parameters, Result, muon};

/// The optimiser's settings, named as PyTorch names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decays of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Part of the parameters that a step of learning rate 1 takes away; tensors of one dimension keep theirs.
    pub weight_decay: f64,
    /// Where it is given, the momentum of Muon, which then changes the matrices inside of blocks in place of AdamW: networks
    /// that are new learn in fewer steps.
    pub muon: Option<f64>,
    /// The largest norm of all gradients together; longer ones are shortened to it.
    pub max_grad_norm: Option<f64>,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self { lr: 1e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, muon: None, max_grad_norm: None }
    }
}

/// AdamW and what it remembers of each parameter.
pub struct Optimizer {
    settings: OptimizerSettings,
    parameters: Parameters,
    /// `[2, ...]` for each parameter.
    moments: BTreeMap<String, Var>,
    step: u32,
}

impl Optimizer {
    /// For all parameters that there are now.
    pub fn new(settings: OptimizerSettings, parameters: &Parameters) -> Result<Self> {
        let zeros =
            |variable: &Var| Var::from_tensor(&Tensor::stack(&[variable.zeros_like()?, variable.zeros_like()?], 0)?);
        let all = parameters.all();
        let moments = all.iter().map(|(name, variable)| Ok((name.clone(), zeros(variable)?)));
        let moments = moments.collect::<Result<_>>()?;
        Ok(Self { settings, parameters: parameters.clone(), moments, step: 0 })
    }

    /// Changes the parameters by their gradients, which are `scale` times too long, with the learning rate times `factor`. Returns the norm of all gradients
    /// together; if it is not finite, nothing has changed. A parameter without a gradient stays.
    pub fn step(&mut self, gradients: &GradStore, factor: f64, scale: f64) -> Result<f64> {
        let all = self.parameters.all();
        let mut squares = 0f64;
        for (_, variable) in &all {
            if let Some(gradient) = gradients.get(variable) {
                squares += f64::from(gradient.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = squares.sqrt() / scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let shorten = self.settings.max_grad_norm.map_or(1.0, |longest| (longest / (norm + 1e-6)).min(1.0)) / scale;
        // Each matrix of Muon's is a chain of small products: several are taken at once.
        all.par_iter().try_for_each(|(name, variable)| {
            let (Some(gradient), Some(moments)) = (gradients.get(variable), self.moments.get(name)) else {
                return Ok(());
            };
            let gradient = if shorten != 1.0 { (gradient * shorten)? } else { gradient.clone() };
            let OptimizerSettings { lr, betas: [beta1, beta2], eps, weight_decay, .. } = self.settings;
            let weight_decay = if variable.rank() > 1 { weight_decay } else { 0.0 };
            if let Some(momentum) = self.settings.muon.filter(|_| muon::applies(name, variable.dims())) {
                return step_muon(variable, &gradient, moments, momentum, lr * factor, weight_decay);
            }
            let settings = AdamW { lr: lr * factor, beta1, beta2, eps, weight_decay, step: self.step };
            adamw(variable, &gradient, moments, &settings)
        })?;
        Ok(norm)
    }

    /// Writes what it remembers: both moments, of which Muon has but the first.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors: Vec<_> = self.moments.iter().map(|(name, moments)| (name.as_str(), moments.as_tensor())).collect();
        Ok(write_tensors(path, &tensors)?)
    }

    /// Goes on after `steps` steps with what [`Optimizer::save`] wrote then.
    pub fn load(&mut self, path: &Path, steps: u32) -> Result<()> {
        let weights = Weights::open(path)?;
        for (name, moments) in &self.moments {
            moments.set(&weights.tensor(name, DType::F32, moments.device())?)?;
        }
        self.step = steps;
        Ok(())
    }
}

/// A step of Muon, with Nesterov's momentum.
fn step_muon(
    variable: &Var,
    gradient: &Tensor,
    moments: &Var,
    momentum: f64,
    lr: f64,
    weight_decay: f64,
) -> candle_core::Result<()> {
    let gradient = (gradient.to_dtype(DType::F32)?.detach() * (1.0 - momentum))?;
    let moments = moments.as_detached_tensor();
    let first = ((moments.get(0)? * momentum)? + &gradient)?;
    let update = muon::update(&((&first * momentum)? + gradient)?)?;
    moments.slice_set(&first.unsqueeze(0)?, 0, 0)?;
    variable.set(&((variable.as_detached_tensor() * (1.0 - lr * weight_decay))? - (update * lr)?)?)
}
