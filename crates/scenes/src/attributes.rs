//! Sizes and fills.

/// How large an object is: the longer side of its bounding box as a part of the picture's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Size {
    /// About a quarter.
    Small,
    /// About a third.
    Medium,
    /// Half and more.
    Large,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The size of an object whose longer side is `extent` thousandths of the picture's side. The limits lie midway
    /// between the sizes that are drawn.
    pub fn of_extent(extent: i32) -> Self {
        match extent {
            ..285 => Self::Small,
            285..418 => Self::Medium,
            _ => Self::Large,
        }
    }

    /// The first and last extent that is drawn, in thousandths of the picture's side.
    pub(crate) fn extents(self) -> (i32, i32) {
        match self {
            Self::Small => (215, 250),
            Self::Medium => (320, 375),
            Self::Large => (460, 560),
        }
    }
}

/// What an object's body is filled with; stripes and dots are in another shade of its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each says what it is")]
pub enum Fill {
    Plain,
    Striped,
    Dotted,
}

impl Fill {
    /// Every fill.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Striped, Self::Dotted];

    /// The distance from stripe to stripe and from dot to dot on an object of some extent, both in thousandths of the
    /// picture's side. Small objects have a finer pattern, to show more than one stripe.
    pub(crate) fn period(extent: i32) -> i32 {
        match Size::of_extent(extent) {
            Size::Small => 60,
            Size::Medium | Size::Large => 84,
        }
    }
}
