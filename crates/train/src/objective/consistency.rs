//! Distillation into a model that needs few steps, or into a LoRA that makes one of its base.

use std::cmp::Reverse;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use pixart_diffusion::Generator;
use pixart_nn::transformer::PixArtTransformer;

use super::critics::{Pictures, Teacher};
use super::data::{Data, Drawn};
use super::diffusion::draw_validation;
use super::model::{Model, Trained};
use super::told::Told;
use super::word_encoder::Text;
use super::{ConsistencyInputs, ConsistencyLoss, Loss, Objective, Sum};
use crate::features::Batch;
use crate::random::{generator, pick};
use crate::{AdversarialRecipe, ConsistencyRecipe, Ema, Error, Footprint, Parameters, Recipe, Result, Sampling};

/// Distillation of a pipeline's transformer on features.
pub struct ConsistencyObjective {
    model: Model,
    /// Where it is asked.
    teacher: Option<PixArtTransformer>,
    /// Of the score of the student's pictures, where there is one.
    score: Option<Parameters>,
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
        let teacher = (stage.guides() || stage.adversarial.is_some()).then(|| model.base_transformer()).transpose()?;
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
        let score = stage.distribution_matching.map(|_| model.parameters_of_score()).transpose()?;
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
        Ok(Self { model, teacher, score, target, data, loss: ConsistencyLoss::new(stage.settings.clone())?, recipe })
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

    /// The teacher, told `text`, and nothing where it guides.
    fn told<'a>(&'a self, network: &'a PixArtTransformer, text: &Text, batch: &Batch) -> Result<Teacher<'a>> {
        let told = |text: &Text| Told::new(&self.model, batch, network, text);
        let nothing = || told(&self.model.text(batch, &self.data.features, |_, _| None)?);
        Ok(Teacher { with_text: told(text)?, without: self.recipe.guides().then(nothing).transpose()? })
    }

    /// What the student, or its average if there is one, draws on the `ways`, and the `latents` where a way has nothing in it.
    fn own_pictures(
        &self,
        latents: &Tensor,
        ways: &[Vec<usize>],
        batch: &Batch,
        text: &Text,
        mut generator: Generator,
    ) -> Result<Tensor> {
        if ways.iter().all(Vec::is_empty) {
            return Ok(latents.clone());
        }
        let student = match self.target {
            Target::Average(_) => self.target()?,
            Target::Student | Target::Other(_) => self.model.detached_transformer()?,
        };
        let more_noise = || Ok(generator.randn_tensor(latents.shape(), latents.device())?);
        self.loss.own_pictures(latents, ways, more_noise, |z, ts| {
            Told::new(&self.model, batch, &student, &text.first(ts.len())?)?.noise(z, ts)
        })
    }
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
        let latents = self.own_pictures(&data, &ways, &batch, &text, stream("noise of own pictures"))?;
        let teacher = self.teacher.as_ref().map(|network| self.told(network, &text, &batch)).transpose()?;
        let student_learns = step > self.recipe.student_after;
        let recomputation = self.model.recomputation();
        let student = match student_learns {
            true => self.model.transformer_in_training(recomputation.as_ref())?,
            false => self.model.detached_transformer()?,
        };
        let student = Told::new(&self.model, &batch, &student, &text)?;
        let inputs = ConsistencyInputs { latents: &latents, noise: &noises, indices: &indices };

        let mut sum = Sum::default();
        let (drawn, aim) = match student_learns && self.recipe.weight > 0.0 {
            true => {
                let target = self.target()?;
                let target = Told::new(&self.model, &batch, &target, &text)?;
                let terms = self.loss.terms(
                    &inputs,
                    |z, ts| student.noise(z, ts),
                    |z, ts| target.noise(z, ts),
                    |z, ts| match &teacher {
                        Some(teacher) => teacher.noise(z, ts),
                        None => Err(candle_core::Error::Msg("there is no teacher to ask".into()).into()),
                    },
                )?;
                sum.add("consistency", terms.loss, self.recipe.weight)?;
                (terms.prediction, Some(terms.target))
            }
            false => (self.loss.prediction(&inputs, |z, ts| student.noise(z, ts))?, None),
        };
        let critics = self.recipe.adversarial.is_some() || self.score.is_some();
        let Some(teacher) = teacher.as_ref().filter(|_| critics) else {
            return Ok(Loss { terms: vec![], ..sum.into_loss(recomputation)? });
        };
        let pictures = Pictures {
            model: &self.model,
            schedule: &self.loss,
            batch: &batch,
            text: &text,
            teacher,
            data: &data,
            drawn: &drawn,
            target: aim.as_ref(),
            student_learns,
        };
        if let Some(recipe) = self.recipe.adversarial {
            pictures.add_adversarial(recipe, stream("discriminator"), &mut sum)?;
        }
        if let (Some(recipe), Some(score)) = (self.recipe.distribution_matching, &self.score) {
            let generator = stream("distribution matching");
            pictures.add_distribution_matching((recipe, score), generator, recomputation.as_ref(), &mut sum)?;
        }
        sum.into_loss(recomputation)
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
        let ConsistencyRecipe { settings, weight, adversarial, distribution_matching, .. } = &self.recipe;
        let mut evaluations = settings.own_pictures * self.loss.passes_to_own_pictures();
        if *weight > 0.0 {
            // The target, and the teacher with and without text.
            evaluations += 1.0 + 2.0 * settings.teacher_passes() as f64;
        }
        if let Some(recipe) = adversarial {
            // Of pictures of the data, and of the student's, whose gradients go on to it.
            let others = u8::from(recipe.mismatched_captions) + u8::from(recipe.feature_matching > 0.0);
            evaluations +=
                (3.0 + f64::from(others)) * (recipe.block + 1) as f64 / self.model.config().num_layers as f64;
        }
        if distribution_matching.is_some() {
            // The teacher twice; the score learns as the student does.
            evaluations += 2.0 + self.model.passes_of_training();
        }
        let other = matches!(self.target, Target::Other(_));
        // A score in another dtype than its parameters' is made anew for each step.
        let copied = distribution_matching.is_some() && self.model.dtype() != DType::F32;
        let frozen = 1 + [self.teacher.is_some(), other, copied].map(u64::from).iter().sum::<u64>();
        let mut footprint = self.model.footprint(self.data.largest(), evaluations, frozen);
        if let Target::Average(_) = self.target {
            footprint.frozen_bytes += 4 * self.model.transformer_count();
        }
        if distribution_matching.is_some() {
            // Its pass is kept for a backward pass as well.
            footprint.bytes_per_picture *= 2;
        }
        if let Some(recipe) = adversarial {
            footprint.bytes_per_picture += self.model.kept_by_blocks(recipe.block + 1, self.data.largest());
        }
        let networks = u64::from(self.teacher.is_some()) + u64::from(other);
        footprint.parameters += networks * self.model.transformer_count();
        Ok(footprint)
    }

    fn validate(&self) -> Result<RgbImage> {
        draw_validation(&self.model, &self.data.features, &self.recipe.validation)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)
    }
}
