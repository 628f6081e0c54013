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
    /// Another one, which lets it draw what is likely rather than what is in the middle.
    #[serde(default)]
    pub distribution_matching: Option<DistributionMatchingRecipe>,
    /// How much the difference from the target counts beside these two. At 0 there is no target.
    #[serde(default = "one")]
    pub weight: f64,
    /// Steps in which the student stays as it is, so that a discriminator and a score of its pictures get to know those before it
    /// learns from them.
    #[serde(default)]
    pub student_after: u64,
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

/// Distribution matching distillation (Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis"): a score of the student's
/// pictures, which is a second network like the base, is trained along, and the student is moved from where its own pictures are likely to where the base's are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistributionMatchingRecipe {
    /// How much it counts beside the other losses, above 0.
    pub weight: f64,
    /// Strength ω of the base's guidance: `conditional + ω (conditional − unconditional)`.
    pub guidance_scale: f64,
    /// Noise is added to the student's pictures as at a timestep below this, from 21 to 1000, and of 20 or above. What is predicted of much noise is enlarged
    /// by far in the picture: 157 times at timestep 999, 4.5 times at 549.
    #[serde(default = "noise_below")]
    pub noise_below: usize,
}

/// The first timestep as at which noise is added to the student's pictures to find their score.
pub(crate) const NOISE_FROM: usize = 20;

impl DistributionMatchingRecipe {
    fn validate(&self) -> Result<(), String> {
        let key = "stage.consistency.distribution_matching";
        match self {
            Self { weight, .. } if !(weight.is_finite() && *weight > 0.0) => Err(format!("{key}.weight is {weight}")),
            Self { guidance_scale, .. } if !guidance_scale.is_finite() => {
                Err(format!("{key}.guidance_scale is {guidance_scale}"))
            }
            Self { noise_below, .. } if !(NOISE_FROM + 1..=TIMESTEPS).contains(noise_below) => {
                Err(format!("{key}.noise_below is {noise_below}; it is from {} to {TIMESTEPS}", NOISE_FROM + 1))
            }
            _ => Ok(()),
        }
    }
}

fn one() -> f64 {
    1.0
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
    /// Whether the base predicts with guidance.
    pub(crate) fn guides(&self) -> bool {
        let to_target = self.weight > 0.0 && self.settings.teacher_passes() > 0;
        to_target || self.distribution_matching.is_some()
    }

    /// For so many pictures in each part of a batch.
    pub(super) fn validate(&self, pictures: usize) -> Result<(), String> {
        self.lora.as_ref().map_or(Ok(()), LoraRecipe::validate)?;
        if self.lora.is_some() && self.start.is_some() {
            return Err("stage.consistency.start is of a whole transformer, and a lora is trained".into());
        }
        self.settings.validate()?;
        self.adversarial.as_ref().map_or(Ok(()), |adversarial| adversarial.validate(pictures))?;
        self.distribution_matching.as_ref().map_or(Ok(()), DistributionMatchingRecipe::validate)?;
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            return Err(format!("stage.consistency.weight is {}", self.weight));
        }
        let others = self.adversarial.is_some() || self.distribution_matching.is_some();
        if !others && (self.weight == 0.0 || self.student_after > 0) {
            let key = if self.weight == 0.0 { "weight is 0" } else { "student_after is given" };
            return Err(format!("stage.consistency.{key}, which needs adversarial or distribution_matching"));
        }
        if self.weight == 0.0 && self.target.is_some() {
            return Err("stage.consistency.weight is 0, and a target is given".into());
        }
        if self.weight == 0.0 && self.adversarial.is_some_and(|adversarial| adversarial.feature_matching > 0.0) {
            return Err("stage.consistency.weight is 0: there is no target for feature_matching".into());
        }
        if self.weight > 0.0 && self.settings.skip == 0 && self.target.is_none() {
            return Err("stage.consistency.settings.skip is 0, which needs a target that was distilled before".into());
        }
        match self.target_ema_decay {
            decay if (0.0..1.0).contains(&decay) => Ok(()),
            decay => Err(format!("stage.consistency.target_ema_decay is {decay}")),
        }
    }
}
