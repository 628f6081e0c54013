use serde::{Deserialize, Serialize};

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
    #[serde(skip_serializing)]
    pub only_cross_attention: bool,
    #[serde(skip_serializing)]
    pub double_self_attention: bool,
    #[serde(skip_serializing)]
    pub num_vector_embeds: Option<usize>,
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
            only_cross_attention: false,
            double_self_attention: false,
            num_vector_embeds: None,
        }
    }
}

impl TransformerConfig {
    /// Width of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Channels of the prediction: the noise and, in models that learned it, as many coefficients of the variance.
    pub fn channels_out(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Whether height, width and aspect ratio of the image are inputs.
    pub fn has_size_conditions(&self) -> bool {
        self.use_additional_conditions.unwrap_or(self.sample_size == 128)
    }

    pub(super) fn interpolation_scale(&self) -> f64 {
        self.interpolation_scale.unwrap_or((self.sample_size / 64).max(1) as f64)
    }

    /// Refuses, naming the field, what this implementation does not compute.
    pub fn validate(&self) -> std::result::Result<(), String> {
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
        if self.only_cross_attention || self.double_self_attention || self.num_vector_embeds.is_some() {
            return Err("only_cross_attention, double_self_attention and num_vector_embeds are of other models".into());
        }
        if [self.num_attention_heads, self.attention_head_dim, self.num_layers, self.patch_size].contains(&0) {
            return Err("num_attention_heads, attention_head_dim, num_layers and patch_size must be above 0".into());
        }
        if [self.num_attention_heads, self.attention_head_dim, self.patch_size, self.sample_size]
            .iter()
            .any(|size| *size > 1 << 16)
        {
            return Err("a size in it is absurdly large".into());
        }
        let scale = self.interpolation_scale.unwrap_or(1.0);
        if !(scale.is_finite() && scale > 0.0 && self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("interpolation_scale is {scale}, norm_eps {}", self.norm_eps));
        }
        if self.caption_channels.is_none() {
            return Err("caption_channels is missing: this is no text-conditioned PixArt transformer".into());
        }
        let width = self.width();
        if self.cross_attention_dim.is_none_or(|dim| dim != width) {
            return Err(format!("cross_attention_dim is {:?}, it must be {width}", self.cross_attention_dim));
        }
        if !width.is_multiple_of(4) || self.sample_size < self.patch_size {
            return Err(format!("width {width}, patch_size {}, sample_size {}", self.patch_size, self.sample_size));
        }
        if self.has_size_conditions() && !width.is_multiple_of(3) {
            return Err(format!("use_additional_conditions needs a width divisible by 3, not {width}"));
        }
        Ok(())
    }
}
