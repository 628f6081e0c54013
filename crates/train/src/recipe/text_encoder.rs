use std::path::PathBuf;

use pixart_nn::t5::T5Config;
use serde::{Deserialize, Serialize};

/// Training of a new text encoder before there is a transformer, on features that say what is where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderRecipe {
    /// The fields of `text_encoder/config.json`; `vocab_size` is at least the number of words in the captions and three.
    pub network: T5Config,
}

/// Where the text encoder of a new model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TextEncoderSource {
    /// The folder of a network that [`TextEncoderRecipe`] has trained, which is trained on.
    Trained(PathBuf),
    /// A new one, as [`TextEncoderRecipe::network`] has it.
    New(T5Config),
}

impl TextEncoderRecipe {
    pub(super) fn validate(&self) -> Result<(), String> {
        self.network.validate().map_err(|message| format!("stage.text-encoder.network: {message}"))
    }
}
