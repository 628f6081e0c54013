use std::ops::Range;

use candle_core::{DType, Tensor};
use pixart_nn::transformer::{Condition, PixArtTransformer, ProjectedText, SizeConditions};

use crate::plan::Plan;
use crate::{PromptEmbeds, Result};

/// The transformer with everything about a request that stays the same from step to step.
pub(crate) struct Predictor<'a> {
    transformer: &'a PixArtTransformer,
    passes: Vec<Pass>,
    /// Texts of passes; those that are the same are shared.
    texts: Vec<ProjectedText>,
    /// Of the rows of the largest pass.
    size: Option<SizeConditions>,
    /// What the ControlNet follows, where it does; of the rows of the largest pass.
    condition: Option<Condition>,
    guidance_scale: Option<f64>,
}

/// Images that one pass predicts, each with its unguided twin where there is guidance.
struct Pass {
    images: Range<usize>,
    text: usize,
}

impl<'a> Predictor<'a> {
    pub(crate) fn new(
        transformer: &'a PixArtTransformer,
        plan: &Plan,
        text: &PromptEmbeds,
        images_per_prompt: usize,
        control: Option<(&Tensor, f64)>,
    ) -> Result<Self> {
        let device = transformer.device();
        let images = plan.latents_shape.0;
        let (mut passes, mut texts, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..images).step_by(plan.images_at_once) {
            let images = first..images.min(first + plan.images_at_once);
            let wanted: Vec<usize> = images.clone().map(|image| image / images_per_prompt).collect();
            if prompts != wanted {
                let (embeds, mask) = text.rows(&wanted)?.guided()?;
                texts.push(transformer.project_text(&embeds.to_device(device)?, Some(&mask.to_device(device)?))?);
                prompts = wanted;
            }
            passes.push(Pass { images, text: texts.len() - 1 });
        }
        let rows = plan.images_at_once * plan.rows_of_image();
        let condition = match control {
            Some((latents, scale)) => Some(transformer.condition(&latents.repeat((rows, 1, 1, 1))?, scale)?),
            None => None,
        };
        let (height, width) = plan.drawn;
        let size = transformer.config().has_size_conditions();
        Ok(Self {
            transformer,
            passes,
            texts,
            size: size.then(|| SizeConditions::new(height, width, rows, device)).transpose()?,
            condition,
            guidance_scale: plan.is_guided().then_some(plan.guidance_scale),
        })
    }

    /// The network's prediction for latents `[images, channels, height, width]`, in f32. Of large images one is taken after
    /// another, with its unguided twin, so that a pass takes the memory of one image, whatever their number; small ones share
    /// passes. The ControlNet's condition is followed if the prediction is `controlled`.
    pub(crate) fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        with_variance: bool,
        controlled: bool,
    ) -> Result<Tensor> {
        let predictions = self.passes.iter().map(|pass| self.predict_pass(latents, timestep, pass, controlled));
        let prediction = Tensor::cat(&predictions.collect::<Result<Vec<_>>>()?, 0)?;
        let (channels, predicted) = (latents.dim(1)?, prediction.dim(1)?);
        if predicted == 2 * channels && !with_variance {
            return Ok(prediction.narrow(1, 0, channels)?);
        }
        Ok(prediction)
    }

    fn predict_pass(&self, latents: &Tensor, timestep: f64, pass: &Pass, controlled: bool) -> Result<Tensor> {
        let images = pass.images.len();
        let rows = if self.guidance_scale.is_some() { 2 * images } else { images };
        let latents = latents.narrow(0, pass.images.start, images)?.repeat((rows / images, 1, 1, 1))?;
        let timestep = Tensor::new(vec![timestep as f32; rows], self.transformer.device())?;
        let size = self.size.as_ref().map(|size| size.rows(rows)).transpose()?;
        let condition = self.condition.as_ref().filter(|_| controlled);
        let condition = condition.map(|condition| condition.rows(rows)).transpose()?;
        let text = &self.texts[pass.text];
        let prediction =
            self.transformer.forward_controlled(&latents, &timestep, text, size.as_ref(), condition.as_ref())?;
        let prediction = prediction.to_dtype(DType::F32)?;
        match self.guidance_scale {
            Some(scale) => {
                let unconditional = prediction.narrow(0, 0, images)?;
                let conditional = prediction.narrow(0, images, images)?;
                Ok((&unconditional + ((conditional - &unconditional)? * scale)?)?)
            }
            None => Ok(prediction),
        }
    }
}
