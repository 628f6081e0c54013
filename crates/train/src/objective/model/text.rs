//! Captions as text encoders take and give them.

use candle_core::{DType, Device, Tensor};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_weights::{Part, PipelineFolder, read_tokenizer};
use tokenizers::Tokenizer;

use super::{Model, Source};
use crate::features::{Batch, Features};
use crate::objective::word_encoder::{Text, encode};
use crate::{Error, Result};

impl Model {
    /// The text encoder as it is now, with its tokenizer, where captions are words.
    pub(super) fn text_encoder(&self) -> Result<Option<(&Tokenizer, T5Encoder)>> {
        match &self.source {
            Source::New { text_encoder, .. } => {
                Ok(Some((&text_encoder.tokenizer, text_encoder.network(self.parameters.builder(self.dtype))?)))
            }
            Source::Base { .. } => Ok(self.encoder.as_ref().map(|frozen| (&frozen.tokenizer, frozen.network.clone()))),
        }
    }

    /// One caption of each item of a batch, the empty text where `choose` gives none.
    pub(crate) fn text(
        &self,
        batch: &Batch,
        features: &Features,
        choose: impl Fn(usize, &[String]) -> Option<usize>,
    ) -> Result<Text> {
        let chosen = batch.captions.iter().enumerate().map(|(item, captions)| choose(item, captions));
        let chosen: Vec<Option<usize>> = chosen.collect();
        if let Some((tokenizer, encoder)) = self.text_encoder()? {
            let texts = batch.captions.iter().zip(&chosen);
            let texts: Vec<String> = texts
                .map(|(captions, chosen)| chosen.map(|index| captions[index].clone()).unwrap_or_default())
                .collect();
            // As many as the pipeline shows its transformer.
            let most = self.encoder.as_ref().map_or(usize::MAX, |encoder| encoder.max_tokens);
            return encode(tokenizer, &encoder, &texts, most, &self.device);
        }
        let (Some(embeds), Some(null)) = (&batch.prompt_embeds, features.null()) else {
            return Err(candle_core::Error::Msg("the features have no embeddings of captions".into()).into());
        };
        let rows: Vec<&Tensor> =
            embeds.iter().zip(&chosen).map(|(embeds, chosen)| if chosen.is_some() { embeds } else { null }).collect();
        pad(&rows, &self.device)
    }
}

/// A pipeline's text encoder, which stays.
pub(super) struct FrozenEncoder {
    tokenizer: Tokenizer,
    network: T5Encoder,
    max_tokens: usize,
    pub bytes: u64,
}

impl FrozenEncoder {
    pub(super) fn open(folder: &PipelineFolder, dtype: DType, device: &Device) -> Result<Self> {
        let config: T5Config = folder.config(Part::TextEncoder)?;
        config.validate().map_err(|reason| Error::folder(&folder.config_path(Part::TextEncoder), reason))?;
        let weights = folder.weights(Part::TextEncoder, dtype)?;
        Ok(Self {
            tokenizer: read_tokenizer(&folder.tokenizer_path())?,
            network: T5Encoder::new(&config, weights.named(dtype, device))?,
            max_tokens: folder.kind().max_sequence_length(),
            bytes: weights.filtered(|name| !Part::TextEncoder.is_embedding(name)).bytes_in(dtype),
        })
    }
}

/// Embeddings of several lengths as one batch.
fn pad(rows: &[&Tensor], device: &Device) -> Result<Text> {
    let longest = rows.iter().map(|row| row.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
    let longest = longest.into_iter().max().unwrap_or(0);
    let (mut embeds, mut masks) = (Vec::new(), Vec::new());
    for row in rows {
        let tokens = row.dim(0)?;
        embeds.push(row.pad_with_zeros(0, 0, longest - tokens)?);
        masks.extend((0..longest).map(|i| f32::from(u8::from(i < tokens))));
    }
    Ok(Text {
        embeds: Tensor::stack(&embeds, 0)?.to_device(device)?,
        mask: Tensor::from_vec(masks, (rows.len(), longest), device)?,
    })
}
