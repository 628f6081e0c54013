//! The single-byte encodings that UTF-8 is most often misread in, and the way back from them.
//!
//! The choice of encodings, their order and the repairs follow ftfy 6.3 (Robyn Speer, Apache-2.0).

use std::sync::LazyLock;

use fancy_regex::{Captures, Regex};

use super::{python_regex, substitute};

/// An encoding with one byte for each character, ASCII in its lower half.
pub(super) struct Encoding {
    /// What bytes 80 to FF stand for; Latin-1 where `None`. A byte that the standard leaves out stands, as in Latin-1,
    /// for the control character of its number.
    high: Option<&'static str>,
    /// Whether byte 1A stands for U+FFFD: a byte that an earlier reader could not decode.
    lossy: bool,
    /// Whether a space may be what is left of byte A0. Not so in MacRoman, where it would follow an en dash.
    blanks: bool,
}

/// The encodings in the order of trying.
pub(super) static ENCODINGS: [Encoding; 10] = [
    Encoding { high: None, lossy: false, blanks: true },
    Encoding { high: Some(WINDOWS_1252), lossy: true, blanks: true },
    Encoding { high: Some(WINDOWS_1251), lossy: true, blanks: true },
    Encoding { high: Some(WINDOWS_1250), lossy: true, blanks: true },
    Encoding { high: Some(WINDOWS_1253), lossy: true, blanks: true },
    Encoding { high: Some(WINDOWS_1254), lossy: true, blanks: true },
    Encoding { high: Some(WINDOWS_1257), lossy: true, blanks: true },
    Encoding { high: Some(ISO_8859_2), lossy: false, blanks: true },
    Encoding { high: Some(MACROMAN), lossy: false, blanks: false },
    Encoding { high: Some(CP437), lossy: false, blanks: true },
];

impl Encoding {
    /// The text that was meant, if `text` is UTF-8 that was read in this encoding.
    pub(super) fn undo(&self, text: &str) -> Option<String> {
        let mut bytes = self.encode(text)?;
        if self.blanks {
            bytes = restore_a0(&bytes);
        }
        if self.lossy {
            bytes = substitute(&LOST, &bytes, "\u{ef}\u{bf}\u{bd}");
        }
        decode_utf8(&bytes.chars().map(|byte| byte as u8).collect::<Vec<_>>())
    }

    /// The bytes of `text` in this encoding, each as the character of its number; `None` if it has no byte for one.
    fn encode(&self, text: &str) -> Option<String> {
        text.chars().map(|character| self.byte(character).map(char::from)).collect()
    }

    fn byte(&self, character: char) -> Option<u8> {
        match character {
            '\u{fffd}' if self.lossy => Some(0x1a),
            '\u{1a}' if self.lossy => None,
            '\0'..='\u{7f}' => u8::try_from(character).ok(),
            _ => match self.high {
                None => u8::try_from(character).ok(),
                Some(high) => {
                    high.chars().position(|known| known == character).and_then(|at| u8::try_from(0x80 + at).ok())
                }
            },
        }
    }
}

/// UTF-8 sequences in which a space stands where only byte A0 makes sense.
static BLANKED: LazyLock<Regex> = LazyLock::new(|| {
    python_regex(concat!(
        r"[\xc2\xc3\xc5\xce\xd0\xd9] ",
        r"|[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
        r"|\xf0 [\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf] [\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf] ",
    ))
});

/// An “à” that lost its second byte and is a word of its own: not before more blanks, nor in Portuguese contractions.
static A_GRAVE: LazyLock<Regex> = LazyLock::new(|| python_regex(r"\xc3 (?! |quele|quela|quilo|s )"));

/// UTF-8 sequences in which at least one byte is lost: now 1A, or a question mark.
static LOST: LazyLock<Regex> = LazyLock::new(|| {
    python_regex(concat!(
        r"[\xc2-\xdf]\x1a|[\xc2-\xc3][?]",
        r"|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]",
        r"|\x1a",
    ))
});

/// Puts byte A0 back where something has turned it into a space. A lone “à” keeps the space after it as well.
fn restore_a0(bytes: &str) -> String {
    let bytes = substitute(&A_GRAVE, bytes, "\u{c3}\u{a0} ");
    substitute(&BLANKED, &bytes, |found: &Captures<'_>| {
        found.get(0).map_or_else(String::new, |sequence| sequence.as_str().replace(' ', "\u{a0}"))
    })
}

/// Strict UTF-8, except that a NUL may be written C0 80 (as Java does) and a character outside the Basic Multilingual
/// Plane as two surrogates (CESU-8).
fn decode_utf8(bytes: &[u8]) -> Option<String> {
    let mut standard = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = match rest {
            [0xc0, 0x80, after @ ..] => {
                standard.push(0);
                after
            }
            [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ 0x80..=0xbf, after @ ..] => {
                let high = (u32::from(a & 0x0f) << 6) | u32::from(b & 0x3f);
                let low = (u32::from(c & 0x0f) << 6) | u32::from(d & 0x3f);
                let character = char::from_u32(0x10000 + (high << 10) + low)?;
                standard.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                after
            }
            _ => {
                standard.push(*first);
                tail
            }
        };
    }
    String::from_utf8(standard).ok()
}

pub(super) const WINDOWS_1252: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß\
    àáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";

const WINDOWS_1251: &str = "\
    ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\
    \u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕї\
    АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ\
    абвгдежзийклмнопрстуфхцчшщъыьэюя";

const WINDOWS_1250: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\
    \u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";

const WINDOWS_1253: &str = "\
    €\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\u{9e}\u{9f}\
    \u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏ\
    ΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήί\
    ΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ";

const WINDOWS_1254: &str = "\
    €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\
    \u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿\
    ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞß\
    àáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ";

const WINDOWS_1257: &str = "\
    €\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\
    \u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æ\
    ĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽß\
    ąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙";

const ISO_8859_2: &str = "\
    \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\u{8f}\
    \u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}\
    \u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ\
    °ą˛ł´ľśˇ¸šşťź˝žż\
    ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎ\
    ĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß\
    ŕáâăäĺćçčéęëěíîď\
    đńňóôőö÷řůúűüýţ˙";

const MACROMAN: &str = "\
    ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü\
    †°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø\
    ¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ\
    ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";

const CP437: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
    áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
    αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_names_128_different_characters() {
        for encoding in &ENCODINGS {
            let Some(high) = encoding.high else { continue };
            let mut characters: Vec<char> = high.chars().collect();
            assert_eq!(characters.len(), 128, "{high}");
            characters.sort_unstable();
            characters.dedup();
            assert_eq!(characters.len(), 128, "{high}");
        }
    }

    #[test]
    fn variants_of_utf8_are_decoded() {
        assert_eq!(decode_utf8(b"a\xc0\x80b").as_deref(), Some("a\0b"));
        assert_eq!(decode_utf8(b"\xed\xa0\xbd\xed\xb8\x80").as_deref(), Some("\u{1f600}"));
        assert_eq!(decode_utf8(b"\xed\x95\x9c").as_deref(), Some("\u{d55c}"));
        assert_eq!(decode_utf8(b"\xed\xa0\xbd"), None);
        assert_eq!(decode_utf8(b"\xc0"), None);
    }
}
