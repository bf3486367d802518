//! Ports that contradict each other: a port of a node has only one meaning.

use std::collections::HashMap;

use crate::error::Problem;
use crate::model::{Component, Node, Port, PortMatch, Roles};
use crate::read::scope::Scope;
use crate::read::source::ComponentSource;
use crate::span::{Entries, Span};

/// Two ports at the same address, of which only one is loopback only: that can not be enforced.
pub(crate) fn check(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ComponentSource>,
    components: &[Component],
    nodes: &[Node],
) {
    let mut by_match: HashMap<PortMatch, Vec<(&Component, &Port)>> = HashMap::new();
    for component in components {
        for port in &component.ports {
            for found in &port.matches {
                by_match.entry(*found).or_default().push((component, port));
            }
        }
    }
    let roles = Roles::of(nodes);
    let mut clashes: Vec<_> = by_match
        .iter()
        .filter_map(|(found, ends)| clash(ends, &roles).map(|(one, other)| (*found, one, other)))
        .collect();
    clashes.sort_by_key(|(found, ..)| *found);
    let spans: HashMap<&str, Span> = entries
        .0
        .iter()
        .map(|(name, _)| (name.value.as_str(), name.span))
        .collect();
    let span_of = |component: &Component| {
        let span = spans.get(component.name.as_str()).copied();
        span.unwrap_or_default()
    };
    for (found, locked, open) in clashes {
        let span = span_of(open.0).or(span_of(locked.0));
        scope.error(span, || {
            Problem::new(
                format!(
                    "`{}:{}` and `{}:{}` are both {found} on one node, and only the first is loopback only",
                    locked.0.name, locked.1.name, open.0.name, open.1.name
                ),
                format!(
                    "give one of them another port, or write `{}: {{ ports: {{ {}: {found} }} }}` to open the first",
                    locked.0.name, locked.1.name
                ),
            )
        });
    }
}

type End<'a> = (&'a Component, &'a Port);

fn clash<'a>(ends: &[End<'a>], roles: &Roles<'_>) -> Option<(End<'a>, End<'a>)> {
    let meet = |a: &Component, b: &Component| {
        let mut kinds = roles.kinds().iter();
        kinds.any(|node| a.runs_on(node) && b.runs_on(node))
    };
    let locked = ends
        .iter()
        .filter(|(component, port)| component.guard && port.loopback_only)
        .take(MAX_COMPARED);
    let open = || ends.iter().filter(|(_, port)| !port.loopback_only);
    locked
        .flat_map(|one| open().map(move |other| (*one, *other)))
        .find(|(one, other)| meet(one.0, other.0))
}

/// How many components with the same loopback-only port are compared with the others.
const MAX_COMPARED: usize = 64;
