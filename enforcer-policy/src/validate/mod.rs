//! Texts to a valid policy. Checks continue after an error, so that all errors are reported at once; checks that depend
//! on something broken are skipped silently.

mod documents;
mod inventory;
mod networks;
mod overlap;
mod paths;
mod ports;
pub(crate) mod warnings;
mod wide;

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use crate::catalogue::Catalogue;
use crate::error::{PolicyError, PolicyErrors, Problem, Report};
use crate::model::{Component, Policy};
use crate::read::limits::{LIMITS, Limits};
use crate::read::scope::Scope;
use crate::read::source::{Document, InventorySpec};
use crate::read::yaml;
use crate::span::{SourceText, Spanned};
use documents::one_of_each;
use paths::Required;

/// Reads a policy from the texts of its files, and checks it.
pub fn from_texts(sources: &[SourceText]) -> Result<Policy, PolicyErrors> {
    from_texts_within(sources, &LIMITS)
}

/// The same, with other limits.
pub(crate) fn from_texts_within(
    sources: &[SourceText],
    limits: &Limits,
) -> Result<Policy, PolicyErrors> {
    let mut report = Report::new(sources);
    let mut documents = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        if source.text.len() as u64 > SourceText::MAX_BYTES {
            return Err(PolicyError::too_long(&source.name).into());
        }
        for mut document in yaml::documents(source, file, limits, &mut report) {
            yaml::check_object(&document, file, &mut report);
            limits.check(&mut document, file, &mut report);
            documents.push((file, document));
        }
    }
    // In a folder, a file with nothing but comments is not part of the policy.
    if documents.is_empty() && !sources.is_empty() && report.is_clean() {
        yaml::no_document(&mut report);
    }
    let policy = policy(sources, documents, &mut report);
    report.finish(policy)
}

/// Checks all documents together. `None` if something was reported.
fn policy(
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
        warnings: Vec::new(),
        wide_senders: Vec::new(),
        digest: digest(sources, catalogue),
    };
    let mut scope = Scope {
        file: path_policy.file,
        report,
    };
    require(&mut scope, &policy, &chosen.requires);
    policy.wide_senders = wide::senders(&policy);
    policy.warnings = warnings::of(&policy, &placed.declared, catalogue);
    Some(policy)
}

/// Components that an option guards are guarded, unless the inventory says otherwise.
fn guard(components: &mut [Component], names: &[String], inventory: &InventorySpec) {
    let says = inventory.components.0.iter();
    let says = says.filter(|(_, source)| source.value.guard.is_some());
    let said: HashSet<&str> = says.map(|(name, _)| name.value.as_str()).collect();
    for component in components {
        let is_said = said.contains(component.name.as_str());
        component.guard |= names.contains(&component.name) && !is_said;
    }
}

/// Components that an option places outside are there, unless the inventory says where. A sender from anywhere outside
/// counts as a component only if that is what the component is for: an apiserver with unknown addresses can be reached,
/// but strangers do not count as apiservers.
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

/// Components that a profile or an option requires must be placed.
fn require(scope: &mut Scope<'_, '_>, policy: &Policy, required: &[Required]) {
    let located = warnings::Located::of(policy);
    for Required {
        component: name,
        by,
        span,
    } in required
    {
        let Some(component) = policy.component(name) else {
            continue;
        };
        if !located.is_inert(component) {
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

/// The digest covers the catalogue, too: with another one the same files would mean something else.
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
