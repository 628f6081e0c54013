use candle_core::Tensor;
use pixart_nn::transformer::{PixArtTransformer, ProjectedText};

use super::model::Model;
use super::word_encoder::Text;
use crate::Result;
use crate::features::Batch;

/// A transformer that is told the texts of a batch.
pub(super) struct Told<'a> {
    model: &'a Model,
    pixels: (usize, usize),
    pub network: &'a PixArtTransformer,
    pub text: ProjectedText,
}

impl<'a> Told<'a> {
    pub(super) fn new(model: &'a Model, batch: &Batch, network: &'a PixArtTransformer, text: &Text) -> Result<Self> {
        let text = network.project_text(&text.embeds, Some(&text.mask))?;
        Ok(Self { model, pixels: batch.pixels, network, text })
    }

    /// What noise it predicts in latents at timesteps.
    pub(super) fn noise(&self, z: &Tensor, ts: &[usize]) -> Result<Tensor> {
        let size = self.model.size(self.pixels, ts.len())?;
        let prediction = Model::predict(self.network, z, ts, &self.text, size.as_ref(), None)?;
        Ok(prediction.narrow(1, 0, z.dim(1)?)?)
    }
}
