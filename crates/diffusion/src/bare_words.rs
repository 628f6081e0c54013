//! `Infinity`, `-Infinity` and `NaN`, which Python writes into JSON bare and JSON does not know.

/// Puts quotes around the words that Python writes for what JSON numbers cannot be, outside strings.
pub(crate) fn quote_words(text: &str) -> String {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut quoted = String::with_capacity(text.len() + 8);
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        let word = WORDS.into_iter().find(|word| !in_string && rest.starts_with(*word));
        let taken = match word {
            Some(word) => {
                quoted.extend(["\"", word, "\""]);
                word.len()
            }
            None => {
                let length = if in_string && first == '\\' { 2 } else { 1 };
                if first == '"' {
                    in_string = !in_string;
                }
                let taken: usize = rest.chars().take(length).map(char::len_utf8).sum();
                quoted.push_str(&rest[..taken]);
                taken
            }
        };
        rest = &rest[taken..];
    }
    quoted
}

/// The value of Python's words for what JSON numbers cannot be.
pub(crate) fn parse_word(text: &str) -> Option<f64> {
    match text {
        "Infinity" => Some(f64::INFINITY),
        "-Infinity" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_strings_stay_as_they_are() {
        let text = r#"{"NaN": -Infinity, "a\\": [Infinity,NaN], "b\" NaN": "ü -Infinity"}"#;
        let quoted = r#"{"NaN": "-Infinity", "a\\": ["Infinity","NaN"], "b\" NaN": "ü -Infinity"}"#;
        assert_eq!(quote_words(text), quoted);
        assert_eq!(quote_words("\"ends in a \\"), "\"ends in a \\");
    }
}
