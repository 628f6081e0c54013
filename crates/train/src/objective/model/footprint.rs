//! What steps of training need.

use candle_core::DType;
use pixart_nn::controlnet::ControlNetConfig;
use pixart_nn::transformer::TransformerConfig;

use super::{Model, Source, Trained};
use crate::Footprint;
use crate::estimate::{transformer_bytes, transformer_flops};

/// Tokens of a long caption, for estimates: of T5's vocabulary, and of one that has a token for each word.
const TEXT_TOKENS: u64 = 120;
const TEXT_WORDS: u64 = 32;

impl Model {
    /// What a step of training needs, for a picture of the native size; `passes` without gradients go with it, of networks
    /// that stay and have `frozen` times the transformer's weights.
    pub(crate) fn footprint(&self, pixels: (usize, usize), passes: f64, frozen: u64) -> Footprint {
        let bytes = self.dtype.size_in_bytes() as u64;
        let tokens = self.tokens(pixels);
        let text = if matches!(self.source, Source::New { .. }) { TEXT_WORDS } else { TEXT_TOKENS };
        // The residual stream's.
        let stream = 4;
        let trained = self.parameters.count() as u64;
        if let Source::Base { trained: Trained::Control { config, .. }, .. } = &self.source {
            return self.control_footprint(config, (tokens, text), stream);
        }
        let of_transformer = self.transformer_count();
        let corrected = matches!(self.source, Source::Base { trained: Trained::Lora { .. }, .. });
        // Weights in another dtype than the parameters', and those that a LoRA corrects, are made anew for each step.
        let own_copies = u64::from(self.dtype != DType::F32 || corrected);
        let own = self.passes_of_training();
        Footprint {
            trained,
            averaged: self.result_count(),
            parameters: trained + if corrected { of_transformer } else { 0 },
            frozen_bytes: (frozen + own_copies) * of_transformer * bytes + self.encoder_bytes(),
            bytes_per_picture: transformer_bytes(&self.config, (tokens, text), (bytes, stream), self.recomputes),
            flops_per_picture: transformer_flops(&self.config, tokens, text) * (own + passes),
        }
    }

    fn tokens(&self, (height, width): (usize, usize)) -> u64 {
        let patch = self.downscale * self.config.patch_size;
        (height / patch * (width / patch)) as u64
    }

    /// Bytes that the first `blocks` of a transformer keep of a picture whose gradients go back through them.
    pub(crate) fn kept_by_blocks(&self, blocks: usize, pixels: (usize, usize)) -> u64 {
        let first = TransformerConfig { num_layers: blocks, ..self.config.clone() };
        let (bytes, stream) = (self.dtype.size_in_bytes() as u64, 4);
        transformer_bytes(&first, (self.tokens(pixels), TEXT_TOKENS), (bytes, stream), false)
    }

    /// How many numbers the transformer has that is trained, or corrected.
    pub(crate) fn transformer_count(&self) -> u64 {
        match &self.source {
            Source::Base { trained: Trained::Lora { .. }, .. } => self.parameters.base_count() as u64,
            _ => self.result_count(),
        }
    }

    fn result_count(&self) -> u64 {
        self.result().iter().map(|(_, variable)| variable.elem_count() as u64).sum()
    }

    /// Passes that a network's forward and backward pass are worth: the latter is two, and a third one where blocks are computed again.
    pub(crate) fn passes_of_training(&self) -> f64 {
        if self.recomputes { 4.0 } else { 3.0 }
    }

    fn encoder_bytes(&self) -> u64 {
        self.encoder.as_ref().map_or(0, |encoder| encoder.bytes)
    }

    /// [`Model::footprint`] of a ControlNet: the base gets no gradients of its weights, but hands on those of its input.
    fn control_footprint(&self, control: &ControlNetConfig, (tokens, text): (u64, u64), stream: u64) -> Footprint {
        let bytes = self.dtype.size_in_bytes() as u64;
        let trained = self.parameters.count() as u64;
        let share = control.num_layers as f64 / self.config.num_layers as f64;
        let base = (trained as f64 / share) as u64;
        let both = TransformerConfig { num_layers: self.config.num_layers + control.num_layers, ..self.config.clone() };
        let again = if self.recomputes { 1.0 } else { 0.0 };
        Footprint {
            trained,
            averaged: trained,
            parameters: base + trained,
            frozen_bytes: base * bytes
                + if self.dtype == DType::F32 { 0 } else { trained * bytes }
                + self.encoder_bytes(),
            bytes_per_picture: transformer_bytes(&both, (tokens, text), (bytes, stream), self.recomputes),
            flops_per_picture: transformer_flops(&self.config, tokens, text) * (2.0 + again + share * (3.0 + again)),
        }
    }
}
