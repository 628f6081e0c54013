//! What a ControlNet follows: a map of edges, given or found in a picture.

mod detect;

use std::str::FromStr;

pub use detect::{Detector, HedDetector};
use image::{GrayImage, RgbImage};

use crate::{Error, Result};

/// How a picture becomes a map of edges: light lines on black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlType {
    /// Soft edges by the HED network, which PixArt-δ's own ControlNets were trained with.
    Hed,
    /// Thin edges by Canny's detector.
    Canny,
    /// Lines that are darker than what is around them, such as those of a drawing.
    Lineart,
    /// The picture is a map already.
    None,
}

/// The most and the least that the middle pixel of a map and of a drawing have in brightness: their grounds are even.
const MAP_BLACK: u8 = 8;
const DRAWING_LIGHT: u8 = 225;

impl ControlType {
    const ALL: [Self; 4] = [Self::Hed, Self::Canny, Self::Lineart, Self::None];

    /// What suits a picture of which nothing is said: one that is mostly black is a map, one that is mostly light a drawing; of
    /// others Canny's edges.
    pub fn suited_to(picture: &RgbImage) -> Self {
        let mut brightness: Vec<u8> = image::imageops::grayscale(picture).into_raw();
        brightness.sort_unstable();
        match brightness.get(brightness.len() / 2) {
            Some(..=MAP_BLACK) => Self::None,
            Some(DRAWING_LIGHT..) => Self::Lineart,
            _ => Self::Canny,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hed => "hed",
            Self::Canny => "canny",
            Self::Lineart => "lineart",
            Self::None => "none",
        }
    }
}

impl FromStr for ControlType {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| "it is hed, canny, lineart or none".into())
    }
}

/// What a request's ControlNet follows, and how closely.
#[derive(Debug, Clone)]
pub struct Control {
    /// Light edges on black. It is resized to cover the picture, and what lies over is cut off; a map of the size that is drawn
    /// is taken as it is.
    pub map: GrayImage,
    /// What the ControlNet's corrections are multiplied with; 0 and more.
    pub scale: f64,
    /// The share of the steps before which it is not followed, 0 to 1.
    pub start: f64,
    /// The share of the steps after which it is no longer followed, 0 to 1.
    pub end: f64,
}

impl Control {
    /// Follows `map` in all steps, as closely as the ControlNet was trained to.
    pub fn new(map: GrayImage) -> Self {
        Self { map, scale: 1.0, start: 0.0, end: 1.0 }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_shape("the condition image", self.map.dimensions())?;
        if !(self.scale.is_finite() && (0.0..=1e3).contains(&self.scale)) {
            return Err(Error::request(format!("a control scale of {} makes no sense; try 0 to 2", self.scale)));
        }
        if !(0.0..=1.0).contains(&self.start) || !(self.start..=1.0).contains(&self.end) {
            return Err(Error::request(format!(
                "control is from {} to {} of the steps; both lie between 0 and 1, the end after the start",
                self.start, self.end
            )));
        }
        Ok(())
    }

    /// Whether it is followed in step `index` of `total`.
    pub(crate) fn applies(&self, index: usize, total: usize) -> bool {
        let total = total as f64;
        index as f64 / total >= self.start && (index + 1) as f64 / total <= self.end
    }
}

/// A picture to start from.
#[derive(Debug, Clone)]
pub struct InitImage {
    /// It is resized to cover the picture, and what lies over is cut off.
    pub image: RgbImage,
    /// How much of the way from noise to a picture is drawn anew, above 0 and up to 1.
    pub strength: f64,
    /// Of the image's size: light where something new is drawn, dark where the image stays.
    pub mask: Option<GrayImage>,
}

impl InitImage {
    pub(crate) fn check(&self) -> Result<()> {
        check_shape("the image to start from", self.image.dimensions())?;
        if !(self.strength > 0.0 && self.strength <= 1.0) {
            return Err(Error::request(format!("a strength of {}; it is above 0 and up to 1", self.strength)));
        }
        if let Some(mask) = &self.mask
            && mask.dimensions() != self.image.dimensions()
        {
            let ((width, height), (w, h)) = (mask.dimensions(), self.image.dimensions());
            return Err(Error::request(format!("the mask is {width}x{height} pixels, its image {w}x{h}")));
        }
        Ok(())
    }
}

/// The largest ratio between the sides of an image that is cut to a picture's shape.
const LARGEST_RATIO: u32 = 8;

fn check_shape(what: &str, (width, height): (u32, u32)) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::request(format!("{what} is empty")));
    }
    if width.max(height) > LARGEST_RATIO.saturating_mul(width.min(height)) {
        return Err(Error::request(format!(
            "{what} is {width}x{height}; its longer side may be at most {LARGEST_RATIO} times the shorter one"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_applies_from_start_to_end() {
        let steps = |start, end, total| {
            let control = Control { start, end, ..Control::new(GrayImage::new(8, 8)) };
            (0..total).map(|i| u8::from(control.applies(i, total))).collect::<Vec<_>>()
        };
        assert_eq!(steps(0.0, 1.0, 4), [1, 1, 1, 1]);
        assert_eq!(steps(0.0, 0.5, 4), [1, 1, 0, 0]);
        assert_eq!(steps(0.25, 0.8, 4), [0, 1, 1, 0]);
        assert_eq!(steps(0.0, 0.0, 2), [0, 0]);
    }

    #[test]
    fn a_picture_tells_how_its_edges_are_found() {
        let lines = |ground: u8, line: u8| {
            RgbImage::from_fn(32, 32, |x, _| image::Rgb([if x % 8 == 0 { line } else { ground }; 3]))
        };
        let photo = RgbImage::from_fn(32, 32, |x, y| image::Rgb([8 * x as u8, 8 * y as u8, 128]));
        let kinds = [lines(0, 255), lines(250, 40), photo].map(|picture| ControlType::suited_to(&picture));
        assert_eq!(kinds, [ControlType::None, ControlType::Lineart, ControlType::Canny]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let map = GrayImage::new(8, 8);
        let control = |scale, start, end| Control { map: map.clone(), scale, start, end }.check();
        assert!(control(1.0, 0.0, 1.0).is_ok());
        for (scale, start, end) in [(-1.0, 0.0, 1.0), (f64::NAN, 0.0, 1.0), (1.0, 0.6, 0.5), (1.0, 0.0, 1.5)] {
            assert!(control(scale, start, end).is_err(), "{scale}, {start}, {end}");
        }
        for (width, height) in [(0, 0), (900, 100), (100, 801)] {
            assert!(Control::new(GrayImage::new(width, height)).check().is_err(), "{width}x{height}");
        }
        let init = |strength, mask: Option<(u32, u32)>| {
            let mask = mask.map(|(width, height)| GrayImage::new(width, height));
            InitImage { image: RgbImage::new(8, 4), strength, mask }.check()
        };
        assert!(init(1.0, Some((8, 4))).is_ok());
        for (strength, mask) in [(0.0, None), (1.1, None), (f64::NAN, None), (0.5, Some((4, 8)))] {
            assert!(init(strength, mask).is_err(), "{strength}, {mask:?}");
        }
    }
}
