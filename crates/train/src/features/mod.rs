//! What the networks that stay as they are make of a dataset, computed once: latents of pictures, and embeddings of captions
//! where the text encoder stays too.
//!
//! A folder of features has `features.json`, a [`Description`] of what they were made of and with, and for every
//! [`ITEMS_PER_SHARD`] items of the dataset `shard-00000.safetensors` and `shard-00000.json`: the names of the items, their
//! captions and their sizes in pixels, and which items were skipped and why. Item 3 of a shard has the tensors
//! `3.moments`, `[2 · latent channels, height, width]`, mean and logarithm of the variance of the unscaled latents, and,
//! where captions are encoded, `3.prompt_embeds`, `[tokens, width]`, of its first caption without padding; all in f16. Where
//! there are conditions for ControlNets, `3.condition`, `[latent channels, height, width]`, is the mean of the unscaled
//! latents of the map of edges. Where the dataset knows what is where, `3.layout`, `[maps, height, width]`, has the classes
//! of each latent pixel. The file `null.safetensors` has `prompt_embeds` of the empty text.

mod extract;
mod read;

pub use extract::{Extracted, ExtractionProgress, Extractor};
pub use read::{Batch, Features};

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Items of the dataset in a shard, those that are skipped included.
pub const ITEMS_PER_SHARD: usize = 512;

/// The number of this layout of files.
const VERSION: u32 = 1;

/// What features were made of and with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    version: u32,
    /// [`Dataset::description`](crate::Dataset::description).
    pub dataset: String,
    /// Items of the dataset.
    pub items: usize,
    /// Native size of the pictures in pixels; those of other shapes have about as many.
    pub size: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// What latents are multiplied with before a transformer sees them.
    pub scaling_factor: f64,
    /// Width of the captions' embeddings, where they are encoded.
    pub text_width: Option<usize>,
    /// What found the edges that are ControlNets' conditions, where there are conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// How many classes each map of what is where has, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<usize>>,
}

/// `shard-00000.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Shard {
    items: Vec<ShardItem>,
    skipped: Vec<SkippedItem>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ShardItem {
    name: String,
    captions: Vec<String>,
    height: usize,
    width: usize,
}

/// An item that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedItem {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

fn description_path(folder: &Path) -> PathBuf {
    folder.join("features.json")
}

fn shard_path(folder: &Path, shard: usize, extension: &str) -> PathBuf {
    folder.join(format!("shard-{shard:05}.{extension}"))
}

fn null_path(folder: &Path) -> PathBuf {
    folder.join("null.safetensors")
}
