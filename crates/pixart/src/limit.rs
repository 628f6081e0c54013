//! A limit of memory: respected by decoding in bands and without the transformer, or refused before any work.

use pixart_weights::Scheme;

use crate::memory::{self, Decoding, MemoryEstimate, Needs, refusal};
use crate::plan::Plan;
use crate::{Pipeline, Request, Result};

/// Sizes that are offered in place of one that does not fit are multiples of this.
const SIZES: usize = 64;

impl Pipeline {
    /// About what `request` will take of memory, decoded as it will be: an estimate for a CPU.
    ///
    /// # Errors
    /// A request that makes no sense; a checkpoint's file that is missing or broken; what the limit does not allow.
    pub fn memory_estimate(&self, request: &Request) -> Result<MemoryEstimate> {
        let plan = self.plan(request)?;
        let decoding = self.decoding(request, &plan)?;
        Ok(self.needs(request, &plan, plan.drawn, self.parts.loader.scheme)?.estimate(decoding))
    }

    /// How a request's latents become pictures.
    pub(crate) fn decoding(&self, request: &Request, plan: &Plan) -> Result<Decoding> {
        let ways = Decoding::ways(self.vae_tiling);
        let Some(limit) = self.memory_limit else { return Ok(ways[0]) };
        let needs = self.needs(request, plan, plan.drawn, self.parts.loader.scheme)?;
        if let Some(way) = ways.into_iter().find(|way| needs.estimate(*way).peak() <= limit) {
            return Ok(way);
        }
        let instead = self.what_fits(request, plan, limit)?;
        let (height, width) = plan.drawn;
        let what = match plan.latents_shape.0 {
            1 => format!("a picture of {width}x{height} in {}", self.precision_name),
            images => format!("{images} pictures of {width}x{height} at once in {}", self.precision_name),
        };
        Err(refusal(&what, &needs.estimate(ways[3]), limit, &instead))
    }

    /// Whether latents that are given become pictures of so many pixels in bands.
    pub(crate) fn decodes_in_bands(&self, (height, width): (usize, usize)) -> Result<bool> {
        let Some(limit) = self.memory_limit else { return Ok(self.vae_tiling) };
        let (pixels, dtype) = ((height * width) as u64, self.dtype());
        let weights = memory::autoencoder(&self.parts.loader)?;
        let bytes = |in_bands| weights + memory::decoding(&self.vae_config, pixels, dtype, in_bands);
        match [self.vae_tiling, true].into_iter().find(|in_bands| bytes(*in_bands) <= limit) {
            Some(in_bands) => Ok(in_bands),
            None => {
                let estimate = MemoryEstimate { decode: bytes(true), ..MemoryEstimate::default() };
                Err(refusal(&format!("a picture of {width}x{height}"), &estimate, limit, "smaller ones may fit"))
            }
        }
    }

    /// Refuses to encode so many prompts where the limit does not allow it.
    pub(crate) fn check_encoding(&self, prompts: usize, length: usize) -> Result<()> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let encode = memory::text_encoder(&self.parts.loader, prompts, length)?;
        if encode <= limit {
            return Ok(());
        }
        let estimate = MemoryEstimate { encode, ..MemoryEstimate::default() };
        let instead = match self.parts.loader.scheme {
            Some(_) => "there is no smaller form",
            None => "--dtype int8 takes about a quarter of f32 and half of bf16",
        };
        Err(refusal("this text encoder", &estimate, limit, instead))
    }

    fn needs(&self, request: &Request, plan: &Plan, drawn: (usize, usize), scheme: Option<Scheme>) -> Result<Needs> {
        let (parts, transformer) = (&self.parts, &self.transformer_config);
        Needs::new(&parts.loader, request, plan, drawn, scheme, parts.keep_loaded, transformer, &self.vae_config)
    }

    /// What someone could ask for instead of a request that does not fit.
    fn what_fits(&self, request: &Request, plan: &Plan, limit: u64) -> Result<String> {
        let own = self.parts.loader.scheme;
        let least = |drawn, scheme| -> Result<MemoryEstimate> {
            Ok(self.needs(request, plan, drawn, scheme)?.estimate(Decoding { in_bands: true, alone: true }))
        };
        let rounded = own.or(Some(Scheme::Int8));
        let in_8_bits = if own == rounded { "" } else { " with --dtype int8" };
        if own != rounded && least(plan.drawn, rounded)?.peak() <= limit {
            return Ok(format!("it fits{in_8_bits}"));
        }
        let smaller = (1..plan.drawn.0.div_ceil(SIZES)).rev().map(|rows| {
            let height = rows * SIZES;
            (height, (plan.drawn.1 * height / plan.drawn.0 / SIZES * SIZES).max(SIZES))
        });
        for (scheme, with) in [(own, ""), (rounded, in_8_bits)] {
            for drawn in smaller.clone() {
                if least(drawn, scheme)?.peak() <= limit {
                    return Ok(format!("{}x{}{with} fits", drawn.1, drawn.0));
                }
            }
        }
        Ok(match least((SIZES, SIZES), rounded)? {
            MemoryEstimate { encode, denoise, decode, .. } if encode > limit && denoise.max(decode) <= limit => {
                format!("prompts that another machine has encoded fit (`pixart encode`, --prompt-embeds){in_8_bits}")
            }
            _ => "no size fits".into(),
        })
    }
}
