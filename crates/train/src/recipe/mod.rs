//! What a run is to do: a TOML file.

mod autoencoder;
mod consistency;
mod controlnet;
mod diffusion;
mod lora;
mod text_encoder;

pub use autoencoder::AutoencoderRecipe;
pub(crate) use consistency::NOISE_FROM;
pub use consistency::{AdversarialRecipe, ConsistencyRecipe, DistributionMatchingRecipe};
pub use controlnet::ControlNetRecipe;
pub use diffusion::{DiffusionRecipe, LayoutRecipe, LogitNormal, NewModelRecipe};
pub use lora::LoraRecipe;
pub use text_encoder::{TextEncoderRecipe, TextEncoderSource};

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::{Error, OptimizerSettings, Result, Schedule};

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Everything random comes from it.
    #[serde(default)]
    pub seed: u64,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Images in a step.
    pub batch_size: usize,
    /// Parts that a batch is cut into, whose gradients are added: memory is needed for one.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// Parts that each of those is cut into, which are computed at the same time on a CPU, each by one of its threads: a
    /// small network keeps a thread busier than many.
    #[serde(default = "one")]
    pub workers: usize,
    /// Steps in which the learning rate rises to its full value.
    #[serde(default)]
    pub warm_up: u64,
    /// What becomes of the learning rate then.
    #[serde(default = "constant")]
    pub schedule: Schedule,
    /// Decay of the exponential moving average of the weights, which is what the run gives in the end.
    #[serde(default)]
    pub ema_decay: Option<f64>,
    /// Steps from one checkpoint to the next.
    #[serde(default = "thousand")]
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, the newest.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
    /// Steps from one grid of validation images to the next; 0 for none.
    #[serde(default)]
    pub validate_every: u64,
    /// What networks compute in; parameters and the optimiser are f32.
    #[serde(default)]
    pub precision: Precision,
    /// Keeps only what goes from block to block of a transformer, and computes the rest again in the backward pass: the
    /// memory of one block in place of all, for a third more work.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerSettings,
    /// Where the images come from.
    pub data: Data,
    /// What is trained.
    pub stage: Stage,
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}

fn thousand() -> u64 {
    1000
}

fn constant() -> Schedule {
    Schedule::Constant
}

/// What networks compute in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Precision {
    #[default]
    F32,
    /// As f32, but a GPU that multiplies TF32 rounds what it multiplies to that, 10 bits, which is several times as fast.
    Tf32,
    Bf16,
    F16,
}

impl Precision {
    /// As tensors have it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Data {
    /// The world of scenes, which never ends.
    Scenes {
        /// Width and height of a scene in pixels.
        size: usize,
        /// Width and height of the random part of it that is trained on.
        crop: usize,
    },
    /// A folder that `pixart features` has made. Paths in a recipe start from the folder that the program is run in.
    Features(PathBuf),
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Stage {
    /// An autoencoder.
    Autoencoder(AutoencoderRecipe),
    /// A text encoder.
    TextEncoder(TextEncoderRecipe),
    /// A diffusion transformer.
    Diffusion(DiffusionRecipe),
    /// A latent consistency model.
    Consistency(ConsistencyRecipe),
    /// A ControlNet.
    #[serde(rename = "controlnet")]
    ControlNet(ControlNetRecipe),
}

/// How pictures are drawn. What is not given is the model's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Of what; without any, of the first captions.
    pub prompts: Vec<String>,
    /// The solver's steps.
    pub steps: Option<usize>,
    /// The strength of guidance.
    pub guidance_scale: Option<f64>,
    /// The solver, by the names that `pixart generate --scheduler` takes.
    pub scheduler: Option<String>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// A file that cannot be read, a key that is unknown or missing, a value that is impossible.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        // The configs of networks, as others write them, may have keys that are not read; a recipe may not. The kind of a stage, which is no
        // struct's field, is told as a question mark.
        let mut unread = Vec::new();
        let read = toml::Deserializer::parse(&text).and_then(|fields| {
            serde_ignored::deserialize(fields, |key| unread.push(key.to_string().replace(".?", "")))
        });
        let recipe: Self = read.map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            Error::recipe(path, format!("line {line}: {}", error.message()))
        })?;
        if let Some(key) = unread.first() {
            return Err(Error::recipe(path, format!("unknown field `{key}`")));
        }
        recipe.validate().map_err(|message| Error::recipe(path, message))?;
        Ok(recipe)
    }

    fn validate(&self) -> Result<(), String> {
        let positive = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulate", self.accumulate as u64),
            ("workers", self.workers as u64),
            ("checkpoint_every", self.checkpoint_every),
            ("keep_checkpoints", self.keep_checkpoints as u64),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0"));
        }
        let parts = self.accumulate.saturating_mul(self.workers);
        if !self.batch_size.is_multiple_of(parts) {
            return Err(format!("a batch of {} does not divide into {parts} parts", self.batch_size));
        }
        if self.warm_up > self.steps {
            return Err(format!("{} steps of warm-up are more than all {}", self.warm_up, self.steps));
        }
        let OptimizerSettings { lr, lr_factors, betas, eps, weight_decay, muon, max_grad_norm } = &self.optimizer;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let settings = [
            ("optimizer.lr", *lr, *lr > 0.0),
            ("optimizer.betas", betas[0], unit(betas[0])),
            ("optimizer.betas", betas[1], unit(betas[1])),
            ("optimizer.eps", *eps, *eps > 0.0),
            ("optimizer.weight_decay", *weight_decay, *weight_decay >= 0.0),
            ("optimizer.muon", muon.unwrap_or(0.5), muon.is_none_or(unit)),
            ("optimizer.max_grad_norm", max_grad_norm.unwrap_or(1.0), max_grad_norm.is_none_or(|norm| norm > 0.0)),
            ("ema_decay", self.ema_decay.unwrap_or(0.5), self.ema_decay.is_none_or(unit)),
        ];
        let factors = lr_factors.values().map(|factor| ("optimizer.lr_factors", *factor, *factor > 0.0));
        let mut settings = settings.into_iter().chain(factors);
        if let Some((name, value, _)) = settings.find(|(_, value, right)| !right || !value.is_finite()) {
            return Err(format!("{name} is {value}"));
        }
        match &self.stage {
            Stage::Autoencoder(stage) => stage.validate(&self.data),
            _ if !matches!(self.data, Data::Features(_)) => {
                Err("this stage takes data.features, a folder that `pixart features` makes".into())
            }
            Stage::TextEncoder(stage) => stage.validate(),
            Stage::Diffusion(stage) => stage.validate(),
            Stage::Consistency(stage) => stage.validate(self.batch_size / parts),
            Stage::ControlNet(stage) => stage.diffusion().validate(),
        }
    }
}
