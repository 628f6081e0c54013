use std::path::PathBuf;

use pixart_nn::transformer::TransformerConfig;
use serde::{Deserialize, Serialize};

use super::{LoraRecipe, Sampling, TextEncoderSource};
use crate::objective::TIMESTEPS;

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
    /// The steps in which it counts, from the first one; all if it is not given. What helps a network to begin holds it back
    /// later on (Wang et al. 2025, "REPA Works Until It Doesn't").
    #[serde(default)]
    pub steps: Option<u64>,
}

impl LayoutRecipe {
    /// Whether the loss counts in `step`, from 1.
    pub fn counts(&self, step: u64) -> bool {
        self.steps.is_none_or(|steps| step <= steps)
    }
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
    /// The text encoder: its config, or one that was trained before.
    pub text_encoder: TextEncoderSource,
    /// A model whose transformer this one begins as; that one's patches may be larger. With `interpolation_scale` as many times as
    /// large, tokens stand where they stood.
    #[serde(default)]
    pub start: Option<PathBuf>,
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

    pub(super) fn validate(&self) -> Result<(), String> {
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
        if let Some(LayoutRecipe { block, weight, steps: _ }) = self.layout {
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
            if let TextEncoderSource::New(config) = &new.text_encoder {
                config.validate().map_err(of("text_encoder"))?;
            }
        }
        Ok(())
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
