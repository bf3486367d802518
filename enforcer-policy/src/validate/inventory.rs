//! Reads and checks the Inventory: nodes, pod networks, components, services.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::overlap::{self, Interfaces};
use super::{networks, ports};
use crate::catalogue::Catalogue;
use crate::error::{Problem, quote};
use crate::model::{Component, Node, Port, PortMatch, Service};
use crate::nets::Nets;
use crate::read::components::{self, Base, unknown, unknown_port};
use crate::read::scalar;
use crate::read::scope::{Scope, twice, unique};
use crate::read::source::{InventorySpec, NodeSource};
use crate::span::{Entries, Span, Spanned};

/// An inventory that has been read.
pub(crate) struct Placed {
    pub nodes: Vec<Node>,
    pub pod_networks: Vec<IpNet>,
    pub service_networks: Vec<IpNet>,
    pub components: Vec<Component>,
    pub services: Vec<Service>,
    /// Names of the components that the inventory itself mentions.
    pub declared: Vec<String>,
}

pub(crate) fn read(
    scope: &mut Scope<'_, '_>,
    spec: &Spanned<InventorySpec>,
    catalogue: &Catalogue,
) -> Placed {
    let InventorySpec {
        nodes: node_entries,
        pod_networks: pod_texts,
        service_networks: service_texts,
        services,
        components,
    } = &spec.value;
    let declared = components
        .0
        .iter()
        .map(|(name, _)| name.value.clone())
        .collect();
    let base = Base {
        components: catalogue.components(),
        paths: catalogue.paths(),
    };
    let placed = components::read(scope, components, base);
    let nodes = read_nodes(scope, node_entries, spec.span, &placed, catalogue);
    ports::check(scope, components, &placed, &nodes);
    overlap::check_cgroups(scope, components, &placed, &nodes);
    let pod_networks = unique(scope, pod_texts, scalar::pod_network);
    let service_networks = unique(scope, service_texts, scalar::service_network);
    networks::check_nodes(scope, node_entries, &pod_networks);
    networks::check_services(scope, service_texts, &pod_networks, &nodes);
    let services = read_services(scope, services, &placed, &nodes, &pod_networks);
    Placed {
        nodes,
        pod_networks,
        service_networks,
        components: placed,
        services,
        declared,
    }
}

fn read_nodes(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<NodeSource>,
    spec: Span,
    components: &[Component],
    catalogue: &Catalogue,
) -> Vec<Node> {
    if entries.0.is_empty() {
        scope.error(spec, || {
            Problem::new(
                "an inventory without nodes",
                "write `nodes: { NAME: { addresses: [10.0.0.11], roles: [control-plane, etcd] } }`",
            )
        });
    }
    let mut roles: Vec<&str> = catalogue
        .roles()
        .iter()
        .map(|role| role.name.as_str())
        .collect();
    roles.extend(
        components
            .iter()
            .flat_map(|component| &component.runs_on)
            .map(String::as_str),
    );
    let known: BTreeSet<&str> = roles.iter().copied().filter(|role| *role != "*").collect();
    let mut interfaces = Interfaces::default();
    let mut owners: HashMap<IpAddr, &str> = HashMap::new();
    let mut nodes = Vec::new();
    for (name, source) in &entries.0 {
        scope.ok(name.span, scalar::node_name(&name.value));
        let node = read_node(scope, name, source, &mut interfaces);
        for role in &source.value.roles {
            if !known.contains(role.value.as_str()) {
                scope.error(role.span, || unknown_role(&role.value, &known));
            }
        }
        for text in &source.value.addresses {
            let Ok(address) = scalar::host_address(&text.value) else {
                continue;
            };
            match owners.insert(address, &name.value) {
                Some(owner) if owner != name.value => scope.error(text.span, || {
                    Problem::new(
                        format!("{} is an address of node {}, too", quote(&text.value), quote(owner)),
                        "a node's address is its own; a shared one (a load balancer, VRRP) is a service or a component",
                    )
                }),
                _ => {}
            }
        }
        nodes.push(node);
    }
    nodes
}

fn read_node<'a>(
    scope: &mut Scope<'_, '_>,
    name: &Spanned<String>,
    source: &'a Spanned<NodeSource>,
    known: &mut Interfaces<'a>,
) -> Node {
    let NodeSource {
        addresses,
        roles,
        uplinks,
        pod_interfaces,
        pod_networks,
        cgroup_root,
    } = &source.value;
    if addresses.is_empty() {
        scope.error(name.span, || {
            Problem::new(
                format!("node {} has no address", quote(&name.value)),
                "write `addresses: [10.0.0.11, fd00::11]`",
            )
        });
    }
    let interface = |text: &str| scalar::interface(text).map(|()| text.to_owned());
    let node = Node {
        name: name.value.clone(),
        addresses: unique(scope, addresses, scalar::host_address),
        roles: unique(scope, roles, |role| Ok(role.to_owned())),
        uplinks: unique(scope, uplinks, interface),
        pod_interfaces: unique(scope, pod_interfaces, interface),
        pod_networks: unique(scope, pod_networks, scalar::pod_network),
        cgroup_root: read_cgroup_root(scope, cgroup_root.as_ref()),
    };
    known.check(scope, uplinks, pod_interfaces);
    node
}

fn read_cgroup_root(scope: &mut Scope<'_, '_>, root: Option<&Spanned<String>>) -> String {
    let Some(root) = root else {
        return "/".to_owned();
    };
    scope.ok(root.span, scalar::cgroup(&root.value));
    if root.value.contains(['*', '?', '[']) {
        scope.error(root.span, || {
            Problem::new(
                "a root has no globs",
                "write the path of the one cgroup it is",
            )
        });
    }
    root.value.clone()
}

fn unknown_role(written: &str, known: &BTreeSet<&str>) -> Problem {
    Problem::unknown(
        format!(
            "no component runs on a node for its role {}",
            quote(written)
        ),
        written,
        known.iter().copied(),
    )
}

fn read_services(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<Vec<Spanned<String>>>,
    components: &[Component],
    nodes: &[Node],
    pod_networks: &[IpNet],
) -> Vec<Service> {
    let by_name: HashMap<&str, &Component> = components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    let mut node_of: HashMap<IpAddr, &str> = HashMap::new();
    for node in nodes {
        node_of.extend(node.addresses.iter().map(|address| (*address, &*node.name)));
    }
    let pods: Nets<()> = pod_networks.iter().copied().collect();
    let mut owners = HashMap::new();
    let mut services = Vec::new();
    for (key, addresses) in &entries.0 {
        let Some(behind) = endpoint_behind(scope, key, components, &by_name) else {
            continue;
        };
        if addresses.value.is_empty() {
            scope.error(key.span, || {
                Problem::new(
                    format!("service {} has no address", quote(&key.value)),
                    "write `[\"10.96.0.1:443\"]`, or leave it out",
                )
            });
        }
        for text in &addresses.value {
            let Some(found) = scope.ok(text.span, scalar::service_address(&text.value)) else {
                continue;
            };
            if let Some(node) = node_of.get(&found.0) {
                scope.error(text.span, || node_address(&text.value, node));
            }
            if let Some((net, ())) = pods.holding(found.0).next() {
                scope.error(text.span, || networks::pods_address(&text.value, net));
            }
            for service in behind.at(found) {
                if let Some(owner) = owners.insert((service.address, service.at), &key.value) {
                    scope.error(text.span, || owned(&text.value, owner, &key.value));
                }
                services.push(service);
            }
        }
    }
    services
}

/// The endpoint behind a service, and whether it uses TCP or UDP.
struct Behind<'a> {
    component: &'a str,
    port: &'a str,
    protocols: Vec<Protocol>,
}

impl Behind<'_> {
    fn at(&self, (address, port): (IpAddr, u16)) -> impl Iterator<Item = Service> {
        self.protocols.iter().map(move |protocol| Service {
            component: self.component.to_owned(),
            port: self.port.to_owned(),
            address,
            at: protocol(port),
        })
    }
}

fn owned(written: &str, owner: &str, key: &str) -> Problem {
    if owner == key {
        return twice(written);
    }
    Problem::new(
        format!("{} leads to {} already", quote(written), quote(owner)),
        "a virtual address and port lead to one endpoint",
    )
}

type Protocol = fn(u16) -> PortMatch;

fn endpoint_behind<'a>(
    scope: &mut Scope<'_, '_>,
    key: &'a Spanned<String>,
    components: &[Component],
    by_name: &HashMap<&str, &Component>,
) -> Option<Behind<'a>> {
    let (component, port) = scope.ok(key.span, scalar::endpoint(&key.value))?;
    let Some(known) = by_name.get(component) else {
        scope.error(key.span, || unknown(component, components));
        return None;
    };
    let Some(known_port) = known.port(port) else {
        scope.error(key.span, || unknown_port(port, known));
        return None;
    };
    if known_port.loopback_only {
        scope.error(key.span, || {
            Problem::new(
                format!(
                    "{} is loopback only, and a service address is not",
                    quote(&key.value)
                ),
                "leave this service out, or open the port under `components`",
            )
        });
    }
    let protocols = protocols(known_port);
    // A port whose text could not be read has been reported already.
    if protocols.is_empty() && !known_port.matches.is_empty() {
        scope.error(key.span, || {
            Problem::new(
                format!("{} has neither TCP nor UDP ports", quote(&key.value)),
                "only what has ports has a service address",
            )
        });
    }
    Some(Behind {
        component,
        port,
        protocols,
    })
}

fn protocols(port: &Port) -> Vec<Protocol> {
    let mut protocols: Vec<Protocol> = Vec::new();
    let any = port.matches.contains(&PortMatch::Any);
    if any
        || port
            .matches
            .iter()
            .any(|found| matches!(found, PortMatch::Tcp(..)))
    {
        protocols.push(|port| PortMatch::Tcp(port, port));
    }
    if any
        || port
            .matches
            .iter()
            .any(|found| matches!(found, PortMatch::Udp(..)))
    {
        protocols.push(|port| PortMatch::Udp(port, port));
    }
    protocols
}

fn node_address(written: &str, node: &str) -> Problem {
    Problem::new(
        format!("{} is an address of node {}", quote(written), quote(node)),
        "a service address is virtual; what runs on nodes is found by its `runsOn`",
    )
}
