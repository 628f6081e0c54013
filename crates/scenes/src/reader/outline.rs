//! Outlines, freed of place and size.

use super::plane::SIDE;
use super::regions::Region;

/// Cells of an outline on each side.
const CELLS: usize = 32;

/// How far an outline reaches from its middle, in root mean square distances from it. Half the length of a car is two.
const REACH: f32 = 2.25;

/// Samples in each cell, on each side.
const SAMPLES: usize = 2;

/// How much of each cell of a grid belongs to an object. The grid lies around the object's centroid, and is as large as
/// the object's mean distance from it asks: unlike a bounding box, both hardly change with a few pixels more or less.
pub(crate) struct Outline {
    cells: [f32; CELLS * CELLS],
    reach: f32,
}

pub(crate) fn of(region: &Region) -> Outline {
    let count = region.area().max(1) as f32;
    let sum = region.cells().fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x as f32, sum.1 + y as f32));
    let (x, y) = (sum.0 / count, sum.1 / count);
    let spread: f32 = region.cells().map(|cell| (cell.0 as f32 - x).powi(2) + (cell.1 as f32 - y).powi(2)).sum();
    let reach = REACH * (spread / count).sqrt().max(1.0);

    let step = 2.0 * reach / (CELLS * SAMPLES) as f32;
    let mut cells = [0.0; CELLS * CELLS];
    for row in 0..CELLS * SAMPLES {
        for column in 0..CELLS * SAMPLES {
            let at = [x - reach + (column as f32 + 0.5) * step, y - reach + (row as f32 + 0.5) * step];
            cells[row / SAMPLES * CELLS + column / SAMPLES] += sample(&region.mask, at) / (SAMPLES * SAMPLES) as f32;
        }
    }
    Outline { cells, reach }
}

/// The mask between its cells, bilinear; nothing is beyond its edges.
fn sample(mask: &[bool], [x, y]: [f32; 2]) -> f32 {
    let (left, top) = (x.floor(), y.floor());
    let value = |x: f32, y: f32| {
        let on_grid = x >= 0.0 && y >= 0.0 && x < SIDE as f32 && y < SIDE as f32;
        if on_grid && mask[y as usize * SIDE + x as usize] { 1.0 } else { 0.0 }
    };
    let (right_part, lower_part) = (x - left, y - top);
    let upper = value(left, top) * (1.0 - right_part) + value(left + 1.0, top) * right_part;
    let lower = value(left, top + 1.0) * (1.0 - right_part) + value(left + 1.0, top + 1.0) * right_part;
    upper * (1.0 - lower_part) + lower * lower_part
}

impl Outline {
    /// Half the side of the grid that it is sampled on, in cells of the lens.
    pub(crate) fn reach(&self) -> f32 {
        self.reach
    }

    /// How well two outlines agree, 0 to 1: the intersection by the union.
    pub(crate) fn likeness(&self, other: &Self) -> f32 {
        let (mut both, mut either) = (0.0, 0.0);
        for (a, b) in self.cells.iter().zip(&other.cells) {
            both += a.min(*b);
            either += a.max(*b);
        }
        if either > 0.0 { both / either } else { 0.0 }
    }
}
