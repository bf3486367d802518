//! The documents of a policy: one Inventory and one PathPolicy.

use crate::error::{Location, Problem, Report};
use crate::read::source::{Document, InventorySpec, PathPolicySpec, Spec};
use crate::span::{Span, Spanned};

/// A document of a known kind.
pub(crate) struct Found<T> {
    /// Index of its source.
    pub file: usize,
    /// `metadata.name`.
    pub name: String,
    /// The location of `spec:`.
    pub spec_span: Span,
    /// Its `spec`.
    pub spec: Spanned<T>,
}

/// Both of them, or `None` after reporting which is missing.
pub(crate) fn one_of_each(
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
        let location = Location {
            file,
            span: kind_span,
        };
        match document.spec {
            Spec::Inventory(spec) => {
                inventories.push((
                    location,
                    Found {
                        file,
                        name,
                        spec_span,
                        spec,
                    },
                ));
            }
            Spec::PathPolicy(spec) => policies.push((
                location,
                Found {
                    file,
                    name,
                    spec_span,
                    spec,
                },
            )),
            Spec::Catalogue(_) => report.error(location, || {
                Problem::new(
                    "the catalogue is built in and no input",
                    "declare components in an Inventory and paths in a PathPolicy",
                )
            }),
            Spec::PathCases(_) => report.error(location, || {
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
    found: Vec<(Location, T)>,
    kind: &str,
    twice: &'static str,
    report: &mut Report<'_>,
) -> Option<T> {
    let mut found = found.into_iter();
    let first = found.next();
    for (location, _) in found {
        report.error(location, || Problem::new(format!("a second {kind}"), twice));
    }
    // If a document could not be read, it may have been this one.
    if first.is_none() && report.is_clean() {
        report.error(
            Location {
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

const INVENTORY_TWICE: &str =
    "inventories are not merged: write all nodes and components in one of them";
const POLICY_TWICE: &str = "policies are not merged: pass one at a time, with its paths in it";
