use std::path::PathBuf;

use pixart_nn::vae::VaeConfig;
use serde::{Deserialize, Serialize};

use super::Data;

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
    /// The autoencoder whose latents this one is to have, so that what was trained on them goes with it: its encoder is held to them,
    /// and its decoder is given them. It may be of another shape.
    #[serde(default)]
    pub teacher: Option<PathBuf>,
    /// The fields of its `config.json`.
    pub network: VaeConfig,
    /// Weight of the Kullback–Leibler divergence of the latents from a standard normal distribution.
    pub kl_weight: f64,
    /// Weight of the differences between neighbouring pixels, at several scales: edges count more than areas.
    pub edge_weight: f64,
    /// Noise that the decoder learns to do without: of each picture's latents, up to so much of their standard deviation. What a
    /// diffusion model draws is never quite what the encoder would have written.
    #[serde(default)]
    pub latent_noise: f64,
}

impl AutoencoderRecipe {
    pub(super) fn validate(&self, data: &Data) -> Result<(), String> {
        self.network.validate().map_err(|message| format!("stage.autoencoder.network: {message}"))?;
        if self.decoder_only && self.base.is_none() {
            return Err("stage.autoencoder.decoder_only needs a `base`".into());
        }
        if self.teacher.is_some() && self.decoder_only {
            return Err("stage.autoencoder.decoder_only has latents of its base, not of a `teacher`".into());
        }
        if self.teacher.is_some() && self.kl_weight != 0.0 {
            return Err("stage.autoencoder.kl_weight must be 0 with a `teacher`, which says what latents are".into());
        }
        for (name, weight) in
            [("kl_weight", self.kl_weight), ("edge_weight", self.edge_weight), ("latent_noise", self.latent_noise)]
        {
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
