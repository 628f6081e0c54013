//! Networks on disk, as diffusers, transformers and PEFT read them.

use std::path::Path;

use pixart::{Pipeline, PipelineBuilder};
use pixart_weights::{Part, controlnet_config_json, transformer_config_json, write_json, write_peft, write_tensors};
use serde_json::{Value, json};

use super::{Model, NEW_TRANSFORMER, Source, Trained};
use crate::objective::WEIGHTS;
use crate::{Error, Result};

impl Model {
    /// Writes the networks as diffusers reads them: a whole pipeline if they are new, else the transformer, or the LoRA as
    /// PEFT reads it.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        match &self.source {
            Source::New { vae, text_encoder } => {
                write_json(&folder.join("model_index.json"), &model_index())?;
                write_json(&folder.join("scheduler/scheduler_config.json"), &scheduler_config())?;
                text_encoder.save(&self.parameters, folder)?;
                self.save_transformer(NEW_TRANSFORMER, &folder.join("transformer"))?;
                let to = folder.join("vae");
                std::fs::create_dir_all(&to).map_err(Error::io(&to))?;
                for file in ["config.json", WEIGHTS] {
                    let from = vae.join(file);
                    std::fs::copy(&from, to.join(file)).map_err(Error::io(&from))?;
                }
                Ok(())
            }
            Source::Base { trained: Trained::Whole { .. }, .. } => self.save_transformer("", folder),
            Source::Base { trained: Trained::Control { config, .. }, .. } => {
                write_json(&folder.join("config.json"), &controlnet_config_json(config, &self.config))?;
                Ok(self.parameters.save(&folder.join(WEIGHTS))?)
            }
            Source::Base { trained: Trained::Lora { config, .. }, .. } => {
                let result = self.result();
                let tensors: Vec<_> =
                    result.iter().map(|(name, variable)| (name.as_str(), variable.as_tensor())).collect();
                Ok(write_peft(folder, config, &tensors)?)
            }
        }
    }

    fn save_transformer(&self, prefix: &str, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &transformer_config_json(&self.config)?)?;
        let result = self.result();
        let tensors = result.iter().filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value.as_tensor())));
        Ok(write_tensors(&folder.join(WEIGHTS), &tensors.collect::<Vec<_>>())?)
    }

    /// What draws with the networks that [`Model::save`] wrote, where they are trained.
    pub(crate) fn pipeline(&self, saved: &Path) -> PipelineBuilder {
        let builder = match &self.source {
            Source::New { .. } => Pipeline::builder(saved),
            Source::Base { folder, trained } => {
                let builder = Pipeline::builder(folder);
                match trained {
                    Trained::Whole { .. } => builder.part(Part::Transformer, saved),
                    Trained::Lora { .. } => builder.lora(saved, 1.0),
                    Trained::Control { .. } => builder.part(Part::ControlNet, saved),
                }
            }
        };
        builder.device((&self.device).into())
    }
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

/// DPM-Solver++, as published PixArt models come with it, but of first order, its steps evenly spaced in the logarithm of the
/// signal-to-noise ratio: a new network does not bear guidance with second order and steps evenly in time
/// (docs/tiny-model.md).
fn scheduler_config() -> Value {
    json!({
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "solver_order": 1,
        "solver_type": "midpoint",
        "lower_order_final": true,
        "use_lu_lambdas": true,
    })
}
