//! What is in a picture.

use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::dice::{Dice, Purpose};
use crate::kind::Kind;
use crate::palette::Colour;
use crate::relation::Relation;
use crate::split::Split;
use crate::{cast, layout};

/// An object and its place. Lengths are thousandths of the picture's side, from the upper left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its colour.
    pub colour: Colour,
    /// What its body is filled with.
    pub fill: Fill,
    /// The longer side of its bounding box.
    pub extent: i32,
    /// The middle of its bounding box.
    pub centre: (i32, i32),
    /// Whether it faces right, if [`Kind::has_sides`].
    pub mirrored: bool,
}

impl Object {
    /// Its size.
    pub fn size(&self) -> Size {
        Size::of_extent(self.extent)
    }

    /// The width and height of its bounding box.
    pub fn dimensions(&self) -> (i32, i32) {
        let (width, height) = self.kind.proportions();
        (self.extent * width / 1000, self.extent * height / 1000)
    }
}

/// A background and one to four objects on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    background: Background,
    objects: Vec<Object>,
    relation: Option<Relation>,
}

/// Whether objects are several of one sort, which can be counted in one word.
pub(crate) fn is_count(objects: &[Object]) -> bool {
    let sort = |object: &Object| (object.kind, object.colour, object.fill);
    objects.len() > 1 && objects.iter().all(|object| sort(object) == sort(&objects[0]))
}

/// How many objects a scene has, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// One object.
    One,
    /// Two with a relation.
    Two,
    /// Two to four of one kind and colour.
    Count,
    /// Three or four, each different.
    Several,
}

impl Arrangement {
    /// One object in 27 of a hundred scenes, two in 47, counts and several in 13 each: what is easy to learn needs fewer.
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(100) {
            ..27 => Self::One,
            27..74 => Self::Two,
            74..87 => Self::Count,
            _ => Self::Several,
        }
    }
}

impl Scene {
    /// A scene of its own for every seed, the same on every platform: 27 % with one object, 47 % with two that have a
    /// relation, 13 % with two to four of the same kind and colour, 13 % with three or four different ones.
    pub fn random(seed: u64, split: Split) -> Self {
        let mut dice = Dice::new(seed, Purpose::Scene);
        let arrangement = Arrangement::draw(&mut dice);
        Self::arranged(&mut dice, arrangement, split)
    }

    pub(crate) fn arranged(dice: &mut Dice, arrangement: Arrangement, split: Split) -> Self {
        let cast = cast::draw(dice, arrangement, split);
        let objects = layout::place(dice, &cast);
        Self { background: cast.background, objects, relation: cast.relation }
    }

    /// A scene of one's own, for the reader to learn from.
    pub(crate) fn of(background: Background, objects: Vec<Object>) -> Self {
        Self { background, objects, relation: None }
    }

    /// What is behind the objects.
    pub fn background(&self) -> Background {
        self.background
    }

    /// The objects. Of two with a relation the first is its subject: what surrounds another comes second.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// How the first object lies to the second, if they are two different ones.
    pub fn relation(&self) -> Option<Relation> {
        self.relation
    }
}
