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

    pub(super) fn interpolation_scale(&self) -> f64 {
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
