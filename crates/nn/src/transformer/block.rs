//! One block of the transformer (PixArt-α, figure 4).

use crate::NamedWeights;
use candle_core::{DType, Result, Tensor};

use super::TransformerConfig;
use crate::ops::{
    Activation, LayerNorm, Linear, Scores, attention, cross_attention, layer_norm_modulate, self_attention,
};

/// The dtype of the residual stream and of all that is small, whatever the weights are: sums of many layers then keep their digits, at
/// little cost beside the products.
pub(super) const STREAM: DType = DType::F32;

#[derive(Debug, Clone)]
pub(crate) struct Block {
    self_attention: SelfAttention,
    pub(crate) cross_attention: CrossAttention,
    feed_forward: [Linear; 2],
    /// `[6, width]`: this block's own part of shift, scale and gate, for attention and then for the MLP.
    scale_shift_table: Tensor,
    norm_eps: f64,
    dtype: DType,
}

impl Block {
    pub(crate) fn new(config: &TransformerConfig, vb: NamedWeights) -> Result<Self> {
        let width = config.width();
        let net = vb.pp("ff").pp("net");
        Ok(Self {
            self_attention: SelfAttention::new(config, vb.pp("attn1"))?,
            cross_attention: CrossAttention::new(config, vb.pp("attn2"))?,
            feed_forward: [
                Linear::new(width, 4 * width, net.pp(0).pp("proj"))?,
                Linear::new(4 * width, width, net.pp(2))?,
            ],
            scale_shift_table: vb.clone().set_dtype(STREAM).get((6, width), "scale_shift_table")?,
            norm_eps: config.norm_eps,
            dtype: vb.dtype(),
        })
    }

    /// `xs`, `[batch, n, width]`, and `modulation`, `[batch, 6, width]`, are in [`STREAM`]; so is the result.
    pub(super) fn forward(
        &self,
        xs: &Tensor,
        modulation: &Tensor,
        keys_values: &Tensor,
        text_bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let table = self.scale_shift_table.unsqueeze(0)?.broadcast_add(modulation)?;
        let row = |i| table.narrow(1, i, 1);

        let normed = layer_norm_modulate(xs, &row(0)?, &row(1)?, self.norm_eps, self.dtype)?;
        let xs = self.self_attention.forward(&normed, xs, &row(2)?)?;
        // Cross-attention has neither norm nor gate (PixArt-α, figure 4).
        let xs = self.cross_attention.forward(&xs, keys_values, text_bias)?;
        let normed = layer_norm_modulate(&xs, &row(3)?, &row(4)?, self.norm_eps, self.dtype)?;
        let [linear_1, linear_2] = &self.feed_forward;
        let hidden = linear_1.forward_activated(&normed, Activation::GeluTanh)?;
        linear_2.forward_residual(&hidden, &xs, Some(&row(5)?))
    }
}

/// Scores are rounded where the maps to queries and keys round what they are given: it is the same arithmetic, with the same
/// loss.
fn scores(config: &TransformerConfig, rounded: bool) -> Scores {
    let scale = (config.attention_head_dim as f64).powf(-0.5);
    Scores { rounded, ..Scores::new(config.num_attention_heads, scale) }
}

#[derive(Debug, Clone)]
struct SelfAttention {
    /// Queries, keys and values side by side.
    to_qkv: Linear,
    to_out: Linear,
    /// Norms of queries and keys, in the PixArt-Σ checkpoints that have them.
    norms: Option<[LayerNorm; 2]>,
    scores: Scores,
}

impl SelfAttention {
    fn new(config: &TransformerConfig, vb: NamedWeights) -> Result<Self> {
        let width = config.width();
        let names = ["to_q", "to_k", "to_v"].map(|name| vb.pp(name));
        let norm = |name| LayerNorm::new(width, 1e-5, vb.pp(name));
        let has_norms = vb.contains_tensor("q_norm.weight");
        let to_qkv = Linear::joined(width, width, config.attention_bias, &names)?;
        Ok(Self {
            scores: scores(config, to_qkv.rounds_inputs()),
            to_qkv,
            to_out: Linear::new(width, width, vb.pp("to_out").pp(0))?,
            norms: has_norms.then(|| Ok::<_, candle_core::Error>([norm("q_norm")?, norm("k_norm")?])).transpose()?,
        })
    }

    /// `residual + gate · attention(xs)`.
    fn forward(&self, xs: &Tensor, residual: &Tensor, gate: &Tensor) -> Result<Tensor> {
        let qkv = self.to_qkv.forward(xs)?;
        let attended = match &self.norms {
            None => self_attention(&qkv, self.scores, None)?,
            Some([q_norm, k_norm]) => {
                let width = qkv.dim(2)? / 3;
                let part = |i: usize| qkv.narrow(2, i * width, width);
                let (q, k) = (q_norm.forward(&part(0)?)?, k_norm.forward(&part(1)?)?);
                attention(&q, &k, &part(2)?, self.scores, None)?
            }
        };
        self.to_out.forward_residual(&attended, residual, Some(gate))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct CrossAttention {
    to_q: Linear,
    /// Keys and values side by side.
    to_kv: Linear,
    to_out: Linear,
    scores: Scores,
}

impl CrossAttention {
    fn new(config: &TransformerConfig, vb: NamedWeights) -> Result<Self> {
        let width = config.width();
        let bias = config.attention_bias;
        let to_q = Linear::with_bias(width, width, bias, vb.pp("to_q"))?;
        Ok(Self {
            scores: scores(config, to_q.rounds_inputs()),
            to_q,
            to_kv: Linear::joined(width, width, bias, &[vb.pp("to_k"), vb.pp("to_v")])?,
            to_out: Linear::new(width, width, vb.pp("to_out").pp(0))?,
        })
    }

    /// Keys and values of a text, side by side: `[batch, n, 2 · width]`.
    pub(crate) fn keys_values(&self, text: &Tensor) -> Result<Tensor> {
        self.to_kv.forward(text)
    }

    /// `xs + attention(xs, text)`.
    fn forward(&self, xs: &Tensor, keys_values: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let q = self.to_q.forward_in(xs, keys_values.dtype())?;
        let attended = cross_attention(&q, keys_values, self.scores, bias)?;
        self.to_out.forward_residual(&attended, xs, None)
    }
}
