use std::collections::BTreeMap;

use crate::Part;

/// What the inputs of layers look like, as a run on some prompts has shown.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    layers: BTreeMap<(&'static str, String), Inputs>,
}

/// What to do with the inputs of a layer before they are rounded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inputs {
    /// `[in]`: what they are multiplied with, so that columns are more alike (SmoothQuant, Xiao et al. 2022); zero for those
    /// that are kept out of the rounding.
    pub factors: Option<Vec<f32>>,
    /// Columns that are kept out of the rounding.
    pub outliers: Vec<usize>,
}

impl Calibration {
    /// Adds what is known of the inputs of the weight `name`.
    pub fn insert(&mut self, part: Part, name: &str, inputs: Inputs) {
        self.layers.insert((part.name(), name.into()), inputs);
    }

    /// What is known of the inputs of the weight `name`.
    pub fn inputs(&self, part: Part, name: &str) -> Option<&Inputs> {
        self.layers.get(&(part.name(), name.to_string()))
    }
}
