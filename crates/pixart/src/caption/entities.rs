//! HTML character references, as Python's `html.unescape` and ftfy read them.

use htmlize::ENTITIES;

use super::encodings::WINDOWS_1252;

/// What the reference `&name;` stands for.
pub(super) fn named(name: &str) -> Option<&'static str> {
    lookup(&format!("&{name};"))
}

/// What a whole reference stands for, from `&` to its semicolon if it has one.
fn lookup(reference: &str) -> Option<&'static str> {
    ENTITIES.get(reference.as_bytes()).and_then(|text| std::str::from_utf8(text).ok())
}

/// The number at the start of `text`, decimal or hexadecimal after an `x`, and its length in bytes. A number too large
/// to hold comes out as the largest, which is no character either.
pub(super) fn number(text: &str) -> Option<(u32, usize)> {
    let (radix, digits) = match text.strip_prefix(['x', 'X']) {
        Some(digits) => (16, digits),
        None => (10, text),
    };
    let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let number = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
    (length > 0).then_some((number, text.len() - digits.len() + length))
}

/// The character that a numeric reference stands for: 128 to 159 are meant in Windows-1252, and what is no character
/// becomes U+FFFD (HTML, “numeric character reference end state”).
pub(super) fn numbered(number: u32) -> char {
    match number {
        0 => char::REPLACEMENT_CHARACTER,
        0x80..=0x9f => c1_meaning(number),
        _ => char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

/// What Windows-1252 has in place of a C1 control character, `80` to `9F`.
pub(super) fn c1_meaning(number: u32) -> char {
    let at = number.saturating_sub(0x80) as usize;
    WINDOWS_1252.chars().nth(at).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Control characters and others that `html.unescape` takes away where a number refers to them.
fn is_dropped(number: u32) -> bool {
    matches!(number, 1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef)
        || (number <= 0x10_ffff && number & 0xfffe == 0xfffe)
}

/// Python's `html.unescape`: every reference, also those without a semicolon where HTML allows that.
pub(super) fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = unescape_first(rest, &mut plain);
        rest = &rest[length..];
    }
    plain + rest
}

/// Appends what the `&` at the start of `text` begins, and says how much of `text` that was.
fn unescape_first(text: &str, plain: &mut String) -> usize {
    let closed = |length: usize| length + usize::from(text[length..].starts_with(';'));

    if let Some((number, length)) = text.strip_prefix("&#").and_then(number) {
        if !is_dropped(number) {
            plain.push(numbered(number));
        }
        return closed(2 + length);
    }

    // A name is anything of up to 32 characters; the longest known start of it counts, of two characters or more.
    let ends_name = |c: char| matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';');
    let name = text[1..].char_indices().take(32).take_while(|(_, c)| !ends_name(*c)).last();
    let end = name.map_or(1, |(at, last)| closed(1 + at + last.len_utf8()));
    let known = (3..=end).rev().find_map(|length| Some((length, lookup(text.get(..length)?)?)));
    match known {
        Some((length, meaning)) => {
            plain.push_str(meaning);
            plain.push_str(&text[length..end]);
        }
        None => plain.push_str(&text[..end]),
    }
    end
}

/// ftfy's `unescape_html`: references with a semicolon only, and also named ones put into capitals.
pub(super) fn unescape_closed(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        rest = &rest[start..];
        let name = rest[1..].trim_start_matches('#');
        let hashes = rest.len() - 1 - name.len();
        let length = name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len());
        if hashes <= 1 && (1..=24).contains(&length) && name[length..].starts_with(';') {
            let (reference, after) = rest.split_at(1 + hashes + length + 1);
            plain.push_str(&closed_meaning(reference));
            rest = after;
        } else {
            plain.push('&');
            rest = &rest[1..];
        }
    }
    plain + rest
}

/// What a reference with its semicolon stands for; itself if nothing.
fn closed_meaning(reference: &str) -> String {
    if let Some(meaning) = lookup(reference) {
        return meaning.to_owned();
    }
    let unescaped = unescape(reference);
    if reference.starts_with("&#") {
        // A semicolon left over says that only part of it was a number.
        return if unescaped.contains(';') { reference.to_owned() } else { unescaped };
    }
    let in_capitals = unescaped == reference && !reference.contains(|c: char| c.is_ascii_lowercase());
    match lookup(&reference.to_ascii_lowercase()) {
        Some(meaning) if in_capitals => meaning.to_uppercase(),
        _ => reference.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_like_html_unescape() {
        for (text, expected) in [
            ("no reference", "no reference"),
            ("&lt;b&gt; &amp;amp; &", "<b> &amp; &"),
            ("&notit; &notin; &not;", "\u{ac}it; \u{2209} \u{ac}"),
            ("&copy2020 &GTDOT; &unknown; &a; &é", "\u{a9}2020 >DOT; &unknown; &a; &é"),
            ("&#65; &#x41 &#X41; &#; &#xz &#", "A A A &#; &#xz &#"),
            ("&#0;&#128;&#129;&#55296;&#99999999999;", "\u{fffd}\u{20ac}\u{81}\u{fffd}\u{fffd}"),
            ("a&#1;&#127;&#65534;&#1114111;&#13;b", "a\rb"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn closed_references_are_read_like_ftfy() {
        for (text, expected) in [
            ("&lt &lt; &notit; &##65; &#65a; &#x41;", "&lt < &notit; &##65; &#65a; A"),
            ("P&EACUTE;REZ &SZLIG; &nTILDE; &GTDOT;", "P\u{c9}REZ SS &nTILDE; &GTDOT;"),
        ] {
            assert_eq!(unescape_closed(text), expected, "{text}");
        }
    }
}
