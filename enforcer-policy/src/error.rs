//! Errors in a policy: each with its location, an excerpt of the source and what to write instead.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use crate::span::{SourceText, Span};

/// One error of a policy. Serialises to `file`, `line`, `column`, `message` and `help`, of which `line`,
/// `column` and `help` may be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyError {
    /// The file, as it was given.
    pub file: String,
    /// Line, from 1; `None` if the error is about the file as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    about: About,
}

/// The part of a file that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    /// The whole file, or a line that is not shown.
    File,
    /// The file could not be read, so its content is unknown.
    Unreadable,
    /// A line.
    Line(Excerpt),
}

/// The line that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    line: String,
    length: u32,
}

/// How to paint an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// No escape sequences: for files, pipes and `Display`.
    Plain,
    /// With colours: for terminals.
    Coloured,
}

impl PolicyError {
    /// An error about a file as a whole.
    pub fn about_file(file: &str, message: String, help: Option<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            message,
            help,
            about: About::File,
        }
    }

    /// An error about a file that could not be read.
    pub fn unreadable(file: &str, message: String, help: Option<String>) -> Self {
        Self {
            about: About::Unreadable,
            ..Self::about_file(file, message, help)
        }
    }

    /// An error about a file that is longer than [`SourceText::MAX_BYTES`].
    pub fn too_long(file: &str) -> Self {
        Self::about_file(
            file,
            format!(
                "the file is longer than {} MiB",
                SourceText::MAX_BYTES >> 20
            ),
            Some("split it: -p takes several files, or a directory".to_owned()),
        )
    }

    /// An error at a location of a text.
    pub fn at(source: &SourceText, span: Span, problem: Problem) -> Self {
        Self::at_line(
            &source.name,
            Lines::of(&source.text).get(span.line),
            span,
            problem,
        )
    }

    /// An error at a location of a text whose line is known already.
    fn at_line(name: &str, line: Option<&str>, span: Span, problem: Problem) -> Self {
        let Problem { message, help } = problem;
        if !span.is_known() {
            return Self::about_file(name, message, help);
        }
        let excerpt = line.and_then(|line| Excerpt::cut(line, span));
        Self {
            file: name.to_owned(),
            line: Some(span.line),
            column: Some(span.column),
            message,
            help,
            about: excerpt.map_or(About::File, About::Line),
        }
    }

    /// The error as text of several lines, without a newline at the end.
    pub fn render(&self, paint: Paint) -> String {
        let renderer = match paint {
            Paint::Plain => Renderer::plain(),
            Paint::Coloured => Renderer::styled(),
        };
        let mut group: Group<'_> = Level::ERROR
            .primary_title(crate::text::lines(&self.message))
            .element(self.origin());
        if let About::Line(excerpt) = &self.about {
            group = Level::ERROR
                .primary_title(crate::text::lines(&self.message))
                .element(excerpt.snippet(&self.file, self.line, self.column));
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(crate::text::lines(help)));
        }
        renderer.render(&[group])
    }

    fn origin(&self) -> Origin<'_> {
        let origin = Origin::path(self.file.as_str());
        match (self.line, self.column) {
            (Some(line), Some(column)) => origin.line(line as usize).char_column(column as usize),
            _ => origin,
        }
    }
}

impl Excerpt {
    fn cut(line: &str, span: Span) -> Option<Self> {
        (line.len() <= MAX_EXCERPT).then(|| Self {
            line: crate::text::excerpt(line),
            length: span.length,
        })
    }

    fn snippet<'a>(
        &'a self,
        file: &'a str,
        line: Option<u32>,
        column: Option<u32>,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let byte = |chars: usize| {
            self.line
                .char_indices()
                .nth(chars)
                .map_or(self.line.len(), |(index, _)| index)
        };
        let first = column.unwrap_or(1).saturating_sub(1) as usize;
        let start = byte(first);
        // A value of several lines is marked up to the end of its first line.
        let end = byte(first.saturating_add(self.length.max(1) as usize)).max(start);
        Snippet::source(self.line.as_str())
            .line_start(line.unwrap_or(1) as usize)
            .path(file)
            .annotation(AnnotationKind::Primary.span(start..end))
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Paint::Plain))
    }
}

impl std::error::Error for PolicyError {}

/// Everything that is wrong with a policy; never empty. `Display` prints one block per error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PolicyErrors(Vec<PolicyError>);

impl PolicyErrors {
    /// The errors, in the order of files and lines.
    pub fn iter(&self) -> std::slice::Iter<'_, PolicyError> {
        self.0.iter()
    }

    /// Whether a file could not be read, so that its content is unknown.
    pub fn is_unreadable(&self) -> bool {
        self.0.iter().any(|error| error.about == About::Unreadable)
    }

    /// All errors as text; beyond a readable number they are only counted.
    pub fn render(&self, paint: Paint) -> String {
        let mut blocks: Vec<String> = self
            .0
            .iter()
            .take(MAX_SHOWN)
            .map(|error| error.render(paint))
            .collect();
        if self.0.len() > MAX_SHOWN {
            blocks.push(format!("and {} more errors", self.0.len() - MAX_SHOWN));
        }
        blocks.join("\n\n")
    }
}

impl From<PolicyError> for PolicyErrors {
    fn from(error: PolicyError) -> Self {
        Self(vec![error])
    }
}

impl<'a> IntoIterator for &'a PolicyErrors {
    type Item = &'a PolicyError;
    type IntoIter = std::slice::Iter<'a, PolicyError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Paint::Plain))
    }
}

impl std::error::Error for PolicyErrors {}

/// What is wrong, without its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Problem {
    /// A problem and what to write instead.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// Something unknown: the help names the nearest of the known ones, else all of them.
    pub fn unknown<'a>(
        message: String,
        written: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().take(MAX_CANDIDATES).collect();
        let help = match nearest(written, &known) {
            Some(name) => Some(format!("did you mean `{name}`?")),
            None if known.is_empty() => None,
            None => Some(format!("known: {}", list(&known))),
        };
        Self { message, help }
    }
}

/// Where the lines of a text begin: each error is shown with its line, and a text may have thousands of both.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Scans a text once.
    pub fn of(text: &'a str) -> Self {
        let behind = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(behind).collect(),
        }
    }

    /// A line by its number, from 1, without its end.
    pub fn get(&self, number: u32) -> Option<&'a str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let start = *self.starts.get(index)?;
        let end = self.starts.get(index + 1).copied();
        self.text[start..end.unwrap_or(self.text.len())]
            .lines()
            .next()
    }
}

/// Collects errors while a policy is checked, so that a person sees all of them at once.
pub(crate) struct Report<'a> {
    sources: &'a [SourceText],
    /// The lines of each source, computed when the first of them is shown.
    lines: Vec<Option<Lines<'a>>>,
    found: Vec<(usize, Span, PolicyError)>,
}

/// A location in one of the sources.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// Index of the source.
    pub file: usize,
    /// The location within it.
    pub span: Span,
}

impl<'a> Report<'a> {
    pub fn new(sources: &'a [SourceText]) -> Self {
        Self {
            sources,
            lines: sources.iter().map(|_| None).collect(),
            found: Vec::new(),
        }
    }

    /// Adds an error. The problem is computed only while there is room, since a hostile file could otherwise cause a
    /// million searches for the nearest name.
    pub fn error(&mut self, location: Location, problem: impl FnOnce() -> Problem) {
        if self.is_full() {
            return;
        }
        let line = self.line(location);
        let error = match self.sources.get(location.file) {
            Some(source) => PolicyError::at_line(&source.name, line, location.span, problem()),
            None => {
                let Problem { message, help } = problem();
                PolicyError::about_file("(policy)", message, help)
            }
        };
        self.found.push((location.file, location.span, error));
    }

    /// The line of a location.
    pub fn line(&mut self, location: Location) -> Option<&'a str> {
        if !location.span.is_known() {
            return None;
        }
        let source = self.sources.get(location.file)?;
        let lines = self.lines.get_mut(location.file)?;
        let lines = lines.get_or_insert_with(|| Lines::of(&source.text));
        lines.get(location.span.line)
    }

    /// Whether there are more errors than anybody would read.
    pub fn is_full(&self) -> bool {
        self.found.len() >= MAX_COLLECTED
    }

    /// Whether nothing was found so far.
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// The outcome of a check.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, PolicyErrors> {
        self.found.sort_by_key(|(file, span, _)| (*file, *span));
        self.found.dedup();
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => Err(PolicyErrors(
                self.found.into_iter().map(|(.., error)| error).collect(),
            )),
        }
    }
}

/// A user's text within a message: short, and without anything that could move a terminal's cursor.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MAX_QUOTED)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// Names for a sentence: `a`, `b` and `c`, cut to a readable length.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let quoted: Vec<String> = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| quote(name.as_ref()))
        .collect();
    let more = names.len().saturating_sub(MAX_LISTED);
    match quoted.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        all if more > 0 => format!("{} and {more} more", all.join(", ")),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Texts one after the other, cut to a readable length.
pub fn some<S: AsRef<str>>(texts: &[S]) -> String {
    let shown: Vec<&str> = texts
        .iter()
        .take(MAX_LISTED)
        .map(|text| text.as_ref())
        .collect();
    let shown = shown.join(", ");
    match texts.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The known name that was most probably intended.
pub fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    if written.is_empty() || written.len() > MAX_QUOTED {
        return None;
    }
    let folded = written.to_lowercase();
    let length = folded.chars().count();
    known
        .iter()
        .filter_map(|name| {
            let most = (name.len().max(folded.len()) / 3).max(1);
            let other = name.to_lowercase();
            // Each additional character is one more edit, so names that are far longer or shorter are not compared.
            let may_be_near = other.chars().count().abs_diff(length) <= most;
            let distance = may_be_near.then(|| strsim::damerau_levenshtein(&folded, &other))?;
            (distance <= most).then_some((distance, *name))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Longer lines are not shown: they are not readable, and painting them takes time.
const MAX_EXCERPT: usize = 2000;
const MAX_SHOWN: usize = 50;
const MAX_COLLECTED: usize = 1000;
const MAX_QUOTED: usize = 80;
const MAX_LISTED: usize = 20;
const MAX_CANDIDATES: usize = 500;
