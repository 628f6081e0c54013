//! What a student is told of its pictures by networks that learn along with it: whether they are such as the data has, and where they are
//! likelier than the teacher's.

use candle_core::Tensor;
use pixart_diffusion::Generator;
use pixart_nn::recompute::Recomputation;
use pixart_nn::transformer::ProjectedText;

use super::consistency_loss::guided;
use super::discriminator::feature_matching;
use super::distribution_matching::distribution_matching;
use super::model::{Model, timesteps};
use super::told::Told;
use super::word_encoder::Text;
use super::{ConsistencyLoss, Sum};
use crate::features::Batch;
use crate::random::pick;
use crate::recipe::NOISE_FROM;
use crate::{AdversarialRecipe, DistributionMatchingRecipe, Parameters, Result};

/// The teacher, told the texts of a batch, and nothing where it guides.
pub(super) struct Teacher<'a> {
    pub with_text: Told<'a>,
    pub without: Option<Told<'a>>,
}

impl Teacher<'_> {
    /// The noise that it predicts with text and without.
    pub(super) fn noise(&self, z: &Tensor, ts: &[usize]) -> Result<[Tensor; 2]> {
        let Some(without) = &self.without else {
            return Err(candle_core::Error::Msg("the teacher has no way to guide".into()).into());
        };
        Ok([self.with_text.noise(z, ts)?, without.noise(z, ts)?])
    }
}

/// Pictures of the student's, and what they are looked at beside.
pub(super) struct Pictures<'a> {
    pub model: &'a Model,
    pub schedule: &'a ConsistencyLoss,
    pub batch: &'a Batch,
    pub text: &'a Text,
    pub teacher: &'a Teacher<'a>,
    /// Latents of the data.
    pub data: &'a Tensor,
    /// What the student drew; gradients go on to it where it learns.
    pub drawn: &'a Tensor,
    /// What it was to draw, if that is known.
    pub target: Option<&'a Tensor>,
    pub student_learns: bool,
}

impl Pictures<'_> {
    /// Adds what the student is told by a discriminator, and of what it is to be by the discriminator's eyes, and what the
    /// discriminator learns from its pictures and the data.
    pub(super) fn add_adversarial(
        &self,
        recipe: AdversarialRecipe,
        mut generator: Generator,
        sum: &mut Sum,
    ) -> Result<()> {
        let Told { network, text: of_text, .. } = &self.teacher.with_text;
        let images = self.data.dim(0)?;
        let size = self.model.size(self.batch.pixels, images)?;
        let ts: Vec<usize> = generator.rand(images).into_iter().map(|draw| pick(draw, recipe.noise_below)).collect();
        let mut more_noise = || generator.randn_tensor(self.data.shape(), self.data.device());
        let tokens = |latents: &Tensor, noise: &Tensor, text: &ProjectedText| -> Result<Tensor> {
            let noisy = self.schedule.add_noise(latents, noise, &ts)?;
            let ts = timesteps(&ts, latents.device())?;
            Ok(network.tokens_after(recipe.block, &noisy, &ts, text, size.as_ref())?)
        };
        let noise_of_drawn = more_noise()?;
        let real = tokens(self.data, &more_noise()?, of_text)?;
        let drawn = tokens(self.drawn, &noise_of_drawn, of_text)?;
        let mut of_another = || {
            let text = Told::new(self.model, self.batch, network, &self.text.rotated()?)?.text;
            tokens(self.data, &more_noise()?, &text)
        };
        let other = recipe.mismatched_captions.then(&mut of_another).transpose()?;
        // Each learns from the other as it is: the one's gradients do not reach the other's parameters.
        if self.student_learns {
            let verdict = self.model.discriminator(false)?.logits(&drawn)?.mean_all()?;
            sum.add("adversarial", verdict.neg()?, recipe.weight)?;
        }
        let seen = drawn.detach();
        let wrong = [&[&seen], other.as_ref().as_slice()].concat();
        sum.add("discriminator", self.model.discriminator(true)?.loss(&real, &wrong)?, 1.0)?;
        if let Some(target) = self.target.filter(|_| recipe.feature_matching > 0.0) {
            // The noise of both is the same, so that the difference is that of the pictures.
            let matching = feature_matching(&drawn, &tokens(target, &noise_of_drawn, of_text)?)?;
            sum.add("feature matching", matching, recipe.feature_matching)?;
        }
        Ok(())
    }

    /// Adds what moves the student's pictures to where there are more of the teacher's than of its own, and what the score of
    /// its own, which has these parameters, learns from them.
    pub(super) fn add_distribution_matching(
        &self,
        (recipe, score): (DistributionMatchingRecipe, &Parameters),
        mut generator: Generator,
        recomputation: Option<&Recomputation>,
        sum: &mut Sum,
    ) -> Result<()> {
        let pictures = self.drawn.detach();
        let draws = generator.rand(pictures.dim(0)?);
        let t = |draw| NOISE_FROM + pick(draw, recipe.noise_below - NOISE_FROM);
        let ts: Vec<usize> = draws.into_iter().map(t).collect();
        let added = generator.randn_tensor(pictures.shape(), pictures.device())?;
        let noisy = self.schedule.add_noise(&pictures, &added, &ts)?;
        let score = self.model.score(score, recomputation)?;
        let predicted = Told::new(self.model, self.batch, &score, self.text)?.noise(&noisy, &ts)?;
        if self.student_learns {
            let [conditional, unconditional] = self.teacher.noise(&noisy, &ts)?;
            let real = guided(&conditional, &unconditional, recipe.guidance_scale)?;
            let [real, fake] = [&real, &predicted.detach()].map(|noise| self.schedule.x0(&noisy, noise, &ts));
            let moved = distribution_matching(self.drawn, &real?, &fake?)?;
            sum.add("distribution matching", moved, recipe.weight)?;
        }
        sum.add("score", (predicted - added)?.sqr()?.mean_all()?, 1.0)
    }
}
