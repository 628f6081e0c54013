//! What a prompt says.

use crate::attributes::{Fill, Size};
use crate::background::Background;
use crate::kind::Kind;
use crate::palette::Colour;
use crate::relation::Relation;

/// An object as far as a prompt describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimedObject {
    /// What it is.
    pub kind: Kind,
    /// Its colour, if mentioned.
    pub colour: Option<Colour>,
    /// Its size, if mentioned.
    pub size: Option<Size>,
    /// Its fill, if mentioned.
    pub fill: Option<Fill>,
}

/// How one claimed object lies to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimedRelation {
    /// Index of the object that lies somehow.
    pub subject: usize,
    /// How it lies.
    pub relation: Relation,
    /// Index of the object that it lies so to.
    pub reference: usize,
}

/// What a prompt says, and nothing that it leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claims {
    /// Every object; "three yellow stars" are three equal ones. The prompt claims that there are no others.
    pub objects: Vec<ClaimedObject>,
    /// The relations that are mentioned.
    pub relations: Vec<ClaimedRelation>,
    /// The background, if mentioned.
    pub background: Option<Background>,
}

/// A prompt and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// At most 24 words, lower case.
    pub text: String,
    /// What the text claims.
    pub claims: Claims,
}
