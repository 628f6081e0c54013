//! From scenes to pictures.

use std::f32::consts::FRAC_1_SQRT_2;

use tiny_skia::{Color, FillRule, Mask, Paint, Path, PathBuilder, Pixmap, Shader, Transform};

use crate::attributes::Fill;
use crate::palette::Rgb;
use crate::picture::Picture;
use crate::scene::{Object, Scene};
use crate::scenery;
use crate::shapes::{self, Layer, Part};

impl Scene {
    /// Draws the scene, anti-aliased, as a square of `size` pixels a side, 1 to 8192; for any other size the picture is
    /// empty. The same scene and size give the same bytes on every platform.
    pub fn draw(&self, size: u32) -> Picture {
        let Some(mut canvas) = Some(size).filter(|size| *size <= 8192).and_then(|size| Pixmap::new(size, size)) else {
            return Picture::default();
        };
        scenery::paint(&mut canvas, self.background());
        for object in self.objects().iter().rev() {
            paint(&mut canvas, object);
        }
        finish(&canvas)
    }
}

/// The least part of a cell that an object has to cover to be what is in it, of 255.
const LEAST_COVER: u8 = 80;

impl Scene {
    /// Which of [`Scene::objects`] is in each of `side` × `side` cells of the picture, row after row: the frontmost of those that
    /// cover a third of the cell, if any does.
    pub fn occupants(&self, side: u32) -> Vec<Option<usize>> {
        let mut cells = vec![None; side as usize * side as usize];
        for (index, object) in self.objects().iter().enumerate().rev() {
            let Some(mut mask) = Mask::new(side, side) else { continue };
            for part in shapes::parts(object.kind) {
                mask.fill_path(&part.path, part.rule, true, place(object, side));
            }
            for (cell, cover) in cells.iter_mut().zip(mask.data()) {
                if *cover >= LEAST_COVER {
                    *cell = Some(index);
                }
            }
        }
        cells
    }
}

/// From an outline to where an object is in a picture of `side` pixels.
fn place(object: &Object, side: u32) -> Transform {
    // From thousandths of the picture's side to pixels.
    let unit = side as f32 / 1000.0;
    let scale = object.extent as f32 * unit;
    let (x, y) = (object.centre.0 as f32 * unit, object.centre.1 as f32 * unit);
    Transform::from_row(if object.mirrored { -scale } else { scale }, 0.0, 0.0, scale, x, y)
}

/// Everything is painted on an opaque background, so that the premultiplied colours are the colours.
fn finish(canvas: &Pixmap) -> Picture {
    let (width, height) = (canvas.width() as usize, canvas.height() as usize);
    let pixels = canvas.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    Picture::from_rgb(width, height, pixels).unwrap_or_default()
}

fn paint(canvas: &mut Pixmap, object: &Object) {
    let place = place(object, canvas.width());
    let parts = shapes::parts(object.kind);
    let layer = |canvas: &mut Pixmap, layer: Layer, colour: Rgb| {
        for part in parts.iter().filter(|part| part.layer == layer) {
            canvas.fill_path(&part.path, &solid(colour), part.rule, place, None);
        }
    };

    layer(canvas, Layer::Behind, object.colour.shade());
    layer(canvas, Layer::Body, object.colour.rgb());
    let pattern = match object.fill {
        Fill::Plain => None,
        Fill::Striped => stripes(Fill::period(object.extent) as f32, object.extent as f32),
        Fill::Dotted => dots(Fill::period(object.extent) as f32, object.extent as f32),
    };
    if let (Some(pattern), Some(body)) = (pattern, body(canvas, &parts, place)) {
        let unit = canvas.width() as f32 / 1000.0;
        let around = Transform::from_row(unit, 0.0, 0.0, unit, place.tx, place.ty);
        canvas.fill_path(&pattern, &solid(object.colour.shade()), FillRule::Winding, around, Some(&body));
    }
    layer(canvas, Layer::Front, object.colour.shade());
}

/// Where the pattern may be painted.
fn body(canvas: &Pixmap, parts: &[Part], place: Transform) -> Option<Mask> {
    let mut mask = Mask::new(canvas.width(), canvas.height())?;
    for part in parts.iter().filter(|part| part.layer == Layer::Body) {
        mask.fill_path(&part.path, part.rule, true, place);
    }
    Some(mask)
}

fn solid([red, green, blue]: Rgb) -> Paint<'static> {
    let shader = Shader::SolidColor(Color::from_rgba8(red, green, blue, 255));
    Paint { shader, anti_alias: true, ..Paint::default() }
}

/// Stripes downwards to the right over a square of some extent around (0, 0); as wide as the gaps between them.
fn stripes(period: f32, extent: f32) -> Option<Path> {
    let reach = extent * FRAC_1_SQRT_2;
    let count = (reach / period) as i32 + 1;
    let mut path = PathBuilder::new();
    for stripe in -count..=count {
        let middle = stripe as f32 * period;
        let (first, last) = (middle - period / 4.0, middle + period / 4.0);
        let corners = [(-reach, first), (reach, first), (reach, last), (-reach, last)];
        let turned = |(along, across)| ((along + across) * FRAC_1_SQRT_2, (along - across) * FRAC_1_SQRT_2);
        shapes::add_polygon(&mut path, &corners.map(turned));
    }
    path.finish()
}

/// Dots in staggered rows over a square of some extent around (0, 0).
fn dots(period: f32, extent: f32) -> Option<Path> {
    let row_height = period * 0.866;
    let count = (extent / 2.0 / row_height) as i32 + 1;
    let mut path = PathBuilder::new();
    for row in -count..=count {
        let shift = if row % 2 == 0 { 0.0 } else { period / 2.0 };
        for column in -count..=count {
            path.push_circle(column as f32 * period + shift, row as f32 * row_height, period * 0.29);
        }
    }
    path.finish()
}
