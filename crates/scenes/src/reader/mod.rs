//! From pictures to what they show, by their pixels alone.
//!
//! A picture is looked at through a lens of fixed size ([`plane`]); the background is the one of those known that most of
//! it agrees with ([`ground`]); what does not agree is cut into objects by its colours ([`regions`]), and their outlines
//! and fills are compared with drawings of every kind ([`memory`]).

mod ground;
mod memory;
mod outline;
mod pattern;
mod plane;
mod regions;

use std::cmp::Reverse;

use crate::attributes::Size;
use crate::picture::Picture;
use crate::reading::{Reading, Sighting};

use ground::Ground;
use memory::Memory;
use plane::{Plane, SIDE};
use regions::Region;

/// Outlines that agree less with every kind are none.
const LEAST_LIKENESS: f32 = 0.55;

/// Reads a picture: its background and its objects. It knows the palette, the backgrounds and the kinds, and nothing else
/// of how the picture was made. Meant for square pictures of 64 pixels a side and more, which may be blurred and noisy;
/// nothing is found in an empty picture.
pub fn read(picture: &Picture) -> Reading {
    let Some(plane) = Plane::through_lens(picture) else {
        return Reading::default();
    };
    let (ground, regions) = separate(&plane);
    let memory = Memory::get();
    let mut objects: Vec<(usize, Sighting)> =
        regions.iter().map(|region| (region.area(), sight(&plane, &ground, region, memory))).collect();
    objects.sort_by_key(|(area, _)| Reverse(*area));
    Reading { background: ground.background, objects: objects.into_iter().map(|(_, sighting)| sighting).collect() }
}

/// The background and what is before it.
fn separate(plane: &Plane) -> (Ground, Vec<Region>) {
    let ground = ground::find(plane);
    let regions = regions::find(plane, &ground);
    (ground, regions)
}

fn sight(plane: &Plane, ground: &Ground, region: &Region, memory: &Memory) -> Sighting {
    let [left, top, right, bottom] = region.bounds().map(|edge| edge as f32 / SIDE as f32);
    let resemblance = memory.resembled(&outline::of(region));
    let likeness = resemblance.as_ref().map_or(0.0, |resemblance| resemblance.likeness);
    let known = resemblance.filter(|resemblance| resemblance.likeness >= LEAST_LIKENESS);
    let extent = known.as_ref().map_or((right - left).max(bottom - top), |known| known.extent);
    let size = Size::of_extent((extent * 1000.0) as i32);
    let kind = known.map(|known| known.kind);
    let fill = kind.and_then(|kind| memory.fill(kind, size, pattern::of(plane, ground.cast, region, size)));
    Sighting {
        kind,
        likeness,
        colour: region.colour,
        size,
        fill,
        centre: [(left + right) / 2.0, (top + bottom) / 2.0],
        bounds: [left, top, right, bottom],
    }
}
