//! The text of an HTML fragment: `BeautifulSoup(markup, features="html.parser").text`.
//!
//! What is markup, and above all what is not, is decided as in Python 3.11's `html.parser`, quirk by quirk: a caption
//! holds `<` and `&` for many reasons. Two passes go over the text, of which only the second takes the end of the text
//! for its end, as that parser does when fed and closed. Captions are in lower case before they come here, so names
//! are compared as they stand.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use fancy_regex::Regex;

use super::{entities, is_space, python_regex};

/// Elements whose text Beautiful Soup does not count as text.
const HIDDEN: [&str; 5] = ["rp", "rt", "script", "style", "template"];
/// Elements whose content is not markup.
const RAW: [&str; 2] = ["script", "style"];
/// Elements in which white space counts.
const PREFORMATTED: [&str; 2] = ["pre", "textarea"];
/// Elements without content.
const VOID: [&str; 24] = [
    "area", "base", "basefont", "bgsound", "br", "col", "command", "embed", "frame", "hr", "image", "img", "input",
    "isindex", "keygen", "link", "menuitem", "meta", "nextid", "param", "source", "spacer", "track", "wbr",
];

/// The text that `markup`, in lower case, shows.
///
/// `<![` with an unknown keyword, on which Beautiful Soup fails, counts as a comment.
pub(super) fn text(markup: &str) -> String {
    let mut reader = Reader { source: markup, position: 0, raw: None, text: Text::default() };
    reader.read(false);
    reader.read(true);
    reader.text.end_run();
    reader.text.shown
}

/// Collects the text that is not hidden, and knows which elements are open.
#[derive(Default)]
struct Text {
    shown: String,
    /// The text since the last tag or comment, if there was any.
    run: Option<String>,
    open: Vec<String>,
    /// Void elements that an end tag may still name.
    void: Vec<String>,
}

impl Text {
    fn push(&mut self, text: &str) {
        self.run.get_or_insert_default().push_str(text);
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take()
            && !self.is_within(&HIDDEN)
        {
            self.show(&run);
        }
    }

    /// White space alone counts as one space or one line break.
    fn show(&mut self, run: &str) {
        let is_blank = run.chars().all(|c| matches!(c, ' ' | '\t' | '\n' | '\x0c' | '\r'));
        let shown = if !is_blank || self.is_within(&PREFORMATTED) {
            run
        } else if run.contains('\n') {
            "\n"
        } else {
            " "
        };
        self.shown.push_str(shown);
    }

    fn is_within(&self, elements: &[&str]) -> bool {
        self.open.iter().any(|name| elements.contains(&name.as_str()))
    }

    fn start(&mut self, name: &str, closed: bool) {
        self.end_run();
        if closed {
            return;
        }
        let opened = if VOID.contains(&name) { &mut self.void } else { &mut self.open };
        opened.push(name.to_owned());
    }

    /// Closes the last element of this name and all within it.
    fn end(&mut self, name: &str) {
        if let Some(at) = self.void.iter().position(|void| void == name) {
            self.void.remove(at);
            return;
        }
        self.end_run();
        if let Some(at) = self.open.iter().rposition(|open| open == name) {
            self.open.truncate(at);
        }
    }
}

struct Reader<'a> {
    source: &'a str,
    position: usize,
    /// The open element whose content is not markup.
    raw: Option<&'static str>,
    text: Text,
}

impl<'a> Reader<'a> {
    /// Reads as far as it can; if `last`, what remains is text.
    fn read(&mut self, last: bool) {
        while self.position < self.source.len() {
            let rest = &self.source[self.position..];
            if let Some(name) = self.raw {
                // An element that never ends hides all that follows.
                let Some((start, end)) = raw_end(rest, name) else { return };
                if start > 0 {
                    self.text.push(&rest[..start]);
                }
                self.text.end(name);
                self.raw = None;
                self.position += end;
                continue;
            }
            let plain = rest.find(['&', '<']).unwrap_or(rest.len());
            if plain > 0 {
                self.text.push(&rest[..plain]);
                self.position += plain;
                continue;
            }
            let step = if rest.starts_with('<') { self.markup(rest, last) } else { self.reference(rest, last) };
            if step.is_break() {
                break;
            }
        }
        if last && self.position < self.source.len() {
            self.text.push(&self.source[self.position..]);
            self.position = self.source.len();
        }
    }

    /// Reads what the `<` at the start of `rest` begins.
    fn markup(&mut self, rest: &'a str, last: bool) -> ControlFlow<()> {
        let length = if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            self.start_tag(rest)
        } else if rest.starts_with("</") {
            self.end_tag(rest)
        } else if rest.starts_with("<!--") {
            self.comment(comment_end(rest))
        } else if rest.starts_with("<![") {
            self.marked_section(rest)
        } else if rest.starts_with("<!") || rest.starts_with("<?") {
            self.comment(rest.find('>').map(|at| at + 1))
        } else if rest.len() > 1 {
            self.text.push("<");
            Some(1)
        } else {
            return ControlFlow::Break(());
        };
        self.position += match length {
            Some(length) => length,
            None if !last => return ControlFlow::Break(()),
            None => {
                // What never ends is text up to the next `>`, or else to the next `<`.
                let length = match (rest.find('>'), rest[1..].find('<')) {
                    (Some(close), _) => close + 1,
                    (None, Some(open)) => open + 1,
                    (None, None) => 1,
                };
                self.text.push(&rest[..length]);
                length
            }
        };
        ControlFlow::Continue(())
    }

    fn comment(&mut self, end: Option<usize>) -> Option<usize> {
        if end.is_some() {
            self.text.end_run();
        }
        end
    }

    fn start_tag(&mut self, rest: &str) -> Option<usize> {
        let found = START_TAG.captures(rest).ok().flatten()?;
        let (tag, name) = (found.get(0)?.as_str(), found.get(1)?.as_str());
        let after = &rest[tag.len()..];
        let (length, closed) = if after.starts_with("/>") {
            (tag.len() + 2, true)
        } else if after.starts_with('>') {
            (tag.len() + 1, found.get(2).is_none() && tag.ends_with('/'))
        } else if after.is_empty() || after.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '=' | '/')) {
            return None;
        } else {
            self.text.push(tag);
            return Some(tag.len());
        };
        self.text.start(name, closed);
        if !closed {
            self.raw = RAW.into_iter().find(|raw| *raw == name);
        }
        Some(length)
    }

    fn end_tag(&mut self, rest: &str) -> Option<usize> {
        let close = rest.find('>')?;
        let content = &rest[2..close];
        let trimmed = content.trim_matches(is_space);
        let is_name = trimmed.starts_with(|c: char| c.is_ascii_alphabetic())
            && trimmed.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_'));
        if is_name {
            self.text.end(trimmed);
        } else if content.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let end = content.find(['\t', '\n', '\r', '\x0c', ' ', '/', '\0']).unwrap_or(content.len());
            self.text.end(&content[..end]);
        } else if !content.is_empty() {
            self.text.end_run();
        }
        Some(close + 1)
    }

    /// `<![keyword[…]]>`, or `<![if …]>` of word processors. CDATA is text, even where text is hidden.
    fn marked_section(&mut self, rest: &str) -> Option<usize> {
        let body = &rest[3..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &body[..body.find(|c: char| !is_name(c)).unwrap_or(body.len())];
        if body[name.len()..].trim_start_matches(is_space).is_empty() {
            return None;
        }
        let brackets = match name {
            "cdata" | "temp" | "ignore" | "include" | "rcdata" => 2,
            "if" | "else" | "endif" => 1,
            _ => return self.comment(rest.find('>').map(|at| at + 1)),
        };
        let (content, end) = body.match_indices('>').find_map(|(at, _)| {
            let mut content = &body[..at];
            for _ in 0..brackets {
                content = content.trim_end_matches(is_space).strip_suffix(']')?;
            }
            Some((content, at + 1))
        })?;
        self.text.end_run();
        if let Some(data) = content.strip_prefix("cdata[") {
            self.text.show(data);
        }
        Some(3 + end)
    }

    /// Reads what the `&` at the start of `rest` begins.
    fn reference(&mut self, rest: &str, last: bool) -> ControlFlow<()> {
        let closed = |length: usize| length + usize::from(rest[length..].starts_with(';'));
        if let Some(after) = rest.strip_prefix("&#") {
            // A number has to end before the end of the text, and not in a hexadecimal digit.
            let number = entities::number(after)
                .filter(|(_, length)| after[*length..].starts_with(|c: char| !c.is_ascii_hexdigit()));
            return match number {
                Some((number, length)) => {
                    self.text.push(entities::numbered(number).encode_utf8(&mut [0; 4]));
                    self.position += closed(2 + length);
                    ControlFlow::Continue(())
                }
                None => {
                    if rest.contains(';') {
                        self.text.push("&#");
                        self.position += 2;
                    }
                    ControlFlow::Break(())
                }
            };
        }

        let after = &rest[1..];
        if after.starts_with(|c: char| c.is_ascii_alphabetic()) {
            let Some(name) = reference_name(after) else {
                if last && rest.len() == 2 {
                    self.position += 1;
                }
                return ControlFlow::Break(());
            };
            match entities::named(name) {
                Some(meaning) => self.text.push(meaning),
                None => self.text.push(&rest[..=name.len()]),
            }
            self.position += closed(1 + name.len());
            ControlFlow::Continue(())
        } else if after.is_empty() {
            ControlFlow::Break(())
        } else {
            self.text.push("&");
            self.position += 1;
            ControlFlow::Continue(())
        }
    }
}

/// A start tag up to its `>` or `/>`: the name, then attributes (group 2 is the last).
static START_TAG: LazyLock<Regex> = LazyLock::new(|| {
    python_regex(concat!(
        r"^<([a-zA-Z][^\t\n\r\f />\x00]*)",
        r#"(?:[\s/]*((?<=['"\s/])[^\s/>][^\s/=>]*"#,
        r#"(?:\s*=+\s*(?:'[^']*'|"[^"]*"|(?!['"])[^>\s]*)\s*)?(?:\s|/(?!>))*)*)?\s*"#,
    ))
});

/// The start and the end, in `text`, of the end tag that a raw element waits for.
fn raw_end(text: &str, name: &str) -> Option<(usize, usize)> {
    text.match_indices("</").find_map(|(start, opening)| {
        let after = text[start + opening.len()..].trim_start_matches(is_space).strip_prefix(name)?;
        let after = after.trim_start_matches(is_space).strip_prefix('>')?;
        Some((start, text.len() - after.len()))
    })
}

/// The end of the comment at the start of `text`: the first `>` after `--`, with or without space between.
fn comment_end(text: &str) -> Option<usize> {
    let ends = |at: usize| text.get(4..at).is_some_and(|body| body.trim_end_matches(is_space).ends_with("--"));
    text.match_indices('>').find(|(at, _)| ends(*at)).map(|(at, _)| at + 1)
}

/// The name at the start of `text`, as long as possible with a character after it that is no letter or digit.
fn reference_name(text: &str) -> Option<&str> {
    match text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.')) {
        Some(end) => Some(&text[..end]),
        None => text.rfind(['-', '.']).map(|end| &text[..end]),
    }
}
