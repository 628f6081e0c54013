//! The background, and what stands out from it.

use std::sync::LazyLock;

use super::plane::{Plane, SIDE};
use crate::background::Background;
use crate::lab::Lab;
use crate::scene::Scene;

/// A cell this far from the background belongs to an object. Objects are at least twice as far in their colour.
const FOREGROUND: f32 = 11.0;

/// A background that agrees with less than this part of the picture is not there.
const LEAST_AGREEMENT: f32 = 0.25;

/// The largest difference of a whole background from how it should be.
const LARGEST_CAST: f32 = 7.0;

/// Rows above and below a cell between which a painted background may be displaced or blurred, such as its horizon.
const REACHES: [usize; 3] = [0, 2, 4];

/// A background as far as the picture shows it.
pub(crate) struct Ground {
    /// Which it is.
    pub(crate) background: Option<Background>,
    /// How much everything differs from how it should be.
    pub(crate) cast: Lab,
    /// For every cell, the background's colour in this picture.
    pub(crate) colours: Vec<Lab>,
    /// For every cell, whether it belongs to an object.
    pub(crate) foreground: Vec<bool>,
}

/// Every background as it is drawn.
static DRAWN: LazyLock<Vec<(Background, Plane)>> = LazyLock::new(|| {
    Background::ALL
        .into_iter()
        .filter_map(|background| {
            let empty = Scene::of(background, Vec::new()).draw(SIDE as u32);
            Some((background, Plane::through_lens(&empty)?))
        })
        .collect()
});

/// Finds the background that agrees with most cells, and the cells that do not agree with it.
pub(crate) fn find(plane: &Plane) -> Ground {
    let found = DRAWN
        .iter()
        .map(|(background, drawn)| (background, drawn, agreement(plane, drawn)))
        .max_by(|a, b| a.2.total_cmp(&b.2));
    let Some((background, drawn, agreement)) = found else {
        return Ground {
            background: None,
            cast: Lab::default(),
            colours: plane.cells().to_vec(),
            foreground: vec![false; SIDE * SIDE],
        };
    };
    let cast = cast(plane, drawn);
    let reaches = if background.is_painted() { REACHES.as_slice() } else { &REACHES[..1] };
    let mut foreground = Vec::with_capacity(SIDE * SIDE);
    for (cell, seen) in plane.cells().iter().enumerate() {
        let corrected = seen.minus(cast);
        let (row, column) = (cell / SIDE, cell % SIDE);
        let distances = reaches.iter().map(|reach| {
            let above = drawn.cells()[row.saturating_sub(*reach) * SIDE + column];
            let below = drawn.cells()[(row + reach).min(SIDE - 1) * SIDE + column];
            corrected.distance_to_mixture(above, below)
        });
        foreground.push(distances.fold(f32::INFINITY, f32::min) > FOREGROUND);
    }
    let colours = drawn.cells().iter().map(|colour| colour.plus(cast)).collect();
    Ground { background: (agreement >= LEAST_AGREEMENT).then_some(*background), cast, colours, foreground }
}

/// How much of the picture is as the background should be, 0 to 1. Every third cell is looked at.
fn agreement(plane: &Plane, drawn: &Plane) -> f32 {
    let limit = 1.5 * FOREGROUND;
    let each = plane.cells().iter().zip(drawn.cells()).step_by(3).map(|(a, b)| 1.0 - (a.distance(*b) / limit).min(1.0));
    each.sum::<f32>() / (SIDE * SIDE).div_ceil(3) as f32
}

/// The median difference between the picture and its background, where they agree.
fn cast(plane: &Plane, drawn: &Plane) -> Lab {
    let mut channels = [const { Vec::new() }; 3];
    for (seen, drawn) in plane.cells().iter().zip(drawn.cells()).step_by(3) {
        if seen.distance(*drawn) < 1.5 * FOREGROUND {
            let difference = seen.minus(*drawn);
            channels.iter_mut().zip(difference.0).for_each(|(channel, value)| channel.push(value));
        }
    }
    Lab(channels.map(|mut values| {
        if values.is_empty() {
            return 0.0;
        }
        let middle = values.len() / 2;
        let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
        median.clamp(-LARGEST_CAST, LARGEST_CAST)
    }))
}
