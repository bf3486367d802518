//! Networks that contradict each other: an address has only one meaning.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Problem, quote, some};
use crate::model::Node;
use crate::nets::Nets;
use crate::read::scalar;
use crate::read::scope::Scope;
use crate::read::source::NodeSource;
use crate::span::{Entries, Spanned};

/// A node's part of the pod networks is within them and not shared with another node, and no node has an address among
/// the pods of another.
pub(crate) fn check_nodes(
    scope: &mut Scope<'_, '_>,
    nodes: &Entries<NodeSource>,
    pod_networks: &[IpNet],
) {
    let wholes: Nets<()> = pod_networks.iter().copied().collect();
    let mut parts: Nets<&str> = Nets::default();
    for (name, node) in &nodes.0 {
        let is_foreign = |(_, owner): &(&IpNet, &&str)| **owner != name.value;
        for text in &node.value.pod_networks {
            let Ok(net) = scalar::pod_network(&text.value) else {
                continue;
            };
            if wholes.around(net).next().is_none() {
                scope.error(text.span, || {
                    outside_of_pod_networks(&text.value, pod_networks)
                });
            }
            if let Some((other, owner)) = parts.overlapping(net).find(is_foreign) {
                scope.error(text.span, || {
                    Problem::new(
                        format!("{} overlaps {other} of node {}", quote(&text.value), quote(owner)),
                        "each pod is on one node: write the `podCIDRs` that Kubernetes shows for the node",
                    )
                });
            }
            parts.insert(net, &name.value);
        }
    }
    for (name, node) in &nodes.0 {
        let is_foreign = |(_, owner): &(&IpNet, &&str)| **owner != name.value;
        for text in &node.value.addresses {
            let Ok(address) = scalar::host_address(&text.value) else {
                continue;
            };
            if let Some((net, owner)) = parts.holding(address).find(is_foreign) {
                scope.error(text.span, || {
                    Problem::new(
                        format!(
                            "{} is in {net}, where the pods of node {} are",
                            quote(&text.value),
                            quote(owner)
                        ),
                        format!("a node has addresses among its own pods only (a bridge, a tunnel): write it under {owner}, or correct `podNetworks`"),
                    )
                });
            }
        }
    }
}

/// Networks of services contain only services.
pub(crate) fn check_services<'n>(
    scope: &mut Scope<'_, '_>,
    texts: &[Spanned<String>],
    pod_networks: &[IpNet],
    nodes: &'n [Node],
) {
    let pods: Nets<()> = pod_networks.iter().copied().collect();
    let of_node = |node: &'n Node| node.addresses.iter().map(|address| (*address, &*node.name));
    let owners: BTreeMap<IpAddr, &str> = nodes.iter().flat_map(of_node).collect();
    for text in texts {
        let Ok(net) = scalar::service_network(&text.value) else {
            continue;
        };
        if let Some((pods, ())) = pods.overlapping(net).next() {
            scope.error(text.span, || {
                Problem::new(
                    format!("{} overlaps the pod network {pods}", quote(&text.value)),
                    "an address is a pod's or a service's: look at `--cluster-cidr` and `--service-cluster-ip-range`",
                )
            });
        }
        if let Some((address, node)) = owners.range(net.network()..=net.broadcast()).next() {
            scope.error(text.span, || {
                Problem::new(
                    format!("{} holds {address} of node {}", quote(&text.value), quote(node)),
                    "services' addresses are virtual, and no node has one: look at `--service-cluster-ip-range`",
                )
            });
        }
    }
}

/// The problem of a virtual address among the pods.
pub(crate) fn pods_address(written: &str, net: &IpNet) -> Problem {
    Problem::new(
        format!("{} is in the pod network {net}", quote(written)),
        "a service has a virtual address, and pods have others: correct `podNetworks`, or give the component `addresses`",
    )
}

fn outside_of_pod_networks(written: &str, pod_networks: &[IpNet]) -> Problem {
    let message = format!(
        "{} is in none of the `podNetworks` of the cluster",
        quote(written)
    );
    if pod_networks.is_empty() {
        return Problem::new(
            message,
            format!(
                "write `podNetworks: [\"{written}\"]` under `spec`, or the network that holds those of all nodes"
            ),
        );
    }
    let known: Vec<String> = pod_networks.iter().map(IpNet::to_string).collect();
    Problem::new(
        message,
        format!("write a part of {}, or add it there", some(&known)),
    )
}
