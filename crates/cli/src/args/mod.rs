//! The command line.

mod eval;
mod generate;
mod model;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use pixart::ControlType;
use pixart_weights::{Part, Scheme, StoredDtype};

pub use eval::{AgreementArgs, EvalCommand, FaithfulnessArgs, PrecisionArgs, ReconstructionArgs};
pub use generate::{ControlArgs, ControlImageArgs, DetectorArgs, GenerateArgs, InitArgs};
pub use model::{ComputeArgs, LimitArgs, ModelArgs, PartArgs, TextArgs};

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
  pixart generate \"a blue house\" --control-image sketch.png
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
    pub limit: LimitArgs,
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
    #[command(flatten)]
    pub limit: LimitArgs,
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
