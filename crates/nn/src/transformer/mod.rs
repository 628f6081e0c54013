//! The PixArt diffusion transformer (PixArt-α, Chen et al. 2023, section 2.3): a DiT with cross-attention to the text
//! and one shared adaptive layer norm ("adaLN-single").

mod block;
mod config;

pub(crate) use block::Block;
pub use config::TransformerConfig;

use crate::NamedWeights;
use candle_core::{D, DType, Device, Result, Tensor};

use crate::controlnet::ControlNet;
use crate::embeddings::{ScalarEmbedding, position_embedding};
use crate::ops::{Activation, Conv2d, Linear, Padding, image_to_tokens, layer_norm_modulate, silu};
use crate::recompute::Recomputation;
use block::STREAM;

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

    /// The first `count` images.
    pub fn rows(&self, count: usize) -> Result<Self> {
        Ok(Self {
            resolution: self.resolution.narrow(0, 0, count)?,
            aspect_ratio: self.aspect_ratio.narrow(0, 0, count)?,
        })
    }
}

/// A batch of prompts as the transformer's blocks use it, computed once per image and not per step.
#[derive(Debug, Clone)]
pub struct ProjectedText {
    /// Keys and values of every block's cross-attention, side by side: `[batch, n, 2 · width]` each.
    keys_values: Vec<Tensor>,
    /// The same of a ControlNet's copies.
    control_keys_values: Vec<Tensor>,
    /// `[batch, 1, 1, n]`, added to the scores: 0 for a token, -10000 for padding.
    bias: Option<Tensor>,
}

impl ProjectedText {
    /// Rows `start .. start + len` of the batch.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let rows = |xs: &Tensor| xs.narrow(0, start, len);
        Ok(Self {
            keys_values: self.keys_values.iter().map(rows).collect::<Result<_>>()?,
            control_keys_values: self.control_keys_values.iter().map(rows).collect::<Result<_>>()?,
            bias: self.bias.as_ref().map(rows).transpose()?,
        })
    }
}

/// What a ControlNet is to follow, as its blocks use it; the same for every step.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Tokens with their positions, `[batch, n, width]`.
    tokens: Tensor,
    /// `[batch, 1, width]`: what corrections are multiplied with, if not with 1.
    scale: Option<Tensor>,
}

impl Condition {
    /// The first `count` images of the batch.
    pub fn rows(&self, count: usize) -> Result<Self> {
        let rows = |xs: &Tensor| xs.narrow(0, 0, count);
        Ok(Self { tokens: rows(&self.tokens)?, scale: self.scale.as_ref().map(rows).transpose()? })
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
    control: Option<ControlNet>,
    /// `[2, width]`: shift and scale before the last layer.
    scale_shift_table: Tensor,
    proj_out: Linear,
    /// Where recomputed blocks leave their gradients.
    recomputation: Option<Recomputation>,
    dtype: DType,
    device: Device,
}

/// What is added to the scores of tokens, for a mask `[batch, n]`: `[batch, 1, 1, n]`, f32, 0 where the mask is 1, -10000 where it
/// is 0.
pub fn padding_bias(attention_mask: &Tensor) -> Result<Tensor> {
    let bias = ((attention_mask.to_dtype(DType::F32)? - 1.0)? * 10000.0)?;
    bias.unsqueeze(1)?.unsqueeze(1)
}

impl PixArtTransformer {
    /// Reads the weights by diffusers' names. Errors: a config that [`TransformerConfig::validate`] refuses; a weight
    /// that is missing or has another shape.
    pub fn new(config: &TransformerConfig, vb: NamedWeights) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let (width, patch) = (config.width(), config.patch_size);
        let caption = vb.pp("caption_projection");
        // The first and the last layer and the modulation cost next to nothing, and their rounding is seen most: a step of
        // an LCM enlarges that of the last one up to 14 times.
        let small = vb.clone().set_dtype(STREAM);
        let adaln = small.pp("adaln_single");
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
                small.pp("pos_embed").pp("proj"),
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
            scale_shift_table: small.get((2, width), "scale_shift_table")?,
            proj_out: Linear::new(width, patch * patch * config.channels_out(), small.pp("proj_out"))?,
            control: None,
            recomputation: None,
            dtype: vb.dtype(),
            device: vb.device().clone(),
            config: config.clone(),
        })
    }

    /// Forgets what is computed inside of blocks, and computes it again in a backward pass: the memory of one block is
    /// needed in place of all, for a third more work. The gradients of the blocks' parameters go to `recomputation`.
    pub fn recomputing(mut self, recomputation: &Recomputation) -> Self {
        self.recomputation = Some(recomputation.clone());
        self
    }

    /// Lets `control` correct what goes into its blocks, wherever a [`Condition`] is given.
    ///
    /// # Errors
    /// More copies than it has blocks after the first.
    pub fn with_control(mut self, control: ControlNet) -> Result<Self> {
        if control.num_layers() >= self.blocks.len() {
            candle_core::bail!("{} copied blocks for a transformer of {}", control.num_layers(), self.blocks.len());
        }
        self.control = Some(control);
        Ok(self)
    }

    /// Whether a ControlNet is attached.
    pub fn has_control(&self) -> bool {
        self.control.is_some()
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
        let prompt_embeds = prompt_embeds.to_dtype(self.dtype)?;
        let text = linear_2.forward(&linear_1.forward_activated(&prompt_embeds, Activation::GeluTanh)?)?;
        let bias = attention_mask.map(padding_bias).transpose()?;
        let keys_values =
            self.blocks.iter().map(|block| block.cross_attention.keys_values(&text)).collect::<Result<_>>()?;
        let control_keys_values = match &self.control {
            Some(control) => control.keys_values(&text)?,
            None => vec![],
        };
        Ok(ProjectedText { keys_values, control_keys_values, bias })
    }

    /// A condition of `latents`, `[batch, in_channels, height, width]`, of the condition image, scaled as those that are
    /// denoised and of their size. Corrections are multiplied with `scale`.
    pub fn condition(&self, latents: &Tensor, scale: f64) -> Result<Condition> {
        let tokens = self.embed_patches(latents, self.grid(latents)?)?;
        let shape = (latents.dim(0)?, 1, self.config.width());
        let scale = match scale {
            1.0 => None,
            scale => Some(Tensor::full(scale as f32, shape, &self.device)?),
        };
        Ok(Condition { tokens, scale })
    }

    /// Predicts the noise in `latents` `[batch, in_channels, height, width]` at `timestep` `[batch]` (0..999, fractions
    /// allowed): `[batch, out_channels, height, width]`, f32. The first `in_channels` channels
    /// are the noise, the rest, where the model has them, the learned variance. Height and width must be divisible by
    /// the patch size; `size` must be given exactly where [`TransformerConfig::has_size_conditions`] says so.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &ProjectedText,
        size: Option<&SizeConditions>,
    ) -> Result<Tensor> {
        self.forward_controlled(latents, timestep, text, size, None)
    }

    /// As [`PixArtTransformer::forward`], with what the ControlNet is to follow, of [`PixArtTransformer::condition`]. `text`
    /// was projected after the ControlNet was attached.
    pub fn forward_controlled(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &ProjectedText,
        size: Option<&SizeConditions>,
        condition: Option<&Condition>,
    ) -> Result<Tensor> {
        Ok(self.forward_seen(latents, timestep, text, size, condition, None)?.0)
    }

    /// As [`PixArtTransformer::forward_controlled`], with the tokens `[batch, n, width]` as they leave block `seen`, from 0.
    pub fn forward_seen(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &ProjectedText,
        size: Option<&SizeConditions>,
        condition: Option<&Condition>,
        seen: Option<usize>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let mut tokens = None;
        let grid = self.grid(latents)?;
        let (modulation, embedded_timestep) = self.embed_timestep(timestep, size)?;
        let control = match (&self.control, condition) {
            (Some(control), Some(condition)) => Some((control, condition)),
            (None, Some(_)) => candle_core::bail!("there is no ControlNet to follow a condition"),
            (_, None) => None,
        };
        let mut xs = self.embed_patches(latents, grid)?;
        // The stream of the copies, from the first one on.
        let mut controlled: Option<Tensor> = None;
        for (i, (block, keys_values)) in self.blocks.iter().zip(&text.keys_values).enumerate() {
            if let Some((control, condition)) = control
                && let Some(copy) = control.copy_before(i)
            {
                let input = match &controlled {
                    Some(stream) => stream.clone(),
                    None => control.enter(&xs, &condition.tokens)?,
                };
                let Some(keys_values) = text.control_keys_values.get(i - 1) else {
                    candle_core::bail!("the text was projected without the ControlNet");
                };
                let stream = self.run(&copy.block, &input, &modulation, keys_values, text)?;
                xs = copy.after.forward_residual(&stream, &xs, condition.scale.as_ref())?;
                controlled = Some(stream);
            }
            xs = self.run(block, &xs, &modulation, keys_values, text)?;
            if seen == Some(i) {
                tokens = Some(xs.clone());
            }
        }
        Ok((self.predict(&xs, &embedded_timestep, grid)?, tokens))
    }

    /// What it makes of `latents` inside: the tokens `[batch, n, width]` as they leave block `last`, from 0, and no further. Without
    /// a ControlNet; all else is as for [`PixArtTransformer::forward`].
    pub fn tokens_after(
        &self,
        last: usize,
        latents: &Tensor,
        timestep: &Tensor,
        text: &ProjectedText,
        size: Option<&SizeConditions>,
    ) -> Result<Tensor> {
        let (modulation, _) = self.embed_timestep(timestep, size)?;
        let mut xs = self.embed_patches(latents, self.grid(latents)?)?;
        for (block, keys_values) in self.blocks.iter().zip(&text.keys_values).take(last + 1) {
            xs = self.run(block, &xs, &modulation, keys_values, text)?;
        }
        Ok(xs)
    }

    /// A block's result, whose inside is forgotten if blocks are recomputed.
    fn run(
        &self,
        block: &Block,
        xs: &Tensor,
        modulation: &Tensor,
        keys_values: &Tensor,
        text: &ProjectedText,
    ) -> Result<Tensor> {
        match &self.recomputation {
            Some(recomputation) => {
                let (block, bias) = (block.clone(), text.bias.clone());
                recomputation.run([xs, modulation, keys_values], move |[xs, modulation, keys_values]| {
                    block.forward(xs, modulation, keys_values, bias.as_ref())
                })
            }
            None => block.forward(xs, modulation, keys_values, text.bias.as_ref()),
        }
    }

    /// Rows and columns of patches in latents.
    fn grid(&self, latents: &Tensor) -> Result<(usize, usize)> {
        let (_, _, height, width) = latents.dims4()?;
        let patch = self.config.patch_size;
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            candle_core::bail!("latents of {height}×{width} do not divide into patches of {patch}");
        }
        Ok((height / patch, width / patch))
    }

    /// Latents to tokens with their positions: `[batch, n, width]`.
    fn embed_patches(&self, latents: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let config = &self.config;
        let base_size = config.sample_size / config.patch_size;
        let positions =
            position_embedding(config.width(), grid, base_size, config.interpolation_scale(), &self.device)?;
        let tokens = image_to_tokens(&self.patch_embedding.forward(&latents.to_dtype(STREAM)?)?)?;
        tokens.broadcast_add(&positions)
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
        let xs = layer_norm_modulate(xs, &table.narrow(1, 0, 1)?, &table.narrow(1, 1, 1)?, 1e-6, STREAM)?;
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
    fn new(width: usize, vb: NamedWeights) -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    /// Cutting an image into patches in the order the last layer writes them, then [`unpatchify`], gives the image back.
    #[test]
    fn unpatchify_undoes_patchify() -> Result<()> {
        for (rows, columns, patch, channels) in [(1, 1, 1, 1), (3, 5, 2, 8), (4, 2, 4, 3), (7, 1, 2, 4)] {
            let (height, width) = (rows * patch, columns * patch);
            let image = random((2, channels, height, width))?;
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
