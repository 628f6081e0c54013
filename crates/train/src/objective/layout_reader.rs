//! What is where in a picture, read from embeddings of its caption alone.

use candle_core::{Result, Tensor};
use pixart_nn::NamedWeights;
use pixart_nn::ops::{Activation, Linear, RmsNorm, Scores, cross_attention};
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::padding_bias;

use super::layout_loss::LayoutLoss;
use super::word_encoder::Text;

/// Each place of the picture asks the text, by a cross-attention and an MLP as a transformer's block has them.
pub(crate) struct LayoutReader {
    /// `[places, width]`.
    places: Tensor,
    queries: Linear,
    keys_values: Linear,
    norm: RmsNorm,
    hidden: Linear,
    out: Linear,
    heads: usize,
    pub loss: LayoutLoss,
}

impl LayoutReader {
    /// Of embeddings that an encoder of `config` makes, for maps of so many classes each.
    pub(crate) fn new(
        config: &T5Config,
        places: usize,
        classes: &[usize],
        weights: NamedWeights<'static>,
    ) -> crate::Result<Self> {
        let width = config.d_model;
        Ok(Self {
            places: weights.get((places, width), "places")?,
            queries: Linear::new(width, width, weights.pp("queries"))?,
            keys_values: Linear::new(width, 2 * width, weights.pp("keys_values"))?,
            norm: RmsNorm::new(width, config.layer_norm_epsilon, weights.pp("norm"))?,
            hidden: Linear::new(width, 2 * width, weights.pp("hidden"))?,
            out: Linear::new(2 * width, width, weights.pp("out"))?,
            heads: config.num_heads,
            loss: LayoutLoss::new(width, 1, classes, weights.pp("layout"))?,
        })
    }

    /// A token for each place, `[batch, places, width]`.
    pub(crate) fn tokens(&self, text: &Text) -> Result<Tensor> {
        let (places, width) = self.places.dims2()?;
        let places = self.places.unsqueeze(0)?.broadcast_as((text.embeds.dim(0)?, places, width))?.contiguous()?;
        let padding = padding_bias(&text.mask)?;
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let keys_values = self.keys_values.forward(&text.embeds)?;
        let heard = cross_attention(
            &self.queries.forward(&places)?,
            &keys_values,
            Scores::new(self.heads, scale),
            Some(&padding),
        )?;
        let tokens = (places + heard)?;
        let hidden = self.hidden.forward_activated(&self.norm.forward(&tokens)?, Activation::GeluTanh)?;
        tokens + self.out.forward(&hidden)?
    }
}
