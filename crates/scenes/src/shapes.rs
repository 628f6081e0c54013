//! The outlines of the kinds.
//!
//! An outline lies around (0, 0) with y downwards; the longer side of its bounding box is 1, the other as
//! [`Kind::proportions`] says. Angles are written as constants, because `sin` and `cos` differ between platforms.

use tiny_skia::{FillRule, Path, PathBuilder, Point};

use crate::kind::Kind;

/// How a part of an outline is painted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// In the second shade, before the body.
    Behind,
    /// In the colour itself, and with the fill.
    Body,
    /// In the second shade, on the body.
    Front,
}

/// A path and how it is painted.
pub(crate) struct Part {
    pub(crate) path: Path,
    pub(crate) rule: FillRule,
    pub(crate) layer: Layer,
}

/// Directions to the corners of a pentagon that stands on a side, from the top and clockwise.
const PENTAGON: [(f32, f32); 5] =
    [(0.0, -1.0), (0.951_057, -0.309_017), (0.587_785, 0.809_017), (-0.587_785, 0.809_017), (-0.951_057, -0.309_017)];

/// Directions to the sides of that pentagon, each following the corner of the same index.
const PENTAGON_SIDES: [(f32, f32); 5] =
    [(0.587_785, -0.809_017), (0.951_057, 0.309_017), (0.0, 1.0), (-0.951_057, 0.309_017), (-0.587_785, -0.809_017)];

const DIAGONAL: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Eight directions, an eighth of a turn apart.
const COMPASS: [(f32, f32); 8] = [
    (0.0, -1.0),
    (DIAGONAL, -DIAGONAL),
    (1.0, 0.0),
    (DIAGONAL, DIAGONAL),
    (0.0, 1.0),
    (-DIAGONAL, DIAGONAL),
    (-1.0, 0.0),
    (-DIAGONAL, -DIAGONAL),
];

/// The parts of a kind's outline, in the order of painting. Together they are its silhouette.
pub(crate) fn parts(kind: Kind) -> Vec<Part> {
    let mut shape = Shape(Vec::new());
    match kind {
        Kind::Circle => shape.disc(Layer::Body, 0.0, 0.0, 0.5),
        Kind::Square => shape.rect(Layer::Body, -0.5, -0.5, 0.5, 0.5),
        Kind::Triangle => shape.polygon(Layer::Body, &[(0.0, -0.435), (0.5, 0.435), (-0.5, 0.435)]),
        Kind::Star => shape.star(),
        Kind::Heart => shape.heart(),
        Kind::Crescent => shape.crescent(),
        Kind::Ring => shape.ring(),
        Kind::Cross => shape.cross(),
        Kind::Diamond => shape.polygon(Layer::Body, &[(0.0, -0.5), (0.36, 0.0), (0.0, 0.5), (-0.36, 0.0)]),
        Kind::Tree => shape.tree(),
        Kind::House => shape.house(),
        Kind::Sun => shape.sun(),
        Kind::Cloud => shape.cloud(),
        Kind::Fish => shape.fish(),
        Kind::Flower => shape.flower(),
        Kind::Car => shape.car(),
    }
    shape.0
}

struct Shape(Vec<Part>);

impl Shape {
    fn add(&mut self, layer: Layer, rule: FillRule, draw: impl FnOnce(&mut PathBuilder)) {
        let mut builder = PathBuilder::new();
        draw(&mut builder);
        self.0.extend(builder.finish().map(|path| Part { path, rule, layer }));
    }

    fn disc(&mut self, layer: Layer, x: f32, y: f32, radius: f32) {
        self.add(layer, FillRule::Winding, |path| path.push_circle(x, y, radius));
    }

    fn rect(&mut self, layer: Layer, left: f32, top: f32, right: f32, bottom: f32) {
        self.polygon(layer, &[(left, top), (right, top), (right, bottom), (left, bottom)]);
    }

    fn polygon(&mut self, layer: Layer, corners: &[(f32, f32)]) {
        self.add(layer, FillRule::Winding, |path| add_polygon(path, corners));
    }

    fn star(&mut self) {
        // The points lie on a circle whose centre is below the middle of the bounding box.
        let (outer, inner, middle) = (0.525_73, 0.235, 0.050_2);
        let corners: Vec<_> = PENTAGON
            .iter()
            .zip(&PENTAGON_SIDES)
            .flat_map(|(corner, side)| {
                [(corner.0 * outer, corner.1 * outer + middle), (side.0 * inner, side.1 * inner + middle)]
            })
            .collect();
        self.polygon(Layer::Body, &corners);
    }

    fn heart(&mut self) {
        self.add(Layer::Body, FillRule::Winding, |path| {
            path.move_to(0.0, 0.45);
            path.cubic_to(-0.13, 0.28, -0.5, 0.1, -0.5, -0.18);
            path.cubic_to(-0.5, -0.34, -0.39, -0.45, -0.25, -0.45);
            path.cubic_to(-0.14, -0.45, -0.04, -0.38, 0.0, -0.27);
            path.cubic_to(0.04, -0.38, 0.14, -0.45, 0.25, -0.45);
            path.cubic_to(0.39, -0.45, 0.5, -0.34, 0.5, -0.18);
            path.cubic_to(0.5, 0.1, 0.13, 0.28, 0.0, 0.45);
            path.close();
        });
    }

    fn crescent(&mut self) {
        // A disc of radius 0.5 without a disc of radius 0.4 that lies 0.25 to the right; the tips are where the circles
        // cross, in directions (0.61, ±0.792) from the first centre and (0.1375, ±0.9905) from the second.
        let (middle, inner_middle) = (0.097_5, 0.347_5);
        self.add(Layer::Body, FillRule::Winding, |path| {
            path.move_to(middle + 0.305, -0.396_2);
            arc(path, (middle, 0.0), 0.5, (0.61, -0.792_4), (0.0, -1.0));
            arc(path, (middle, 0.0), 0.5, (0.0, -1.0), (-1.0, 0.0));
            arc(path, (middle, 0.0), 0.5, (-1.0, 0.0), (0.0, 1.0));
            arc(path, (middle, 0.0), 0.5, (0.0, 1.0), (0.61, 0.792_4));
            arc(path, (inner_middle, 0.0), 0.4, (0.137_5, 0.990_5), (-1.0, 0.0));
            arc(path, (inner_middle, 0.0), 0.4, (-1.0, 0.0), (0.137_5, -0.990_5));
            path.close();
        });
    }

    fn ring(&mut self) {
        self.add(Layer::Body, FillRule::EvenOdd, |path| {
            path.push_circle(0.0, 0.0, 0.5);
            path.push_circle(0.0, 0.0, 0.335);
        });
    }

    fn cross(&mut self) {
        let (arm, end) = (0.17, 0.5);
        self.polygon(
            Layer::Body,
            &[
                (-arm, -end),
                (arm, -end),
                (arm, -arm),
                (end, -arm),
                (end, arm),
                (arm, arm),
                (arm, end),
                (-arm, end),
                (-arm, arm),
                (-end, arm),
                (-end, -arm),
                (-arm, -arm),
            ],
        );
    }

    fn tree(&mut self) {
        self.polygon(Layer::Behind, &[(-0.07, 0.1), (0.07, 0.1), (0.09, 0.5), (-0.09, 0.5)]);
        self.disc(Layer::Body, -0.16, 0.04, 0.22);
        self.disc(Layer::Body, 0.16, 0.04, 0.22);
        self.disc(Layer::Body, 0.0, -0.25, 0.25);
        self.disc(Layer::Body, -0.13, -0.14, 0.2);
        self.disc(Layer::Body, 0.13, -0.14, 0.2);
    }

    fn house(&mut self) {
        self.rect(Layer::Behind, 0.18, -0.46, 0.32, -0.1);
        self.rect(Layer::Body, -0.38, -0.08, 0.38, 0.5);
        self.polygon(Layer::Front, &[(0.0, -0.5), (0.5, 0.0), (-0.5, 0.0)]);
        self.rect(Layer::Front, 0.07, 0.18, 0.25, 0.5);
        self.rect(Layer::Front, -0.26, 0.14, -0.06, 0.33);
    }

    fn sun(&mut self) {
        for (x, y) in COMPASS {
            let (base, half, tip) = (0.24, 0.105, 0.5);
            self.polygon(
                Layer::Behind,
                &[
                    (x * base - y * half, y * base + x * half),
                    (x * tip, y * tip),
                    (x * base + y * half, y * base - x * half),
                ],
            );
        }
        self.disc(Layer::Body, 0.0, 0.0, 0.285);
    }

    fn cloud(&mut self) {
        self.disc(Layer::Body, -0.3, 0.1, 0.2);
        self.disc(Layer::Body, -0.06, -0.04, 0.26);
        self.disc(Layer::Body, 0.27, 0.07, 0.23);
        self.rect(Layer::Body, -0.3, 0.0, 0.27, 0.3);
    }

    fn fish(&mut self) {
        self.polygon(Layer::Behind, &[(0.12, 0.0), (0.5, -0.25), (0.43, 0.0), (0.5, 0.25)]);
        self.polygon(Layer::Behind, &[(-0.2, -0.2), (0.02, -0.27), (0.12, -0.1)]);
        self.add(Layer::Body, FillRule::Winding, |path| {
            // A lens from the mouth to the root of the tail.
            path.move_to(-0.5, 0.02);
            path.cubic_to(-0.38, -0.27, 0.02, -0.33, 0.3, 0.0);
            path.cubic_to(0.02, 0.36, -0.38, 0.35, -0.5, 0.02);
            path.close();
        });
        self.disc(Layer::Front, -0.31, -0.05, 0.045);
    }

    fn flower(&mut self) {
        for (x, y) in PENTAGON {
            self.disc(Layer::Body, 0.32 * x, 0.32 * y + 0.03, 0.195_7);
        }
        self.disc(Layer::Body, 0.0, 0.03, 0.26);
        self.disc(Layer::Front, 0.0, 0.03, 0.15);
    }

    fn car(&mut self) {
        self.add(Layer::Body, FillRule::Winding, |path| {
            path.move_to(-0.5, 0.14);
            path.line_to(-0.5, 0.02);
            path.cubic_to(-0.5, -0.04, -0.42, -0.04, -0.36, -0.05);
            path.line_to(-0.2, -0.22);
            path.cubic_to(-0.17, -0.25, -0.15, -0.25, -0.12, -0.25);
            path.line_to(0.13, -0.25);
            path.cubic_to(0.18, -0.25, 0.2, -0.24, 0.22, -0.21);
            path.line_to(0.33, -0.05);
            path.cubic_to(0.46, -0.04, 0.5, 0.0, 0.5, 0.06);
            path.line_to(0.5, 0.14);
            path.close();
        });
        self.polygon(Layer::Front, &[(-0.24, -0.06), (-0.13, -0.18), (-0.02, -0.18), (-0.02, -0.06)]);
        self.polygon(Layer::Front, &[(0.04, -0.06), (0.04, -0.18), (0.14, -0.18), (0.22, -0.06)]);
        self.disc(Layer::Front, -0.27, 0.13, 0.12);
        self.disc(Layer::Front, 0.27, 0.13, 0.12);
    }
}

/// Adds a closed polygon.
pub(crate) fn add_polygon(path: &mut PathBuilder, corners: &[(f32, f32)]) {
    for (index, &(x, y)) in corners.iter().enumerate() {
        if index == 0 {
            path.move_to(x, y);
        } else {
            path.line_to(x, y);
        }
    }
    path.close();
}

/// Adds the shorter arc of a circle between two directions, which are of length 1, with one cubic. Only square roots
/// are needed, which are the same everywhere.
fn arc(path: &mut PathBuilder, centre: (f32, f32), radius: f32, from: (f32, f32), to: (f32, f32)) {
    let cosine = from.0 * to.0 + from.1 * to.1;
    let (half_cosine, half_sine) = (((1.0 + cosine) / 2.0).sqrt(), ((1.0 - cosine) / 2.0).sqrt());
    let turn = if from.0 * to.1 - from.1 * to.0 < 0.0 { -1.0 } else { 1.0 };
    let reach = turn * 4.0 / 3.0 * half_sine / (1.0 + half_cosine);
    let at = |x: f32, y: f32| Point::from_xy(centre.0 + radius * x, centre.1 + radius * y);
    let first = at(from.0 - reach * from.1, from.1 + reach * from.0);
    let second = at(to.0 + reach * to.1, to.1 - reach * to.0);
    let end = at(to.0, to.1);
    path.cubic_to(first.x, first.y, second.x, second.y, end.x, end.y);
}

#[cfg(test)]
mod tests {
    use tiny_skia::Rect;

    use super::*;

    /// The bounding box of a kind's silhouette.
    fn bounds(kind: Kind) -> Option<Rect> {
        let boxes: Option<Vec<Rect>> = parts(kind).iter().map(|part| part.path.compute_tight_bounds()).collect();
        boxes?.into_iter().reduce(|a, b| {
            Rect::from_ltrb(
                a.left().min(b.left()),
                a.top().min(b.top()),
                a.right().max(b.right()),
                a.bottom().max(b.bottom()),
            )
            .unwrap_or(a)
        })
    }

    #[test]
    fn outlines_fill_their_boxes() {
        for kind in Kind::ALL {
            let bounds = bounds(kind).expect("a kind has parts");
            let (width, height) = kind.proportions();
            let half = [width as f32 / 2000.0, height as f32 / 2000.0];
            let found = [bounds.left(), bounds.top(), bounds.right(), bounds.bottom()];
            for (found, wanted) in found.iter().zip([-half[0], -half[1], half[0], half[1]]) {
                assert!((found - wanted).abs() < 0.006, "{kind:?}: {found} is not {wanted}");
            }
        }
    }
}
