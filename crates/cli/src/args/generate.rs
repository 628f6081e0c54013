//! Arguments of `generate` and `control-image`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use pixart::{ControlType, DeviceChoice};

use super::{LimitArgs, ModelArgs, TextArgs};

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
    pub limit: LimitArgs,
    #[command(flatten)]
    pub text: TextArgs,
    /// Solver steps [default: 20; 4 for LCM]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
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
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub width: Option<usize>,
    /// Height in pixels [default: the model's native size]
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub height: Option<usize>,
    /// Draw at exactly this size, not at the nearest one the model was trained on
    #[arg(long)]
    pub no_resolution_binning: bool,
    /// Seed of the first image; image k of a prompt has seed S + k [default: random]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Images for each prompt
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
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
    /// [default: none for a picture that is mostly black, lineart for one that is mostly light, else canny]
    #[arg(long, value_name = "TYPE", value_parser = str::parse::<ControlType>)]
    pub control_type: Option<ControlType>,
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
