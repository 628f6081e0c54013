//! What a precision changes.

use candle_core::{D, DType, Tensor};
use image::RgbImage;

use crate::{Pipeline, PromptEmbeds, Request, Result};

/// How far a pipeline is from another one of the same model, whose numbers have more digits. Relative errors are those of all
/// numbers together: the norm of the difference by that of what is exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionErrors {
    /// The smallest cosine between the embeddings of a token.
    pub least_cosine: f64,
    /// Relative error of the latents that are drawn, where only the embeddings are less exact.
    pub text_encoder: f64,
    /// Where only the transformer is.
    pub transformer: f64,
    /// Where both are.
    pub both: f64,
    /// Peak signal-to-noise ratio in dB of the pictures that the autoencoder makes of the exact latents; infinite if they are the
    /// same.
    pub autoencoder_psnr: f64,
}

impl PrecisionErrors {
    /// Draws `request` with both pipelines, and with each from what the other has encoded.
    ///
    /// # Errors
    /// As of [`Pipeline::generate`]; pipelines of different models.
    pub fn between(exact: &mut Pipeline, rounded: &mut Pipeline, request: &Request) -> Result<Self> {
        let (exact_text, _) = exact.encode_request(request)?;
        let (rounded_text, _) = rounded.encode_request(request)?;
        let draw = |pipeline: &mut Pipeline, text: &PromptEmbeds| -> Result<Tensor> {
            let request = Request { prompt_embeds: Some(text.clone()), ..request.clone() };
            Ok(pipeline.generate(&request)?.latents)
        };
        let latents = draw(exact, &exact_text)?;
        Ok(Self {
            least_cosine: least_cosine(&exact_text, &rounded_text)?,
            text_encoder: relative_error(&draw(exact, &rounded_text)?, &latents)?,
            transformer: relative_error(&draw(rounded, &exact_text)?, &latents)?,
            both: relative_error(&draw(rounded, &rounded_text)?, &latents)?,
            autoencoder_psnr: psnr(&rounded.decode(&latents)?, &exact.decode(&latents)?),
        })
    }
}

fn relative_error(found: &Tensor, exact: &Tensor) -> Result<f64> {
    let squares = |xs: Tensor| -> Result<f64> { Ok(xs.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?) };
    let difference = (found.to_dtype(DType::F64)? - exact.to_dtype(DType::F64)?)?;
    Ok((squares(difference)? / squares(exact.clone())?).sqrt())
}

/// Of the tokens that count.
fn least_cosine(a: &PromptEmbeds, b: &PromptEmbeds) -> Result<f64> {
    let product = |a: &PromptEmbeds, b: &PromptEmbeds| -> Result<Tensor> {
        let (a, b) = (a.prompt_embeds.to_dtype(DType::F64)?, b.prompt_embeds.to_dtype(DType::F64)?);
        Ok((a * b)?.sum(D::Minus1)?)
    };
    let cosines = (product(a, b)? / (product(a, a)? * product(b, b)?)?.sqrt()?)?;
    let cosines = cosines.flatten_all()?.to_vec1::<f64>()?;
    let mask = a.prompt_attention_mask.flatten_all()?.to_vec1::<f32>()?;
    let counted = cosines.into_iter().zip(mask).filter(|(_, mask)| *mask > 0.0).map(|(cosine, _)| cosine);
    // One that is no number stays.
    Ok(counted.fold(1.0, |least, cosine| if cosine < least || cosine.is_nan() { cosine } else { least }))
}

fn psnr(found: &[RgbImage], exact: &[RgbImage]) -> f64 {
    let pairs = || found.iter().zip(exact).flat_map(|(found, exact)| found.as_raw().iter().zip(exact.as_raw()));
    let squares: f64 = pairs().map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * pairs().count() as f64 / squares).log10()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn errors_are_those_of_their_definitions() -> Result<()> {
        let exact = Tensor::new(&[[3f32, 0.0, 4.0]], &Device::Cpu)?;
        let found = Tensor::new(&[[3f32, 0.5, 4.0]], &Device::Cpu)?;
        assert!((relative_error(&found, &exact)? - 0.1).abs() < 1e-9);

        let embeds = |tokens: [[f32; 2]; 2]| -> Result<PromptEmbeds> {
            let mask = Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?;
            Ok(PromptEmbeds {
                prompt_embeds: Tensor::new(&[tokens], &Device::Cpu)?,
                prompt_attention_mask: mask,
                negative: None,
            })
        };
        // The second token does not count.
        let cosine = least_cosine(&embeds([[1.0, 0.0], [0.0, 1.0]])?, &embeds([[3.0, 4.0], [0.0, -1.0]])?)?;
        assert!((cosine - 0.6).abs() < 1e-9);

        let picture = |value: u8| vec![RgbImage::from_pixel(2, 2, image::Rgb([value; 3]))];
        assert!((psnr(&picture(10), &picture(35)) - 20.0 * (255f64 / 25.0).log10()).abs() < 1e-9);
        assert_eq!(psnr(&picture(10), &picture(10)), f64::INFINITY);
        Ok(())
    }
}
