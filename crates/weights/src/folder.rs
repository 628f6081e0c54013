use std::path::{Path, PathBuf};

use candle_core::DType;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Error, Lora, Result, Scheme, StoredTensor, Weights, controlnet, is_original_transformer, original_transformer,
};

/// The parts of a pipeline that have weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The diffusion transformer.
    Transformer,
    /// The autoencoder.
    Vae,
    /// The T5 encoder.
    TextEncoder,
    /// What steers the transformer, where there is one.
    ControlNet,
}

impl Part {
    /// The parts that every pipeline has, in the order of use.
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Transformer, Self::Vae];

    /// Its folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
            Self::ControlNet => "controlnet",
        }
    }

    /// The classes of diffusers and transformers that it may be.
    pub fn classes(self) -> &'static [&'static str] {
        match self {
            // Published checkpoints carry the class's first name.
            Self::Transformer => &["PixArtTransformer2DModel", "Transformer2DModel"],
            Self::Vae => &["AutoencoderKL"],
            // A whole T5 holds the encoder under the same names.
            Self::TextEncoder => &["T5EncoderModel", "T5ForConditionalGeneration"],
            // Of diffusers' research example.
            Self::ControlNet => &["PixArtControlNetAdapterModel"],
        }
    }

    /// The part whose network is in `folder`, by the class that its `config.json` names.
    ///
    /// # Errors
    /// No config there, or one of another network.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let class = class_of(&read_json(&path)?).unwrap_or_default().to_string();
        let all = [Self::TextEncoder, Self::Transformer, Self::Vae, Self::ControlNet];
        all.into_iter().find(|part| part.classes().contains(&&*class)).ok_or_else(|| {
            Error::unsupported(&path, format!("is of class {class:?}, which is no network of a PixArt pipeline"))
        })
    }

    /// Whether the tensor `name` is a table of embeddings, of which only those rows are read that are asked for.
    pub fn is_embedding(self, name: &str) -> bool {
        self == Self::TextEncoder && matches!(name, "shared.weight" | "encoder.embed_tokens.weight")
    }

    /// Whether a checkpoint may carry the tensor `name` though no computation needs it.
    pub fn is_spare(self, name: &str) -> bool {
        match self {
            // The embedding stands in files under one or both of its names; a whole T5 has its decoder too.
            Self::TextEncoder => {
                name == "encoder.embed_tokens.weight" || name.starts_with("decoder.") || name.starts_with("lm_head.")
            }
            // Positions are computed for every size.
            Self::Transformer => name == "pos_embed.pos_embed",
            Self::Vae | Self::ControlNet => false,
        }
    }

    /// Names of its weight files without extension: safetensors, then pickle.
    pub(crate) fn stems(self) -> [&'static str; 2] {
        match self {
            Self::Transformer | Self::Vae | Self::ControlNet => ["diffusion_pytorch_model", "diffusion_pytorch_model"],
            Self::TextEncoder => ["model", "pytorch_model"],
        }
    }
}

/// The pipelines whose folders this program draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipelineKind {
    /// PixArt-α and -δ: 120 text tokens.
    Alpha,
    /// PixArt-Σ: 300 text tokens.
    Sigma,
}

impl PipelineKind {
    /// How many tokens of a prompt the transformer sees.
    pub fn max_sequence_length(self) -> usize {
        match self {
            Self::Alpha => 120,
            Self::Sigma => 300,
        }
    }

    /// diffusers' name of the pipeline.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Alpha => "PixArtAlphaPipeline",
            Self::Sigma => "PixArtSigmaPipeline",
        }
    }
}

/// A diffusers pipeline on disk.
#[derive(Debug, Clone)]
pub struct PipelineFolder {
    path: PathBuf,
    kind: PipelineKind,
    overrides: Vec<(Part, PathBuf)>,
    loras: Vec<Lora>,
}

impl PipelineFolder {
    /// Reads `model_index.json`. Errors: no such folder, no pipeline in it, a pipeline of another kind.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            let what = if path.exists() {
                "is a file; --model takes a folder (a .pth transformer goes with --transformer, over a base folder)"
            } else {
                "there is no such folder"
            };
            return Err(Error::missing(path, what));
        }
        let index = path.join("model_index.json");
        if !index.exists() {
            let class = read_json(&path.join("config.json")).ok();
            let class = class.as_ref().and_then(|json| json.get("_class_name")?.as_str());
            let what = match class {
                Some(class) => format!("is one part ({class}), not a pipeline: name the folder above it"),
                None => "there is no model_index.json: not a diffusers pipeline folder".into(),
            };
            return Err(Error::missing(path, what));
        }
        let class = read_json(&index)?.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_string();
        let kind = match class.as_str() {
            "PixArtAlphaPipeline" => PipelineKind::Alpha,
            "PixArtSigmaPipeline" => PipelineKind::Sigma,
            "" => return Err(Error::corrupt(&index, "has no \"_class_name\"")),
            other => {
                let reason = format!("holds a {other}, not a PixArtAlphaPipeline or PixArtSigmaPipeline");
                return Err(Error::unsupported(path, reason));
            }
        };
        Ok(Self { path: path.into(), kind, overrides: vec![], loras: vec![] })
    }

    /// Takes one part from elsewhere: a part's folder, a pipeline folder, or a weight file.
    pub fn with_part(mut self, part: Part, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.exists() {
            return Err(Error::missing(&path, format!("there is no such file or folder for the {}", part.name())));
        }
        let inner = path.join(part.name());
        let path = if path.is_dir() && !path.join("config.json").exists() && inner.is_dir() { inner } else { path };
        self.overrides.push((part, path));
        Ok(self)
    }

    /// Corrects the transformer's weights by an adapter.
    pub fn with_lora(mut self, lora: Lora) -> Self {
        self.loras.push(lora);
        self
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which pipeline it is.
    pub fn kind(&self) -> PipelineKind {
        self.kind
    }

    /// The folder or file a part comes from.
    pub fn part_path(&self, part: Part) -> PathBuf {
        let replaced = self.overrides.iter().rev().find(|(replaced, _)| *replaced == part);
        replaced.map_or_else(|| self.path.join(part.name()), |(_, path)| path.clone())
    }

    /// The parts that come from elsewhere, and where from.
    pub fn replaced(&self) -> impl Iterator<Item = (Part, &Path)> {
        self.overrides.iter().map(|(part, path)| (*part, path.as_path()))
    }

    /// What corrects the transformer.
    pub fn loras(&self) -> &[Lora] {
        &self.loras
    }

    /// The parts of a pipeline, and the ControlNet if there is one.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let control = self.part_path(Part::ControlNet).exists().then_some(Part::ControlNet);
        Part::ALL.into_iter().chain(control)
    }

    /// Where a part's `config.json` is: beside its weights, or, for a bare weight file, in this folder.
    pub fn config_path(&self, part: Part) -> PathBuf {
        let path = self.part_path(part);
        if path.is_dir() { path.join("config.json") } else { self.path.join(part.name()).join("config.json") }
    }

    /// A part's config, checked to be of a class that this program has.
    pub fn config<C: DeserializeOwned>(&self, part: Part) -> Result<C> {
        self.check_present(part)?;
        read_config(&self.config_path(part), part)
    }

    /// The 8 bits that a part is stored in, if it is.
    pub fn stored_scheme(&self, part: Part) -> Result<Option<Scheme>> {
        Scheme::of_config(&self.config_path(part), &self.config(part)?)
    }

    /// A part's weights under diffusers' names. Where a folder has full-precision and fp16 files, fp16 ones are taken
    /// if `dtype` is f16.
    pub fn weights(&self, part: Part, dtype: DType) -> Result<Weights> {
        self.check_present(part)?;
        let weights = read_weights(&self.part_path(part), part, dtype)?;
        match part {
            Part::Transformer => self.loras.iter().cloned().try_fold(weights, Weights::with_lora),
            _ => Ok(weights),
        }
    }

    fn check_present(&self, part: Part) -> Result<()> {
        let path = self.part_path(part);
        if path.exists() {
            return Ok(());
        }
        let instead = match part {
            Part::Transformer => "name one with --transformer",
            Part::Vae => "name one with --vae",
            Part::TextEncoder => "name one with --text-encoder, or give --prompt-embeds",
            Part::ControlNet => "name one with --control",
        };
        Err(Error::missing(&path, format!("the model has no {}; {instead}", part.name().replace('_', " "))))
    }

    /// The scheduler's config file.
    pub fn scheduler_path(&self) -> PathBuf {
        self.path.join("scheduler").join("scheduler_config.json")
    }

    /// The tokenizer's folder.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer")
    }
}

/// A part on its own, from its folder or from the pipeline folder that it is in: config and weights, as
/// [`PipelineFolder::config`] and [`PipelineFolder::weights`] give them.
pub fn open_part<C: DeserializeOwned>(path: &Path, part: Part, dtype: DType) -> Result<(C, Weights)> {
    let inner = path.join(part.name());
    let path = if inner.is_dir() { &inner } else { path };
    if !path.join("config.json").exists() {
        return Err(Error::missing(path, format!("there is no {} (config.json and weights)", part.name())));
    }
    Ok((read_config(&path.join("config.json"), part)?, read_weights(path, part, dtype)?))
}

/// The class that a config names, as diffusers or as transformers writes it.
fn class_of(config: &Value) -> Option<&str> {
    let of_transformers = || config.get("architectures").and_then(|list| list.get(0));
    config.get("_class_name").or_else(of_transformers).and_then(Value::as_str)
}

fn read_config<C: DeserializeOwned>(path: &Path, part: Part) -> Result<C> {
    let json = read_json(path)?;
    if let Some(class) = class_of(&json)
        && !part.classes().contains(&class)
    {
        let reason = format!("is of class {class}, the {} must be {}", part.name(), part.classes()[0]);
        return Err(Error::unsupported(path, reason));
    }
    serde_json::from_value(json).map_err(|error| Error::corrupt(path, format!("is no config of this part: {error}")))
}

fn read_weights(path: &Path, part: Part, dtype: DType) -> Result<Weights> {
    let weights = match path.is_dir() {
        true => Weights::open(weight_file(path, part, dtype)?)?.with_scheme_of(&path.join("config.json"))?,
        false => Weights::open(path)?,
    };
    match part {
        Part::Transformer if is_original_transformer(&weights) => original_transformer(&weights),
        Part::Vae => Ok(modern_attention_names(&weights)),
        Part::ControlNet if controlnet::is_original(&weights) => controlnet::from_original(&weights),
        _ => Ok(weights),
    }
}

/// Reads a JSON file, with one line of error.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|error| Error::corrupt(path, format!("is not valid JSON: {error}")))
}

/// Picks a part's weight file or shard index.
fn weight_file(folder: &Path, part: Part, dtype: DType) -> Result<PathBuf> {
    let [safetensors, pickle] = part.stems();
    let full = [format!("{safetensors}.safetensors"), format!("{safetensors}.safetensors.index.json")];
    let half = [
        format!("{safetensors}.fp16.safetensors"),
        format!("{safetensors}.safetensors.index.fp16.json"),
        format!("{safetensors}.fp16.safetensors.index.json"),
    ];
    let full_pickle = [format!("{pickle}.bin"), format!("{pickle}.bin.index.json")];
    let half_pickle = [
        format!("{pickle}.fp16.bin"),
        format!("{pickle}.bin.index.fp16.json"),
        format!("{pickle}.fp16.bin.index.json"),
    ];
    let mut candidates: Vec<&String> = Vec::new();
    if dtype != DType::F16 {
        candidates.extend(full.iter().chain(&full_pickle).chain(&half).chain(&half_pickle));
    } else {
        candidates.extend(half.iter().chain(&full).chain(&half_pickle).chain(&full_pickle));
    }
    candidates.into_iter().map(|name| folder.join(name)).find(|path| path.exists()).ok_or_else(|| {
        let what =
            format!("there is no {}, nor its fp16, sharded or .bin form; download the {} again", full[0], part.name());
        Error::missing(folder, what)
    })
}

/// The VAE's attention under its present names; published autoencoders have the ones of before 2023.
fn modern_attention_names(weights: &Weights) -> Weights {
    const RENAMED: [(&str, &str); 4] =
        [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    let rename = |(name, tensor): (&String, &StoredTensor)| {
        let mut name = name.clone();
        if name.contains(".attentions.") {
            for (old, new) in RENAMED {
                name = name.replace(old, new);
            }
        }
        (name, tensor.clone())
    };
    weights.mapped_to(weights.tensors().iter().map(rename).collect())
}
