//! The input for the tables of every node, computed once for all of them: what is declared at which prefix, which node
//! owns the prefix, and what runs on nodes of which roles.
//!
//! There may be thousands of nodes, but only a few distinct declarations. What takes more than a step for each prefix
//! is done once for each distinct declaration: so the work grows with what a policy distinguishes and not with its
//! nodes.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use enforcer_common::addr::Ip;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Component, Node, Policy};

/// Indices into the policy's components, services or kinds of nodes.
pub type Set = BTreeSet<usize>;

/// A policy, and everything about it that is the same on every node.
pub struct Ground<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What components count as.
    pub crowd: Crowd,
    /// The distinct sets of components that run on nodes by their roles.
    kinds: Vec<Set>,
    /// The kind of each node: an index into `kinds`.
    kind_of: Vec<usize>,
    /// All prefixes, IPv4 first, in the order of networks and lengths.
    pub spots: Vec<Spot>,
    /// The distinct declarations.
    pub declarations: Vec<Declared>,
    /// All lengths of prefixes, longest first.
    pub lengths: Vec<u32>,
    /// The declarations of each node's prefixes: pairs of node and declaration, each once and in order.
    owned: Vec<(usize, usize)>,
}

/// A prefix, and what is declared there.
#[derive(Debug, Clone, Copy)]
pub struct Spot {
    /// The network, IPv4 in its mapped form.
    pub network: Ip,
    /// Length of the prefix in bits, of 128.
    pub length: u32,
    /// What is declared there: an index into `declarations`.
    pub declaration: usize,
    /// The node that has the address, or whose pods get their addresses from the prefix.
    pub owner: Option<usize>,
}

/// What is declared at a prefix, by the prefix itself and by those around it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Declared {
    /// Components that have the address.
    pub components: Set,
    /// Services whose virtual address it is.
    pub services: Set,
    /// Kinds of the nodes that have the address. A valid policy has one node at an address.
    pub kinds: Set,
    /// It is in a network of pods.
    pub pods: bool,
    /// It is in a network of services.
    pub service_network: bool,
    /// Addresses of the loopback interface.
    pub loopback: bool,
}

/// A node, with what its tables depend on.
pub struct Here<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its index.
    pub index: usize,
    /// Components that run on it by its roles.
    pub runs: &'a Set,
    /// These, and those that have one of the node's addresses.
    pub located: Set,
}

/// A single declaration at a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mark {
    Nothing,
    Component(usize),
    Pods,
    /// The pods of a node, by its index; in a [`PrefixSource`], of any node.
    PodsOf(Option<usize>),
    ServiceNetwork,
    /// A node by its index; in a [`PrefixSource`], by its kind.
    Node(usize),
    Service(usize),
}

/// How a prefix is declared. Prefixes with the same source lead to the same parties on all nodes, except on their
/// owners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct PrefixSource {
    marks: Vec<Mark>,
    /// The declaration of the next wider prefix around it, as an index.
    within: Option<usize>,
    loopback: bool,
}

/// A network as numbers, for fast comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Bits {
    /// IPv4 networks are within `::/0` in the tables, but are declared separately from it.
    is_v6: bool,
    network: u128,
    length: u8,
}

impl Bits {
    fn of(net: &IpNet) -> Self {
        let length = net.prefix_len();
        Self {
            is_v6: matches!(net, IpNet::V6(_)),
            network: u128::from_be_bytes(Ip::from(net.network()).0),
            length: match net {
                IpNet::V4(_) => length + 96,
                IpNet::V6(_) => length,
            },
        }
    }

    fn contains(&self, other: &Self) -> bool {
        let differ = self.network ^ other.network;
        self.is_v6 == other.is_v6
            && self.length <= other.length
            && differ
                .checked_shr(128 - u32::from(self.length))
                .unwrap_or(0)
                == 0
    }
}

impl<'a> Ground<'a> {
    /// Goes through everything that is declared, once.
    pub fn of(policy: &'a Policy) -> Self {
        let (kinds, kind_of) = kinds(policy);
        let mut ground = Self {
            policy,
            crowd: Crowd::of(&policy.components),
            kinds,
            kind_of,
            spots: Vec::new(),
            declarations: Vec::new(),
            lengths: Vec::new(),
            owned: Vec::new(),
        };
        ground.look();
        let spots = ground.spots.iter();
        let lengths: BTreeSet<u32> = spots.clone().map(|spot| spot.length).collect();
        ground.lengths = lengths.into_iter().rev().collect();
        ground.owned = spots
            .filter_map(|spot| Some((spot.owner?, spot.declaration)))
            .collect();
        ground.owned.sort_unstable();
        ground.owned.dedup();
        ground
    }

    fn look(&mut self) {
        let marks = marks(self.policy);
        self.spots.reserve(marks.len());
        let loopback = LOOPBACK.map(|net| Bits::of(&net));
        let mut numbers: HashMap<PrefixSource, usize> = HashMap::new();
        // Sorted by network and then length, so that a wider prefix comes before those within it.
        let mut enclosing: Vec<(Bits, usize, Option<usize>)> = Vec::new();
        let mut source = PrefixSource::default();
        for group in marks.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((bits, _)) = group.first() else {
                continue;
            };
            while enclosing
                .last()
                .is_some_and(|(wider, ..)| !wider.contains(bits))
            {
                enclosing.pop();
            }
            let around = enclosing.last();
            let owner = group.iter().find_map(|(_, mark)| match mark {
                Mark::Node(index) | Mark::PodsOf(Some(index)) => Some(*index),
                _ => None,
            });
            let owner = owner.or(around.and_then(|(.., owner)| *owner));
            source.within = around.map(|(_, number, _)| *number);
            source.loopback = loopback.iter().any(|lo| lo.contains(bits));
            source.marks.clear();
            source
                .marks
                .extend(group.iter().map(|(_, mark)| match mark {
                    Mark::Node(index) => Mark::Node(self.kind_of[*index]),
                    Mark::PodsOf(_) => Mark::PodsOf(None),
                    mark => *mark,
                }));
            source.marks.dedup();
            let number = match numbers.get(&source) {
                Some(known) => *known,
                None => {
                    self.declarations.push(self.declared(&source));
                    let number = self.declarations.len() - 1;
                    numbers.insert(source.clone(), number);
                    number
                }
            };
            self.spots.push(Spot {
                network: Ip(bits.network.to_be_bytes()),
                length: bits.length.into(),
                declaration: number,
                owner,
            });
            enclosing.push((*bits, number, owner));
        }
    }

    fn declared(&self, source: &PrefixSource) -> Declared {
        let mut declared = source
            .within
            .and_then(|wider| self.declarations.get(wider))
            .cloned()
            .unwrap_or_default();
        declared.loopback = source.loopback;
        for mark in &source.marks {
            match *mark {
                Mark::Nothing => {}
                Mark::Component(index) => {
                    declared.components.insert(index);
                }
                Mark::Pods | Mark::PodsOf(_) => declared.pods = true,
                Mark::ServiceNetwork => declared.service_network = true,
                Mark::Node(kind) => {
                    declared.kinds.insert(kind);
                }
                Mark::Service(index) => {
                    declared.services.insert(index);
                }
            }
        }
        declared
    }

    /// The components that run on nodes of a kind.
    pub fn kind(&self, kind: usize) -> &Set {
        &self.kinds[kind]
    }

    /// A node by its index, with what is located there.
    pub fn here(&self, index: usize) -> Here<'_> {
        let runs = &self.kinds[self.kind_of[index]];
        let mut located = runs.clone();
        for declaration in self.declarations_of(index) {
            let declared = &self.declarations[declaration];
            if !declared.kinds.is_empty() {
                located.extend(&declared.components);
            }
        }
        Here {
            node: &self.policy.nodes[index],
            index,
            runs,
            located,
        }
    }

    /// The declarations of a node's prefixes: its addresses, its pods' networks, and what is in those. Each once, in
    /// order.
    fn declarations_of(&self, node: usize) -> impl Iterator<Item = usize> {
        let first = self.owned.partition_point(|(owner, _)| *owner < node);
        let behind = self.owned.partition_point(|(owner, _)| *owner <= node);
        self.owned[first..behind]
            .iter()
            .map(|(_, declaration)| *declaration)
    }

    /// For each node, the first one whose tables differ only in the addresses.
    ///
    /// Nodes are alike if they are of the same kind and their prefixes have the same declarations. That suffices
    /// because what is at a prefix follows from its declaration and from whether its owner is this node, another one or
    /// none. For prefixes of the node itself, the declarations are the same on both nodes. So they are for prefixes of
    /// other nodes: each of the two sees the other's prefixes there, and their declarations are the same. Prefixes
    /// without an owner are the same everywhere. Processes, and what is here by its address, follow from the kind and
    /// from the declarations of the node's own addresses.
    pub fn alike(&self) -> Vec<usize> {
        let mut first: HashMap<(usize, Vec<usize>), usize> = HashMap::new();
        let nodes = 0..self.policy.nodes.len();
        nodes
            .map(|node| {
                let declarations = self.declarations_of(node).collect();
                *first
                    .entry((self.kind_of[node], declarations))
                    .or_insert(node)
            })
            .collect()
    }
}

/// What components count as, and where those are that have no address of their own.
pub struct Crowd {
    /// Components that include everybody.
    pub everyone: Set,
    /// Those in the networks of pods.
    pub in_pods: Set,
    /// Those that are at every address that nothing else has.
    pub elsewhere: Set,
    /// Those of them that a sender from there counts as.
    pub senders_elsewhere: Set,
    /// Components with cgroups but without roles may be on any node and send from its addresses, such as pods in the
    /// host's network namespace.
    pub on_any_node: Set,
    /// Those with ports of their own, except those that include everybody.
    with_ports: Set,
    /// The components that each component is part of, directly.
    wholes: Vec<Vec<usize>>,
}

impl Crowd {
    fn of(components: &[Component]) -> Self {
        let by_name: HashMap<&str, usize> = components
            .iter()
            .enumerate()
            .map(|(index, component)| (component.name.as_str(), index))
            .collect();
        let wholes = |component: &Component| {
            let names = component.part_of.iter();
            names
                .filter_map(|name| by_name.get(name.as_str()))
                .copied()
                .collect()
        };
        let those = |keep: &dyn Fn(&Component) -> bool| -> Set {
            let all = components.iter().enumerate();
            all.filter(|(_, component)| keep(component))
                .map(|(index, _)| index)
                .collect()
        };
        Self {
            everyone: those(&Component::is_everyone),
            in_pods: those(&|c| c.in_pod_networks),
            elsewhere: those(&Component::is_elsewhere),
            senders_elsewhere: those(&|c| c.is_elsewhere() && !c.only_receives_outside),
            on_any_node: those(&|c| c.runs_on.is_empty() && !c.cgroups.is_empty()),
            with_ports: those(&|c| !c.is_everyone() && !c.ports.is_empty()),
            wholes: components.iter().map(wholes).collect(),
        }
    }

    /// The set with everything that its components are part of, and with those that include everybody.
    pub fn closed(&self, components: &Set) -> Set {
        let mut all = self.everyone.clone();
        let mut open: Vec<usize> = components.iter().copied().collect();
        while let Some(index) = open.pop() {
            if all.insert(index) {
                open.extend(&self.wholes[index]);
            }
        }
        all
    }

    /// Whether nothing of the cluster is declared there, and no component with a port of its own.
    pub fn is_outside(&self, declared: &Declared) -> bool {
        let Declared {
            components,
            services,
            kinds,
            pods,
            service_network,
            loopback,
        } = declared;
        kinds.is_empty()
            && services.is_empty()
            && !pods
            && !service_network
            && !loopback
            && components.is_disjoint(&self.with_ports)
    }
}

/// The distinct sets of components that run on nodes by their roles, and the set of each node.
fn kinds(policy: &Policy) -> (Vec<Set>, Vec<usize>) {
    let mut by_role: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, component) in policy.components.iter().enumerate() {
        for role in &component.runs_on {
            by_role.entry(role).or_default().push(index);
        }
    }
    let mut kinds: Vec<Set> = Vec::new();
    let mut numbers: HashMap<Set, usize> = HashMap::new();
    let mut by_roles: HashMap<&[String], usize> = HashMap::new();
    let kind_of = policy.nodes.iter().map(|node| {
        *by_roles.entry(&node.roles).or_insert_with(|| {
            let roles = node.roles.iter().map(String::as_str).chain(["*"]);
            let set: Set = roles
                .filter_map(|role| by_role.get(role))
                .flatten()
                .copied()
                .collect();
            *numbers.entry(set).or_insert_with_key(|set| {
                kinds.push(set.clone());
                kinds.len() - 1
            })
        })
    });
    let kind_of = kind_of.collect();
    (kinds, kind_of)
}

/// Everything that is declared, in the order of prefixes.
fn marks(policy: &Policy) -> Vec<(Bits, Mark)> {
    let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    // IPv4 is within ::/0 in the tables, so it needs a prefix of its own to end that.
    let nothing = everything.into_iter().chain(LOOPBACK);
    let mut marks: Vec<(Bits, Mark)> = nothing.map(|net| (Bits::of(&net), Mark::Nothing)).collect();
    let mut add = |nets: &[IpNet], mark: Mark| {
        marks.extend(nets.iter().map(|net| (Bits::of(net), mark)));
    };
    for (index, component) in policy.components.iter().enumerate() {
        add(&component.addresses, Mark::Component(index));
    }
    add(&policy.pod_networks, Mark::Pods);
    add(&policy.service_networks, Mark::ServiceNetwork);
    for (index, node) in policy.nodes.iter().enumerate() {
        add(&node.pod_networks, Mark::PodsOf(Some(index)));
        for address in &node.addresses {
            add(&[IpNet::from(*address)], Mark::Node(index));
        }
    }
    for (index, service) in policy.services.iter().enumerate() {
        add(&[IpNet::from(service.address)], Mark::Service(index));
    }
    // Sorting input that is already in order is fast.
    marks.sort();
    marks.dedup();
    marks
}

const LOOPBACK: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];
