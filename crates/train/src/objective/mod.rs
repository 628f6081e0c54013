//! What is trained, and towards what.

mod autoencoder;
mod consistency;
mod consistency_loss;
mod consistency_settings;
mod critics;
mod data;
mod diffusion;
mod discriminator;
mod distribution_matching;
mod hybrid_loss;
mod layout_loss;
mod layout_reader;
mod model;
mod text_encoder;
mod told;
mod word_encoder;

pub use autoencoder::AutoencoderObjective;
pub use consistency::ConsistencyObjective;
pub use consistency_loss::{ConsistencyInputs, ConsistencyLoss, ConsistencyTerms};
pub use consistency_settings::ConsistencySettings;
pub use diffusion::DiffusionObjective;
pub(crate) use hybrid_loss::TIMESTEPS;
pub use hybrid_loss::{HybridLoss, Losses};
pub use text_encoder::TextEncoderObjective;

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use pixart_nn::recompute::Recomputation;

use crate::{Data, Ema, Error, Footprint, Parameters, Recipe, Result, Stage};

/// The file of a network's weights in its folder, by diffusers' name.
pub(crate) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// What the names of a discriminator's parameters begin with, and those of a score of the student's pictures: both are trained along with a
/// student and are no part of the result.
const DISCRIMINATOR: &str = "discriminator.";
const FAKE_SCORE: &str = "fake_score.";

/// Whether the parameter `name` is what is trained, not what is trained along.
pub(crate) fn is_result(name: &str) -> bool {
    [DISCRIMINATOR, FAKE_SCORE].iter().all(|prefix| !name.starts_with(prefix))
}

/// The loss of (a part of) a batch.
pub struct Loss {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// What it is made of, scalars to be shown.
    pub terms: Vec<(&'static str, Tensor)>,
    /// What is not kept for the backward pass, where something is not.
    pub recomputation: Option<Recomputation>,
}

/// Losses that are added.
#[derive(Default)]
struct Sum {
    total: Option<Tensor>,
    terms: Vec<(&'static str, Tensor)>,
}

impl Sum {
    fn add(&mut self, name: &'static str, loss: Tensor, weight: f64) -> Result<()> {
        let weighted = (&loss * weight)?;
        self.total = Some(match self.total.take() {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
        self.terms.push((name, loss));
        Ok(())
    }

    fn into_loss(self, recomputation: Option<Recomputation>) -> Result<Loss> {
        let nothing = || candle_core::Error::Msg("a step in which nothing is learned".into());
        Ok(Loss { total: self.total.ok_or_else(nothing)?, terms: self.terms, recomputation })
    }
}

/// What a recipe trains.
///
/// # Errors
/// Parts that are missing or do not belong together.
pub(crate) fn of(recipe: &Recipe, device: &Device) -> Result<Box<dyn Objective>> {
    Ok(match (&recipe.stage, &recipe.data) {
        (Stage::Autoencoder(stage), Data::Scenes { size, crop }) => {
            Box::new(AutoencoderObjective::new(recipe, stage, (*size, *crop), device)?)
        }
        (Stage::TextEncoder(stage), Data::Features(folder)) => {
            Box::new(TextEncoderObjective::new(recipe, stage, folder, device)?)
        }
        (Stage::Diffusion(stage), Data::Features(folder)) => {
            Box::new(DiffusionObjective::new(recipe, stage, folder, device)?)
        }
        (Stage::ControlNet(stage), Data::Features(folder)) => {
            Box::new(DiffusionObjective::of_controlnet(recipe, stage, folder, device)?)
        }
        (Stage::Consistency(stage), Data::Features(folder)) => {
            Box::new(ConsistencyObjective::new(recipe, stage, folder, device)?)
        }
        (Stage::Autoencoder(_), Data::Features(folder)) => {
            return Err(Error::folder(folder, "an autoencoder is not trained on features"));
        }
        (_, Data::Scenes { .. }) => {
            return Err(Error::recipe(Path::new("data.scenes"), "this stage is trained on features"));
        }
    })
}

/// A network in training.
pub trait Objective: Sync {
    /// What the optimiser changes.
    fn parameters(&self) -> &Parameters;

    /// The loss of part `part` of `parts` of the batch of step `step`, which is counted from 1. It depends on nothing
    /// else but the parameters.
    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss>;

    /// Called when the optimiser has changed the parameters.
    fn step_done(&mut self) -> Result<()> {
        Ok(())
    }

    /// An average of the parameters that the loss depends on, which a checkpoint has to keep.
    fn target_average(&self) -> Option<&Ema> {
        None
    }

    /// As [`Objective::target_average`], to be changed.
    fn target_average_mut(&mut self) -> Option<&mut Ema> {
        None
    }

    /// What its steps need.
    fn footprint(&self) -> Result<Footprint>;

    /// Pictures by which to see how far it is, beside each other; the same scenes each time.
    fn validate(&self) -> Result<RgbImage>;

    /// Writes the network to `folder` as diffusers reads it.
    fn save(&self, folder: &Path) -> Result<()>;
}
