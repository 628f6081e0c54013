//! How two objects lie to each other.

/// How a first object lies to a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// The first is further left, and not much higher or lower.
    LeftOf,
    /// The first is further right, and not much higher or lower.
    RightOf,
    /// The first is higher, and not much further left or right.
    Above,
    /// The first is lower, and not much further left or right.
    Below,
    /// The first is surrounded by the second.
    Inside,
    /// Side by side with a small gap, in either order.
    NextTo,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 6] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below, Self::Inside, Self::NextTo];
}
