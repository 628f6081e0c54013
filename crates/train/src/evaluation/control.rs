//! How closely a ControlNet is followed, in the world of scenes.

use std::ops::ControlFlow;
use std::time::Duration;

use image::{GrayImage, RgbImage};
use pixart::{Control, Detector, Pipeline, Request, Seeds};
use pixart_scenes::{Prompt, Scene, Split, judge, read};

use super::{Share, from_scene, to_picture};
use crate::Result;

/// Edges that are at most so many pixels apart are the same.
const TOLERANCE: i64 = 2;

/// Brightness from which on a pixel of a map is an edge.
const EDGE: u8 = 128;

/// How pictures that were drawn along the edges of scenes compare with those, and with pictures of the same prompts and seeds
/// that were not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// Those that follow the edges.
    pub controlled: Drawn,
    /// Those that do not: what is agreed on by chance.
    pub free: Drawn,
}

/// What pictures are like.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Drawn {
    /// The mean over all pictures of the F1 score of their edges against those of the scenes, 0 to 1.
    pub f1: f64,
    /// Of the objects that were asked for in a colour, those whose colour is there.
    pub colours: Share,
    /// Time that the solver took for a picture.
    pub denoise: Duration,
}

/// Draws `scenes` held-out scenes as `request` says: by their captions alone, and along their edges too, which `detector` finds
/// in the scenes and in what is drawn. `on_progress` is told how many are done and given the prompt, and the scene, its
/// edges and both pictures; its `Break` ends with [`pixart::Error::Cancelled`].
///
/// # Errors
/// What [`Pipeline::generate`] refuses.
pub fn agreement(
    pipeline: &mut Pipeline,
    request: &Request,
    detector: &Detector,
    scenes: u64,
    mut on_progress: impl FnMut(u64, &str, [RgbImage; 4]) -> ControlFlow<()>,
) -> Result<Agreement> {
    let size = pipeline.native_size() as u32;
    let scale = request.control.as_ref().map_or(1.0, |control| control.scale);
    let mut found = Agreement::default();
    for seed in 0..scenes {
        let scene = Scene::random(seed, Split::Test);
        let (prompt, picture) = (scene.prompt(seed), from_scene(&scene.draw(size)));
        let edges = detector.detect(&picture)?;
        let mut draw = |control: Option<Control>, drawn: &mut Drawn| -> Result<RgbImage> {
            let request = Request {
                prompts: vec![prompt.text.clone()],
                seeds: Seeds::PerImage(vec![seed]),
                num_images_per_prompt: 1,
                control,
                ..request.clone()
            };
            let generated = pipeline.generate(&request)?;
            drawn.denoise += generated.timings.denoise;
            let picture = generated.images.into_iter().map(|image| image.pixels).next().unwrap_or_default();
            drawn.f1 += f1(&detector.detect(&picture)?, &edges);
            drawn.count_colours(&prompt, &picture)?;
            Ok(picture)
        };
        let free = draw(None, &mut found.free)?;
        let control = Control { scale, ..Control::new(edges.clone()) };
        let controlled = draw(Some(control), &mut found.controlled)?;
        let edges = image::DynamicImage::ImageLuma8(edges).into_rgb8();
        if on_progress(seed + 1, &prompt.text, [picture, edges, controlled, free]).is_break() {
            return Err(pixart::Error::Cancelled.into());
        }
    }
    for drawn in [&mut found.controlled, &mut found.free] {
        drawn.f1 /= scenes.max(1) as f64;
        drawn.denoise /= scenes.max(1) as u32;
    }
    Ok(found)
}

impl Drawn {
    fn count_colours(&mut self, prompt: &Prompt, picture: &RgbImage) -> Result<()> {
        let verdict = judge(&prompt.claims, &read(&to_picture(picture)?));
        self.colours.add_colours(&prompt.claims, &verdict);
        Ok(())
    }
}

/// The harmonic mean of the share of found edges that are near to a true one, and of true ones that are near to a found one.
/// Where neither map has edges they agree.
fn f1(found: &GrayImage, truth: &GrayImage) -> f64 {
    let (precision, recall) = (share_near(found, truth), share_near(truth, found));
    match (precision, recall) {
        (None, None) => 1.0,
        (Some(precision), Some(recall)) if precision + recall > 0.0 => 2.0 * precision * recall / (precision + recall),
        _ => 0.0,
    }
}

/// Of the edges of `map`, the share that is near to one of `other`; none if it has no edges.
fn share_near(map: &GrayImage, other: &GrayImage) -> Option<f64> {
    let is_edge = |map: &GrayImage, x: i64, y: i64| {
        let inside = x >= 0 && y >= 0 && x < i64::from(map.width()) && y < i64::from(map.height());
        inside && map.get_pixel(x as u32, y as u32)[0] >= EDGE
    };
    let around = || (-TOLERANCE..=TOLERANCE).flat_map(|dy| (-TOLERANCE..=TOLERANCE).map(move |dx| (dx, dy)));
    let (mut near, mut all) = (0u64, 0u64);
    for (x, y, pixel) in map.enumerate_pixels() {
        if pixel[0] >= EDGE {
            let (x, y) = (i64::from(x), i64::from(y));
            let mut within = around().filter(|(dx, dy)| dx * dx + dy * dy <= TOLERANCE * TOLERANCE);
            near += u64::from(within.any(|(dx, dy)| is_edge(other, x + dx, y + dy)));
            all += 1;
        }
    }
    (all > 0).then(|| near as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Luma;

    /// A vertical line at `column`, `height` pixels long.
    fn line(column: u32, height: u32) -> GrayImage {
        GrayImage::from_fn(16, 16, |x, y| Luma([255 * u8::from(x == column && y < height)]))
    }

    #[test]
    fn edges_agree_within_two_pixels() {
        assert_eq!(f1(&line(5, 16), &line(5, 16)), 1.0);
        assert_eq!(f1(&line(5, 16), &line(7, 16)), 1.0);
        assert_eq!(f1(&line(5, 16), &line(8, 16)), 0.0);
        assert_eq!(f1(&line(5, 0), &line(5, 0)), 1.0);
        assert_eq!(f1(&line(5, 0), &line(5, 16)), 0.0);
        // All of the short line is near, and of the long one 8 pixels and the two below: 10 of 16.
        let expected = 2.0 * 10.0 / 16.0 / (1.0 + 10.0 / 16.0);
        assert!((f1(&line(5, 8), &line(5, 16)) - expected).abs() < 1e-12);
    }
}
