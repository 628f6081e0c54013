//! The PixArt diffusion transformer (PixArt-α, Chen et al. 2023, section 2.3): a DiT with cross-attention to the text
//! and one shared adaptive layer norm ("adaLN-single").

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use crate::embeddings::{ScalarEmbedding, position_embedding};
use crate::ops::{Conv2d, LayerNorm, Linear, Padding, attention, gated_residual, gelu_tanh, layer_norm_modulate, silu};

/// Shape of a transformer: the fields of diffusers' `transformer/config.json` that decide what is computed.
///
/// The default is XL/2 for 1024 pixels: 28 layers, 16 heads of 72.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are diffusers'")]
pub struct TransformerConfig {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub in_channels: usize,
    pub out_channels: Option<usize>,
    pub num_layers: usize,
    pub cross_attention_dim: Option<usize>,
    pub attention_bias: bool,
    /// Native size in latent pixels (an eighth of the image's).
    pub sample_size: usize,
    pub patch_size: usize,
    pub activation_fn: String,
    pub norm_type: String,
    pub norm_elementwise_affine: bool,
    pub norm_eps: f64,
    pub interpolation_scale: Option<f64>,
    /// Whether the image's size and aspect ratio are inputs too; where it is absent, models of 128 latent pixels have it.
    pub use_additional_conditions: Option<bool>,
    pub attention_type: Option<String>,
    /// Width of the text embeddings.
    pub caption_channels: Option<usize>,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 72,
            in_channels: 4,
            out_channels: Some(8),
            num_layers: 28,
            cross_attention_dim: Some(1152),
            attention_bias: true,
            sample_size: 128,
            patch_size: 2,
            activation_fn: "gelu-approximate".into(),
            norm_type: "ada_norm_single".into(),
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            interpolation_scale: None,
            use_additional_conditions: None,
            attention_type: Some("default".into()),
            caption_channels: None,
        }
    }
}

impl TransformerConfig {
    /// Width of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the prediction: the noise and, in models that learned it, as many coefficients of the variance.
    pub fn channels_out(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Whether height, width and aspect ratio of the image are inputs.
    pub fn has_size_conditions(&self) -> bool {
        self.use_additional_conditions.unwrap_or(self.sample_size == 128)
    }

    fn interpolation_scale(&self) -> f64 {
        self.interpolation_scale.unwrap_or((self.sample_size / 64).max(1) as f64)
    }

    /// Refuses, naming the field, what this implementation does not compute.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let width = self.width();
        if self.norm_type != "ada_norm_single" {
            return Err(format!("norm_type is {:?}, only \"ada_norm_single\" is supported", self.norm_type));
        }
        if self.activation_fn != "gelu-approximate" {
            return Err(format!("activation_fn is {:?}, only \"gelu-approximate\" is supported", self.activation_fn));
        }
        if self.norm_elementwise_affine {
            return Err("norm_elementwise_affine is true, only false is supported".into());
        }
        if self.attention_type.as_deref().is_some_and(|kind| kind != "default") {
            return Err(format!("attention_type is {:?}, only \"default\" is supported", self.attention_type));
        }
        if self.caption_channels.is_none() {
            return Err("caption_channels is missing: this is no text-conditioned PixArt transformer".into());
        }
        if self.cross_attention_dim.is_none_or(|dim| dim != width) {
            return Err(format!("cross_attention_dim is {:?}, it must be {width}", self.cross_attention_dim));
        }
        if width == 0 || !width.is_multiple_of(4) || self.patch_size == 0 || self.sample_size < self.patch_size {
            return Err(format!("width {width}, patch_size {}, sample_size {}", self.patch_size, self.sample_size));
        }
        if self.has_size_conditions() && !width.is_multiple_of(3) {
            return Err(format!("use_additional_conditions needs a width divisible by 3, not {width}"));
        }
        Ok(())
    }
}

/// The size conditions of 1024-pixel models, one row an image.
#[derive(Debug, Clone)]
pub struct SizeConditions {
    /// `[batch, 2]`: height and width in pixels.
    pub resolution: Tensor,
    /// `[batch, 1]`: height divided by width.
    pub aspect_ratio: Tensor,
}

impl SizeConditions {
    /// The same `height` and `width`, in pixels, for all images of a batch.
    pub fn new(height: usize, width: usize, batch: usize, device: &Device) -> Result<Self> {
        let resolution = Tensor::new(&[[height as f32, width as f32]], device)?.repeat((batch, 1))?;
        let aspect_ratio = Tensor::new(&[[(height as f64 / width as f64) as f32]], device)?.repeat((batch, 1))?;
        Ok(Self { resolution, aspect_ratio })
    }
}

/// A batch of prompts as the transformer's blocks use it, computed once per image and not per step.
#[derive(Debug, Clone)]
pub struct ProjectedText {
    /// Keys and values of every block's cross-attention, `[batch, n, width]` each.
    keys_values: Vec<(Tensor, Tensor)>,
    /// `[batch, 1, 1, n]`, added to the scores: 0 for a token, -10000 for padding.
    bias: Option<Tensor>,
}

impl ProjectedText {
    /// Rows `start .. start + len` of the batch.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let rows = |xs: &Tensor| xs.narrow(0, start, len);
        Ok(Self {
            keys_values: self.keys_values.iter().map(|(k, v)| Ok((rows(k)?, rows(v)?))).collect::<Result<_>>()?,
            bias: self.bias.as_ref().map(rows).transpose()?,
        })
    }
}

/// The transformer: predicts the noise in latents.
#[derive(Debug, Clone)]
pub struct PixArtTransformer {
    config: TransformerConfig,
    patch_embedding: Conv2d,
    caption_projection: [Linear; 2],
    timestep_embedder: ScalarEmbedding,
    size_embedders: Option<SizeEmbedders>,
    adaln_single: Linear,
    blocks: Vec<Block>,
    /// `[2, width]`: shift and scale before the last layer.
    scale_shift_table: Tensor,
    proj_out: Linear,
    dtype: DType,
    device: Device,
}

impl PixArtTransformer {
    /// Reads the weights by diffusers' names. Errors: a config that [`TransformerConfig::validate`] refuses; a weight
    /// that is missing or has another shape.
    pub fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let (width, patch) = (config.width(), config.patch_size);
        let caption = vb.pp("caption_projection");
        let adaln = vb.pp("adaln_single");
        let blocks = (0..config.num_layers)
            .map(|i| Block::new(config, vb.pp("transformer_blocks").pp(i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            patch_embedding: Conv2d::new(
                config.in_channels,
                width,
                patch,
                patch,
                Padding::Same(0),
                vb.pp("pos_embed").pp("proj"),
            )?,
            caption_projection: [
                Linear::new(config.caption_channels.unwrap_or(width), width, caption.pp("linear_1"))?,
                Linear::new(width, width, caption.pp("linear_2"))?,
            ],
            timestep_embedder: ScalarEmbedding::new(width, adaln.pp("emb").pp("timestep_embedder"))?,
            size_embedders: config
                .has_size_conditions()
                .then(|| SizeEmbedders::new(width / 3, adaln.pp("emb")))
                .transpose()?,
            adaln_single: Linear::new(width, 6 * width, adaln.pp("linear"))?,
            blocks,
            scale_shift_table: vb.get((2, width), "scale_shift_table")?,
            proj_out: Linear::new(width, patch * patch * config.channels_out(), vb.pp("proj_out"))?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
        })
    }

    /// The config it was built from.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The dtype of its weights and of its computation.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Projects text embeddings `[batch, n, caption_channels]` once for all steps. `attention_mask` is `[batch, n]`, 1 for
    /// a token and 0 for padding; without it every token counts.
    pub fn project_text(&self, prompt_embeds: &Tensor, attention_mask: Option<&Tensor>) -> Result<ProjectedText> {
        let [linear_1, linear_2] = &self.caption_projection;
        let text = linear_2.forward(&gelu_tanh(&linear_1.forward(&prompt_embeds.to_dtype(self.dtype)?)?)?)?;
        let bias = match attention_mask {
            Some(mask) => {
                let bias = ((mask.to_dtype(DType::F32)? - 1.0)? * 10000.0)?;
                Some(bias.unsqueeze(1)?.unsqueeze(1)?)
            }
            None => None,
        };
        let keys_values =
            self.blocks.iter().map(|block| block.cross_attention.keys_values(&text)).collect::<Result<_>>()?;
        Ok(ProjectedText { keys_values, bias })
    }

    /// Predicts the noise in `latents` `[batch, in_channels, height, width]` at `timestep` `[batch]` (0..999, fractions
    /// allowed): `[batch, out_channels, height, width]` in the dtype of the weights. The first `in_channels` channels
    /// are the noise, the rest, where the model has them, the learned variance. Height and width must be divisible by
    /// the patch size; `size` must be given exactly where [`TransformerConfig::has_size_conditions`] says so.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &ProjectedText,
        size: Option<&SizeConditions>,
    ) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        let patch = self.config.patch_size;
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            candle_core::bail!("latents of {height}×{width} do not divide into patches of {patch}");
        }
        let grid = (height / patch, width / patch);
        let (modulation, embedded_timestep) = self.embed_timestep(timestep, size)?;
        let mut xs = self.embed_patches(latents, grid)?;
        for (block, keys_values) in self.blocks.iter().zip(&text.keys_values) {
            xs = block.forward(&xs, &modulation, keys_values, text.bias.as_ref())?;
        }
        self.predict(&xs, &embedded_timestep, grid)
    }

    /// Latents to tokens with their positions: `[batch, n, width]`.
    fn embed_patches(&self, latents: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let config = &self.config;
        let base_size = config.sample_size / config.patch_size;
        let positions =
            position_embedding(config.width(), grid, base_size, config.interpolation_scale(), &self.device)?;
        let tokens = self.patch_embedding.forward(&latents.to_dtype(self.dtype)?)?.flatten_from(2)?.transpose(1, 2)?;
        tokens.to_dtype(DType::F32)?.broadcast_add(&positions)?.to_dtype(self.dtype)
    }

    /// The shared modulation `[batch, 6, width]` of all blocks and the embedding `[batch, width]` it comes from.
    fn embed_timestep(&self, timestep: &Tensor, size: Option<&SizeConditions>) -> Result<(Tensor, Tensor)> {
        let embedded = self.timestep_embedder.forward(timestep)?;
        let embedded = match (&self.size_embedders, size) {
            (Some(embedders), Some(size)) => (embedded + embedders.forward(size)?)?,
            (None, None) => embedded,
            (Some(_), None) => candle_core::bail!("this transformer needs the image's size as a condition"),
            (None, Some(_)) => candle_core::bail!("this transformer takes no size conditions"),
        };
        let modulation = self.adaln_single.forward(&silu(&embedded)?)?;
        Ok((modulation.reshape(((), 6, self.config.width()))?, embedded))
    }

    /// The last layer: tokens back to an image.
    fn predict(&self, xs: &Tensor, embedded_timestep: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
        let table = self.scale_shift_table.unsqueeze(0)?.broadcast_add(&embedded_timestep.unsqueeze(1)?)?;
        let xs = layer_norm_modulate(xs, &table.narrow(1, 0, 1)?, &table.narrow(1, 1, 1)?, 1e-6)?;
        let patches = self.proj_out.forward(&xs)?;
        unpatchify(&patches, (rows, columns), self.config.patch_size, self.config.channels_out())
    }
}

/// Tokens `[batch, rows · columns, patch² · channels]` (a token's pixels by row, column, channel) to an image `[batch,
/// channels, rows · patch, columns · patch]`.
fn unpatchify(tokens: &Tensor, (rows, columns): (usize, usize), patch: usize, channels: usize) -> Result<Tensor> {
    tokens
        .reshape(&[tokens.dim(0)?, rows, columns, patch, patch, channels][..])?
        .permute(&[0, 5, 1, 3, 2, 4][..])?
        .reshape((tokens.dim(0)?, channels, rows * patch, columns * patch))
}

#[derive(Debug, Clone)]
struct SizeEmbedders {
    resolution: ScalarEmbedding,
    aspect_ratio: ScalarEmbedding,
}

impl SizeEmbedders {
    fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            resolution: ScalarEmbedding::new(width, vb.pp("resolution_embedder"))?,
            aspect_ratio: ScalarEmbedding::new(width, vb.pp("aspect_ratio_embedder"))?,
        })
    }

    /// Height, width and aspect ratio, a third of the width each: `[batch, width]`.
    fn forward(&self, size: &SizeConditions) -> Result<Tensor> {
        let batch = size.resolution.dim(0)?;
        let resolution = self.resolution.forward(&size.resolution.flatten_all()?)?.reshape((batch, ()))?;
        let aspect_ratio = self.aspect_ratio.forward(&size.aspect_ratio.flatten_all()?)?;
        Tensor::cat(&[resolution, aspect_ratio], D::Minus1)
    }
}

#[derive(Debug, Clone)]
struct Block {
    self_attention: SelfAttention,
    cross_attention: CrossAttention,
    feed_forward: [Linear; 2],
    /// `[6, width]`: this block's own part of shift, scale and gate, for attention and then for the MLP.
    scale_shift_table: Tensor,
    norm_eps: f64,
}

impl Block {
    fn new(config: &TransformerConfig, vb: VarBuilder) -> Result<Self> {
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

    fn forward(
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
struct CrossAttention {
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

    fn keys_values(&self, text: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.to_k.forward(text)?, self.to_v.forward(text)?))
    }

    fn forward(&self, xs: &Tensor, (k, v): &(Tensor, Tensor), bias: Option<&Tensor>) -> Result<Tensor> {
        let q = self.to_q.forward(xs)?;
        self.to_out.forward(&attention(&q, k, v, self.heads, self.scale, bias)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cutting an image into patches in the order the last layer writes them, then [`unpatchify`], gives the image back.
    #[test]
    fn unpatchify_undoes_patchify() -> Result<()> {
        for (rows, columns, patch, channels) in [(1, 1, 1, 1), (3, 5, 2, 8), (4, 2, 4, 3), (7, 1, 2, 4)] {
            let (height, width) = (rows * patch, columns * patch);
            let image = Tensor::randn(0f32, 1.0, (2, channels, height, width), &Device::Cpu)?;
            let pixels = image.permute((0, 2, 3, 1))?.contiguous()?;
            let mut patches = Vec::new();
            for row in 0..rows {
                for column in 0..columns {
                    let patch_pixels = pixels.narrow(1, row * patch, patch)?.narrow(2, column * patch, patch)?;
                    patches.push(patch_pixels.contiguous()?.reshape((2, 1, patch * patch * channels))?);
                }
            }
            let back = unpatchify(&Tensor::cat(&patches, 1)?, (rows, columns), patch, channels)?;
            assert_eq!(back.flatten_all()?.to_vec1::<f32>()?, image.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }
}
