use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart_weights::Weights;

use super::extract::{from_json, read_shard};
use super::{Description, ITEMS_PER_SHARD, VERSION, description_path, null_path, shard_path};
use crate::{Error, Result};

/// A folder of features.
pub struct Features {
    description: Description,
    shards: Vec<Weights>,
    items: Vec<Item>,
    /// Embeddings of the empty text, `[tokens, width]`.
    null: Option<Tensor>,
}

struct Item {
    shard: usize,
    index: usize,
    captions: Vec<String>,
    height: usize,
    width: usize,
}

/// Some items, whose pictures have one size.
pub struct Batch {
    /// `[batch, 2 · channels, height, width]`, f32: mean and logarithm of the variance of the unscaled latents.
    pub moments: Tensor,
    /// `[batch, channels, height, width]`, f32, where there are conditions: unscaled latents of maps of edges.
    pub condition: Option<Tensor>,
    /// `[tokens, width]` of each item, f32, where captions are encoded.
    pub prompt_embeds: Option<Vec<Tensor>>,
    /// Each item's captions.
    pub captions: Vec<Vec<String>>,
    /// Height and width of the pictures in pixels.
    pub pixels: (usize, usize),
}

impl Features {
    /// Opens a folder that [`Extractor::extract`](super::Extractor::extract) has finished.
    ///
    /// # Errors
    /// No features, unfinished ones, or none whose item could be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = description_path(folder);
        if !path.exists() {
            return Err(Error::folder(folder, "has no features.json; `pixart features` makes such a folder"));
        }
        let description: Description = from_json(&path)?;
        if description.version != VERSION {
            return Err(Error::folder(&path, format!("is of version {}, not {VERSION}", description.version)));
        }
        let (mut shards, mut items) = (Vec::new(), Vec::new());
        for number in 0..description.items.div_ceil(ITEMS_PER_SHARD) {
            let list = shard_path(folder, number, "json");
            if !list.exists() {
                return Err(Error::folder(folder, "is not finished; give the command that made it once more"));
            }
            let shard = read_shard(&list)?.items.into_iter().enumerate();
            items.extend(shard.map(|(index, item)| Item {
                shard: number,
                index,
                captions: item.captions,
                height: item.height,
                width: item.width,
            }));
            shards.push(Weights::open(shard_path(folder, number, "safetensors"))?);
        }
        if items.is_empty() {
            return Err(Error::folder(folder, "none of its items could be read; see `skipped` in its shard-*.json"));
        }
        let null = match description.text_width {
            Some(_) => Some(Weights::open(null_path(folder))?.tensor("prompt_embeds", DType::F32, &Device::Cpu)?),
            None => None,
        };
        Ok(Self { description, shards, items, null })
    }

    /// What they were made of and with.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none, which [`Features::open`] does not allow.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Height and width of every item's picture, in pixels.
    pub fn sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.items.iter().map(|item| (item.height, item.width))
    }

    /// Every item's captions.
    pub fn captions(&self) -> impl Iterator<Item = &[String]> {
        self.items.iter().map(|item| item.captions.as_slice())
    }

    /// The captions of an item, at least one.
    pub fn captions_of(&self, index: usize) -> &[String] {
        &self.items[index].captions
    }

    /// Embeddings of the empty text, `[tokens, width]`, f32, where captions are encoded.
    pub fn null(&self) -> Option<&Tensor> {
        self.null.as_ref()
    }

    /// `[batch, maps, height, width]`, f32: the classes of what is in each latent pixel of items, all of one size.
    ///
    /// # Errors
    /// These features do not say what is where ([`Description::classes`]).
    pub fn layout(&self, indices: &[usize]) -> Result<Tensor> {
        let layouts = indices.iter().map(|index| self.tensor(&self.items[*index], "layout"));
        Ok(Tensor::stack(&layouts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn tensor(&self, item: &Item, name: &str) -> Result<Tensor> {
        Ok(self.shards[item.shard].tensor(&format!("{}.{name}", item.index), DType::F32, &Device::Cpu)?)
    }

    /// Reads items, all of one size.
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let (mut moments, mut conditions, mut embeds, mut captions) = (vec![], vec![], vec![], vec![]);
        let mut pixels = (0, 0);
        for item in indices.iter().map(|index| &self.items[*index]) {
            let tensor = |name: &str| self.tensor(item, name);
            moments.push(tensor("moments")?);
            if self.description.control.is_some() {
                conditions.push(tensor("condition")?);
            }
            if self.null.is_some() {
                embeds.push(tensor("prompt_embeds")?);
            }
            captions.push(item.captions.clone());
            pixels = (item.height, item.width);
        }
        Ok(Batch {
            moments: Tensor::stack(&moments, 0)?,
            condition: if conditions.is_empty() { None } else { Some(Tensor::stack(&conditions, 0)?) },
            prompt_embeds: self.null.is_some().then_some(embeds),
            captions,
            pixels,
        })
    }
}
