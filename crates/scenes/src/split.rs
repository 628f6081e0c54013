//! Which combinations are kept out of training.

use crate::kind::Kind;
use crate::palette::Colour;
use crate::relation::Relation;

/// What a scene is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// No held-out combination occurs.
    Train,
    /// At least one held-out combination occurs.
    Test,
}

impl Split {
    /// Whether a scene of these things, the first two in a relation, belongs to the split.
    pub(crate) fn admits(self, things: &[(Kind, Colour)], relation: Option<Relation>) -> bool {
        let held_out = things.iter().any(|&(kind, colour)| is_held_out(kind, colour))
            || matches!((things, relation), (&[first, second], Some(relation)) if is_pair_held_out(first, relation, second));
        held_out == (self == Self::Test)
    }
}

/// Whether no object of this kind and colour occurs in training, alone or with others. It holds for about a tenth of the
/// combinations; every kind and every colour has others.
pub fn is_held_out(kind: Kind, colour: Colour) -> bool {
    mix(&[1, code((kind, colour))]).is_multiple_of(10)
}

/// Whether these two objects do not occur in this relation in training. It holds for about a tenth of the combinations.
/// Turning a pair round changes nothing: what is left of another has it on its right.
pub fn is_pair_held_out(first: (Kind, Colour), relation: Relation, second: (Kind, Colour)) -> bool {
    let (first, second) = (code(first), code(second));
    let (relation, first, second) = match relation {
        Relation::LeftOf => (1, first, second),
        Relation::RightOf => (1, second, first),
        Relation::Above => (2, first, second),
        Relation::Below => (2, second, first),
        Relation::Inside => (3, first, second),
        Relation::NextTo => (4, first.min(second), first.max(second)),
    };
    mix(&[2, first, relation, second]).is_multiple_of(10)
}

/// Numbers of their own for kinds and colours, apart from the order in which the lists name them.
fn code((kind, colour): (Kind, Colour)) -> u64 {
    let word = |text: &str| text.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(byte)));
    word(kind.noun()).wrapping_mul(1_000_003).wrapping_add(word(colour.name()))
}

/// A hash: the finalizer of splitmix64, word after word.
fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |state, word| {
        let mut state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    })
}
