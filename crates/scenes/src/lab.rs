//! A perceptual colour space.

use std::array;
use std::sync::LazyLock;

use crate::palette::Rgb;

/// How much more a difference in hue counts than the same one in lightness: hue is what colours are named by, and
/// lightness is what changes most when a picture is compressed.
const CHROMA: f32 = 2.0;

/// Light that is added before the cube root, which otherwise magnifies the noise of dark pixels.
const TOE: f32 = 0.004;

/// A colour in OKLab (Björn Ottosson, "A perceptual color space for image processing", 2020) times 100, with chroma
/// counted double and a flatter start in the dark. Distances: about 2 can just be seen, 20 has another name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Lab(pub(crate) [f32; 3]);

/// The light of an sRGB byte, 0 to 1.
static LINEAR: LazyLock<[f32; 256]> = LazyLock::new(|| {
    array::from_fn(|byte| {
        let value = byte as f32 / 255.0;
        if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    })
});

impl Lab {
    pub(crate) fn of(rgb: Rgb) -> Self {
        let [red, green, blue] = rgb.map(|byte| LINEAR[usize::from(byte)]);
        let root = |red_part: f32, green_part: f32, blue_part: f32| {
            (red_part * red + green_part * green + blue_part * blue + TOE).cbrt()
        };
        let long = root(0.412_221_47, 0.536_332_55, 0.051_445_994);
        let medium = root(0.211_903_5, 0.680_699_5, 0.107_396_96);
        let short = root(0.088_302_46, 0.281_718_85, 0.629_978_7);
        Self([
            100.0 * (0.210_454_26 * long + 0.793_617_8 * medium - 0.004_072_047 * short),
            CHROMA * 100.0 * (1.977_998_5 * long - 2.428_592_2 * medium + 0.450_593_7 * short),
            CHROMA * 100.0 * (0.025_904_037 * long + 0.782_771_77 * medium - 0.808_675_77 * short),
        ])
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self(array::from_fn(|channel| self.0[channel] + other.0[channel]))
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self(array::from_fn(|channel| self.0[channel] - other.0[channel]))
    }

    /// The distance to the nearest of all mixtures of two colours.
    pub(crate) fn distance_to_mixture(self, first: Self, second: Self) -> f32 {
        let (here, line) = (self.minus(first), second.minus(first));
        let length = line.dot(line);
        let part = if length > 0.0 { (here.dot(line) / length).clamp(0.0, 1.0) } else { 0.0 };
        here.distance(Self(line.0.map(|value| value * part)))
    }

    fn dot(self, other: Self) -> f32 {
        self.0.iter().zip(other.0).map(|(a, b)| a * b).sum()
    }

    pub(crate) fn distance(self, other: Self) -> f32 {
        self.minus(other).0.iter().map(|difference| difference * difference).sum::<f32>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::background::Background;
    use crate::palette::Colour;

    fn distance(a: Rgb, b: Rgb) -> f32 {
        Lab::of(a).distance(Lab::of(b))
    }

    #[test]
    fn grey_has_no_hue() {
        for byte in [0, 90, 255] {
            let Lab([_, a, b]) = Lab::of([byte; 3]);
            assert!(a.abs() < 0.1 && b.abs() < 0.1, "{byte}: {a}, {b}");
        }
    }

    #[test]
    fn colours_are_far_apart() {
        for (index, a) in Colour::ALL.iter().enumerate() {
            for b in &Colour::ALL[..index] {
                assert!(distance(a.rgb(), b.rgb()) > 22.0, "{a:?} {b:?}");
                for (one, other) in [(a.rgb(), b.shade()), (a.shade(), b.rgb()), (a.shade(), b.shade())] {
                    assert!(distance(one, other) > 16.0, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn objects_stand_out_from_their_backgrounds() {
        for background in Background::ALL {
            for colour in Colour::ALL.into_iter().filter(|colour| background.suits(*colour)) {
                for behind in background.colours() {
                    assert!(distance(colour.rgb(), *behind) > 22.0, "{colour:?} {background:?}");
                    assert!(distance(colour.shade(), *behind) > 12.0, "{colour:?} {background:?}");
                }
            }
        }
    }
}
