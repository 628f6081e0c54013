use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use candle_core::DType;
use pixart_diffusion::{SchedulerConfig, StepOptions};
use pixart_nn::transformer::TransformerConfig;
use pixart_nn::vae::VaeConfig;
use pixart_weights::{
    Lora, Part, PipelineFolder, Weights, controlnet_config, is_original_transformer, original_transformer_config,
};

use crate::parts::{LoadProgress, Loader, OnLoad, Parts};
use crate::{DeviceChoice, Error, Pipeline, Precision, Result};

/// How to open a [`Pipeline`].
#[derive(Clone)]
pub struct PipelineBuilder {
    path: PathBuf,
    parts: Vec<(Part, PathBuf)>,
    device: DeviceChoice,
    precision: Precision,
    loras: Vec<(PathBuf, f64)>,
    keep_loaded: bool,
    vae_tiling: bool,
    memory_limit: Option<u64>,
    scheduler: Option<SchedulerConfig>,
    on_load: Option<OnLoad>,
}

impl PipelineBuilder {
    /// Opens the folder at `path`, with the best device there is and its own parts unless told otherwise.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            parts: vec![],
            device: DeviceChoice::default(),
            precision: Precision::default(),
            loras: vec![],
            keep_loaded: false,
            vae_tiling: false,
            memory_limit: None,
            scheduler: None,
            on_load: None,
        }
    }

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

    /// Corrects the transformer by a LoRA: a PEFT folder, or a single file. Its corrections are multiplied with `strength`.
    pub fn lora(mut self, path: impl Into<PathBuf>, strength: f64) -> Self {
        self.loras.push((path.into(), strength));
        self
    }

    /// Keeps the text encoder in memory after use. Without it, it is freed before the transformer is loaded.
    pub fn keep_loaded(mut self, keep_loaded: bool) -> Self {
        self.keep_loaded = keep_loaded;
        self
    }

    /// Decodes a few rows of pixels after another: much less memory for large pictures, and about twice the time. Nothing is
    /// approximated.
    pub fn vae_tiling(mut self, vae_tiling: bool) -> Self {
        self.vae_tiling = vae_tiling;
        self
    }

    /// Refuses, before any work, what would take more bytes of memory than this. Where only that fits, parts are dropped when
    /// another one computes, and a large picture is decoded in bands, as by [`PipelineBuilder::vae_tiling`].
    pub fn memory_limit(mut self, bytes: Option<u64>) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Draws with this scheduler; the folder's own is not read.
    pub fn scheduler(mut self, scheduler: SchedulerConfig) -> Self {
        self.scheduler = Some(scheduler);
        self
    }

    /// Calls `on_load` as weights are read.
    pub fn on_load(mut self, on_load: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.on_load = Some(Arc::new(on_load));
        self
    }

    /// Reads the configs. Weights are read when they are first needed.
    ///
    /// # Errors
    /// A folder that is no PixArt pipeline; a config that is missing, broken or asks for what is not implemented; a device
    /// that is not there.
    pub fn open(self) -> Result<Pipeline> {
        let device = self.device.open()?;
        let dtype = self.precision.dtype(&device);
        let mut folder = PipelineFolder::open(&self.path)?;
        for (part, path) in self.parts {
            folder = folder.with_part(part, path)?;
        }
        for (path, strength) in self.loras {
            folder = folder.with_lora(Lora::open(&path)?.scaled(strength));
        }
        let scheduler = match self.scheduler {
            Some(scheduler) => scheduler,
            None => read_scheduler(&folder.scheduler_path())?,
        };
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
        // A ControlNet comes with the folder, or is named.
        let control = folder.part_path(Part::ControlNet);
        let controlnet_config = match control.exists() {
            true => Some(controlnet_config(&control, &folder.weights(Part::ControlNet, dtype)?, &transformer_config)?),
            false => None,
        };
        let (scheme, on_load) = (self.precision.scheme(), self.on_load);
        let loader = Loader { folder, device, dtype, scheme, on_load, observer: None, time: Duration::ZERO };
        let precision_name = loader.precision_name()?;
        let parts = Parts::new(loader, self.keep_loaded, controlnet_config);
        let (vae_tiling, memory_limit) = (self.vae_tiling, self.memory_limit);
        Ok(Pipeline { parts, scheduler, transformer_config, vae_config, vae_tiling, memory_limit, precision_name })
    }
}

/// Reads a scheduler's config and makes sure that every value in it is supported.
///
/// # Errors
/// A file that cannot be read or is no scheduler config; a field that is unknown or has a value that is not supported.
pub fn read_scheduler(path: &Path) -> Result<SchedulerConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    // A solver is made only to learn whether every value is supported.
    SchedulerConfig::from_json(&text)
        .and_then(|scheduler| scheduler.solver(1, &StepOptions::default()).map(|_| scheduler))
        .map_err(|error| Error::request(format!("{}: {error}", path.display())))
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
