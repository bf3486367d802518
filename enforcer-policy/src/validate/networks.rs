//! Networks that contradict each other: an address has one meaning.

use ipnet::IpNet;

use crate::error::{Problem, quote};
use crate::model::Node;
use crate::read::scalar;
use crate::read::scope::Scope;
use crate::read::source::NodeSource;
use crate::span::{Entries, Spanned};

/// A node's part of the pod networks lies in them and is no other node's; and no node has an address
/// among the pods of another.
pub(crate) fn check_nodes(
    scope: &mut Scope<'_, '_>,
    nodes: &Entries<NodeSource>,
    pod_networks: &[IpNet],
) {
    let mut parts: Vec<(IpNet, &str)> = Vec::new();
    for (name, node) in &nodes.0 {
        for text in &node.value.pod_networks {
            let Ok(net) = scalar::pod_network(&text.value) else {
                continue;
            };
            if !pod_networks.iter().any(|whole| whole.contains(&net)) {
                scope.error(text.span, || {
                    outside_of_pod_networks(&text.value, pod_networks)
                });
            }
            let taken = parts
                .iter()
                .find(|(other, owner)| *owner != name.value && overlap(other, &net));
            if let Some((other, owner)) = taken {
                scope.error(text.span, || {
                    Problem::new(
                        format!("{} overlaps {other} of node {}", quote(&text.value), quote(owner)),
                        "each pod is on one node: write the `podCIDRs` that Kubernetes shows for the node",
                    )
                });
            }
            parts.push((net, &name.value));
        }
    }
    for (name, node) in &nodes.0 {
        for text in &node.value.addresses {
            let Ok(address) = scalar::host_address(&text.value) else {
                continue;
            };
            let foreign = parts
                .iter()
                .find(|(net, owner)| *owner != name.value && net.contains(&address));
            if let Some((net, owner)) = foreign {
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

/// Services' networks hold nothing but services.
pub(crate) fn check_services(
    scope: &mut Scope<'_, '_>,
    texts: &[Spanned<String>],
    pod_networks: &[IpNet],
    nodes: &[Node],
) {
    for text in texts {
        let Ok(net) = scalar::service_network(&text.value) else {
            continue;
        };
        if let Some(pods) = pod_networks.iter().find(|pods| overlap(pods, &net)) {
            scope.error(text.span, || {
                Problem::new(
                    format!("{} overlaps the pod network {pods}", quote(&text.value)),
                    "an address is a pod's or a service's: look at `--cluster-cidr` and `--service-cluster-ip-range`",
                )
            });
        }
        let node = nodes.iter().find_map(|node| {
            let address = node.addresses.iter().find(|address| net.contains(*address));
            address.map(|address| (node, address))
        });
        if let Some((node, address)) = node {
            scope.error(text.span, || {
                Problem::new(
                    format!("{} holds {address} of node {}", quote(&text.value), quote(&node.name)),
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
        format!("write a part of {}, or add it there", known.join(", ")),
    )
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
