//! AutoencoderKL, the variational autoencoder between images and latents (Rombach et al. 2022, section 3.1).

use crate::NamedWeights;
mod bands;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::{Conv2d, GroupNorm, Linear, Padding, Scores, image_to_tokens, self_attention, tokens_to_image};

const EPS: f64 = 1e-6;

/// Shape of an autoencoder: the fields of diffusers' `vae/config.json` that decide what is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are diffusers'")]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub layers_per_block: usize,
    pub act_fn: String,
    pub latent_channels: usize,
    pub norm_num_groups: usize,
    /// Latents are the encoder's output times this.
    pub scaling_factor: f64,
    pub shift_factor: Option<f64>,
    pub latents_mean: Option<Vec<f64>>,
    pub latents_std: Option<Vec<f64>>,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    pub mid_block_add_attention: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec![],
            up_block_types: vec![],
            layers_per_block: 2,
            act_fn: "silu".into(),
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl VaeConfig {
    /// Pixels per latent pixel, along a side.
    pub fn downscale(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }

    /// Refuses, naming the field, what this implementation does not compute.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let expect = |field: &str, kinds: &[String], wanted: &str| match kinds.iter().find(|kind| *kind != wanted) {
            Some(other) => Err(format!("{field} has {other:?}, only {wanted:?} is supported")),
            None => Ok(()),
        };
        expect("down_block_types", &self.down_block_types, "DownEncoderBlock2D")?;
        expect("up_block_types", &self.up_block_types, "UpDecoderBlock2D")?;
        expect("act_fn", std::slice::from_ref(&self.act_fn), "silu")?;
        if self.shift_factor.is_some_and(|shift| shift != 0.0) {
            return Err("shift_factor is set, which no PixArt model uses".into());
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Err("latents_mean and latents_std are set, which no PixArt model uses".into());
        }
        if self.layers_per_block == 0 {
            return Err("layers_per_block is 0".into());
        }
        if self.block_out_channels.is_empty() || self.block_out_channels.len() > 8 {
            return Err(format!("block_out_channels is {:?}", self.block_out_channels));
        }
        if self.norm_num_groups == 0
            || self.block_out_channels.iter().any(|channels| !channels.is_multiple_of(self.norm_num_groups))
        {
            return Err(format!(
                "norm_num_groups {} does not divide block_out_channels {:?}",
                self.norm_num_groups, self.block_out_channels
            ));
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor == 0.0 {
            return Err(format!("scaling_factor is {}", self.scaling_factor));
        }
        Ok(())
    }
}

/// The autoencoder. Images are `[batch, 3, height, width]` in -1..1, latents `[batch, 4, height / 8, width / 8]`, here
/// without the scaling factor: multiply what [`Posterior::sample`] gives, divide what [`AutoencoderKl::decode`] takes.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: VaeConfig,
    dtype: DType,
}

impl AutoencoderKl {
    /// Reads the weights by diffusers' names. Errors: a config that [`VaeConfig::validate`] refuses; a weight that is
    /// missing or has another shape.
    pub fn new(config: &VaeConfig, vb: NamedWeights) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let latent = config.latent_channels;
        let one =
            |wanted: bool, channels, name| wanted.then(|| Conv2d::one(channels, channels, vb.pp(name))).transpose();
        Ok(Self {
            encoder: Encoder::new(config, vb.pp("encoder"))?,
            quant_conv: one(config.use_quant_conv, 2 * latent, "quant_conv")?,
            post_quant_conv: one(config.use_post_quant_conv, latent, "post_quant_conv")?,
            decoder: Decoder::new(config, vb.pp("decoder"))?,
            config: config.clone(),
            dtype: vb.dtype(),
        })
    }

    /// The config it was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Encodes images whose height and width are divisible by [`VaeConfig::downscale`].
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        let moments = self.encoder.forward(&images.to_dtype(self.dtype)?)?;
        let moments = match &self.quant_conv {
            Some(conv) => conv.forward(&moments)?,
            None => moments,
        };
        let moments = moments.to_dtype(DType::F32)?;
        let channels = self.config.latent_channels;
        Ok(Posterior {
            mean: moments.narrow(1, 0, channels)?,
            logvar: moments.narrow(1, channels, channels)?.clamp(-30.0, 20.0)?,
        })
    }

    /// Decodes latents, in f32 for the caller; pixels may lie a little outside of -1..1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(self.dtype)?;
        let latents = match &self.post_quant_conv {
            Some(conv) => conv.forward(&latents)?,
            None => latents,
        };
        self.decoder.forward(latents)?.to_dtype(DType::F32)
    }

    /// As [`AutoencoderKl::decode`], a few rows of pixels after another, so that little more is in memory at once than the largest
    /// of the images between the layers, and in about twice the time. Norms are over the whole image; the result differs by rounding
    /// alone. A band of rows has about `elements` numbers.
    pub fn decode_in_bands(&self, latents: &Tensor, elements: usize) -> Result<Tensor> {
        let latents = latents.to_dtype(self.dtype)?;
        let latents = match &self.post_quant_conv {
            Some(conv) => conv.forward(&latents)?,
            None => latents,
        };
        self.decoder.forward_in_bands(latents, elements)
    }
}

/// What the encoder says of an image: a normal distribution for each latent pixel, in f32.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[batch, 4, height, width]`.
    pub mean: Tensor,
    /// Logarithm of the variance, clamped to -30..20, of the same shape.
    pub logvar: Tensor,
}

impl Posterior {
    /// The standard deviation.
    pub fn std(&self) -> Result<Tensor> {
        (&self.logvar * 0.5)?.exp()
    }

    /// `mean + std · noise`, with `noise` standard normal and of the mean's shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (self.std()? * noise)?
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &VaeConfig, vb: NamedWeights) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut channels = first;
        let mut down_blocks = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            let vb = vb.pp("down_blocks").pp(i);
            let resnets = ResnetBlock::stack(config, channels, width, config.layers_per_block, vb.pp("resnets"))?;
            let downsampler = vb.pp("downsamplers").pp(0).pp("conv");
            let downsampler = (i + 1 < widths.len())
                .then(|| Conv2d::new(width, width, 3, 2, Padding::RightBottom, downsampler))
                .transpose()?;
            down_blocks.push((resnets, downsampler));
            channels = width;
        }
        Ok(Self {
            conv_in: Conv2d::three(config.in_channels, first, vb.pp("conv_in"))?,
            down_blocks,
            mid_block: MidBlock::new(config, last, vb.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::three(last, 2 * config.latent_channels, vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut xs = self.conv_in.forward(images)?;
        for (resnets, downsampler) in &self.down_blocks {
            for resnet in resnets {
                xs = resnet.forward(xs)?;
            }
            if let Some(conv) = downsampler {
                xs = conv.forward(&xs)?;
            }
        }
        let xs = self.mid_block.forward(xs)?;
        self.conv_out.forward_normed(&xs, &self.conv_norm_out, None)
    }
}

#[derive(Debug, Clone)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &VaeConfig, vb: NamedWeights) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut channels = last;
        let mut up_blocks = Vec::new();
        for (i, &width) in widths.iter().rev().enumerate() {
            let vb = vb.pp("up_blocks").pp(i);
            let resnets = ResnetBlock::stack(config, channels, width, config.layers_per_block + 1, vb.pp("resnets"))?;
            let upsampler = vb.pp("upsamplers").pp(0).pp("conv");
            let upsampler = (i + 1 < widths.len()).then(|| Conv2d::upsampling(width, upsampler)).transpose()?;
            up_blocks.push((resnets, upsampler));
            channels = width;
        }
        Ok(Self {
            conv_in: Conv2d::three(config.latent_channels, last, vb.pp("conv_in"))?,
            mid_block: MidBlock::new(config, last, vb.pp("mid_block"))?,
            up_blocks,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first, EPS, vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::three(first, config.out_channels, vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, latents: Tensor) -> Result<Tensor> {
        let mut xs = self.mid_block.forward(self.conv_in.forward(&latents)?)?;
        for (resnets, upsampler) in &self.up_blocks {
            for resnet in resnets {
                xs = resnet.forward(xs)?;
            }
            if let Some(conv) = upsampler {
                xs = conv.forward(&xs)?;
            }
        }
        self.conv_out.forward_normed(&xs, &self.conv_norm_out, None)
    }
}

/// Norm, SiLU, convolution, twice, around a shortcut.
#[derive(Debug, Clone)]
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    fn new(config: &VaeConfig, channels_in: usize, channels_out: usize, vb: NamedWeights) -> Result<Self> {
        let groups = config.norm_num_groups;
        let shortcut = vb.pp("conv_shortcut");
        Ok(Self {
            norm1: GroupNorm::new(groups, channels_in, EPS, vb.pp("norm1"))?,
            conv1: Conv2d::three(channels_in, channels_out, vb.pp("conv1"))?,
            norm2: GroupNorm::new(groups, channels_out, EPS, vb.pp("norm2"))?,
            conv2: Conv2d::three(channels_out, channels_out, vb.pp("conv2"))?,
            conv_shortcut: (channels_in != channels_out)
                .then(|| Conv2d::one(channels_in, channels_out, shortcut))
                .transpose()?,
        })
    }

    /// `count` blocks, the first of which goes from `channels_in` to `channels_out`.
    fn stack(
        config: &VaeConfig,
        channels_in: usize,
        channels_out: usize,
        count: usize,
        vb: NamedWeights,
    ) -> Result<Vec<Self>> {
        let block = |i| Self::new(config, if i == 0 { channels_in } else { channels_out }, channels_out, vb.pp(i));
        (0..count).map(block).collect()
    }

    /// Takes its input by value: at 1024 pixels it is a gigabyte, freed as soon as nothing needs it.
    fn forward(&self, xs: Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward_normed(&xs, &self.norm1, None)?;
        let residual = match &self.conv_shortcut {
            Some(conv) => conv.forward(&xs)?,
            None => xs,
        };
        self.conv2.forward_normed(&hidden, &self.norm2, Some(&residual))
    }
}

#[derive(Debug, Clone)]
struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Option<AttentionBlock>,
}

impl MidBlock {
    fn new(config: &VaeConfig, channels: usize, vb: NamedWeights) -> Result<Self> {
        let resnet = |i: usize| ResnetBlock::new(config, channels, channels, vb.pp("resnets").pp(i));
        let attention = || AttentionBlock::new(config, channels, vb.pp("attentions").pp(0));
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config.mid_block_add_attention.then(attention).transpose()?,
        })
    }

    fn forward(&self, xs: Tensor) -> Result<Tensor> {
        let mut xs = self.resnets[0].forward(xs)?;
        if let Some(attention) = &self.attention {
            xs = attention.forward(&xs)?;
        }
        self.resnets[1].forward(xs)
    }
}

/// Self-attention of one head over all pixels.
#[derive(Debug, Clone)]
struct AttentionBlock {
    group_norm: GroupNorm,
    /// Queries, keys and values side by side.
    to_qkv: Linear,
    to_out: Linear,
}

impl AttentionBlock {
    fn new(config: &VaeConfig, channels: usize, vb: NamedWeights) -> Result<Self> {
        Ok(Self {
            group_norm: GroupNorm::new(config.norm_num_groups, channels, EPS, vb.pp("group_norm"))?,
            to_qkv: Linear::joined(channels, channels, true, &["to_q", "to_k", "to_v"].map(|name| vb.pp(name)))?,
            to_out: Linear::new(channels, channels, vb.pp("to_out").pp(0))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = xs.dims4()?;
        let qkv = self.to_qkv.forward(&image_to_tokens(&self.group_norm.forward(xs)?)?)?;
        let attended = self_attention(&qkv, Scores::new(1, (channels as f64).powf(-0.5)), None)?;
        let tokens = self.to_out.forward_residual(&attended, &image_to_tokens(xs)?, None)?;
        tokens_to_image(&tokens, (height, width))
    }
}
