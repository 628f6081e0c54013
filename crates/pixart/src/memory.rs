//! What a request takes of memory: estimated before any weight is read, and measured.

use candle_core::DType;
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;
use pixart_weights::{Part, Scheme};

use crate::parts::{Loader, is_rounded_if_asked};
use crate::plan::Plan;
use crate::{Error, Request, Result};

/// Bytes of the program itself.
const PROGRAM: u64 = 100_000_000;

/// Prompts that the text encoder takes at once: enough to fill a processor, little memory.
pub(crate) const PROMPTS_AT_ONCE: usize = 8;

/// Numbers in a band of an image between a decoder's layers: enough that the rows around it, which are computed twice, are few.
pub(crate) const BAND_ELEMENTS: usize = 1 << 24;

/// What is held of a decoder's layers at once: of its largest image between two layers, decoded whole; and, decoded in bands, of
/// an image as large as the picture with as many channels as the last layers have, and bands beside it. Measured
/// (docs/memory.md, "Estimates").
const WHOLE_IMAGES: f64 = 3.8;
const BANDED_IMAGES: f64 = 1.3;
const BANDS: f64 = 8.0;

/// Numbers that are held at once for each of a token's in the transformer, in f32 and in its dtype.
const STREAM: u64 = 5;
const HIDDEN: u64 = 10;

/// Bytes of memory that the stages of a request take, with the weights that stay in memory beside each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Encoding prompts, and pictures that are followed or started from.
    pub encode: u64,
    /// The steps of the solver.
    pub denoise: u64,
    /// Decoding, a picture after another.
    pub decode: u64,
    /// Decoding in bands with the transformer gone, which a limit of memory leads to where nothing else fits.
    pub decode_least: u64,
}

impl MemoryEstimate {
    /// The most at any time, pictures decoded as by `decode`.
    pub fn peak(&self) -> u64 {
        self.encode.max(self.denoise).max(self.decode)
    }
}

/// How latents become pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decoding {
    /// A band of rows after another.
    pub in_bands: bool,
    /// Without the transformer in memory.
    pub alone: bool,
}

impl Decoding {
    /// From the fastest way to the one that takes least; `in_bands` in any case where that is asked for.
    pub(crate) fn ways(in_bands: bool) -> [Self; 4] {
        [(in_bands, false), (in_bands, true), (true, false), (true, true)]
            .map(|(in_bands, alone)| Self { in_bands, alone })
    }
}

/// What the stages of a pipeline take, apart from one another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Weights, and what is computed.
    text_encoder: [u64; 2],
    transformer: [u64; 2],
    vae: u64,
    encoded_picture: u64,
    whole: u64,
    bands: u64,
    keep_loaded: bool,
}

impl Needs {
    /// Of `request`, drawn at `drawn` (height, width) with weights that are not in 8 bits in `dtype`, and those that are not yet
    /// rounded by `scheme`.
    #[allow(clippy::too_many_arguments, reason = "all that decides it")]
    pub(crate) fn new(
        loader: &Loader,
        request: &Request,
        plan: &Plan,
        drawn: (usize, usize),
        scheme: Option<Scheme>,
        keep_loaded: bool,
        transformer: &TransformerConfig,
        vae: &VaeConfig,
    ) -> Result<Self> {
        let dtype = loader.dtype;
        let length = request.max_sequence_length.unwrap_or(loader.folder.kind().max_sequence_length());
        let text_encoder = match request.prompt_embeds {
            Some(_) => [0, 0],
            None => {
                let config: T5Config = loader.folder.config(Part::TextEncoder)?;
                let prompts = request.prompts.len().min(PROMPTS_AT_ONCE);
                [weights(loader, Part::TextEncoder, scheme)?, encoding(&config, prompts, length)]
            }
        };
        let mut weights_of_transformer = weights(loader, Part::Transformer, scheme)?;
        if request.control.is_some() {
            weights_of_transformer += weights(loader, Part::ControlNet, scheme)?;
        }
        let rows = plan.latents_shape.0 * if plan.is_guided() { 2 } else { 1 };
        let tokens = drawn.0 * drawn.1 / (vae.downscale() * transformer.patch_size).pow(2);
        let pixels = (drawn.0 * drawn.1) as u64;
        let needs_encoder = request.control.is_some() || request.init.is_some();
        Ok(Self {
            text_encoder,
            transformer: [weights_of_transformer, denoising(transformer, rows, tokens, length, dtype)],
            vae: weights(loader, Part::Vae, None)?,
            encoded_picture: if needs_encoder { image_bytes(vae, 0, pixels, dtype, WHOLE_IMAGES) } else { 0 },
            whole: whole(vae, pixels, dtype),
            bands: bands(vae, pixels, dtype),
            keep_loaded,
        })
    }

    /// What the stages take if pictures are decoded so.
    pub(crate) fn estimate(&self, decoding: Decoding) -> MemoryEstimate {
        let kept = if self.keep_loaded { self.text_encoder[0] } else { 0 };
        // An autoencoder that has encoded a picture stays.
        let (vae, encoded) = match self.encoded_picture {
            0 => (0, 0),
            picture => (self.vae, kept + self.vae + picture),
        };
        let decode = |Decoding { in_bands, alone }| {
            let transformer = if alone { 0 } else { self.transformer[0] };
            PROGRAM + kept + transformer + self.vae + if in_bands { self.bands } else { self.whole }
        };
        MemoryEstimate {
            encode: PROGRAM + self.text_encoder.iter().sum::<u64>().max(encoded),
            denoise: PROGRAM + kept + vae + self.transformer.iter().sum::<u64>(),
            decode: decode(decoding),
            decode_least: decode(Decoding { in_bands: true, alone: true }),
        }
    }
}

/// What decoding a picture of so many pixels takes beside weights.
pub(crate) fn decoding(vae: &VaeConfig, pixels: u64, dtype: DType, in_bands: bool) -> u64 {
    if in_bands { bands(vae, pixels, dtype) } else { whole(vae, pixels, dtype) }
}

/// The program and an autoencoder.
pub(crate) fn autoencoder(loader: &Loader) -> Result<u64> {
    Ok(PROGRAM + weights(loader, Part::Vae, None)?)
}

/// The program and a text encoder, and what it computes of prompts.
pub(crate) fn text_encoder(loader: &Loader, prompts: usize, length: usize) -> Result<u64> {
    let config: T5Config = loader.folder.config(Part::TextEncoder)?;
    let computed = encoding(&config, prompts.min(PROMPTS_AT_ONCE), length);
    Ok(PROGRAM + weights(loader, Part::TextEncoder, loader.scheme)? + computed)
}

/// A part's weights. Those that are stored in another dtype pass through memory as they are read.
fn weights(loader: &Loader, part: Part, scheme: Option<Scheme>) -> Result<u64> {
    let mut weights = loader.folder.weights(part, loader.dtype)?;
    if let (Some(scheme), true) = (scheme, is_rounded_if_asked(part)) {
        weights = weights.rounded(part, scheme);
    }
    let bytes = weights.bytes_in(loader.dtype);
    let passing = if bytes < weights.size_in_bytes() { bytes / 5 } else { bytes / 16 };
    Ok(bytes + passing)
}

fn encoding(config: &T5Config, prompts: usize, length: usize) -> u64 {
    let of_token = 6 * config.d_model + 3 * config.d_ff + config.num_heads * length;
    4 * (prompts * length * of_token) as u64
}

fn denoising(config: &TransformerConfig, rows: usize, tokens: usize, length: usize, dtype: DType) -> u64 {
    let size = dtype.size_in_bytes() as u64;
    let text = (config.num_layers * 2 * length) as u64 * size;
    (rows * config.width()) as u64 * (tokens as u64 * (4 * STREAM + size * HIDDEN) + text)
}

/// `images` of so many pixels with as many channels as the last block but `before` has.
fn image_bytes(vae: &VaeConfig, before: usize, pixels: u64, dtype: DType, images: f64) -> u64 {
    let channels = vae.block_out_channels.get(before).or(vae.block_out_channels.last()).copied().unwrap_or(0);
    (images * (pixels * (channels * dtype.size_in_bytes()) as u64) as f64) as u64
}

/// The largest image between two layers is the one that has been doubled for the last block: it has the channels of the block
/// before.
fn whole(vae: &VaeConfig, pixels: u64, dtype: DType) -> u64 {
    image_bytes(vae, 1, pixels, dtype, WHOLE_IMAGES)
}

fn bands(vae: &VaeConfig, pixels: u64, dtype: DType) -> u64 {
    let bands = BANDS * (BAND_ELEMENTS * dtype.size_in_bytes()) as f64;
    (image_bytes(vae, 0, pixels, dtype, BANDED_IMAGES) + bands as u64).min(whole(vae, pixels, dtype))
}

/// What is said to someone whose limit is too low for `estimate`.
pub(crate) fn refusal(what: &str, estimate: &MemoryEstimate, limit: u64, instead: &str) -> Error {
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
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
