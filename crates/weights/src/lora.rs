//! LoRA adapters: PEFT's folders, and single files as diffusers writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pixart_nn::LowRank;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Weights, read_json, write_json, write_tensors};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// How PEFT names what is in a model that it has wrapped.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// The fields of PEFT's `adapter_config.json` that decide what is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the corrections.
    pub r: usize,
    /// Corrections are multiplied with this, divided by the rank.
    pub lora_alpha: f64,
    /// Names, or ends of names after a dot, of the layers that are adapted.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// What corrections are multiplied with.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    /// Whether the layer `module` is adapted.
    pub fn adapts(&self, module: &str) -> bool {
        let is_end = |target: &String| module.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'));
        self.target_modules.iter().any(|target| target == module || is_end(target))
    }

    /// Writes it as PEFT reads it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let config = serde_json::json!({
            "peft_type": "LORA",
            "base_model_name_or_path": null,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "r": self.r,
            "target_modules": self.target_modules,
            "task_type": null,
        });
        write_json(&folder.join(CONFIG), &config)
    }
}

/// An adapter for a transformer.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    strength: f64,
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Clone)]
struct Layer {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Lora {
    /// Reads a PEFT folder or a single file of corrections.
    ///
    /// # Errors
    /// No adapter there; a kind that is not plain LoRA; corrections of which a half is missing.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, config) = if path.is_dir() { (path.join(WEIGHTS), path.join(CONFIG)) } else { beside(path) };
        if !file.exists() {
            return Err(Error::missing(path, format!("there is no adapter ({WEIGHTS} with {CONFIG}, or one file)")));
        }
        let config = if config.exists() { Some(PeftConfig::read(&config)?) } else { None };
        let weights = Weights::open(&file)?;
        let (mut halves, mut alphas) = (BTreeMap::<String, [Option<Tensor>; 2]>::new(), BTreeMap::new());
        for name in weights.tensors().keys() {
            let tensor = || weights.tensor(name, DType::F32, &Device::Cpu);
            match place(name) {
                Some((module, Half::Alpha)) => {
                    alphas.insert(module.to_string(), f64::from(tensor()?.flatten_all()?.get(0)?.to_scalar::<f32>()?));
                }
                Some((module, half)) => halves.entry(module.into()).or_default()[half as usize] = Some(tensor()?),
                None => {
                    let reason = format!("tensor {name:?} is no LoRA of a PixArt transformer");
                    return Err(Error::unsupported(&file, reason));
                }
            }
        }
        let mut layers = BTreeMap::new();
        for (module, halves) in halves {
            let [Some(a), Some(b)] = halves else {
                return Err(Error::corrupt(&file, format!("has only half of the correction of {module}")));
            };
            let rank = a.dim(0)?;
            if b.dims().get(1) != Some(&rank) || rank == 0 {
                let reason = format!("{module}: shapes {:?} and {:?} do not go together", a.dims(), b.dims());
                return Err(Error::corrupt(&file, reason));
            }
            let scale = match (&config, alphas.get(&module)) {
                (Some(config), _) => config.scale(&module, rank),
                (None, Some(alpha)) => alpha / rank as f64,
                (None, None) => 1.0,
            };
            layers.insert(module, Layer { a, b, scale });
        }
        if layers.is_empty() {
            return Err(Error::corrupt(&file, "has no corrections"));
        }
        Ok(Self { path: path.into(), strength: 1.0, layers })
    }

    /// All corrections times `strength`.
    pub fn scaled(mut self, strength: f64) -> Self {
        self.layers.values_mut().for_each(|layer| layer.scale *= strength);
        self.strength *= strength;
        self
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What all corrections have been multiplied with.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// Makes sure that all corrections have something to correct in `weights`.
    pub(crate) fn check(&self, weights: &Weights) -> Result<()> {
        for (module, layer) in &self.layers {
            let Some(found) = weights.tensors().get(&format!("{module}.weight")) else {
                let reason = format!("corrects {module}, which the transformer does not have; is it another model's?");
                return Err(Error::unsupported(&self.path, reason));
            };
            let mut wanted = layer.a.dims().to_vec();
            wanted[0] = layer.b.dim(0)?;
            if found.shape != wanted {
                let reason = format!(
                    "corrects {module} of shape {wanted:?}, the transformer's is {:?}: it is another model's",
                    found.shape
                );
                return Err(Error::unsupported(&self.path, reason));
            }
        }
        Ok(())
    }

    /// The correction of the weight `name`, if it has one.
    pub(crate) fn correction(&self, name: &str) -> Option<candle_core::Result<LowRank>> {
        let Layer { a, b, scale } = self.layers.get(name.strip_suffix(".weight")?)?;
        let strong = || Ok(LowRank { down: a.clone(), up: (b * *scale)? });
        Some(strong())
    }

    /// The weight `name` with its correction, if it has one.
    pub(crate) fn correct(&self, name: &str, weight: Tensor) -> candle_core::Result<Tensor> {
        match name.strip_suffix(".weight").and_then(|module| self.layers.get(module)) {
            Some(Layer { a, b, scale }) => {
                let device = weight.device();
                pixart_nn::lora::adapted(&weight, &a.to_device(device)?, &b.to_device(device)?, *scale)
            }
            None => Ok(weight),
        }
    }
}

/// Writes corrections that are named as PEFT names them, with their config.
pub fn write_peft(folder: &Path, config: &LoraConfig, tensors: &[(&str, &Tensor)]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    config.write(folder)?;
    write_tensors(&folder.join(WEIGHTS), tensors)
}

/// The config and the corrections of a PEFT folder, by PEFT's names.
///
/// # Errors
/// No adapter there, one that is not PEFT's, or one whose layers are scaled in other ways than by alpha divided by the rank.
pub fn read_peft(folder: &Path) -> Result<(LoraConfig, Weights)> {
    let (config, weights) = (folder.join(CONFIG), folder.join(WEIGHTS));
    if !(config.exists() && weights.exists()) {
        return Err(Error::missing(folder, format!("there is no adapter ({WEIGHTS} with {CONFIG})")));
    }
    let PeftConfig { alpha_pattern, use_rslora, .. } = PeftConfig::read(&config)?;
    if use_rslora || !alpha_pattern.is_empty() {
        return Err(Error::unsupported(folder, "scales its layers by rsLoRA or each in its own way"));
    }
    let fields =
        serde_json::from_value(read_json(&config)?).map_err(|error| Error::corrupt(&config, error.to_string()))?;
    Ok((fields, Weights::open(&weights)?))
}

/// A file and the config that may lie beside it.
fn beside(path: &Path) -> (PathBuf, PathBuf) {
    (path.into(), path.with_file_name(CONFIG))
}

#[derive(Clone, Copy)]
enum Half {
    A = 0,
    B = 1,
    Alpha,
}

/// The layer that a tensor of an adapter belongs to, and what of it it is.
fn place(name: &str) -> Option<(&str, Half)> {
    let name = name.strip_prefix(PEFT_PREFIX).unwrap_or(name);
    let name = name.strip_prefix("transformer.").unwrap_or(name);
    [
        (".lora_A.weight", Half::A),
        (".lora_B.weight", Half::B),
        (".lora.down.weight", Half::A),
        (".lora.up.weight", Half::B),
        (".alpha", Half::Alpha),
    ]
    .into_iter()
    .find_map(|(end, half)| Some((name.strip_suffix(end)?, half)))
}

/// What of PEFT's config decides how strong corrections are.
#[derive(Deserialize)]
struct PeftConfig {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

impl PeftConfig {
    fn read(path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_value(read_json(path)?)
            .map_err(|error| Error::corrupt(path, format!("is no LoRA's config: {error}")))?;
        if config.use_dora {
            return Err(Error::unsupported(path, "is DoRA, which is not implemented; plain LoRA is"));
        }
        if config.r == 0 || !config.lora_alpha.is_finite() {
            return Err(Error::corrupt(path, format!("r is {}, lora_alpha {}", config.r, config.lora_alpha)));
        }
        Ok(config)
    }

    fn scale(&self, module: &str, rank: usize) -> f64 {
        let of_module = |pattern: &&String| module == pattern.as_str() || module.ends_with(&format!(".{pattern}"));
        let alpha = self.alpha_pattern.keys().find(of_module).map_or(self.lora_alpha, |key| self.alpha_pattern[key]);
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }
}
