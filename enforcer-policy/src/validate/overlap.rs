//! Patterns that overlap: the narrower wins, and if neither is narrower, it is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::error::{Problem, list, quote};
use crate::glob::{Glob, is_rather_uplink};
use crate::model::{Component, Node, Roles};
use crate::read::scalar;
use crate::read::scope::Scope;
use crate::read::source::ComponentSource;
use crate::span::{Entries, Span, Spanned};

/// No interface may be both an uplink and a pod's. A pattern that is narrower than the other decides.
///
/// Most nodes have the same patterns, so correct ones are checked only once.
#[derive(Default)]
pub(crate) struct Interfaces<'a> {
    /// Uplinks and pods' interfaces of nodes that were correct.
    clear: HashSet<(Vec<&'a str>, Vec<&'a str>)>,
    effort: usize,
}

impl<'a> Interfaces<'a> {
    /// Checks the patterns of one node.
    pub fn check(
        &mut self,
        scope: &mut Scope<'_, '_>,
        uplinks: &'a [Spanned<String>],
        pods: &'a [Spanned<String>],
    ) {
        if let Some(text) = uplinks.iter().chain(pods).nth(MAX_INTERFACE_PATTERNS) {
            scope.error(text.span, || {
                Problem::new(
                    format!(
                        "more than {MAX_INTERFACE_PATTERNS} patterns for the interfaces of one node"
                    ),
                    "write globs such as `cali*`",
                )
            });
            return;
        }
        let texts = |texts: &'a [Spanned<String>]| texts.iter().map(|text| &*text.value).collect();
        let key = (texts(uplinks), texts(pods));
        if self.effort > MAX_EFFORT || self.clear.contains(&key) {
            return;
        }
        let globs = |texts: &[Spanned<String>]| -> Vec<(Glob, Span)> {
            let valid = texts
                .iter()
                .filter(|text| scalar::interface(&text.value).is_ok());
            let globs = valid.filter_map(|text| Some((Glob::new(&text.value).ok()?, text.span)));
            globs.collect()
        };
        let uplinks = globs(uplinks);
        let mut is_clear = true;
        for (pod, span) in globs(pods) {
            for (uplink, _) in &uplinks {
                self.effort += pod.effort(uplink);
                if self.effort > MAX_EFFORT {
                    scope.error(span, || {
                        Problem::new(
                            "too many patterns for interfaces to find out which of them overlap",
                            "write the same few globs for all nodes, such as `eth*` and `cali*`",
                        )
                    });
                    return;
                }
                if let Some(common) = clash(uplink, &pod) {
                    scope.error(span, || unclear(uplink, &pod, &common));
                    is_clear = false;
                    break;
                }
            }
        }
        if is_clear {
            self.clear.insert(key);
        }
    }
}

/// A name that both match, if neither is narrower.
fn clash(uplink: &Glob, pod: &Glob) -> Option<String> {
    let common = pod.common(uplink)?;
    // Interfaces have no longer names than this.
    let exists =
        (1..=scalar::MAX_INTERFACE_NAME).contains(&common.len()) || pod.as_str() == uplink.as_str();
    let is_decided = || is_rather_uplink(uplink, pod) || is_rather_uplink(pod, uplink);
    (exists && !is_decided()).then_some(common)
}

fn unclear(uplink: &Glob, pod: &Glob, common: &str) -> Problem {
    if uplink.as_str() == pod.as_str() {
        return Problem::new(
            format!("{} is an uplink and a pod's interface", quote(pod.as_str())),
            "an uplink leads to other hosts, a pod's interface to one pod: leave one of them out",
        );
    }
    Problem::new(
        format!(
            "{} and the uplinks' {} both match {}, and neither is narrower",
            quote(pod.as_str()),
            quote(uplink.as_str()),
            quote(common)
        ),
        "an uplink leads to other hosts, a pod's interface to one pod: write names, or globs of which one \
         matches only what the other does, too; then the narrower wins",
    )
}

/// A pattern, and the component that declares it.
struct Declared<'a> {
    text: &'a str,
    /// Where it was written last.
    span: Span,
    segments: Vec<Glob>,
    components: BTreeSet<usize>,
}

/// A cgroup that two patterns of one depth match belongs to the narrower one. If neither is narrower, it would be
/// arbitrary which component its processes are.
pub(crate) fn check_cgroups(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ComponentSource>,
    components: &[Component],
    nodes: &[Node],
) {
    let indices: HashMap<&str, usize> = components
        .iter()
        .enumerate()
        .map(|(index, component)| (component.name.as_str(), index))
        .collect();
    let roles = Roles::of(nodes);
    let mut globs: BTreeMap<&str, Declared<'_>> = BTreeMap::new();
    for (name, source) in &entries.0 {
        let Some(&index) = indices.get(name.value.as_str()) else {
            continue;
        };
        for text in source.value.cgroups.iter().flatten() {
            // A plain path is narrower than any glob that matches it.
            if !text.value.contains(['*', '?', '[']) || scalar::cgroup_pattern(&text.value).is_err()
            {
                continue;
            }
            let declared = globs.entry(&text.value).or_insert_with(|| Declared {
                text: &text.value,
                span: text.span,
                segments: text
                    .value
                    .split('/')
                    .skip(1)
                    .map(Glob::or_literal)
                    .collect(),
                components: BTreeSet::new(),
            });
            declared.components.insert(index);
            declared.span = declared.span.max(text.span);
        }
    }
    let mut by_depth: BTreeMap<usize, Vec<&Declared<'_>>> = BTreeMap::new();
    for declared in globs.values() {
        by_depth
            .entry(declared.segments.len())
            .or_default()
            .push(declared);
    }
    let mut effort = 0;
    for patterns in by_depth.values() {
        for (at, one) in patterns.iter().enumerate() {
            for other in &patterns[at + 1..] {
                effort += one.effort(other);
                if effort > MAX_EFFORT {
                    scope.error(one.span, || {
                        Problem::new(
                            "too many globs for cgroups to find out which of them overlap",
                            "write cgroups out, or begin the globs with what differs",
                        )
                    });
                    return;
                }
                let common = one.clash(other).filter(|_| {
                    effort += roles.kinds().len();
                    one.differs(other, components, roles.kinds())
                });
                if let Some(common) = common {
                    let (first, second) = match one.span <= other.span {
                        true => (one, other),
                        false => (other, one),
                    };
                    scope.error(second.span, || {
                        ambiguous(first, second, &common, components)
                    });
                }
            }
        }
    }
}

fn ambiguous(
    first: &Declared<'_>,
    second: &Declared<'_>,
    common: &str,
    components: &[Component],
) -> Problem {
    let names = |declared: &Declared<'_>| {
        let names: Vec<&str> = declared
            .components
            .iter()
            .filter_map(|index| components.get(*index))
            .map(|component| component.name.as_str())
            .collect();
        list(&names)
    };
    Problem::new(
        format!(
            "{} of {} and {} of {} (line {}) both match a cgroup such as {}, and neither is narrower",
            quote(second.text),
            names(second),
            quote(first.text),
            names(first),
            first.span.line,
            quote(common)
        ),
        "write one of them in full, or extend both until they differ (`*-pod1234.slice`): of two patterns at one depth \
         the narrower wins, the one whose cgroups the other matches too",
    )
}

impl Declared<'_> {
    fn effort(&self, other: &Self) -> usize {
        let pairs = self.segments.iter().zip(&other.segments);
        pairs.map(|(one, other)| one.effort(other)).sum()
    }

    /// A cgroup that both match, if neither pattern is narrower.
    fn clash(&self, other: &Self) -> Option<String> {
        if self.components == other.components {
            return None;
        }
        let pairs = self.segments.iter().zip(&other.segments);
        let common: Option<Vec<String>> = pairs.map(|(one, other)| one.common(other)).collect();
        let common = common?;
        if self.is_within(other) != other.is_within(self) {
            return None;
        }
        // A segment can only be empty because of stars, and no cgroup has an empty name.
        let shown = common.into_iter().map(|name| match name.is_empty() {
            true => "a".to_owned(),
            false => name,
        });
        Some(format!("/{}", shown.collect::<Vec<_>>().join("/")))
    }

    fn is_within(&self, other: &Self) -> bool {
        let mut pairs = self.segments.iter().zip(&other.segments);
        pairs.all(|(one, other)| one.is_within(other))
    }

    /// Whether both are declared on some node, by different components. One node of each kind is checked.
    fn differs(&self, other: &Self, components: &[Component], kinds: &[&Node]) -> bool {
        let on = |declared: &Self, node: &Node| -> BTreeSet<usize> {
            let may_be_here = |index: &&usize| {
                let component = components.get(**index);
                component.is_some_and(|c| c.runs_on.is_empty() || c.runs_on(node))
            };
            declared
                .components
                .iter()
                .filter(may_be_here)
                .copied()
                .collect()
        };
        kinds.iter().any(|node| {
            let (one, other) = (on(self, node), on(other, node));
            !one.is_empty() && !other.is_empty() && one != other
        })
    }
}

/// How many positions in patterns are compared at most, so that no file takes long.
const MAX_EFFORT: usize = 2_000_000;
const MAX_INTERFACE_PATTERNS: usize = 256;
