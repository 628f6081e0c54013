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
        self.estimator(request, &plan)?.estimate(request, &plan, sharing)
    }

    /// How a request's stages share memory: in the fastest way that the limit allows.
    pub(crate) fn sharing(&self, request: &Request, plan: &Plan) -> Result<Sharing> {
        let ways = Sharing::ways(self.vae_tiling);
        let Some(limit) = self.memory_limit else { return Ok(ways[0]) };
        let estimator = self.estimator(request, plan)?;
        let takes = |way: &Sharing| Ok(estimator.estimate(request, plan, *way)?.peak());
        if let Some(way) = first_that_fits(ways.into_iter(), limit, takes)? {
            return Ok(way);
        }
        let (height, width) = plan.wanted;
        let what = match plan.latents_shape.0 {
            1 => format!("a picture of {width}x{height} in {}", self.precision_name),
            images => format!("{images} pictures of {width}x{height} in {}", self.precision_name),
        };
        let instead = self.what_fits(request, plan, limit)?;
        Err(refusal(&what, &estimator.estimate(request, plan, LEAST)?, limit, &instead))
    }

    /// Whether latents that are given become pictures of so many pixels in bands.
    pub(crate) fn decodes_in_bands(&self, (height, width): (usize, usize)) -> Result<bool> {
        let Some(limit) = self.memory_limit else { return Ok(self.vae_tiling) };
        let loader = &self.parts.loader;
        let autoencoder = |held| memory::autoencoder(loader, held, &self.vae_config);
        let (own, pixels) = (autoencoder(loader.held())?, |(height, width)| (height * width) as u64);
        if let Some(way) = [self.vae_tiling, true].into_iter().find(|way| own(pixels((height, width)), *way) <= limit) {
            return Ok(way);
        }
        let precisions = self.other_precisions()?.into_iter().map(|(held, with)| Ok((autoencoder(held)?, with)));
        let precisions = precisions.collect::<Result<Vec<_>>>()?;
        let sizes = std::iter::once((height, width)).chain(smaller((height, width)));
        let mut others = sizes.flat_map(|size| precisions.iter().map(move |precision| (precision, size)));
        let found = others.find(|((takes, _), size)| takes(pixels(*size), true) <= limit);
        let instead = match found {
            Some(((_, with), (height, width))) => format!("{width}x{height} fits{with}"),
            None => "no size fits".into(),
        };
        let estimate = MemoryEstimate { decode: own(pixels((height, width)), true), ..MemoryEstimate::default() };
        Err(refusal(&format!("a picture of {width}x{height}"), &estimate, limit, &instead))
    }

    /// Refuses to encode so many prompts where the limit does not allow it.
    pub(crate) fn check_encoding(&self, prompts: usize, length: usize) -> Result<()> {
        let Some(limit) = self.memory_limit else { return Ok(()) };
        let loader = &self.parts.loader;
        let text_encoder = |held| memory::text_encoder(loader, held, length);
        let encode = text_encoder(loader.held())?(prompts);
        if encode <= limit {
            return Ok(());
        }
        let precisions = self.other_precisions()?.into_iter().map(|(held, with)| Ok((text_encoder(held)?, with)));
        let precisions = precisions.collect::<Result<Vec<_>>>()?;
        let mut others =
            (1..=prompts).rev().flat_map(|fewer| precisions.iter().map(move |precision| (precision, fewer)));
        let found = others.find(|((takes, _), fewer)| takes(*fewer) <= limit);
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

    /// What `request` takes as weights and what is computed are held, and any like it.
    fn estimator(&self, request: &Request, plan: &Plan) -> Result<Estimator<'_>> {
        Estimator::new(self, self.parts.loader.held(), needs_encoder(request, plan), request.control.is_some())
    }

    /// In what weights and what is computed could be held, the present way first, and the option that asks for it.
    fn other_precisions(&self) -> Result<Vec<(Held, &'static str)>> {
        let loader = &self.parts.loader;
        let precision =
            |precision: Precision| Held { dtype: precision.dtype(&loader.device), scheme: precision.scheme() };
        let mut ways = vec![(loader.held(), "")];
        // What is stored in other 8 bits stays so.
        if loader.folder.stored_scheme(Part::Transformer)?.is_none_or(|stored| stored == Scheme::Int8) {
            ways.push((precision(Precision::Int8), " with --dtype int8"));
        }
        ways.push((precision(Precision::Bf16), " with --dtype bf16"));
        Ok(ways)
    }

    /// What someone could ask for instead of a request that does not fit.
    fn what_fits(&self, request: &Request, plan: &Plan, limit: u64) -> Result<String> {
        let binnings = [(request.resolution_binning, ""), (false, " with --no-resolution-binning")];
        for (encodes, given) in
            [(needs_encoder(request, plan), ""), (false, " with embeddings that are there already (--prompt-embeds)")]
        {
            let precisions = self.other_precisions()?.into_iter();
            let precisions = precisions
                .map(|(held, with)| Ok((Estimator::new(self, held, encodes, request.control.is_some())?, with)));
            let precisions = precisions.collect::<Result<Vec<_>>>()?;
            let as_it_is = precisions.iter().map(|precision| (precision, request.clone(), "it".to_string(), ""));
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
            let found = first_that_fits(as_it_is.chain(at_a_size), limit, |((estimator, _), request, ..)| {
                Ok(estimator.estimate(request, &self.plan(request)?, LEAST)?.peak())
            })?;
            if let Some(((_, with), _, what, and)) = found {
                return Ok(format!("{what} fits{with}{and}{given}"));
            }
        }
        Ok("no size fits".into())
    }
}

/// What requests take of memory where weights and what is computed are held in one way. It has looked at the parts.
struct Estimator<'a> {
    pipeline: &'a Pipeline,
    held: Held,
    sizes: PartSizes,
    /// Of the text encoder, where texts are to be encoded.
    encoder: Option<T5Config>,
}

impl<'a> Estimator<'a> {
    fn new(pipeline: &'a Pipeline, held: Held, encodes: bool, controlled: bool) -> Result<Self> {
        let loader = &pipeline.parts.loader;
        let kept = pipeline.parts.keep_loaded && loader.folder.part_path(Part::TextEncoder).exists();
        let sizes = PartSizes::of(loader, held, kept || encodes, controlled)?;
        let encoder = encodes.then(|| loader.folder.config(Part::TextEncoder)).transpose()?;
        Ok(Self { pipeline, held, sizes, encoder })
    }

    fn estimate(&self, request: &Request, plan: &Plan, way: Sharing) -> Result<MemoryEstimate> {
        let Self { pipeline, held, sizes, encoder } = self;
        let configs = (&pipeline.transformer_config, pipeline.parts.controlnet_config.as_ref(), &pipeline.vae_config);
        let length = pipeline.text_length(request)?;
        let work = Work::new(request, plan, length, encoder.as_ref(), configs, held.dtype);
        Ok(MemoryEstimate::new(sizes, &work, pipeline.parts.keep_loaded, way))
    }
}

/// The first of what could be asked for that takes no more than the limit.
fn first_that_fits<T>(
    others: impl Iterator<Item = T>,
    limit: u64,
    takes: impl Fn(&T) -> Result<u64>,
) -> Result<Option<T>> {
    for other in others {
        if takes(&other)? <= limit {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Sizes (height, width) of about the same shape, from the largest that is smaller.
fn smaller((height, width): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    let rows = (1..height.div_ceil(SIZES)).rev();
    rows.map(move |rows| (rows * SIZES, (width * rows / height).max(1) * SIZES))
}

/// Whether a request's texts are not all encoded yet.
pub(crate) fn needs_encoder(request: &Request, plan: &Plan) -> bool {
    request.prompt_embeds.as_ref().is_none_or(|embeds| plan.is_guided() && embeds.negative.is_none())
}
