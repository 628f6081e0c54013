use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use pixart_diffusion::{Generator, NoiseSource, SchedulerConfig};
use pixart_nn::t5::{T5Config, T5Encoder};
use pixart_nn::transformer::{PixArtTransformer, ProjectedText, SizeConditions, TransformerConfig};
use pixart_nn::vae::{AutoencoderKl, VaeConfig};
use pixart_weights::{
    Part, PipelineFolder, PipelineKind, Weights, is_original_transformer, original_transformer_config, read_tokenizer,
};
use tokenizers::Tokenizer;

use crate::image::{resize_and_crop, to_pixels};
use crate::plan::Plan;
use crate::prompt::tokenize;
use crate::{
    DeviceChoice, Error, Image, Parameters, Precision, PromptEmbeds, Request, Result, Seeds, clean_caption, dtype_name,
    plain_caption,
};

/// How many prompts the text encoder takes at once: enough to fill a processor, little memory.
const PROMPTS_AT_ONCE: usize = 8;

type OnLoad = Arc<dyn Fn(LoadProgress) + Send + Sync>;

/// Loading of a part's weights, told after each tensor.
#[derive(Debug, Clone, Copy)]
pub struct LoadProgress {
    /// What is being loaded.
    pub part: Part,
    /// Bytes read so far.
    pub read: u64,
    /// Bytes in all.
    pub total: u64,
}

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

/// How to open a [`Pipeline`].
#[derive(Clone)]
pub struct PipelineBuilder {
    path: PathBuf,
    parts: Vec<(Part, PathBuf)>,
    device: DeviceChoice,
    precision: Precision,
    keep_loaded: bool,
    on_load: Option<OnLoad>,
}

impl PipelineBuilder {
    /// Where to compute.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// In which precision.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Takes one part from elsewhere: its folder, a pipeline folder, or a weight file, such as an original PixArt `.pth`.
    pub fn part(mut self, part: Part, path: impl Into<PathBuf>) -> Self {
        self.parts.push((part, path.into()));
        self
    }

    /// Keeps the text encoder in memory after use. Without it, it is freed before the transformer is loaded.
    pub fn keep_loaded(mut self, keep_loaded: bool) -> Self {
        self.keep_loaded = keep_loaded;
        self
    }

    /// Calls `on_load` as weights are read.
    pub fn on_load(mut self, on_load: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.on_load = Some(Arc::new(on_load));
        self
    }

    /// Reads the configs. Weights are read when they are first needed.
    pub fn open(self) -> Result<Pipeline> {
        let device = self.device.open()?;
        let dtype = self.precision.dtype(&device);
        let mut folder = PipelineFolder::open(&self.path)?;
        for (part, path) in self.parts {
            folder = folder.with_part(part, path)?;
        }
        let scheduler_path = folder.scheduler_path();
        let scheduler = std::fs::read_to_string(&scheduler_path).map_err(Error::io(&scheduler_path))?;
        let scheduler = SchedulerConfig::from_json(&scheduler)
            .map_err(|error| Error::request(format!("{}: {error}", scheduler_path.display())))?;
        let transformer_config = transformer_config(&folder)?;
        let vae_config: VaeConfig = folder.config(Part::Vae)?;
        let invalid = |part: Part| {
            let path = folder.config_path(part);
            move |reason: String| Error::request(format!("{}: {reason}", path.display()))
        };
        transformer_config.validate().map_err(invalid(Part::Transformer))?;
        vae_config.validate().map_err(invalid(Part::Vae))?;
        if vae_config.latent_channels != transformer_config.in_channels {
            return Err(Error::request(format!(
                "{}: the transformer has {} latent channels, the vae {}; they do not belong together",
                folder.path().display(),
                transformer_config.in_channels,
                vae_config.latent_channels
            )));
        }
        Ok(Pipeline {
            folder,
            scheduler,
            transformer_config,
            vae_config,
            device,
            dtype,
            keep_loaded: self.keep_loaded,
            on_load: self.on_load,
            tokenizer: None,
            text_encoder: None,
            transformer: None,
            vae: None,
            load_time: Duration::ZERO,
        })
    }
}

/// A model that draws images from text.
pub struct Pipeline {
    folder: PipelineFolder,
    scheduler: SchedulerConfig,
    transformer_config: TransformerConfig,
    vae_config: VaeConfig,
    device: Device,
    dtype: DType,
    pub(crate) keep_loaded: bool,
    on_load: Option<OnLoad>,
    tokenizer: Option<Tokenizer>,
    text_encoder: Option<T5Encoder>,
    transformer: Option<PixArtTransformer>,
    vae: Option<AutoencoderKl>,
    load_time: Duration,
}

impl Pipeline {
    /// Opens a diffusers folder on the best device there is. Only configs are read yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder(path).open()
    }

    /// Opens a diffusers folder with other settings.
    pub fn builder(path: impl AsRef<Path>) -> PipelineBuilder {
        PipelineBuilder {
            path: path.as_ref().into(),
            parts: vec![],
            device: DeviceChoice::default(),
            precision: Precision::default(),
            keep_loaded: false,
            on_load: None,
        }
    }

    /// The scheduler that is in use: the folder's own, until [`Pipeline::set_scheduler`].
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// Draws with another scheduler from now on.
    pub fn set_scheduler(&mut self, scheduler: SchedulerConfig) {
        self.scheduler = scheduler;
    }

    /// The device it computes on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The transformer's config.
    pub fn transformer_config(&self) -> &TransformerConfig {
        &self.transformer_config
    }

    /// The autoencoder's config.
    pub fn vae_config(&self) -> &VaeConfig {
        &self.vae_config
    }

    /// Checks everything about a request that can be checked without weights.
    pub fn check(&self, request: &Request) -> Result<()> {
        self.plan(request).map(|_| ())
    }

    /// Draws what `request` asks for.
    ///
    /// # Errors
    /// A request that makes no sense, before any work; a checkpoint's file that is missing or broken; a device that is
    /// out of memory.
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
        let mut timings = Timings::default();
        self.load_time = Duration::ZERO;

        let text = self.timed(&mut timings.encode, |this| this.text_of(request, &plan))?;
        let text = text.repeat_each(request.num_images_per_prompt)?;
        let latents = self.timed(&mut timings.denoise, |this| this.denoise(&mut plan, request, &text, on_step))?;
        let pixels = self.timed(&mut timings.decode, |this| this.decode_to(&latents, plan.wanted))?;

        timings.load = self.load_time;
        let images = pixels.into_iter().enumerate();
        let images =
            images.map(|(i, pixels)| Image { pixels, parameters: self.parameters(request, &plan, i) }).collect();
        Ok(Generated { images, latents, timings })
    }

    /// Encodes prompts, as the transformer takes them, in one go; `negative_prompt`, where there is one, for all of them.
    pub fn encode(&mut self, prompts: &[String], negative_prompt: Option<&str>, clean: bool) -> Result<PromptEmbeds> {
        let length = self.folder.kind().max_sequence_length();
        let (prompt_embeds, prompt_attention_mask) = self.encode_texts(prompts, length, clean)?;
        let negative = match negative_prompt {
            Some(negative) => Some(self.encode_negative(negative, prompts.len(), length, clean)?),
            None => None,
        };
        self.release_text_encoder();
        Ok(PromptEmbeds { prompt_embeds, prompt_attention_mask, negative })
    }

    /// Decodes latents `[images, 4, height, width]`, scaled as the transformer has them, to pictures eight times as large.
    pub fn decode(&mut self, latents: &Tensor) -> Result<Vec<image::RgbImage>> {
        let (_, channels, height, width) = latents
            .dims4()
            .map_err(|_| Error::request(format!("latents are [images, 4, height, width], not {:?}", latents.dims())))?;
        if channels != self.vae_config.latent_channels {
            let wanted = self.vae_config.latent_channels;
            return Err(Error::request(format!("the latents have {channels} channels, this vae has {wanted}")));
        }
        let scale = self.vae_config.downscale();
        self.decode_to(latents, (height * scale, width * scale))
    }

    fn plan(&self, request: &Request) -> Result<Plan> {
        Plan::new(request, &self.scheduler, &self.transformer_config, &self.vae_config)
    }

    /// Runs a stage; what it spent on loading counts as loading.
    fn timed<T>(&mut self, time: &mut Duration, stage: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (start, loaded) = (Instant::now(), self.load_time);
        let result = stage(self);
        *time += start.elapsed().saturating_sub(self.load_time - loaded);
        result
    }

    /// Encodes a request's prompts in one go, and what to steer away from if its guidance needs that.
    pub fn encode_request(&mut self, request: &Request) -> Result<(PromptEmbeds, Timings)> {
        let plan = self.plan(request)?;
        let mut timings = Timings::default();
        self.load_time = Duration::ZERO;
        let text = self.timed(&mut timings.encode, |this| this.text_of(request, &plan))?;
        timings.load = self.load_time;
        Ok((text, timings))
    }

    /// The request's text, one row a prompt, with a negative exactly where guidance needs it.
    fn text_of(&mut self, request: &Request, plan: &Plan) -> Result<PromptEmbeds> {
        let mut text = match &request.prompt_embeds {
            Some(embeds) => embeds.clone(),
            None => {
                let length = request.max_sequence_length.unwrap_or(self.folder.kind().max_sequence_length());
                let (prompt_embeds, prompt_attention_mask) =
                    self.encode_texts(&request.prompts, length, request.clean_caption)?;
                PromptEmbeds { prompt_embeds, prompt_attention_mask, negative: None }
            }
        };
        if !plan.is_guided() {
            text.negative = None;
        } else if text.negative.is_none() {
            let length = text.prompt_embeds.dim(1)?;
            let (negative, clean) = (&request.negative_prompt, request.clean_caption);
            text.negative = Some(self.encode_negative(negative, text.batch(), length, clean)?);
        }
        self.release_text_encoder();
        Ok(text)
    }

    /// The solver's loop: noise to latents.
    fn denoise(
        &mut self,
        plan: &mut Plan,
        request: &Request,
        text: &PromptEmbeds,
        mut on_step: impl FnMut(StepInfo) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        self.load_transformer()?;
        let predictor = Predictor::new(self.transformer()?, plan, text)?;
        let solver = &mut plan.solver;
        let mut source = match &request.seeds {
            Seeds::Shared(seed) => NoiseSource::Shared(Generator::new(*seed)),
            Seeds::PerImage(seeds) => NoiseSource::PerImage(seeds.iter().copied().map(Generator::new).collect()),
        };
        let latents = match &request.latents {
            Some(latents) => latents.to_device(&self.device)?.to_dtype(DType::F32)?,
            None => source.randn_tensor(plan.latents_shape, &self.device)?,
        };
        let mut latents = (latents * solver.init_noise_sigma())?;
        let total = solver.timesteps().len();
        for index in 0..total {
            let timestep = solver.timesteps()[index];
            let input = solver.scale_model_input(&latents, index)?;
            let prediction = predictor.predict(&input, timestep, solver.uses_learned_variance())?;
            let step = solver.step(&prediction, index, &latents, &mut source)?;
            // diffusers takes a single step's own estimate of the image.
            latents = match step.pred_original_sample {
                Some(estimate) if plan.steps == 1 => estimate,
                _ => step.prev_sample,
            };
            if on_step(StepInfo { index, total, timestep, latents: &latents }).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(latents)
    }

    /// Latents to pictures of `size` (height, width), one after another: a decoder needs a gigabyte for each.
    fn decode_to(&mut self, latents: &Tensor, size: (usize, usize)) -> Result<Vec<image::RgbImage>> {
        self.load_vae()?;
        let vae = self.vae()?;
        let unscaled = (latents.to_device(&self.device)? / self.vae_config.scaling_factor)?;
        let decode_one = |i| {
            let image = vae.decode(&unscaled.narrow(0, i, 1)?)?;
            to_pixels(&resize_and_crop(&image, size.0, size.1)?)
        };
        (0..latents.dim(0)?).map(decode_one).collect()
    }

    fn encode_negative(
        &mut self,
        negative_prompt: &str,
        batch: usize,
        length: usize,
        clean: bool,
    ) -> Result<(Tensor, Tensor)> {
        let (embeds, mask) = self.encode_texts(&[negative_prompt.to_string()], length, clean)?;
        Ok((embeds.repeat((batch, 1, 1))?, mask.repeat((batch, 1))?))
    }

    /// Texts to embeddings `[batch, length, width]` and masks `[batch, length]`, both f32.
    fn encode_texts(&mut self, texts: &[String], length: usize, clean: bool) -> Result<(Tensor, Tensor)> {
        let texts: Vec<String> =
            texts.iter().map(|text| if clean { clean_caption(text) } else { plain_caption(text) }).collect();
        self.load_text_encoder()?;
        let (Some(tokenizer), Some(encoder)) = (&self.tokenizer, &self.text_encoder) else {
            return Err(Error::Compute("the text encoder is not loaded".into()));
        };
        let mut embeds = Vec::new();
        let mut masks = Vec::new();
        for texts in texts.chunks(PROMPTS_AT_ONCE) {
            let tokens = tokenize(tokenizer, texts, length, &self.device)?;
            embeds.push(encoder.forward(&tokens.input_ids, &tokens.attention_mask)?.to_dtype(DType::F32)?);
            masks.push(tokens.attention_mask);
        }
        Ok((Tensor::cat(&embeds, 0)?, Tensor::cat(&masks, 0)?))
    }

    fn parameters(&self, request: &Request, plan: &Plan, image: usize) -> Parameters {
        let prompt = request.prompts.get(image / request.num_images_per_prompt).cloned().unwrap_or_default();
        let (seed, index) = match &request.seeds {
            Seeds::Shared(seed) => (*seed, image),
            Seeds::PerImage(seeds) => (seeds.get(image).copied().unwrap_or(0), 0),
        };
        let model = self.folder.path().canonicalize().unwrap_or_else(|_| self.folder.path().into());
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
            dtype: dtype_name(self.dtype).into(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// Loading and freeing of parts.
impl Pipeline {
    fn weights(&self, part: Part) -> Result<Weights> {
        let weights = self.folder.weights(part, self.dtype)?;
        let Some(on_load) = self.on_load.clone() else { return Ok(weights) };
        let (read, total) = (AtomicU64::new(0), weights.size_in_bytes());
        Ok(weights.on_read(move |bytes| {
            let read = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
            on_load(LoadProgress { part, read, total });
        }))
    }

    pub(crate) fn load_text_encoder(&mut self) -> Result<()> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(read_tokenizer(&self.folder.tokenizer_path())?);
        }
        if self.text_encoder.is_none() {
            if !self.keep_loaded {
                // The encoder and the transformer are the two largest parts; only one is in memory at a time.
                self.transformer = None;
            }
            let start = Instant::now();
            let config: T5Config = self.folder.config(Part::TextEncoder)?;
            let weights = self.weights(Part::TextEncoder)?;
            self.text_encoder = Some(T5Encoder::new(&config, weights.var_builder(self.dtype, &self.device))?);
            self.load_time += start.elapsed();
        }
        Ok(())
    }

    pub(crate) fn release_text_encoder(&mut self) {
        if !self.keep_loaded {
            self.text_encoder = None;
        }
    }

    pub(crate) fn load_transformer(&mut self) -> Result<()> {
        if self.transformer.is_none() {
            let start = Instant::now();
            let vb = self.weights(Part::Transformer)?.var_builder(self.dtype, &self.device);
            self.transformer = Some(PixArtTransformer::new(&self.transformer_config, vb)?);
            self.load_time += start.elapsed();
        }
        Ok(())
    }

    pub(crate) fn load_vae(&mut self) -> Result<()> {
        if self.vae.is_none() {
            let start = Instant::now();
            let vb = self.weights(Part::Vae)?.var_builder(self.dtype, &self.device);
            self.vae = Some(AutoencoderKl::new(&self.vae_config, vb)?);
            self.load_time += start.elapsed();
        }
        Ok(())
    }

    pub(crate) fn transformer(&self) -> Result<&PixArtTransformer> {
        self.transformer.as_ref().ok_or_else(|| Error::Compute("the transformer is not loaded".into()))
    }

    fn vae(&self) -> Result<&AutoencoderKl> {
        self.vae.as_ref().ok_or_else(|| Error::Compute("the vae is not loaded".into()))
    }

    pub(crate) fn has_text_encoder(&self) -> bool {
        self.folder.part_path(Part::TextEncoder).exists()
    }

    pub(crate) fn kind(&self) -> PipelineKind {
        self.folder.kind()
    }
}

/// The folder's transformer config, or, for an original `.pth`, what its shapes say.
fn transformer_config(folder: &PipelineFolder) -> Result<TransformerConfig> {
    let path = folder.part_path(Part::Transformer);
    if path.is_dir() {
        return Ok(folder.config(Part::Transformer)?);
    }
    let base: TransformerConfig = folder.config(Part::Transformer)?;
    let original = Weights::open(&path)?;
    if !is_original_transformer(&original) {
        return Ok(base);
    }
    let renamed = folder.weights(Part::Transformer, DType::F32)?;
    Ok(original_transformer_config(&original, &renamed, Some(&base))?)
}

/// The transformer with everything about a request that stays the same from step to step.
struct Predictor<'a> {
    transformer: &'a PixArtTransformer,
    /// For each image, its text (and before it the text to steer away from, where there is guidance).
    texts: Vec<ProjectedText>,
    size: Option<SizeConditions>,
    guidance_scale: Option<f64>,
}

impl<'a> Predictor<'a> {
    fn new(transformer: &'a PixArtTransformer, plan: &Plan, text: &PromptEmbeds) -> Result<Self> {
        let device = transformer.device();
        let project = |i| {
            let (embeds, mask) = text.row(i)?.guided()?;
            Ok(transformer.project_text(&embeds.to_device(device)?, Some(&mask.to_device(device)?))?)
        };
        let guidance_scale = plan.is_guided().then_some(plan.guidance_scale);
        let rows = if guidance_scale.is_some() { 2 } else { 1 };
        let (height, width) = plan.drawn;
        let size = transformer.config().has_size_conditions();
        Ok(Self {
            transformer,
            texts: (0..text.batch()).map(project).collect::<Result<_>>()?,
            size: size.then(|| SizeConditions::new(height, width, rows, device)).transpose()?,
            guidance_scale,
        })
    }

    /// The network's prediction for latents `[images, channels, height, width]`, in f32. Images are taken one after
    /// another, each with its unguided twin, so that memory does not grow with their number.
    fn predict(&self, latents: &Tensor, timestep: f64, with_variance: bool) -> Result<Tensor> {
        let predictions = self.texts.iter().enumerate();
        let predictions = predictions
            .map(|(i, text)| self.predict_one(&latents.narrow(0, i, 1)?, timestep, text))
            .collect::<Result<Vec<_>>>()?;
        let prediction = Tensor::cat(&predictions, 0)?;
        let (channels, predicted) = (latents.dim(1)?, prediction.dim(1)?);
        if predicted == 2 * channels && !with_variance {
            return Ok(prediction.narrow(1, 0, channels)?);
        }
        Ok(prediction)
    }

    fn predict_one(&self, latents: &Tensor, timestep: f64, text: &ProjectedText) -> Result<Tensor> {
        let rows = if self.guidance_scale.is_some() { 2 } else { 1 };
        let latents = latents.repeat((rows, 1, 1, 1))?;
        let timestep = Tensor::new(vec![timestep as f32; rows], self.transformer.device())?;
        let prediction = self.transformer.forward(&latents, &timestep, text, self.size.as_ref())?;
        let prediction = prediction.to_dtype(DType::F32)?;
        match self.guidance_scale {
            Some(scale) => {
                let (unconditional, conditional) = (prediction.narrow(0, 0, 1)?, prediction.narrow(0, 1, 1)?);
                Ok((&unconditional + ((conditional - &unconditional)? * scale)?)?)
            }
            None => Ok(prediction),
        }
    }
}
