//! Ordinary training: predict the noise, and how uncertain the step is.

use std::path::Path;

use candle_core::Device;
use image::RgbImage;
use pixart::{Control, Pipeline, Request, Seeds};
use pixart_nn::controlnet::ControlNetConfig;

use super::data::{Data, Drawn};
use super::hybrid_loss::{HybridLoss, TIMESTEPS, column};
use super::model::{Model, Trained};
use super::{Loss, Objective};
use crate::features::Features;
use crate::grid::grid;
use crate::random::{generator, pick};
use crate::{ControlNetRecipe, DiffusionRecipe, Error, Footprint, Parameters, Recipe, Result, Sampling};

/// Pictures of the validation grid.
pub(crate) const VALIDATION_PICTURES: usize = 8;

/// Training of a diffusion transformer on features, with its text encoder if both are new.
pub struct DiffusionObjective {
    model: Model,
    data: Data,
    recipe: DiffusionRecipe,
    losses: HybridLoss,
}

impl DiffusionObjective {
    /// As `stage` says.
    ///
    /// # Errors
    /// Features or a base model that are missing or do not belong together.
    pub fn new(recipe: &Recipe, stage: &DiffusionRecipe, features: &Path, device: &Device) -> Result<Self> {
        let data = Data::open(recipe, features, device)?;
        let model = match (&stage.new, &stage.base) {
            (Some(new), _) => Model::new(recipe, new, &data.features, device)?,
            (None, Some(base)) => {
                let trained = Trained::transformer(stage.lora.as_ref(), None);
                Model::of_base(recipe, base, trained, &data.features, device)?
            }
            (None, None) => return Err(Error::folder(features, "neither `new` nor `base` says what to train")),
        };
        if stage.layout.is_some() {
            let Some(classes) = &data.features.description().classes else {
                return Err(Error::folder(
                    features,
                    "does not say what is where, which stage.diffusion.layout asks for",
                ));
            };
            model.layout_loss(classes)?;
        }
        Ok(Self { model, data, recipe: stage.clone(), losses: HybridLoss::new() })
    }

    /// Of a ControlNet, as `stage` says.
    ///
    /// # Errors
    /// Features without conditions; as of [`DiffusionObjective::new`].
    pub fn of_controlnet(recipe: &Recipe, stage: &ControlNetRecipe, features: &Path, device: &Device) -> Result<Self> {
        let data = Data::open(recipe, features, device)?;
        if data.features.description().control.is_none() {
            return Err(Error::folder(features, "has no conditions; make it with `pixart features --control-type`"));
        }
        let trained =
            Trained::Control { config: ControlNetConfig { num_layers: stage.num_layers }, start: stage.start.clone() };
        let model = Model::of_base(recipe, &stage.base, trained, &data.features, device)?;
        Ok(Self { model, data, recipe: stage.diffusion(), losses: HybridLoss::new() })
    }
}

impl Objective for DiffusionObjective {
    fn parameters(&self) -> &Parameters {
        &self.model.parameters
    }

    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss> {
        let Drawn { batch, draws } = self.data.drawn(step, part, parts)?;
        let size = batch.captions.len();
        let (x0, noise) = self.data.latents(&batch, &draws, self.model.scaling_factor)?;
        let draws = generator(self.data.seed, "diffusion", &[step, part as u64]).rand(3 * size);
        let ts = match self.recipe.timesteps {
            Some(distribution) => {
                let normals = generator(self.data.seed, "timesteps", &[step, part as u64]).randn(size);
                normals.into_iter().map(|normal| distribution.timestep(normal)).collect()
            }
            None => draws[..size].iter().map(|draw| (draw * TIMESTEPS as f32) as usize).collect::<Vec<_>>(),
        };
        let text = self.model.text(&batch, &self.data.features, |item, captions| {
            let keeps = f64::from(draws[size + item]) >= self.recipe.text_dropout;
            keeps.then(|| pick(draws[2 * size + item], captions.len()))
        })?;
        let x_t = self.losses.add_noise(&x0, &noise, &ts)?;
        let recomputation = self.model.recomputation();
        let transformer = self.model.transformer_in_training(recomputation.as_ref())?;
        let text = transformer.project_text(&text.embeds, Some(&text.mask))?;
        let condition = self.model.condition(&transformer, &batch)?;
        let size = self.model.size(batch.pixels, batch.captions.len())?;
        let layout = self.recipe.layout.filter(|layout| layout.counts(step));
        let seen = layout.map(|layout| layout.block);
        let (output, tokens) =
            Model::predict_seen(&transformer, &x_t, &ts, &text, size.as_ref(), condition.as_ref(), seen)?;
        let losses = self.losses.losses(&output, &x_t, &x0, &noise, &ts)?;
        let weight = column(&ts, &self.data.device, |t| self.recipe.weight(self.losses.signal_to_noise(t)))?;
        let weighted = (&losses.mse * weight.flatten_all()?)?;
        let mut total = (weighted.mean_all()? + losses.vb.mean_all()?)?;
        let mut terms = vec![("mse", losses.mse.mean_all()?), ("vb", losses.vb.mean_all()?)];
        let classes = self.data.features.description().classes.as_ref();
        if let (Some(layout), Some(tokens), Some(classes)) = (layout, tokens, classes) {
            // Read here, since no other stage asks what is where, and this one only at first.
            let cells = self.data.features.layout(&self.data.items(step, part, parts))?;
            let loss = self.model.layout_loss(classes)?.loss(&tokens, &cells.to_device(&self.data.device)?)?;
            total = (total + (&loss * layout.weight)?)?;
            terms.push(("layout", loss));
        }
        Ok(Loss { total, terms, recomputation })
    }

    fn footprint(&self) -> Result<Footprint> {
        Ok(self.model.footprint(self.data.largest(), 0.0, 0))
    }

    fn validate(&self) -> Result<RgbImage> {
        draw_validation(&self.model, &self.data.features, &self.recipe.validation)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)
    }
}

/// Saves the networks for a moment, and draws with them as anyone would.
pub(crate) fn draw_validation(model: &Model, features: &Features, sampling: &Sampling) -> Result<RgbImage> {
    let folder = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
    model.save(folder.path())?;
    let mut pipeline = model.pipeline(folder.path()).open()?;
    if let Some(scheduler) = &sampling.scheduler {
        pipeline.use_scheduler(scheduler)?;
    }
    let prompts = match sampling.prompts.as_slice() {
        [] => features.captions().take(VALIDATION_PICTURES).filter_map(|captions| captions.first().cloned()).collect(),
        prompts => prompts.to_vec(),
    };
    let request = Request { steps: sampling.steps, guidance_scale: sampling.guidance_scale, ..Request::default() };
    if model.has_control() {
        return draw_controlled(&mut pipeline, features, &request, prompts);
    }
    let seeds = Seeds::PerImage((0..prompts.len() as u64).collect());
    let images = pipeline.generate(&Request { prompts, seeds, ..request })?.images;
    Ok(grid(&[images.into_iter().map(|image| image.pixels).collect()]))
}

/// The conditions of the first features, and below each what is drawn by it.
fn draw_controlled(
    pipeline: &mut Pipeline,
    features: &Features,
    request: &Request,
    prompts: Vec<String>,
) -> Result<RgbImage> {
    let factor = features.description().scaling_factor;
    let (mut maps, mut pictures) = (Vec::new(), Vec::new());
    for (index, prompt) in prompts.into_iter().enumerate().take(features.len()) {
        let Some(condition) = features.batch(&[index])?.condition else { continue };
        let map = pipeline.decode(&(condition * factor)?)?.remove(0);
        let (width, height) = map.dimensions();
        let request = Request {
            prompts: vec![prompt],
            seeds: Seeds::PerImage(vec![index as u64]),
            width: Some(width as usize),
            height: Some(height as usize),
            control: Some(Control::new(image::imageops::grayscale(&map))),
            ..request.clone()
        };
        pictures.extend(pipeline.generate(&request)?.images.into_iter().map(|image| image.pixels));
        maps.push(map);
    }
    Ok(grid(&[maps, pictures]))
}
