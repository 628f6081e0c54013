use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{LoraRecipe, Sampling};
use crate::ConsistencySettings;
use crate::objective::TIMESTEPS;

/// Distillation of a pipeline's transformer into a latent consistency model: all of it (LCD), or a LoRA for it (LCM-LoRA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyRecipe {
    /// The pipeline that is distilled, which is the teacher.
    pub base: PathBuf,
    /// Trains corrections of the base's layers, and leaves the base as it is; the student is its own target then.
    #[serde(default)]
    pub lora: Option<LoraRecipe>,
    /// A transformer that the student starts as, such as one that was distilled before; the base's if it is not given.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// A transformer that was distilled before, which the student is held to in place of itself or its average.
    #[serde(default)]
    pub target: Option<PathBuf>,
    /// Decay of the moving average of the student that is its target, where all of it is trained and no other is given.
    #[serde(default = "target_decay")]
    pub target_ema_decay: f64,
    /// A second loss, which lets the student draw what is sharp rather than what is in the middle.
    #[serde(default)]
    pub adversarial: Option<AdversarialRecipe>,
    /// How it is distilled.
    #[serde(default)]
    pub settings: ConsistencySettings,
    /// How validation pictures are drawn; by the LCM solver if it is not given.
    #[serde(default)]
    pub validation: Sampling,
}

/// A discriminator that sees by the base's eyes, and is trained along: it tells the student's pictures from those of the data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdversarialRecipe {
    /// How much its verdict on the student's pictures counts beside the difference from what they are to be.
    pub weight: f64,
    /// The block of the base, from 0, as whose tokens it sees them.
    pub block: usize,
    /// Noise is added to what it sees, as at a timestep below this. With little of it the discriminator looks at edges, with much at what is where.
    #[serde(default = "noise_below")]
    pub noise_below: usize,
    /// Whether it is to tell, too, pictures of the data from such with another one's caption, so that it looks at whether a picture is
    /// what its caption says. Takes two pictures or more in each part of a batch.
    #[serde(default)]
    pub mismatched_captions: bool,
    /// How much it counts that it sees in the student's pictures what it sees in what they are to be, beside the difference of the pictures themselves.
    #[serde(default)]
    pub feature_matching: f64,
}

fn noise_below() -> usize {
    TIMESTEPS
}

impl AdversarialRecipe {
    fn validate(&self, pictures: usize) -> Result<(), String> {
        match self {
            Self { weight, .. } if !(weight.is_finite() && *weight > 0.0) => {
                Err(format!("stage.consistency.adversarial.weight is {weight}"))
            }
            Self { feature_matching, .. } if !(feature_matching.is_finite() && *feature_matching >= 0.0) => {
                Err(format!("stage.consistency.adversarial.feature_matching is {feature_matching}"))
            }
            Self { noise_below, .. } if !(1..=TIMESTEPS).contains(noise_below) => {
                Err(format!("stage.consistency.adversarial.noise_below is {noise_below}; it is from 1 to {TIMESTEPS}"))
            }
            Self { mismatched_captions: true, .. } if pictures < 2 => {
                Err("stage.consistency.adversarial.mismatched_captions takes two pictures or more in a part".into())
            }
            _ => Ok(()),
        }
    }
}

fn target_decay() -> f64 {
    0.95
}

impl ConsistencyRecipe {
    /// For so many pictures in each part of a batch.
    pub(super) fn validate(&self, pictures: usize) -> Result<(), String> {
        self.lora.as_ref().map_or(Ok(()), LoraRecipe::validate)?;
        if self.lora.is_some() && self.start.is_some() {
            return Err("stage.consistency.start is of a whole transformer, and a lora is trained".into());
        }
        self.settings.validate()?;
        self.adversarial.as_ref().map_or(Ok(()), |adversarial| adversarial.validate(pictures))?;
        if self.settings.skip == 0 && self.target.is_none() {
            return Err("stage.consistency.settings.skip is 0, which needs a target that was distilled before".into());
        }
        match self.target_ema_decay {
            decay if (0.0..1.0).contains(&decay) => Ok(()),
            decay => Err(format!("stage.consistency.target_ema_decay is {decay}")),
        }
    }
}
