//! Distillation into a model that needs few steps, or into a LoRA that makes one of its base.

use std::cmp::Reverse;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::RgbImage;
use pixart_diffusion::Generator;
use pixart_nn::transformer::{PixArtTransformer, ProjectedText, SizeConditions};

use super::data::{Data, Drawn};
use super::diffusion::draw_validation;
use super::discriminator::feature_matching;
use super::model::{Model, Trained, timesteps};
use super::word_encoder::Text;
use super::{ConsistencyInputs, ConsistencyLoss, Loss, Objective};
use crate::features::Batch;
use crate::random::{generator, pick};
use crate::{AdversarialRecipe, ConsistencyRecipe, Ema, Error, Footprint, Parameters, Recipe, Result, Sampling};

/// Distillation of a pipeline's transformer on features.
pub struct ConsistencyObjective {
    model: Model,
    /// Where it is asked.
    teacher: Option<PixArtTransformer>,
    target: Target,
    data: Data,
    loss: ConsistencyLoss,
    recipe: ConsistencyRecipe,
}

/// What the student is held to.
enum Target {
    /// Its own average.
    Average(Ema),
    /// Itself as it is, which is what a LoRA that learns slowly is.
    Student,
    /// Another that was distilled before.
    Other(Box<PixArtTransformer>),
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
        let teacher = (stage.settings.teacher_passes() > 0 || stage.adversarial.is_some())
            .then(|| model.base_transformer())
            .transpose()?;
        if let Some(AdversarialRecipe { block, .. }) = stage.adversarial {
            let blocks = model.config().num_layers;
            if block >= blocks {
                let message =
                    format!("stage.consistency.adversarial.block is {block}; the base has blocks 0 to {}", blocks - 1);
                return Err(Error::folder(&stage.base, message));
            }
            // Asking for its parameters makes them.
            model.discriminator(true)?;
        }
        let target = match (&stage.target, &stage.lora) {
            (Some(other), _) => Target::Other(Box::new(model.other_transformer(other)?)),
            (None, Some(_)) => Target::Student,
            (None, None) => Target::Average(Ema::new(&model.parameters)?),
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
            Target::Average(average) => self.model.transformer_of(average.builder(self.model.dtype())),
            Target::Student => self.model.detached_transformer(),
            Target::Other(other) => Ok((**other).clone()),
        }
    }

    /// What each image is renoised from, for the timesteps at `indices`: a picture of the student's own, drawn on a way, or one of the data,
    /// whose way has nothing in it. The longest ways come first, their timesteps with them.
    fn ways(&self, indices: Vec<usize>, generator: &mut Generator) -> (Vec<usize>, Vec<Vec<usize>>) {
        let mut draw = || generator.rand(1)[0];
        let mut ways: Vec<(usize, Vec<usize>)> = indices
            .into_iter()
            .map(|index| match f64::from(draw()) < self.recipe.settings.own_pictures {
                true => (index, self.loss.way_to(index, &mut draw)),
                false => (index, vec![]),
            })
            .collect();
        ways.sort_by_key(|(_, way)| Reverse(way.len()));
        ways.into_iter().unzip()
    }

    /// What the student is told of its picture by a discriminator, and of what it is to be by the discriminator's eyes, and what the discriminator
    /// learns from the picture and the data.
    fn adversarial_losses(
        &self,
        recipe: AdversarialRecipe,
        (data, drawn, target): (&Tensor, &Tensor, &Tensor),
        teacher: &PixArtTransformer,
        (text, of_text): (&Text, &ProjectedText),
        size: Option<&SizeConditions>,
        mut generator: Generator,
    ) -> Result<AdversarialLosses> {
        let images = data.dim(0)?;
        let ts: Vec<usize> = generator.rand(images).into_iter().map(|draw| pick(draw, recipe.noise_below)).collect();
        let mut noise =
            || -> Result<Tensor> { Ok(generator.randn_tensor(data.shape(), &Device::Cpu)?.to_device(data.device())?) };
        let tokens = |latents: &Tensor, noise: &Tensor, text: &ProjectedText| -> Result<Tensor> {
            let noisy = self.loss.add_noise(latents, noise, &ts)?;
            Ok(teacher.tokens_after(recipe.block, &noisy, &timesteps(&ts, latents.device())?, text, size)?)
        };
        let noise_of_drawn = noise()?;
        let (real, drawn) = (tokens(data, &noise()?, of_text)?, tokens(drawn, &noise_of_drawn, of_text)?);
        let of_another = || tokens(data, &noise()?, &project(teacher, &text.rotated()?)?);
        let other = recipe.mismatched_captions.then(of_another).transpose()?;
        // The noise of both is the same, so that the difference is that of the pictures.
        let from_target = || feature_matching(&drawn, &tokens(target, &noise_of_drawn, of_text)?);
        let feature_matching = (recipe.feature_matching > 0.0).then(from_target).transpose()?;
        // Each learns from the other as it is: the one's gradients do not reach the other's parameters.
        let verdict = self.model.discriminator(false)?.logits(&drawn)?.mean_all()?;
        let drawn = drawn.detach();
        let wrong = [&[&drawn], other.as_ref().as_slice()].concat();
        let discriminator = self.model.discriminator(true)?.loss(&real, &wrong)?;
        Ok(AdversarialLosses { student: verdict.neg()?, discriminator, feature_matching })
    }

    /// What the student, or its average if there is one, draws on the `ways`, and the `latents` where a way has nothing in it.
    fn own_pictures(
        &self,
        latents: &Tensor,
        ways: &[Vec<usize>],
        batch: &Batch,
        (target, text): (&PixArtTransformer, &Text),
        mut generator: Generator,
    ) -> Result<Tensor> {
        if ways.iter().all(Vec::is_empty) {
            return Ok(latents.clone());
        }
        let student = match self.target {
            Target::Average(_) | Target::Student => target.clone(),
            Target::Other(_) => self.model.detached_transformer()?,
        };
        let more_noise = || Ok(generator.randn_tensor(latents.shape(), &Device::Cpu)?.to_device(latents.device())?);
        self.loss.own_pictures(latents, ways, more_noise, |z, ts| {
            noise(&self.model, batch, &student, &project(&student, &text.first(ts.len())?)?, z, ts)
        })
    }
}

/// Losses of two that learn against each other, scalars.
struct AdversarialLosses {
    student: Tensor,
    discriminator: Tensor,
    /// Where it is asked.
    feature_matching: Option<Tensor>,
}

fn project(transformer: &PixArtTransformer, text: &Text) -> Result<ProjectedText> {
    Ok(transformer.project_text(&text.embeds, Some(&text.mask))?)
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
    let prediction =
        Model::predict(transformer, latents, ts, text, model.size(batch.pixels, ts.len())?.as_ref(), None)?;
    Ok(prediction.narrow(1, 0, latents.dim(1)?)?)
}

impl Objective for ConsistencyObjective {
    fn parameters(&self) -> &Parameters {
        &self.model.parameters
    }

    fn loss(&self, step: u64, part: usize, parts: usize) -> Result<Loss> {
        let Drawn { batch, draws: of_latents } = self.data.drawn(step, part, parts)?;
        let size = batch.captions.len();
        let (data, noises) = self.data.latents(&batch, &of_latents, self.model.scaling_factor)?;
        let stream = |purpose| generator(self.data.seed, purpose, &[step, part as u64]);
        let draws = stream("consistency").rand(2 * size);
        let indices: Vec<usize> = draws[..size].iter().map(|draw| self.loss.index(*draw)).collect();
        let (indices, ways) = self.ways(indices, &mut stream("own pictures"));
        let text = self
            .model
            .text(&batch, &self.data.features, |item, captions| Some(pick(draws[size + item], captions.len())))?;
        let (student, recomputation) = self.model.transformer_in_training()?;
        let target = self.target()?;
        let latents = self.own_pictures(&data, &ways, &batch, (&target, &text), stream("noise of own pictures"))?;
        let of_student = project(&student, &text)?;
        let of_target = project(&target, &text)?;
        let teacher = match &self.teacher {
            Some(teacher) => Some((teacher, project(teacher, &text)?)),
            None => None,
        };
        let of_nothing = match &self.teacher {
            Some(teacher) if self.recipe.settings.teacher_passes() > 0 => {
                Some(project(teacher, &self.model.text(&batch, &self.data.features, |_, _| None)?)?)
            }
            _ => None,
        };
        let inputs = ConsistencyInputs { latents: &latents, noise: &noises, indices: &indices };
        let terms = self.loss.terms(
            &inputs,
            |z, ts| noise(&self.model, &batch, &student, &of_student, z, ts),
            |z, ts| noise(&self.model, &batch, &target, &of_target, z, ts),
            |z, ts| {
                let (Some((teacher, of_text)), Some(of_nothing)) = (&teacher, &of_nothing) else {
                    return Err(candle_core::Error::Msg("there is no teacher to ask".into()).into());
                };
                Ok([
                    noise(&self.model, &batch, teacher, of_text, z, ts)?,
                    noise(&self.model, &batch, teacher, of_nothing, z, ts)?,
                ])
            },
        )?;
        let (Some(recipe), Some((teacher, of_text))) = (self.recipe.adversarial, &teacher) else {
            return Ok(Loss { total: terms.loss, terms: vec![], recomputation });
        };
        let losses = self.adversarial_losses(
            recipe,
            (&data, &terms.prediction, &terms.target),
            teacher,
            (&text, of_text),
            self.model.size(batch.pixels, size)?.as_ref(),
            stream("discriminator"),
        )?;
        let mut total = ((&terms.loss + (&losses.student * recipe.weight)?)? + &losses.discriminator)?;
        let mut shown =
            vec![("consistency", terms.loss), ("adversarial", losses.student), ("discriminator", losses.discriminator)];
        if let Some(matching) = losses.feature_matching {
            total = (total + (&matching * recipe.feature_matching)?)?;
            shown.push(("feature matching", matching));
        }
        Ok(Loss { total, terms: shown, recomputation })
    }

    fn step_done(&mut self) -> Result<()> {
        let decay = self.recipe.target_ema_decay;
        self.target_average_mut().map_or(Ok(()), |average| average.update(decay))
    }

    fn target_average(&self) -> Option<&Ema> {
        match &self.target {
            Target::Average(average) => Some(average),
            Target::Student | Target::Other(_) => None,
        }
    }

    fn target_average_mut(&mut self) -> Option<&mut Ema> {
        match &mut self.target {
            Target::Average(average) => Some(average),
            Target::Student | Target::Other(_) => None,
        }
    }

    fn footprint(&self) -> Result<Footprint> {
        let settings = &self.recipe.settings;
        let own = settings.own_pictures * self.loss.passes_to_own_pictures();
        // The target, and the teacher with and without text.
        let mut evaluations = 1.0 + own + 2.0 * settings.teacher_passes() as f64;
        if let Some(recipe) = self.recipe.adversarial {
            // Of pictures of the data, and of the student's, whose gradients go on to it.
            let others = u8::from(recipe.mismatched_captions) + u8::from(recipe.feature_matching > 0.0);
            evaluations +=
                (3.0 + f64::from(others)) * (recipe.block + 1) as f64 / self.model.config().num_layers as f64;
        }
        let (average, others) = match self.target {
            Target::Average(_) => (1, 0),
            Target::Student => (0, 0),
            Target::Other(_) => (0, 1),
        };
        let frozen = 1 + u64::from(self.teacher.is_some()) + others;
        let mut footprint = self.model.footprint(self.data.largest(), evaluations, frozen);
        footprint.frozen_bytes += average * 4 * footprint.trained;
        footprint.parameters += footprint.parameters - footprint.trained * (1 - average);
        Ok(footprint)
    }

    fn validate(&self) -> Result<RgbImage> {
        draw_validation(&self.model, &self.data.features, &self.recipe.validation)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)
    }
}
