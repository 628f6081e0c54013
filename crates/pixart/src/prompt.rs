//! Prompts to token ids.

use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// How much of what was cut off a prompt a warning shows, in characters.
const SHOWN: usize = 2000;

/// A batch of prompts as the text encoder takes them.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `[batch, length]`, u32.
    pub input_ids: Tensor,
    /// `[batch, length]`, f32: 1 for a token, 0 for padding.
    pub attention_mask: Tensor,
}

impl Tokens {
    /// As long as the longest prompt, with its end.
    pub fn without_padding(&self) -> Result<Self> {
        let lengths = self.attention_mask.sum(1)?.to_vec1::<f32>()?;
        let longest = lengths.into_iter().fold(1.0, f32::max) as usize;
        Ok(Self {
            input_ids: self.input_ids.narrow(1, 0, longest)?.contiguous()?,
            attention_mask: self.attention_mask.narrow(1, 0, longest)?.contiguous()?,
        })
    }
}

/// Turns cleaned prompts into `length` ids each: the prompt's tokens, the end of the sequence, padding. A prompt that is
/// longer is cut, with a warning that shows what was lost.
///
/// # Errors
/// A tokenizer without `</s>` and `<pad>`.
pub fn tokenize(tokenizer: &Tokenizer, prompts: &[String], length: usize, device: &Device) -> Result<Tokens> {
    let special = |token: &str| {
        tokenizer.token_to_id(token).ok_or_else(|| Error::request(format!("the tokenizer has no {token} token")))
    };
    let length = length.max(1);
    let (end, padding) = (special("</s>")?, special("<pad>")?);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for prompt in prompts {
        let encoding = tokenizer
            .encode(prompt.as_str(), false)
            .map_err(|error| Error::request(format!("the prompt {prompt:?} cannot be tokenised: {error}")))?;
        let tokens = encoding.get_ids();
        let kept = tokens.len().min(length.saturating_sub(1));
        if kept < tokens.len() {
            let mut lost = tokenizer.decode(&tokens[kept..], true).unwrap_or_default();
            if let Some((end, _)) = lost.char_indices().nth(SHOWN) {
                lost.truncate(end);
                lost.push('…');
            }
            tracing::warn!("the prompt is longer than {length} tokens; this was cut off its end: {lost:?}");
        }
        ids.extend_from_slice(&tokens[..kept]);
        ids.push(end);
        ids.extend(std::iter::repeat_n(padding, length - kept - 1));
        mask.extend((0..length).map(|i| if i <= kept { 1f32 } else { 0.0 }));
    }
    Ok(Tokens {
        input_ids: Tensor::from_vec(ids, (prompts.len(), length), device)?,
        attention_mask: Tensor::from_vec(mask, (prompts.len(), length), device)?,
    })
}
