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

/// Outlines and patterns of drawings.
pub(crate) struct Memory {
    outlines: Vec<(Kind, Outline)>,
    patterns: Vec<(Kind, Size, Fill, Pattern)>,
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
            let drawing = Scene::of_one(Background::PaleYellow, object).draw(super::SIDE as u32);
            let Some(plane) = Plane::through_lens(&drawing) else {
                continue;
            };
            let (_, regions) = separate(&plane);
            for region in &regions {
                if fill == Fill::Plain {
                    memory.outlines.push((kind, outline::of(region)));
                }
                memory.patterns.extend(pattern::of(&plane, region, size).map(|pattern| (kind, size, fill, pattern)));
            }
        }
        memory
    }

    /// The kind whose outline agrees best, and how well.
    pub(crate) fn resembled(&self, outline: &Outline) -> (Option<Kind>, f32) {
        let likenesses = self.outlines.iter().map(|(kind, known)| (Some(*kind), outline.likeness(known)));
        likenesses.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((None, 0.0))
    }

    /// The fill whose pattern on this kind is most like the one seen.
    pub(crate) fn fill(&self, kind: Kind, size: Size, seen: Pattern) -> Option<Fill> {
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
