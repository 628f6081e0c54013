//! A text encoder alone: from its embeddings of a caption it is to be read what is where in the picture. Which of two things is
//! above the other hangs on the order of words, of which a diffusion transformer's gradients say little.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax;
use image::{Luma, Pixel, RgbImage};
use pixart_nn::NamedWeights;
use pixart_nn::t5::T5Encoder;

use super::data::Data;
use super::diffusion::VALIDATION_PICTURES;
use super::layout_reader::LayoutReader;
use super::word_encoder::{Text, WordEncoder, encode};
use super::{Loss, Objective};
use crate::grid::grid;
use crate::random::{generator, pick};
use crate::{Error, Footprint, Parameters, PixArtInitialise, Recipe, Result, TextEncoderRecipe};

/// Latent pixels along a side of one place that is asked for: things are several of them wide.
const PLACE: usize = 2;

/// Pixels of a place along a side, in validation pictures.
const SHOWN: u32 = 16;

/// Tokens of a caption, and bytes that one takes between the forward and the backward pass for each number of its width, for
/// estimates.
const TOKENS: u64 = 24;
const KEPT: u64 = 100;

/// Training of a new text encoder on features that say what is where.
pub struct TextEncoderObjective {
    parameters: Parameters,
    encoder: WordEncoder,
    data: Data,
    /// How many kinds, colours and fills there are.
    classes: Vec<usize>,
    /// Rows and columns of places.
    places: (usize, usize),
    dtype: DType,
}

impl TextEncoderObjective {
    /// As `stage` says.
    ///
    /// # Errors
    /// Features that do not say what is where, or whose pictures are of several sizes; captions with more words than the
    /// encoder has room for.
    pub fn new(recipe: &Recipe, stage: &TextEncoderRecipe, features: &Path, device: &Device) -> Result<Self> {
        let data = Data::open(recipe, features, device)?;
        let Some(classes) = data.features.description().classes.clone() else {
            return Err(Error::folder(features, "does not say what is where, which stage.text-encoder asks for"));
        };
        let size = data.largest();
        if data.features.sizes().any(|other| other != size) {
            return Err(Error::folder(features, "has pictures of several sizes; stage.text-encoder takes one"));
        }
        let (_, _, rows, columns) = data.features.layout(&[0])?.dims4()?;
        let initialise =
            PixArtInitialise { seed: recipe.seed, d_model: stage.network.d_model, d_kv: stage.network.d_kv };
        let objective = Self {
            parameters: Parameters::fresh(initialise, device),
            encoder: WordEncoder::new(&stage.network, &data.features, features)?,
            data,
            classes,
            places: (rows / PLACE, columns / PLACE),
            dtype: recipe.precision.dtype(),
        };
        // Asking for the parameters makes them.
        objective.networks(objective.parameters.builder(objective.dtype))?;
        Ok(objective)
    }

    fn networks(&self, weights: NamedWeights<'static>) -> Result<(T5Encoder, LayoutReader)> {
        let places = self.places.0 * self.places.1;
        let reader = LayoutReader::new(&self.encoder.config, places, &self.classes, weights.pp("reader"))?;
        Ok((self.encoder.network(weights)?, reader))
    }

    fn encode(&self, network: &T5Encoder, captions: &[String]) -> Result<Text> {
        encode(&self.encoder.tokenizer, network, captions, usize::MAX, &self.data.device)
    }

    /// A picture of each item, of a number in 0..1 for each place.
    fn pictures(&self, shares: &Tensor) -> Result<Vec<RgbImage>> {
        let (rows, columns) = self.places;
        let shares = shares.reshape(((), rows * columns))?.to_vec2::<f32>()?;
        let picture = |shares: Vec<f32>| {
            let (width, height) = (columns as u32 * SHOWN, rows as u32 * SHOWN);
            RgbImage::from_fn(width, height, |x, y| {
                let share = shares[(y / SHOWN) as usize * columns + (x / SHOWN) as usize];
                Luma([(255.0 * share) as u8]).to_rgb()
            })
        };
        Ok(shares.into_iter().map(picture).collect())
    }

    /// What is in the middle of each place: `[batch, maps, rows, columns]`.
    fn layout(&self, items: &[usize]) -> Result<Tensor> {
        let layout = self.data.features.layout(items)?;
        let (batch, maps, _, _) = layout.dims4()?;
        let (rows, columns) = self.places;
        let every = layout.narrow(2, 0, PLACE * rows)?.narrow(3, 0, PLACE * columns)?;
        let every = every.reshape(&[batch, maps, rows, PLACE, columns, PLACE][..])?;
        let middle = every.narrow(3, PLACE / 2, 1)?.narrow(5, PLACE / 2, 1)?;
        Ok(middle.reshape((batch, maps, rows, columns))?.to_device(&self.data.device)?)
    }
}

impl Objective for TextEncoderObjective {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss> {
        let items = self.data.items(step, part, parts);
        let draws = generator(self.data.seed, "captions", &[step, part as u64]).rand(items.len());
        let captions: Vec<String> = items
            .iter()
            .zip(draws)
            .map(|(item, draw)| {
                let captions = self.data.features.captions_of(*item);
                captions[pick(draw, captions.len())].clone()
            })
            .collect();
        let (encoder, reader) = self.networks(self.parameters.builder(self.dtype))?;
        let tokens = reader.tokens(&self.encode(&encoder, &captions)?)?;
        let total = reader.loss.loss(&tokens, &self.layout(&items)?)?;
        Ok(Loss { total, terms: vec![], recomputation: None })
    }

    fn footprint(&self) -> Result<Footprint> {
        let (mut encoder, mut reader) = (0, 0);
        for (name, variable) in self.parameters.all() {
            match name.starts_with("reader.") {
                true => reader += variable.elem_count() as u64,
                false => encoder += variable.elem_count() as u64,
            }
        }
        let (config, places) = (&self.encoder.config, (self.places.0 * self.places.1) as u64);
        let numbers = (TOKENS * config.num_layers as u64 + places) * config.d_model as u64;
        Ok(Footprint {
            trained: encoder + reader,
            averaged: encoder + reader,
            parameters: encoder + reader,
            frozen_bytes: 0,
            bytes_per_picture: numbers * KEPT * self.dtype.size_in_bytes() as u64,
            flops_per_picture: 6.0 * (TOKENS * encoder + places * reader) as f64,
        })
    }

    /// A column for a caption: where something is, and below, how sure the caption makes it that something is there.
    fn validate(&self) -> Result<RgbImage> {
        let items: Vec<usize> = (0..self.data.features.len().min(VALIDATION_PICTURES)).collect();
        let captions: Vec<String> = items.iter().map(|item| self.data.features.captions_of(*item)[0].clone()).collect();
        let (encoder, reader) = self.networks(self.parameters.detached(self.dtype))?;
        let tokens = reader.tokens(&self.encode(&encoder, &captions)?)?;
        // The first class of the first map, kinds, is nothing.
        let kinds = reader.loss.logits(&tokens)?.narrow(D::Minus1, 0, self.classes[0])?;
        let expected = (1.0 - softmax(&kinds, D::Minus1)?.narrow(D::Minus1, 0, 1)?)?;
        let drawn = self.layout(&items)?.narrow(1, 0, 1)?.clamp(0.0, 1.0)?;
        Ok(grid(&[self.pictures(&drawn)?, self.pictures(&expected)?]))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.encoder.save(&self.parameters, folder)
    }
}
