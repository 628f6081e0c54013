//! Distribution matching distillation (Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation" and "Improved Distribution
//! Matching Distillation for Fast Image Synthesis"). What a picture becomes when noise is added to it and a network takes the noise out again
//! shows where such pictures are likely. A teacher knows that of the data, with guidance of pictures that are all that their captions say; a second
//! network, which learns along, of what the student draws. Where the two differ the student's pictures are moved: not to any one picture, as
//! in a comparison with a target, whose middle between several is blurred, but to where there are more of the teacher's than of its own.

use candle_core::{DType, Tensor};

use crate::Result;

/// Added to a distance that is divided by, in latents, whose standard deviation is 1.
const LEAST_DISTANCE: f64 = 1e-4;

/// A scalar whose gradient moves the student's pictures `drawn` from what became of them by its own score, `fake`, to what became of them by the
/// teacher's, `real`: for each picture, by the difference of the two in proportion to how far it is from the latter, so that all
/// amounts of noise count alike. All are `[batch, channels, height, width]`; only `drawn` gets a gradient.
pub(crate) fn distribution_matching(drawn: &Tensor, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    let [pictures, real, fake] = [drawn, real, fake].map(|xs| xs.to_dtype(DType::F32).map(|xs| xs.detach()));
    let (pictures, real, fake) = (pictures?, real?, fake?);
    let distance = ((&pictures - &real)?.abs()?.mean_keepdim((1, 2, 3))? + LEAST_DISTANCE)?;
    let moved = (pictures - (fake - real)?.broadcast_div(&distance)?)?;
    Ok(((drawn.to_dtype(DType::F32)? - moved)?.sqr()?.mean_all()? * 0.5)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// The gradient is the difference, by the mean distance of each picture from what the teacher makes of it; nothing else gets one.
    #[test]
    fn pictures_are_moved_from_their_own_score_to_the_teachers() -> Result<()> {
        let picture = |values: [[f32; 2]; 2]| -> Result<Var> {
            Ok(Var::from_tensor(&Tensor::new(&[[values]], &Device::Cpu)?.reshape((2, 1, 1, 2))?)?)
        };
        let all = || -> Result<[Var; 3]> {
            Ok([
                picture([[0.0, 2.0], [1.0, 1.0]])?,
                picture([[1.0, 1.0], [1.0, 5.0]])?,
                picture([[0.5, 3.0], [1.0, 3.0]])?,
            ])
        };
        let [drawn, real, fake] = all()?;
        let loss = distribution_matching(&drawn, &real, &fake)?;
        // Distances 1 and 2; four numbers in all.
        let expected = [-0.5f32, 2.0, 0.0, -1.0].map(|x| x / 4.0);
        let gradients = loss.backward()?;
        let found = gradients.get(&drawn).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3 * expected.abs().max(0.1), "{found}, not {expected}");
        }
        assert!(gradients.get(&real).is_none() && gradients.get(&fake).is_none());
        // Where both scores say the same, nothing is moved.
        let [drawn, real, _] = all()?;
        let loss = distribution_matching(&drawn, &real, &real)?;
        assert!(loss.to_scalar::<f32>()? == 0.0);
        Ok(())
    }
}
