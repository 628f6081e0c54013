//! Which objects a scene has, before they have places.

use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::dice::Dice;
use crate::kind::Kind;
use crate::palette::Colour;
use crate::relation::Relation;
use crate::scene::Arrangement;
use crate::split::Split;

/// An object without a place.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    pub(crate) kind: Kind,
    pub(crate) colour: Colour,
    pub(crate) size: Size,
    pub(crate) fill: Fill,
}

/// The objects of a scene, how the first of two lies to the second, and what is behind them.
pub(crate) struct Cast {
    pub(crate) members: Vec<Member>,
    pub(crate) relation: Option<Relation>,
    pub(crate) background: Background,
}

/// Draws a cast that the split admits.
pub(crate) fn draw(dice: &mut Dice, arrangement: Arrangement, split: Split) -> Cast {
    let (things, relation) = loop {
        let relation = (arrangement == Arrangement::Two).then(|| dice.pick(Relation::ALL));
        let things = things(dice, arrangement, relation);
        if split.admits(&things, relation) {
            break (things, relation);
        }
    };
    let background = loop {
        // Grey suits every colour, so that this ends.
        let background = dice.pick(Background::ALL);
        if things.iter().all(|(_, colour)| background.suits(*colour)) {
            break background;
        }
    };
    Cast { members: members(dice, arrangement, relation, &things), relation, background }
}

fn things(dice: &mut Dice, arrangement: Arrangement, relation: Option<Relation>) -> Vec<(Kind, Colour)> {
    let count = match arrangement {
        Arrangement::One => 1,
        Arrangement::Two => 2,
        Arrangement::Count => {
            let thing = (dice.pick(Kind::ALL), dice.pick(Colour::ALL));
            return vec![thing; dice.pick([2, 3, 3, 4])];
        }
        Arrangement::Several => dice.pick([3, 3, 4]),
    };
    let mut things: Vec<(Kind, Colour)> = Vec::with_capacity(count);
    while things.len() < count {
        let thing = (dice.pick(Kind::ALL), dice.pick(Colour::ALL));
        let surrounds = relation == Some(Relation::Inside) && things.len() == 1;
        if surrounds && (!thing.0.holds_others() || things[0].1 == thing.1) || things.contains(&thing) {
            continue;
        }
        things.push(thing);
    }
    things
}

fn members(
    dice: &mut Dice,
    arrangement: Arrangement,
    relation: Option<Relation>,
    things: &[(Kind, Colour)],
) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::with_capacity(things.len());
    for (index, &(kind, colour)) in things.iter().enumerate() {
        let repeated = members.first().copied().filter(|_| arrangement == Arrangement::Count);
        members.push(repeated.unwrap_or_else(|| {
            let size = match (arrangement, relation) {
                (_, Some(Relation::Inside)) => [Size::Small, Size::Large][index.min(1)],
                (Arrangement::One, _) => dice.pick([Size::Small, Size::Medium, Size::Medium, Size::Large]),
                (Arrangement::Two, _) if members.iter().all(|other| other.size != Size::Large) => {
                    dice.pick([Size::Small, Size::Medium, Size::Medium, Size::Large])
                }
                _ => dice.pick([Size::Small, Size::Medium]),
            };
            let plain = if arrangement == Arrangement::Several { 80 } else { 60 };
            let surrounds = relation == Some(Relation::Inside) && index == 1;
            let fill = if surrounds || !kind.takes_pattern() || dice.percent(plain) {
                Fill::Plain
            } else {
                dice.pick([Fill::Striped, Fill::Dotted])
            };
            Member { kind, colour, size, fill }
        }));
    }
    members
}
