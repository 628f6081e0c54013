//! Arguments of everything that opens a model.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgAction, Args as ClapArgs};
use pixart::{DeviceChoice, Precision};
use pixart_weights::Part;

/// Where the model is and how to compute.
#[derive(Debug, ClapArgs)]
pub struct ModelArgs {
    /// Model folder in diffusers' layout (with model_index.json) [default: the small one that comes with the program]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub parts: PartArgs,
    /// Precision: auto, f32, bf16, f16, int8 or int8-weights (auto: bf16 on a GPU and on a CPU that is faster with it, else f32)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = str::parse::<Precision>)]
    pub dtype: Precision,
    /// Decode a few rows of pixels after another: less memory for large pictures, about twice the time, the same picture
    #[arg(long)]
    pub vae_tiling: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How much memory may be taken.
#[derive(Debug, ClapArgs)]
pub struct LimitArgs {
    /// Refuse what would take more memory than this (8GB, 7500MB, 6GiB); decode large pictures in rows where only that fits
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteSize>)]
    pub memory_limit: Option<ByteSize>,
}

/// What is taken from elsewhere than the model folder.
#[derive(Debug, ClapArgs)]
pub struct PartArgs {
    /// Take the transformer from this folder, .safetensors or original .pth file
    #[arg(long, value_name = "PATH")]
    pub transformer: Option<PathBuf>,
    /// Take the autoencoder from this folder or file
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Take the text encoder from this folder or file
    #[arg(long, value_name = "PATH")]
    pub text_encoder: Option<PathBuf>,
    /// Correct the transformer by a LoRA: a PEFT folder, or a .safetensors file
    #[arg(long, value_name = "PATH")]
    pub lora: Option<PathBuf>,
    /// Strength of the LoRA
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        requires = "lora",
        allow_negative_numbers = true,
        value_parser = lora_scale
    )]
    pub lora_scale: f64,
}

/// Beyond this the corrections are no longer numbers in half precision.
const MAX_LORA_SCALE: f64 = 1000.0;

fn lora_scale(text: &str) -> Result<f64, String> {
    let scale = text.parse::<f64>().ok().filter(|scale| scale.abs() <= MAX_LORA_SCALE);
    scale.ok_or_else(|| "it is a number such as 1 or 0.8".into())
}

impl PartArgs {
    /// Whether nothing is taken from elsewhere.
    pub fn are_none(&self) -> bool {
        self.named().next().is_none() && self.lora.is_none()
    }

    /// Each part that is named, with its path.
    pub fn named(&self) -> impl Iterator<Item = (Part, &PathBuf)> {
        let parts =
            [(Part::Transformer, &self.transformer), (Part::Vae, &self.vae), (Part::TextEncoder, &self.text_encoder)];
        parts.into_iter().filter_map(|(part, path)| Some((part, path.as_ref()?)))
    }
}

#[derive(Debug, ClapArgs)]
pub struct ComputeArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// Threads to compute with on a CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Show no progress and print no result line
    #[arg(long, short)]
    pub quiet: bool,
}

/// How a prompt becomes embeddings.
#[derive(Debug, ClapArgs)]
pub struct TextArgs {
    /// What to steer away from; only matters with guidance
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative_prompt: String,
    /// Remove links, tags, file names and the like from prompts, as diffusers does
    #[arg(long, value_name = "true|false", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub clean_caption: bool,
}
