//! The ten colours of objects.

/// An sRGB colour, 0 to 255.
pub(crate) type Rgb = [u8; 3];

/// The colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each says what it is")]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
    Black,
    White,
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 10] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Blue,
        Self::Purple,
        Self::Pink,
        Self::Brown,
        Self::Black,
        Self::White,
    ];

    /// Its name in captions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::Pink => "pink",
            Self::Brown => "brown",
            Self::Black => "black",
            Self::White => "white",
        }
    }

    /// The sRGB colour that objects are painted in.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 38, 44],
            Self::Orange => [247, 124, 20],
            Self::Yellow => [255, 221, 40],
            Self::Green => [42, 160, 72],
            Self::Blue => [36, 80, 216],
            Self::Purple => [138, 62, 190],
            Self::Pink => [246, 124, 184],
            Self::Brown => [124, 74, 40],
            Self::Black => [28, 28, 32],
            Self::White => [252, 252, 252],
        }
    }

    /// The second shade, for stripes, dots and details. Whether it is lighter or darker was chosen so that it is
    /// mistaken neither for another colour nor for a background.
    pub fn shade(self) -> [u8; 3] {
        match self {
            Self::Red => [150, 18, 32],
            Self::Orange => [255, 180, 116],
            Self::Yellow => [222, 186, 16],
            Self::Green => [20, 104, 50],
            Self::Blue => [20, 44, 140],
            Self::Purple => [186, 128, 226],
            Self::Pink => [206, 72, 140],
            Self::Brown => [172, 118, 76],
            Self::Black => [92, 92, 98],
            Self::White => [206, 210, 216],
        }
    }
}
