//! The networks of a diffusion stage: those that are trained, as their parameters make them, and those that stay.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pixart::{Pipeline, PipelineBuilder, tokenize};
use pixart_nn::NamedWeights;
use pixart_nn::controlnet::{ControlNet, ControlNetConfig};
use pixart_nn::recompute::Recomputation;
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{Condition, PixArtTransformer, ProjectedText, SizeConditions, TransformerConfig};
use pixart_nn::vae::VaeConfig;
use pixart_weights::{
    LoraConfig, Part, PipelineFolder, controlnet_config, controlnet_config_json, controlnet_of, open_part,
    read_tokenizer, transformer_config_json, write_bytes, write_json, write_peft,
};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::WEIGHTS;
use super::layout_loss::LayoutLoss;
use crate::estimate::{transformer_bytes, transformer_flops};
use crate::features::{Batch, Features};
use crate::vocabulary::word_tokenizer;
use crate::{Error, Footprint, NewModelRecipe, Parameters, PixArtInitialise, Recipe, Result, Zeros};

/// The file of a text encoder's weights, by transformers' name.
const TEXT_WEIGHTS: &str = "model.safetensors";

/// Tokens of a long caption, for estimates: of T5's vocabulary, and of one that has a token for each word.
const TEXT_TOKENS: u64 = 120;
const TEXT_WORDS: u64 = 32;

/// What is trained.
pub(crate) struct Model {
    pub parameters: Parameters,
    /// What networks compute in.
    dtype: DType,
    /// Whether blocks are computed again in the backward pass.
    recomputes: bool,
    config: TransformerConfig,
    source: Source,
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
    New { vae: PathBuf, text_config: T5Config, tokenizer: Box<Tokenizer> },
    /// The transformer of a pipeline, or something for it.
    Base { folder: PathBuf, trained: Trained },
}

/// What of a pipeline is trained.
#[derive(Debug, Clone)]
pub(crate) enum Trained {
    /// All of its transformer.
    Whole,
    /// Corrections of its transformer's layers.
    Lora(LoraConfig),
    /// What steers its transformer, which stays; from the ControlNet at `start`, or from copies of the transformer's blocks.
    Control { config: ControlNetConfig, start: Option<PathBuf> },
}

/// Captions as text encoders take and give them.
pub(crate) struct Text {
    /// `[batch, tokens, width]`.
    pub embeds: Tensor,
    /// `[batch, tokens]`: 1 for a token, 0 for padding.
    pub mask: Tensor,
}

impl Model {
    /// A new one, whose tokenizer knows the captions of `features`.
    pub(crate) fn new(run: &Recipe, recipe: &NewModelRecipe, features: &Features, device: &Device) -> Result<Self> {
        let (vae_config, _) = open_part::<VaeConfig>(&recipe.vae, Part::Vae, DType::F32)?;
        let inner = recipe.vae.join(Part::Vae.name());
        let captions = features.captions().flatten().map(String::as_str);
        let broken = |error: tokenizers::Error| Error::folder(&recipe.vae, format!("no tokenizer: {error}"));
        let tokenizer = word_tokenizer(captions).map_err(broken)?;
        let (words, room) = (tokenizer.get_vocab_size(true), recipe.text_encoder.vocab_size);
        if words > room {
            let message = format!("the captions have {words} words, text_encoder.vocab_size is {room}");
            return Err(Error::folder(&recipe.vae, message));
        }
        let T5Config { d_model, d_kv, .. } = recipe.text_encoder;
        let parameters = Parameters::fresh(PixArtInitialise { seed: run.seed, d_model, d_kv }, device);
        let model = Self {
            parameters,
            dtype: run.precision.dtype(),
            recomputes: run.gradient_checkpointing,
            config: recipe.transformer.clone(),
            source: Source::New {
                vae: if inner.is_dir() { inner } else { recipe.vae.clone() },
                text_config: recipe.text_encoder.clone(),
                tokenizer: Box::new(tokenizer),
            },
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
            Trained::Whole => Parameters::stored(weights, device),
            Trained::Lora(lora) => Parameters::adapted(weights, lora.clone(), None, run.seed, device),
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
            Source::New { .. } => builder.pp("transformer"),
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

    /// The transformer as it is now, for a loss: with what is not kept for the backward pass, if the recipe wants that.
    pub(crate) fn transformer_in_training(&self) -> Result<(PixArtTransformer, Option<Recomputation>)> {
        let transformer = self.transformer()?;
        if !self.recomputes {
            return Ok((transformer, None));
        }
        let recomputation = Recomputation::new();
        Ok((transformer.recomputing(&recomputation), Some(recomputation)))
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
        let Source::Base { folder, .. } = &self.source else {
            return Err(candle_core::Error::Msg("a new model has no base".into()).into());
        };
        let weights = PipelineFolder::open(folder)?.weights(Part::Transformer, self.dtype)?;
        self.transformer_of(weights.named(self.dtype, &self.device))
    }

    /// What networks compute in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The text encoder as it is now, with its tokenizer, where captions are words.
    fn text_encoder(&self) -> Result<Option<(&Tokenizer, T5Encoder)>> {
        match &self.source {
            Source::New { text_config, tokenizer, .. } => {
                let builder = self.parameters.builder(self.dtype).pp("text_encoder");
                Ok(Some((tokenizer, T5Encoder::new(text_config, builder)?)))
            }
            Source::Base { .. } => Ok(self.encoder.as_ref().map(|frozen| (&frozen.tokenizer, frozen.network.clone()))),
        }
    }

    /// One caption of each item of a batch, the empty text where `choose` gives none.
    pub(crate) fn text(
        &self,
        batch: &Batch,
        features: &Features,
        choose: impl Fn(usize, &[String]) -> Option<usize>,
    ) -> Result<Text> {
        let chosen = batch.captions.iter().enumerate().map(|(item, captions)| choose(item, captions));
        let chosen: Vec<Option<usize>> = chosen.collect();
        if let Some((tokenizer, encoder)) = self.text_encoder()? {
            let texts = batch.captions.iter().zip(&chosen);
            let texts: Vec<String> = texts
                .map(|(captions, chosen)| chosen.map(|index| captions[index].clone()).unwrap_or_default())
                .collect();
            let longest = texts.iter().map(|text| Ok(tokenizer.encode(text.as_str(), false)?.len() + 1));
            let longest = longest.collect::<Result<Vec<_>, tokenizers::Error>>();
            let longest = longest.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
            // As many as the pipeline shows its transformer.
            let most = self.encoder.as_ref().map_or(usize::MAX, |encoder| encoder.max_tokens);
            let tokens = tokenize(tokenizer, &texts, longest.into_iter().max().unwrap_or(1).min(most), &self.device)?;
            let embeds = encoder.forward(&tokens.input_ids, &tokens.attention_mask)?;
            return Ok(Text { embeds, mask: tokens.attention_mask });
        }
        let (Some(embeds), Some(null)) = (&batch.prompt_embeds, features.null()) else {
            return Err(candle_core::Error::Msg("the features have no embeddings of captions".into()).into());
        };
        let rows: Vec<&Tensor> =
            embeds.iter().zip(&chosen).map(|(embeds, chosen)| if chosen.is_some() { embeds } else { null }).collect();
        pad(&rows, &self.device)
    }

    /// What tells from tokens what is where, of so many classes.
    pub(crate) fn layout_loss(&self, classes: &[usize]) -> Result<LayoutLoss> {
        let weights = self.parameters.builder(self.dtype).pp("layout");
        LayoutLoss::new(self.config.width(), self.config.patch_size, classes, weights)
    }

    /// What tells a transformer of the picture's size, where it asks.
    pub(crate) fn size(&self, batch: &Batch) -> Result<Option<SizeConditions>> {
        let (height, width) = batch.pixels;
        let size = self.config.has_size_conditions();
        Ok(size.then(|| SizeConditions::new(height, width, batch.captions.len(), &self.device)).transpose()?)
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
        let ts: Vec<f32> = ts.iter().map(|t| *t as f32).collect();
        let ts = Tensor::from_vec(ts, latents.dim(0)?, latents.device())?;
        let (prediction, tokens) = transformer.forward_seen(latents, &ts, text, size, condition, seen)?;
        Ok((prediction.to_dtype(DType::F32)?, tokens))
    }

    /// What a step of training needs, for a picture of the native size; `passes` without gradients go with it, of networks
    /// that stay and have `frozen` times the transformer's weights.
    pub(crate) fn footprint(&self, pixels: (usize, usize), passes: f64, frozen: u64) -> Footprint {
        let bytes = self.dtype.size_in_bytes() as u64;
        let patch = self.downscale * self.config.patch_size;
        let tokens = (pixels.0 / patch * (pixels.1 / patch)) as u64;
        let text = if matches!(self.source, Source::New { .. }) { TEXT_WORDS } else { TEXT_TOKENS };
        let stream = if self.device.is_cpu() { 4 } else { bytes };
        let trained = self.parameters.count() as u64;
        let of_transformer = match &self.source {
            Source::New { .. } | Source::Base { trained: Trained::Whole, .. } => trained,
            Source::Base { trained: Trained::Lora(_), .. } => self.parameters.base_count() as u64,
            Source::Base { trained: Trained::Control { config, .. }, .. } => {
                return self.control_footprint(config, (tokens, text), stream);
            }
        };
        // A backward pass is two forward ones, and a third one where blocks are computed again.
        let own = if self.recomputes { 4.0 } else { 3.0 };
        // Weights in another dtype than the parameters', and those that a LoRA corrects, are made anew for each step.
        let own_copies = u64::from(self.dtype != DType::F32 || trained != of_transformer);
        Footprint {
            trained,
            parameters: of_transformer + if trained == of_transformer { 0 } else { trained },
            frozen_bytes: (frozen + own_copies) * of_transformer * bytes + self.encoder_bytes(),
            bytes_per_picture: transformer_bytes(&self.config, (tokens, text), (bytes, stream), self.recomputes),
            flops_per_picture: transformer_flops(&self.config, tokens, text) * (own + passes),
        }
    }

    fn encoder_bytes(&self) -> u64 {
        self.encoder.as_ref().map_or(0, |encoder| encoder.bytes)
    }

    /// [`Model::footprint`] of a ControlNet: the base gets no gradients of its weights, but hands on those of its input.
    fn control_footprint(&self, control: &ControlNetConfig, (tokens, text): (u64, u64), stream: u64) -> Footprint {
        let bytes = self.dtype.size_in_bytes() as u64;
        let trained = self.parameters.count() as u64;
        let share = control.num_layers as f64 / self.config.num_layers as f64;
        let base = (trained as f64 / share) as u64;
        let both = TransformerConfig { num_layers: self.config.num_layers + control.num_layers, ..self.config.clone() };
        let again = if self.recomputes { 1.0 } else { 0.0 };
        Footprint {
            trained,
            parameters: base + trained,
            frozen_bytes: base * bytes
                + if self.dtype == DType::F32 { 0 } else { trained * bytes }
                + self.encoder_bytes(),
            bytes_per_picture: transformer_bytes(&both, (tokens, text), (bytes, stream), self.recomputes),
            flops_per_picture: transformer_flops(&self.config, tokens, text) * (2.0 + again + share * (3.0 + again)),
        }
    }

    /// Writes the networks as diffusers reads them: a whole pipeline if they are new, else the transformer, or the LoRA as
    /// PEFT reads it.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        match &self.source {
            Source::New { vae, text_config, tokenizer } => {
                write_json(&folder.join("model_index.json"), &model_index())?;
                write_json(&folder.join("scheduler/scheduler_config.json"), &scheduler_config())?;
                write_json(&folder.join("tokenizer/tokenizer_config.json"), &tokenizer_config())?;
                let path = folder.join("tokenizer/tokenizer.json");
                let text = tokenizer.to_string(true);
                let text = text.map_err(|error| Error::folder(&path, error.to_string()))?;
                write_bytes(&path, text.as_bytes())?;
                write_json(&folder.join("text_encoder/config.json"), &text_encoder_config(text_config)?)?;
                self.parameters.save_part("text_encoder.", &folder.join("text_encoder").join(TEXT_WEIGHTS))?;
                self.save_transformer("transformer.", &folder.join("transformer"))?;
                let to = folder.join("vae");
                std::fs::create_dir_all(&to).map_err(Error::io(&to))?;
                for file in ["config.json", WEIGHTS] {
                    let from = vae.join(file);
                    std::fs::copy(&from, to.join(file)).map_err(Error::io(&from))?;
                }
                Ok(())
            }
            Source::Base { trained: Trained::Whole, .. } => self.save_transformer("", folder),
            Source::Base { trained: Trained::Control { config, .. }, .. } => {
                write_json(&folder.join("config.json"), &controlnet_config_json(config, &self.config))?;
                Ok(self.parameters.save(&folder.join(WEIGHTS))?)
            }
            Source::Base { trained: Trained::Lora(config), .. } => {
                let all = self.parameters.all();
                let tensors: Vec<_> =
                    all.iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
                Ok(write_peft(folder, config, &tensors)?)
            }
        }
    }

    fn save_transformer(&self, prefix: &str, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &transformer_config_json(&self.config)?)?;
        Ok(self.parameters.save_part(prefix, &folder.join(WEIGHTS))?)
    }

    /// What draws with the networks that [`Model::save`] wrote.
    pub(crate) fn pipeline(&self, saved: &Path) -> PipelineBuilder {
        match &self.source {
            Source::New { .. } => Pipeline::builder(saved),
            Source::Base { folder, trained } => {
                let builder = Pipeline::builder(folder);
                match trained {
                    Trained::Whole => builder.part(Part::Transformer, saved),
                    Trained::Lora(_) => builder.lora(saved, 1.0),
                    Trained::Control { .. } => builder.part(Part::ControlNet, saved),
                }
            }
        }
    }
}

/// A pipeline's text encoder, which stays.
struct FrozenEncoder {
    tokenizer: Tokenizer,
    network: T5Encoder,
    max_tokens: usize,
    bytes: u64,
}

impl FrozenEncoder {
    fn open(folder: &PipelineFolder, dtype: DType, device: &Device) -> Result<Self> {
        let config: T5Config = folder.config(Part::TextEncoder)?;
        config.validate().map_err(|reason| Error::folder(&folder.config_path(Part::TextEncoder), reason))?;
        let weights = folder.weights(Part::TextEncoder, dtype)?;
        Ok(Self {
            tokenizer: read_tokenizer(&folder.tokenizer_path())?,
            network: T5Encoder::new(&config, weights.named(dtype, device))?,
            max_tokens: folder.kind().max_sequence_length(),
            bytes: weights.parameters() * dtype.size_in_bytes() as u64,
        })
    }
}

/// Embeddings of several lengths as one batch.
fn pad(rows: &[&Tensor], device: &Device) -> Result<Text> {
    let longest = rows.iter().map(|row| row.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
    let longest = longest.into_iter().max().unwrap_or(0);
    let (mut embeds, mut masks) = (Vec::new(), Vec::new());
    for row in rows {
        let tokens = row.dim(0)?;
        embeds.push(row.pad_with_zeros(0, 0, longest - tokens)?);
        masks.extend((0..longest).map(|i| f32::from(u8::from(i < tokens))));
    }
    Ok(Text {
        embeds: Tensor::stack(&embeds, 0)?.to_device(device)?,
        mask: Tensor::from_vec(masks, (rows.len(), longest), device)?,
    })
}

fn model_index() -> Value {
    json!({
        "_class_name": "PixArtAlphaPipeline",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// The solver that published PixArt models come with.
fn scheduler_config() -> Value {
    json!({
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": true,
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "T5TokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": 512,
    })
}

fn text_encoder_config(config: &T5Config) -> Result<Value> {
    let mut value = serde_json::to_value(config).map_err(|error| Error::Tensor(candle_core::Error::wrap(error)))?;
    if let Some(fields) = value.as_object_mut() {
        let more = json!({
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "is_gated_act": true,
            "dense_act_fn": "gelu_new",
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": false,
            "use_cache": false,
        });
        if let Value::Object(more) = more {
            fields.extend(more);
        }
    }
    Ok(value)
}
