//! Documents to a valid policy. Every check goes on after an error, so that a person sees all of them
//! at once; what depends on something broken is left out quietly.

pub(crate) mod components;
pub(crate) mod inventory;
pub(crate) mod networks;
pub(crate) mod notes;
pub(crate) mod overlap;
pub(crate) mod paths;
pub(crate) mod wide;

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::catalogue::Catalogue;
use super::error::{Place, Problem, Report, list};
use super::load::SourceText;
use super::model::{Component, Policy};
use super::source::{Document, InventorySpec, PathPolicySpec, Spec};
use super::span::{Span, Spanned};
use paths::Required;

/// Checks all documents together. `None` if something was reported.
pub(crate) fn policy(
    sources: &[SourceText],
    documents: Vec<(usize, Document)>,
    report: &mut Report<'_>,
) -> Option<Policy> {
    let (inventory, path_policy) = one_of_each(documents, report)?;
    let catalogue = Catalogue::builtin();
    let mut scope = Scope {
        file: inventory.file,
        report,
    };
    let mut placed = inventory::read(&mut scope, &inventory.spec, catalogue);

    let mut scope = Scope {
        file: path_policy.file,
        report,
    };
    let name = sources
        .get(path_policy.file)
        .map_or("", |source| &source.name);
    let chosen = paths::read(
        &mut scope,
        name,
        &path_policy,
        catalogue,
        &placed.components,
    );
    guard(&mut placed.components, &chosen.guard, &inventory.spec.value);
    place_outside(&mut placed.components, &chosen.outside, catalogue);
    if !report.is_clean() {
        return None;
    }
    let written = &path_policy.spec.value;
    let texts = |list: &[Spanned<String>]| list.iter().map(|text| text.value.clone()).collect();
    let mut policy = Policy {
        name: path_policy.name,
        profile: written.profile.as_ref().map(|text| text.value.clone()),
        options: texts(&written.options),
        disabled: texts(&written.disable),
        mode: chosen.mode?,
        other_traffic: chosen.other_traffic?,
        tls_lock: chosen.tls_lock,
        nodes: placed.nodes,
        pod_networks: placed.pod_networks,
        service_networks: placed.service_networks,
        components: placed.components,
        services: placed.services,
        paths: chosen.paths,
        notes: Vec::new(),
        wide_senders: Vec::new(),
        digest: digest(sources, catalogue),
    };
    let mut scope = Scope {
        file: path_policy.file,
        report,
    };
    require(&mut scope, &policy, &chosen.requires);
    policy.wide_senders = wide::senders(&policy);
    policy.notes = notes::of(&policy, &placed.declared, catalogue);
    Some(policy)
}

/// What an option guards is guarded, unless the inventory says otherwise.
fn guard(components: &mut [Component], names: &[String], inventory: &InventorySpec) {
    let says = inventory.components.0.iter();
    let says = says.filter(|(_, source)| source.value.guard.is_some());
    let said: HashSet<&str> = says.map(|(name, _)| name.value.as_str()).collect();
    for component in components {
        let is_said = said.contains(component.name.as_str());
        component.guard |= names.contains(&component.name) && !is_said;
    }
}

/// What an option places outside is there, unless the inventory says where. And who is anywhere outside is taken for a
/// component only where that is the component's meaning: an apiserver whose addresses nobody knows can be reached, and
/// makes no strangers into apiservers.
fn place_outside(components: &mut [Component], names: &[String], catalogue: &Catalogue) {
    for component in components {
        let is_placed = !component.addresses.is_empty() || !component.cgroups.is_empty();
        component.outside |= names.contains(&component.name) && !is_placed;
        let is_documented = catalogue
            .components()
            .iter()
            .any(|known| known.name == component.name);
        component.only_receives_outside =
            component.outside && is_documented && !catalogue.is_for_strangers(&component.name);
    }
}

/// What a profile or an option can not do without must be somewhere.
fn require(scope: &mut Scope<'_, '_>, policy: &Policy, required: &[Required]) {
    let places = notes::Places::of(policy);
    for Required {
        component: name,
        by,
        span,
    } in required
    {
        let Some(component) = policy.component(name) else {
            continue;
        };
        if !places.is_inert(component) {
            continue;
        }
        let help = match component.runs_on.as_slice() {
            [] => format!(
                "write `{name}: {{ addresses: [ADDRESS] }}`, or `cgroups: [PATH]` for processes of the nodes, under \
                 `components` in the Inventory"
            ),
            roles => format!(
                "give a node `roles: [{}]` in the Inventory",
                roles.join(", ")
            ),
        };
        scope.error(*span, || {
            Problem::new(format!("{by} needs `{name}`, which is nowhere"), help)
        });
    }
}

/// Where errors go while one document is checked.
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
            Place {
                file: self.file,
                span,
            },
            problem,
        );
    }

    /// The value, or its problem reported.
    pub fn ok<T>(&mut self, span: Span, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.error(span, || problem)).ok()
    }
}

/// A document of a known kind.
pub(crate) struct Found<T> {
    /// Index of its source.
    pub file: usize,
    /// `metadata.name`.
    pub name: String,
    /// The place of `spec:`.
    pub spec_span: Span,
    /// What it says.
    pub spec: Spanned<T>,
}

fn one_of_each(
    documents: Vec<(usize, Document)>,
    report: &mut Report<'_>,
) -> Option<(Found<InventorySpec>, Found<PathPolicySpec>)> {
    let (mut inventories, mut policies) = (Vec::new(), Vec::new());
    for (file, document) in documents {
        let name = document
            .metadata
            .map(|metadata| metadata.value.name.value)
            .unwrap_or_default();
        let spec_span = document.spec_span;
        let kind_span = document.kind.map_or(spec_span, |kind| kind.span);
        let place = Place {
            file,
            span: kind_span,
        };
        match document.spec {
            Spec::Inventory(spec) => {
                inventories.push((
                    place,
                    Found {
                        file,
                        name,
                        spec_span,
                        spec,
                    },
                ));
            }
            Spec::PathPolicy(spec) => policies.push((
                place,
                Found {
                    file,
                    name,
                    spec_span,
                    spec,
                },
            )),
            Spec::Catalogue(_) => report.error(place, || {
                Problem::new(
                    "the catalogue is built in and no input",
                    "declare components in an Inventory and paths in a PathPolicy",
                )
            }),
            Spec::PathCases(_) => report.error(place, || {
                Problem::new(
                    "PathCases are a policy's tests and no part of it",
                    "put them in a file NAME.cases.yaml and pass it with --cases",
                )
            }),
            Spec::Missing | Spec::BeforeKind | Spec::UnknownKind => {}
        }
    }
    let inventory = single(inventories, "Inventory", INVENTORY_TWICE, report);
    let policy = single(policies, "PathPolicy", POLICY_TWICE, report);
    inventory.zip(policy)
}

fn single<T>(
    found: Vec<(Place, T)>,
    kind: &str,
    twice: &'static str,
    report: &mut Report<'_>,
) -> Option<T> {
    let mut found = found.into_iter();
    let first = found.next();
    for (place, _) in found {
        report.error(place, || Problem::new(format!("a second {kind}"), twice));
    }
    // If something could not be read, that may have been it.
    if first.is_none() && report.is_clean() {
        report.error(
            Place {
                file: 0,
                span: Span::default(),
            },
            || {
                Problem::new(
                    format!("there is no {kind} in the input"),
                    "a policy is one Inventory and one PathPolicy, in one file or in several",
                )
            },
        );
    }
    first.map(|(_, found)| found)
}

/// The catalogue counts, too: with another one the same files would mean something else.
fn digest(sources: &[SourceText], catalogue: &Catalogue) -> String {
    let mut hash = Sha256::new();
    let texts = sources.iter().map(|source| source.text.as_str());
    for text in texts.chain([catalogue.text()]) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reports a value that is none of the known ones.
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
                super::error::quote(&text.value),
                list(&known)
            );
            Problem::unknown(message, &text.value, known)
        });
    }
    value
}

const INVENTORY_TWICE: &str =
    "inventories are not merged: write all nodes and components in one of them";
const POLICY_TWICE: &str = "policies are not merged: pass one at a time, with its paths in it";
