use std::path::PathBuf;

use pixart_weights::LoraConfig;
use serde::{Deserialize, Serialize};

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
    /// A LoRA, in PEFT's folder, of the same rank, alpha and layers, that this one starts as; one that changes nothing if it is not given.
    #[serde(default)]
    pub start: Option<PathBuf>,
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

    pub(super) fn validate(&self) -> Result<(), String> {
        match self.alpha.unwrap_or(1.0) {
            _ if self.rank == 0 => Err("lora.rank is 0".into()),
            alpha if !alpha.is_finite() || alpha == 0.0 => Err(format!("lora.alpha is {alpha}")),
            _ => Ok(()),
        }
    }
}
