//! Arguments of `eval`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::{ComputeArgs, ModelArgs};

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

/// How pictures are drawn.
#[derive(Debug, ClapArgs)]
pub struct SamplingArgs {
    /// Solver steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Strength of guidance [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
}

#[derive(Debug, ClapArgs)]
pub struct FaithfulnessArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// How many prompts
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub prompts: usize,
    /// Pass over so many of the list of prompts first, to choose among models by others than those that are reported
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub skip_prompts: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
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
            && (self.sampling.steps.is_none() && self.sampling.guidance_scale.is_none() && self.scheduler.is_none())
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
    #[command(flatten)]
    pub sampling: SamplingArgs,
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
    #[command(flatten)]
    pub sampling: SamplingArgs,
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
    /// Noise in the latents before they are decoded, in multiples of their standard deviation: what a diffusion model gets wrong,
    /// about 0.1
    #[arg(long, value_name = "STD", default_value_t = 0.0)]
    pub latent_noise: f64,
    /// Also write every scene there, as drawn and, below, as decoded
    #[arg(short, long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}
