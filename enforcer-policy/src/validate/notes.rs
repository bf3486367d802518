//! What is no error and should be known all the same: a policy that is valid and inert is the worst kind.

use std::collections::{HashMap, HashSet};

use crate::catalogue::Catalogue;
use crate::error::{list, nearest};
use crate::model::{Component, Locality, Node, OtherTraffic, Path, Policy, PortMatch};

/// The notes to a policy. `declared`: the components that its inventory mentions.
pub(crate) fn of(policy: &Policy, declared: &[String], catalogue: &Catalogue) -> Vec<String> {
    let places = Places::of(policy);
    let mut notes = Vec::new();
    without_roles(policy, &mut notes);
    inert_components(policy, &places, &mut notes);
    declared_components(policy, declared, catalogue, &mut notes);
    processes_without_cgroup(policy, &mut notes);
    off_without_cgroup(policy, &mut notes);
    only_receivers(policy, &mut notes);
    unused_services(policy, &mut notes);
    unknown_places_of_pods(policy, &mut notes);
    if policy.other_traffic == OtherTraffic::Drop {
        way_back_in(policy, &places, &mut notes);
        anywhere_outside(policy, &mut notes);
        if !policy.pod_networks.is_empty() && policy.service_networks.is_empty() {
            notes.push(
                "otherTraffic: Drop, and no `serviceNetworks`: pods reach no service but those under `services`"
                    .to_owned(),
            );
        }
    }
    notes
}

/// Names of the paths that can not be used on one node: both ends, or what has to be here of them, are elsewhere.
pub fn elsewhere<'a>(policy: &'a Policy, node: &str) -> Vec<&'a str> {
    let Some(node) = policy.node(node) else {
        return Vec::new();
    };
    let by_name: HashMap<&str, &Component> = policy
        .components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    let is_here = |name: &str| {
        let component = by_name.get(name);
        component.is_some_and(|component| may_be_here(component, node))
    };
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

/// What has no meaning on one node: a policy is for all of them, and nobody should wait for a path
/// that can not be used here.
pub fn for_node(policy: &Policy, node: &str) -> Vec<String> {
    let elsewhere = elsewhere(policy, node);
    let mut notes = Vec::new();
    if !elsewhere.is_empty() {
        notes.push(format!(
            "{} of {} paths do not concern this node: {}",
            elsewhere.len(),
            policy.paths.len(),
            elsewhere.join(", ")
        ));
    }
    notes
}

fn without_roles(policy: &Policy, notes: &mut Vec<String>) {
    let nodes = policy.nodes.iter().filter(|node| node.roles.is_empty());
    let names: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
    if !names.is_empty() {
        notes.push(format!(
            "without roles, nodes run what every node runs and nothing else: {}",
            list(&names)
        ));
    }
}

/// On this node, by its roles, as a process, as a pod, or in the way of its packets.
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

/// A virtual address that leads to a port which no path leads to.
fn unused_services(policy: &Policy, notes: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for service in &policy.services {
        let leads =
            |path: &Path| path.to_component == service.component && path.to_port == service.port;
        let end = format!("{}:{}", service.component, service.port);
        if !policy.paths.iter().any(leads) && seen.insert(end.clone()) {
            notes.push(format!(
                "service `{end}` has a virtual address, and no path leads to that port"
            ));
        }
    }
}

/// "The same node's pods" needs to know which pods those are.
fn unknown_places_of_pods(policy: &Policy, notes: &mut Vec<String>) {
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
        notes.push(format!(
            "no node has `podNetworks` of its own: {} {} to pods of other nodes, too",
            list(&local),
            if local.len() == 1 { "leads" } else { "lead" }
        ));
    }
}

/// Everything that could be narrowed, in one sentence.
fn anywhere_outside(policy: &Policy, notes: &mut Vec<String>) {
    let wide: Vec<&str> = policy
        .components
        .iter()
        .filter(|component| component.is_elsewhere() && component.name != "outside")
        .filter(|component| {
            policy
                .paths
                .iter()
                .any(|path| path.to_component == component.name)
        })
        .map(|component| component.name.as_str())
        .collect();
    if !wide.is_empty() {
        notes.push(format!(
            "{} {} anywhere outside of the cluster: `addresses` in the Inventory would narrow the paths there",
            list(&wide),
            if wide.len() == 1 { "is" } else { "are" }
        ));
    }
}

/// Which components can be recognised as senders, and which can be found as receivers.
pub(crate) struct Places<'a> {
    senders: HashSet<&'a str>,
    receivers: HashSet<&'a str>,
}

impl<'a> Places<'a> {
    /// Looks at every component once.
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
        let (mut senders, mut receivers) = (HashSet::new(), HashSet::new());
        for component in &policy.components {
            let located = has_address(policy, component);
            if located || served.contains(component.name.as_str()) {
                receivers.insert(component.name.as_str());
            }
            // Who sends counts as everything that it is part of.
            let nowhere_else = component.only_receives_outside
                && !policy.nodes.iter().any(|node| component.runs_on(node))
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

    /// Nothing of it can be recognised, neither as a sender nor as a receiver.
    pub fn is_inert(&self, component: &Component) -> bool {
        let name = component.name.as_str();
        !self.senders.contains(name) && !self.receivers.contains(name)
    }
}

fn has_address(policy: &Policy, component: &Component) -> bool {
    !component.addresses.is_empty()
        || component.is_elsewhere()
        || (component.in_pod_networks && !policy.pod_networks.is_empty())
        || policy.nodes.iter().any(|node| component.runs_on(node))
}

fn inert_components(policy: &Policy, places: &Places<'_>, notes: &mut Vec<String>) {
    for component in &policy.components {
        let name = component.name.as_str();
        let named = |used: &dyn Fn(&Path) -> bool| -> Vec<&str> {
            let paths = policy.paths.iter().filter(|path| used(path));
            paths.map(|path| path.name.as_str()).collect()
        };
        // Where others may use a path, too, it is no news that one of them is not there.
        let alone = |path: &Path| {
            let there = |from: &String| places.senders.contains(from.as_str());
            path.from.iter().any(|from| from == name) && !path.from.iter().any(there)
        };
        let sends = named(&alone);
        let receives = named(&|path| path.to_component == name);
        let is_sender = places.senders.contains(name) || component.only_receives_outside;
        if !is_sender && !sends.is_empty() {
            notes.push(format!(
                "component `{name}` {}: it can not use {} {}",
                without_place(policy, component),
                path_or_paths(&sends),
                list(&sends)
            ));
        }
        if !places.receivers.contains(name) && !receives.is_empty() {
            notes.push(format!(
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

/// A name one letter off the catalogue's declares a new component, silently.
fn declared_components(
    policy: &Policy,
    declared: &[String],
    catalogue: &Catalogue,
    notes: &mut Vec<String>,
) {
    let known: Vec<&str> = catalogue
        .components()
        .iter()
        .map(|component| component.name.as_str())
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
            notes.push(format!(
                "component `{name}` is a new one of this inventory; the catalogue has `{near}`"
            ));
        }
        let Some(component) = policy.component(name) else {
            continue;
        };
        let guards = component.guard && !component.ports.is_empty();
        let counts = !component.part_of.is_empty() || wholes.contains(name);
        if !on_paths.contains(name.as_str()) && !guards && !counts {
            notes.push(format!(
                "component `{name}` is on no path and guards no port: it changes nothing but whom \
                 its addresses and cgroups belong to"
            ));
        }
    }
}

/// A process outside of all declared cgroups counts as every component of its node that declares none;
/// that is too much where pods use the host's network.
fn processes_without_cgroup(policy: &Policy, notes: &mut Vec<String>) {
    let on_nodes: Vec<&str> = policy
        .components
        .iter()
        .filter(|component| component.counts_undeclared())
        .filter(|component| policy.nodes.iter().any(|node| component.runs_on(node)))
        .map(|component| component.name.as_str())
        .collect();
    let pods = policy
        .components
        .iter()
        .filter(|component| component.in_pod_networks);
    for pod in pods.filter(|component| component.cgroups.is_empty()) {
        if !on_nodes.is_empty() {
            notes.push(format!(
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

/// What has no rights before somebody says which processes it is.
fn off_without_cgroup(policy: &Policy, notes: &mut Vec<String>) {
    let off: Vec<String> = policy
        .components
        .iter()
        .filter(|component| component.needs_cgroup && component.cgroups.is_empty())
        .filter(|component| policy.nodes.iter().any(|node| component.runs_on(node)))
        .filter_map(|component| {
            let paths = policy
                .paths
                .iter()
                .filter(|path| path.from.contains(&component.name));
            let paths: Vec<&str> = paths.map(|path| path.name.as_str()).collect();
            (!paths.is_empty()).then(|| format!("`{}` ({})", component.name, paths.join(", ")))
        })
        .collect();
    if !off.is_empty() {
        notes.push(format!(
            "inactive until the Inventory declares their `cgroups`: {}",
            off.join("; ")
        ));
    }
}

/// Anywhere outside, and not taken for itself as a sender.
fn only_receivers(policy: &Policy, notes: &mut Vec<String>) {
    for component in &policy.components {
        let sends: Vec<&str> = policy
            .paths
            .iter()
            .filter(|path| path.from.contains(&component.name))
            .map(|path| path.name.as_str())
            .collect();
        if component.is_elsewhere() && component.only_receives_outside && !sends.is_empty() {
            notes.push(format!(
                "component `{}` is anywhere outside: it can be reached there, but no sender outside is recognised as it, so \
                 {} {} can not be used from there; declare its networks as `addresses`",
                component.name,
                path_or_paths(&sends),
                list(&sends)
            ));
        }
    }
}

/// `Drop` without a path to port 22 is how people lock themselves out.
fn way_back_in(policy: &Policy, places: &Places<'_>, notes: &mut Vec<String>) {
    let is_ssh = |found: &PortMatch| {
        matches!(found, PortMatch::Any)
            || matches!(found, PortMatch::Tcp(first, last) if (*first..=*last).contains(&SSH))
    };
    let leads_in = policy.paths.iter().any(|path| {
        let target = policy.component(&path.to_component);
        // Pods' shells and probes on the same node are no way in.
        target.is_some_and(|to| policy.nodes.iter().any(|node| to.runs_on(node)))
            && target
                .and_then(|to| to.port(&path.to_port))
                .is_some_and(|port| port.matches.iter().any(is_ssh))
            && path
                .from
                .iter()
                .any(|from| places.senders.contains(from.as_str()))
            && path.locality == Locality::Any
    });
    if !leads_in {
        notes.push(format!(
            "otherTraffic: Drop, and no path leads from a known sender to {SSH}/tcp of the nodes: there is no way \
             back in over the network; give component `admin` addresses"
        ));
    }
}

const SSH: u16 = 22;
