//! What a run is to do: a TOML file.

use std::path::{Path, PathBuf};

use candle_core::DType;
use pixart_nn::t5::T5Config;
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;
use pixart_weights::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::objective::TIMESTEPS;
use crate::{ConsistencySettings, Error, OptimizerSettings, Result, Schedule};

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
    Bf16,
    F16,
}

impl Precision {
    /// As tensors have it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
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
    /// A diffusion transformer.
    Diffusion(DiffusionRecipe),
    /// A latent consistency model.
    Consistency(ConsistencyRecipe),
    /// A ControlNet.
    #[serde(rename = "controlnet")]
    ControlNet(ControlNetRecipe),
}

/// Training of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// The autoencoder that training starts from, which is of the same shape; without one, a new one.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Leaves the base's encoder as it is, so that what was trained on its latents still goes with it.
    #[serde(default)]
    pub decoder_only: bool,
    /// The fields of its `config.json`.
    pub network: VaeConfig,
    /// Weight of the Kullback–Leibler divergence of the latents from a standard normal distribution.
    pub kl_weight: f64,
    /// Weight of the differences between neighbouring pixels, at several scales: edges count more than areas.
    pub edge_weight: f64,
}

/// Training of a diffusion transformer: a new one with its text encoder, or that of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    /// What to make new.
    #[serde(default)]
    pub new: Option<Box<NewModelRecipe>>,
    /// The pipeline whose transformer is trained on.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Trains corrections of the base's layers, and leaves the base as it is.
    #[serde(default)]
    pub lora: Option<LoraRecipe>,
    /// The share of captions that are replaced by the empty text, for guidance.
    #[serde(default = "tenth")]
    pub text_dropout: f64,
    /// Where it is given, timesteps whose signal-to-noise ratio is higher count as much less: min-SNR's γ.
    #[serde(default)]
    pub snr_gamma: Option<f64>,
    /// Where it is given, timesteps whose signal-to-noise ratio is lower count as if it were this, which speeds up what is
    /// decided in much noise: where things are, and what is said of them.
    #[serde(default)]
    pub snr_floor: Option<f64>,
    /// Where it is given, what is where in a picture is to be read from the inside of a new transformer.
    #[serde(default)]
    pub layout: Option<LayoutRecipe>,
    /// How timesteps are drawn; evenly if it is not given.
    #[serde(default)]
    pub timesteps: Option<LogitNormal>,
    /// How validation pictures are drawn.
    #[serde(default)]
    pub validation: Sampling,
}

fn tenth() -> f64 {
    0.1
}

/// A second loss of a new transformer, on features that say what is where: the cross-entropy of the classes that a linear layer
/// finds in its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutRecipe {
    /// The block whose tokens are looked at when they leave it, from 0.
    pub block: usize,
    /// What the loss is multiplied with.
    pub weight: f64,
}

/// Timesteps are a thousand times the logistic function of normal numbers, so that those in the middle are drawn more often
/// than those at the ends (Esser et al. 2024, "Scaling Rectified Flow Transformers").
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitNormal {
    /// Of the normal numbers; where it is above 0, noisy timesteps are drawn more often.
    pub mean: f64,
    /// Standard deviation of the normal numbers.
    pub std: f64,
}

/// A transformer and a text encoder that begin with nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModelRecipe {
    /// The autoencoder that the features were made with.
    pub vae: PathBuf,
    /// The fields of `transformer/config.json`.
    pub transformer: TransformerConfig,
    /// The fields of `text_encoder/config.json`; `vocab_size` is at least the number of words in the captions and three.
    pub text_encoder: T5Config,
}

/// A LoRA, in the terms of PEFT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank of the corrections.
    pub rank: usize,
    /// Corrections are multiplied with this, divided by the rank; the rank if it is not given.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// Names, or ends of names, of the layers that are adapted; those of the published LCM-LoRA if it is not given.
    #[serde(default)]
    pub target_modules: Option<Vec<String>>,
}

/// The layers of PixArt's published LCM-LoRA.
const LORA_TARGETS: [&str; 11] = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj",
    "proj_out",
    "linear",
    "linear_1",
    "linear_2",
    "ff.net.0.proj",
    "ff.net.2",
];

impl LoraRecipe {
    /// As PEFT has it.
    pub fn config(&self) -> LoraConfig {
        LoraConfig {
            r: self.rank,
            lora_alpha: self.alpha.unwrap_or(self.rank as f64),
            target_modules: self
                .target_modules
                .clone()
                .unwrap_or_else(|| LORA_TARGETS.iter().map(ToString::to_string).collect()),
        }
    }

    fn validate(&self) -> Result<(), String> {
        match self.alpha.unwrap_or(1.0) {
            _ if self.rank == 0 => Err("lora.rank is 0".into()),
            alpha if !alpha.is_finite() || alpha == 0.0 => Err(format!("lora.alpha is {alpha}")),
            _ => Ok(()),
        }
    }
}

/// Distillation of a pipeline's transformer into a latent consistency model: all of it (LCD), or a LoRA for it (LCM-LoRA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyRecipe {
    /// The pipeline that is distilled, which is the teacher.
    pub base: PathBuf,
    /// Trains corrections of the base's layers, and leaves the base as it is; the student is its own target then.
    #[serde(default)]
    pub lora: Option<LoraRecipe>,
    /// Decay of the moving average of the student that is its target, where all of it is trained.
    #[serde(default = "target_decay")]
    pub target_ema_decay: f64,
    /// How it is distilled.
    #[serde(default)]
    pub settings: ConsistencySettings,
    /// How validation pictures are drawn; by the LCM solver if it is not given.
    #[serde(default)]
    pub validation: Sampling,
}

fn target_decay() -> f64 {
    0.95
}

/// Training of a ControlNet on features that have conditions; the pipeline that it steers stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNetRecipe {
    /// The pipeline that is steered.
    pub base: PathBuf,
    /// How many of its blocks are copied.
    #[serde(default = "published_copies")]
    pub num_layers: usize,
    /// A ControlNet to start from, in place of the base's blocks.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// The share of captions that are replaced by the empty text, so that the condition has to be looked at.
    #[serde(default = "half")]
    pub text_dropout: f64,
    /// As of [`DiffusionRecipe::snr_gamma`].
    #[serde(default)]
    pub snr_gamma: Option<f64>,
    /// How validation pictures are drawn, below the conditions of the first pictures.
    #[serde(default)]
    pub validation: Sampling,
}

fn published_copies() -> usize {
    13
}

fn half() -> f64 {
    0.5
}

impl ControlNetRecipe {
    /// The diffusion that it is trained by.
    pub fn diffusion(&self) -> DiffusionRecipe {
        DiffusionRecipe {
            new: None,
            base: Some(self.base.clone()),
            lora: None,
            text_dropout: self.text_dropout,
            snr_gamma: self.snr_gamma,
            snr_floor: None,
            layout: None,
            timesteps: None,
            validation: self.validation.clone(),
        }
    }
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
        let recipe: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            Error::recipe(path, format!("line {line}: {}", error.message()))
        })?;
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
        let OptimizerSettings { lr, betas, eps, weight_decay, muon, max_grad_norm } = &self.optimizer;
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
        if let Some((name, value, _)) = settings.iter().find(|(_, value, right)| !right || !value.is_finite()) {
            return Err(format!("{name} is {value}"));
        }
        match &self.stage {
            Stage::Autoencoder(stage) => stage.validate(&self.data),
            Stage::Diffusion(_) | Stage::Consistency(_) | Stage::ControlNet(_)
                if !matches!(self.data, Data::Features(_)) =>
            {
                Err("this stage takes data.features, a folder that `pixart features` makes".into())
            }
            Stage::Diffusion(stage) => stage.validate(),
            Stage::Consistency(stage) => stage.validate(),
            Stage::ControlNet(stage) => stage.diffusion().validate(),
        }
    }
}

impl AutoencoderRecipe {
    fn validate(&self, data: &Data) -> Result<(), String> {
        self.network.validate().map_err(|message| format!("stage.autoencoder.network: {message}"))?;
        if self.decoder_only && self.base.is_none() {
            return Err("stage.autoencoder.decoder_only needs a `base`".into());
        }
        for (name, weight) in [("kl_weight", self.kl_weight), ("edge_weight", self.edge_weight)] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(format!("stage.autoencoder.{name} is {weight}"));
            }
        }
        let Data::Scenes { size, crop } = *data else {
            return Err("an autoencoder is trained on data.scenes".into());
        };
        let multiple = self.network.downscale();
        if crop == 0 || crop > size || !crop.is_multiple_of(multiple) || !size.is_multiple_of(multiple) {
            return Err(format!(
                "data.scenes: crops of {crop} from scenes of {size} pixels; both must divide by {multiple}"
            ));
        }
        Ok(())
    }
}

impl LogitNormal {
    /// The timestep, below 1000, that belongs to a standard normal number.
    pub fn timestep(&self, normal: f32) -> usize {
        let logistic = 1.0 / (1.0 + (-(self.mean + self.std * f64::from(normal))).exp());
        ((logistic * TIMESTEPS as f64) as usize).min(TIMESTEPS - 1)
    }
}

impl DiffusionRecipe {
    /// How much the noise's error counts at a timestep with this signal-to-noise ratio. A weight of ratio' / ratio is what
    /// the picture's error would have at ratio' (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
    /// Strategy").
    pub fn weight(&self, ratio: f64) -> f64 {
        let least = self.snr_floor.unwrap_or(0.0);
        ratio.max(least).min(self.snr_gamma.unwrap_or(f64::INFINITY)) / ratio
    }

    fn validate(&self) -> Result<(), String> {
        if self.new.is_some() == self.base.is_some() {
            return Err("stage.diffusion takes either `new` or `base`".into());
        }
        if !(0.0..=1.0).contains(&self.text_dropout) {
            return Err(format!("stage.diffusion.text_dropout is {}", self.text_dropout));
        }
        for (name, ratio) in [("snr_gamma", self.snr_gamma), ("snr_floor", self.snr_floor)] {
            if let Some(ratio) = ratio.filter(|ratio| !(ratio.is_finite() && *ratio > 0.0)) {
                return Err(format!("stage.diffusion.{name} is {ratio}"));
            }
        }
        if let (Some(floor), Some(gamma)) = (self.snr_floor, self.snr_gamma)
            && floor > gamma
        {
            return Err(format!("stage.diffusion.snr_floor is {floor}, above snr_gamma, {gamma}"));
        }
        if let Some(LogitNormal { mean, std }) = self.timesteps
            && !(mean.is_finite() && std.is_finite() && std > 0.0)
        {
            return Err(format!("stage.diffusion.timesteps: the mean is {mean}, the standard deviation {std}"));
        }
        if let Some(LayoutRecipe { block, weight }) = self.layout {
            let Some(new) = &self.new else { return Err("stage.diffusion.layout is for a `new` model".into()) };
            let blocks = new.transformer.num_layers;
            if block >= blocks || !(weight.is_finite() && weight > 0.0) {
                return Err(format!("stage.diffusion.layout: block {block} of {blocks}, weight {weight}"));
            }
        }
        if self.new.is_some() && self.lora.is_some() {
            return Err("stage.diffusion.lora needs a `base`".into());
        }
        self.lora.as_ref().map_or(Ok(()), LoraRecipe::validate)?;
        if let Some(new) = &self.new {
            let of = |part: &'static str| move |message: String| format!("stage.diffusion.new.{part}: {message}");
            new.transformer.validate().map_err(of("transformer"))?;
            new.text_encoder.validate().map_err(of("text_encoder"))?;
            let (caption, text) = (new.transformer.caption_channels, new.text_encoder.d_model);
            if caption != Some(text) {
                return Err(format!("stage.diffusion.new: caption_channels is {caption:?}, d_model {text}"));
            }
        }
        Ok(())
    }
}

impl ConsistencyRecipe {
    fn validate(&self) -> Result<(), String> {
        self.lora.as_ref().map_or(Ok(()), LoraRecipe::validate)?;
        self.settings.validate()?;
        match self.target_ema_decay {
            decay if (0.0..1.0).contains(&decay) => Ok(()),
            decay => Err(format!("stage.consistency.target_ema_decay is {decay}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(keys: &str) -> DiffusionRecipe {
        toml::from_str(&format!("base = \"x\"\n{keys}")).expect("a stage")
    }

    #[test]
    fn weights_hold_the_ratio_between_its_bounds() {
        let ratios = [1e-3, 0.1, 5.0, 400.0];
        for (keys, expected) in [
            ("", ratios),
            ("snr_gamma = 5.0", [1e-3, 0.1, 5.0, 5.0]),
            ("snr_floor = 0.02", [0.02, 0.1, 5.0, 400.0]),
            ("snr_gamma = 5.0\nsnr_floor = 0.02", [0.02, 0.1, 5.0, 5.0]),
        ] {
            let stage = stage(keys);
            for (ratio, expected) in ratios.into_iter().zip(expected) {
                assert!((stage.weight(ratio) * ratio / expected - 1.0).abs() < 1e-12, "{keys}, {ratio}");
            }
        }
    }

    #[test]
    fn timesteps_follow_their_distribution() {
        let distribution = LogitNormal { mean: 0.5, std: 1.5 };
        // The logistic function of the mean, and of a standard deviation to either side.
        for (normal, timestep) in [(0.0, 622), (-1.0, 268), (1.0, 880), (-40.0, 0), (40.0, 999)] {
            assert_eq!(distribution.timestep(normal), timestep);
        }
    }

    #[test]
    fn impossible_timesteps_are_refused() {
        for (keys, message) in [
            ("snr_floor = 0.0", "snr_floor is 0"),
            ("snr_floor = 6.0\nsnr_gamma = 5.0", "above snr_gamma"),
            ("timesteps = { mean = 0.0, std = -1.0 }", "standard deviation -1"),
        ] {
            let error = stage(keys).validate().expect_err(keys);
            assert!(error.contains(message), "{error}");
        }
    }
}
