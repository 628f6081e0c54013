//! One block of the transformer (PixArt-α, figure 4).

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::TransformerConfig;
use crate::ops::{LayerNorm, Linear, attention, gated_residual, gelu_tanh, layer_norm_modulate};

#[derive(Debug, Clone)]
pub(super) struct Block {
    self_attention: SelfAttention,
    pub(super) cross_attention: CrossAttention,
    feed_forward: [Linear; 2],
    /// `[6, width]`: this block's own part of shift, scale and gate, for attention and then for the MLP.
    scale_shift_table: Tensor,
    norm_eps: f64,
}

impl Block {
    pub(super) fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.width();
        let net = vb.pp("ff").pp("net");
        Ok(Self {
            self_attention: SelfAttention::new(config, vb.pp("attn1"))?,
            cross_attention: CrossAttention::new(config, vb.pp("attn2"))?,
            feed_forward: [
                Linear::new(width, 4 * width, net.pp(0).pp("proj"))?,
                Linear::new(4 * width, width, net.pp(2))?,
            ],
            scale_shift_table: vb.get((6, width), "scale_shift_table")?,
            norm_eps: config.norm_eps,
        })
    }

    pub(super) fn forward(
        &self,
        xs: &Tensor,
        modulation: &Tensor,
        keys_values: &(Tensor, Tensor),
        text_bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let table = self.scale_shift_table.unsqueeze(0)?.broadcast_add(modulation)?;
        let row = |i| table.narrow(1, i, 1);

        let normed = layer_norm_modulate(xs, &row(0)?, &row(1)?, self.norm_eps)?;
        let xs = gated_residual(xs, &row(2)?, &self.self_attention.forward(&normed)?)?;
        // Cross-attention has neither norm nor gate (PixArt-α, figure 4).
        let xs = (&xs + self.cross_attention.forward(&xs, keys_values, text_bias)?)?;
        let normed = layer_norm_modulate(&xs, &row(3)?, &row(4)?, self.norm_eps)?;
        let [linear_1, linear_2] = &self.feed_forward;
        let hidden = linear_2.forward(&gelu_tanh(&linear_1.forward(&normed)?)?)?;
        gated_residual(&xs, &row(5)?, &hidden)
    }
}

#[derive(Debug, Clone)]
struct SelfAttention {
    to_qkv: [Linear; 3],
    to_out: Linear,
    /// Norms of queries and keys, in the PixArt-Σ checkpoints that have them.
    norms: Option<[LayerNorm; 2]>,
    heads: usize,
    scale: f64,
}

impl SelfAttention {
    fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.width();
        let project = |name| Linear::with_bias(width, width, config.attention_bias, vb.pp(name));
        let norm = |name| LayerNorm::new(width, 1e-5, vb.pp(name));
        let has_norms = vb.contains_tensor("q_norm.weight");
        Ok(Self {
            to_qkv: [project("to_q")?, project("to_k")?, project("to_v")?],
            to_out: Linear::new(width, width, vb.pp("to_out").pp(0))?,
            norms: has_norms.then(|| Ok::<_, candle_core::Error>([norm("q_norm")?, norm("k_norm")?])).transpose()?,
            heads: config.num_attention_heads,
            scale: (config.attention_head_dim as f64).powf(-0.5),
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let [to_q, to_k, to_v] = &self.to_qkv;
        let (mut q, mut k, v) = (to_q.forward(xs)?, to_k.forward(xs)?, to_v.forward(xs)?);
        if let Some([q_norm, k_norm]) = &self.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        self.to_out.forward(&attention(&q, &k, &v, self.heads, self.scale, None)?)
    }
}

#[derive(Debug, Clone)]
pub(super) struct CrossAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    scale: f64,
}

impl CrossAttention {
    fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let width = config.width();
        let project = |name| Linear::with_bias(width, width, config.attention_bias, vb.pp(name));
        Ok(Self {
            to_q: project("to_q")?,
            to_k: project("to_k")?,
            to_v: project("to_v")?,
            to_out: Linear::new(width, width, vb.pp("to_out").pp(0))?,
            heads: config.num_attention_heads,
            scale: (config.attention_head_dim as f64).powf(-0.5),
        })
    }

    pub(super) fn keys_values(&self, text: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.to_k.forward(text)?, self.to_v.forward(text)?))
    }

    fn forward(&self, xs: &Tensor, (k, v): &(Tensor, Tensor), bias: Option<&Tensor>) -> Result<Tensor> {
        let q = self.to_q.forward(xs)?;
        self.to_out.forward(&attention(&q, k, v, self.heads, self.scale, bias)?)
    }
}
