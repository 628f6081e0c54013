//! How well a model draws what it is asked for, in the world of scenes, where that is a number.

mod control;

pub use control::{Agreement, Drawn, agreement};

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device};
use image::RgbImage;
use pixart::{Pipeline, Request, Seeds};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_scenes::{Claims, Picture, Prompt, Scene, Split, Verdict, judge, read};
use pixart_weights::{Part, open_part};

use crate::random::generator;
use crate::{Error, Result};

/// Prompts that are drawn between two reports.
const PROMPTS_AT_ONCE: usize = 10;

/// What part of the pictures shows what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faithfulness {
    /// Of pictures that were to show one object, those that show it in its colour.
    pub one_object: Share,
    /// Of pictures that were to show two objects in a relation, those where all is right.
    pub two_objects: Share,
    /// Of pictures that were to show several equal objects, those where all is right.
    pub counts: Share,
    /// Of pictures that were to show three or four objects, those where all is right.
    pub several: Share,
    /// Of all pictures, those where all is right.
    pub all_right: Share,
    /// Of all objects that were asked for, those that are there, by kind.
    pub objects: Share,
    /// Of all colours that were asked for, those that are there.
    pub colours: Share,
    /// Of all relations that were asked for, those that hold between the objects that are taken for those.
    pub relations: Share,
    /// Of all pictures, those with as many objects as were asked for.
    pub right_count: Share,
    /// Time for a picture, from its prompt to its pixels, without loading.
    pub time: Duration,
    /// The solver's part of that.
    pub denoise: Duration,
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How many are right.
    pub right: usize,
    /// How many there are.
    pub all: usize,
}

impl Share {
    fn add(&mut self, right: usize, all: usize) {
        self.right += right;
        self.all += all;
    }

    /// Counts the objects that were asked for in a colour, and whether it is there.
    fn add_colours(&mut self, claims: &Claims, verdict: &Verdict) {
        let coloured = claims.objects.iter().filter(|object| object.colour.is_some()).count();
        self.add((verdict.colours * coloured as f32).round() as usize, coloured);
    }

    /// In percent; 100 of none.
    pub fn percent(&self) -> f64 {
        if self.all == 0 { 100.0 } else { 100.0 * self.right as f64 / self.all as f64 }
    }
}

/// Draws `prompts` as `request` says, each with its number in the list as its seed, and reads what the pictures show.
/// `on_progress` is told how many are done and shown the latest pictures; its `Break` ends with
/// [`pixart::Error::Cancelled`].
///
/// # Errors
/// What [`Pipeline::generate`] refuses.
pub fn faithfulness(
    pipeline: &mut Pipeline,
    request: &Request,
    prompts: &[Prompt],
    mut on_progress: impl FnMut(usize, &[RgbImage]) -> ControlFlow<()>,
) -> Result<Faithfulness> {
    let mut found = Faithfulness::default();
    let mut done = 0;
    for prompts in prompts.chunks(PROMPTS_AT_ONCE) {
        let request = Request {
            prompts: prompts.iter().map(|prompt| prompt.text.clone()).collect(),
            seeds: Seeds::PerImage((0..prompts.len()).map(|i| (done + i) as u64).collect()),
            num_images_per_prompt: 1,
            ..request.clone()
        };
        let generated = pipeline.generate(&request)?;
        let timings = generated.timings;
        found.time += timings.encode + timings.denoise + timings.decode;
        found.denoise += timings.denoise;
        let pictures: Vec<RgbImage> = generated.images.into_iter().map(|image| image.pixels).collect();
        for (prompt, picture) in prompts.iter().zip(&pictures) {
            found.count(&prompt.claims, picture)?;
        }
        done += prompts.len();
        if on_progress(done, &pictures).is_break() {
            return Err(pixart::Error::Cancelled.into());
        }
    }
    found.time /= done.max(1) as u32;
    found.denoise /= done.max(1) as u32;
    Ok(found)
}

impl Faithfulness {
    fn count(&mut self, claims: &Claims, picture: &RgbImage) -> Result<()> {
        let verdict = judge(claims, &read(&to_picture(picture)?));
        let all_right = usize::from(verdict.all_right);
        match claims.objects.as_slice() {
            [_] => self.one_object.add(usize::from(verdict.objects >= 1.0 && verdict.colours >= 1.0), 1),
            [_, _] if !claims.relations.is_empty() => self.two_objects.add(all_right, 1),
            [first, rest @ ..] if rest.iter().all(|object| object == first) => self.counts.add(all_right, 1),
            _ => self.several.add(all_right, 1),
        }
        let objects = claims.objects.len();
        self.all_right.add(all_right, 1);
        self.objects.add((verdict.objects * objects as f32).round() as usize, objects);
        self.colours.add_colours(claims, &verdict);
        let relations = claims.relations.len();
        self.relations.add((verdict.relations * relations as f32).round() as usize, relations);
        self.right_count.add(usize::from(verdict.counts), 1);
        Ok(())
    }
}

fn to_picture(pixels: &RgbImage) -> Result<Picture> {
    let (width, height) = pixels.dimensions();
    let picture = Picture::from_rgb(width as usize, height as usize, pixels.as_raw().clone());
    picture.map_err(|error| Error::Tensor(candle_core::Error::wrap(error)))
}

fn from_scene(picture: &Picture) -> RgbImage {
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    RgbImage::from_raw(width, height, picture.pixels().to_vec()).unwrap_or_default()
}

/// How near an autoencoder's pictures are to scenes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reconstruction {
    /// Peak signal-to-noise ratio in dB, of the mean squared error over all scenes.
    pub psnr: f64,
    /// Of all scenes, those of whose pictures a caption is still read to be right: no model that draws with this
    /// autoencoder is likely to be more faithful.
    pub all_right: Share,
}

/// What an autoencoder is tried on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// How many held-out scenes, at least 1.
    pub scenes: u64,
    /// Their width and height in pixels.
    pub size: usize,
    /// Standard deviation of the noise that latents get before they are decoded, in multiples of their own: at 0.1 about what a diffusion
    /// model leaves. Not negative.
    pub latent_noise: f64,
}

/// Encodes and decodes held-out scenes. `on_scene` is shown each, as drawn and as decoded; its `Break` ends with
/// [`pixart::Error::Cancelled`].
///
/// # Errors
/// An autoencoder that is missing or broken, or that does not divide the scenes' size; noise that is no number.
pub fn reconstruction(
    vae: &Path,
    trial: &Trial,
    device: &Device,
    mut on_scene: impl FnMut(u64, [RgbImage; 2]) -> ControlFlow<()>,
) -> Result<Reconstruction> {
    let Trial { scenes, size, latent_noise } = *trial;
    let (config, weights) = open_part::<VaeConfig>(vae, Part::Vae, DType::F32)?;
    config.validate().map_err(|reason| Error::folder(vae, reason))?;
    if scenes == 0 || size == 0 || !size.is_multiple_of(config.downscale()) {
        let message = format!("{scenes} scenes of {size} pixels; its latents are of {} pixels", config.downscale());
        return Err(Error::folder(vae, message));
    }
    if !(latent_noise.is_finite() && latent_noise >= 0.0) {
        return Err(Error::folder(vae, format!("noise of {latent_noise} in its latents")));
    }
    let network = AutoencoderKl::new(&config, weights.named(DType::F32, device))?;
    let (mut squares, mut all_right) = (0.0, Share::default());
    for seed in 0..scenes {
        let scene = Scene::random(seed, Split::Test);
        let picture = scene.draw(size as u32);
        let drawn = from_scene(&picture);
        let image = pixart::from_pixels(&drawn, device)?;
        let latents = network.encode(&image)?.mean;
        let noise = generator(seed, "latent noise", &[]).randn_tensor(latents.shape().clone(), device)?;
        let latents = (latents + (noise * (latent_noise / config.scaling_factor))?)?;
        let decoded = pixart::to_pixels(&network.decode(&latents)?)?;
        let difference = decoded.as_raw().iter().zip(picture.pixels());
        squares += difference.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        let verdict = judge(&scene.prompt(seed).claims, &read(&to_picture(&decoded)?));
        all_right.add(usize::from(verdict.all_right), 1);
        if on_scene(seed, [drawn, decoded]).is_break() {
            return Err(pixart::Error::Cancelled.into());
        }
    }
    let mean = squares / (scenes as f64 * (3 * size * size) as f64);
    Ok(Reconstruction { psnr: 10.0 * (255.0 * 255.0 / mean).log10(), all_right })
}
