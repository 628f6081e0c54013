//! A new transformer that begins as one that was trained before, with patches as large or larger: what is where, and what words
//! mean, is learned in a fraction of the time on few tokens.

use std::path::Path;

use candle_core::{DType, Tensor};
use pixart_nn::transformer::TransformerConfig;
use pixart_weights::{Part, open_part};

use crate::{Error, Parameters, Result};

/// Gives the parameters below `prefix`, which a network of `config` has asked for, the values of the transformer at `folder`.
pub(super) fn begin_as(parameters: &Parameters, prefix: &str, config: &TransformerConfig, folder: &Path) -> Result<()> {
    let (coarse, weights) = open_part::<TransformerConfig>(folder, Part::Transformer, DType::F32)?;
    coarse.validate().map_err(|reason| Error::folder(folder, reason))?;
    let patches = (coarse.patch_size, config.patch_size);
    let alike = TransformerConfig {
        patch_size: config.patch_size,
        sample_size: config.sample_size,
        interpolation_scale: config.interpolation_scale,
        ..coarse
    };
    if alike != *config || !patches.0.is_multiple_of(patches.1) {
        let message = "only a transformer that differs in patch_size alone, by a whole factor, in sample_size and in \
                       interpolation_scale can be begun with";
        return Err(Error::folder(folder, message));
    }
    parameters.set_part(prefix, |name| finer(name, &weights.tensor(name, DType::F32, parameters.device())?, patches))
}

/// The weight `name` for patches of `to` latent pixels a side, of one for patches of `from`. A small patch becomes the token that a
/// large one would if each of its pixels stood there several times, and of what a token then says of those pixels it keeps
/// the mean.
fn finer(name: &str, weight: &Tensor, (from, to): (usize, usize)) -> Result<Tensor> {
    let times = from / to;
    Ok(match name {
        "pos_embed.proj.weight" => {
            let (width, channels, ..) = weight.dims4()?;
            weight.reshape(&[width, channels, to, times, to, times][..])?.sum((3, 5))?
        }
        "proj_out.weight" | "proj_out.bias" => {
            let rows = weight.dim(0)?;
            let kept = rows / (times * times);
            let means =
                weight.reshape(&[to, times, to, times, rows / (from * from), weight.elem_count() / rows][..])?;
            let mut shape = weight.dims().to_vec();
            shape[0] = kept;
            means.mean((1, 3))?.reshape(shape)?
        }
        _ => weight.clone(),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Module};
    use candle_nn::{Conv2d, Conv2dConfig, Linear};

    use super::*;

    /// Of a picture whose pixels come in equal squares: the tokens are those of the picture a quarter as large, and what they say of
    /// it is the mean of what they say of the squares.
    #[test]
    fn small_patches_begin_as_large_ones_of_repeated_pixels() -> Result<()> {
        let device = Device::Cpu;
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &device);
        let (width, channels, from) = (5, 3, 4);
        let embed = random(&[width, channels, from, from])?;
        let (out, bias) = (random(&[from * from * channels, width])?, random(&[from * from * channels])?);
        for to in [1, 2, 4] {
            let times = from / to;
            let small = random(&[1, channels, to, to])?;
            let large = small.upsample_nearest2d(from, from)?;
            let tokens = |xs: &Tensor, weight: Tensor, patch| -> Result<Tensor> {
                let config = Conv2dConfig { stride: patch, ..Conv2dConfig::default() };
                Ok(Conv2d::new(weight, None, config).forward(xs)?.flatten_all()?.unsqueeze(0)?)
            };
            let of_large = tokens(&large, embed.clone(), from)?;
            let of_small = tokens(&small, finer("pos_embed.proj.weight", &embed, (from, to))?, to)?;
            let difference = (&of_large - &of_small)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-4, "{to}: {difference}");

            let said = Linear::new(out.clone(), Some(bias.clone())).forward(&of_large)?;
            let squares = said.reshape(&[to, times, to, times, channels][..])?.mean((1, 3))?.flatten_all()?;
            let weights = [("proj_out.weight", &out), ("proj_out.bias", &bias)];
            let [weight, bias] = weights.map(|(name, weight)| finer(name, weight, (from, to)));
            let said = Linear::new(weight?, Some(bias?)).forward(&of_small)?.flatten_all()?;
            let difference = (said - squares)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-4, "{to}: {difference}");
        }
        Ok(())
    }
}
