//! What is on disk: diffusers folders, safetensors, PyTorch's `.bin` and `.pth`, tokenizers; names and configs in, and
//! back out.
//!
//! A [`PipelineFolder`] says what a folder holds; [`Weights`] maps the files of one part and hands its tensors to a
//! network as [`pixart_nn::NamedWeights`], one at a time, converted to the wanted dtype.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};
//! use pixart_weights::{Part, PipelineFolder};
//!
//! # fn main() -> pixart_weights::Result<()> {
//! let folder = PipelineFolder::open("PixArt-XL-2-512x512")?;
//! let config: TransformerConfig = folder.config(Part::Transformer)?;
//! let weights = folder.weights(Part::Transformer, DType::F32)?;
//! let transformer = PixArtTransformer::new(&config, weights.named(DType::F32, &Device::Cpu))?;
//! # Ok(()) }
//! ```

mod calibration;
mod controlnet;
mod convert;
mod elements;
mod error;
mod folder;
mod lora;
mod mapped;
mod original;
mod pickle;
mod pickle_bounds;
mod quantise;
mod quantised;
mod tensor_file;
mod tokenizer;
mod weights;
mod write;

pub use calibration::{Calibration, Inputs};
pub use controlnet::{controlnet_config, controlnet_config_json, controlnet_of};
pub use convert::{
    convert_controlnet, convert_network, convert_pipeline, convert_transformer, is_original_controlnet,
    transformer_config_json,
};
pub use elements::StoredDtype;
pub use error::{Error, Result, plain_message};
pub use folder::{Part, PipelineFolder, PipelineKind, open_part, read_json};
pub use lora::{Lora, LoraConfig, PEFT_PREFIX, read_peft, write_peft};
pub use original::{is_original_transformer, original_transformer, original_transformer_config};
pub use quantise::{QuantiseProgress, check_unrounded, quantise_part, quantise_pipeline};
pub use quantised::{Scheme, is_rounded, rounds_inputs};
pub use tensor_file::{read_tensors, write_tensors, write_tensors_as};
pub use tokenizer::{read_sentencepiece, read_tokenizer};
pub use weights::{StoredTensor, Weights};
pub use write::{write_atomically, write_bytes, write_json, write_safetensors};
