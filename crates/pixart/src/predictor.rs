use candle_core::{DType, Tensor};
use pixart_nn::transformer::{Condition, PixArtTransformer, ProjectedText, SizeConditions};

use crate::plan::Plan;
use crate::{PromptEmbeds, Result};

/// The transformer with everything about a request that stays the same from step to step.
pub(crate) struct Predictor<'a> {
    transformer: &'a PixArtTransformer,
    /// For each prompt, its text (and before it the text to steer away from, where there is guidance).
    texts: Vec<ProjectedText>,
    size: Option<SizeConditions>,
    images_per_prompt: usize,
    guidance_scale: Option<f64>,
    /// What the ControlNet follows, where it does.
    condition: Option<Condition>,
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
        let project = |i| {
            let (embeds, mask) = text.row(i)?.guided()?;
            Ok(transformer.project_text(&embeds.to_device(device)?, Some(&mask.to_device(device)?))?)
        };
        let guidance_scale = plan.is_guided().then_some(plan.guidance_scale);
        let rows = if guidance_scale.is_some() { 2 } else { 1 };
        let (height, width) = plan.drawn;
        let condition = match control {
            Some((latents, scale)) => Some(transformer.condition(&latents.repeat((rows, 1, 1, 1))?, scale)?),
            None => None,
        };
        let size = transformer.config().has_size_conditions();
        Ok(Self {
            transformer,
            texts: (0..text.batch()).map(project).collect::<Result<_>>()?,
            size: size.then(|| SizeConditions::new(height, width, rows, device)).transpose()?,
            images_per_prompt,
            guidance_scale,
            condition,
        })
    }

    /// The network's prediction for latents `[images, channels, height, width]`, in f32. Images are taken one after
    /// another, each with its unguided twin, so that a pass takes the memory of one image, whatever their number. The
    /// ControlNet's condition is followed if the prediction is `controlled`.
    pub(crate) fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        with_variance: bool,
        controlled: bool,
    ) -> Result<Tensor> {
        let condition = self.condition.as_ref().filter(|_| controlled);
        let predict = |i| {
            let text = &self.texts[i / self.images_per_prompt];
            self.predict_one(&latents.narrow(0, i, 1)?, timestep, text, condition)
        };
        let predictions = (0..latents.dim(0)?).map(predict).collect::<Result<Vec<_>>>()?;
        let prediction = Tensor::cat(&predictions, 0)?;
        let (channels, predicted) = (latents.dim(1)?, prediction.dim(1)?);
        if predicted == 2 * channels && !with_variance {
            return Ok(prediction.narrow(1, 0, channels)?);
        }
        Ok(prediction)
    }

    fn predict_one(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &ProjectedText,
        condition: Option<&Condition>,
    ) -> Result<Tensor> {
        let rows = if self.guidance_scale.is_some() { 2 } else { 1 };
        let latents = latents.repeat((rows, 1, 1, 1))?;
        let timestep = Tensor::new(vec![timestep as f32; rows], self.transformer.device())?;
        let prediction =
            self.transformer.forward_controlled(&latents, &timestep, text, self.size.as_ref(), condition)?;
        let prediction = prediction.to_dtype(DType::F32)?;
        match self.guidance_scale {
            Some(scale) => {
                let (unconditional, conditional) = (prediction.narrow(0, 0, 1)?, prediction.narrow(0, 1, 1)?);
                Ok((&unconditional + ((conditional - &unconditional)? * scale)?)?)
            }
            None => Ok(prediction),
        }
    }
}
