//! The encoder of T5 v1.1 (Raffel et al. 2020; v1.1: gated GELU, no biases, no tied output), PixArt's text encoder.

use crate::NamedWeights;
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::{Activation, Embedding, Linear, RmsNorm, Scores, self_attention};

/// Added to the score of a padded key, as transformers does it: the lowest f32.
const MASKED: f64 = f32::MIN as f64;

/// Shape of an encoder: the fields of transformers' `text_encoder/config.json` that decide what is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are transformers'")]
pub struct T5Config {
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_heads: usize,
    pub num_layers: usize,
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: usize,
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: usize,
    #[serde(default = "default_eps")]
    pub layer_norm_epsilon: f64,
    pub feed_forward_proj: String,
}

fn default_buckets() -> usize {
    32
}

fn default_max_distance() -> usize {
    128
}

fn default_eps() -> f64 {
    1e-6
}

impl T5Config {
    /// Refuses, naming the field, what this implementation does not compute.
    pub fn validate(&self) -> std::result::Result<(), String> {
        if self.feed_forward_proj != "gated-gelu" {
            return Err(format!(
                "feed_forward_proj is {:?}, only \"gated-gelu\" (T5 v1.1) is supported",
                self.feed_forward_proj
            ));
        }
        if [self.num_layers, self.num_heads, self.d_kv, self.d_model].contains(&0) {
            return Err("num_layers, num_heads, d_kv and d_model must be above 0".into());
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon >= 0.0) {
            return Err(format!("layer_norm_epsilon is {}", self.layer_norm_epsilon));
        }
        if self.relative_attention_num_buckets < 4 || !self.relative_attention_num_buckets.is_multiple_of(4) {
            return Err(format!("relative_attention_num_buckets is {}", self.relative_attention_num_buckets));
        }
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets / 4 {
            return Err(format!("relative_attention_max_distance is {}", self.relative_attention_max_distance));
        }
        Ok(())
    }
}

/// The encoder: token ids to one embedding a token.
#[derive(Debug, Clone)]
pub struct T5Encoder {
    embedding: Embedding,
    /// `[buckets, heads]`, shared by all blocks.
    relative_attention_bias: Tensor,
    blocks: Vec<Block>,
    final_layer_norm: RmsNorm,
    config: T5Config,
    /// The residual stream is f32 where the weights are f16, whose range T5's activations exceed.
    stream_dtype: DType,
}

impl T5Encoder {
    /// Reads the weights by transformers' names. Errors: a config that [`T5Config::validate`] refuses; a weight that is
    /// missing or has another shape.
    pub fn new(config: &T5Config, vb: NamedWeights) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let encoder = vb.pp("encoder");
        // Both names stand for the same tensor; a checkpoint holds either or both.
        let embedding = if vb.contains_tensor("shared.weight") { vb.pp("shared") } else { encoder.pp("embed_tokens") };
        let blocks = (0..config.num_layers)
            .map(|i| Block::new(config, encoder.pp("block").pp(i).pp("layer")))
            .collect::<Result<_>>()?;
        Ok(Self {
            embedding: Embedding::new(config.vocab_size, config.d_model, embedding)?,
            relative_attention_bias: encoder
                .pp("block.0.layer.0.SelfAttention.relative_attention_bias")
                .get((config.relative_attention_num_buckets, config.num_heads), "weight")?,
            blocks,
            final_layer_norm: RmsNorm::new(config.d_model, config.layer_norm_epsilon, encoder.pp("final_layer_norm"))?,
            config: config.clone(),
            stream_dtype: if vb.dtype() == DType::F16 { DType::F32 } else { vb.dtype() },
        })
    }

    /// `input_ids` `[batch, n]` (u32) and `attention_mask` `[batch, n]` (1 for a token, 0 for padding) to embeddings
    /// `[batch, n, d_model]`.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: &Tensor) -> Result<Tensor> {
        let (batch, n) = input_ids.dims2()?;
        let padding = ((1.0 - attention_mask.to_dtype(DType::F32)?)? * MASKED)?.reshape((batch, 1, 1, n))?;
        let bias = self.position_bias(n, input_ids.device())?.broadcast_add(&padding)?;
        let mut xs = self.embedding.forward(&input_ids.flatten_all()?)?;
        xs = xs.reshape((batch, n, self.config.d_model))?.to_dtype(self.stream_dtype)?;
        for block in &self.blocks {
            xs = block.forward(&xs, &bias)?;
        }
        self.final_layer_norm.forward(&xs)
    }

    /// `[1, heads, n, n]`, f32: the learned bias of each query-key distance.
    fn position_bias(&self, n: usize, device: &Device) -> Result<Tensor> {
        let config = &self.config;
        let bucket = |query: usize, key: usize| {
            relative_position_bucket(
                key as i64 - query as i64,
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
            )
        };
        let buckets: Vec<u32> = (0..n).flat_map(|query| (0..n).map(move |key| bucket(query, key))).collect();
        let buckets = Tensor::from_vec(buckets, n * n, device)?;
        let bias = self.relative_attention_bias.index_select(&buckets, 0)?.to_dtype(DType::F32)?;
        bias.reshape((n, n, config.num_heads))?.permute((2, 0, 1))?.unsqueeze(0)
    }
}

/// The bucket of a distance (key minus query): half of the buckets for each direction, of these half for exact
/// distances and half growing logarithmically up to `max_distance` (Raffel et al. 2020, section 2.1).
fn relative_position_bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
    let per_direction = buckets / 2;
    let exact = per_direction / 2;
    let offset = if distance > 0 { per_direction } else { 0 };
    let distance = distance.unsigned_abs() as usize;
    let bucket = if distance < exact {
        distance
    } else {
        // In f32, as torch computes it: the boundaries between buckets depend on the rounding.
        let position = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
        (exact + (position * (per_direction - exact) as f32) as usize).min(per_direction - 1)
    };
    (offset + bucket) as u32
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: RmsNorm,
    /// Queries, keys and values side by side.
    qkv: Linear,
    o: Linear,
    feed_forward_norm: RmsNorm,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
    heads: usize,
    dtype: DType,
}

impl Block {
    fn new(config: &T5Config, vb: NamedWeights) -> Result<Self> {
        let (width, inner, hidden) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let (attention, feed_forward) = (vb.pp("0.SelfAttention"), vb.pp("1.DenseReluDense"));
        let norm = |layer: usize| RmsNorm::new(width, config.layer_norm_epsilon, vb.pp(layer).pp("layer_norm"));
        // f16 holds the hidden layer but not the product that follows it; transformers keeps `wo` in f32 too.
        let wide =
            if vb.dtype() == DType::F16 { feed_forward.clone().set_dtype(DType::F32) } else { feed_forward.clone() };
        Ok(Self {
            attention_norm: norm(0)?,
            qkv: Linear::joined(width, inner, false, &["q", "k", "v"].map(|name| attention.pp(name)))?,
            o: Linear::with_bias(inner, width, false, attention.pp("o"))?,
            feed_forward_norm: norm(1)?,
            wi_0: Linear::with_bias(width, hidden, false, feed_forward.pp("wi_0"))?,
            wi_1: Linear::with_bias(width, hidden, false, feed_forward.pp("wi_1"))?,
            wo: Linear::with_bias(hidden, width, false, wide.pp("wo"))?,
            heads: config.num_heads,
            dtype: vb.dtype(),
        })
    }

    fn forward(&self, xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let stream = xs.dtype();
        let normed = self.attention_norm.forward(xs)?.to_dtype(self.dtype)?;
        let qkv = self.qkv.forward(&normed)?;
        // T5 does not scale its scores; the initialisation took care of it.
        let attended = self_attention(&qkv, Scores::new(self.heads, 1.0), Some(bias))?;
        let xs = self.o.forward_residual(&attended.to_dtype(stream)?, xs, None)?;
        let normed = self.feed_forward_norm.forward(&xs)?.to_dtype(self.dtype)?;
        let gate = self.wi_0.forward_activated(&normed, Activation::GeluTanh)?;
        let hidden = (gate * self.wi_1.forward(&normed)?)?;
        self.wo.forward_residual(&hidden.to_dtype(stream)?, &xs, None)
    }
}

#[cfg(test)]
mod tests {
    use super::relative_position_bucket;

    #[test]
    fn buckets_are_exact_then_logarithmic_then_capped() {
        let bucket = |distance| relative_position_bucket(distance, 32, 128);
        assert_eq!((0..8).map(|d| bucket(-d)).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(bucket(5), 16 + 5);
        assert_eq!((bucket(-127), bucket(-128), bucket(-5000)), (15, 15, 15));
        assert!((1..300).all(|d| bucket(-d) <= bucket(-d - 1) && bucket(d) == bucket(-d) + 16));
    }
}
