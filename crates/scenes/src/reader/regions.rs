//! Where objects are: the foreground, cut into connected regions of one colour each.

use std::collections::VecDeque;
use std::sync::LazyLock;

use super::ground::Ground;
use super::plane::{Plane, SIDE};
use crate::lab::Lab;
use crate::palette::Colour;

/// Regions of fewer cells are no objects; the smallest that is drawn has three times as many.
const LEAST_AREA: usize = 60;

/// Fewer cells, not counting those at the border, are a line or a blemish and no object.
const LEAST_CORE: usize = 36;

/// What an object covers.
pub(crate) struct Region {
    /// The colour that most of its cells are nearest to.
    pub(crate) colour: Colour,
    /// For every cell of the grid, whether it belongs to the object; what is painted on it counts.
    pub(crate) mask: Vec<bool>,
}

impl Region {
    /// How many cells it has.
    pub(crate) fn area(&self) -> usize {
        self.mask.iter().filter(|inside| **inside).count()
    }

    /// The cells that belong to it, as x and y.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (usize, usize)> {
        self.mask.iter().enumerate().filter(|(_, inside)| **inside).map(|(cell, _)| (cell % SIDE, cell / SIDE))
    }

    /// Left, top, right and bottom of its bounding box in cells; right and bottom are behind its last cell.
    pub(crate) fn bounds(&self) -> [usize; 4] {
        self.cells().fold([SIDE, SIDE, 0, 0], |[left, top, right, bottom], (x, y)| {
            [left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)]
        })
    }
}

/// Cuts the foreground into objects.
pub(crate) fn find(plane: &Plane, ground: &Ground) -> Vec<Region> {
    let nearest: Vec<Option<Colour>> = plane
        .cells()
        .iter()
        .zip(&ground.foreground)
        .map(|(cell, foreground)| foreground.then(|| nearest_colour(*cell)))
        .collect();
    // A gap of two cells does not divide an object.
    let closed = grown(&ground.foreground);
    let mut regions = Vec::new();
    for blob in components(&closed) {
        let blob: Vec<usize> = blob.into_iter().filter(|cell| ground.foreground[*cell]).collect();
        if blob.len() >= LEAST_AREA {
            regions.extend(divide(&blob, &nearest));
        }
    }
    let holes: Vec<Vec<usize>> = regions.iter().map(|region| covered_holes(region, &regions)).collect();
    for (region, holes) in regions.iter_mut().zip(holes) {
        holes.into_iter().for_each(|cell| region.mask[cell] = true);
        trim(region, plane, ground);
    }
    regions.retain(|region| {
        region.area() >= LEAST_AREA && shrunk(&region.mask).iter().filter(|inside| **inside).count() >= LEAST_CORE
    });
    regions
}

/// The colour of the palette that a cell is nearest to, in either of its shades.
fn nearest_colour(cell: Lab) -> Colour {
    let distance = |colour: &Colour| distance(cell, *colour);
    Colour::ALL.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(Colour::Black)
}

/// The distance from a cell to the nearer of a colour's shades.
fn distance(cell: Lab, colour: Colour) -> f32 {
    let [plain, shade] = SHADES[colour as usize];
    cell.distance(plain).min(cell.distance(shade))
}

/// Both shades of every colour.
static SHADES: LazyLock<[[Lab; 2]; Colour::ALL.len()]> =
    LazyLock::new(|| Colour::ALL.map(|colour| [Lab::of(colour.rgb()), Lab::of(colour.shade())]));

/// One region for the colour that most of a blob has, and one for every other colour that covers a part which is more
/// than a border between two.
fn divide(blob: &[usize], nearest: &[Option<Colour>]) -> Vec<Region> {
    let mut mask = vec![false; SIDE * SIDE];
    blob.iter().for_each(|cell| mask[*cell] = true);
    // Cells at the border are mixed with what is beyond it.
    let core = shrunk(&mask);
    let mut votes = [0_usize; Colour::ALL.len()];
    for colour in blob.iter().filter(|cell| core[**cell]).filter_map(|cell| nearest[*cell]) {
        votes[colour as usize] += 1;
    }
    let Some(main) = Colour::ALL.into_iter().max_by_key(|colour| votes[*colour as usize]) else {
        return Vec::new();
    };

    // Seeds of the regions: all cells of the main colour; of the others, cores.
    let mut owners = vec![None; SIDE * SIDE];
    let mut colours = vec![main];
    for &cell in blob.iter().filter(|cell| nearest[**cell] == Some(main)) {
        owners[cell] = Some(0);
    }
    let others = Colour::ALL.into_iter().filter(|colour| *colour != main && votes[*colour as usize] >= LEAST_CORE);
    for colour in others {
        let mut mask = vec![false; SIDE * SIDE];
        blob.iter().for_each(|cell| mask[*cell] = nearest[*cell] == Some(colour));
        let core = shrunk(&mask);
        for mut part in components(&mask) {
            part.retain(|cell| core[*cell]);
            if part.len() >= LEAST_CORE {
                part.iter().for_each(|cell| owners[*cell] = Some(colours.len()));
                colours.push(colour);
            }
        }
    }

    // Every other cell joins the region that reaches it first.
    let mut waiting: VecDeque<usize> = blob.iter().copied().filter(|cell| owners[*cell].is_some()).collect();
    let mut free = vec![false; SIDE * SIDE];
    blob.iter().for_each(|cell| free[*cell] = owners[*cell].is_none());
    while let Some(cell) = waiting.pop_front() {
        for neighbour in neighbours(cell) {
            if std::mem::take(&mut free[neighbour]) {
                owners[neighbour] = owners[cell];
                waiting.push_back(neighbour);
            }
        }
    }
    colours
        .into_iter()
        .enumerate()
        .map(|(index, colour)| Region { colour, mask: owners.iter().map(|owner| *owner == Some(index)).collect() })
        .collect()
}

/// The cells of holes in which other objects are: nearly all of these lie in the hole. Holes through which the background
/// is seen, or something that is larger than the region, are left out.
fn covered_holes(region: &Region, all: &[Region]) -> Vec<usize> {
    let outside: Vec<bool> = region.mask.iter().map(|inside| !inside).collect();
    let mut found = Vec::new();
    for hole in components(&outside) {
        let at_edge = hole.iter().any(|cell| {
            let (x, y) = (cell % SIDE, cell / SIDE);
            x == 0 || y == 0 || x == SIDE - 1 || y == SIDE - 1
        });
        let covers = |other: &&Region| {
            let covered = hole.iter().filter(|cell| other.mask[**cell]).count();
            2 * covered > hole.len() && 10 * covered > 9 * other.area()
        };
        if !at_edge && all.iter().any(|other| covers(&other)) {
            found.extend(hole);
        }
    }
    found
}

/// Takes away cells of the border that are more like the background than like the object.
fn trim(region: &mut Region, plane: &Plane, ground: &Ground) {
    let inner = shrunk(&shrunk(&region.mask));
    for (cell, inside) in region.mask.iter_mut().enumerate().filter(|(cell, inside)| **inside && !inner[*cell]) {
        let seen = plane.cells()[cell];
        *inside = distance(seen, region.colour) < seen.distance(ground.colours[cell]);
    }
}

/// The four cells beside one, as far as there are.
fn neighbours(cell: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (cell % SIDE, cell / SIDE);
    let left = (x > 0).then(|| cell - 1);
    let right = (x + 1 < SIDE).then(|| cell + 1);
    let above = (y > 0).then(|| cell - SIDE);
    let below = (y + 1 < SIDE).then(|| cell + SIDE);
    [left, right, above, below].into_iter().flatten()
}

/// The connected parts of a mask, each as its cells.
fn components(mask: &[bool]) -> Vec<Vec<usize>> {
    let mut left = mask.to_vec();
    let mut reached: Vec<usize> = Vec::with_capacity(mask.len());
    let mut found = Vec::new();
    for start in 0..left.len() {
        if !std::mem::take(&mut left[start]) {
            continue;
        }
        let first = reached.len();
        reached.push(start);
        let mut next = first;
        while let Some(&cell) = reached.get(next) {
            next += 1;
            for neighbour in neighbours(cell) {
                if std::mem::take(&mut left[neighbour]) {
                    reached.push(neighbour);
                }
            }
        }
        found.push(reached[first..].to_vec());
    }
    found
}

/// A mask with all cells that touch it, corners included.
fn grown(mask: &[bool]) -> Vec<bool> {
    around(mask, |a, b, c| a | b | c, false)
}

/// A mask without the cells that touch what is outside, corners included.
pub(crate) fn shrunk(mask: &[bool]) -> Vec<bool> {
    around(mask, |a, b, c| a & b & c, true)
}

/// Every cell combined with those before and after it, in rows and then in columns; `beyond` is behind the edge.
fn around(mask: &[bool], combine: impl Fn(bool, bool, bool) -> bool, beyond: bool) -> Vec<bool> {
    let mut across = Vec::with_capacity(mask.len());
    for row in mask.chunks_exact(SIDE) {
        let mut padded = [beyond; SIDE + 2];
        padded[1..=SIDE].copy_from_slice(row);
        across.extend(padded.windows(3).map(|three| combine(three[0], three[1], three[2])));
    }
    let mut padded = vec![beyond; SIDE];
    padded.append(&mut across);
    padded.resize(padded.len() + SIDE, beyond);
    let rows = padded.iter().zip(&padded[SIDE..]).zip(&padded[2 * SIDE..]);
    rows.map(|((above, here), below)| combine(*above, *here, *below)).collect()
}
