//! The networks of PixArt-α, -δ and -Σ: the diffusion [`transformer`] with its [`controlnet`], the [`t5`]
//! text encoder and the [`vae`].
//!
//! A network is a config read from a checkpoint's `config.json`, a `new(&config, vb)` that takes its weights by their
//! diffusers names from [`NamedWeights`], which a [`candle_nn::VarBuilder`] becomes by `into`, and a `forward`. Everything that costs time goes through
//! [`ops`], so a faster form of an operation never touches a network.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::VarBuilder;
//! use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};
//!
//! # fn main() -> candle_core::Result<()> {
//! let config = TransformerConfig { num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, sample_size: 32,
//!     caption_channels: Some(16), cross_attention_dim: Some(16), ..Default::default() };
//! let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
//! let transformer = PixArtTransformer::new(&config, vb.into())?;
//! let latents = Tensor::zeros((1, 4, 8, 8), DType::F32, &Device::Cpu)?;
//! let prompt_embeds = Tensor::zeros((1, 5, 16), DType::F32, &Device::Cpu)?;
//! let text = transformer.project_text(&prompt_embeds, None)?;
//! let timestep = Tensor::new(&[999f32], &Device::Cpu)?;
//! assert_eq!(transformer.forward(&latents, &timestep, &text, None)?.dims(), [1, 8, 8, 8]);
//! # Ok(()) }
//! ```

mod computed;
pub mod controlnet;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod embeddings;
pub mod hed;
pub mod lora;
mod named_weights;
pub mod ops;
pub mod recompute;
pub mod t5;
#[cfg(test)]
mod testing;
pub mod transformer;
pub mod vae;

pub use named_weights::{ByteWeight, BytesByName, LowRank, NamedWeights, Observer, ReadRows, RowsByName};
