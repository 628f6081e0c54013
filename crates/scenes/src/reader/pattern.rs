//! Stripes and dots, as numbers.

use super::plane::{Plane, SIDE};
use super::regions::{Region, shrunk};
use crate::attributes::{Fill, Size};
use crate::lab::Lab;

/// Fewer pairs of cells tell nothing about a fill.
const LEAST_PAIRS: usize = 12;

/// How an object changes between its two shades. Each is from 0 to 1.
#[derive(Clone, Copy)]
pub(crate) struct Pattern {
    /// The part of it that has the second shade.
    shade: f32,
    /// The mean change over half a period along the stripes, downwards to the right.
    along: f32,
    /// The same across the stripes.
    across: f32,
}

impl Pattern {
    pub(crate) fn distance(self, other: Self) -> f32 {
        let differences = [self.shade - other.shade, self.along - other.along, self.across - other.across];
        differences.iter().map(|difference| difference * difference).sum::<f32>().sqrt()
    }
}

/// The pattern of an object in a picture with a colour cast; `None` if too little of it is seen.
pub(crate) fn of(plane: &Plane, cast: Lab, region: &Region, size: Size) -> Option<Pattern> {
    let (plain, shaded) = (Lab::of(region.colour.rgb()), Lab::of(region.colour.shade()));
    let inner = shrunk(&shrunk(&region.mask));
    let shade = |x: usize, y: usize| {
        let cell = plane.cells()[y * SIDE + x].minus(cast);
        let (from_plain, from_shade) = (cell.distance(plain), cell.distance(shaded));
        from_plain / (from_plain + from_shade).max(f32::EPSILON)
    };

    // Half a period across stripes at 45°.
    let period = Fill::period(size.extents().0) as f32 / 1000.0 * SIDE as f32;
    let step = (period / 2.0 * std::f32::consts::FRAC_1_SQRT_2).round() as usize;
    let (mut shades, mut along, mut across) = (Mean::default(), Mean::default(), Mean::default());
    for (x, y) in region.cells().filter(|(x, y)| inner[y * SIDE + x]) {
        let here = shade(x, y);
        shades.add(here);
        if y + step >= SIDE {
            continue;
        }
        if x + step < SIDE && inner[(y + step) * SIDE + x + step] {
            along.add((here - shade(x + step, y + step)).abs());
        }
        if x >= step && inner[(y + step) * SIDE + x - step] {
            across.add((here - shade(x - step, y + step)).abs());
        }
    }
    (along.count.min(across.count) >= LEAST_PAIRS).then(|| Pattern {
        shade: shades.value(),
        along: along.value(),
        across: across.value(),
    })
}

#[derive(Default)]
struct Mean {
    sum: f32,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f32) {
        self.sum += value;
        self.count += 1;
    }

    fn value(&self) -> f32 {
        self.sum / self.count.max(1) as f32
    }
}
