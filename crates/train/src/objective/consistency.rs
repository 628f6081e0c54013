//! Distillation into a model that needs few steps, or into a LoRA that makes one of its base.

use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use pixart_nn::transformer::{PixArtTransformer, ProjectedText};

use super::data::{Data, Drawn};
use super::diffusion::draw_validation;
use super::model::{Model, Trained};
use super::word_encoder::Text;
use super::{ConsistencyInputs, ConsistencyLoss, Loss, Objective};
use crate::features::Batch;
use crate::random::{generator, pick};
use crate::{ConsistencyRecipe, Ema, Footprint, Parameters, Recipe, Result, Sampling};

/// Distillation of a pipeline's transformer on features.
pub struct ConsistencyObjective {
    model: Model,
    teacher: PixArtTransformer,
    /// Where all of the student is trained, the average that it is held to; else that is the student itself.
    target: Option<Ema>,
    data: Data,
    loss: ConsistencyLoss,
    recipe: ConsistencyRecipe,
}

impl ConsistencyObjective {
    /// As `stage` says.
    ///
    /// # Errors
    /// Features or a base model that are missing or do not belong together.
    pub fn new(recipe: &Recipe, stage: &ConsistencyRecipe, features: &Path, device: &Device) -> Result<Self> {
        let data = Data::open(recipe, features, device)?;
        let trained = Trained::transformer(stage.lora.as_ref(), stage.start.clone());
        let model = Model::of_base(recipe, &stage.base, trained, &data.features, device)?;
        let teacher = model.base_transformer()?;
        let target = match stage.lora {
            Some(_) => None,
            None => Some(Ema::new(&model.parameters)?),
        };
        let validation = Sampling {
            scheduler: Some(stage.validation.scheduler.clone().unwrap_or_else(|| "lcm".into())),
            ..stage.validation.clone()
        };
        let recipe = ConsistencyRecipe { validation, ..stage.clone() };
        Ok(Self { model, teacher, target, data, loss: ConsistencyLoss::new(stage.settings.clone())?, recipe })
    }

    fn target(&self) -> Result<PixArtTransformer> {
        match &self.target {
            Some(target) => self.model.transformer_of(target.builder(self.model.dtype())),
            None => self.model.detached_transformer(),
        }
    }
}

/// A transformer's prediction of noise, given texts.
fn noise(
    model: &Model,
    batch: &Batch,
    transformer: &PixArtTransformer,
    text: &ProjectedText,
    latents: &Tensor,
    ts: &[usize],
) -> Result<Tensor> {
    let prediction = Model::predict(transformer, latents, ts, text, model.size(batch)?.as_ref(), None)?;
    Ok(prediction.narrow(1, 0, latents.dim(1)?)?)
}

impl Objective for ConsistencyObjective {
    fn parameters(&self) -> &Parameters {
        &self.model.parameters
    }

    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss> {
        let Drawn { batch, draws: of_latents } = self.data.drawn(step, part, parts)?;
        let size = batch.captions.len();
        let (latents, noises) = self.data.latents(&batch, &of_latents, self.model.scaling_factor)?;
        let steps = self.loss.timesteps().len();
        let draws = generator(self.data.seed, "consistency", &[step, part as u64]).rand(2 * size);
        let indices: Vec<usize> = draws[..size].iter().map(|draw| pick(*draw, steps)).collect();
        let text = self
            .model
            .text(&batch, &self.data.features, |item, captions| Some(pick(draws[size + item], captions.len())))?;
        let null = self.model.text(&batch, &self.data.features, |_, _| None)?;

        let project = |transformer: &PixArtTransformer, text: &Text| -> Result<ProjectedText> {
            Ok(transformer.project_text(&text.embeds, Some(&text.mask))?)
        };
        let (student, recomputation) = self.model.transformer_in_training()?;
        let target = self.target()?;
        let of_student = project(&student, &text)?;
        let of_target = project(&target, &text)?;
        let (of_teacher, of_nothing) = (project(&self.teacher, &text)?, project(&self.teacher, &null)?);
        let inputs = ConsistencyInputs { latents: &latents, noise: &noises, indices: &indices };
        let terms = self.loss.terms(
            &inputs,
            |z, ts| noise(&self.model, &batch, &student, &of_student, z, ts),
            |z, ts| noise(&self.model, &batch, &target, &of_target, z, ts),
            |z, ts| {
                Ok([
                    noise(&self.model, &batch, &self.teacher, &of_teacher, z, ts)?,
                    noise(&self.model, &batch, &self.teacher, &of_nothing, z, ts)?,
                ])
            },
        )?;
        Ok(Loss { total: terms.loss, terms: vec![], recomputation })
    }

    fn step_done(&mut self) -> Result<()> {
        match &mut self.target {
            Some(target) => target.update(self.recipe.target_ema_decay),
            None => Ok(()),
        }
    }

    fn target_average(&self) -> Option<&Ema> {
        self.target.as_ref()
    }

    fn target_average_mut(&mut self) -> Option<&mut Ema> {
        self.target.as_mut()
    }

    fn footprint(&self) -> Result<Footprint> {
        // The target, and the teacher with and without text; the target of a LoRA is the student.
        let target = u64::from(self.target.is_some());
        let evaluations = 1.0 + 2.0 * self.recipe.settings.teacher_steps as f64;
        let mut footprint = self.model.footprint(self.data.largest(), evaluations, 2);
        footprint.frozen_bytes += target * 4 * footprint.trained;
        footprint.parameters += footprint.parameters - footprint.trained * (1 - target);
        Ok(footprint)
    }

    fn validate(&self) -> Result<RgbImage> {
        draw_validation(&self.model, &self.data.features, &self.recipe.validation)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)
    }
}
