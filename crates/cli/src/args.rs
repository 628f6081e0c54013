//! The command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use pixart::{ControlType, DeviceChoice, Precision};
use pixart_weights::{Part, Scheme, StoredDtype};

/// Draws images from text with PixArt-α, -δ and -Σ.
#[derive(Debug, Parser)]
#[command(name = "pixart", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw images of a prompt
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(Box<GenerateArgs>),
    /// Find the edges that a ControlNet follows in a picture
    ControlImage(ControlImageArgs),
    /// Encode a prompt to a file that `generate --prompt-embeds` takes
    Encode(EncodeArgs),
    /// Decode latents to pictures
    Decode(DecodeArgs),
    /// Say what a model folder holds
    Info(InfoArgs),
    /// Write a diffusers folder: of an original PixArt .pth transformer, or of a folder with parts replaced
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Write a model in 8 bits
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(QuantizeArgs),
    /// Compute latents of pictures and embeddings of captions, once, for training
    #[command(after_help = FEATURES_EXAMPLES)]
    Features(FeaturesArgs),
    /// Train a network as a recipe says
    #[command(after_help = TRAIN_EXAMPLES)]
    Train(TrainArgs),
    /// Measure how well a model draws what it is asked for
    Eval {
        #[command(subcommand)]
        what: EvalCommand,
    },
    /// Time each stage
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  pixart generate \"a small cactus with a happy face\" --model PixArt-XL-2-1024-MS
  pixart generate \"a red fox\" --model PixArt-LCM-XL-2-1024-MS --steps 4 --seed 7 --output fox.png
  pixart generate \"a red fox\" --model PixArt-XL-2-512x512 --num-images 4 --output foxes/
  pixart generate --prompts-file prompts.txt --model PixArt-XL-2-512x512 --scheduler unipc --output pictures/
  pixart generate \"a red fox\" --model PixArt-XL-2-512x512 --transformer PixArt-XL-2-512x512.pth
  pixart generate \"a blue house\" --control-image sketch.png --control-type lineart
  pixart generate \"a red fox\" --model PixArt-XL-2-512x512 --init-image dog.png --strength 0.6 --mask head.png";

const CONVERT_EXAMPLES: &str = "\
Examples:
  pixart convert PixArt-XL-2-512x512.pth --output transformer-512
  pixart convert fine-tuned.pth --model PixArt-XL-2-512x512 --output fine-tuned
  pixart convert PixArt-XL-2-512x512 --lora runs/lora/network --dtype f16 --output with-lora
  pixart convert PixArt-XL-2-1024-MS --transformer runs/lcd-1024/network --scheduler lcm --output my-lcm";

const QUANTIZE_EXAMPLES: &str = "\
Examples:
  pixart quantize --model PixArt-XL-2-1024-MS --output pixart-int8
  pixart quantize --model PixArt-XL-2-1024-MS --parts text-encoder --scheme int8-weights --output small-text-encoder
  pixart quantize --model PixArt-XL-2-1024-MS --calibrate prompts.txt --output pixart-int8
  pixart generate \"a red fox\" --model pixart-int8";

const FEATURES_EXAMPLES: &str = "\
Examples:
  pixart features photos/ --model PixArt-XL-2-512x512 --output features
  pixart features --scenes 100000 --size 128 --vae runs/autoencoder/network --output runs/features
An extraction that was stopped goes on when the same command is given again.";

const TRAIN_EXAMPLES: &str = "\
Examples:
  pixart train recipes/tiny/autoencoder.toml --output runs/autoencoder
A run that was stopped goes on from its newest checkpoint when the same command is given again.";

/// Where the model is and how to compute.
#[derive(Debug, ClapArgs)]
pub struct ModelArgs {
    /// Model folder in diffusers' layout (with model_index.json) [default: the small one that comes with the program]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub parts: PartArgs,
    /// Precision: auto, f32, bf16, f16, int8 or int8-weights (auto: bf16 on a GPU and on a CPU that multiplies it, else f32)
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = str::parse::<Precision>)]
    pub dtype: Precision,
    /// Decode a few rows of pixels after another: less memory for large pictures, nearly twice the time, the same picture
    #[arg(long)]
    pub vae_tiling: bool,
    /// Refuse, before any work, what would take more memory than this; decode large pictures in rows where only that fits
    /// (8GB, 7500MB, 6GiB)
    #[arg(long, value_name = "SIZE", value_parser = str::parse::<ByteSize>)]
    pub memory_limit: Option<ByteSize>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// What is taken from elsewhere than the model folder.
#[derive(Debug, ClapArgs)]
pub struct PartArgs {
    /// Take the transformer from this folder, .safetensors or original .pth file
    #[arg(long, value_name = "PATH")]
    pub transformer: Option<PathBuf>,
    /// Take the autoencoder from this folder or file
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Take the text encoder from this folder or file
    #[arg(long, value_name = "PATH")]
    pub text_encoder: Option<PathBuf>,
    /// Correct the transformer by a LoRA: a PEFT folder, or a .safetensors file
    #[arg(long, value_name = "PATH")]
    pub lora: Option<PathBuf>,
    /// Strength of the LoRA
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "lora", allow_negative_numbers = true)]
    pub lora_scale: f64,
}

impl PartArgs {
    /// Whether nothing is taken from elsewhere.
    pub fn are_none(&self) -> bool {
        self.named().next().is_none() && self.lora.is_none()
    }

    /// Each part that is named, with its path.
    pub fn named(&self) -> impl Iterator<Item = (Part, &PathBuf)> {
        let parts =
            [(Part::Transformer, &self.transformer), (Part::Vae, &self.vae), (Part::TextEncoder, &self.text_encoder)];
        parts.into_iter().filter_map(|(part, path)| Some((part, path.as_ref()?)))
    }
}

#[derive(Debug, ClapArgs)]
pub struct ComputeArgs {
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// Threads to compute with on a CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Show no progress and print no result line
    #[arg(long, short)]
    pub quiet: bool,
}

/// How a prompt becomes embeddings.
#[derive(Debug, ClapArgs)]
pub struct TextArgs {
    /// What to steer away from; only matters with guidance
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative_prompt: String,
    /// Remove links, tags, file names and the like from prompts, as diffusers does
    #[arg(long, value_name = "true|false", default_value_t = true, action = ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub clean_caption: bool,
}

#[derive(Debug, ClapArgs)]
pub struct GenerateArgs {
    /// What to draw
    #[arg(required_unless_present_any = ["prompts_file", "prompt_embeds"])]
    pub prompt: Option<String>,
    /// Draw every line of this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_embeds"])]
    pub prompts_file: Option<PathBuf>,
    /// Use the embeddings in this safetensors file in place of a prompt
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_embeds: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// Solver steps [default: 20; 4 for LCM]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Strength of guidance, 1 or below for none [default: 4.5; 0 for LCM]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
    /// Solver: lcm, dpm-solver++, ddim, ddpm, euler, euler-ancestral, heun, unipc or sa-solver; some take the
    /// suffix -karras, dpm-solver++ also -sde [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Solver settings from a scheduler_config.json in place of the model's
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// Share of noise that ddim adds again, 0 to 1
    #[arg(long, value_name = "ETA", default_value_t = 0.0, allow_negative_numbers = true)]
    pub eta: f64,
    /// Width in pixels [default: the model's native size]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<usize>,
    /// Height in pixels [default: the model's native size]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<usize>,
    /// Draw at exactly this size, not at the nearest one the model was trained on
    #[arg(long)]
    pub no_resolution_binning: bool,
    /// Seed of the first image; image k of a prompt has seed S + k [default: random]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Images for each prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub num_images: usize,
    #[command(flatten)]
    pub control: ControlArgs,
    #[command(flatten)]
    pub init: InitArgs,
    /// Start from the noise in this safetensors file (tensor `latents`)
    #[arg(long, value_name = "FILE")]
    pub latents: Option<PathBuf>,
    /// Also write the final latents
    #[arg(long, value_name = "FILE")]
    pub output_latents: Option<PathBuf>,
    /// Keep the text encoder in memory after use
    #[arg(long)]
    pub keep_loaded: bool,
    /// PNG file, or folder for several [default: pixart-0001.png, or the first free number]
    #[arg(long, short, value_name = "FILE.png|FOLDER")]
    pub output: Option<PathBuf>,
}

/// What a ControlNet is to follow.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Follow edges")]
pub struct ControlArgs {
    /// Follow the edges of this picture
    #[arg(long, value_name = "FILE")]
    pub control_image: Option<PathBuf>,
    /// ControlNet: a folder, or an original .pth file [default: the model's own]
    #[arg(long, value_name = "PATH", requires = "control_image")]
    pub control: Option<PathBuf>,
    #[command(flatten)]
    pub detector: DetectorArgs,
    /// How closely it is followed
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "control_image", allow_negative_numbers = true)]
    pub control_scale: f64,
    /// Share of the steps before which it is not followed
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.0,
        requires = "control_image",
        allow_negative_numbers = true
    )]
    pub control_start: f64,
    /// Share of the steps after which it is no longer followed
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 1.0,
        requires = "control_image",
        allow_negative_numbers = true
    )]
    pub control_end: f64,
    /// Also write the edges that are followed
    #[arg(long, value_name = "FILE.png", requires = "control_image")]
    pub save_control: Option<PathBuf>,
}

/// How edges are found.
#[derive(Debug, ClapArgs)]
pub struct DetectorArgs {
    /// Edges: hed (needs --hed), canny, lineart (dark lines on light paper), or none for a map that is ready (light on black)
    #[arg(long, value_name = "TYPE", default_value = "none", value_parser = str::parse::<ControlType>)]
    pub control_type: ControlType,
    /// Weights of the HED network
    #[arg(long, value_name = "FILE.pth")]
    pub hed: Option<PathBuf>,
}

/// What is drawn over.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Start from a picture")]
pub struct InitArgs {
    /// Start from this picture in place of noise
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// How much of the way from noise to a picture is drawn anew, above 0 and up to 1 [default: 0.6; 1 with a mask]
    #[arg(long, value_name = "SHARE", requires = "init_image", allow_negative_numbers = true)]
    pub strength: Option<f64>,
    /// Draw only where this picture is light; of the size of the one that is started from
    #[arg(long, value_name = "FILE", requires = "init_image")]
    pub mask: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct ControlImageArgs {
    /// Picture
    pub picture: PathBuf,
    #[command(flatten)]
    pub detector: DetectorArgs,
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// PNG file to write
    #[arg(long, short, value_name = "FILE.png")]
    pub output: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct EncodeArgs {
    /// The prompt
    #[arg(required_unless_present = "prompts_file")]
    pub prompt: Option<String>,
    /// Encode every line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompts_file: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// Safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct DecodeArgs {
    /// Safetensors file with the tensor `latents`
    pub latents: PathBuf,
    #[command(flatten)]
    pub model: ModelArgs,
    /// PNG file, or folder for several
    #[arg(long, short, value_name = "FILE.png|FOLDER")]
    pub output: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct InfoArgs {
    /// Model folder [default: the small one that comes with the program]
    pub folder: Option<PathBuf>,
    /// Estimate what pictures of several sizes take of memory on a CPU, too
    #[arg(long)]
    pub memory: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ConvertArgs {
    /// Original PixArt transformer or ControlNet, or a model folder; with nothing but --dtype, also the folder of one network or LoRA
    #[arg(value_name = "FILE.pth|FOLDER")]
    pub source: PathBuf,
    /// Of a .pth file: model folder to take the other parts from; without it only a transformer's folder is written
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub parts: PartArgs,
    /// Of a folder: solver, as `generate` takes it
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Of a folder: precision of the weights, f32, f16 or bf16 [default: as they are]
    #[arg(long, value_name = "DTYPE", value_parser = stored_dtype)]
    pub dtype: Option<StoredDtype>,
    /// Folder to write; must not exist
    #[arg(long, short, value_name = "FOLDER")]
    pub output: PathBuf,
}

impl ConvertArgs {
    /// The precision, if nothing else is asked for.
    pub fn only_dtype(&self) -> Option<StoredDtype> {
        self.dtype.filter(|_| self.scheduler.is_none() && self.parts.are_none())
    }
}

#[derive(Debug, ClapArgs)]
pub struct QuantizeArgs {
    /// Model folder, or the folder of one of its networks [default: the model that comes with this program]
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Networks to round: text-encoder, transformer, controlnet, vae [default: all that there are but the vae]
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = part)]
    pub parts: Vec<Part>,
    /// What is rounded: int8 (weights and inputs of layers) or int8-weights
    #[arg(long, value_name = "SCHEME", default_value = "int8", value_parser = str::parse::<Scheme>)]
    pub scheme: Scheme,
    /// Draw the prompts of this file first, one a line, and fit the rounding of inputs to what layers are given then
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Folder to write; must not exist
    #[arg(long, short, value_name = "FOLDER")]
    pub output: PathBuf,
    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

fn part(name: &str) -> Result<Part, String> {
    let known = [Part::TextEncoder, Part::Transformer, Part::ControlNet, Part::Vae];
    known
        .into_iter()
        .find(|part| part.name().replace('_', "-") == name)
        .ok_or_else(|| "it is text-encoder, transformer, controlnet or vae".into())
}

fn stored_dtype(name: &str) -> Result<StoredDtype, String> {
    let known = [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16];
    known.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| "it is f32, f16 or bf16".into())
}

#[derive(Debug, ClapArgs)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Time passes with this ControlNet too [default: the model's own, if it has one]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Width and height of the image in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    pub size: usize,
    /// Timed runs, after one that warms up
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: usize,
    /// Time the first run already, for sizes where each takes minutes
    #[arg(long)]
    pub no_warm_up: bool,
    /// Passes of the transformer in an image
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub steps: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Draw held-out prompts of the world of scenes, and read from the pictures what they show; without a model and a way
    /// to draw, in all the ways that the program's own model has
    Faithfulness(Box<FaithfulnessArgs>),
    /// Encode and decode held-out scenes
    Reconstruction(ReconstructionArgs),
    /// Draw held-out scenes along their edges, and compare the edges of the pictures with them
    Control(Box<AgreementArgs>),
    /// Draw with --dtype (or a model in 8 bits) and in f32, and tell how far apart the results are, part by part
    Precision(Box<PrecisionArgs>),
}

#[derive(Debug, ClapArgs)]
pub struct FaithfulnessArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// How many prompts
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub prompts: usize,
    /// Solver steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Strength of guidance [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
    /// Solver, as `generate` takes it [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Folder for the pictures; those of one prompt by all ways are put side by side
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

impl FaithfulnessArgs {
    /// Whether nothing is said of the model or the way it draws.
    pub fn names_nothing(&self) -> bool {
        self.model.model.is_none()
            && self.model.parts.are_none()
            && (self.steps.is_none() && self.guidance_scale.is_none() && self.scheduler.is_none())
    }
}

#[derive(Debug, ClapArgs)]
pub struct AgreementArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// ControlNet: a folder, or an original .pth file [default: the model's own]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// How closely it is followed
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_negative_numbers = true)]
    pub control_scale: f64,
    /// How many scenes
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub scenes: u64,
    /// Solver steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Strength of guidance [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
    /// Folder for pictures: each scene, its edges, what is drawn along them and what without
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct PrecisionArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The same model with all its digits, if --model is in 8 bits [default: --model]
    #[arg(long, value_name = "PATH")]
    pub exact: Option<PathBuf>,
    /// File with one prompt per line [default: held-out prompts of the world of scenes]
    #[arg(long, value_name = "FILE")]
    pub prompts_file: Option<PathBuf>,
    /// How many held-out prompts
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "prompts_file")]
    pub prompts: usize,
    /// Solver steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Strength of guidance [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
}

#[derive(Debug, ClapArgs)]
pub struct ReconstructionArgs {
    /// Autoencoder: its folder, or a model folder [default: that of the program's own model]
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// How many scenes
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub scenes: u64,
    /// Width and height of a scene in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 128)]
    pub size: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, ClapArgs)]
pub struct FeaturesArgs {
    /// Pictures with captions: a folder with metadata.jsonl, data_info.json or a .txt beside each, or WebDataset shards
    #[arg(value_name = "FOLDER|SHARD.tar", required_unless_present = "scenes")]
    pub pictures: Vec<PathBuf>,
    /// Take so many scenes of the world that the program draws itself
    #[arg(long, value_name = "N", conflicts_with = "pictures")]
    pub scenes: Option<usize>,
    /// Model whose autoencoder and text encoder make the features
    #[arg(long, value_name = "PATH", required_unless_present = "vae")]
    pub model: Option<PathBuf>,
    /// Take this autoencoder; without --model, captions are not encoded, for training with a new text encoder
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Native size of pictures in pixels; pictures of other shapes get about as many [default: the model's]
    #[arg(long, value_name = "PIXELS", required_unless_present = "model")]
    pub size: Option<usize>,
    /// Compute conditions for a ControlNet too: edges by hed (needs --hed), canny or lineart
    #[arg(long, value_name = "TYPE", value_parser = str::parse::<ControlType>)]
    pub control_type: Option<ControlType>,
    /// Weights of the HED network
    #[arg(long, value_name = "FILE.pth", requires = "control_type")]
    pub hed: Option<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, ClapArgs)]
pub struct TrainArgs {
    /// What to train, on what and how: a TOML file
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Folder for checkpoints, validation pictures and the result
    #[arg(long, short, value_name = "DIR", required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// Say what it would need, and train nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}
