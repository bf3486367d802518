//! How much a document may hold, by its kind. All work on a policy grows linearly with its content, so these limits
//! bound it; an error names the limit that was exceeded. `enforcer_common::limits` bounds what the kernel's tables
//! hold.

use super::source::{Document, InventorySpec, PathCasesSpec, PathPolicySpec, Spec};
use crate::error::{Location, Problem, Report};
use crate::span::Span;

/// The limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Documents in a file. A policy has two; a file of cases has one for each node that judges.
    pub documents: usize,
    /// Texts, lists and mappings in a document of any kind: an Inventory of 15,000 nodes with addresses and pods of both
    /// families has 300,000.
    pub values: usize,
    /// Nodes of an Inventory.
    pub nodes: usize,
    /// Components of an Inventory.
    pub components: usize,
    /// Paths in a PathPolicy, without those of the catalogue.
    pub paths: usize,
    /// Names in a PathPolicy's lists of options and paths, and in the `from` of its paths.
    pub names: usize,
    /// Cases of a PathCases document.
    pub cases: usize,
}

/// Components of an Inventory, with those of the catalogue.
pub(crate) const MAX_COMPONENTS: usize = 4096;

/// The limits in use everywhere except in tests of the limits.
pub(crate) const LIMITS: Limits = Limits {
    documents: 1024,
    values: 1_000_000,
    nodes: 65_536,
    components: MAX_COMPONENTS,
    paths: enforcer_common::limits::MAX_PATHS as usize,
    names: 65_536,
    cases: 10_000,
};

type Exceeded = Option<(Span, Problem)>;

impl Limits {
    /// Reports what exceeds a limit, and removes it from the document, so that no more work is spent on it.
    pub fn check(&self, document: &mut Document, file: usize, report: &mut Report<'_>) {
        let exceeded = match &document.spec {
            Spec::Inventory(spec) => self.inventory(&spec.value),
            Spec::PathPolicy(spec) => self.path_policy(&spec.value),
            Spec::PathCases(spec) => self.path_cases(&spec.value),
            Spec::Catalogue(_) | Spec::Missing | Spec::BeforeKind | Spec::UnknownKind => None,
        };
        if let Some((span, problem)) = exceeded {
            let span = span.or(document.spec_span);
            report.error(Location { file, span }, || problem);
            document.spec = Spec::Missing;
        }
    }

    /// The problem of a document with too many values. Its kind is not known before all of it is read.
    pub fn too_many_values(&self) -> Problem {
        let Self {
            values,
            nodes,
            components,
            paths,
            cases,
            ..
        } = self;
        Problem::new(
            format!("a document has more than {values} texts, lists and mappings"),
            format!(
                "that is the most for any kind. Of those, an Inventory may have {nodes} nodes and {components} components, a \
                 PathPolicy {paths} paths, PathCases {cases} cases. Name networks instead of their addresses, and put \
                 cases into several documents"
            ),
        )
    }

    /// The problem of a file with too many documents.
    pub fn too_many_documents(&self) -> Problem {
        Problem::new(
            format!("more than {} documents in one file", self.documents),
            "a policy is one Inventory and one PathPolicy; put PathCases into several files",
        )
    }

    fn inventory(&self, spec: &InventorySpec) -> Exceeded {
        let (count, most) = (spec.nodes.0.len(), self.nodes);
        if let Some((name, _)) = spec.nodes.0.get(most) {
            let problem = Problem::new(
                format!("an Inventory of {count} nodes; {most} is the most"),
                "a component with the network of their addresses stands for nodes that need no more than that",
            );
            return Some((name.span, problem));
        }
        let (count, most) = (spec.components.0.len(), self.components);
        let (name, _) = spec.components.0.get(most)?;
        let problem = Problem::new(
            format!("an Inventory of {count} components; {most} is the most"),
            "declare one component for parties that may do the same",
        );
        Some((name.span, problem))
    }

    fn path_policy(&self, spec: &PathPolicySpec) -> Exceeded {
        let (count, most) = (spec.paths.len(), self.paths);
        if let Some(path) = spec.paths.get(most) {
            let problem = Problem::new(
                format!("a PathPolicy of {count} paths; {most} is the most"),
                "a path may be from several components, and a port of a component may be several ports",
            );
            return Some((path.value.name.span, problem));
        }
        let lists = spec.options.len() + spec.enable.len() + spec.disable.len();
        let senders = spec.paths.iter().map(|path| path.value.from.len());
        let names = senders.fold(lists, usize::saturating_add);
        let problem = || {
            Problem::new(
                format!(
                    "a PathPolicy with {names} names in `options`, `enable`, `disable` and `from`; {} is the most",
                    self.names
                ),
                "declare one component for parties that may do the same, with `partOf` for those that are part of it",
            )
        };
        (names > self.names).then(|| (Span::default(), problem()))
    }

    fn path_cases(&self, spec: &PathCasesSpec) -> Exceeded {
        let (count, most) = (spec.cases.len(), self.cases);
        let case = spec.cases.get(most)?;
        let problem = Problem::new(
            format!("PathCases of {count} cases; {most} is the most"),
            "put them into several documents: a file may have many",
        );
        Some((case.value.name.span, problem))
    }
}
