//! Networks that are trained along with a student, and tell it of its pictures.

use candle_core::DType;
use pixart_nn::recompute::Recomputation;
use pixart_nn::transformer::PixArtTransformer;
use pixart_weights::{Part, PipelineFolder};

use super::{Model, recomputing};
use crate::objective::discriminator::Discriminator;
use crate::objective::{DISCRIMINATOR, FAKE_SCORE};
use crate::{Parameters, Result, UniformFanIn};

impl Model {
    /// What tells pictures apart by tokens of the base: with gradients of its parameters, or with their present values and none.
    pub(crate) fn discriminator(&self, in_training: bool) -> Result<Discriminator> {
        let parameters = self.parameters.with_fresh(UniformFanIn { seed: self.seed });
        let weights = if in_training { parameters.builder(self.dtype) } else { parameters.detached(self.dtype) };
        Discriminator::new(self.config.width(), weights.pp(DISCRIMINATOR.trim_end_matches('.')))
    }

    /// What a score of the student's pictures gets its weights from, which begin as the base's.
    pub(crate) fn parameters_of_score(&self) -> Result<Parameters> {
        let weights = PipelineFolder::open(self.base_folder()?)?.weights(Part::Transformer, DType::F32)?;
        let parameters = self.parameters.with_stored(weights.below(FAKE_SCORE));
        // Asking for them makes them.
        self.score(&parameters, None)?;
        Ok(parameters)
    }

    /// The score as it is now, for a loss.
    pub(crate) fn score(
        &self,
        parameters: &Parameters,
        recomputation: Option<&Recomputation>,
    ) -> Result<PixArtTransformer> {
        let weights = parameters.builder(self.dtype).pp(FAKE_SCORE.trim_end_matches('.'));
        Ok(recomputing(self.transformer_of(weights)?, recomputation))
    }
}
