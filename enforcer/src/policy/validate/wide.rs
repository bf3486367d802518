//! Senders to guarded endpoints that are wider than they look.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

use crate::policy::model::{Component, Policy, WideSender};

/// All of them, in the order of the components.
pub(crate) fn senders(policy: &Policy) -> Vec<WideSender> {
    let guarded: HashSet<&str> = policy
        .components
        .iter()
        .filter(|component| component.guard)
        .map(|component| component.name.as_str())
        .collect();
    let mut found = Vec::new();
    for component in &policy.components {
        // That these are many is what their names say.
        if component.in_pod_networks || component.is_everyone() && component.name == "world" {
            continue;
        }
        let paths = policy
            .paths
            .iter()
            .filter(|path| path.from.contains(&component.name));
        let endpoints: BTreeSet<String> = paths
            .filter(|path| guarded.contains(path.to_component.as_str()))
            .map(|path| format!("{}:{}", path.to_component, path.to_port))
            .collect();
        if endpoints.is_empty() {
            continue;
        }
        found.extend(
            reasons(policy, component)
                .into_iter()
                .map(|(who, remedy)| WideSender {
                    component: component.name.clone(),
                    who,
                    endpoints: endpoints.iter().cloned().collect(),
                    remedy,
                }),
        );
    }
    found
}

fn reasons(policy: &Policy, component: &Component) -> Vec<(String, &'static str)> {
    let mut reasons = Vec::new();
    if component.is_elsewhere() && !component.only_receives_outside {
        reasons.push((
            "everybody outside of the cluster".to_owned(),
            "`addresses` would narrow it",
        ));
    }
    let is_pods = |net: &&IpNet| {
        policy
            .pod_networks
            .iter()
            .any(|pods| pods.contains(*net) || net.contains(pods))
    };
    let is_wide = |net: &&IpNet| net.prefix_len() < net.max_prefix_len();
    let nets = |keep: &dyn Fn(&&IpNet) -> bool| -> Vec<String> {
        let nets = component.addresses.iter().filter(is_wide).filter(keep);
        nets.map(IpNet::to_string).collect()
    };
    let pods = nets(&|net| is_pods(net));
    if !pods.is_empty() {
        reasons.push((
            format!("every pod in {}", pods.join(", ")),
            "the addresses of its own pods, or its `cgroups` with hostNetwork, would narrow it",
        ));
    }
    let ranges = nets(&|net| !is_pods(net));
    if !ranges.is_empty() {
        reasons.push((
            format!("everybody in {}", ranges.join(", ")),
            "single addresses would narrow it",
        ));
    }
    let runs = policy.nodes.iter().any(|node| component.runs_on(node));
    if runs && component.counts_undeclared() && component.name != "node" {
        reasons.push((
            "every process of its nodes that is in no declared cgroup".to_owned(),
            "its `cgroups` would narrow it",
        ));
    }
    reasons
}
