//! What a run is to do: a TOML file.

use std::path::Path;

use pixart_nn::vae::VaeConfig;
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
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Stage {
    /// An autoencoder.
    Autoencoder(AutoencoderRecipe),
}

/// Training of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// The fields of its `config.json`.
    pub network: VaeConfig,
    /// Weight of the Kullback–Leibler divergence of the latents from a standard normal distribution.
    pub kl_weight: f64,
    /// Weight of the differences between neighbouring pixels, at several scales: edges count more than areas.
    pub edge_weight: f64,
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
            ("checkpoint_every", self.checkpoint_every),
            ("keep_checkpoints", self.keep_checkpoints as u64),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} is 0"));
        }
        if !self.batch_size.is_multiple_of(self.accumulate) {
            return Err(format!("a batch of {} does not divide into {} parts", self.batch_size, self.accumulate));
        }
        if self.warm_up > self.steps {
            return Err(format!("{} steps of warm-up are more than all {}", self.warm_up, self.steps));
        }
        let OptimizerSettings { lr, betas, eps, weight_decay, max_grad_norm } = &self.optimizer;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let settings = [
            ("optimizer.lr", *lr, *lr > 0.0),
            ("optimizer.betas", betas[0], unit(betas[0])),
            ("optimizer.betas", betas[1], unit(betas[1])),
            ("optimizer.eps", *eps, *eps > 0.0),
            ("optimizer.weight_decay", *weight_decay, *weight_decay >= 0.0),
            ("optimizer.max_grad_norm", max_grad_norm.unwrap_or(1.0), max_grad_norm.is_none_or(|norm| norm > 0.0)),
            ("ema_decay", self.ema_decay.unwrap_or(0.5), self.ema_decay.is_none_or(unit)),
        ];
        if let Some((name, value, _)) = settings.iter().find(|(_, value, right)| !right || !value.is_finite()) {
            return Err(format!("{name} is {value}"));
        }
        let Stage::Autoencoder(stage) = &self.stage;
        stage.network.validate().map_err(|message| format!("stage.autoencoder.network: {message}"))?;
        let Data::Scenes { size, crop } = self.data;
        let multiple = stage.network.downscale();
        if crop == 0 || crop > size || !crop.is_multiple_of(multiple) || !size.is_multiple_of(multiple) {
            return Err(format!(
                "data.scenes: crops of {crop} from scenes of {size} pixels; both must divide by {multiple}"
            ));
        }
        Ok(())
    }
}
