//! `ftfy.fix_text`: text that was decoded wrongly on its way is decoded again, and typographic variants made plain.
//!
//! After ftfy 6.3 (Robyn Speer, Apache-2.0) with its default settings.

use std::sync::LazyLock;

use fancy_regex::{Captures, Regex};
use unicode_normalization::UnicodeNormalization;

use super::badness::{MISREAD_UTF8, is_bad};
use super::encodings::ENCODINGS;
use super::entities::{c1_meaning, unescape_closed};
use super::{python_regex, substitute};

/// How often a repair is repeated at most. Real text is stable after two or three rounds.
const MAX_ROUNDS: usize = 16;

/// Repairs each line of `text` on its own.
pub(super) fn fix_text(text: &str) -> String {
    // A `<` says that this is HTML, where references have to stay, from its line on.
    let mut unescape = true;
    let fix = |line: &str| {
        unescape &= !line.contains('<');
        until_stable(line, |line| fix_line_once(line, unescape))
    };
    text.split_inclusive('\n').map(fix).collect()
}

fn until_stable(text: &str, step: impl Fn(&str) -> String) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_ROUNDS {
        let next = step(&text);
        if next == text {
            break;
        }
        text = next;
    }
    text
}

fn fix_line_once(line: &str, unescape: bool) -> String {
    static TERMINAL_ESCAPE: LazyLock<Regex> = LazyLock::new(|| python_regex(r"\x1b\[[\d;]*[a-zA-Z]"));

    let text = if unescape { unescape_closed(line) } else { line.to_owned() };
    let text = plain_characters(&fix_c1(&fix_encoding(&text)));
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
    let text = substitute(&TERMINAL_ESCAPE, &text, "");
    text.chars().filter(|c| !is_useless_control(*c)).nfc().collect()
}

/// Control characters that leave nothing to see and are no white space.
fn is_useless_control(character: char) -> bool {
    matches!(character,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}')
}

/// Latin ligatures taken apart, halfwidth and fullwidth forms in usual width, quotation marks straight.
fn plain_characters(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match (ligature(character), character) {
            (Some(letters), _) => plain.push_str(letters),
            (None, '\u{3000}') => plain.push(' '),
            (None, '\u{ff01}'..='\u{ffef}') => plain.extend(std::iter::once(character).nfkc()),
            (None, _) => plain.push(character),
        }
    }
    plain
        .replace(['\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}'], "\"")
        .replace(['\u{2bc}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'], "'")
}

fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        '\u{132}' => "IJ",
        '\u{133}' => "ij",
        '\u{149}' => "\u{2bc}n",
        '\u{1f1}' => "DZ",
        '\u{1f2}' => "Dz",
        '\u{1f3}' => "dz",
        '\u{1c4}' => "D\u{17d}",
        '\u{1c5}' => "D\u{17e}",
        '\u{1c6}' => "d\u{17e}",
        '\u{1c7}' => "LJ",
        '\u{1c8}' => "Lj",
        '\u{1c9}' => "lj",
        '\u{1ca}' => "NJ",
        '\u{1cb}' => "Nj",
        '\u{1cc}' => "nj",
        '\u{fb00}' => "ff",
        '\u{fb01}' => "fi",
        '\u{fb02}' => "fl",
        '\u{fb03}' => "ffi",
        '\u{fb04}' => "ffl",
        '\u{fb05}' => "\u{17f}t",
        '\u{fb06}' => "st",
        _ => return None,
    })
}

/// Undoes wrong decoding, layer by layer.
fn fix_encoding(text: &str) -> String {
    until_stable(text, fix_encoding_once)
}

fn fix_encoding_once(text: &str) -> String {
    if text.is_ascii() || !is_bad(text) {
        return text.to_owned();
    }
    if let Some(fixed) = ENCODINGS.iter().find_map(|encoding| encoding.undo(text)) {
        return fixed;
    }
    let fixed = fix_parts(text);
    if fixed != text { fixed } else { fix_c1(text) }
}

/// Undoes wrong decoding where only parts of the text, perhaps of several sources, suffered from it.
fn fix_parts(text: &str) -> String {
    substitute(&MISREAD_UTF8, text, |found: &Captures<'_>| {
        let part = found.get(0).map_or("", |part| part.as_str());
        if part.len() < text.len() && is_bad(part) { fix_encoding(part) } else { part.to_owned() }
    })
}

/// Reads C1 control characters as Windows-1252, as web browsers do.
fn fix_c1(text: &str) -> String {
    text.chars().map(|c| if matches!(c, '\u{80}'..='\u{9f}') { c1_meaning(u32::from(c)) } else { c }).collect()
}
