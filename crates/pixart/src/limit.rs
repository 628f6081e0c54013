//! A limit of memory: respected by decoding in bands and by parts that make room for one another, or refused before any work.

use pixart_nn::t5::T5Config;
use pixart_weights::{Part, Scheme};

use crate::memory::{self, MemoryEstimate, PartSizes, Sharing, Work, refusal};
use crate::parts::Held;
use crate::plan::Plan;
use crate::{Detector, Pipeline, Precision, Request, Result};

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
        self.estimate(request, &plan, self.parts.loader.held(), sharing)
    }

    /// How a request's stages share memory: in the fastest way that the limit allows.
    pub(crate) fn sharing(&self, request: &Request, plan: &Plan) -> Result<Sharing> {
        let ways = Sharing::ways(self.vae_tiling);
        let Some(limit) = self.memory_limit else { return Ok(ways[0]) };
        let held = self.parts.loader.held();
        for way in ways {
            if self.estimate(request, plan, held, way)?.peak() <= limit {
                return Ok(way);
            }
        }
        let (height, width) = plan.wanted;
        let what = match plan.latents_shape.0 {
            1 => format!("a picture of {width}x{height} in {}", self.precision_name),
            images => format!("{images} pictures of {width}x{height} in {}", self.precision_name),
        };
        let instead = self.what_fits(request, plan, limit)?;
        Err(refusal(&what, &self.estimate(request, plan, held, LEAST)?, limit, &instead))
    }

    /// Whether latents that are given become pictures of so many pixels in bands.
    pub(crate) fn decodes_in_bands(&self, (height, width): (usize, usize)) -> Result<bool> {
        let Some(limit) = self.memory_limit else { return Ok(self.vae_tiling) };
        let loader = &self.parts.loader;
        let takes = |held, (height, width): (usize, usize), in_bands| {
            memory::autoencoder(loader, held, &self.vae_config, (height * width) as u64, in_bands)
        };
        for in_bands in [self.vae_tiling, true] {
            if takes(loader.held(), (height, width), in_bands)? <= limit {
                return Ok(in_bands);
            }
        }
        let precisions = self.other_precisions()?;
        let sizes = std::iter::once((height, width)).chain(smaller((height, width)));
        let others = sizes.flat_map(|size| precisions.iter().map(move |precision| (precision, size)));
        let found = first_that_fits(others, |((held, _), size)| Ok(takes(*held, *size, true)? <= limit))?;
        let instead = match found {
            Some(((_, with), (height, width))) => format!("{width}x{height} fits{with}"),
            None => "no size fits".into(),
        };
        let estimate = MemoryEstimate { decode: takes(loader.held(), (height, width), true)?, ..Default::default() };
        Err(refusal(&format!("a picture of {width}x{height}"), &estimate, limit, &instead))
    }

    /// Refuses to encode so many prompts where the limit does not allow it.
    pub(crate) fn check_encoding(&self, prompts: usize, length: usize) -> Result<()> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let loader = &self.parts.loader;
        let takes = |held, prompts| memory::text_encoder(loader, held, prompts, length);
        let encode = takes(loader.held(), prompts)?;
        if encode <= limit {
            return Ok(());
        }
        let precisions = self.other_precisions()?;
        let others = (1..=prompts).rev().flat_map(|fewer| precisions.iter().map(move |precision| (precision, fewer)));
        let found = first_that_fits(others, |((held, _), fewer)| Ok(takes(*held, *fewer)? <= limit))?;
        let instead = match found {
            Some(((_, with), fewer)) if fewer == prompts => format!("it fits{with}"),
            Some(((_, with), fewer)) => format!("{fewer} of them fit{with}"),
            None => "no prompt fits".into(),
        };
        let estimate = MemoryEstimate { encode, ..MemoryEstimate::default() };
        let what = if prompts == 1 { "encoding a prompt".into() } else { format!("encoding {prompts} prompts") };
        Err(refusal(&what, &estimate, limit, &instead))
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

    /// What a request takes where weights and what is computed are held so.
    fn estimate(&self, request: &Request, plan: &Plan, held: Held, way: Sharing) -> Result<MemoryEstimate> {
        self.estimate_with(needs_encoder(request, plan), request, plan, held, way)
    }

    /// The same, where texts are to be encoded or are already.
    fn estimate_with(
        &self,
        encodes: bool,
        request: &Request,
        plan: &Plan,
        held: Held,
        way: Sharing,
    ) -> Result<MemoryEstimate> {
        let loader = &self.parts.loader;
        let kept = self.parts.keep_loaded && loader.folder.part_path(Part::TextEncoder).exists();
        let sizes = PartSizes::of(loader, held, kept || encodes, request.control.is_some())?;
        let encoder = encodes.then(|| loader.folder.config::<T5Config>(Part::TextEncoder)).transpose()?;
        let configs = (&self.transformer_config, self.parts.controlnet_config.as_ref(), &self.vae_config);
        let work = Work::new(request, plan, self.text_length(request)?, encoder.as_ref(), configs, held.dtype);
        Ok(MemoryEstimate::new(&sizes, &work, self.parts.keep_loaded, way))
    }

    /// In what weights and what is computed could be held, the present way first, and the option that asks for it.
    fn other_precisions(&self) -> Result<Vec<(Held, &'static str)>> {
        let loader = &self.parts.loader;
        let precision =
            |precision: Precision| Held { dtype: precision.dtype(&loader.device), scheme: precision.scheme() };
        let mut ways = vec![(loader.held(), "")];
        // What is stored in other 8 bits stays so.
        if loader.stored_scheme()?.is_none_or(|stored| stored == Scheme::Int8) {
            ways.push((precision(Precision::Int8), " with --dtype int8"));
        }
        ways.push((precision(Precision::Bf16), " with --dtype bf16"));
        Ok(ways)
    }

    /// What someone could ask for instead of a request that does not fit.
    fn what_fits(&self, request: &Request, plan: &Plan, limit: u64) -> Result<String> {
        let precisions = self.other_precisions()?;
        let as_it_is = precisions.iter().map(|precision| (precision, request.clone(), "it".to_string(), ""));
        let binnings = [(request.resolution_binning, ""), (false, " with --no-resolution-binning")];
        let at_a_size = precisions.iter().flat_map(|precision| {
            binnings.into_iter().flat_map(move |(resolution_binning, and)| {
                smaller(plan.wanted).map(move |(height, width)| {
                    let request = Request {
                        width: Some(width),
                        height: Some(height),
                        resolution_binning,
                        latents: None,
                        ..request.clone()
                    };
                    (precision, request, format!("{width}x{height}"), and)
                })
            })
        });
        let others = as_it_is.chain(at_a_size);
        for (encodes, given) in
            [(needs_encoder(request, plan), ""), (false, " with embeddings that are there already (--prompt-embeds)")]
        {
            let found = first_that_fits(others.clone(), |((held, _), request, ..)| {
                let plan = self.plan(request)?;
                Ok(self.estimate_with(encodes, request, &plan, *held, LEAST)?.peak() <= limit)
            })?;
            if let Some(((_, with), _, what, and)) = found {
                return Ok(format!("{what} fits{with}{and}{given}"));
            }
        }
        Ok("no size fits".into())
    }
}

/// The first of what could be asked for that fits.
fn first_that_fits<T>(others: impl Iterator<Item = T>, fits: impl Fn(&T) -> Result<bool>) -> Result<Option<T>> {
    for other in others {
        if fits(&other)? {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Sizes (height, width) of about the same shape, from the largest that is smaller.
fn smaller((height, width): (usize, usize)) -> impl Iterator<Item = (usize, usize)> + Clone {
    let rows = (1..height.div_ceil(SIZES)).rev();
    rows.map(move |rows| (rows * SIZES, (width * rows / height).max(1) * SIZES))
}

/// Whether a request's texts are not all encoded yet.
pub(crate) fn needs_encoder(request: &Request, plan: &Plan) -> bool {
    request.prompt_embeds.as_ref().is_none_or(|embeds| plan.is_guided() && embeds.negative.is_none())
}
