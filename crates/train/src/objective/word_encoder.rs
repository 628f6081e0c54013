//! A text encoder that is trained, and captions as it takes and gives them.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart::tokenize;
use pixart_nn::NamedWeights;
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_weights::{Part, Weights, open_part, read_tokenizer, write_bytes, write_json};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::features::Features;
use crate::vocabulary::word_tokenizer;
use crate::{Error, Parameters, Result};

/// The file of a text encoder's weights, by transformers' name.
const WEIGHTS: &str = "model.safetensors";

/// What the names of its parameters begin with.
const PREFIX: &str = "text_encoder.";

/// Captions as text encoders take and give them.
pub(crate) struct Text {
    /// `[batch, tokens, width]`.
    pub embeds: Tensor,
    /// `[batch, tokens]`: 1 for a token, 0 for padding.
    pub mask: Tensor,
}

impl Text {
    /// Those of the first `count` texts.
    pub(crate) fn first(&self, count: usize) -> Result<Self> {
        Ok(Self { embeds: self.embeds.narrow(0, 0, count)?, mask: self.mask.narrow(0, 0, count)? })
    }

    /// Each in the place of the one before, and the first in that of the last.
    pub(crate) fn rotated(&self) -> Result<Self> {
        let rotate = |xs: &Tensor| -> Result<Tensor> {
            let others = xs.dim(0)? - 1;
            Ok(Tensor::cat(&[xs.narrow(0, 1, others)?, xs.narrow(0, 0, 1)?], 0)?)
        };
        Ok(Self { embeds: rotate(&self.embeds)?, mask: rotate(&self.mask)? })
    }
}

/// Encodes captions, all as long as the longest of them, but no longer than `most` tokens.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    network: &T5Encoder,
    captions: &[String],
    most: usize,
    device: &Device,
) -> Result<Text> {
    let tokens = captions.iter().map(|caption| Ok(tokenizer.encode(caption.as_str(), false)?.len() + 1));
    let tokens = tokens.collect::<Result<Vec<_>, tokenizers::Error>>();
    let tokens = tokens.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
    let longest = tokens.into_iter().max().unwrap_or(1).min(most);
    let tokens = tokenize(tokenizer, captions, longest, device)?;
    let embeds = network.forward(&tokens.input_ids, &tokens.attention_mask)?;
    Ok(Text { embeds, mask: tokens.attention_mask })
}

/// A text encoder with a token for each word, which is trained.
pub(crate) struct WordEncoder {
    pub config: T5Config,
    pub tokenizer: Tokenizer,
}

impl WordEncoder {
    /// A new one, which knows the words of `features`; `path` is where they are.
    pub(crate) fn new(config: &T5Config, features: &Features, path: &Path) -> Result<Self> {
        let captions = features.captions().flatten().map(String::as_str);
        let broken = |error: tokenizers::Error| Error::folder(path, format!("no tokenizer: {error}"));
        let tokenizer = word_tokenizer(captions).map_err(broken)?;
        let (words, room) = (tokenizer.get_vocab_size(true), config.vocab_size);
        if words > room {
            let message = format!("the captions have {words} words, the text encoder's vocab_size is {room}");
            return Err(Error::folder(path, message));
        }
        Ok(Self { config: config.clone(), tokenizer })
    }

    /// One that was trained before, and its weights.
    pub(crate) fn trained(folder: &Path) -> Result<(Self, Weights)> {
        let (config, weights) = open_part::<T5Config>(folder, Part::TextEncoder, DType::F32)?;
        config.validate().map_err(|reason| Error::folder(folder, reason))?;
        Ok((Self { config, tokenizer: read_tokenizer(&folder.join("tokenizer"))? }, weights))
    }

    /// Gives its parameters, which [`WordEncoder::network`] has asked for, the values of one that was trained before.
    pub(crate) fn load(parameters: &Parameters, weights: &Weights) -> Result<()> {
        parameters.set_part(PREFIX, |name| Ok(weights.tensor(name, DType::F32, parameters.device())?))
    }

    /// The network as it is now.
    pub(crate) fn network(&self, weights: NamedWeights<'static>) -> Result<T5Encoder> {
        Ok(T5Encoder::new(&self.config, weights.pp(PREFIX.trim_end_matches('.')))?)
    }

    /// Writes it and its tokenizer as transformers reads them.
    pub(crate) fn save(&self, parameters: &Parameters, folder: &Path) -> Result<()> {
        write_json(&folder.join("tokenizer/tokenizer_config.json"), &tokenizer_config())?;
        let path = folder.join("tokenizer/tokenizer.json");
        let text = self.tokenizer.to_string(true);
        let text = text.map_err(|error| Error::folder(&path, error.to_string()))?;
        write_bytes(&path, text.as_bytes())?;
        write_json(&folder.join("text_encoder/config.json"), &text_encoder_config(&self.config)?)?;
        Ok(parameters.save_part(PREFIX, &folder.join("text_encoder").join(WEIGHTS))?)
    }
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "T5TokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": 512,
    })
}

fn text_encoder_config(config: &T5Config) -> Result<Value> {
    let mut value = serde_json::to_value(config).map_err(|error| Error::Tensor(candle_core::Error::wrap(error)))?;
    if let Some(fields) = value.as_object_mut() {
        let more = json!({
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "is_gated_act": true,
            "dense_act_fn": "gelu_new",
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": false,
            "use_cache": false,
        });
        if let Value::Object(more) = more {
            fields.extend(more);
        }
    }
    Ok(value)
}
