//! Decoded tensors to pictures, and pictures to PNG files that remember how they were made.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::imageops::{FilterType, crop_imm, resize};
use image::{ImageBuffer, Pixel, RgbImage};
use pixart_weights::write_bytes;
use serde::Serialize;

use crate::{Error, Result};

/// A picture and how it was made.
#[derive(Debug, Clone)]
pub struct Image {
    /// The pixels.
    pub pixels: RgbImage,
    /// What [`Image::save`] writes beside them.
    pub parameters: Parameters,
}

/// How a picture was made: enough to make it again from the same model's files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parameters {
    /// The prompt as it was given; empty where embeddings were.
    pub prompt: String,
    /// What was steered away from.
    pub negative_prompt: String,
    /// Number of solver steps.
    pub steps: usize,
    /// Strength of guidance; none at 1 and below.
    pub guidance_scale: f64,
    /// The scheduler's diffusers class.
    pub scheduler: String,
    /// Seed of the random generator.
    pub seed: u64,
    /// Which image of its generator's stream it is: 0 unless several images share one seed.
    pub index: usize,
    /// Share of noise that DDIM added again.
    pub eta: f64,
    /// How much of the way from noise was drawn anew of a picture that was started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Whether only a part of that picture was drawn, which a mask named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub masked: bool,
    /// How a ControlNet was followed, if one was.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlParameters>,
    /// Whether prompts were cleaned.
    pub clean_caption: bool,
    /// Width and height that were drawn, before resizing and cropping.
    pub drawn_size: [usize; 2],
    /// Every setting of the scheduler.
    pub scheduler_config: serde_json::Map<String, serde_json::Value>,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Name of the model's folder.
    pub model: String,
    /// Parts that are not the model's own, and where they are from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, String>,
    /// What corrected the transformer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraParameters>,
    /// The dtype of the computation; of a transformer in 8 bits its scheme, and the dtype of all else.
    pub dtype: String,
    /// This program's version.
    pub version: String,
}

/// A LoRA that corrected the transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraParameters {
    /// Where it is.
    pub path: String,
    /// What its corrections were multiplied with.
    pub strength: f64,
}

/// How a ControlNet was followed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ControlParameters {
    /// What its corrections were multiplied with.
    pub control_scale: f64,
    /// The share of the steps before which it was not followed.
    pub control_start: f64,
    /// The share of the steps after which it was no longer followed.
    pub control_end: f64,
}

impl Parameters {
    /// The text that AUTOMATIC1111's web UI writes and that galleries read.
    pub fn to_infotext(&self) -> String {
        let plain = |text: &str| text.replace(char::is_control, " ");
        let mut text = plain(&self.prompt);
        if !self.negative_prompt.is_empty() {
            text += &format!("\nNegative prompt: {}", plain(&self.negative_prompt));
        }
        // Values with separators in them are quoted.
        let model = if self.model.contains([',', ':', '"']) { format!("{:?}", self.model) } else { self.model.clone() };
        let sampler = self.scheduler.trim_end_matches("Scheduler");
        let strength = self.strength.map_or(String::new(), |strength| format!("Denoising strength: {strength}, "));
        text + &format!(
            "\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}, {strength}Version: pixart {}",
            self.steps, self.guidance_scale, self.seed, self.width, self.height, model, self.version
        )
    }
}

impl Image {
    /// Writes a PNG with its parameters as text: `parameters` as AUTOMATIC1111's tools read it, `pixart` as JSON. The
    /// file appears whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        Ok(write_bytes(path, &self.to_png().map_err(Error::io(path))?)?)
    }

    /// The PNG file's bytes.
    pub fn to_png(&self) -> std::io::Result<Vec<u8>> {
        let json = serde_json::to_string(&self.parameters)?;
        encode_png(&self.pixels, &[("parameters", self.parameters.to_infotext()), ("pixart", json)])
    }
}

/// Writes pixels of which nothing more is known to a PNG. The file appears whole or not at all.
pub fn save_pixels(pixels: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    Ok(write_bytes(path, &pixels_to_png(pixels).map_err(Error::io(path))?)?)
}

/// The bytes of a PNG file of pixels of which nothing more is known.
pub fn pixels_to_png(pixels: &RgbImage) -> std::io::Result<Vec<u8>> {
    encode_png(pixels, &[])
}

fn encode_png(pixels: &RgbImage, texts: &[(&str, String)]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, pixels.width(), pixels.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        // tEXt holds Latin-1 only; readers know both chunks.
        if text.is_ascii() {
            encoder.add_text_chunk(keyword.to_string(), text.clone())?;
        } else {
            encoder.add_itxt_chunk(keyword.to_string(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// A decoded image `[1, 3, height, width]` in -1..1 to pixels, as diffusers rounds them.
///
/// # Errors
/// An image of another shape.
pub fn to_pixels(image: &Tensor) -> Result<RgbImage> {
    let image = image.squeeze(0)?;
    let (_, height, width) = image.dims3()?;
    let values = image.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let bytes = values.into_iter().map(byte).collect();
    RgbImage::from_raw(width as u32, height as u32, bytes)
        .ok_or_else(|| Error::Compute(format!("a picture of {width}×{height} is too large")))
}

/// A picture's pixels as the autoencoder takes them: `[1, 3, height, width]` in -1..1, f32.
///
/// # Errors
/// No memory on the device.
pub fn from_pixels(pixels: &RgbImage, device: &Device) -> Result<Tensor> {
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    let area = width * height;
    let mut values = vec![0.0; 3 * area];
    for (i, pixel) in pixels.pixels().enumerate() {
        for (channel, byte) in pixel.0.into_iter().enumerate() {
            values[channel * area + i] = f32::from(byte) / 127.5 - 1.0;
        }
    }
    Ok(Tensor::from_vec(values, (1, 3, height, width), device)?)
}

/// The smallest picture of the same proportions that covers `width` × `height`, its middle.
pub fn cover<P>(image: &ImageBuffer<P, Vec<u8>>, width: u32, height: u32) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let scale = f64::max(f64::from(width) / f64::from(image.width()), f64::from(height) / f64::from(image.height()));
    let scaled = |side: u32, least: u32| ((f64::from(side) * scale).round() as u32).max(least);
    let (scaled_width, scaled_height) = (scaled(image.width(), width), scaled(image.height(), height));
    let resized;
    let image = if (scaled_width, scaled_height) == image.dimensions() {
        image
    } else {
        resized = resize(image, scaled_width, scaled_height, FilterType::CatmullRom);
        &resized
    };
    crop_imm(image, (scaled_width - width) / 2, (scaled_height - height) / 2, width, height).to_image()
}

/// A picture at the size `drawn` (height, width), of which [`resize_and_crop`] shows `wanted`: it covers what will be seen, where it
/// would lie in a picture of that size, and its outermost pixels go on beside it. One that has the drawn size is taken as it is.
pub(crate) fn fit<P>(
    image: &ImageBuffer<P, Vec<u8>>,
    wanted: (usize, usize),
    drawn: (usize, usize),
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (height, width) = (drawn.0 as u32, drawn.1 as u32);
    if image.dimensions() == (width, height) {
        return image.clone();
    }
    let ratio = (wanted.0 as f64 / drawn.0 as f64).max(wanted.1 as f64 / drawn.1 as f64);
    let seen = |wanted: usize, drawn: u32| ((wanted as f64 / ratio).round() as u32).clamp(1, drawn);
    let (seen_height, seen_width) = (seen(wanted.0, height), seen(wanted.1, width));
    let covered = cover(image, seen_width, seen_height);
    if covered.dimensions() == (width, height) {
        return covered;
    }
    let inside = |at: u32, drawn: u32, seen: u32| at.saturating_sub((drawn - seen) / 2).min(seen - 1);
    ImageBuffer::from_fn(width, height, |x, y| {
        *covered.get_pixel(inside(x, width, seen_width), inside(y, height, seen_height))
    })
}

/// Resizes images `[batch, channels, h, w]` so that they cover `height` × `width`, bilinearly, and cuts that out of
/// their middle: how diffusers brings an image of a bin's size to the size that was asked for.
pub(crate) fn resize_and_crop(images: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, from_height, from_width) = images.dims4()?;
    if (from_height, from_width) == (height, width) {
        return Ok(images.clone());
    }
    let ratio = (height as f64 / from_height as f64).max(width as f64 / from_width as f64);
    // The ratio's rounding must not leave an image a pixel short of what is cut out of it.
    let covered = |from: usize, wanted: usize| ((from as f64 * ratio) as usize).max(wanted);
    let (resized_height, resized_width) = (covered(from_height, height), covered(from_width, width));
    let resized = images.upsample_bilinear2d(resized_height, resized_width, false)?;
    let top = (resized_height - height) / 2;
    let left = (resized_width - width) / 2;
    Ok(resized.narrow(2, top, height)?.narrow(3, left, width)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(prompt: &str) -> Parameters {
        Parameters {
            prompt: prompt.into(),
            negative_prompt: "blurry".into(),
            steps: 4,
            guidance_scale: 4.5,
            scheduler: "LCMScheduler".into(),
            seed: 7,
            index: 0,
            eta: 0.0,
            strength: None,
            masked: false,
            control: None,
            clean_caption: true,
            drawn_size: [3, 2],
            scheduler_config: serde_json::Map::new(),
            width: 3,
            height: 2,
            model: "tiny".into(),
            parts: BTreeMap::new(),
            loras: vec![],
            dtype: "f32".into(),
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_png_keeps_pixels_and_parameters() {
        let pixels = RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8 * 80, y as u8 * 200, 7]));
        for prompt in ["a cactus", "ein Kaktus für Zoë 🌵"] {
            let image = Image { pixels: pixels.clone(), parameters: parameters(prompt) };
            let mut reader = png::Decoder::new(std::io::Cursor::new(image.to_png().unwrap())).read_info().unwrap();
            let mut decoded = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut decoded).unwrap();
            assert_eq!(decoded, *pixels.as_raw());
            let info = reader.info();
            let latin = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
            let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()));
            let texts: std::collections::HashMap<String, String> = latin.chain(utf8).collect();
            assert_eq!(
                texts["parameters"],
                format!(
                    "{prompt}\nNegative prompt: blurry\nSteps: 4, Sampler: LCM, CFG scale: 4.5, Seed: 7, Size: 3x2, \
                     Model: tiny, Version: pixart 0.1.0"
                )
            );
            let json: serde_json::Value = serde_json::from_str(&texts["pixart"]).unwrap();
            assert_eq!((&json["prompt"], &json["seed"]), (&prompt.into(), &7.into()));
        }
    }

    /// A picture that cannot be written leaves nothing, not even a temporary file.
    #[test]
    fn a_failed_save_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let image = Image { pixels: RgbImage::new(3, 2), parameters: parameters("x") };
        let occupied = folder.path().join("occupied.png");
        std::fs::create_dir(&occupied).unwrap();
        assert!(image.save(&occupied).is_err());
        assert!(image.save(folder.path().join("no/such/folder.png")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// What is started from lies in the picture where it lay, whichever size is drawn between.
    #[test]
    fn a_fitted_picture_is_seen_in_its_place() {
        let (width, height) = (200, 140);
        let wave = |at: u32, length: f64| (127.5 + 120.0 * (f64::from(at) / length).sin()) as u8;
        let picture = RgbImage::from_fn(width, height, |x, y| image::Rgb([wave(x, 9.0), wave(y, 7.0), 90]));
        for drawn in [(208, 304), (256, 256), (140, 200), (160, 200), (96, 300)] {
            let fitted = fit(&picture, (height as usize, width as usize), drawn);
            assert_eq!(fitted.dimensions(), (drawn.1 as u32, drawn.0 as u32));
            let tensor = from_pixels(&fitted, &Device::Cpu).unwrap();
            let seen = to_pixels(&resize_and_crop(&tensor, height as usize, width as usize).unwrap()).unwrap();
            let apart = seen.as_raw().iter().zip(picture.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            let apart = apart.sum::<f64>() / picture.as_raw().len() as f64;
            assert!(apart < 5.0, "{drawn:?}: {apart} of 255");
        }
        let drawn = RgbImage::new(304, 208);
        assert_eq!(fit(&drawn, (140, 200), (208, 304)), drawn);
    }

    #[test]
    fn resizing_agrees_with_diffusers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/networks/resize.safetensors");
        let golden = pixart_weights::read_tensors(path.as_ref(), &candle_core::Device::Cpu).unwrap();
        let mut checked = 0;
        for (name, wanted) in golden.iter().filter(|(name, _)| name.starts_with("to_")) {
            let (_, _, height, width) = wanted.dims4().unwrap();
            let found = resize_and_crop(&golden["image"], height, width).unwrap();
            let error = (found - wanted).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(error.to_scalar::<f32>().unwrap() < 1e-5, "{name}");
            checked += 1;
        }
        assert!(checked >= 6);
    }
}
