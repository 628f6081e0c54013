//! Pictures that are followed or started from.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use image::{DynamicImage, GrayImage};
use pixart::{Control, Detector, InitImage, save_pixels};

use crate::args::{ControlArgs, ControlImageArgs, DetectorArgs, InitArgs};
use crate::open;
use crate::output::print;

/// Share of the way that is drawn anew unless the user says so: enough to change what a picture shows and keep where it is.
const STRENGTH: f64 = 0.6;

pub fn run(args: ControlImageArgs) -> Result<()> {
    let map = edges(&args.picture, &args.detector, &args.device.open()?)?;
    save(&map, &args.output)?;
    print(&format!("{}  {}x{}", args.output.display(), map.width(), map.height()))
}

/// The map of a picture's edges.
fn edges(picture: &Path, args: &DetectorArgs, device: &Device) -> Result<GrayImage> {
    let detector = Detector::open(args.control_type, args.hed.as_deref(), device)?;
    Ok(detector.detect(&open::picture(picture)?.into_rgb8())?)
}

/// What a ControlNet is to follow, if anything.
pub fn control(args: &ControlArgs, device: &Device) -> Result<Option<Control>> {
    let Some(path) = &args.control_image else { return Ok(None) };
    let map = edges(path, &args.detector, device)?;
    Ok(Some(Control { map, scale: args.control_scale, start: args.control_start, end: args.control_end }))
}

/// The picture to start from, if any.
pub fn init_image(args: &InitArgs) -> Result<Option<InitImage>> {
    let Some(path) = &args.init_image else { return Ok(None) };
    let mask = args.mask.as_deref().map(open::picture).transpose()?.map(DynamicImage::into_luma8);
    let strength = args.strength.unwrap_or(if mask.is_some() { 1.0 } else { STRENGTH });
    Ok(Some(InitImage { image: open::picture(path)?.into_rgb8(), strength, mask }))
}

/// Writes a map as a PNG.
pub fn save(map: &GrayImage, path: &Path) -> Result<()> {
    Ok(save_pixels(&DynamicImage::ImageLuma8(map.clone()).into_rgb8(), path)?)
}
