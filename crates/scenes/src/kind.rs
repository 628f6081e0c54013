//! The kinds of objects.

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each says what it is")]
pub enum Kind {
    Circle,
    Square,
    Triangle,
    Star,
    Heart,
    Crescent,
    Ring,
    Cross,
    Diamond,
    Tree,
    House,
    Sun,
    Cloud,
    Fish,
    Flower,
    Car,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Star,
        Self::Heart,
        Self::Crescent,
        Self::Ring,
        Self::Cross,
        Self::Diamond,
        Self::Tree,
        Self::House,
        Self::Sun,
        Self::Cloud,
        Self::Fish,
        Self::Flower,
        Self::Car,
    ];

    /// The noun for one: `"crescent"`, `"fish"`.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Heart => "heart",
            Self::Crescent => "crescent",
            Self::Ring => "ring",
            Self::Cross => "cross",
            Self::Diamond => "diamond",
            Self::Tree => "tree",
            Self::House => "house",
            Self::Sun => "sun",
            Self::Cloud => "cloud",
            Self::Fish => "fish",
            Self::Flower => "flower",
            Self::Car => "car",
        }
    }

    /// The noun for several: `"crescents"`, `"fish"`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Circle => "circles",
            Self::Square => "squares",
            Self::Triangle => "triangles",
            Self::Star => "stars",
            Self::Heart => "hearts",
            Self::Crescent => "crescents",
            Self::Ring => "rings",
            Self::Cross => "crosses",
            Self::Diamond => "diamonds",
            Self::Tree => "trees",
            Self::House => "houses",
            Self::Sun => "suns",
            Self::Cloud => "clouds",
            Self::Fish => "fish",
            Self::Flower => "flowers",
            Self::Car => "cars",
        }
    }

    /// Width and height in thousandths of the longer of the two, which is 1000.
    pub fn proportions(self) -> (i32, i32) {
        match self {
            Self::Circle | Self::Square | Self::Ring | Self::Cross | Self::House | Self::Sun => (1000, 1000),
            Self::Triangle => (1000, 870),
            Self::Star => (1000, 951),
            Self::Heart => (1000, 900),
            Self::Crescent => (805, 1000),
            Self::Diamond => (720, 1000),
            Self::Tree => (760, 1000),
            Self::Cloud => (1000, 600),
            Self::Fish => (1000, 540),
            Self::Flower => (1000, 970),
            Self::Car => (1000, 500),
        }
    }

    /// Whether stripes and dots have room on it: a ring and a crescent are too thin.
    pub fn takes_pattern(self) -> bool {
        !matches!(self, Self::Ring | Self::Crescent)
    }

    /// Whether it is drawn facing left or right.
    pub fn has_sides(self) -> bool {
        matches!(self, Self::Crescent | Self::Fish | Self::Car)
    }

    /// Whether another object may be drawn inside it.
    pub fn holds_others(self) -> bool {
        matches!(self, Self::Circle | Self::Square | Self::Ring)
    }
}
