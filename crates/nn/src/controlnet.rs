//! ControlNet-Transformer (Chen et al. 2024, "PixArt-δ", section 4): copies of a transformer's first blocks, which see a
//! condition image beside the latents and correct what goes into the blocks that follow.

use crate::NamedWeights;
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::Linear;
use crate::transformer::{Block, TransformerConfig};

/// Shape of a ControlNet, beside that of the transformer that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlNetConfig {
    /// How many of the transformer's blocks are copied, from the first: at least 1, and fewer than it has.
    pub num_layers: usize,
}

impl ControlNetConfig {
    /// Refuses a number of copies that `base` does not have.
    pub fn validate(&self, base: &TransformerConfig) -> std::result::Result<(), String> {
        match self.num_layers {
            copies if copies >= 1 && copies < base.num_layers => Ok(()),
            copies => Err(format!(
                "a ControlNet of {copies} copied blocks does not fit a transformer of {} blocks: it has 1 to {}",
                base.num_layers,
                base.num_layers.saturating_sub(1)
            )),
        }
    }
}

/// A ControlNet; [`PixArtTransformer::with_control`](crate::transformer::PixArtTransformer::with_control) attaches it.
#[derive(Debug, Clone)]
pub struct ControlNet {
    /// The condition's way into the first copy.
    before: Linear,
    copies: Vec<CopiedBlock>,
}

#[derive(Debug, Clone)]
pub(crate) struct CopiedBlock {
    pub block: Block,
    /// The way out, to the base's next block.
    pub after: Linear,
}

impl ControlNet {
    /// Reads the weights by the names of diffusers' research example. Where all projections are zero, as they are before
    /// training, the transformer's prediction is the same as without it.
    ///
    /// # Errors
    /// A config that does not fit `base`; a weight that is missing or has another shape.
    pub fn new(config: &ControlNetConfig, base: &TransformerConfig, vb: NamedWeights) -> Result<Self> {
        config.validate(base).map_err(candle_core::Error::msg)?;
        let (width, blocks) = (base.width(), vb.pp("controlnet_blocks"));
        let copy = |i: usize| {
            let vb = blocks.pp(i);
            Ok(CopiedBlock {
                block: Block::new(base, vb.pp("transformer_block"))?,
                after: Linear::new(width, width, vb.pp("after_proj"))?,
            })
        };
        Ok(Self {
            before: Linear::new(width, width, blocks.pp(0).pp("before_proj"))?,
            copies: (0..config.num_layers).map(copy).collect::<Result<_>>()?,
        })
    }

    /// How many blocks are copied.
    pub fn num_layers(&self) -> usize {
        self.copies.len()
    }

    /// Keys and values of every copy's cross-attention to a projected text.
    pub(crate) fn keys_values(&self, text: &Tensor) -> Result<Vec<Tensor>> {
        self.copies.iter().map(|copy| copy.block.cross_attention.keys_values(text)).collect()
    }

    /// What the first copy gets: the base's stream and the condition's tokens, each `[batch, n, width]`.
    pub(crate) fn enter(&self, xs: &Tensor, condition: &Tensor) -> Result<Tensor> {
        self.before.forward_residual(condition, xs, None)
    }

    /// The copy whose result corrects what goes into the base's block `index`.
    pub(crate) fn copy_before(&self, index: usize) -> Option<&CopiedBlock> {
        self.copies.get(index.checked_sub(1)?)
    }
}
