use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, RgbImage};
use pixart_diffusion::{Generator, NoiseSource, SchedulerConfig};
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::{Posterior, VaeConfig};
use pixart_weights::{Lora, Part, PipelineKind};

use crate::image::{ControlParameters, LoraParameters, fit, from_pixels, resize_and_crop, to_pixels};
use crate::limit::needs_encoder;
use crate::memory::{BAND_ELEMENTS, PROMPTS_AT_ONCE};
use crate::parts::Parts;
use crate::plan::{MAX_PIXELS, Plan, check_finite};
use crate::predictor::Predictor;
use crate::prompt::{Tokens, tokenize};
use crate::start::Start;
use crate::{
    Detector, Error, Image, Parameters, PipelineBuilder, PromptEmbeds, Request, Result, Seeds, clean_caption,
    dtype_name, plain_caption,
};

/// A step of the solver, told when it is done.
#[derive(Debug)]
pub struct StepInfo<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub total: usize,
    /// The timestep it started from, 0 to 999.
    pub timestep: f64,
    /// The latents it led to, `[images, 4, height / 8, width / 8]`.
    pub latents: &'a Tensor,
}

/// Time spent in each stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Reading weights.
    pub load: Duration,
    /// Encoding prompts.
    pub encode: Duration,
    /// All solver steps.
    pub denoise: Duration,
    /// Decoding latents to pictures.
    pub decode: Duration,
}

/// What [`Pipeline::generate`] gives.
#[derive(Debug, Clone)]
pub struct Generated {
    /// One picture for each prompt and repetition, prompts first.
    pub images: Vec<Image>,
    /// The final latents they were decoded from, scaled as the transformer has them.
    pub latents: Tensor,
    /// Where the time went.
    pub timings: Timings,
}

/// A request's images as the autoencoder has them.
#[derive(Default)]
struct EncodedImages {
    /// Scaled latents of the map that the ControlNet follows, `[1, channels, height, width]`.
    control: Option<Tensor>,
    /// Of the picture that is started from.
    init: Option<Posterior>,
}

/// A model that draws images from text.
pub struct Pipeline {
    pub(crate) parts: Parts,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) transformer_config: TransformerConfig,
    pub(crate) vae_config: VaeConfig,
    pub(crate) precision_name: String,
    /// Whether pictures are decoded a few rows after another.
    pub(crate) vae_tiling: bool,
    /// Bytes of memory that must do.
    pub(crate) memory_limit: Option<u64>,
}

impl Pipeline {
    /// Opens a diffusers folder on the best device there is. Only configs are read yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder(path).open()
    }

    /// Opens a diffusers folder with other settings.
    pub fn builder(path: impl AsRef<Path>) -> PipelineBuilder {
        PipelineBuilder::new(path.as_ref())
    }

    /// The scheduler that is in use: the folder's own, until [`Pipeline::set_scheduler`].
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// Draws with another scheduler from now on.
    pub fn set_scheduler(&mut self, scheduler: SchedulerConfig) {
        self.scheduler = scheduler;
    }

    /// Draws from now on with the scheduler of this name, as [`SchedulerConfig::named`] makes it of the one in use.
    ///
    /// # Errors
    /// No scheduler has the name.
    pub fn use_scheduler(&mut self, name: &str) -> Result<()> {
        self.scheduler = self.scheduler.named(name)?;
        Ok(())
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.parts.loader.device
    }

    /// In what the transformer computes: `int8`, `int8-weights`, or the dtype.
    pub fn precision_name(&self) -> &str {
        &self.precision_name
    }

    /// [`Pipeline::precision_name`], and behind 8 bits the dtype of the rest: `int8, bf16`.
    pub fn precision_and_dtype(&self) -> String {
        match dtype_name(self.dtype()) {
            rest if self.precision_name == rest => rest.into(),
            rest => format!("{}, {rest}", self.precision_name),
        }
    }

    /// Whether one of its parts is in 8 bits.
    ///
    /// # Errors
    /// A part that is broken.
    pub fn is_rounded(&self) -> Result<bool> {
        let loader = &self.parts.loader;
        let there = loader.folder.parts().filter(|part| loader.folder.part_path(*part).exists());
        let stored = there.map(|part| Ok(loader.weights(part, None)?.scheme().is_some()));
        let stored: Vec<bool> = stored.collect::<Result<_>>()?;
        Ok(loader.scheme.is_some() || stored.contains(&true))
    }

    /// The dtype it computes in, but for what is in 8 bits.
    pub fn dtype(&self) -> DType {
        self.parts.loader.dtype
    }

    /// The transformer's config.
    pub fn transformer_config(&self) -> &TransformerConfig {
        &self.transformer_config
    }

    /// Width and height in pixels of the pictures it was trained on.
    pub fn native_size(&self) -> usize {
        self.transformer_config.sample_size * self.vae_config.downscale()
    }

    /// The autoencoder's config.
    pub fn vae_config(&self) -> &VaeConfig {
        &self.vae_config
    }

    /// Checks everything about a request that can be checked without reading weights, its memory among it.
    ///
    /// # Errors
    /// What is wrong with it; with a limit of memory, a checkpoint's file that is missing or broken.
    pub fn check(&self, request: &Request) -> Result<()> {
        self.sharing(request, &self.plan(request)?).map(|_| ())
    }

    /// The edges of a picture at the size that is drawn for a request, a map for its [`Control`](crate::Control): a detector finds
    /// others in a larger picture, and ControlNets are trained on those that it finds at their size.
    ///
    /// # Errors
    /// A request that makes no sense; a picture that has no edges to be found; what the limit of memory does not allow.
    pub fn edges(&self, request: &Request, picture: &RgbImage, detector: &Detector) -> Result<GrayImage> {
        let plan = self.plan(request)?;
        self.check_detection(detector, plan.drawn)?;
        detector.detect(&fit(picture, plan.wanted, plan.drawn))
    }

    /// Draws what `request` asks for.
    ///
    /// # Errors
    /// A request that makes no sense or that the limit of memory does not allow, before any work; a checkpoint's file that is
    /// missing or broken; a device that is out of memory.
    pub fn generate(&mut self, request: &Request) -> Result<Generated> {
        self.generate_with(request, |_| ControlFlow::Continue(()))
    }

    /// As [`Pipeline::generate`], calling `on_step` after each step; its `Break` ends with [`Error::Cancelled`].
    pub fn generate_with(
        &mut self,
        request: &Request,
        on_step: impl FnMut(StepInfo) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let mut plan = self.plan(request)?;
        self.parts.check_files(needs_encoder(request, &plan), request.control.is_some())?;
        let sharing = self.sharing(request, &plan)?;
        let make_room = |this: &mut Self, part| {
            if sharing.alone {
                this.parts.keep_only(part);
            }
        };
        let mut timings = Timings::default();
        self.parts.loader.time = Duration::ZERO;

        make_room(self, Part::TextEncoder);
        let text = self.timed(&mut timings.encode, |this| this.text_of(request, &plan))?;
        make_room(self, Part::Vae);
        let images = self.timed(&mut timings.encode, |this| this.images_of(request, &plan))?;
        make_room(self, Part::Transformer);
        let latents =
            self.timed(&mut timings.denoise, |this| this.denoise(&mut plan, request, text, images, on_step))?;
        make_room(self, Part::Vae);
        let decode = |this: &mut Self| this.decode_to(&latents, plan.wanted, sharing.in_bands);
        let pixels = self.timed(&mut timings.decode, decode)?;

        timings.load = self.parts.loader.time;
        let images = pixels.into_iter().enumerate();
        let images =
            images.map(|(i, pixels)| Image { pixels, parameters: self.parameters(request, &plan, i) }).collect();
        Ok(Generated { images, latents, timings })
    }

    /// Encodes prompts, as the transformer takes them, in one go; `negative_prompt`, where there is one, for all of them.
    ///
    /// # Errors
    /// A tokenizer or text encoder that is missing or broken.
    pub fn encode(&mut self, prompts: &[String], negative_prompt: Option<&str>, clean: bool) -> Result<PromptEmbeds> {
        let length = self.parts.loader.folder.kind().max_sequence_length();
        self.check_encoding(prompts.len(), length)?;
        let (prompt_embeds, prompt_attention_mask) = self.encode_texts(prompts, length, clean, Padding::Kept)?;
        let negative = match negative_prompt {
            Some(negative) => Some(self.encode_negative(negative, prompts.len(), length, clean, Padding::Kept)?),
            None => None,
        };
        self.parts.release_text_encoder();
        Ok(PromptEmbeds { prompt_embeds, prompt_attention_mask, negative })
    }

    /// Decodes latents `[images, 4, height, width]`, scaled as the transformer has them, to pictures [`VaeConfig::downscale`]
    /// times as large.
    ///
    /// # Errors
    /// Latents of another shape or with values that are not finite; an autoencoder that is missing or broken.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Vec<image::RgbImage>> {
        let (_, channels, height, width) = latents
            .dims4()
            .map_err(|_| Error::request(format!("latents are [images, 4, height, width], not {:?}", latents.dims())))?;
        if channels != self.vae_config.latent_channels {
            let wanted = self.vae_config.latent_channels;
            return Err(Error::request(format!("the latents have {channels} channels, this vae has {wanted}")));
        }
        let scale = self.vae_config.downscale();
        if latents.elem_count() == 0 || height.max(width) * scale > MAX_PIXELS {
            return Err(Error::request(format!("latents of {:?} cannot be decoded", latents.dims())));
        }
        check_finite(latents, "the latents")?;
        let size = (height * scale, width * scale);
        let in_bands = self.decodes_in_bands(size)?;
        if self.memory_limit.is_some() {
            self.parts.keep_only(Part::Vae);
        }
        self.decode_to(latents, size, in_bands)
    }

    pub(crate) fn plan(&self, request: &Request) -> Result<Plan> {
        Plan::new(request, &self.scheduler, &self.transformer_config, &self.vae_config)
    }

    /// Tokens that a request's prompts are cut or padded to.
    pub(crate) fn text_length(&self, request: &Request) -> Result<usize> {
        Ok(match &request.prompt_embeds {
            Some(embeds) => embeds.prompt_embeds.dim(1)?,
            None => request.max_sequence_length.unwrap_or(self.parts.loader.folder.kind().max_sequence_length()),
        })
    }

    /// Runs a stage; what it spent on loading counts as loading.
    fn timed<T>(&mut self, time: &mut Duration, stage: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (start, loaded) = (Instant::now(), self.parts.loader.time);
        let result = stage(self);
        *time += start.elapsed().saturating_sub(self.parts.loader.time - loaded);
        result
    }

    /// Encodes a request's prompts in one go, and what to steer away from if its guidance needs that.
    pub fn encode_request(&mut self, request: &Request) -> Result<(PromptEmbeds, Timings)> {
        let plan = self.plan(request)?;
        let with_text = needs_encoder(request, &plan);
        self.parts.check_files(with_text, request.control.is_some())?;
        if with_text {
            self.check_encoding(request.num_prompts(), self.text_length(request)?)?;
        }
        let mut timings = Timings::default();
        self.parts.loader.time = Duration::ZERO;
        let text = self.timed(&mut timings.encode, |this| this.text_of(request, &plan))?;
        timings.load = self.parts.loader.time;
        Ok((text, timings))
    }

    /// The request's text, one row a prompt, with a negative exactly where guidance needs it, and no longer than its longest prompt:
    /// what is behind it, nothing looks at.
    fn text_of(&mut self, request: &Request, plan: &Plan) -> Result<PromptEmbeds> {
        let mut text = match &request.prompt_embeds {
            Some(embeds) => embeds.clone(),
            None => {
                let length = self.text_length(request)?;
                let (prompt_embeds, prompt_attention_mask) =
                    self.encode_texts(&request.prompts, length, request.clean_caption, Padding::Cut)?;
                PromptEmbeds { prompt_embeds, prompt_attention_mask, negative: None }
            }
        };
        if !plan.is_guided() {
            text.negative = None;
        } else if text.negative.is_none() {
            let (length, clean) = (self.text_length(request)?, request.clean_caption);
            let negative = self.encode_negative(&request.negative_prompt, text.batch(), length, clean, Padding::Cut)?;
            text.negative = Some(negative);
        }
        self.parts.release_text_encoder();
        text.without_padding()
    }

    /// The request's images, encoded at the size that is drawn.
    fn images_of(&mut self, request: &Request, plan: &Plan) -> Result<EncodedImages> {
        if request.control.is_none() && request.init.is_none() {
            return Ok(EncodedImages::default());
        }
        let (device, factor) = (self.device().clone(), self.vae_config.scaling_factor);
        let vae = self.parts.vae(&self.vae_config)?;
        let encode = |pixels: &RgbImage| Ok::<_, Error>(vae.encode(&from_pixels(pixels, &device)?)?);
        let control = match &request.control {
            // The most likely latents of the map, in three equal channels.
            Some(control) => {
                let map = image::DynamicImage::ImageLuma8(fit(&control.map, plan.wanted, plan.drawn)).into_rgb8();
                Some((encode(&map)?.mean * factor)?)
            }
            None => None,
        };
        let init = request.init.as_ref().map(|init| encode(&fit(&init.image, plan.wanted, plan.drawn))).transpose()?;
        Ok(EncodedImages { control, init })
    }

    /// The solver's loop: noise to latents.
    fn denoise(
        &mut self,
        plan: &mut Plan,
        request: &Request,
        text: PromptEmbeds,
        images: EncodedImages,
        mut on_step: impl FnMut(StepInfo) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let (device, kind) = (self.device().clone(), self.parts.loader.folder.kind());
        let transformer = self.parts.transformer(&self.transformer_config, request.control.is_some())?;
        let control = images.control.as_ref().zip(request.control.as_ref().map(|control| control.scale));
        let predictor = Predictor::new(transformer, plan, &text, request.num_images_per_prompt, control)?;
        let mut source = match &request.seeds {
            Seeds::Shared(seed) => NoiseSource::Shared(Generator::new(*seed)),
            Seeds::PerImage(seeds) => NoiseSource::PerImage(seeds.iter().copied().map(Generator::new).collect()),
        };
        let factor = self.vae_config.scaling_factor;
        let posterior = request.init.as_ref().zip(images.init).map(|(init, posterior)| (init, posterior, factor));
        let start = Start::new(plan, request, posterior, &mut source, &device)?;
        let mut latents = start.latents.clone();
        let first = plan.first_step;
        let solver = &mut plan.solver;
        // Of a single step diffusers' pipeline for α takes the estimate of the image, the one for Σ what the step leads to.
        let takes_estimate = plan.steps == 1 && kind == PipelineKind::Alpha && request.init.is_none();
        let total = solver.timesteps().len() - first;
        for index in 0..total {
            let step = first + index;
            let timestep = solver.timesteps()[step];
            let input = solver.scale_model_input(&latents, step)?;
            let controlled = request.control.as_ref().is_some_and(|control| control.applies(index, total));
            let prediction = predictor.predict(&input, timestep, solver.uses_learned_variance(), controlled)?;
            let taken = solver.step(&prediction, step, &latents, &mut source)?;
            latents = match taken.pred_original_sample {
                Some(estimate) if takes_estimate => estimate,
                _ => taken.prev_sample,
            };
            latents = start.keep(latents, solver.as_ref(), step + 1)?;
            if on_step(StepInfo { index, total, timestep, latents: &latents }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        check_finite(&latents, "the latents that were drawn")?;
        Ok(latents)
    }

    /// Latents to pictures of `size` (height, width), one after another: a decoder needs a gigabyte for each.
    fn decode_to(&mut self, latents: &Tensor, size: (usize, usize), in_bands: bool) -> Result<Vec<image::RgbImage>> {
        let unscaled = (latents.to_device(self.device())? / self.vae_config.scaling_factor)?;
        let vae = self.parts.vae(&self.vae_config)?;
        let decode_one = |i| {
            let latents = unscaled.narrow(0, i, 1)?;
            let image = match in_bands {
                true => vae.decode_in_bands(&latents, BAND_ELEMENTS)?,
                false => vae.decode(&latents)?,
            };
            to_pixels(&resize_and_crop(&image, size.0, size.1)?)
        };
        (0..latents.dim(0)?).map(decode_one).collect()
    }

    /// One text for all of a batch, as [`Pipeline::encode_texts`] encodes it.
    fn encode_negative(
        &mut self,
        negative_prompt: &str,
        batch: usize,
        length: usize,
        clean: bool,
        padding: Padding,
    ) -> Result<(Tensor, Tensor)> {
        let (embeds, mask) = self.encode_texts(&[negative_prompt.to_string()], length, clean, padding)?;
        let (_, length, width) = embeds.dims3()?;
        Ok((embeds.broadcast_as((batch, length, width))?, mask.broadcast_as((batch, length))?))
    }

    /// Texts of up to `length` tokens to embeddings `[batch, n, width]` and masks `[batch, n]`, both f32.
    fn encode_texts(
        &mut self,
        texts: &[String],
        length: usize,
        clean: bool,
        padding: Padding,
    ) -> Result<(Tensor, Tensor)> {
        let texts: Vec<String> =
            texts.iter().map(|text| if clean { clean_caption(text) } else { plain_caption(text) }).collect();
        let device = self.device().clone();
        let (tokenizer, encoder) = self.parts.text_encoder()?;
        let mut tokens = tokenize(tokenizer, &texts, length, &device)?;
        if padding == Padding::Cut {
            tokens = tokens.without_padding()?;
        }
        let Tokens { input_ids, attention_mask } = tokens;
        let mut embeds = Vec::new();
        for first in (0..texts.len()).step_by(PROMPTS_AT_ONCE) {
            let count = PROMPTS_AT_ONCE.min(texts.len() - first);
            let (ids, mask) = (input_ids.narrow(0, first, count)?, attention_mask.narrow(0, first, count)?);
            embeds.push(encoder.forward(&ids, &mask)?.to_dtype(DType::F32)?);
        }
        Ok((Tensor::cat(&embeds, 0)?, attention_mask))
    }

    fn parameters(&self, request: &Request, plan: &Plan, image: usize) -> Parameters {
        let prompt = request.prompts.get(image / request.num_images_per_prompt).cloned().unwrap_or_default();
        let (seed, index) = match &request.seeds {
            Seeds::Shared(seed) => (*seed, image),
            Seeds::PerImage(seeds) => (seeds.get(image).copied().unwrap_or(0), 0),
        };
        let folder = &self.parts.loader.folder;
        let model = folder.path().canonicalize().unwrap_or_else(|_| folder.path().into());
        let path = |path: &Path| path.display().to_string();
        let lora = |lora: &Lora| LoraParameters { path: path(lora.path()), strength: lora.strength() };
        Parameters {
            prompt,
            negative_prompt: if plan.is_guided() { request.negative_prompt.clone() } else { String::new() },
            steps: plan.steps,
            guidance_scale: plan.guidance_scale,
            scheduler: self.scheduler.kind().class_name().into(),
            seed,
            index,
            width: plan.wanted.1,
            height: plan.wanted.0,
            model: model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            eta: request.eta,
            strength: request.init.as_ref().map(|init| init.strength),
            masked: request.init.as_ref().is_some_and(|init| init.mask.is_some()),
            control: request.control.as_ref().map(|control| ControlParameters {
                control_scale: control.scale,
                control_start: control.start,
                control_end: control.end,
            }),
            clean_caption: request.clean_caption,
            drawn_size: [plan.drawn.1, plan.drawn.0],
            scheduler_config: self.scheduler.fields(),
            parts: folder.replaced().map(|(part, from)| (part.name().into(), path(from))).collect(),
            loras: folder.loras().iter().map(lora).collect(),
            dtype: self.precision_and_dtype(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// What becomes of the tokens behind a text, which no transformer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    /// They are encoded as diffusers encodes them.
    Kept,
    /// Texts are as long as the longest one: an encoder of billions of parameters then takes a fraction of the time.
    Cut,
}
