//! AdamW over all parameters of a network, or Muon over its matrices and AdamW over the others.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use pixart_nn::ops::{AdamW, adamw, follow, momentum, squares};
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
    /// What it is multiplied with for parameters whose names begin so: something small and new beside a large network
    /// that is known bears more.
    pub lr_factors: BTreeMap<String, f64>,
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
        Self {
            lr: 1e-4,
            lr_factors: BTreeMap::new(),
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            muon: None,
            max_grad_norm: None,
        }
    }
}

impl OptimizerSettings {
    /// The learning rate of the parameter `name`; the longest beginning counts.
    fn lr_of(&self, name: &str) -> f64 {
        let begun = self.lr_factors.iter().filter(|(beginning, _)| name.starts_with(*beginning));
        self.lr * begun.max_by_key(|(beginning, _)| beginning.len()).map_or(1.0, |(_, factor)| *factor)
    }
}

/// A parameter that is to change, and why.
struct Change<'a> {
    name: &'a str,
    variable: &'a Var,
    gradient: Tensor,
    moments: &'a Var,
    lr: f64,
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
        let changes = all.iter().filter_map(|(name, variable)| {
            let gradient = gradients.get(variable)?;
            let lr = self.settings.lr_of(name) * factor;
            Some(Change { name, variable, gradient: gradient.clone(), moments: self.moments.get(name)?, lr })
        });
        let mut changes: Vec<_> = changes.collect();
        let of_gradients: Vec<_> = changes.iter().map(|change| change.gradient.clone()).collect();
        let norm = squares(&of_gradients)?.into_iter().map(f64::from).sum::<f64>().sqrt() / scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let shorten = self.settings.max_grad_norm.map_or(1.0, |longest| (longest / (norm + 1e-6)).min(1.0)) / scale;
        if shorten != 1.0 {
            for change in &mut changes {
                change.gradient = (&change.gradient * shorten)?;
            }
        }
        let uses_muon =
            |change: &Change| self.settings.muon.is_some() && muon::applies(change.name, change.variable.dims());
        let (matrices, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(uses_muon);
        // Each matrix of Muon's is a chain of small products. A CPU takes several chains at once, a GPU a chain of several.
        match all.first().is_some_and(|(_, variable)| variable.device().is_cpu()) {
            true => {
                others.par_iter().try_for_each(|change| self.step_adamw(change))?;
                matrices.par_iter().try_for_each(|change| self.step_muon(&[change]))?;
            }
            false => {
                others.iter().try_for_each(|change| self.step_adamw(change))?;
                let mut alike: BTreeMap<&[usize], Vec<&Change>> = BTreeMap::new();
                matrices.iter().for_each(|change| alike.entry(change.variable.dims()).or_default().push(change));
                alike.values().try_for_each(|changes| self.step_muon(changes))?;
            }
        }
        Ok(norm)
    }

    /// The part of a parameter that a learning rate of 1 takes away.
    fn weight_decay(&self, variable: &Var) -> f64 {
        if variable.rank() > 1 { self.settings.weight_decay } else { 0.0 }
    }

    fn step_adamw(&self, change: &Change) -> candle_core::Result<()> {
        let OptimizerSettings { betas: [beta1, beta2], eps, .. } = self.settings;
        let weight_decay = self.weight_decay(change.variable);
        let settings = AdamW { lr: change.lr, beta1, beta2, eps, weight_decay, step: self.step };
        adamw(change.variable, &change.gradient, change.moments, &settings)
    }

    /// A step of Muon, with Nesterov's momentum, of matrices of one shape.
    fn step_muon(&self, changes: &[&Change]) -> candle_core::Result<()> {
        let decay = self.settings.muon.unwrap_or_default();
        let momenta = changes.iter().map(|change| momentum(&change.gradient, change.moments, decay));
        let updates = muon::updates(&momenta.collect::<candle_core::Result<Vec<_>>>()?)?;
        for (change, update) in changes.iter().zip(updates) {
            follow(change.variable, &update, 1.0 - change.lr * self.weight_decay(change.variable), -change.lr)?;
        }
        Ok(())
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
