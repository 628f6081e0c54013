//! What is trained, and towards what.

mod autoencoder;

pub use autoencoder::AutoencoderObjective;

use std::path::Path;

use candle_core::Tensor;
use image::RgbImage;

use crate::{Parameters, Result};

/// The file of a network's weights in its folder, by diffusers' name.
pub(crate) const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The loss of (a part of) a batch.
pub struct Loss {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// What it is made of, scalars to be shown.
    pub terms: Vec<(&'static str, Tensor)>,
}

/// A network in training.
pub trait Objective {
    /// What the optimiser changes.
    fn parameters(&self) -> &Parameters;

    /// The loss of part `part` of `parts` of the batch of step `step`, which is counted from 1. It depends on nothing
    /// else but the parameters.
    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss>;

    /// Pictures by which to see how far it is, beside each other; the same scenes each time.
    fn validate(&self) -> Result<RgbImage>;

    /// Writes the network to `folder` as diffusers reads it.
    fn save(&self, folder: &Path) -> Result<()>;
}
