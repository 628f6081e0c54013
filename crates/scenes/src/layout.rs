//! Where the objects of a scene are. Lengths are thousandths of the picture's side.

use crate::attributes::Size;
use crate::cast::{Cast, Member};
use crate::dice::Dice;
use crate::relation::Relation;
use crate::scene::{Object, is_count};

/// The least distance from an object to the picture's edge.
const MARGIN: i32 = 30;

/// The least distance between two objects: more than five pixels of 128, so that a blur does not join them.
const GAP: i32 = 45;

/// Attempts to scatter objects before they are put into the quarters of the picture.
const ATTEMPTS: usize = 40;

/// Gives every member of a cast a place: inside the picture, apart from the others, and as the relation says.
pub(crate) fn place(dice: &mut Dice, cast: &Cast) -> Vec<Object> {
    let mirrored = dice.percent(50);
    let mut objects: Vec<Object> = cast.members.iter().map(|member| sized(dice, member, cast.relation)).collect();
    let counted = is_count(&objects);
    for object in &mut objects {
        object.mirrored = object.kind.has_sides() && if counted { mirrored } else { dice.percent(50) };
    }
    if counted {
        // Several of a kind are of one size.
        let extent = objects[0].extent;
        objects.iter_mut().for_each(|object| object.extent = extent);
    }

    match (objects.as_mut_slice(), cast.relation) {
        ([inner, outer], Some(Relation::Inside)) => surround(dice, inner, outer),
        ([first, second], Some(relation)) => {
            let near = relation == Relation::NextTo;
            let swapped = matches!(relation, Relation::RightOf | Relation::Below) || near && dice.percent(50);
            let (before, after) = if swapped { (second, first) } else { (first, second) };
            beside(dice, before, after, near, matches!(relation, Relation::Above | Relation::Below));
        }
        ([only], _) => only.centre = anywhere(dice, only),
        (several, _) => scatter(dice, several),
    }
    objects
}

fn sized(dice: &mut Dice, member: &Member, relation: Option<Relation>) -> Object {
    let (first, last) = match (relation, member.size) {
        // What surrounds is larger than large things are elsewhere, and what is in it rather small.
        (Some(Relation::Inside), Size::Large) => (580, 640),
        (Some(Relation::Inside), _) => (205, 225),
        // Two of these fit beside each other with their gap.
        (Some(_), Size::Large) => (460, 500),
        (_, size) => size.extents(),
    };
    let Member { kind, colour, fill, .. } = *member;
    Object { kind, colour, fill, extent: dice.between(first, last), centre: (500, 500), mirrored: false }
}

fn surround(dice: &mut Dice, inner: &mut Object, outer: &mut Object) {
    outer.centre = anywhere(dice, outer);
    inner.centre = (outer.centre.0 + dice.between(-12, 12), outer.centre.1 + dice.between(-12, 12));
}

/// Puts one object to the left of another, or above it.
fn beside(dice: &mut Dice, before: &mut Object, after: &mut Object, near: bool, vertically: bool) {
    // Along the line on which they lie, and across it.
    let lengths = |object: &Object| {
        let (width, height) = object.dimensions();
        if vertically { (height, width) } else { (width, height) }
    };
    let (a, b) = (lengths(before), lengths(after));
    let slack = 1000 - 2 * MARGIN - GAP - a.0 - b.0;
    let extra = dice.between(0, slack.min(if near { 35 } else { 250 }));
    let start = MARGIN + dice.between(0, slack - extra);
    let along = (start + a.0 / 2, start + a.0 + GAP + extra + b.0 / 2);

    // The broader one first: whatever place it takes, the other finds one close to it.
    let limit = (along.1 - along.0) * if near { 15 } else { 35 } / 100;
    let range = |length: i32| (MARGIN + (length + 1) / 2, 1000 - MARGIN - (length + 1) / 2);
    let (broad, narrow) = if a.1 >= b.1 { (range(a.1), range(b.1)) } else { (range(b.1), range(a.1)) };
    let of_broad = dice.between(broad.0, broad.1);
    let of_narrow = dice.between(narrow.0.max(of_broad - limit), narrow.1.min(of_broad + limit));
    let across = if a.1 >= b.1 { (of_broad, of_narrow) } else { (of_narrow, of_broad) };

    let point = |along, across| if vertically { (across, along) } else { (along, across) };
    before.centre = point(along.0, across.0);
    after.centre = point(along.1, across.1);
}

fn anywhere(dice: &mut Dice, object: &Object) -> (i32, i32) {
    within(dice, object, (MARGIN, MARGIN), (1000 - MARGIN, 1000 - MARGIN))
}

/// A place for an object in a box given by two corners.
fn within(dice: &mut Dice, object: &Object, first: (i32, i32), last: (i32, i32)) -> (i32, i32) {
    let (width, height) = object.dimensions();
    let (half_width, half_height) = ((width + 1) / 2, (height + 1) / 2);
    let x = dice.between(first.0 + half_width, last.0 - half_width);
    let y = dice.between(first.1 + half_height, last.1 - half_height);
    (x, y)
}

fn scatter(dice: &mut Dice, objects: &mut [Object]) {
    for _ in 0..ATTEMPTS {
        for object in objects.iter_mut() {
            object.centre = anywhere(dice, object);
        }
        let mut pairs = objects.iter().enumerate().flat_map(|(index, a)| objects[..index].iter().map(move |b| (a, b)));
        if pairs.all(|(a, b)| apart(a, b)) {
            return;
        }
    }
    let near = (MARGIN, 500 - GAP / 2 - 1);
    let far = (500 + GAP / 2 + 1, 1000 - MARGIN);
    let mut quarters = [(near, near), (near, far), (far, near), (far, far)];
    dice.shuffle(&mut quarters);
    for (object, (x, y)) in objects.iter_mut().zip(quarters) {
        object.centre = within(dice, object, (x.0, y.0), (x.1, y.1));
    }
}

fn apart(a: &Object, b: &Object) -> bool {
    let (a_size, b_size) = (a.dimensions(), b.dimensions());
    let gap = |a: i32, b: i32, a_length: i32, b_length: i32| (a - b).abs() - (a_length + b_length + 1) / 2;
    let across = gap(a.centre.0, b.centre.0, a_size.0, b_size.0);
    let down = gap(a.centre.1, b.centre.1, a_size.1, b_size.1);
    across.max(down) >= GAP
}
