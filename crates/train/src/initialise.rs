//! The values that new networks start from.

use crate::random::generator;

/// Of what a new encoder says at first: noise of 0.05 leaves colours legible, where noise of 1 lets whole channels of
/// latents die before they are used.
const FIRST_LOGVAR: f32 = -6.0;

/// Standard deviation of what a new text encoder adds to the scores of its attention for the distance of two words. T5 begins with
/// next to nothing; but which of two things is above the other is a matter of the order of words, and the few numbers that tell of
/// it move slowly. Where heads prefer some distances from the start, that is learned in two thousand steps, else not in ten thousand.
const FIRST_BIAS: f64 = 2.0;

/// Draws the first values of a network's weights.
pub trait Initialise: Send + Sync {
    /// The values of the weight `name`, row after row; the same whenever it is asked.
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32>;
}

/// Zeros everywhere, as the projections of a ControlNet have them at first.
#[derive(Debug, Clone, Copy)]
pub struct Zeros;

impl Initialise for Zeros {
    fn values(&self, _: &str, shape: &[usize]) -> Vec<f32> {
        vec![0.0; shape.iter().product()]
    }
}

/// Convolutions and linear layers as PyTorch makes them: uniform within `1/√(numbers that an output is made of)`, biases
/// zero, norms one. The last convolution of a residual block is zero, so that colours find their way through a new
/// autoencoder at once (Zhang et al. 2019, "Fixup Initialization").
#[derive(Debug, Clone, Copy)]
pub struct UniformFanIn {
    /// Another seed is another network.
    pub seed: u64,
}

impl Initialise for UniformFanIn {
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count: usize = shape.iter().product();
        if matches!(name, "quant_conv.weight" | "quant_conv.bias") {
            return self.moments(name, count);
        }
        match shape {
            [] | [_] if name.ends_with("bias") => vec![0.0; count],
            [] | [_] => vec![1.0; count],
            _ if name.contains("resnets.") && name.ends_with("conv2.weight") => vec![0.0; count],
            [_, fan_in @ ..] => {
                let bound = 1.0 / (fan_in.iter().product::<usize>() as f32).sqrt();
                let uniform = generator(self.seed, name, &[]).rand(count);
                uniform.into_iter().map(|x| (2.0 * x - 1.0) * bound).collect()
            }
        }
    }
}

impl UniformFanIn {
    /// The last layer of an autoencoder's encoder gives means as they come, and at first logarithms of variances that are
    /// [`FIRST_LOGVAR`] everywhere.
    fn moments(&self, name: &str, count: usize) -> Vec<f32> {
        // The rows of the means come first.
        let half = count / 2;
        if name.ends_with("bias") {
            return (0..count).map(|i| if i < half { 0.0 } else { FIRST_LOGVAR }).collect();
        }
        // Square, but for the two halves: [2 · channels, 2 · channels].
        let bound = 1.0 / (count as f32).sqrt().sqrt();
        let uniform = generator(self.seed, name, &[]).rand(count);
        uniform.iter().enumerate().map(|(i, x)| if i < half { (2.0 * x - 1.0) * bound } else { 0.0 }).collect()
    }
}

/// A transformer and its text encoder as PixArt and T5 make them: linear layers uniform by Glorot & Bengio (2010), embeddings
/// normal with a standard deviation of 0.02, the end of each cross-attention and the last layer zero, so that the first
/// prediction is zero and text has no say yet; T5's own scheme for the encoder (its products are not divided by the root
/// of their length). Names begin with the part's.
#[derive(Debug, Clone, Copy)]
pub struct PixArtInitialise {
    /// Another seed is another network.
    pub seed: u64,
    /// Width of a text embedding.
    pub d_model: usize,
    /// Width of a head of the text encoder.
    pub d_kv: usize,
}

impl Initialise for PixArtInitialise {
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let mut random = generator(self.seed, name, &[]);
        let mut normal = |std: f64| random.randn(count).into_iter().map(|x| x * std as f32).collect::<Vec<_>>();
        let root = |n: usize| (n.max(1) as f64).sqrt();
        let fan_in: usize = shape.iter().skip(1).product();
        let has = |part: &str| name.contains(part);
        if name.starts_with("text_encoder.") {
            return match shape {
                [_] => vec![1.0; count],
                _ if has("shared.") || has("embed_tokens.") => normal(1.0),
                _ if has("relative_attention_bias") => normal(FIRST_BIAS),
                // Queries bear the scale that the scores are not divided by.
                _ if has("SelfAttention.q.") => normal(1.0 / (root(fan_in) * root(self.d_kv))),
                _ => normal(1.0 / root(fan_in)),
            };
        }
        if name == "reader.places" {
            return normal(1.0);
        }
        if has("scale_shift_table") {
            return normal(1.0 / root(shape[1]));
        }
        if shape.len() < 2 || has("attn2.to_out") || name.ends_with("transformer.proj_out.weight") {
            return vec![0.0; count];
        }
        if has("adaln_single") || has("caption_projection") {
            return normal(0.02);
        }
        let bound = (6.0 / (fan_in + shape[0]) as f64).sqrt();
        random.rand(count).into_iter().map(|x| ((2.0 * f64::from(x) - 1.0) * bound) as f32).collect()
    }
}
