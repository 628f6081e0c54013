//! What a request takes of memory: estimated before any weight is read, and measured.

use candle_core::DType;
use pixart_nn::controlnet::ControlNetConfig;
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;
use pixart_weights::Part;

use crate::parts::{Held, Loader};
use crate::plan::Plan;
use crate::{Detector, Error, Request, Result};

/// Bytes of the program itself.
const PROGRAM: u64 = 100_000_000;

/// Prompts that the text encoder takes at once: enough to fill a processor, little memory.
pub(crate) const PROMPTS_AT_ONCE: usize = 8;

/// Numbers in a band of an image between a decoder's layers: enough that the rows around it, which are computed twice, are few.
pub(crate) const BAND_ELEMENTS: usize = 1 << 24;

/// What is held of a decoder's layers, or of HED's, at once: of their largest image between two layers; and of a decoder's in bands,
/// of an image as large as the picture with as many channels as the last layers have, and bands beside it. Measured
/// (docs/memory.md, "Estimates").
const WHOLE_IMAGES: f64 = 3.8;
const BANDED_IMAGES: f64 = 1.3;
const BANDS: f64 = 8.0;

/// The part of what denoising computed that is still held, in pieces too small for a decoder in bands: one in so many. Measured.
const STILL_HELD: u64 = 3;

/// Numbers that are held at once for each of a token's in the transformer, in f32 and in its dtype.
const STREAM: u64 = 5;
const HIDDEN: u64 = 10;
/// Numbers more in f32 beside a ControlNet: its own tokens, and the correction that they become.
const CONTROL_STREAM: u64 = 2;

/// Bytes for each pixel that detectors other than HED hold at once.
const DETECTED: u64 = 40;

/// Pictures in f32 that are held while one is resized.
const RESIZED: u64 = 4;

/// Bytes of memory that the stages of a request take, with the weights that stay in memory beside each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Encoding prompts, and pictures that are followed or started from.
    pub encode: u64,
    /// The steps of the solver.
    pub denoise: u64,
    /// Decoding, a picture after another.
    pub decode: u64,
    /// Decoding in bands with no other part in memory, which a limit of memory leads to where nothing else fits.
    pub decode_least: u64,
}

impl MemoryEstimate {
    /// The most at any time, pictures decoded as by `decode`.
    pub fn peak(&self) -> u64 {
        self.encode.max(self.denoise).max(self.decode)
    }
}

/// How the stages of a request share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sharing {
    /// Pictures are decoded a band of rows after another.
    pub in_bands: bool,
    /// No part stays in memory beside the one that computes.
    pub alone: bool,
}

impl Sharing {
    /// From the fastest way to the one that takes least; `in_bands` in any case where that is asked for.
    pub(crate) fn ways(in_bands: bool) -> [Self; 4] {
        [(in_bands, false), (in_bands, true), (true, false), (true, true)]
            .map(|(in_bands, alone)| Self { in_bands, alone })
    }
}

/// Bytes of the parts' weights in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PartSizes {
    pub text_encoder: u64,
    /// With its ControlNet, if that is asked for.
    pub transformer: u64,
    pub vae: u64,
}

impl PartSizes {
    /// Of the parts that a pipeline for such requests has.
    pub(crate) fn of(loader: &Loader, held: Held, with_text: bool, controlled: bool) -> Result<Self> {
        let of = |part, wanted| if wanted { weights(loader, part, held) } else { Ok(0) };
        Ok(Self {
            text_encoder: of(Part::TextEncoder, with_text)?,
            transformer: of(Part::Transformer, true)? + of(Part::ControlNet, controlled)?,
            vae: of(Part::Vae, true)?,
        })
    }
}

/// Bytes of what the stages compute, beside weights.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    /// Pictures that come with the request and stay until it is done.
    pub given: u64,
    /// Embeddings of prompts.
    pub texts: u64,
    /// Latents of pictures that are followed or started from.
    pub pictures: u64,
    pub denoise: u64,
    pub decode_whole: u64,
    pub decode_in_bands: u64,
}

impl Work {
    /// Of `request` as `plan` has it, with texts of `length` tokens; `encoder` is there if it encodes any.
    pub(crate) fn new(
        request: &Request,
        plan: &Plan,
        length: usize,
        encoder: Option<&T5Config>,
        (transformer, controlnet, vae): (&TransformerConfig, Option<&ControlNetConfig>, &VaeConfig),
        dtype: DType,
    ) -> Self {
        let (prompts, rows) = (request.num_prompts() as u64, plan.rows_of_image() as u64);
        let pixels = (plan.drawn.0 * plan.drawn.1) as u64;
        let wanted = (plan.wanted.0 * plan.wanted.1) as u64;
        // All pictures stay until the last one is there.
        let resized = if plan.wanted == plan.drawn { 0 } else { RESIZED * 12 * wanted };
        let pictures = resized + plan.latents_shape.0 as u64 * 3 * wanted;
        let copies = controlnet.filter(|_| request.control.is_some()).map_or(0, |controlnet| controlnet.num_layers);
        let from_pictures = request.control.is_some() || request.init.is_some();
        Self {
            given: request.picture_bytes(),
            texts: encoder.map_or(0, |encoder| encoding(encoder, request.num_prompts(), length, rows)),
            pictures: if from_pictures { image_bytes(vae, 0, pixels, dtype, WHOLE_IMAGES) } else { 0 },
            denoise: denoising(transformer, copies, plan, (prompts * rows, length), vae, dtype),
            decode_whole: pictures + decoding(vae, pixels, dtype, false),
            decode_in_bands: pictures + decoding(vae, pixels, dtype, true),
        }
    }
}

impl MemoryEstimate {
    /// Of a pipeline that draws so, for the first and for any later request.
    pub(crate) fn new(parts: &PartSizes, work: &Work, keep_loaded: bool, way: Sharing) -> Self {
        let PartSizes { text_encoder, transformer, vae } = *parts;
        let all = (if keep_loaded { text_encoder } else { 0 }) + transformer + vae;
        let program = PROGRAM + work.given;
        let beside = |own: u64, alone: bool| program + if alone { own } else { all.max(own) };
        // The transformer gives way to a text encoder, unless all stay.
        let texts = match (way.alone, keep_loaded) {
            (true, _) => text_encoder,
            (false, true) => all,
            (false, false) => text_encoder + vae,
        };
        let encoded_picture = if work.pictures > 0 { beside(vae, way.alone) + work.pictures } else { 0 };
        let decode = |Sharing { in_bands, alone }| {
            let bands = work.decode_in_bands + work.denoise / STILL_HELD;
            beside(vae, alone) + if in_bands { bands.min(work.decode_whole) } else { work.decode_whole }
        };
        Self {
            encode: (program + texts + work.texts).max(encoded_picture),
            denoise: beside(transformer, way.alone) + work.denoise,
            decode: decode(way),
            decode_least: decode(Sharing { in_bands: true, alone: true }),
        }
    }
}

/// What encoding so many prompts takes, weights and all.
pub(crate) fn text_encoder(loader: &Loader, held: Held, length: usize) -> Result<impl Fn(usize) -> u64> {
    let config: T5Config = loader.folder.config(Part::TextEncoder)?;
    let weights = weights(loader, Part::TextEncoder, held)?;
    Ok(move |prompts| PROGRAM + weights + encoding(&config, prompts, length, 2))
}

/// What looking for edges in a picture of so many pixels takes, weights and all.
pub(crate) fn detecting(detector: &Detector, pixels: u64) -> u64 {
    PROGRAM
        + match detector {
            Detector::Hed(hed) => hed.weights + (WHOLE_IMAGES * (pixels * 4 * hed.width as u64) as f64) as u64,
            Detector::Canny | Detector::Lineart | Detector::Brightness => DETECTED * pixels,
        }
}

/// What decoding a picture of so many pixels takes, in bands or not, weights and all.
pub(crate) fn autoencoder(loader: &Loader, held: Held, vae: &VaeConfig) -> Result<impl Fn(u64, bool) -> u64> {
    let weights = weights(loader, Part::Vae, held)?;
    Ok(move |pixels, in_bands| PROGRAM + weights + decoding(vae, pixels, held.dtype, in_bands) + 3 * pixels)
}

/// A part's weights but tables of embeddings, which stay on disk. Those that are stored in more digits pass through memory as they
/// are read.
fn weights(loader: &Loader, part: Part, held: Held) -> Result<u64> {
    let weights = loader.weights(part, held.scheme)?.filtered(|name| !part.is_embedding(name));
    let bytes = weights.bytes_in(held.dtype);
    let lost = weights.size_in_bytes().saturating_sub(bytes);
    Ok(bytes + (bytes / 16).max(bytes.min(lost) / 5))
}

/// Some prompts at once, and the embeddings of all: `texts` for each, in two copies as they are put together.
fn encoding(config: &T5Config, prompts: usize, length: usize, texts: u64) -> u64 {
    let of_token = 6 * config.d_model + 3 * config.d_ff + config.num_heads * length;
    let at_once = (prompts.min(PROMPTS_AT_ONCE) * length * of_token) as u64;
    4 * (at_once + 2 * texts * (prompts * length * config.d_model) as u64)
}

/// The pictures of a pass, with the keys and values of `texts` for every block and those that a ControlNet has copied.
fn denoising(
    config: &TransformerConfig,
    copies: usize,
    plan: &Plan,
    (texts, length): (u64, usize),
    vae: &VaeConfig,
    dtype: DType,
) -> u64 {
    let size = dtype.size_in_bytes() as u64;
    let rows = (plan.images_at_once * plan.rows_of_image()) as u64;
    let tokens = (plan.drawn.0 * plan.drawn.1 / (vae.downscale() * config.patch_size).pow(2)) as u64;
    let of_text = ((config.num_layers + copies) * 2 * length) as u64 * size;
    let streams = STREAM + if copies > 0 { CONTROL_STREAM } else { 0 };
    config.width() as u64 * (rows * tokens * (4 * streams + size * HIDDEN) + texts * of_text)
}

/// `images` of so many pixels with as many channels as the last block but `before` has.
fn image_bytes(vae: &VaeConfig, before: usize, pixels: u64, dtype: DType, images: f64) -> u64 {
    let channels = vae.block_out_channels.get(before).or(vae.block_out_channels.last()).copied().unwrap_or(0);
    (images * (pixels * (channels * dtype.size_in_bytes()) as u64) as f64) as u64
}

/// Decoding of a picture. The largest image between two layers is the one that has been doubled for the last block: it has the
/// channels of the block before.
fn decoding(vae: &VaeConfig, pixels: u64, dtype: DType, in_bands: bool) -> u64 {
    let whole = image_bytes(vae, 1, pixels, dtype, WHOLE_IMAGES);
    if !in_bands {
        return whole;
    }
    let bands = BANDS * (BAND_ELEMENTS * dtype.size_in_bytes()) as f64;
    (image_bytes(vae, 0, pixels, dtype, BANDED_IMAGES) + bands as u64).min(whole)
}

/// What is said to someone whose limit is too low for `estimate`.
pub(crate) fn refusal(what: &str, estimate: &MemoryEstimate, limit: u64, instead: &str) -> Error {
    // Two digits tell what is needed from what is there even of little.
    let gb = |bytes: u64| match bytes {
        ..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    };
    let stages = [("encoding", estimate.encode), ("denoising", estimate.denoise), ("decoding", estimate.decode)];
    let stages: Vec<String> =
        stages.iter().filter(|(_, bytes)| *bytes > 0).map(|(stage, bytes)| format!("{stage} {}", gb(*bytes))).collect();
    Error::request(format!(
        "{what} takes about {} ({}), the limit is {}; {instead}",
        gb(estimate.peak()),
        stages.join(", "),
        gb(limit)
    ))
}

/// The most memory this process has had resident so far, in bytes; none where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
