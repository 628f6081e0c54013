//! Does a text look misread? Sequences of characters that come from decoding UTF-8 wrongly, and hardly otherwise.
//!
//! The characters, their classes and the sequences are those of ftfy 6.3 (Robyn Speer, Apache-2.0): what it calls bad is
//! bad here too. The constants are contents of character classes, with ranges.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::python_regex;

/// Characters of all kinds of text.
const COMMON: &str = "\u{a0}\u{ad}·´–—―…’";
/// Control characters that only misreading brings about.
const C1: &str = "\u{80}-\u{9f}";
/// Characters that almost only misreading brings about.
const BAD: &str = "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊�ªº";
const LAW: &str = "¶§";
const CURRENCY: &str = "¢£¥₧€";
const START_PUNCTUATION: &str = "¡«¿©΄΅‘‚“„•‹\u{f8ff}";
const END_PUNCTUATION: &str = "®»˝”›™";
const NUMERIC: &str = "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№";
/// Letters that make faces, and so stand in odd places.
const KAOMOJI: &str = "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°";
const UPPER_ACCENTED: &str = "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";
const LOWER_ACCENTED: &str = "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ";
/// Letters that are common at the ends of words.
const UPPER_COMMON: &str = "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я";
const LOWER_COMMON: &str = "α-ωάέήίΰа-џ";
/// Box drawing, without the single horizontal line that faces use.
const BOX: &str = "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓";

/// Characters that bytes C2 to DF, the first of two, are misread as.
const FIRST_OF_2: &str = "\
    ĂÂÄĀÅÃÆĆČÇĎĐÉĚÊËĖÈĒĘÐĞĢÍÎÏİÌĪĶĹĻŁŃŇŅÑÓÔÖŐÒŌØÕŘŚŠŞŢÞÚÛÜŰÙŪŲŮÝŹŽŻß×ΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΪΫάέήίВГДЕЖЗ\
    ИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ";
/// Characters that bytes E0 to EF, the first of three, are misread as.
const FIRST_OF_3: &str = "áăâäàāąåãæćčçďéěêëėèēęęģíîïìīįķĺļŕźΰαβγδεζηθικλμνξοабвгдежзийклмноп";
/// Characters that bytes F0 and F3, the first of four, are misread as.
const FIRST_OF_4: &str = "đðğóšπσру";
/// Characters that bytes 80 to BF are misread as, and that seldom stand beside misread text as themselves.
const CONTINUATION: &str = "\
    \u{80}-¿ĄÆĽŁØŖŚŠŞŤŸŹŽŻŒąæƒľłøŗśšşťźžżœˆˇ˘˛˜˝΄΅ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ†‡‰‹›€№™";
/// The others that bytes 80 to BF are misread as, and a space for byte A0.
const CONTINUATION_OR_ITSELF: &str = " –—―‘’‚“”„•…";

/// Whether some of `text` looks misread.
pub(super) fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text).unwrap_or(false)
}

static BADNESS: LazyLock<Regex> = LazyLock::new(|| python_regex(&bad_sequences().join("|")));

fn bad_sequences() -> [String; 37] {
    let signs = format!("{BOX}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}{NUMERIC}{LAW}");
    let accented = format!("{LOWER_ACCENTED}{UPPER_ACCENTED}");
    let arabic = format!("[ØÙ][{COMMON}{CURRENCY}{BAD}{NUMERIC}{START_PUNCTUATION}ŸŠ®°µ»]");
    let middle = format!("{C1}{BAD}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}°");
    [
        format!("[{C1}]"),
        // Classes that do not follow each other.
        format!("[{BAD}{accented}{signs}][{BAD}]"),
        format!("[a-zA-Z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{accented}{signs}]"),
        format!("[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{UPPER_ACCENTED}]"),
        format!("[{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{END_PUNCTUATION}][{CURRENCY}]"),
        format!(r"\s[{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{accented}{BOX}{CURRENCY}{END_PUNCTUATION}][{START_PUNCTUATION}][{NUMERIC}]"),
        format!("[{accented}{CURRENCY}{NUMERIC}{BOX}{LAW}][{END_PUNCTUATION}][{START_PUNCTUATION}]"),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{START_PUNCTUATION}]"),
        format!("[a-z][{UPPER_ACCENTED}][{START_PUNCTUATION}{CURRENCY}]"),
        format!("[{BOX}][{KAOMOJI}]"),
        format!("[{accented}{CURRENCY}{NUMERIC}{START_PUNCTUATION}{END_PUNCTUATION}{LAW}][{BOX}]"),
        format!("[{BOX}][{END_PUNCTUATION}]"),
        format!(r"[{accented}][{START_PUNCTUATION}{END_PUNCTUATION}]\w"),
        "[Œœ][^A-Za-z]".into(),
        format!("[{UPPER_ACCENTED}]°"),
        // Windows-1252: two characters, then Arabic (twice, as its signs are common), then South Asian scripts.
        format!("[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»{START_PUNCTUATION}{END_PUNCTUATION}–—´]"),
        "×[²³]".into(),
        format!("{arabic}{arabic}"),
        "à[²µ¹¼½¾]".into(),
        // MacRoman.
        "√[±∂†≠®™´≤≥¥µø]".into(),
        "≈[°¢]".into(),
        "‚Ä[ìîïòôúùû†°¢π]".into(),
        "‚[âó][àä°ê]".into(),
        // Windows-1251: punctuation, then Latin-1 or Cyrillic, then Windows-1252 misread twice.
        "вЂ".into(),
        format!("[ВГРС][{middle}µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".into(),
        // Windows-1252: “à”, “á” and the no-break space, and what “Â” precedes as it is.
        "Ã[\u{a0}¡]".into(),
        r"[a-z]\s?[ÃÂ] ".into(),
        "^[ÃÂ] ".into(),
        format!("[a-z.,?!{END_PUNCTUATION}]Â[ {START_PUNCTUATION}{END_PUNCTUATION}]"),
        // Windows-1253: punctuation, then Latin-1 or Greek. Windows-1257: punctuation.
        "β€[™\u{a0}Ά\u{ad}®°]".into(),
        format!("[ΒΓΞΟ][{middle}][ΒΓΞΟ]"),
        "ā€".into(),
    ]
}

/// Runs of what looks like UTF-8 misread in one of several encodings, not in the middle of a larger garble. Common
/// characters are among them, so what is found may be sound: ask [`is_bad`].
pub(super) static MISREAD_UTF8: LazyLock<Regex> = LazyLock::new(|| {
    let any = format!("[{CONTINUATION}{CONTINUATION_OR_ITSELF}]");
    python_regex(&format!(
        "(?<![{CONTINUATION}])(?:[{FIRST_OF_2}]{any}|[{FIRST_OF_3}]{any}{any}|[{FIRST_OF_4}]{any}{any}{any})+"
    ))
});
