//! What is behind the objects.

use crate::palette::{Colour, Rgb};

/// The background of a scene: five plain colours and four painted ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Background {
    /// A middle grey.
    Grey,
    /// Plain pale blue.
    PaleBlue,
    /// Plain pale green.
    PaleGreen,
    /// Plain pale yellow.
    PaleYellow,
    /// Plain pale pink.
    PalePink,
    /// A blue sky with a few veils of cloud.
    Sky,
    /// A dark sky with stars that are much smaller than any object.
    Night,
    /// Green hills below a pale sky.
    Meadow,
    /// Water below an evening sky.
    Sea,
}

impl Background {
    /// Every background.
    pub const ALL: [Self; 9] = [
        Self::Grey,
        Self::PaleBlue,
        Self::PaleGreen,
        Self::PaleYellow,
        Self::PalePink,
        Self::Sky,
        Self::Night,
        Self::Meadow,
        Self::Sea,
    ];

    /// Its name in captions: the colour of a plain background, the noun of a painted one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Grey => "grey",
            Self::PaleBlue => "pale blue",
            Self::PaleGreen => "pale green",
            Self::PaleYellow => "pale yellow",
            Self::PalePink => "pale pink",
            Self::Sky => "sky",
            Self::Night => "night",
            Self::Meadow => "meadow",
            Self::Sea => "sea",
        }
    }

    /// Whether it is one of the four that are painted.
    pub fn is_painted(self) -> bool {
        matches!(self, Self::Sky | Self::Night | Self::Meadow | Self::Sea)
    }

    /// Whether objects of a colour stand out from it, in both shades. A table rather than a computation, so that no
    /// rounding decides what a scene looks like; a test holds it to perceptual distances.
    pub fn suits(self, colour: Colour) -> bool {
        match self {
            Self::Grey | Self::Sky => true,
            Self::PaleBlue | Self::PaleGreen | Self::PalePink | Self::Sea => colour != Colour::White,
            Self::PaleYellow => !matches!(colour, Colour::White | Colour::Yellow),
            Self::Night => colour != Colour::Black,
            Self::Meadow => !matches!(colour, Colour::White | Colour::Green),
        }
    }

    /// The colours that cover nearly all of it, from top to bottom; gradients by their ends.
    pub(crate) fn colours(self) -> &'static [Rgb] {
        match self {
            Self::Grey => &[[146, 148, 156]],
            Self::PaleBlue => &[[196, 222, 244]],
            Self::PaleGreen => &[[204, 234, 204]],
            Self::PaleYellow => &[[250, 240, 200]],
            Self::PalePink => &[[250, 214, 222]],
            Self::Sky => &[[82, 156, 228], [136, 196, 242]],
            Self::Night => &[[16, 20, 52], [44, 46, 98]],
            Self::Meadow => &[[190, 224, 244], [226, 242, 246], [128, 192, 92], [100, 170, 74]],
            Self::Sea => &[[250, 218, 206], [252, 234, 222], [58, 166, 184], [30, 118, 152]],
        }
    }
}
