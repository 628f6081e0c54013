//! What the inside of a transformer is to know: what is where in the picture that it denoises. Where an inner stream has such
//! knowledge, a transformer learns to draw in fewer steps (Yu et al. 2025, "Representation Alignment for Generation"); here the
//! data gives it in place of another network.

use candle_core::{D, DType, Tensor};
use pixart_nn::NamedWeights;
use pixart_nn::ops::{Linear, layer_norm_modulate};

use crate::Result;

/// The last layer of a classifier of tokens.
pub(crate) struct LayoutLoss {
    head: Linear,
    classes: Vec<usize>,
    patch: usize,
}

impl LayoutLoss {
    /// For tokens `width` wide of `patch` × `patch` latent pixels, and maps of so many classes each.
    pub(crate) fn new(width: usize, patch: usize, classes: &[usize], weights: NamedWeights) -> Result<Self> {
        let outputs = patch * patch * classes.iter().sum::<usize>();
        Ok(Self { head: Linear::new(width, outputs, weights)?, classes: classes.to_vec(), patch })
    }

    /// What it makes of tokens `[batch, n, width]`: logits `[batch, n, patch² · classes]`, f32.
    pub(crate) fn logits(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(&normalised(tokens)?)?.to_dtype(DType::F32)?)
    }

    /// The cross-entropy, a scalar: on the average over latent pixels, the sum over maps. `tokens` is `[batch, n, width]`, `layout`
    /// `[batch, maps, height, width]`.
    pub(crate) fn loss(&self, tokens: &Tensor, layout: &Tensor) -> Result<Tensor> {
        let batch = tokens.dim(0)?;
        let (_, maps, rows, columns) = layout.dims4()?;
        let patch = self.patch;
        let cells = batch * rows * columns;
        let logits = self.logits(tokens)?.reshape((cells, ()))?;
        // By token, then by latent pixel in it, as the last layer has them.
        let layout = layout
            .reshape(&[batch, maps, rows / patch, patch, columns / patch, patch][..])?
            .permute(&[1, 0, 2, 4, 3, 5][..])?
            .reshape((maps, cells))?
            .to_dtype(DType::U32)?;
        let mut first = 0;
        let mut sum: Option<Tensor> = None;
        for (map, classes) in self.classes.iter().enumerate() {
            let logits = logits.narrow(1, first, *classes)?;
            first += classes;
            let largest = logits.max_keepdim(D::Minus1)?.detach();
            let logits = logits.broadcast_sub(&largest)?;
            let chosen = logits.gather(&layout.get(map)?.unsqueeze(1)?, 1)?;
            let entropy = (logits.exp()?.sum_keepdim(1)?.log()? - chosen)?.mean_all()?;
            sum = Some(match sum {
                Some(sum) => (sum + entropy)?,
                None => entropy,
            });
        }
        Ok(match sum {
            Some(sum) => sum,
            None => Tensor::zeros((), DType::F32, tokens.device())?,
        })
    }
}

/// Tokens `[batch, n, width]`, each with a mean of 0 and a variance of 1.
pub(super) fn normalised(tokens: &Tensor) -> Result<Tensor> {
    let (batch, _, width) = tokens.dims3()?;
    let zeros = Tensor::zeros((batch, 1, width), DType::F32, tokens.device())?.to_dtype(tokens.dtype())?;
    Ok(layer_norm_modulate(tokens, &zeros, &zeros, 1e-6, tokens.dtype())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Parameters, UniformFanIn};

    /// Against the definition, cell by cell.
    #[test]
    fn it_is_the_cross_entropy_of_each_latent_pixel() -> Result<()> {
        let parameters = Parameters::fresh(UniformFanIn { seed: 3 }, &Device::Cpu);
        let loss = LayoutLoss::new(6, 2, &[3, 2], parameters.builder(DType::F32))?;
        let tokens = Tensor::randn(0f32, 1.0, (1, 2, 6), &Device::Cpu)?;
        // Two rows and four columns of latent pixels: two tokens beside each other.
        let layout = [[[0f32, 1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 2.0]], [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]]];
        let found = loss.loss(&tokens, &Tensor::new(&[layout], &Device::Cpu)?)?.to_scalar::<f32>()?;

        let tokens = tokens.get(0)?.to_vec2::<f32>()?;
        let weight =
            parameters.all().iter().find(|(name, _)| name == "weight").map(|(_, weight)| weight.to_vec2::<f32>());
        let weight = weight.unwrap_or_else(|| Ok(vec![]))?;
        let mut expected = 0.0;
        for (token, xs) in tokens.iter().enumerate() {
            let mean = xs.iter().sum::<f32>() / 6.0;
            let deviation = (xs.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 6.0 + 1e-6).sqrt();
            let logit = |row: usize| weight[row].iter().zip(xs).map(|(w, x)| w * (x - mean) / deviation).sum::<f32>();
            for (pixel, (y, x)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
                for (map, range) in [0..3, 3..5].into_iter().enumerate() {
                    let class = layout[map][y][2 * token + x] as usize + range.start;
                    let total: f32 = range.map(|class| logit(5 * pixel + class).exp()).sum();
                    expected += total.ln() - logit(5 * pixel + class);
                }
            }
        }
        assert!((found - expected / 8.0).abs() < 1e-5, "{found}, not {}", expected / 8.0);
        Ok(())
    }
}
