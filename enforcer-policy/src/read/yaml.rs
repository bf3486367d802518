//! Text to documents, strictly and within limits.

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Options, UserMessageFormatter};

use super::limits::Limits;
use super::source::{API_VERSION, Document, KINDS, Spec};
use crate::error::{Location, Problem, Report, list, quote};
use crate::span::{SourceText, Span};

/// Reads all documents of a text. A document that cannot be read is reported, and the next one is tried, until there
/// are more errors than anybody would read.
pub(crate) fn documents(
    source: &SourceText,
    file: usize,
    limits: &Limits,
    report: &mut Report<'_>,
) -> Vec<Document> {
    let mut documents = Vec::new();
    if let Some(line) = one_too_many(&source.text, limits.documents) {
        let column = 1;
        let length = 3;
        let span = Span {
            line,
            column,
            length,
        };
        report.error(Location { file, span }, || limits.too_many_documents());
        return documents;
    }
    let mut bytes = source.text.as_bytes();
    for document in serde_saphyr::read_with_options::<_, Document>(&mut bytes, options(limits)) {
        match document {
            Ok(document) => documents.push(document),
            Err(error) => {
                let span = error.location().map(Span::from).unwrap_or_default();
                let location = Location { file, span };
                let line = report.line(location);
                report.error(location, || {
                    let comma = line.and_then(|line| unquoted_comma(line, span));
                    comma.unwrap_or_else(|| problem(&error, limits))
                });
            }
        }
        if report.is_full() {
            break;
        }
    }
    documents
}

/// The line that begins the first document beyond the limit. A line of `---` begins a document, and another one may
/// follow a line of `...`; YAML gives both this meaning wherever they are in a text, so nothing has to be parsed for
/// it.
fn one_too_many(text: &str, most: usize) -> Option<u32> {
    let is_mark = |line: &str, mark: &str| {
        let rest = line.strip_prefix(mark);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let nth = |mark: &str| {
        let mut marks = text
            .lines()
            .zip(1..)
            .filter(|(line, _)| is_mark(line, mark));
        marks.nth(most).map(|(_, number)| number)
    };
    nth("---").or_else(|| nth("..."))
}

/// Reports that no file has a document.
pub(crate) fn no_document(report: &mut Report<'_>) {
    let location = Location {
        file: 0,
        span: Span::default(),
    };
    report.error(location, || {
        Problem::new("there is no document in this file", document_help())
    });
}

/// Between braces a comma ends a value, so the rest of the sentence is a name without a value.
fn unquoted_comma(line: &str, span: Span) -> Option<Problem> {
    let column = usize::try_from(span.column).ok()?.checked_sub(1)?;
    let start = line.char_indices().nth(column)?.0;
    let (before, rest) = line.split_at_checked(start)?;
    let before = before.trim_end();
    let end = rest.find([',', '}', ':'])?;
    let part = rest[..end].trim_end();
    let is_key = rest[end..].starts_with(':');
    let sentence = before.strip_suffix(',')?.rsplit_once(": ")?.1;
    let is_quoted = sentence.is_empty() || sentence.contains(['"', '\'', '[', '{', '}', ',']);
    if is_key || part.is_empty() || part.contains(['"', '\'', '[', '{']) || is_quoted {
        return None;
    }
    Some(Problem::new(
        format!(
            "{} has no value: the comma before it ended {}",
            quote(part),
            quote(sentence)
        ),
        format!("quote the whole text: `\"{sentence}, {part}\"`"),
    ))
}

/// Checks what all kinds of documents have in common.
pub(crate) fn check_object(document: &Document, file: usize, report: &mut Report<'_>) {
    let at = |span| Location { file, span };
    let start = document
        .kind
        .as_ref()
        .map_or(document.spec_span, |kind| kind.span);
    match &document.api_version {
        Some(version) if version.value == API_VERSION => {}
        Some(version) => report.error(at(version.span), || {
            Problem::new(
                format!("unknown apiVersion {}", quote(&version.value)),
                format!("write `apiVersion: {API_VERSION}`"),
            )
        }),
        None => report.error(at(start), || {
            Problem::new(
                "apiVersion is missing",
                format!("write `apiVersion: {API_VERSION}`"),
            )
        }),
    }
    match &document.metadata {
        Some(metadata) if metadata.value.name.value.trim().is_empty() => {
            report.error(at(metadata.value.name.span), || {
                Problem::new("the name is empty", "write `metadata: { name: NAME }`")
            });
        }
        Some(_) => {}
        None => report.error(at(start), || {
            Problem::new("metadata is missing", "write `metadata: { name: NAME }`")
        }),
    }
    for key in &document.unknown {
        report.error(at(key.span), || {
            Problem::unknown(
                format!("unknown field {}", quote(&key.value)),
                &key.value,
                ["apiVersion", "kind", "metadata", "spec"],
            )
        });
    }
    check_kind(document, start, file, report);
}

fn check_kind(document: &Document, start: Span, file: usize, report: &mut Report<'_>) {
    let at = |span| Location { file, span };
    match (&document.kind, &document.spec) {
        (Some(kind), _) if !KINDS.contains(&kind.value.as_str()) => {
            report.error(at(kind.span), || {
                Problem::unknown(
                    format!("unknown kind {}", quote(&kind.value)),
                    &kind.value,
                    KINDS[..3].iter().copied(),
                )
            });
        }
        (Some(_), Spec::BeforeKind) => report.error(at(document.spec_span), || {
            Problem::new(
                "`spec` stands before `kind`, which says how to read it",
                "write apiVersion, kind, metadata, spec in this order",
            )
        }),
        (Some(_), Spec::Missing) => report.error(at(start), || {
            Problem::new(
                "spec is missing",
                "write `spec:` and what the object says below it",
            )
        }),
        (None, _) => report.error(at(start), || {
            let help = format!(
                "write `kind:` with one of {}, before `spec`",
                list(&KINDS[..3])
            );
            Problem::new("kind is missing", help)
        }),
        (Some(_), _) => {}
    }
}

fn options(limits: &Limits) -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! {
            max_depth: 32,
            flow_nesting_limit: 32,
            max_nodes: limits.values,
            // Each event that begins something has one that ends it.
            max_events: 2 * limits.values + 10_000,
            max_aliases: 1000,
            max_anchors: 1000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
    }
}

/// The library's error in our words, with what to write instead if that can be known.
fn problem(error: &Error, limits: &Limits) -> Problem {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => {
            problem(error, limits)
        }
        Error::SerdeUnknownField {
            field, expected, ..
        } => Problem::unknown(
            format!("unknown field {}", quote(field)),
            field,
            expected.iter().copied(),
        ),
        Error::SerdeMissingField { field, .. } => Problem::new(
            format!("field `{field}` is missing"),
            format!("write `{field}:` here"),
        ),
        Error::DuplicateMappingKey { key, .. } => Problem::new(
            match key {
                Some(key) => format!("{} is here twice", quote(key)),
                None => "a key is here twice".to_owned(),
            },
            "write it once: the second would silently replace the first",
        ),
        Error::InvalidBooleanStrict { .. } => {
            Problem::new("neither true nor false", "write `true` or `false`")
        }
        Error::Unexpected { expected, .. } => unexpected(expected),
        Error::NullIntoString { .. } => {
            Problem::new("there is no value", "write one, or leave the key out")
        }
        Error::SerdeInvalidType {
            unexpected,
            expected,
            ..
        } => Problem {
            message: format!("expected {expected}, found {unexpected}"),
            help: None,
        },
        Error::Budget {
            breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. },
            ..
        } => limits.too_many_values(),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => Problem::new(
            format!("too much, or too deeply nested: {}", text_of(error)),
            "a policy is flat and has few anchors; split the file if it is long",
        ),
        Error::Eof { .. } => Problem::new("the file ends within a document", document_help()),
        _ => Problem {
            message: format!("not readable as YAML: {}", text_of(error)),
            help: None,
        },
    }
}

/// The library names what it expected in YAML's own terms.
fn unexpected(expected: &str) -> Problem {
    match expected {
        "sequence start" => Problem::new(
            "expected a list here",
            "write `[a, b]`, or one `- a` per line",
        ),
        "mapping start" => Problem::new(
            "expected names with values here",
            "write `{ name: value }`, or one `name: value` per line",
        ),
        "string scalar" | "scalar" => Problem::new(
            "expected a single text here",
            "write one value, quoted if need be",
        ),
        other => Problem {
            message: format!("expected {other}"),
            help: None,
        },
    }
}

/// The error's text without the location, which our own report shows first.
fn text_of(error: &Error) -> String {
    let text = error.render_with_formatter(&UserMessageFormatter);
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn document_help() -> String {
    format!("a document starts with `apiVersion: {API_VERSION}` and `kind:`")
}
