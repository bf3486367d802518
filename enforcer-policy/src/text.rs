//! Escapes text that others chose where it is shown: names of processes, cgroups, interfaces and files, and the texts
//! of a policy. A newline would forge a line of a log, an escape sequence would move a terminal's cursor, and a
//! bidirectional control would reorder a line.
//!
//! Everywhere else text is kept as it is. [`shown`] is for text within a line ([`name`] for a subject), [`lines`] for
//! text that has lines of its own, [`json`] for a JSON document. All three escape the same characters, and none escapes
//! backslashes: harmless text stays as it is, such as systemd's `\x2d` in the names of cgroups. So escaping twice
//! changes nothing.

use std::{borrow::Cow, error::Error, fmt::Write as _, path::Path};

/// A name within a line.
pub fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful, visible)
}

/// The name of a subject within a line. A name with spaces is quoted, so that it can not be mistaken for the rest of
/// the sentence.
pub fn name(text: &str) -> Cow<'_, str> {
    let text = shown(text);
    if text.contains([' ', '"']) {
        Cow::Owned(format!("\"{}\"", text.replace('"', "\\\"")))
    } else {
        text
    }
}

/// Text of several lines: newlines stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    let harmful = |c| c != '\n' && is_harmful(c);
    escaped(text, harmful, visible)
}

/// A JSON document. It stays valid and keeps its meaning.
pub fn json(document: &str) -> Cow<'_, str> {
    // A newline can only be between values: within a string it is escaped already.
    let harmful = |c| c != '\n' && is_harmful(c);
    escaped(document, harmful, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    })
}

/// A line of a file that is shown with marks below it: each character stays one character. ASCII controls are left to
/// the code that shows the line.
pub fn excerpt(line: &str) -> String {
    let shown = |c: char| match c.is_ascii() || !is_harmful(c) {
        true => c,
        false => char::REPLACEMENT_CHARACTER,
    };
    line.chars().map(shown).collect()
}

/// The displayed name of a file.
pub fn path(path: &Path) -> String {
    shown(&of_bytes(path.as_os_str().as_encoded_bytes())).into_owned()
}

/// Bytes as text. Those that are not UTF-8 are written as `\xff`.
pub fn of_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// An error with its causes, each printed once, as some errors include their cause.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}

fn escaped(
    text: &str,
    harmful: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.chars().any(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) {
            escape(c, &mut out);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A harmful character as an escape sequence of a programming language.
fn visible(c: char, out: &mut String) {
    match c {
        '\0' | '\t' | '\n' | '\r' => out.extend(c.escape_debug()),
        c => out.extend(c.escape_unicode()),
    }
}

/// Whether a character affects the text around it, or is invisible.
fn is_harmful(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    match c {
        // Letters and marks to Unicode, but without a width (Default_Ignorable_Code_Point).
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => true,
        '\u{180b}'..='\u{180f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' => true,
        '\u{e0100}'..='\u{e01ef}' => true,
        // Controls, formats (such as bidirectional ones and those without a width), separators, and unassigned
        // characters, by the tables of the standard library. Behind a letter, marks are not escaped.
        c => {
            let mut letter_and_it = [0; 5];
            letter_and_it[0] = b'a';
            let length = 1 + c.encode_utf8(&mut letter_and_it[1..]).len();
            str::from_utf8(&letter_and_it[..length])
                .is_ok_and(|text| text.escape_debug().count() > 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARMFUL: [char; 33] = [
        '\0',
        '\t',
        '\n',
        '\r',
        '\u{7}',
        '\u{1b}',
        '\u{7f}',
        '\u{80}',
        '\u{85}',
        '\u{9b}',
        '\u{9f}',
        '\u{ad}',
        '\u{200b}',
        '\u{200c}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202d}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2069}',
        '\u{61c}',
        '\u{feff}',
        '\u{fe0f}',
        '\u{3164}',
        '\u{e000}',
        '\u{e0041}',
        '\u{e0101}',
        '\u{10ffff}',
    ];

    #[test]
    fn what_does_something_to_a_line_is_escaped_and_the_rest_stays() {
        for c in HARMFUL {
            let text = format!("a{c}b");
            let said = shown(&text);
            assert!(!said.contains(c), "{said:?}");
            assert!(said.starts_with("a\\") && said.ends_with('b'), "{said:?}");
            assert_eq!(shown(&said), said, "twice");
            assert_eq!(lines(&text).contains(c), c == '\n', "{c:?}");
        }
        for text in [
            "",
            "system-foo\\x2dbar.slice",
            "it's \"quoted\"",
            "a → b × 3; é, e\u{301}, 中文, हिन्दी, ไทย",
        ] {
            assert!(
                matches!(shown(text), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
        assert_eq!(excerpt("a\u{1b}é\u{2028}b"), "a\u{1b}é\u{fffd}b");
        assert_eq!(shown("a\nb\u{1b}[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
    }

    #[test]
    fn a_name_says_nothing_but_itself() {
        assert_eq!(name("/a/b\\x2d.slice"), "/a/b\\x2d.slice");
        assert_eq!(
            name("a → 10.0.0.1 [NoPath]\n"),
            "\"a → 10.0.0.1 [NoPath]\\n\""
        );
        assert_eq!(name("a\" b"), "\"a\\\" b\"");
    }

    #[test]
    fn json_stays_what_it_is_and_is_harmless_as_text() {
        for c in HARMFUL {
            let value = serde_json::json!({ "a\u{2028}": format!("x{c}y"), "list": [1, "é"] });
            for document in [value.to_string(), format!("{value:#}")] {
                let said = json(&document);
                assert!(!said.chars().any(|c| c != '\n' && is_harmful(c)), "{said}");
                let back: serde_json::Value = serde_json::from_str(&said).unwrap();
                assert_eq!(back, value);
            }
        }
        assert_eq!(json("\"\u{e0041}\u{7f}\""), "\"\\udb40\\udc41\\u007f\"");
    }

    #[test]
    fn bytes_that_are_no_text_are_seen() {
        assert_eq!(
            of_bytes(b"bad\xff\xfename \xe2\x80"),
            "bad\\xff\\xfename \\xe2\\x80"
        );
        assert_eq!(of_bytes("é".as_bytes()), "é");
    }

    #[test]
    fn each_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("failed to open x: {source}")]
        struct Twice {
            source: std::io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("no policy")]
        struct NoPolicy(#[source] Twice);
        let source = std::io::Error::other("no such file");
        let error = NoPolicy(Twice { source });
        assert_eq!(chain(&error.0), "failed to open x: no such file");
        assert_eq!(chain(&error), "no policy: failed to open x: no such file");
    }
}
