//! Warnings: what is not an error but should be known. The worst policy is one that is valid and has no effect.

use std::collections::{HashMap, HashSet};

use crate::catalogue::Catalogue;
use crate::error::{list, nearest};
use crate::model::{Component, Locality, Node, OtherTraffic, Path, Policy, PortMatch, Roles};

/// The warnings about a policy. `declared`: the components that its inventory mentions.
pub(crate) fn of(policy: &Policy, declared: &[String], catalogue: &Catalogue) -> Vec<String> {
    let located = Located::of(policy);
    let ends = Ends::of(policy);
    let roles = Roles::of(&policy.nodes);
    let mut warnings = Vec::new();
    without_roles(policy, &mut warnings);
    inert_components(policy, &located, &ends, &mut warnings);
    declared_components(policy, declared, catalogue, &mut warnings);
    processes_without_cgroup(policy, &roles, &mut warnings);
    off_without_cgroup(policy, &roles, &ends, &mut warnings);
    only_receivers(policy, &ends, &mut warnings);
    unused_services(policy, &mut warnings);
    unknown_nodes_of_pods(policy, &mut warnings);
    if policy.other_traffic == OtherTraffic::Drop {
        no_way_in(policy, &roles, &located, &mut warnings);
        anywhere_outside(policy, &mut warnings);
        if !policy.pod_networks.is_empty() && policy.service_networks.is_empty() {
            warnings.push(
                "otherTraffic: Drop, and no `serviceNetworks`: pods reach no service but those under `services`"
                    .to_owned(),
            );
        }
    }
    warnings
}

/// Paths by the names of their ends.
struct Ends<'a> {
    from: HashMap<&'a str, Vec<&'a Path>>,
    to: HashMap<&'a str, Vec<&'a Path>>,
}

impl<'a> Ends<'a> {
    fn of(policy: &'a Policy) -> Self {
        let (mut from, mut to) = (HashMap::new(), HashMap::new());
        for path in &policy.paths {
            for name in &path.from {
                let paths: &mut Vec<&Path> = from.entry(name.as_str()).or_default();
                paths.push(path);
            }
            let paths: &mut Vec<&Path> = to.entry(path.to_component.as_str()).or_default();
            paths.push(path);
        }
        Self { from, to }
    }

    /// The paths that a component may open.
    fn from(&self, name: &str) -> &[&'a Path] {
        self.from.get(name).map_or(&[], Vec::as_slice)
    }

    /// The paths that lead to a component.
    fn to(&self, name: &str) -> &[&'a Path] {
        self.to.get(name).map_or(&[], Vec::as_slice)
    }
}

fn names<'a>(paths: impl IntoIterator<Item = &'a &'a Path>) -> Vec<&'a str> {
    let paths = paths.into_iter();
    paths.map(|path| path.name.as_str()).collect()
}

/// Names of the paths that can not be used on one node, because none of the required ends can be on it.
pub fn elsewhere<'a>(policy: &'a Policy, node: &str) -> Vec<&'a str> {
    let Some(node) = policy.node(node) else {
        return Vec::new();
    };
    // Each component is checked once, however many paths have it: it may have a hundred thousand addresses.
    let here: HashSet<&str> = policy
        .components
        .iter()
        .filter(|component| may_be_here(component, node))
        .map(|component| component.name.as_str())
        .collect();
    let is_here = |name: &str| here.contains(name);
    let concerns = |path: &Path| {
        let from = path.from.iter().any(|from| is_here(from));
        let to = is_here(&path.to_component);
        match path.locality {
            Locality::Any => from || to,
            Locality::SameNode => from && to,
        }
    };
    policy
        .paths
        .iter()
        .filter(|path| !concerns(path))
        .map(|path| path.name.as_str())
        .collect()
}

/// What has no effect on one node: a policy is for all nodes, and operators should not wait for paths that can not be
/// used here.
pub fn for_node(policy: &Policy, node: &str) -> Vec<String> {
    let elsewhere = elsewhere(policy, node);
    let mut warnings = Vec::new();
    if !elsewhere.is_empty() {
        warnings.push(format!(
            "{} of {} paths do not concern this node: {}",
            elsewhere.len(),
            policy.paths.len(),
            elsewhere.join(", ")
        ));
    }
    warnings
}

fn without_roles(policy: &Policy, warnings: &mut Vec<String>) {
    let nodes = policy.nodes.iter().filter(|node| node.roles.is_empty());
    let names: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
    if !names.is_empty() {
        warnings.push(format!(
            "without roles, nodes run what every node runs and nothing else: {}",
            list(&names)
        ));
    }
}

/// Whether a component may be on this node: by its roles, as a process, as a pod, or by an address.
fn may_be_here(component: &Component, node: &Node) -> bool {
    component.runs_on(node)
        || component.in_pod_networks
        || component.is_everyone()
        || (component.runs_on.is_empty() && !component.cgroups.is_empty())
        || node
            .addresses
            .iter()
            .any(|own| component.addresses.iter().any(|net| net.contains(own)))
        || node
            .pod_networks
            .iter()
            .any(|pods| component.addresses.iter().any(|net| pods.contains(net)))
}

/// Warns of a virtual address that leads to a port to which no path leads.
fn unused_services(policy: &Policy, warnings: &mut Vec<String>) {
    let paths = policy.paths.iter();
    let mut seen: HashSet<(&str, &str)> = paths
        .map(|path| (path.to_component.as_str(), path.to_port.as_str()))
        .collect();
    for service in &policy.services {
        let (component, port) = (service.component.as_str(), service.port.as_str());
        if seen.insert((component, port)) {
            warnings.push(format!(
                "service `{component}:{port}` has a virtual address, and no path leads to that port"
            ));
        }
    }
}

/// Paths to "the same node's pods" need to know which pods those are.
fn unknown_nodes_of_pods(policy: &Policy, warnings: &mut Vec<String>) {
    let pods: HashSet<&str> = policy
        .components
        .iter()
        .filter(|component| component.in_pod_networks)
        .map(|component| component.name.as_str())
        .collect();
    let local: Vec<&str> = policy
        .paths
        .iter()
        .filter(|path| {
            path.locality == Locality::SameNode && pods.contains(path.to_component.as_str())
        })
        .map(|path| path.name.as_str())
        .collect();
    let unknown = policy.nodes.iter().all(|node| node.pod_networks.is_empty());
    if unknown && !local.is_empty() && !policy.pod_networks.is_empty() {
        warnings.push(format!(
            "no node has `podNetworks` of its own: {} {} to pods of other nodes, too",
            list(&local),
            if local.len() == 1 { "leads" } else { "lead" }
        ));
    }
}

/// Everything outside that could be narrowed, in one sentence.
fn anywhere_outside(policy: &Policy, warnings: &mut Vec<String>) {
    let paths = policy.paths.iter();
    let reached: HashSet<&str> = paths.map(|path| path.to_component.as_str()).collect();
    let wide: Vec<&str> = policy
        .components
        .iter()
        .filter(|component| component.is_elsewhere() && component.name != "outside")
        .filter(|component| reached.contains(component.name.as_str()))
        .map(|component| component.name.as_str())
        .collect();
    if !wide.is_empty() {
        warnings.push(format!(
            "{} {} anywhere outside of the cluster: `addresses` in the Inventory would narrow the paths there",
            list(&wide),
            if wide.len() == 1 { "is" } else { "are" }
        ));
    }
}

/// Which components can be recognised as senders, and which can be found as receivers.
pub(crate) struct Located<'a> {
    senders: HashSet<&'a str>,
    receivers: HashSet<&'a str>,
}

impl<'a> Located<'a> {
    /// Goes through all components once.
    pub fn of(policy: &'a Policy) -> Self {
        let by_name: HashMap<&str, &Component> = policy
            .components
            .iter()
            .map(|component| (component.name.as_str(), component))
            .collect();
        let served: HashSet<&str> = policy
            .services
            .iter()
            .map(|service| service.component.as_str())
            .collect();
        let roles = Roles::of(&policy.nodes);
        let (mut senders, mut receivers) = (HashSet::new(), HashSet::new());
        for component in &policy.components {
            let located = has_address(policy, &roles, component);
            if located || served.contains(component.name.as_str()) {
                receivers.insert(component.name.as_str());
            }
            // A sender counts as everything that it is part of.
            let nowhere_else = component.only_receives_outside
                && !roles.run(component)
                && component.addresses.is_empty();
            if (located && !nowhere_else) || !component.cgroups.is_empty() {
                let mut open = vec![component];
                while let Some(component) = open.pop() {
                    if senders.insert(component.name.as_str()) {
                        let wholes = component.part_of.iter();
                        open.extend(wholes.filter_map(|name| by_name.get(name.as_str())));
                    }
                }
            }
        }
        Self { senders, receivers }
    }

    /// Whether nothing is recognised as it, neither as a sender nor as a receiver.
    pub fn is_inert(&self, component: &Component) -> bool {
        let name = component.name.as_str();
        !self.senders.contains(name) && !self.receivers.contains(name)
    }
}

fn has_address(policy: &Policy, roles: &Roles<'_>, component: &Component) -> bool {
    !component.addresses.is_empty()
        || component.is_elsewhere()
        || (component.in_pod_networks && !policy.pod_networks.is_empty())
        || roles.run(component)
}

fn inert_components(
    policy: &Policy,
    located: &Located<'_>,
    ends: &Ends<'_>,
    warnings: &mut Vec<String>,
) {
    // If other components can use a path, too, there is no warning that one of them is missing.
    let there = |from: &String| located.senders.contains(from.as_str());
    let paths = policy.paths.iter();
    let unused: HashSet<&str> = paths
        .filter(|path| !path.from.iter().any(there))
        .map(|path| path.name.as_str())
        .collect();
    for component in &policy.components {
        let name = component.name.as_str();
        let alone = |path: &&&Path| unused.contains(path.name.as_str());
        let sends = names(ends.from(name).iter().filter(alone));
        let receives = names(ends.to(name));
        let is_sender = located.senders.contains(name) || component.only_receives_outside;
        if !is_sender && !sends.is_empty() {
            warnings.push(format!(
                "component `{name}` {}: it can not use {} {}",
                without_place(policy, component),
                path_or_paths(&sends),
                list(&sends)
            ));
        }
        if !located.receivers.contains(name) && !receives.is_empty() {
            warnings.push(format!(
                "component `{name}` {}: nothing is found there, {} {} can not be used",
                without_address(policy, component),
                path_or_paths(&receives),
                list(&receives)
            ));
        }
    }
}

fn without_place(policy: &Policy, component: &Component) -> String {
    match without_address(policy, component) {
        text if component.runs_on.is_empty() && !component.in_pod_networks => {
            format!("{text} and no cgroups")
        }
        text => text,
    }
}

fn without_address(policy: &Policy, component: &Component) -> String {
    if !component.runs_on.is_empty() {
        format!(
            "runs on nodes of role {}, and there are none",
            list(&component.runs_on)
        )
    } else if component.in_pod_networks && policy.pod_networks.is_empty() {
        "lives in the pod networks, and `podNetworks` is empty".to_owned()
    } else {
        "has no addresses".to_owned()
    }
}

fn path_or_paths(names: &[&str]) -> &'static str {
    if names.len() == 1 { "path" } else { "paths" }
}

/// A name that differs from one of the catalogue's by a letter silently declares a new component.
fn declared_components(
    policy: &Policy,
    declared: &[String],
    catalogue: &Catalogue,
    warnings: &mut Vec<String>,
) {
    let known: Vec<&str> = catalogue
        .components()
        .iter()
        .map(|component| component.name.as_str())
        .collect();
    let by_name: HashMap<&str, &Component> = policy
        .components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    let on_paths: HashSet<&str> = policy
        .paths
        .iter()
        .flat_map(|path| path.from.iter().chain([&path.to_component]))
        .map(String::as_str)
        .collect();
    let wholes: HashSet<&String> = policy
        .components
        .iter()
        .flat_map(|component| &component.part_of)
        .collect();
    for name in declared
        .iter()
        .filter(|name| !known.contains(&name.as_str()))
    {
        if let Some(near) = nearest(name, &known) {
            warnings.push(format!(
                "component `{name}` is a new one of this inventory; the catalogue has `{near}`"
            ));
        }
        let Some(component) = by_name.get(name.as_str()) else {
            continue;
        };
        let guards = component.guard && !component.ports.is_empty();
        let counts = !component.part_of.is_empty() || wholes.contains(name);
        if !on_paths.contains(name.as_str()) && !guards && !counts {
            warnings.push(format!(
                "component `{name}` is on no path and guards no port: it changes nothing but whom \
                 its addresses and cgroups belong to"
            ));
        }
    }
}

/// A process outside of all declared cgroups counts as every component of its node that declares none; that is too
/// broad if pods use the host's network.
fn processes_without_cgroup(policy: &Policy, roles: &Roles<'_>, warnings: &mut Vec<String>) {
    let on_nodes: Vec<&str> = policy
        .components
        .iter()
        .filter(|component| component.counts_undeclared() && roles.run(component))
        .map(|component| component.name.as_str())
        .collect();
    let pods = policy
        .components
        .iter()
        .filter(|component| component.in_pod_networks);
    for pod in pods.filter(|component| component.cgroups.is_empty()) {
        if !on_nodes.is_empty() {
            warnings.push(format!(
                "component `{}` declares no cgroups: a pod with hostNetwork counts as every component of its \
                 node that declares none, of {}; write `{}: {{ cgroups: [/kubepods.slice] }}`, or the \
                 cgroup that holds the pods of your nodes",
                pod.name,
                list(&on_nodes),
                pod.name
            ));
        }
    }
}

/// Components that have no rights until their cgroups are declared.
fn off_without_cgroup(
    policy: &Policy,
    roles: &Roles<'_>,
    ends: &Ends<'_>,
    warnings: &mut Vec<String>,
) {
    let off: Vec<String> = policy
        .components
        .iter()
        .filter(|component| component.needs_cgroup && component.cgroups.is_empty())
        .filter(|component| roles.run(component))
        .filter_map(|component| {
            let paths = names(ends.from(&component.name));
            (!paths.is_empty()).then(|| format!("`{}` ({})", component.name, paths.join(", ")))
        })
        .collect();
    if !off.is_empty() {
        warnings.push(format!(
            "inactive until the Inventory declares their `cgroups`: {}",
            off.join("; ")
        ));
    }
}

/// Components that are anywhere outside, and that no sender counts as.
fn only_receivers(policy: &Policy, ends: &Ends<'_>, warnings: &mut Vec<String>) {
    for component in &policy.components {
        let sends = names(ends.from(&component.name));
        if component.is_elsewhere() && component.only_receives_outside && !sends.is_empty() {
            warnings.push(format!(
                "component `{}` is anywhere outside: it can be reached there, but no sender outside is recognised as it, so \
                 {} {} can not be used from there; declare its networks as `addresses`",
                component.name,
                path_or_paths(&sends),
                list(&sends)
            ));
        }
    }
}

/// Operators lock themselves out with `Drop` and no path to port 22.
fn no_way_in(
    policy: &Policy,
    roles: &Roles<'_>,
    located: &Located<'_>,
    warnings: &mut Vec<String>,
) {
    let by_name: HashMap<&str, &Component> = policy
        .components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    let is_ssh = |found: &PortMatch| {
        matches!(found, PortMatch::Any)
            || matches!(found, PortMatch::Tcp(first, last) if (*first..=*last).contains(&SSH))
    };
    let leads_in = policy.paths.iter().any(|path| {
        let target = by_name.get(path.to_component.as_str());
        // A path from pods' shells or probes on the same node is not a way in.
        target.is_some_and(|to| roles.run(to))
            && target
                .and_then(|to| to.port(&path.to_port))
                .is_some_and(|port| port.matches.iter().any(is_ssh))
            && path
                .from
                .iter()
                .any(|from| located.senders.contains(from.as_str()))
            && path.locality == Locality::Any
    });
    if !leads_in {
        warnings.push(format!(
            "otherTraffic: Drop, and no path leads from a known sender to {SSH}/tcp of the nodes: there is no way \
             back in over the network; give component `admin` addresses"
        ));
    }
}

const SSH: u16 = 22;
