//! AdamW over all parameters of a network, or Muon over its matrices and AdamW over the others.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
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
    /// Which of its own steps it is, from 1.
    step: u32,
}

/// AdamW and what it remembers of each parameter.
pub struct Optimizer {
    settings: OptimizerSettings,
    parameters: Parameters,
    /// `[2, ...]` for each parameter.
    moments: BTreeMap<String, Var>,
    /// How often each has changed: one that began to learn later than others has moments of fewer gradients.
    steps: BTreeMap<String, u32>,
}

/// Under what name the file of moments has `steps`, in the order of the parameters' names.
const STEPS: &str = "steps";

impl Optimizer {
    /// For all parameters that there are now.
    pub fn new(settings: OptimizerSettings, parameters: &Parameters) -> Result<Self> {
        let zeros =
            |variable: &Var| Var::from_tensor(&Tensor::stack(&[variable.zeros_like()?, variable.zeros_like()?], 0)?);
        let all = parameters.all();
        let moments = all.iter().map(|(name, variable)| Ok((name.clone(), zeros(variable)?)));
        let moments = moments.collect::<Result<_>>()?;
        Ok(Self { settings, parameters: parameters.clone(), moments, steps: BTreeMap::new() })
    }

    /// Changes the parameters by their gradients, which are `scale` times too long, with the learning rate times `factor`. Returns the norm of all gradients
    /// together; if it is not finite, nothing has changed. A parameter without a gradient stays.
    pub fn step(&mut self, gradients: &GradStore, factor: f64, scale: f64) -> Result<f64> {
        let all = self.parameters.all();
        let changes = all.iter().filter_map(|(name, variable)| {
            let gradient = gradients.get(variable)?;
            let lr = self.settings.lr_of(name) * factor;
            let step = self.steps.get(name).copied().unwrap_or_default() + 1;
            Some(Change { name, variable, gradient: gradient.clone(), moments: self.moments.get(name)?, lr, step })
        });
        let mut changes: Vec<_> = changes.collect();
        let of_gradients: Vec<_> = changes.iter().map(|change| change.gradient.clone()).collect();
        let norm = squares(&of_gradients)?.into_iter().map(f64::from).sum::<f64>().sqrt() / scale;
        if !norm.is_finite() {
            return Ok(norm);
        }
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
        for (name, _) in all.into_iter().filter(|(_, variable)| gradients.get(variable).is_some()) {
            *self.steps.entry(name).or_default() += 1;
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
        let settings = AdamW { lr: change.lr, beta1, beta2, eps, weight_decay, step: change.step };
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

    /// Writes what it remembers: both moments, of which Muon has but the first, and how often each parameter has changed.
    pub fn save(&self, path: &Path) -> Result<()> {
        let steps = self.moments.keys().map(|name| self.steps.get(name).copied().unwrap_or_default() as f32);
        let steps = Tensor::from_iter(steps, &Device::Cpu)?;
        let moments = self.moments.iter().map(|(name, moments)| (name.as_str(), moments.as_tensor()));
        let tensors: Vec<_> = moments.chain([(STEPS, &steps)]).collect();
        Ok(write_tensors(path, &tensors)?)
    }

    /// Goes on with what [`Optimizer::save`] wrote.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let weights = Weights::open(path)?;
        let steps = weights.tensor(STEPS, DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
        for ((name, moments), steps) in self.moments.iter().zip(steps) {
            moments.set(&weights.tensor(name, DType::F32, moments.device())?)?;
            self.steps.insert(name.clone(), steps as u32);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;
    use crate::UniformFanIn;

    /// A parameter that begins to learn later than another goes the way that it would have gone from the first step on, after its moments were kept as well.
    #[test]
    fn a_parameter_has_steps_of_its_own() -> Result<()> {
        let parameters = Parameters::fresh(UniformFanIn { seed: 1 }, &Device::Cpu);
        let builder = parameters.builder(DType::F32);
        let (early, late) = (builder.get(3, "early.bias")?, builder.get(3, "late.bias")?);
        let settings = OptimizerSettings { lr: 0.1, ..OptimizerSettings::default() };
        let mut optimizer = Optimizer::new(settings.clone(), &parameters)?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("moments.safetensors");
        let values = |name: &str| -> Result<Vec<f32>> {
            let all = parameters.all();
            Ok(all.iter().find(|(found, _)| found == name).expect("it is there").1.to_vec1()?)
        };
        let target = Tensor::new(&[1f32, -2.0, 0.3], &Device::Cpu)?;
        let mut way = Vec::new();
        for step in 0..12 {
            let distance = |xs: &Tensor| (xs - &target)?.sqr()?.sum(D::Minus1);
            let loss = if step < 4 { distance(&early)? } else { (distance(&early)? + distance(&late)?)? };
            optimizer.step(&loss.backward()?, 1.0, 1.0)?;
            way.push((values("early.bias")?, values("late.bias")?));
            if step == 6 {
                optimizer.save(&path)?;
                optimizer = Optimizer::new(settings.clone(), &parameters)?;
                optimizer.load(&path)?;
            }
        }
        assert_eq!(way[3].1, [0.0; 3]);
        for step in 0..8 {
            assert_eq!(way[step].0, way[step + 4].1, "{step}");
        }
        Ok(())
    }
}
