//! What every kind looks like, learnt by looking at drawings of it.

use std::sync::LazyLock;

use super::outline::{self, Outline};
use super::pattern::{self, Pattern};
use super::plane::Plane;
use super::separate;
use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::kind::Kind;
use crate::palette::Colour;
use crate::scene::{Object, Scene};

/// Pixels of the drawings' sides: smaller ones are blurred by the lens.
const SIDES: [u32; 3] = [128, 64, 40];

/// Outlines and patterns of drawings.
pub(crate) struct Memory {
    /// With the extent that was drawn, as a part of the picture's side.
    outlines: Vec<(Kind, Outline, f32)>,
    patterns: Vec<(Kind, Size, Fill, Pattern)>,
}

/// What an outline is like.
pub(crate) struct Resemblance {
    pub(crate) kind: Kind,
    /// How well it agrees, 0 to 1.
    pub(crate) likeness: f32,
    /// The longer side of such an object, if the whole of it is as large as what is seen, as a part of the picture's
    /// side. Thin ends that are lost change it less than they change the bounding box.
    pub(crate) extent: f32,
}

static MEMORY: LazyLock<Memory> = LazyLock::new(Memory::learn);

impl Memory {
    /// The memory, which is made on the first call.
    pub(crate) fn get() -> &'static Self {
        &MEMORY
    }

    /// Draws every kind in every size and fill, in one colour alone, and keeps what it looks like through the lens.
    fn learn() -> Self {
        let mut memory = Self { outlines: Vec::new(), patterns: Vec::new() };
        for (kind, size, fill, mirrored) in drawings() {
            let (first, last) = size.extents();
            let extent = (first + last) / 2;
            let object = Object { kind, colour: Colour::Blue, fill, extent, centre: (500, 500), mirrored };
            let scene = Scene::of(Background::PaleYellow, vec![object]);
            for plane in SIDES.into_iter().filter_map(|side| Plane::through_lens(&scene.draw(side))) {
                let (ground, regions) = separate(&plane);
                for region in &regions {
                    if fill == Fill::Plain {
                        memory.outlines.push((kind, outline::of(region), extent as f32 / 1000.0));
                    }
                    let pattern = pattern::of(&plane, ground.cast, region, size);
                    memory.patterns.extend(pattern.map(|pattern| (kind, size, fill, pattern)));
                }
            }
        }
        memory
    }

    /// What the outline agrees with best.
    pub(crate) fn resembled(&self, outline: &Outline) -> Option<Resemblance> {
        let resemblances = self.outlines.iter().map(|(kind, known, extent)| Resemblance {
            kind: *kind,
            likeness: outline.likeness(known),
            extent: extent * outline.reach() / known.reach(),
        });
        resemblances.max_by(|a, b| a.likeness.total_cmp(&b.likeness))
    }

    /// The fill whose pattern on this kind is most like the one seen; plain on kinds that take no other.
    pub(crate) fn fill(&self, kind: Kind, size: Size, seen: Option<Pattern>) -> Option<Fill> {
        if !kind.takes_pattern() {
            return Some(Fill::Plain);
        }
        let seen = seen?;
        let same = self.patterns.iter().filter(|known| (known.0, known.1) == (kind, size));
        same.min_by(|a, b| seen.distance(a.3).total_cmp(&seen.distance(b.3))).map(|known| known.2)
    }
}

/// Every drawing to look at: kind, size, fill, whether it is mirrored.
fn drawings() -> impl Iterator<Item = (Kind, Size, Fill, bool)> {
    let kinds = Kind::ALL.into_iter().flat_map(|kind| {
        let fills = Fill::ALL.into_iter().filter(move |fill| *fill == Fill::Plain || kind.takes_pattern());
        fills.map(move |fill| (kind, fill))
    });
    kinds.flat_map(|(kind, fill)| {
        let sides = [false, true].into_iter().filter(move |mirrored| !mirrored || kind.has_sides());
        sides.flat_map(move |mirrored| Size::ALL.map(|size| (kind, size, fill, mirrored)))
    })
}
