//! The networks of a diffusion stage: those that are trained, as their parameters make them, and those that stay.

mod critics;
mod footprint;
mod save;
mod start;
mod text;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use pixart_nn::NamedWeights;
use pixart_nn::controlnet::{ControlNet, ControlNetConfig};
use pixart_nn::recompute::Recomputation;
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::{Condition, PixArtTransformer, ProjectedText, SizeConditions, TransformerConfig};
use pixart_nn::vae::VaeConfig;
use pixart_weights::{
    LoraConfig, PEFT_PREFIX, Part, PipelineFolder, Weights, controlnet_config, controlnet_of, open_part, read_peft,
};

use super::is_result;
use super::layout_loss::LayoutLoss;
use super::word_encoder::WordEncoder;
use crate::features::{Batch, Features};
use crate::{
    Error, LoraRecipe, NewModelRecipe, Parameters, PixArtInitialise, Recipe, Result, TextEncoderSource, Zeros,
};
use text::FrozenEncoder;

/// What the names of a new transformer's parameters begin with.
const NEW_TRANSFORMER: &str = "transformer.";

/// What is trained.
pub(crate) struct Model {
    pub parameters: Parameters,
    /// What networks compute in.
    dtype: DType,
    /// Whether blocks are computed again in the backward pass.
    recomputes: bool,
    config: TransformerConfig,
    source: Source,
    seed: u64,
    /// The transformer that a ControlNet steers.
    frozen: Option<PixArtTransformer>,
    /// What encodes captions that the features have as words only, where the text encoder stays.
    encoder: Option<FrozenEncoder>,
    pub scaling_factor: f64,
    /// Pixels of a latent pixel, along a side.
    downscale: usize,
    device: Device,
}

enum Source {
    /// A new transformer with a new text encoder, for an autoencoder that is there.
    New { vae: PathBuf, text_encoder: Box<WordEncoder> },
    /// The transformer of a pipeline, or something for it.
    Base { folder: PathBuf, trained: Trained },
}

/// What of a pipeline is trained.
#[derive(Debug, Clone)]
pub(crate) enum Trained {
    /// All of its transformer; from the one at `start`, or as it is.
    Whole { start: Option<PathBuf> },
    /// Corrections of its transformer's layers; from those at `start`, or from none.
    Lora { config: LoraConfig, start: Option<PathBuf> },
    /// What steers its transformer, which stays; from the ControlNet at `start`, or from copies of the transformer's blocks.
    Control { config: ControlNetConfig, start: Option<PathBuf> },
}

impl Trained {
    /// A `lora` for the transformer, or all of it from `start`.
    pub(crate) fn transformer(lora: Option<&LoraRecipe>, start: Option<PathBuf>) -> Self {
        lora.map_or(Self::Whole { start }, |lora| Self::Lora { config: lora.config(), start: lora.start.clone() })
    }
}

impl Model {
    /// A new one, whose tokenizer knows the captions of `features`.
    pub(crate) fn new(run: &Recipe, recipe: &NewModelRecipe, features: &Features, device: &Device) -> Result<Self> {
        let (vae_config, _) = open_part::<VaeConfig>(&recipe.vae, Part::Vae, DType::F32)?;
        let inner = recipe.vae.join(Part::Vae.name());
        let (text_encoder, trained) = match &recipe.text_encoder {
            TextEncoderSource::New(config) => (WordEncoder::new(config, features, &recipe.vae)?, None),
            TextEncoderSource::Trained(folder) => {
                let (text_encoder, weights) = WordEncoder::trained(folder)?;
                (text_encoder, Some(weights))
            }
        };
        let T5Config { d_model, d_kv, .. } = text_encoder.config;
        if recipe.transformer.caption_channels != Some(d_model) {
            let found = recipe.transformer.caption_channels.unwrap_or(0);
            let message =
                format!("the transformer's caption_channels is {found}, the text encoder's d_model {d_model}");
            return Err(Error::recipe(Path::new("stage.diffusion.new"), message));
        }
        let parameters = Parameters::fresh(PixArtInitialise { seed: run.seed, d_model, d_kv }, device);
        let model = Self {
            parameters,
            dtype: run.precision.dtype(),
            recomputes: run.gradient_checkpointing,
            config: recipe.transformer.clone(),
            source: Source::New {
                vae: if inner.is_dir() { inner } else { recipe.vae.clone() },
                text_encoder: Box::new(text_encoder),
            },
            seed: run.seed,
            frozen: None,
            encoder: None,
            scaling_factor: vae_config.scaling_factor,
            downscale: vae_config.downscale(),
            device: device.clone(),
        };
        model.check(features, &recipe.vae)?;
        // Asking for the parameters makes them.
        model.transformer()?;
        model.text_encoder()?;
        if let Some(weights) = trained {
            WordEncoder::load(&model.parameters, &weights)?;
        }
        if let Some(folder) = &recipe.start {
            start::begin_as(&model.parameters, NEW_TRANSFORMER, &model.config, folder)?;
        }
        Ok(model)
    }

    /// The transformer of the pipeline at `base`, and what is to be trained of it.
    pub(crate) fn of_base(
        run: &Recipe,
        base: &Path,
        trained: Trained,
        features: &Features,
        device: &Device,
    ) -> Result<Self> {
        let folder = PipelineFolder::open(base)?;
        let config: TransformerConfig = folder.config(Part::Transformer)?;
        config.validate().map_err(|reason| Error::folder(&folder.config_path(Part::Transformer), reason))?;
        let vae_config: VaeConfig = folder.config(Part::Vae)?;
        let weights = folder.weights(Part::Transformer, DType::F32)?;
        let dtype = run.precision.dtype();
        let mut frozen = None;
        let parameters = match &trained {
            Trained::Whole { start: None } => Parameters::stored(weights, device),
            Trained::Whole { start: Some(start) } => {
                Parameters::stored(weights_like(&folder, &config, start, DType::F32)?, device)
            }
            Trained::Lora { config: lora, start } => {
                let start = start.as_ref().map(|start| started_lora(start, lora)).transpose()?;
                Parameters::adapted(weights, lora.clone(), start, run.seed, device)
            }
            Trained::Control { config: control, start } => {
                control.validate(&config).map_err(|reason| Error::folder(base, reason))?;
                frozen = Some(PixArtTransformer::new(&config, weights.named(dtype, device))?);
                match start {
                    Some(start) => {
                        let stored =
                            folder.clone().with_part(Part::ControlNet, start)?.weights(Part::ControlNet, dtype)?;
                        let found = controlnet_config(start, &stored, &config)?;
                        if found != *control {
                            let (found, wanted) = (found.num_layers, control.num_layers);
                            return Err(Error::folder(start, format!("has {found} copied blocks, not {wanted}")));
                        }
                        Parameters::stored(stored, device)
                    }
                    None => Parameters::extended(controlnet_of(&weights, control.num_layers), Zeros, device),
                }
            }
        };
        let model = Self {
            parameters,
            dtype,
            recomputes: run.gradient_checkpointing,
            config,
            source: Source::Base { folder: base.into(), trained },
            seed: run.seed,
            frozen,
            encoder: match features.description().text_width {
                Some(_) => None,
                None => Some(FrozenEncoder::open(&folder, dtype, device)?),
            },
            scaling_factor: vae_config.scaling_factor,
            downscale: vae_config.downscale(),
            device: device.clone(),
        };
        model.check(features, base)?;
        model.transformer()?;
        Ok(model)
    }

    /// Whether features are what these networks take.
    fn check(&self, features: &Features, path: &Path) -> Result<()> {
        let found = features.description();
        if found.latent_channels != self.config.in_channels || found.scaling_factor != self.scaling_factor {
            return Err(Error::folder(path, "the features were made with another autoencoder; make them anew"));
        }
        match (&self.source, found.text_width) {
            (_, None) => {}
            (Source::New { .. }, Some(_)) => {
                return Err(Error::folder(
                    path,
                    "the features have embeddings of captions; a new text encoder takes words",
                ));
            }
            (Source::Base { .. }, Some(width)) if Some(width) == self.config.caption_channels => {}
            (Source::Base { .. }, Some(width)) => {
                let wanted = self.config.caption_channels.unwrap_or(0);
                let message =
                    format!("the features have embeddings that are {width} wide; {wanted} wide ones are needed");
                return Err(Error::folder(path, message));
            }
        }
        if self.config.channels_out() != 2 * self.config.in_channels {
            return Err(Error::folder(path, "the transformer predicts no variance; it is not trained here"));
        }
        Ok(())
    }

    /// The transformer's weights among those that `builder` gives.
    fn of_transformer(&self, builder: NamedWeights<'static>) -> NamedWeights<'static> {
        match self.source {
            Source::New { .. } => builder.pp(NEW_TRANSFORMER.trim_end_matches('.')),
            Source::Base { .. } => builder,
        }
    }

    /// The transformer as it is now.
    pub(crate) fn transformer(&self) -> Result<PixArtTransformer> {
        let builder = self.parameters.builder(self.dtype);
        Ok(match (&self.source, &self.frozen) {
            (Source::Base { trained: Trained::Control { config, .. }, .. }, Some(base)) => {
                base.clone().with_control(ControlNet::new(config, &self.config, builder)?)?
            }
            _ => PixArtTransformer::new(&self.config, self.of_transformer(builder))?,
        })
    }

    /// Whether it is a ControlNet that is trained.
    pub(crate) fn has_control(&self) -> bool {
        self.frozen.is_some()
    }

    /// What the ControlNet that is trained, if one is, is to follow.
    pub(crate) fn condition(&self, transformer: &PixArtTransformer, batch: &Batch) -> Result<Option<Condition>> {
        let Some(condition) = batch.condition.as_ref().filter(|_| self.has_control()) else { return Ok(None) };
        let latents = (condition.to_device(&self.device)? * self.scaling_factor)?;
        Ok(Some(transformer.condition(&latents, 1.0)?))
    }

    /// The transformer as it is now, for a loss, with what takes the gradients of what is not kept for the backward pass.
    pub(crate) fn transformer_in_training(&self, recomputation: Option<&Recomputation>) -> Result<PixArtTransformer> {
        Ok(recomputing(self.transformer()?, recomputation))
    }

    /// What takes the gradients of what is computed again in the backward pass, if the recipe wants that.
    pub(crate) fn recomputation(&self) -> Option<Recomputation> {
        self.recomputes.then(Recomputation::new)
    }

    /// The transformer as it is now, without gradients.
    pub(crate) fn detached_transformer(&self) -> Result<PixArtTransformer> {
        Ok(PixArtTransformer::new(&self.config, self.of_transformer(self.parameters.detached(self.dtype)))?)
    }

    /// A transformer of the same shape with other weights.
    pub(crate) fn transformer_of(&self, weights: NamedWeights) -> Result<PixArtTransformer> {
        Ok(PixArtTransformer::new(&self.config, weights)?)
    }

    /// The transformer that training started from.
    pub(crate) fn base_transformer(&self) -> Result<PixArtTransformer> {
        let weights = PipelineFolder::open(self.base_folder()?)?.weights(Part::Transformer, self.dtype)?;
        self.transformer_of(weights.named(self.dtype, &self.device))
    }

    /// A transformer like that one, with the weights of another folder.
    pub(crate) fn other_transformer(&self, weights: &Path) -> Result<PixArtTransformer> {
        let folder = PipelineFolder::open(self.base_folder()?)?;
        let weights = weights_like(&folder, &self.config, weights, self.dtype)?;
        self.transformer_of(weights.named(self.dtype, &self.device))
    }

    fn base_folder(&self) -> Result<&Path> {
        match &self.source {
            Source::Base { folder, .. } => Ok(folder),
            Source::New { .. } => Err(candle_core::Error::Msg("a new model has no base".into()).into()),
        }
    }

    /// Of the transformer.
    pub(crate) fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// What networks compute in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// What tells from tokens what is where, of so many classes.
    pub(crate) fn layout_loss(&self, classes: &[usize]) -> Result<LayoutLoss> {
        let weights = self.parameters.builder(self.dtype).pp("layout");
        LayoutLoss::new(self.config.width(), self.config.patch_size, classes, weights)
    }

    /// The parameters that are the result.
    fn result(&self) -> Vec<(String, Var)> {
        self.parameters.all().into_iter().filter(|(name, _)| is_result(name)).collect()
    }

    /// What tells a transformer of the size of so many pictures, where it asks.
    pub(crate) fn size(&self, (height, width): (usize, usize), images: usize) -> Result<Option<SizeConditions>> {
        let size = self.config.has_size_conditions();
        Ok(size.then(|| SizeConditions::new(height, width, images, &self.device)).transpose()?)
    }

    /// A transformer's prediction, f32.
    pub(crate) fn predict(
        transformer: &PixArtTransformer,
        latents: &Tensor,
        ts: &[usize],
        text: &ProjectedText,
        size: Option<&SizeConditions>,
        condition: Option<&Condition>,
    ) -> Result<Tensor> {
        Ok(Self::predict_seen(transformer, latents, ts, text, size, condition, None)?.0)
    }

    /// As [`Model::predict`], with the tokens as they leave block `seen`.
    pub(crate) fn predict_seen(
        transformer: &PixArtTransformer,
        latents: &Tensor,
        ts: &[usize],
        text: &ProjectedText,
        size: Option<&SizeConditions>,
        condition: Option<&Condition>,
        seen: Option<usize>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let ts = timesteps(ts, latents.device())?;
        let (prediction, tokens) = transformer.forward_seen(latents, &ts, text, size, condition, seen)?;
        Ok((prediction.to_dtype(DType::F32)?, tokens))
    }
}

/// Timesteps as transformers take them.
pub(crate) fn timesteps(ts: &[usize], device: &Device) -> Result<Tensor> {
    let ts: Vec<f32> = ts.iter().map(|t| *t as f32).collect();
    Ok(Tensor::new(ts, device)?)
}

/// The weights of the transformer at `path`, which is to have the `config` of that of `folder`.
fn weights_like(folder: &PipelineFolder, config: &TransformerConfig, path: &Path, dtype: DType) -> Result<Weights> {
    let folder = folder.clone().with_part(Part::Transformer, path)?;
    if folder.config::<TransformerConfig>(Part::Transformer)? != *config {
        return Err(Error::folder(path, "is another transformer than the base's"));
    }
    Ok(folder.weights(Part::Transformer, dtype)?)
}

/// The corrections in a PEFT folder, which are to be such as `wanted` says.
fn started_lora(folder: &Path, wanted: &LoraConfig) -> Result<Weights> {
    let (config, corrections) = read_peft(folder)?;
    if config.r != wanted.r || config.lora_alpha != wanted.lora_alpha {
        let (rank, alpha) = (wanted.r, wanted.lora_alpha);
        let message = format!("has rank {} and alpha {}, not {rank} and {alpha}", config.r, config.lora_alpha);
        return Err(Error::folder(folder, message));
    }
    let layer = |name: &String| Some(name.strip_prefix(PEFT_PREFIX)?.split_once(".lora_")?.0.to_string());
    match corrections
        .tensors()
        .keys()
        .map(|name| layer(name).unwrap_or_else(|| name.clone()))
        .find(|layer| !wanted.adapts(layer))
    {
        Some(layer) => Err(Error::folder(folder, format!("corrects {layer}, which target_modules leave out"))),
        None => Ok(corrections),
    }
}

/// `transformer`, with what is not kept for the backward pass.
fn recomputing(transformer: PixArtTransformer, recomputation: Option<&Recomputation>) -> PixArtTransformer {
    match recomputation {
        Some(recomputation) => transformer.recomputing(recomputation),
        None => transformer,
    }
}
