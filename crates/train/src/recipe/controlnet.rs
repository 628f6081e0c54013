use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{DiffusionRecipe, LogitNormal, Sampling};

/// Training of a ControlNet on features that have conditions; the pipeline that it steers stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNetRecipe {
    /// The pipeline that is steered.
    pub base: PathBuf,
    /// How many of its blocks are copied.
    #[serde(default = "published_copies")]
    pub num_layers: usize,
    /// A ControlNet to start from, in place of the base's blocks.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// The share of captions that are replaced by the empty text, so that the condition has to be looked at.
    #[serde(default = "half")]
    pub text_dropout: f64,
    /// As of [`DiffusionRecipe::snr_gamma`].
    #[serde(default)]
    pub snr_gamma: Option<f64>,
    /// As of [`DiffusionRecipe::snr_floor`].
    #[serde(default)]
    pub snr_floor: Option<f64>,
    /// As of [`DiffusionRecipe::timesteps`].
    #[serde(default)]
    pub timesteps: Option<LogitNormal>,
    /// How validation pictures are drawn, below the conditions of the first pictures.
    #[serde(default)]
    pub validation: Sampling,
}

fn published_copies() -> usize {
    13
}

fn half() -> f64 {
    0.5
}

impl ControlNetRecipe {
    /// The diffusion that it is trained by.
    pub fn diffusion(&self) -> DiffusionRecipe {
        DiffusionRecipe {
            new: None,
            base: Some(self.base.clone()),
            lora: None,
            text_dropout: self.text_dropout,
            snr_gamma: self.snr_gamma,
            snr_floor: self.snr_floor,
            layout: None,
            timesteps: self.timesteps,
            validation: self.validation.clone(),
        }
    }
}
