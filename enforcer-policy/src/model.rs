//! A valid policy. Everything in these types has been checked: names resolve, ranges are in order, and nothing is empty
//! that must not be. The compiler takes these types and can only fail because of size.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// What happens to a denied connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attached, judged and reported; nothing is dropped.
    DryRun,
    /// Denied connections are dropped.
    Enforce,
}

/// What happens to traffic that is not to a port of a guarded component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OtherTraffic {
    /// Let it pass: only the declared endpoints are guarded.
    Allow,
    /// Drop all other connectivity.
    Drop,
}

/// A whole cluster's inventory and the paths allowed in it, the same on every node.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `metadata.name` of the `PathPolicy`.
    pub name: String,
    /// The selected profile, if any.
    pub profile: Option<String>,
    /// The selected options of the profile.
    pub options: Vec<String>,
    /// Documented paths that were disabled by name.
    pub disabled: Vec<String>,
    /// What happens to a denied connection, unless its path says otherwise.
    pub mode: Mode,
    /// What happens to traffic outside of the declared endpoints.
    pub other_traffic: OtherTraffic,
    /// What happens to plaintext on a path that requires TLS, unless `mode` is dry-run anyway.
    pub tls_lock: Mode,
    /// The nodes of the cluster, in the order of the file.
    pub nodes: Vec<Node>,
    /// Networks that pods get their addresses from; a packet from a pod's interface with a source
    /// outside them is forged.
    pub pod_networks: Vec<IpNet>,
    /// Networks of services' virtual addresses: traffic to them goes to pods.
    pub service_networks: Vec<IpNet>,
    /// All components that the catalogue or the inventory names. Unique names.
    pub components: Vec<Component>,
    /// Virtual addresses: each is one more address of the endpoint behind it.
    pub services: Vec<Service>,
    /// The paths in force. Unique names.
    pub paths: Vec<Path>,
    /// What a reader should know although it is not an error: inert selectors, options without effect.
    pub warnings: Vec<String>,
    /// Senders that reach guarded endpoints and are broader than they look.
    pub wide_senders: Vec<WideSender>,
    /// SHA-256 over the sources, in hexadecimal: identifies the policy in force.
    pub digest: String,
}

/// One node of the cluster.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name, as Kubernetes knows it.
    pub name: String,
    /// Its own addresses (never a network).
    pub addresses: Vec<IpAddr>,
    /// Which components run here: `control-plane`, `etcd`, `worker` or a user's own.
    pub roles: Vec<String>,
    /// Interfaces towards other hosts. Names or globs (`eth*`).
    pub uplinks: Vec<String>,
    /// Host ends of pods' interfaces. Names or globs (`cali*`).
    pub pod_interfaces: Vec<String>,
    /// The part of the pod networks that this node's pods get their addresses from. If empty, a pod may be on any node.
    pub pod_networks: Vec<IpNet>,
    /// Where this node's cgroups start, below the cgroup2 mount; `/` by default.
    pub cgroup_root: String,
}

/// A component: a named sender or receiver.
#[derive(Debug, Clone)]
pub struct Component {
    /// Unique name, as used in `from` and `to`.
    pub name: String,
    /// One sentence that describes it.
    pub description: String,
    /// It runs on nodes with one of these roles and has their addresses; `*` is every node.
    pub runs_on: Vec<String>,
    /// It lives in the pod networks and behind pod interfaces.
    pub in_pod_networks: bool,
    /// Further addresses of it.
    pub addresses: Vec<IpNet>,
    /// It is at every address that nothing else in the inventory has, unless `addresses` is given.
    pub outside: bool,
    /// cgroups of its processes, below the node's cgroup root. Absolute, may hold globs per segment
    /// (`/kubepods.slice/*-pod1234*`). A process in a cgroup below belongs to it, too; the deepest
    /// declared cgroup wins.
    pub cgroups: Vec<String>,
    /// Components that it also counts as when it sends: apiserver is part of `node`.
    pub part_of: Vec<String>,
    /// No process counts as it unless its cgroup is declared. Otherwise a process in no declared cgroup counts as any
    /// component of its node that declares none.
    pub needs_cgroup: bool,
    /// Names of its programs. They are hints about which component was probably denied, and grant nothing.
    pub programs: Vec<String>,
    /// It is anywhere outside as a receiver, but a sender from there does not count as it.
    pub only_receives_outside: bool,
    /// Its named ports.
    pub ports: Vec<Port>,
    /// Whether its ports are guarded under `otherTraffic: Allow`: a peer without a path is denied.
    pub guard: bool,
}

/// A component's named port.
#[derive(Debug, Clone)]
pub struct Port {
    /// Name, unique in the component.
    pub name: String,
    /// What it matches, at least one.
    pub matches: Vec<PortMatch>,
    /// May be reached, and bound, on a loopback address only.
    pub loopback_only: bool,
    /// What operators should know about a denial here; empty if the policy does not say.
    pub denial: String,
}

/// A set of ports, message types or protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// TCP ports, both ends included.
    Tcp(u16, u16),
    /// UDP ports, both ends included.
    Udp(u16, u16),
    /// ICMP (IPv4) message types, both ends included.
    Icmp(u8, u8),
    /// ICMPv6 message types, both ends included.
    Icmp6(u8, u8),
    /// Any other IP protocol by its number (VRRP 112, IPIP 4, ESP 50).
    Protocol(u8),
    /// Address resolution for IPv4.
    Arp,
    /// Everything.
    Any,
}

/// A virtual address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The component behind it.
    pub component: String,
    /// The named port behind it.
    pub port: String,
    /// Its virtual address.
    pub address: IpAddr,
    /// TCP or UDP port at that address; other matches never occur.
    pub at: PortMatch,
}

/// A component that many senders may count as, with the guarded endpoints that it reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WideSender {
    /// Its name.
    pub component: String,
    /// Who may count as it: `everybody in 192.0.2.0/24`.
    pub who: String,
    /// The guarded endpoints that it reaches, `component:port`.
    pub endpoints: Vec<String>,
    /// What would narrow it.
    pub remedy: &'static str,
}

/// Where the two ends of a path may be relative to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Locality {
    /// Anywhere.
    Any,
    /// On the same node.
    SameNode,
}

/// A path: from which components to which endpoint.
#[derive(Debug, Clone)]
pub struct Path {
    /// Unique name.
    pub name: String,
    /// Names of the components that may open it, at least one.
    pub from: Vec<String>,
    /// The component it leads to.
    pub to_component: String,
    /// The named port of that component.
    pub to_port: String,
    /// Only over a loopback address that stays on lo.
    pub loopback: bool,
    /// Where the ends may be.
    pub locality: Locality,
    /// What the client sends first must be a TLS ClientHello. The endpoint is TCP only.
    pub tls: bool,
    /// `DryRun`: a connection to this endpoint that no path allows is reported and not dropped, whatever the policy's
    /// mode is.
    pub mode: Option<Mode>,
    /// Why it exists.
    pub because: String,
    /// The document that names it; empty for a user's own path.
    pub document: String,
    /// What users observe if it is missing; empty if that is not documented.
    pub symptom: String,
    /// The first Kubernetes version that has it (`1.18`), empty for all.
    pub since: String,
    /// The first Kubernetes version that no longer has it (`1.24`), empty for none.
    pub until: String,
    /// `catalogue`, or `FILE:LINE`.
    pub origin: String,
}

impl Policy {
    /// The component of that name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }
}

/// Nodes by their roles. There may be thousands of nodes but few distinct lists of roles, so each list is evaluated
/// once.
#[derive(Debug)]
pub(crate) struct Roles<'a> {
    held: HashSet<&'a str>,
    kinds: Vec<&'a Node>,
}

impl<'a> Roles<'a> {
    /// The roles of some nodes.
    pub fn of(nodes: &'a [Node]) -> Self {
        let mut seen: HashSet<&[String]> = HashSet::new();
        let is_first = |node: &&'a Node| seen.insert(&node.roles);
        let kinds: Vec<&Node> = nodes.iter().filter(is_first).collect();
        let held = kinds.iter().flat_map(|node| &node.roles);
        Self {
            held: held.map(String::as_str).collect(),
            kinds,
        }
    }

    /// The first node of each list of roles that occurs.
    pub fn kinds(&self) -> &[&'a Node] {
        &self.kinds
    }

    /// Whether a component runs on any node.
    pub fn run(&self, component: &Component) -> bool {
        component.runs_on.iter().any(|role| match role.as_str() {
            "*" => !self.kinds.is_empty(),
            role => self.held.contains(role),
        })
    }
}

impl Port {
    /// How much it covers: a thousand ports, or one.
    pub fn width(&self) -> u32 {
        let width = |found: &PortMatch| match found {
            PortMatch::Tcp(first, last) | PortMatch::Udp(first, last) => {
                u32::from(last - first) + 1
            }
            PortMatch::Icmp(first, last) | PortMatch::Icmp6(first, last) => {
                u32::from(last - first) + 1
            }
            PortMatch::Protocol(_) | PortMatch::Arp => 1,
            // More than all ports of both protocols.
            PortMatch::Any => 1 << 20,
        };
        self.matches.iter().map(width).fold(0, u32::saturating_add)
    }
}

impl Component {
    /// The port of that name.
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|p| p.name == name)
    }

    /// Whether it runs on that node by one of the node's roles.
    pub fn runs_on(&self, node: &Node) -> bool {
        self.runs_on
            .iter()
            .any(|role| role == "*" || node.roles.contains(role))
    }

    /// It covers every address of a family, so everybody counts as it (`world`).
    pub fn is_everyone(&self) -> bool {
        self.addresses.iter().any(|net| net.prefix_len() == 0)
    }

    /// It is at every address that nothing else has: `addresses` would narrow it.
    pub fn is_elsewhere(&self) -> bool {
        self.outside && self.addresses.is_empty()
    }

    /// A process of such a node in no declared cgroup counts as it.
    pub fn counts_undeclared(&self) -> bool {
        self.cgroups.is_empty() && !self.needs_cgroup
    }
}
