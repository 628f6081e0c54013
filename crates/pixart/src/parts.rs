use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use pixart_nn::NamedWeights;
use pixart_nn::controlnet::{ControlNet, ControlNetConfig};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{Part, PipelineFolder, Scheme, Weights, read_tokenizer};
use tokenizers::Tokenizer;

use crate::{Error, Result, dtype_name};

/// Loading of a part's weights, told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// What is being loaded.
    pub part: Part,
    /// Bytes read so far.
    pub read: u64,
    /// Bytes in all.
    pub total: u64,
}

pub(crate) type OnLoad = Arc<dyn Fn(LoadProgress) + Send + Sync>;

/// Reads parts from a folder, and keeps the time it took.
pub(crate) struct Loader {
    pub folder: PipelineFolder,
    pub device: Device,
    pub dtype: DType,
    /// How weights that are not in 8 bits are rounded as they are read, if they are.
    pub scheme: Option<Scheme>,
    pub on_load: Option<OnLoad>,
    /// Who looks at the inputs of layers.
    pub observer: Option<PartObserver>,
    pub time: Duration,
}

/// In what weights and what is computed are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub dtype: DType,
    /// How weights that are not in 8 bits are rounded, if they are.
    pub scheme: Option<Scheme>,
}

/// Is told, whenever a linear layer of a part is used, the names of its weights and its largest inputs by column.
pub(crate) type PartObserver = Arc<dyn Fn(Part, &[String], &[f32]) + Send + Sync>;

/// The parts that are rounded to 8 bits where that is asked for; in the autoencoder it is seen.
const ROUNDED: [Part; 3] = [Part::TextEncoder, Part::Transformer, Part::ControlNet];

impl Loader {
    /// In what weights and what is computed are held.
    pub(crate) fn held(&self) -> Held {
        Held { dtype: self.dtype, scheme: self.scheme }
    }

    /// In what the transformer computes, by name: the scheme of its 8 bits, or its dtype.
    pub(crate) fn precision_name(&self) -> Result<String> {
        let stored = self.folder.stored_scheme(Part::Transformer)?;
        if let Some((stored, asked)) = stored.zip(self.scheme).filter(|(stored, asked)| stored != asked) {
            return Err(Error::request(format!(
                "{}: the transformer is in {stored} already; {asked} is made of the model that it was made from",
                self.folder.config_path(Part::Transformer).display()
            )));
        }
        Ok(stored.or(self.scheme).map_or_else(|| dtype_name(self.dtype).into(), |scheme| scheme.to_string()))
    }

    /// A part's weights as they are read, where `scheme` rounds those that are not in 8 bits.
    pub(crate) fn weights(&self, part: Part, scheme: Option<Scheme>) -> Result<Weights> {
        let weights = self.folder.weights(part, self.dtype)?;
        Ok(match scheme {
            Some(scheme) if ROUNDED.contains(&part) => weights.rounded(part, scheme),
            _ => weights,
        })
    }

    fn load<T>(&mut self, part: Part, build: impl FnOnce(NamedWeights) -> candle_core::Result<T>) -> Result<T> {
        let start = Instant::now();
        let mut weights = self.weights(part, self.scheme)?;
        let total = weights.size_in_bytes();
        if let Some(on_load) = self.on_load.clone() {
            let read = AtomicU64::new(0);
            weights = weights.on_read(move |bytes| {
                let read = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
                on_load(LoadProgress { part, read, total });
            });
        }
        let mut named = weights.named(self.dtype, &self.device);
        if let Some(observer) = self.observer.clone() {
            named = named.observed_by(Arc::new(move |names, largest| observer(part, names, largest)));
        }
        let built = build(named)?;
        if let Some(on_load) = &self.on_load {
            // Of what nothing needs, nothing was told.
            on_load(LoadProgress { part, read: total, total });
        }
        let unread: Vec<_> = weights.unread().into_iter().filter(|name| !part.is_spare(name)).collect();
        if let Some(first) = unread.first() {
            tracing::warn!(
                "{}: {} tensors of the {} were not used, the first of them {first}: do config and weights belong together?",
                self.folder.part_path(part).display(),
                unread.len(),
                part.name().replace('_', " ")
            );
        }
        self.time += start.elapsed();
        Ok(built)
    }
}

/// The parts of a pipeline, each read when it is first asked for.
pub(crate) struct Parts {
    pub loader: Loader,
    /// Whether the text encoder stays in memory after use.
    pub keep_loaded: bool,
    /// Where there is a ControlNet, its config, which fits the transformer.
    pub controlnet_config: Option<ControlNetConfig>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<T5Encoder>,
    transformer: Option<PixArtTransformer>,
    vae: Option<AutoencoderKl>,
}

impl Parts {
    pub(crate) fn new(loader: Loader, keep_loaded: bool, controlnet_config: Option<ControlNetConfig>) -> Self {
        Self {
            loader,
            keep_loaded,
            controlnet_config,
            tokenizer: None,
            text_encoder: None,
            transformer: None,
            vae: None,
        }
    }

    /// Finds out before any work whether a part's files are missing or broken; the text encoder's if `with_text`, the
    /// ControlNet's if `controlled`.
    pub(crate) fn check_files(&self, with_text: bool, controlled: bool) -> Result<()> {
        let loader = &self.loader;
        if controlled {
            loader.folder.weights(Part::ControlNet, loader.dtype)?;
        }
        if with_text && self.text_encoder.is_none() {
            let config: T5Config = loader.folder.config(Part::TextEncoder)?;
            let path = loader.folder.config_path(Part::TextEncoder);
            config.validate().map_err(|reason| Error::request(format!("{}: {reason}", path.display())))?;
            loader.folder.weights(Part::TextEncoder, loader.dtype)?;
        }
        if self.transformer.is_none() {
            loader.folder.weights(Part::Transformer, loader.dtype)?;
        }
        if self.vae.is_none() {
            loader.folder.weights(Part::Vae, loader.dtype)?;
        }
        Ok(())
    }

    /// The tokenizer and the text encoder. The encoder and the transformer are the two largest parts: unless all are
    /// kept loaded, only one of them is in memory at a time.
    pub(crate) fn text_encoder(&mut self) -> Result<(&Tokenizer, &T5Encoder)> {
        let tokenizer = match &mut self.tokenizer {
            Some(tokenizer) => tokenizer,
            none => {
                let start = Instant::now();
                let tokenizer = read_tokenizer(&self.loader.folder.tokenizer_path())?;
                self.loader.time += start.elapsed();
                none.insert(tokenizer)
            }
        };
        let encoder = match &mut self.text_encoder {
            Some(encoder) => encoder,
            none => {
                if !self.keep_loaded {
                    self.transformer = None;
                }
                let config: T5Config = self.loader.folder.config(Part::TextEncoder)?;
                let keep_loaded = self.keep_loaded;
                none.insert(self.loader.load(Part::TextEncoder, |vb| {
                    T5Encoder::new(&config, if keep_loaded { vb } else { vb.used_once() })
                })?)
            }
        };
        Ok((tokenizer, encoder))
    }

    /// Drops all parts but this one; a ControlNet is with its transformer.
    pub(crate) fn keep_only(&mut self, part: Part) {
        if part != Part::TextEncoder {
            self.text_encoder = None;
        }
        if part != Part::Transformer {
            self.transformer = None;
        }
        if part != Part::Vae {
            self.vae = None;
        }
    }

    pub(crate) fn release_text_encoder(&mut self) {
        if !self.keep_loaded {
            self.text_encoder = None;
        }
    }

    /// The transformer; with its ControlNet, if it is `controlled`.
    pub(crate) fn transformer(&mut self, config: &TransformerConfig, controlled: bool) -> Result<&PixArtTransformer> {
        if self.transformer.as_ref().is_none_or(|transformer| controlled && !transformer.has_control()) {
            let transformer = match self.transformer.take() {
                Some(transformer) => transformer,
                None => self.loader.load(Part::Transformer, |vb| PixArtTransformer::new(config, vb))?,
            };
            self.transformer = Some(match controlled {
                true => transformer.with_control(self.controlnet(config)?)?,
                false => transformer,
            });
        }
        self.transformer.as_ref().ok_or_else(|| Error::Compute("the transformer is gone".into()))
    }

    fn controlnet(&mut self, base: &TransformerConfig) -> Result<ControlNet> {
        let Some(config) = &self.controlnet_config else {
            return Err(Error::request("the model has no ControlNet"));
        };
        self.loader.load(Part::ControlNet, |vb| ControlNet::new(config, base, vb))
    }

    pub(crate) fn vae(&mut self, config: &VaeConfig) -> Result<&AutoencoderKl> {
        match &mut self.vae {
            Some(vae) => Ok(vae),
            none => Ok(none.insert(self.loader.load(Part::Vae, |vb| AutoencoderKl::new(config, vb))?)),
        }
    }
}
