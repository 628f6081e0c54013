//! Pictures that are followed or started from.

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::Device;
use image::{DynamicImage, GrayImage, RgbImage, imageops};
use pixart::{Control, ControlType, Detector, InitImage, Pipeline, Request, save_pixels};

use crate::args::{ControlArgs, ControlImageArgs, DetectorArgs, InitArgs};
use crate::open;
use crate::output::{check_png, is_same_file, print};

/// Share of the way that is drawn anew unless the user says so: enough to change what a picture shows and keep where it is.
const STRENGTH: f64 = 0.6;

/// Behind what is transparent: paper, and what is not to be followed or drawn.
const WHITE: u8 = 255;
const BLACK: u8 = 0;

pub fn run(args: ControlImageArgs) -> Result<()> {
    check_png(&args.output)?;
    if is_same_file(&args.output, &args.picture) {
        bail!("{} is the picture itself, and would be lost", args.output.display());
    }
    let followed = Followed::open(&args.picture, &args.detector, &args.device.open()?)?;
    let map = followed.detector.detect(&followed.picture)?;
    save(&map, &args.output)?;
    print(&format!("{}  {}x{}  {}", args.output.display(), map.width(), map.height(), followed.kind.name()))
}

/// A picture whose edges are followed.
pub struct Followed {
    picture: RgbImage,
    detector: Detector,
    kind: ControlType,
}

impl Followed {
    fn open(path: &Path, args: &DetectorArgs, device: &Device) -> Result<Self> {
        let background = if args.control_type == Some(ControlType::None) { BLACK } else { WHITE };
        let picture = open::picture(path, background)?;
        let kind = args.control_type.unwrap_or_else(|| ControlType::suited_to(&picture));
        if args.hed.is_some() && kind != ControlType::Hed {
            bail!("--hed goes with --control-type hed, edges are found by {}", kind.name());
        }
        Ok(Self { picture, detector: Detector::open(kind, args.hed.as_deref(), device)?, kind })
    }

    /// The one that is named, if any.
    pub fn named(args: &ControlArgs, device: &Device) -> Result<Option<Self>> {
        if args.control_image.is_none() && (args.detector.control_type.is_some() || args.detector.hed.is_some()) {
            bail!("--control-type and --hed say how edges are found in a picture, which --control-image names");
        }
        args.control_image.as_deref().map(|path| Self::open(path, &args.detector, device)).transpose()
    }

    /// What is asked of the ControlNet, but for the edges: the picture stands for them, which has their shape.
    pub fn control(&self, args: &ControlArgs) -> Control {
        let map = imageops::grayscale(&self.picture);
        Control { map, scale: args.control_scale, start: args.control_start, end: args.control_end }
    }

    /// The edges at the size that is drawn for `request`.
    pub fn edges(self, pipeline: &Pipeline, request: &Request) -> Result<GrayImage> {
        let map = pipeline.edges(request, &self.picture, &self.detector)?;
        tracing::info!("edges by {} at {}x{}", self.kind.name(), map.width(), map.height());
        Ok(map)
    }
}

/// The picture to start from, if any.
pub fn init_image(args: &InitArgs) -> Result<Option<InitImage>> {
    let Some(path) = &args.init_image else { return Ok(None) };
    let mask = args.mask.as_deref().map(|path| open::picture(path, BLACK)).transpose()?;
    let mask = mask.map(|mask| imageops::grayscale(&mask));
    let strength = args.strength.unwrap_or(if mask.is_some() { 1.0 } else { STRENGTH });
    Ok(Some(InitImage { image: open::picture(path, WHITE)?, strength, mask }))
}

/// Writes a map as a PNG.
pub fn save(map: &GrayImage, path: &Path) -> Result<()> {
    Ok(save_pixels(&DynamicImage::ImageLuma8(map.clone()).into_rgb8(), path)?)
}
