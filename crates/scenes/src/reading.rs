//! What a picture shows.

use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::kind::Kind;
use crate::palette::Colour;
use crate::scene::Scene;

/// An object that is seen. Lengths are parts of the picture's sides, from the upper left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sighting {
    /// What it is; `None` if it resembles nothing that is known.
    pub kind: Option<Kind>,
    /// How well its outline agrees with that of the kind that it resembles most, 0 to 1: the area of the intersection by
    /// that of the union.
    pub likeness: f32,
    /// Its colour: the one that most of its pixels are nearest to.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Its fill, if there is enough of it to tell.
    pub fill: Option<Fill>,
    /// The middle of its bounding box, `[x, y]`.
    pub centre: [f32; 2],
    /// Its bounding box: left, top, right, bottom.
    pub bounds: [f32; 4],
}

/// What a picture shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The background that most of the picture agrees with; `None` if none does.
    pub background: Option<Background>,
    /// The objects, the largest first.
    pub objects: Vec<Sighting>,
}

impl Scene {
    /// What a perfect reader would see.
    pub fn truth(&self) -> Reading {
        let objects = self.objects().iter().map(|object| {
            let (width, height) = object.dimensions();
            let part = |length: i32| length as f32 / 1000.0;
            let (x, y) = (part(object.centre.0), part(object.centre.1));
            let (half_width, half_height) = (part(width) / 2.0, part(height) / 2.0);
            Sighting {
                kind: Some(object.kind),
                likeness: 1.0,
                colour: object.colour,
                size: object.size(),
                fill: Some(object.fill),
                centre: [x, y],
                bounds: [x - half_width, y - half_height, x + half_width, y + half_height],
            }
        });
        let mut objects: Vec<Sighting> = objects.collect();
        objects.sort_by(|a, b| area(b).total_cmp(&area(a)));
        Reading { background: Some(self.background()), objects }
    }
}

fn area(sighting: &Sighting) -> f32 {
    let [left, top, right, bottom] = sighting.bounds;
    (right - left) * (bottom - top)
}
