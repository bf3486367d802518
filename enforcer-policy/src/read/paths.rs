//! Paths, from the catalogue and from policies alike.

use std::collections::{HashMap, HashSet};

use super::components::{unknown, unknown_port};
use super::scalar;
use super::scope::{Scope, choice, twice};
use super::source::{LOCALITIES, MODES, PathSource, TLS};
use crate::error::{Problem, quote};
use crate::model::{Component, Locality, Path};
use crate::span::Spanned;

/// Components by name.
pub(crate) struct Index<'a> {
    all: &'a [Component],
    by_name: HashMap<&'a str, &'a Component>,
}

impl<'a> Index<'a> {
    pub fn of(all: &'a [Component]) -> Self {
        let by_name = all
            .iter()
            .map(|component| (component.name.as_str(), component))
            .collect();
        Self { all, by_name }
    }

    pub fn get(&self, name: &str) -> Option<&'a Component> {
        self.by_name.get(name).copied()
    }
}

/// Reads one path. `None` if its ends are not known.
pub(crate) fn read_path(
    scope: &mut Scope<'_, '_>,
    source: &Spanned<PathSource>,
    index: &Index<'_>,
    origin: String,
) -> Option<Path> {
    let PathSource {
        name,
        from,
        to,
        loopback,
        locality,
        tls,
        mode,
        because,
        symptom,
        document,
        since,
        until,
    } = &source.value;
    scope.ok(name.span, scalar::name(&name.value, "path"));
    let from = read_from(scope, name, from, index);
    let to = read_to(scope, name, to.as_ref(), index);
    let text = |text: &Option<Spanned<String>>| {
        text.as_ref()
            .map(|text| text.value.trim().to_owned())
            .unwrap_or_default()
    };
    if text(because).is_empty() {
        let span = because.as_ref().map_or(name.span, |because| because.span);
        scope.error(span, || {
            Problem::new(
                format!("path {} does not say why it is there", quote(&name.value)),
                "write `because: \"…\"` for whoever reads the policy next",
            )
        });
    }
    let locality = locality
        .as_ref()
        .and_then(|text| choice(scope, "locality", text, LOCALITIES, scalar::locality))
        .unwrap_or(Locality::Any);
    let tls = tls
        .as_ref()
        .and_then(|text| choice(scope, "tls", text, TLS, scalar::tls))
        .unwrap_or(false);
    let mode = mode
        .as_ref()
        .and_then(|text| choice(scope, "mode", text, MODES, scalar::mode));
    check_versions(scope, since.as_ref(), until.as_ref());
    let (to_component, to_port) = to?;
    Some(Path {
        name: name.value.clone(),
        from,
        to_component,
        to_port,
        loopback: *loopback,
        locality,
        tls,
        mode,
        because: text(because),
        document: text(document),
        symptom: text(symptom),
        since: text(since),
        until: text(until),
        origin,
    })
}

fn check_versions(
    scope: &mut Scope<'_, '_>,
    since: Option<&Spanned<String>>,
    until: Option<&Spanned<String>>,
) {
    let mut read = |text: Option<&Spanned<String>>| {
        text.and_then(|text| scope.ok(text.span, scalar::version(&text.value)))
    };
    if let (Some(first), Some(last)) = (read(since), read(until))
        && first >= last
        && let Some(until) = until
    {
        scope.error(until.span, || {
            Problem::new(
                "the path ends before it begins",
                "`since` is the first version that has it, `until` the first that has it no more",
            )
        });
    }
}

fn read_from(
    scope: &mut Scope<'_, '_>,
    path: &Spanned<String>,
    from: &[Spanned<String>],
    index: &Index<'_>,
) -> Vec<String> {
    if from.is_empty() {
        scope.error(path.span, || {
            Problem::new(
                format!("path {} is for nobody", quote(&path.value)),
                "write `from: [component]` with at least one component",
            )
        });
    }
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for name in from {
        if index.get(&name.value).is_none() {
            scope.error(name.span, || unknown(&name.value, index.all));
        } else if !seen.insert(&name.value) {
            scope.error(name.span, || twice(&name.value));
        } else {
            names.push(name.value.clone());
        }
    }
    names
}

fn read_to(
    scope: &mut Scope<'_, '_>,
    path: &Spanned<String>,
    to: Option<&Spanned<String>>,
    index: &Index<'_>,
) -> Option<(String, String)> {
    let Some(to) = to else {
        scope.error(path.span, || {
            Problem::new(
                format!("path {} leads nowhere", quote(&path.value)),
                "write `to: component:port`",
            )
        });
        return None;
    };
    let (component, port) = match scalar::endpoint(&to.value) {
        Ok(endpoint) => endpoint,
        Err(problem) => {
            scope.error(to.span, || endpoint_help(problem, &to.value, index));
            return None;
        }
    };
    let Some(known) = index.get(component) else {
        scope.error(to.span, || unknown(component, index.all));
        return None;
    };
    if known.port(port).is_none() {
        scope.error(to.span, || unknown_port(port, known));
        return None;
    }
    Some((component.to_owned(), port.to_owned()))
}

/// A reference without a port most often means the component's only port, or must choose one.
fn endpoint_help(problem: Problem, written: &str, index: &Index<'_>) -> Problem {
    match index.get(written) {
        Some(component) if !component.ports.is_empty() => {
            let ends: Vec<String> = component
                .ports
                .iter()
                .map(|port| format!("`{written}:{}`", port.name))
                .collect();
            Problem {
                help: Some(format!("write {}", ends.join(" or "))),
                ..problem
            }
        }
        _ => problem,
    }
}
