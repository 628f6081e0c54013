use std::iter;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pixart_weights::{read_tensors, write_tensors};

use crate::{Error, Result};

/// Encoded prompts: what the text encoder gives and the transformer takes.
#[derive(Debug, Clone)]
pub struct PromptEmbeds {
    /// `[batch, n, width]`, f32.
    pub prompt_embeds: Tensor,
    /// `[batch, n]`, f32: 1 for a token, 0 for padding.
    pub prompt_attention_mask: Tensor,
    /// The embeddings and the mask of what to steer away from, of the same shapes; only needed with guidance.
    pub negative: Option<(Tensor, Tensor)>,
}

impl PromptEmbeds {
    /// Reads a safetensors file with the tensors `prompt_embeds`, `prompt_attention_mask` and, optionally,
    /// `negative_prompt_embeds` and `negative_prompt_attention_mask`. A missing mask means that every token counts.
    pub fn read(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let mut tensors = read_tensors(path, device)?;
        let broken = |reason: String| Error::request(format!("{}: {reason}", path.display()));
        let mut pair = |embeds: &str, mask: &str| -> Result<Option<(Tensor, Tensor)>> {
            let Some(embeds_tensor) = tensors.remove(embeds) else { return Ok(None) };
            let (batch, n, _) = embeds_tensor.dims3().map_err(|_| {
                broken(format!("{embeds} is not [batch, tokens, width] but {:?}", embeds_tensor.dims()))
            })?;
            if batch == 0 || n == 0 {
                return Err(broken(format!("{embeds} is empty: {:?}", embeds_tensor.dims())));
            }
            let mask_tensor = match tensors.remove(mask) {
                Some(mask_tensor) => mask_tensor,
                None => Tensor::ones((batch, n), DType::F32, device)?,
            };
            if mask_tensor.dims() != [batch, n] {
                return Err(broken(format!("{mask} is {:?}, {embeds} asks for {:?}", mask_tensor.dims(), [batch, n])));
            }
            Ok(Some((embeds_tensor, mask_tensor)))
        };
        let negative = pair("negative_prompt_embeds", "negative_prompt_attention_mask")?;
        let (prompt_embeds, prompt_attention_mask) = pair("prompt_embeds", "prompt_attention_mask")?
            .ok_or_else(|| broken("holds no tensor prompt_embeds; `pixart encode` writes such a file".into()))?;
        if let Some((embeds, _)) = &negative
            && embeds.dims() != prompt_embeds.dims()
        {
            let (found, wanted) = (embeds.dims(), prompt_embeds.dims());
            return Err(broken(format!("negative_prompt_embeds is {found:?}, prompt_embeds {wanted:?}")));
        }
        Ok(Self { prompt_embeds, prompt_attention_mask, negative })
    }

    /// Writes what [`PromptEmbeds::read`] reads.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors =
            vec![("prompt_embeds", &self.prompt_embeds), ("prompt_attention_mask", &self.prompt_attention_mask)];
        if let Some((embeds, mask)) = &self.negative {
            tensors.extend([("negative_prompt_embeds", embeds), ("negative_prompt_attention_mask", mask)]);
        }
        Ok(write_tensors(path.as_ref(), &tensors)?)
    }

    /// Number of prompts.
    pub fn batch(&self) -> usize {
        self.prompt_embeds.dims().first().copied().unwrap_or(0)
    }

    /// The prompt at `index` alone.
    pub fn row(&self, index: usize) -> Result<Self> {
        self.rows(&[index])
    }

    /// The prompts at `indices`, in that order.
    pub(crate) fn rows(&self, indices: &[usize]) -> Result<Self> {
        let rows = |xs: &Tensor| {
            let rows = indices.iter().map(|index| xs.narrow(0, *index, 1)).collect::<candle_core::Result<Vec<_>>>()?;
            Tensor::cat(&rows, 0)
        };
        self.each(rows)
    }

    /// What `change` makes of every tensor.
    fn each(&self, change: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        Ok(Self {
            prompt_embeds: change(&self.prompt_embeds)?,
            prompt_attention_mask: change(&self.prompt_attention_mask)?,
            negative: match &self.negative {
                Some((embeds, mask)) => Some((change(embeds)?, change(mask)?)),
                None => None,
            },
        })
    }

    /// As long as the longest text, the padding behind it left out, or added to a shorter negative one: cross-attention does not see
    /// it. A text with no token at all is the exception, whose padding is all that is seen.
    pub(crate) fn without_padding(&self) -> Result<Self> {
        let seen = |mask: &[f32]| match mask.iter().rposition(|x| *x != 0.0) {
            Some(last) if mask.contains(&1.0) => last + 1,
            _ => mask.len(),
        };
        let mut needed = 1;
        for mask in iter::once(&self.prompt_attention_mask).chain(self.negative.iter().map(|(_, mask)| mask)) {
            let masks = mask.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            needed = masks.iter().map(|mask| seen(mask)).fold(needed, usize::max);
        }
        let of_length = |xs: &Tensor| match xs.dim(1)? {
            longer if longer >= needed => xs.narrow(1, 0, needed),
            shorter => xs.pad_with_zeros(1, 0, needed - shorter),
        };
        self.each(of_length)
    }

    /// The unconditional rows and then the conditional ones where there is a negative prompt, else the conditional alone.
    pub(crate) fn guided(&self) -> Result<(Tensor, Tensor)> {
        match &self.negative {
            Some((embeds, mask)) => Ok((
                Tensor::cat(&[embeds, &self.prompt_embeds], 0)?,
                Tensor::cat(&[mask, &self.prompt_attention_mask], 0)?,
            )),
            None => Ok((self.prompt_embeds.clone(), self.prompt_attention_mask.clone())),
        }
    }
}
