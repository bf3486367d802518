//! Senders to guarded endpoints that are broader than they look.

use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;

use crate::error::some;
use crate::model::{Component, Path, Policy, Roles, WideSender};
use crate::nets::Nets;

/// All such senders, in the order of the components.
pub(crate) fn senders(policy: &Policy) -> Vec<WideSender> {
    let guarded: HashSet<&str> = policy
        .components
        .iter()
        .filter(|component| component.guard)
        .map(|component| component.name.as_str())
        .collect();
    let mut from: HashMap<&str, Vec<&Path>> = HashMap::new();
    for path in &policy.paths {
        for name in &path.from {
            from.entry(name).or_default().push(path);
        }
    }
    let roles = Roles::of(&policy.nodes);
    let pods: Nets<()> = policy.pod_networks.iter().copied().collect();
    let mut found = Vec::new();
    // Pods and the world are broad by their names, so there is no need to say so.
    let narrow = |c: &&Component| !c.in_pod_networks && c.name != "world";
    for component in policy.components.iter().filter(narrow) {
        let paths = from.get(component.name.as_str());
        for reason in reasons(component, &roles, &pods) {
            let endpoints: BTreeSet<String> = paths
                .into_iter()
                .flatten()
                .filter(|path| guarded.contains(path.to_component.as_str()))
                // Only the node's own processes can use loopback.
                .filter(|path| reason.is_process || !path.loopback)
                .map(|path| format!("{}:{}", path.to_component, path.to_port))
                .collect();
            if !endpoints.is_empty() {
                found.push(WideSender {
                    component: component.name.clone(),
                    who: reason.who,
                    endpoints: endpoints.into_iter().collect(),
                    remedy: reason.remedy,
                });
            }
        }
    }
    found
}

/// Why a component is broad, and what would narrow it.
struct Reason {
    who: String,
    remedy: &'static str,
    /// Whether it is about processes of the nodes themselves.
    is_process: bool,
}

fn reasons(component: &Component, roles: &Roles<'_>, pods: &Nets<()>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |who: String, remedy: &'static str, is_process: bool| {
        reasons.push(Reason {
            who,
            remedy,
            is_process,
        });
    };
    if component.is_elsewhere() && !component.only_receives_outside {
        let who = "anyone outside the cluster".to_owned();
        add(who, "`addresses` would narrow it", false);
    }
    let (pods, ranges): (Vec<&IpNet>, Vec<&IpNet>) = component
        .addresses
        .iter()
        .filter(|net| net.prefix_len() < net.max_prefix_len())
        .partition(|net| pods.overlapping(**net).next().is_some());
    let texts = |nets: &[&IpNet]| {
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        some(&texts)
    };
    if !pods.is_empty() {
        let remedy =
            "the addresses of its own pods, or its `cgroups` with hostNetwork, would narrow it";
        add(format!("every pod in {}", texts(&pods)), remedy, false);
    }
    if !ranges.is_empty() {
        let who = format!("anyone in {}", texts(&ranges));
        add(who, "single addresses would narrow it", false);
    }
    if roles.run(component) && component.counts_undeclared() && component.name != "node" {
        let who = "every process in no declared cgroup on its nodes".to_owned();
        add(who, "its `cgroups` would narrow it", true);
    }
    reasons
}
