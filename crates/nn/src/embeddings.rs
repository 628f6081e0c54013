//! Sinusoidal embeddings of scalars and of positions.

use crate::NamedWeights;
use candle_core::{DType, Device, Result, Tensor};

use crate::ops::{Activation, Linear};

/// Number of sinusoids that a timestep or a size condition becomes before it is projected.
const SINUSOIDS: usize = 256;

/// Embeds scalars as 128 cosines followed by 128 sines of frequencies 10000^(-i/128).
///
/// `values` is `[n]`, f32; the result is `[n, 256]`, f32. Source: Ho et al. 2020 as diffusers' `Timesteps` has it, with
/// the cosines first and no frequency shift.
pub fn sinusoids(values: &Tensor) -> Result<Tensor> {
    let half = SINUSOIDS / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| (-(10000f64.ln()) as f32 * i as f32 / half as f32).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), values.device())?;
    let angles = values.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], 1)
}

/// Linear–SiLU–Linear over [`sinusoids`]: how PixArt embeds a timestep, a height, a width or an aspect ratio.
#[derive(Debug, Clone)]
pub struct ScalarEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    dtype: DType,
}

impl ScalarEmbedding {
    /// Reads `linear_1` and `linear_2`; the embedding is `width` wide.
    pub fn new(width: usize, vb: NamedWeights) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(SINUSOIDS, width, vb.pp("linear_1"))?,
            linear_2: Linear::new(width, width, vb.pp("linear_2"))?,
            dtype: vb.dtype(),
        })
    }

    /// `[n]` scalars to `[n, width]`.
    pub fn forward(&self, values: &Tensor) -> Result<Tensor> {
        let sinusoids = sinusoids(values)?.to_dtype(self.dtype)?;
        self.linear_2.forward(&self.linear_1.forward_activated(&sinusoids, Activation::Silu)?)
    }
}

/// The fixed 2-D sine-cosine position embedding of a `height` × `width` grid of patches: `[1, height · width, width_out]`.
///
/// A coordinate is divided by `size / base_size`, so that any grid spans what the training grid spanned, and by
/// `interpolation_scale`. The first half of the channels encodes the column, the second half the row, each as sines
/// then cosines. Source: PixArt-α, section 2.3, and diffusers' `PatchEmbed`.
pub fn position_embedding(
    width_out: usize,
    (height, width): (usize, usize),
    base_size: usize,
    interpolation_scale: f64,
    device: &Device,
) -> Result<Tensor> {
    if !width_out.is_multiple_of(4) {
        candle_core::bail!("position embedding: a width of {width_out} is not divisible by 4");
    }
    let quarter = width_out / 4;
    let omega: Vec<f64> = (0..quarter).map(|i| 1.0 / 10000f64.powf(i as f64 / quarter as f64)).collect();
    // Coordinates are rounded to f32 after each division, as torch rounds them; the angles are f64.
    let coordinate = |i: usize, size: usize| {
        let scaled = i as f32 / (size as f64 / base_size as f64) as f32;
        (scaled / interpolation_scale as f32) as f64
    };
    // The embedding of a column is the same in every row and the other way round: only the sides are computed.
    let side = |size: usize| -> Vec<f32> {
        let angles = |i| omega.iter().map(move |omega| coordinate(i, size) * omega);
        (0..size).flat_map(|i| angles(i).map(f64::sin).chain(angles(i).map(f64::cos))).map(|x| x as f32).collect()
    };
    let half = width_out / 2;
    let columns = Tensor::from_vec(side(width), (1, width, half), device)?.broadcast_as((height, width, half))?;
    let rows = Tensor::from_vec(side(height), (height, 1, half), device)?.broadcast_as((height, width, half))?;
    Tensor::cat(&[columns, rows], 2)?.reshape((1, height * width, width_out))
}
