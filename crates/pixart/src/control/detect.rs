//! Edges of pictures.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, Luma, RgbImage, imageops};
use imageproc::edges::canny;
use pixart_nn::hed::Hed;
use pixart_weights::Weights;

use super::{ControlType, check_shape};
use crate::{Error, Result};

/// Canny's thresholds for the gradient: edges that are connected to one above the second are followed down to the first.
const CANNY_THRESHOLDS: [f32; 2] = [40.0, 100.0];

/// Of the blur that lines are compared with, in pixels.
const LINEART_SIGMA: f32 = 6.0;
/// Differences in brightness that count as lines, of 255, and the least that full white stands for.
const LINEART_THRESHOLD: f32 = 8.0;
const LINEART_LEAST: f32 = 16.0;

/// The HED network, where it computes.
#[derive(Debug)]
pub struct HedDetector {
    network: Hed,
    /// Channels of its largest images, which are as large as the picture.
    pub(crate) width: usize,
    /// Bytes of its weights.
    pub(crate) weights: u64,
    device: Device,
}

/// Finds the edges that a ControlNet follows.
#[derive(Debug)]
pub enum Detector {
    /// By the HED network.
    Hed(Box<HedDetector>),
    /// By Canny's detector.
    Canny,
    /// By comparing with a blurred picture.
    Lineart,
    /// By taking the picture's brightness.
    Brightness,
}

impl Detector {
    /// The detector of this type. HED's weights, with the published names, are in the file `hed`.
    ///
    /// # Errors
    /// HED without weights, or with a file that does not hold them.
    pub fn open(kind: ControlType, hed: Option<&Path>, device: &Device) -> Result<Self> {
        match (kind, hed) {
            (ControlType::Hed, Some(path)) => Self::hed(path, device),
            (ControlType::Hed, None) => {
                Err(Error::request("edges by HED need the network's weights, a .pth file (--hed)"))
            }
            (ControlType::Canny, _) => Ok(Self::Canny),
            (ControlType::Lineart, _) => Ok(Self::Lineart),
            (ControlType::None, _) => Ok(Self::Brightness),
        }
    }

    fn hed(path: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(path)?;
        let mut widths = [0; 5];
        for (i, width) in widths.iter_mut().enumerate() {
            let name = format!("block{}.projection.weight", i + 1);
            let channels = weights.tensors().get(&name).and_then(|tensor| tensor.shape.get(1));
            *width = *channels.ok_or_else(|| {
                Error::request(format!("{}: is no HED network: there is no tensor {name:?}", path.display()))
            })?;
        }
        let network = Hed::new(widths, weights.named(DType::F32, device))?;
        let weights = weights.bytes_in(DType::F32);
        Ok(Self::Hed(Box::new(HedDetector { network, width: widths[0], weights, device: device.clone() })))
    }

    /// A map of the picture's size: light edges on black.
    ///
    /// # Errors
    /// A picture that is empty or of extreme shape; of HED, one of less than 16 pixels.
    pub fn detect(&self, picture: &RgbImage) -> Result<GrayImage> {
        check_shape("the condition image", picture.dimensions())?;
        match self {
            Self::Hed(hed) => hed.detect(picture),
            Self::Canny => {
                let [low, high] = CANNY_THRESHOLDS;
                Ok(canny(&imageops::grayscale(picture), low, high))
            }
            Self::Lineart => Ok(lineart(picture)),
            Self::Brightness => Ok(imageops::grayscale(picture)),
        }
    }
}

impl HedDetector {
    fn detect(&self, picture: &RgbImage) -> Result<GrayImage> {
        let (width, height) = picture.dimensions();
        if width < 16 || height < 16 {
            return Err(Error::request(format!(
                "the condition image is {width}x{height}; HED takes 16x16 and larger ones"
            )));
        }
        let values: Vec<f32> = picture.as_raw().iter().map(|byte| f32::from(*byte)).collect();
        let pixels = Tensor::from_vec(values, (1, height as usize, width as usize, 3), &self.device)?;
        let edges = self.network.forward(&pixels.permute((0, 3, 1, 2))?.contiguous()?)?;
        let edges = (edges * 255.0)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = edges.into_iter().map(|edge| edge as u8).collect();
        GrayImage::from_raw(width, height, bytes).ok_or_else(|| Error::Compute("the edges have another size".into()))
    }
}

/// How much darker pixels are than their surroundings, in the channel where that is most, relative to what is usual of lines
/// in the picture: the "standard" line art of the first ControlNets (Zhang & Agrawala 2023).
fn lineart(picture: &RgbImage) -> GrayImage {
    let blurred = imageops::blur(picture, LINEART_SIGMA);
    let darkness = |(pixel, around): (&image::Rgb<u8>, &image::Rgb<u8>)| {
        let channels = pixel.0.iter().zip(around.0).map(|(pixel, around)| f32::from(around) - f32::from(*pixel));
        channels.fold(f32::INFINITY, f32::min).max(0.0)
    };
    let darkness: Vec<f32> = picture.pixels().zip(blurred.pixels()).map(darkness).collect();
    let mut lines: Vec<f32> = darkness.iter().copied().filter(|value| *value > LINEART_THRESHOLD).collect();
    lines.sort_by(f32::total_cmp);
    let usual = lines.get(lines.len() / 2).copied().unwrap_or(0.0).max(LINEART_LEAST);
    let (width, _) = picture.dimensions();
    GrayImage::from_fn(width, picture.height(), |x, y| {
        Luma([(darkness[(y * width + x) as usize] / usual * 127.0).min(255.0) as u8])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// A dark square on white, or with `line`, its outline alone.
    fn square(line: bool) -> RgbImage {
        RgbImage::from_fn(64, 48, |x, y| {
            let inside =
                |margin: u32| (16 + margin..48 - margin).contains(&x) && (8 + margin..40 - margin).contains(&y);
            if inside(0) && !(line && inside(2)) { Rgb([20, 30, 60]) } else { Rgb([250, 250, 240]) }
        })
    }

    #[test]
    fn edges_are_where_the_square_ends() -> Result<()> {
        for (detector, picture) in [(Detector::Canny, square(false)), (Detector::Lineart, square(true))] {
            let map = detector.detect(&picture)?;
            assert_eq!(map.dimensions(), (64, 48));
            for (x, y, pixel) in map.enumerate_pixels() {
                let distance = |value: u32, edge: u32| value.abs_diff(edge);
                let (near_x, near_y) = (distance(x, 16).min(distance(x, 47)), distance(y, 8).min(distance(y, 39)));
                if pixel[0] > 100 {
                    assert!(near_x.min(near_y) <= 2, "{x}, {y} has an edge");
                }
            }
            let row: Vec<u32> = (0..64).filter(|x| map.get_pixel(*x, 24)[0] > 100).collect();
            assert!(row.iter().any(|x| x.abs_diff(16) <= 2) && row.iter().any(|x| x.abs_diff(47) <= 2), "{row:?}");
        }
        Ok(())
    }

    #[test]
    fn a_plain_picture_has_no_edges() -> Result<()> {
        let plain = RgbImage::from_pixel(32, 32, Rgb([120, 40, 200]));
        for detector in [Detector::Canny, Detector::Lineart] {
            assert!(detector.detect(&plain)?.pixels().all(|pixel| pixel[0] == 0), "{detector:?}");
        }
        Ok(())
    }
}
