//! Reports the problems of a document while it is read, and has checks that several readers share.

use std::collections::HashSet;

use crate::error::{Location, Problem, Report, list, quote};
use crate::span::{Span, Spanned};

/// Collects the errors of one document.
pub(crate) struct Scope<'r, 's> {
    /// Index of the document's source.
    pub file: usize,
    /// The collected errors.
    pub report: &'r mut Report<'s>,
}

impl Scope<'_, '_> {
    /// Reports a problem.
    pub fn error(&mut self, span: Span, problem: impl FnOnce() -> Problem) {
        self.report.error(
            Location {
                file: self.file,
                span,
            },
            problem,
        );
    }

    /// The value; reports its problem if there is one.
    pub fn ok<T>(&mut self, span: Span, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.error(span, || problem)).ok()
    }
}

/// Reports a value that is not one of the known ones.
pub(crate) fn choice<T>(
    scope: &mut Scope<'_, '_>,
    field: &str,
    text: &Spanned<String>,
    known: [&'static str; 2],
    read: fn(&str) -> Option<T>,
) -> Option<T> {
    let value = read(&text.value);
    if value.is_none() {
        scope.error(text.span, || {
            let message = format!(
                "{} is no {field}; it is one of {}",
                quote(&text.value),
                list(&known)
            );
            Problem::unknown(message, &text.value, known)
        });
    }
    value
}

/// Reads each text of a list and reports duplicates.
pub(crate) fn unique<T: PartialEq>(
    scope: &mut Scope<'_, '_>,
    texts: &[Spanned<String>],
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Vec<T> {
    let mut written = HashSet::new();
    let mut values = Vec::new();
    for text in texts {
        if !written.insert(text.value.as_str()) {
            scope.error(text.span, || twice(&text.value));
        } else if let Some(value) = scope.ok(text.span, read(&text.value)) {
            values.push(value);
        }
    }
    values
}

/// The problem of a duplicate in a list.
pub(crate) fn twice(text: &str) -> Problem {
    Problem::new(format!("{} is here twice", quote(text)), "write it once")
}
