//! A limit of memory: respected by decoding in bands and by parts that make room for one another, or refused before any work.

use pixart_nn::t5::T5Config;
use pixart_weights::{Part, Scheme};

use crate::memory::{self, MemoryEstimate, PartSizes, Sharing, Work, refusal};
use crate::plan::Plan;
use crate::{Detector, Pipeline, Request, Result};

/// Sizes that are offered in place of one that does not fit are multiples of this.
const SIZES: usize = 64;

/// What takes least.
const LEAST: Sharing = Sharing { in_bands: true, alone: true };

impl Pipeline {
    /// About what `request` will take of memory, drawn as it will be: an estimate for a CPU.
    ///
    /// # Errors
    /// A request that makes no sense; a checkpoint's file that is missing or broken; what the limit does not allow.
    pub fn memory_estimate(&self, request: &Request) -> Result<MemoryEstimate> {
        let plan = self.plan(request)?;
        let sharing = self.sharing(request, &plan)?;
        let sizes = self.part_sizes(request, &plan, self.parts.loader.scheme)?;
        let work = self.work(request, &plan, self.encoder_config(request, &plan)?.as_ref())?;
        Ok(MemoryEstimate::new(&sizes, &work, self.parts.keep_loaded, sharing))
    }

    /// How a request's stages share memory: in the fastest way that the limit allows.
    pub(crate) fn sharing(&self, request: &Request, plan: &Plan) -> Result<Sharing> {
        let ways = Sharing::ways(self.vae_tiling);
        let Some(limit) = self.memory_limit else { return Ok(ways[0]) };
        let sizes = self.part_sizes(request, plan, self.parts.loader.scheme)?;
        let encoder = self.encoder_config(request, plan)?;
        let work = self.work(request, plan, encoder.as_ref())?;
        let estimate = |way| MemoryEstimate::new(&sizes, &work, self.parts.keep_loaded, way);
        if let Some(way) = ways.into_iter().find(|way| estimate(*way).peak() <= limit) {
            return Ok(way);
        }
        let (height, width) = plan.wanted;
        let what = match plan.latents_shape.0 {
            1 => format!("a picture of {width}x{height} in {}", self.precision_name),
            images => format!("{images} pictures of {width}x{height} in {}", self.precision_name),
        };
        let instead = self.what_fits(request, plan, &sizes, encoder.as_ref(), limit)?;
        Err(refusal(&what, &estimate(LEAST), limit, &instead))
    }

    /// Whether latents that are given become pictures of so many pixels in bands.
    pub(crate) fn decodes_in_bands(&self, (height, width): (usize, usize)) -> Result<bool> {
        let Some(limit) = self.memory_limit else { return Ok(self.vae_tiling) };
        let mut least = 0;
        for in_bands in [self.vae_tiling, true] {
            let pixels = (height * width) as u64;
            least = memory::autoencoder(&self.parts.loader, &self.vae_config, pixels, in_bands)?;
            if least <= limit {
                return Ok(in_bands);
            }
        }
        let estimate = MemoryEstimate { decode: least, ..MemoryEstimate::default() };
        Err(refusal(&format!("a picture of {width}x{height}"), &estimate, limit, "smaller ones may fit"))
    }

    /// Refuses to encode so many prompts where the limit does not allow it.
    pub(crate) fn check_encoding(&self, prompts: usize, length: usize) -> Result<()> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let loader = &self.parts.loader;
        let encode = memory::text_encoder(loader, loader.scheme, prompts, length)?;
        if encode <= limit {
            return Ok(());
        }
        let instead = match memory::text_encoder(loader, Some(Scheme::Int8), prompts, length)? {
            rounded if rounded <= limit => "it fits with --dtype int8",
            _ if prompts > memory::PROMPTS_AT_ONCE => "fewer prompts may fit",
            _ => "nothing smaller is known",
        };
        let estimate = MemoryEstimate { encode, ..MemoryEstimate::default() };
        let what = if prompts == 1 { "encoding a prompt".into() } else { format!("encoding {prompts} prompts") };
        Err(refusal(&what, &estimate, limit, instead))
    }

    /// Refuses to look for edges in a picture of this size (height, width) where the limit does not allow it.
    pub(crate) fn check_detection(&self, detector: &Detector, (height, width): (usize, usize)) -> Result<()> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let encode = memory::detecting(detector, (height * width) as u64);
        if encode <= limit {
            return Ok(());
        }
        let estimate = MemoryEstimate { encode, ..MemoryEstimate::default() };
        let instead = "a map of edges that is there already takes less (--control-type none)";
        Err(refusal(&format!("finding edges at {width}x{height}"), &estimate, limit, instead))
    }

    fn part_sizes(&self, request: &Request, plan: &Plan, scheme: Option<Scheme>) -> Result<PartSizes> {
        let loader = &self.parts.loader;
        let kept = self.parts.keep_loaded && loader.folder.part_path(Part::TextEncoder).exists();
        PartSizes::of(loader, scheme, kept || needs_encoder(request, plan), request.control.is_some())
    }

    /// Of the text encoder, if the request needs it.
    fn encoder_config(&self, request: &Request, plan: &Plan) -> Result<Option<T5Config>> {
        Ok(match needs_encoder(request, plan) {
            true => Some(self.parts.loader.folder.config(Part::TextEncoder)?),
            false => None,
        })
    }

    fn work(&self, request: &Request, plan: &Plan, encoder: Option<&T5Config>) -> Result<Work> {
        let configs = (&self.transformer_config, self.parts.controlnet_config.as_ref(), &self.vae_config);
        Ok(Work::new(request, plan, self.text_length(request)?, encoder, configs, self.dtype()))
    }

    /// What someone could ask for instead of a request that does not fit.
    fn what_fits(
        &self,
        request: &Request,
        plan: &Plan,
        own: &PartSizes,
        encoder: Option<&T5Config>,
        limit: u64,
    ) -> Result<String> {
        let rounded = self.part_sizes(request, plan, Some(Scheme::Int8))?;
        let fits = |request: &Request, sizes: &PartSizes| -> Result<bool> {
            let work = self.work(request, &self.plan(request)?, encoder)?;
            Ok(MemoryEstimate::new(sizes, &work, self.parts.keep_loaded, LEAST).peak() <= limit)
        };
        if fits(request, &rounded)? {
            return Ok("it fits with --dtype int8".into());
        }
        let rows = (1..plan.wanted.0.div_ceil(SIZES)).rev();
        let smaller = rows.map(|rows| (rows * SIZES, (plan.wanted.1 * rows / plan.wanted.0).max(1) * SIZES));
        for (sizes, with) in [(own, ""), (&rounded, " with --dtype int8")] {
            for (binned, and) in [(request.resolution_binning, ""), (false, " with --no-resolution-binning")] {
                for (height, width) in smaller.clone() {
                    let request = Request {
                        width: Some(width),
                        height: Some(height),
                        resolution_binning: binned,
                        latents: None,
                        ..request.clone()
                    };
                    if fits(&request, sizes)? {
                        return Ok(format!("{width}x{height} fits{with}{and}"));
                    }
                }
            }
        }
        Ok(match needs_encoder(request, plan) {
            true => {
                "no size fits; embeddings of the prompts that are there already may (`pixart encode`, --prompt-embeds)"
                    .into()
            }
            false => "no size fits".into(),
        })
    }
}

/// Whether a request's texts are not all encoded yet.
pub(crate) fn needs_encoder(request: &Request, plan: &Plan) -> bool {
    request.prompt_embeds.as_ref().is_none_or(|embeds| plan.is_guided() && embeds.negative.is_none())
}
