use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, RgbImage};
use pixart::{Detector, Pipeline, clean_caption, cover, from_pixels, nearest_bin};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{Part, StoredDtype, open_part, read_json, write_json, write_tensors_as};
use rayon::prelude::*;

use super::{
    Description, ITEMS_PER_SHARD, Shard, ShardItem, SkippedItem, VERSION, description_path, null_path, shard_path,
};
use crate::dataset::Layout;
use crate::{Dataset, Error, Result};

/// Pixels that the encoder is given at once, in whole pictures.
const PIXELS_AT_ONCE: usize = 512 * 512;

/// Computes features.
pub struct Extractor {
    vae_config: VaeConfig,
    vae: AutoencoderKl,
    /// What encodes captions, where they are encoded.
    text: Option<Pipeline>,
    /// What finds the conditions of ControlNets, where they are wanted, and its name.
    control: Option<(Detector, String)>,
    size: usize,
    device: Device,
}

/// How far an extraction is.
#[derive(Debug, Clone, Copy)]
pub struct ExtractionProgress {
    /// Items that are done, skipped ones included.
    pub done: usize,
    /// Items in all.
    pub items: usize,
}

/// What an extraction has given.
#[derive(Debug)]
pub struct Extracted {
    /// Items that have features.
    pub items: usize,
    /// The others.
    pub skipped: Vec<SkippedItem>,
    /// Whether it was stopped before the end.
    pub stopped: bool,
}

/// An item as the encoder takes it.
struct Prepared {
    name: String,
    captions: Vec<String>,
    picture: RgbImage,
    /// What a ControlNet is to follow of it.
    map: Option<RgbImage>,
    /// What is where, in latent pixels.
    layout: Option<Layout>,
}

impl Extractor {
    /// With the autoencoder at `vae`, its own folder or a pipeline's, for pictures of about `size` × `size` pixels, and with
    /// the text encoder of `text`, if captions are to be encoded.
    ///
    /// # Errors
    /// An autoencoder that is missing, broken, or does not divide `size`.
    pub fn new(vae: &Path, text: Option<Pipeline>, size: usize, device: &Device) -> Result<Self> {
        let (vae_config, weights) = open_part::<VaeConfig>(vae, Part::Vae, DType::F32)?;
        vae_config.validate().map_err(|reason| Error::folder(vae, reason))?;
        if size == 0 || !size.is_multiple_of(vae_config.downscale()) {
            let message = format!("pictures of {size} pixels do not divide by {}", vae_config.downscale());
            return Err(Error::folder(vae, message));
        }
        let network = AutoencoderKl::new(&vae_config, weights.named(DType::F32, device))?;
        Ok(Self { vae_config, vae: network, text, control: None, size, device: device.clone() })
    }

    /// Computes conditions for ControlNets too, by `detector`, which is called `name`.
    pub fn with_control(mut self, detector: Detector, name: &str) -> Self {
        self.control = Some((detector, name.into()));
        self
    }

    /// Writes the features of `dataset` to `folder`, or what is still missing of them: shards that are not whole, and those of which an
    /// item that was skipped can be read by now. `on_progress` stops it by returning `false`; the next call goes on after the last
    /// whole shard.
    ///
    /// # Errors
    /// An empty dataset, or one of which nothing can be read; a folder with features of something else; a full disk.
    pub fn extract(
        &mut self,
        dataset: &dyn Dataset,
        folder: &Path,
        mut on_progress: impl FnMut(ExtractionProgress) -> bool,
    ) -> Result<Extracted> {
        let items = dataset.len();
        if items == 0 {
            return Err(Error::folder(Path::new(&dataset.description()), "there are no pictures"));
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let null = match &mut self.text {
            Some(text) => Some(encode(text, &[String::new()])?.remove(0)),
            None => None,
        };
        let description = Description {
            version: VERSION,
            dataset: dataset.description(),
            items,
            size: self.size,
            latent_channels: self.vae_config.latent_channels,
            scaling_factor: self.vae_config.scaling_factor,
            text_width: null.as_ref().map(|null| null.dim(1)).transpose()?,
            control: self.control.as_ref().map(|(_, name)| name.clone()),
            classes: dataset.layout(0, 1).map(|layout| layout.classes),
        };
        begin(folder, &description)?;
        if let Some(null) = &null {
            write_tensors_as(&null_path(folder), StoredDtype::F16, &[("prompt_embeds", null)])?;
        }
        let mut extracted = Extracted { items: 0, skipped: Vec::new(), stopped: false };
        for shard in 0..items.div_ceil(ITEMS_PER_SHARD) {
            let range = shard * ITEMS_PER_SHARD..items.min((shard + 1) * ITEMS_PER_SHARD);
            let path = shard_path(folder, shard, "json");
            let there = if path.exists() { Some(read_shard(&path)?) } else { None };
            let written = match there {
                Some(there) if !self.is_mended(dataset, range.clone(), &there.skipped) => there,
                _ => match self.shard(dataset, folder, shard, range.clone(), &mut on_progress)? {
                    Some(written) => written,
                    None => return Ok(Extracted { stopped: true, ..extracted }),
                },
            };
            extracted.items += written.items.len();
            extracted.skipped.extend(written.skipped);
            if !on_progress(ExtractionProgress { done: range.end, items }) && range.end < items {
                return Ok(Extracted { stopped: true, ..extracted });
            }
        }
        match extracted.skipped.first() {
            Some(SkippedItem { name, reason }) if extracted.items == 0 => {
                let message = format!("none of the {items} pictures can be used; of the first, {name}: {reason}");
                Err(Error::folder(Path::new(&dataset.description()), message))
            }
            _ => Ok(extracted),
        }
    }

    /// Whether one of the items in `range` that were skipped can be read by now.
    fn is_mended(&self, dataset: &dyn Dataset, range: std::ops::Range<usize>, skipped: &[SkippedItem]) -> bool {
        let was_skipped = |index: &usize| skipped.iter().any(|item| item.name == dataset.name(*index));
        !skipped.is_empty() && range.filter(was_skipped).any(|index| self.prepare(dataset, index).is_ok())
    }

    /// Computes and writes one shard; `None` if it was stopped.
    fn shard(
        &mut self,
        dataset: &dyn Dataset,
        folder: &Path,
        number: usize,
        range: std::ops::Range<usize>,
        on_progress: &mut impl FnMut(ExtractionProgress) -> bool,
    ) -> Result<Option<Shard>> {
        let mut shard = Shard::default();
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        let at_once = (PIXELS_AT_ONCE / (self.size * self.size)).max(1);
        let indices: Vec<usize> = range.collect();
        for indices in indices.chunks(at_once) {
            let prepared: Vec<_> = indices.par_iter().map(|index| self.prepare(dataset, *index)).collect();
            let mut readable = Vec::new();
            for (index, item) in indices.iter().zip(prepared) {
                match item {
                    Ok(item) => readable.push(item),
                    Err(reason) => shard.skipped.push(SkippedItem { name: dataset.name(*index), reason }),
                }
            }
            // Neighbours of one size go through the encoder together.
            for group in readable.chunk_by(|a, b| a.picture.dimensions() == b.picture.dimensions()) {
                let moments = self.moments(group.iter().map(|item| &item.picture))?;
                let conditions = match &self.control {
                    Some(_) => Some(self.moments(group.iter().filter_map(|item| item.map.as_ref()))?),
                    None => None,
                };
                let embeds = match &mut self.text {
                    Some(text) => {
                        let first = |item: &Prepared| item.captions.first().cloned().unwrap_or_default();
                        Some(encode(text, &group.iter().map(first).collect::<Vec<_>>())?)
                    }
                    None => None,
                };
                for (i, item) in group.iter().enumerate() {
                    let index = shard.items.len();
                    tensors.push((format!("{index}.moments"), moments.get(i)?));
                    if let Some(conditions) = &conditions {
                        let mean = conditions.get(i)?.narrow(0, 0, self.vae_config.latent_channels)?;
                        tensors.push((format!("{index}.condition"), mean));
                    }
                    if let Some(Layout { classes, cells }) = &item.layout {
                        let (_, _, height, width) = moments.dims4()?;
                        let cells = Tensor::from_slice(cells, (classes.len(), height, width), &Device::Cpu)?;
                        tensors.push((format!("{index}.layout"), cells.to_dtype(DType::F32)?));
                    }
                    if let Some(embeds) = &embeds {
                        tensors.push((format!("{index}.prompt_embeds"), embeds[i].clone()));
                    }
                    shard.items.push(ShardItem {
                        name: item.name.clone(),
                        captions: item.captions.clone(),
                        height: item.picture.height() as usize,
                        width: item.picture.width() as usize,
                    });
                }
            }
            let done = indices.last().map_or(0, |last| last + 1);
            if !on_progress(ExtractionProgress { done, items: dataset.len() }) {
                return Ok(None);
            }
        }
        // The list comes last: a shard that has one is whole.
        let list = shard_path(folder, number, "json");
        if list.exists() {
            std::fs::remove_file(&list).map_err(Error::io(&list))?;
        }
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_tensors_as(&shard_path(folder, number, "safetensors"), StoredDtype::F16, &named)?;
        write_json(&list, &shard)?;
        Ok(Some(shard))
    }

    fn prepare(&self, dataset: &dyn Dataset, index: usize) -> Result<Prepared, String> {
        let item = dataset.read(index)?;
        let captions: Vec<String> = item.captions.iter().map(|caption| clean_caption(caption)).collect();
        if captions.is_empty() || captions.iter().any(|caption| caption.trim().is_empty()) {
            return Err("its caption is empty".into());
        }
        let (width, height) = item.image.dimensions();
        if width == 0 || height == 0 {
            return Err("it has no pixels".into());
        }
        let wanted = nearest_bin(self.size, height as usize, width as usize).unwrap_or((self.size, self.size));
        let picture = cover(&item.image, wanted.1 as u32, wanted.0 as u32);
        let map = match &self.control {
            Some((detector, _)) => Some(detector.detect(&picture).map_err(|error| error.to_string())?),
            None => None,
        };
        let map = map.map(|map| DynamicImage::ImageLuma8(map).into_rgb8());
        let layout = dataset.layout(index, self.size / self.vae_config.downscale());
        Ok(Prepared { name: dataset.name(index), captions, picture, map, layout })
    }

    /// Of pictures of one size, `[batch, 2 · channels, height, width]`.
    fn moments<'a>(&self, pictures: impl Iterator<Item = &'a RgbImage>) -> Result<Tensor> {
        let images = pictures.map(|picture| from_pixels(picture, &self.device));
        let posterior = self.vae.encode(&Tensor::cat(&images.collect::<pixart::Result<Vec<_>>>()?, 0)?)?;
        Ok(Tensor::cat(&[posterior.mean, posterior.logvar], 1)?.to_device(&Device::Cpu)?)
    }
}

/// Embeddings of texts that are clean already, `[tokens, width]` each, without padding.
fn encode(pipeline: &mut Pipeline, texts: &[String]) -> Result<Vec<Tensor>> {
    let embeds = pipeline.encode(texts, None, false)?;
    let masks = embeds.prompt_attention_mask.to_dtype(DType::F32)?.sum(1)?.to_vec1::<f32>()?;
    let rows = masks.iter().enumerate();
    Ok(rows
        .map(|(row, tokens)| embeds.prompt_embeds.get(row)?.narrow(0, 0, *tokens as usize)?.to_device(&Device::Cpu))
        .collect::<candle_core::Result<_>>()?)
}

/// Writes the description, or makes sure that the one there is the same.
fn begin(folder: &Path, description: &Description) -> Result<()> {
    let path = description_path(folder);
    if !path.exists() {
        return Ok(write_json(&path, description)?);
    }
    let found: Description = from_json(&path)?;
    if found == *description {
        return Ok(());
    }
    Err(Error::folder(
        folder,
        format!(
            "has features of {}, made with other settings or another autoencoder; choose another output folder",
            found.dataset
        ),
    ))
}

pub(super) fn read_shard(path: &Path) -> Result<Shard> {
    from_json(path)
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_value(read_json(path)?).map_err(|error| Error::folder(path, format!("cannot be read: {error}")))
}
