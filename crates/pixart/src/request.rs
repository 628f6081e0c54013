use candle_core::Tensor;

use crate::{Control, Error, InitImage, PromptEmbeds, Result};

/// The most images of one request: their latents are held together.
const MAX_IMAGES: usize = 100_000;

/// Where the randomness of a batch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// One generator for the whole batch, as `generator=torch.Generator("cpu").manual_seed(seed)` in diffusers.
    Shared(u64),
    /// A generator for each image, as a list of generators in diffusers: every image is the one its seed gives alone.
    PerImage(Vec<u64>),
}

/// What to draw. Fields that are `None` mean what the model is made for.
///
/// ```
/// let request = pixart::Request { steps: Some(4), guidance_scale: Some(0.0), ..pixart::Request::new("a red fox") };
/// assert_eq!(request.num_images_per_prompt, 1);
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    /// One or several prompts. Where `prompt_embeds` are given too, prompts are only recorded in the pictures.
    pub prompts: Vec<String>,
    /// What to steer away from; only matters with guidance.
    pub negative_prompt: String,
    /// Encoded prompts, to be used in place of `prompts`.
    pub prompt_embeds: Option<PromptEmbeds>,
    /// Number of solver steps, at most as many as the scheduler has timesteps (999 or 1000; 50 for LCM). Default 20, for LCM 4.
    pub steps: Option<usize>,
    /// Strength of classifier-free guidance; 1 and below mean none. Default 4.5, for LCM 0.
    pub guidance_scale: Option<f64>,
    /// Share of noise that DDIM adds again, 0 to 1; the other solvers have no such setting.
    pub eta: f64,
    /// Width in pixels; default the model's native size, or what is nearest to it of the shape of the image that it follows or
    /// starts from.
    pub width: Option<usize>,
    /// Height in pixels; as the width.
    pub height: Option<usize>,
    /// Draw at the nearest size that the model was trained on, then resize and crop.
    pub resolution_binning: bool,
    /// Images for each prompt.
    pub num_images_per_prompt: usize,
    /// Seeds of the noise.
    pub seeds: Seeds,
    /// Noise to start from, standard normal, `[images, 4, height / 8, width / 8]`, in place of drawing it.
    pub latents: Option<Tensor>,
    /// What the pipeline's ControlNet is to follow.
    pub control: Option<Control>,
    /// A picture to start from, in place of noise alone.
    pub init: Option<InitImage>,
    /// Remove from prompts what web captions are littered with (links, tags, file names …), as diffusers does unless
    /// told otherwise. Without it prompts are only lower-cased and trimmed.
    pub clean_caption: bool,
    /// Tokens that a prompt is cut or padded to. Default 120, for Σ 300.
    pub max_sequence_length: Option<usize>,
}

impl Request {
    /// A request for one image of `prompt`, with the model's own settings and seed 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompts: vec![prompt.into()], ..Self::default() }
    }

    /// A request for images of encoded prompts.
    pub fn from_embeds(prompt_embeds: PromptEmbeds) -> Self {
        Self { prompt_embeds: Some(prompt_embeds), ..Self::default() }
    }

    /// Number of prompts.
    pub(crate) fn num_prompts(&self) -> usize {
        self.prompt_embeds.as_ref().map_or(self.prompts.len(), PromptEmbeds::batch)
    }

    /// Bytes of the pictures that come with it; of one that is followed, of the picture that its edges were found in.
    pub(crate) fn picture_bytes(&self) -> u64 {
        let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
        let init = self.init.as_ref().map_or(0, |init| {
            let mask = init.mask.as_ref().map_or(0, |mask| pixels(mask.dimensions()));
            3 * pixels(init.image.dimensions()) + mask
        });
        init + self.control.as_ref().map_or(0, |control| 4 * pixels(control.map.dimensions()))
    }

    /// Checks what needs no model.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::request(message));
        if self
            .prompt_embeds
            .as_ref()
            .is_some_and(|embeds| !self.prompts.is_empty() && embeds.batch() != self.prompts.len())
        {
            return refuse("there are not as many prompts as prompt embeddings");
        }
        if self.num_prompts() == 0 {
            return refuse("there is no prompt");
        }
        if self.num_images_per_prompt == 0 {
            return refuse("zero images were asked for; ask for 1 or more");
        }
        if self.steps == Some(0) {
            return refuse("zero steps draw nothing; ask for 1 or more");
        }
        if self.num_prompts().saturating_mul(self.num_images_per_prompt) > MAX_IMAGES {
            return Err(Error::request(format!("more than {MAX_IMAGES} images at once; ask for fewer")));
        }
        if let Some(scale) = self.guidance_scale
            && (scale.is_nan() || scale.abs() > 1e6)
        {
            return Err(Error::request(format!(
                "a guidance scale of {scale} makes no sense; it is a number such as 4.5"
            )));
        }
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::request(format!("eta is {}; it lies between 0 and 1", self.eta)));
        }
        if self.max_sequence_length.is_some_and(|length| !(1..=512).contains(&length)) {
            return refuse("a prompt is cut to 1 to 512 tokens");
        }
        self.control.as_ref().map_or(Ok(()), Control::check)?;
        self.init.as_ref().map_or(Ok(()), InitImage::check)?;
        let images = self.num_prompts() * self.num_images_per_prompt;
        match &self.seeds {
            Seeds::PerImage(seeds) if seeds.len() != images => {
                Err(Error::request(format!("{} seeds were given for {images} images", seeds.len())))
            }
            _ => Ok(()),
        }
    }
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompts: vec![],
            negative_prompt: String::new(),
            prompt_embeds: None,
            steps: None,
            guidance_scale: None,
            eta: 0.0,
            width: None,
            height: None,
            resolution_binning: true,
            num_images_per_prompt: 1,
            seeds: Seeds::Shared(0),
            latents: None,
            control: None,
            init: None,
            clean_caption: true,
            max_sequence_length: None,
        }
    }
}
