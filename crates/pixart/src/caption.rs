//! What is done to a prompt before it is tokenised: in short what `_text_preprocessing` of diffusers'
//! `PixArtAlphaPipeline` does.
//!
//! The models were trained on captions from the web that had been cleaned, so a prompt is cleaned the same way to look
//! like one. The steps, their order and their oddities are part of the model: [`clean_caption`] gives, character by
//! character, what diffusers gives. It leans on Beautiful Soup ([`markup`]), ftfy ([`mojibake`]) and Python's `re`
//! ([`python_regex`]), whose behaviour the modules here follow as far as it reaches a caption.

mod badness;
mod encodings;
mod entities;
mod markup;
mod mojibake;

use std::borrow::Cow;
use std::sync::LazyLock;

use fancy_regex::{Regex, Replacer};
use percent_encoding::percent_decode_str;

/// Cleans a prompt as diffusers does with `clean_caption=True`, the setting that the models were trained with.
///
/// Lower case; without addresses, markup, `@names`, `#123`, file names, article numbers, CJK ideographs and most
/// punctuation; wrongly decoded text repaired. Cleans twice, as diffusers does, since the first pass may uncover more.
///
/// A pattern that takes too long on a hostile text is left unapplied.
///
/// ```
/// assert_eq!(pixart::clean_caption("A <b>RED</b> cat &amp; dog -- www.example.com"), "a red cat dog");
/// ```
pub fn clean_caption(caption: &str) -> String {
    // Most prompts are; to make the patterns takes as long as two steps of a small model.
    if is_plain(caption) {
        return caption.to_ascii_lowercase();
    }
    clean_once(&clean_once(caption))
}

/// Prepares a prompt as diffusers does with `clean_caption=False`: lower case, no white space around it.
pub fn plain_caption(caption: &str) -> String {
    caption.to_lowercase().trim_matches(is_space).to_owned()
}

/// What the patterns for words look for in words of letters alone.
const SOUGHT: [&str; 12] =
    ["shipping", "download", "click", "png", "jpg", "jpeg", "bmp", "webp", "eps", "pdf", "apk", "page"];

/// Whether there is nothing to clean: words of ASCII letters and short numbers, a space after each, commas behind some, and none that a
/// pattern looks for.
fn is_plain(caption: &str) -> bool {
    let is_word = |word: &str| {
        let lower = word.to_ascii_lowercase();
        let letters = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphabetic());
        letters && !SOUGHT.iter().any(|sought| lower.contains(sought))
            || (1..=5).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut words = caption.split(' ').map(|word| word.strip_suffix(',').unwrap_or(word));
    caption.is_empty() || !caption.ends_with(',') && words.all(is_word)
}

fn clean_once(caption: &str) -> String {
    // A prompt is taken for part of an address, in which `+` is a space and `%20` another.
    let spaced = caption.replace('+', " ");
    let caption = plain_caption(&percent_decode_str(&spaced).decode_utf8_lossy());
    let caption = apply(&ADDRESSES, caption);
    let caption = markup::text(&caption);
    let mut caption = apply(&PUNCTUATION, caption);
    if caption.matches(['-', '_']).count() > 3 {
        caption = caption.replace(['-', '_'], " ");
    }
    let caption = mojibake::fix_text(&caption);
    let caption = entities::unescape(&entities::unescape(&caption));
    let caption = apply(&WORDS, caption);
    caption.trim_matches(is_space).to_owned()
}

/// A pattern and what to put in place of it.
type Rule = (Regex, &'static str);

fn rules(rules: &[(&str, &'static str)]) -> Vec<Rule> {
    rules.iter().map(|(pattern, replacement)| (python_regex(pattern), *replacement)).collect()
}

fn apply(rules: &[Rule], caption: String) -> String {
    rules.iter().fold(caption, |caption, (pattern, replacement)| substitute(pattern, &caption, *replacement))
}

/// Before markup is taken out: addresses of pages.
static ADDRESSES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    const DOMAIN: &str = r"[a-zA-Z0-9.-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)";
    let address = |scheme: &str| format!(r"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})");
    rules(&[("<person>", "person"), (address("https?").as_str(), ""), (address("www").as_str(), "")])
});

/// Between markup and the repair of encodings: names, CJK, dashes, quotes, numbers, file names, signs.
static PUNCTUATION: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        (r"@[\w\d]+\b", ""),
        // From CJK strokes to unified ideographs.
        (r"[\u{31c0}-\u{9fff}]+", ""),
        (
            concat!(
                r"[-\u{58a}\u{5be}\u{1400}\u{1806}\u{2010}-\u{2015}\u{2e17}\u{2e1a}\u{2e3a}\u{2e3b}\u{2e40}",
                r"\u{301c}\u{3030}\u{30a0}\u{fe31}\u{fe32}\u{fe58}\u{fe63}\u{ff0d}]+",
            ),
            "-",
        ),
        ("[`´«»“”¨]", "\""),
        ("[‘’]", "'"),
        ("&quot;?", ""),
        ("&amp", ""),
        // Addresses of machines, article numbers, line breaks as a programmer writes them.
        (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
        (r"\d:\d\d\s+$", ""),
        (r"\\n", " "),
        (r"#\d{1,3}\b", ""),
        (r"#\d{5,}\b", ""),
        (r"\b\d{6,}\b", ""),
        (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
        (r#"["']{2,}"#, "\""),
        (r"[.]{2,}", " "),
        (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
        (r"\s+\.\s+", " "),
    ])
});

/// After the repair of encodings: codes, phrases of shops, sizes, spaces.
static WORDS: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
        (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
        (r"\b\d+[a-zA-Z]+\d+\b", ""),
        (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
        (r"(?:free\s)?download(?:\sfree)?", ""),
        (r"\bclick\b\s(?:for|on)\s\w+", ""),
        (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
        (r"\bpage\s+\d+\b", ""),
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
        // The letter x of Latin, that of Cyrillic, and the sign.
        (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
        (r"\b\s+:\s+", ": "),
        (r"(\D[,./])\b", "${1} "),
        (r"\s+", " "),
        (r#"^["']((?s:.)+)["']$"#, "$1"),
        (r"^['_,:;-]", ""),
        (r"['_,:+-]$", ""),
        (r"^\.\S+$", ""),
    ])
});

/// A pattern of Python's `re` for text. What `\w`, `\b` and `\s` mean differs there: word characters are letters,
/// numbers of all kinds and `_` (no combining marks, no joiners), and four separators of ASCII count as white space.
///
/// Not for patterns in which such an escape follows an escaped backslash.
fn python_regex(pattern: &str) -> Regex {
    const WORD: &str = r"[\p{L}\p{N}_]";
    let boundary = format!("(?:(?<={WORD})(?!{WORD})|(?<!{WORD})(?={WORD}))");
    let pattern = pattern
        .replace(r"\b", &boundary)
        .replace(r"\w", WORD)
        .replace(r"\s", r"[\s\x1c-\x1f]")
        .replace(r"\S", r"[^\s\x1c-\x1f]");
    Regex::new(&pattern).expect("patterns are constants, and the tests use them all")
}

/// Replaces all matches, or none if matching takes too long.
fn substitute(pattern: &Regex, text: &str, replacement: impl Replacer) -> String {
    pattern.try_replacen(text, 0, replacement).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

/// White space as Python sees it.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde::Deserialize;

    use super::*;

    /// What diffusers, Beautiful Soup and ftfy give (`tools/reference`).
    #[derive(Deserialize)]
    struct Golden {
        captions: Vec<Caption>,
        markup: Vec<Case>,
        ftfy: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Caption {
        text: String,
        plain: String,
        once: String,
        clean: String,
    }

    #[derive(Deserialize)]
    struct Case {
        text: String,
        result: String,
    }

    fn golden() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/text/captions.json");
        let json = std::fs::read_to_string(path).expect(path);
        serde_json::from_str(&json).expect(path)
    }

    /// Fails with all cases (function, text, expected, found) that do not hold.
    fn check<'a>(cases: impl IntoIterator<Item = (&'static str, &'a str, &'a str, String)>) {
        let failures: Vec<String> = cases
            .into_iter()
            .filter(|(_, _, expected, found)| expected != found)
            .map(|(name, text, expected, found)| {
                format!("{name}({text:?})\n    expected {expected:?}\n    found    {found:?}")
            })
            .collect();
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }

    #[test]
    fn captions_are_cleaned_like_diffusers() {
        let golden = golden();
        assert!(golden.captions.len() > 100);
        check(golden.captions.iter().flat_map(|caption| {
            let text = caption.text.as_str();
            [
                ("plain_caption", text, caption.plain.as_str(), plain_caption(text)),
                ("clean_once", text, caption.once.as_str(), clean_once(text)),
                ("clean_caption", text, caption.clean.as_str(), clean_caption(text)),
            ]
        }));
    }

    #[test]
    fn markup_is_read_like_beautiful_soup() {
        let golden = golden();
        assert!(golden.markup.len() > 50);
        check(
            golden
                .markup
                .iter()
                .map(|case| ("markup::text", case.text.as_str(), case.result.as_str(), markup::text(&case.text))),
        );
    }

    #[test]
    fn encodings_are_fixed_like_ftfy() {
        let golden = golden();
        assert!(golden.ftfy.len() > 40);
        check(golden.ftfy.iter().map(|case| {
            ("mojibake::fix_text", case.text.as_str(), case.result.as_str(), mojibake::fix_text(&case.text))
        }));
    }

    /// What captions can be made difficult with, besides characters of all kinds.
    const PIECES: &str = concat!(
        "< > </ <b <!-- -- <![ cdata[ ]]> <? <!doctype <script> </script> <rt> <br> <pre> = \" ' / & &# x4 &amp ; &lt; ",
        "&copy % %c3 + \u{c3} \u{e2}\u{20ac} \u{f0}\u{178} \u{ff06} \u{1c} \n a 1 @ .com http:// http://a. a-b-c-d-e"
    );

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => select(PIECES.split(' ').collect::<Vec<_>>()).prop_map(String::from),
            1 => Just(" ".to_owned()),
            1 => any::<char>().prop_map(String::from),
        ]
    }

    /// Words, plain and less so, with what may stand behind them.
    fn words() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            6 => "[a-zA-Z]{1,9}",
            2 => "[0-9]{1,6}",
            1 => "[a-z]{0,2}(shipping|download|click|jpe?g|eps|page|apk|x)[a-z]{0,2}",
            1 => select(vec!["for", "on", "free", "images", "4k", "a1", "1x2", "person"]).prop_map(String::from),
        ];
        let behind = select(vec!["", "", "", "", "", "", ",", ",", ".", "-", "'", ":"]);
        vec((word, behind), 0..8).prop_map(|words| {
            words.into_iter().map(|(word, behind)| format!("{word}{behind}")).collect::<Vec<_>>().join(" ")
        })
    }

    #[test]
    fn prompts_as_they_usually_are_need_no_cleaning() {
        for plain in ["", "a red fox", "A small cactus, happy, 3 of them", "two blue circles above a red square"] {
            assert!(is_plain(plain), "{plain:?}");
            assert_eq!(clean_once(&clean_once(plain)), plain.to_lowercase());
        }
        for other in [" a", "a ", "a  b", "a,", "it's", "a.b", "free shipping", "123456", "über", "page 3", "a\tb", ","]
        {
            assert!(!is_plain(other), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plain_would_not_be_changed(text in words()) {
            if is_plain(&text) {
                prop_assert_eq!(clean_once(&clean_once(&text)), text.to_lowercase());
            }
        }

        #[test]
        fn any_text_can_be_cleaned(pieces in vec(piece(), 0..60)) {
            let caption = clean_caption(&pieces.concat());
            prop_assert_eq!(caption.trim_matches(is_space), caption.as_str());
            clean_caption(&caption);
        }
    }
}
