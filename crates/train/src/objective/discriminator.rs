//! A loss that tells sharp pictures from blurred ones (Sauer et al. 2024, "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion
//! Distillation"). Where a picture could become one thing or another, the least difference from what it is to be is the middle between them, which
//! is neither. A discriminator sees that no such pictures are in the data: by what a teacher, which knows what belongs to a caption, makes of
//! both inside, with noise added to both.

use candle_core::{DType, Tensor};
use pixart_nn::NamedWeights;
use pixart_nn::ops::{Activation, Linear};

use super::layout_loss::normalised;
use crate::Result;

/// The last layers of a network whose first blocks are a teacher's.
pub(crate) struct Discriminator {
    hidden: Linear,
    out: Linear,
}

impl Discriminator {
    /// For tokens `width` wide.
    pub(crate) fn new(width: usize, weights: NamedWeights) -> Result<Self> {
        Ok(Self {
            hidden: Linear::new(width, width, weights.pp("hidden"))?,
            out: Linear::new(width, 1, weights.pp("out"))?,
        })
    }

    /// How much each of the tokens `[batch, n, width]` speaks for the data: `[batch, n, 1]`, f32, positive where more does than not.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden.forward_activated(&normalised(tokens)?, Activation::GeluTanh)?;
        Ok(self.out.forward(&hidden)?.to_dtype(DType::F32)?)
    }

    /// What it is to learn, a scalar: logits above 1 for what is `real`, below −1 for all kinds of what is `wrong`, which together count as much
    /// (hinge loss).
    pub(crate) fn loss(&self, real: &Tensor, wrong: &[&Tensor]) -> Result<Tensor> {
        let missing = |logits: Tensor| -> Result<Tensor> { Ok((1.0 - logits)?.relu()?.mean_all()?) };
        let mut loss = missing(self.logits(real)?)?;
        for tokens in wrong {
            loss = (loss + (missing(self.logits(tokens)?.neg()?)? / wrong.len() as f64)?)?;
        }
        Ok(loss)
    }
}

/// How far apart the tokens `[batch, n, width]` of two pictures are, a scalar: the mean of the squared differences of what a discriminator's layers get of them
/// (Kang et al. 2024, "Distilling Diffusion Models into Conditional GANs", has such a loss by a network trained for it). A small difference in pixels
/// that makes another shape of a shape is a large one here.
pub(crate) fn feature_matching(tokens: &Tensor, target: &Tensor) -> Result<Tensor> {
    let difference = (normalised(tokens)? - normalised(&target.detach())?)?;
    Ok(difference.to_dtype(DType::F32)?.sqr()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Parameters, UniformFanIn};

    /// Each token counts whatever its mean and its size; the target is not told to change.
    #[test]
    fn features_match_by_what_they_say() -> Result<()> {
        let tokens = candle_core::Var::new(&[[[1f32, -1.0, 1.0, -1.0], [3.0, 1.0, 3.0, 1.0]]], &Device::Cpu)?;
        let same = ((tokens.as_tensor() * 5.0)? + 2.0)?;
        assert!(feature_matching(&tokens, &same)?.to_scalar::<f32>()? < 1e-6);
        // One token of two is the opposite, 2 away in each number.
        let target = candle_core::Var::new(&[[[1f32, -1.0, 1.0, -1.0], [1.0, 3.0, 1.0, 3.0]]], &Device::Cpu)?;
        let loss = feature_matching(&tokens, &target)?;
        assert!((loss.to_scalar::<f32>()? - 2.0).abs() < 1e-4, "{loss}");
        let gradients = loss.backward()?;
        assert!(gradients.get(&tokens).is_some() && gradients.get(&target).is_none());
        Ok(())
    }

    /// From logits of its own, by the definition, and downhill: after some steps along its gradient it tells two kinds of tokens apart.
    #[test]
    fn it_learns_to_tell_tokens_apart() -> Result<()> {
        let parameters = Parameters::fresh(UniformFanIn { seed: 3 }, &Device::Cpu);
        let discriminator = Discriminator::new(8, parameters.builder(DType::F32))?;
        let random = || Tensor::randn(0f32, 1.0, (4, 5, 8), &Device::Cpu);
        // Those of the data have larger numbers in their first half.
        let bias = Tensor::new(&[1f32, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], &Device::Cpu)?;
        let (real, drawn) = (random()?.broadcast_add(&bias)?, random()?.broadcast_sub(&bias)?);

        let numbers = |tokens: &Tensor| -> Result<Vec<f32>> {
            Ok(Discriminator::new(8, parameters.detached(DType::F32))?.logits(tokens)?.flatten_all()?.to_vec1()?)
        };
        let hinge = |numbers: Vec<f32>, sign: f32| {
            numbers.iter().map(|logit| (1.0 - sign * logit).max(0.0)).sum::<f32>() / numbers.len() as f32
        };
        let expected = hinge(numbers(&real)?, 1.0) + hinge(numbers(&drawn)?, -1.0);
        let first = discriminator.loss(&real, &[&drawn])?.to_scalar::<f32>()?;
        assert!((first - expected).abs() < 1e-5, "{first}, not {expected}");

        for _ in 0..200 {
            let loss = Discriminator::new(8, parameters.builder(DType::F32))?.loss(&real, &[&drawn])?;
            let gradients = loss.backward()?;
            for (_, variable) in parameters.all() {
                if let Some(gradient) = gradients.get(&variable) {
                    variable.set(&(variable.as_detached_tensor() - (gradient * 0.1)?)?)?;
                }
            }
        }
        let right = numbers(&real)?.iter().filter(|logit| **logit > 0.0).count()
            + numbers(&drawn)?.iter().filter(|logit| **logit < 0.0).count();
        assert!(right >= 38, "{right} of 40 right");
        Ok(())
    }
}
