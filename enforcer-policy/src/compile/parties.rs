//! The distinct sets of components that occur at addresses, in cgroups and behind interfaces.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use enforcer_common::{
    addr::Ip,
    limits,
    tables::{NOBODY, Party, Place},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::tables::{CgroupRule, CompileError, PrefixEntry};
use crate::model::{Component, Node, Policy};

/// Indices into the policy's components, nodes or services.
pub type Set = BTreeSet<usize>;

/// One distinct set, seen as sender and as receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PartyInfo {
    /// Components that a sender there counts as.
    pub senders: Set,
    /// Components whose endpoints are there.
    pub occupants: Set,
    /// Services whose virtual address it is.
    pub services: Set,
    /// Addresses of the loopback interface.
    pub loopback: bool,
    /// Processes of this node.
    pub process: bool,
    /// The node's own init: it holds ports for the units that it starts.
    pub init: bool,
    /// The node where it is, if that is known.
    pub node: Option<usize>,
    /// A virtual address: which node is behind it, nobody knows before its packets are translated.
    pub is_virtual: bool,
}

/// All parties of a node's tables.
pub struct Parties {
    infos: Vec<PartyInfo>,
    numbers: HashMap<PartyInfo, Party>,
    /// Who is at which prefix, in the order of networks and lengths.
    pub prefixes: Arc<[PrefixEntry]>,
    /// All lengths of them, longest first.
    pub prefix_lengths: Vec<u32>,
    /// Who is in which cgroup.
    pub cgroups: Vec<CgroupRule>,
    /// Processes in no declared cgroup.
    pub undeclared: Party,
    /// All that may run on this node.
    pub local: Party,
    /// This node's own addresses.
    pub own: Party,
    /// Whatever sends from a pod's interface.
    pub pods: Party,
}

/// What is declared at one prefix, by itself or by a wider one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Declared {
    components: Set,
    services: Set,
    nodes: Set,
    /// Nodes whose pods have their addresses from here.
    pod_nodes: Set,
    pods: bool,
    service_network: bool,
}

/// One thing that is declared at a prefix, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mark {
    Nothing,
    Component(usize),
    Pods,
    PodsOf(usize),
    ServiceNetwork,
    Node(usize),
    Service(usize),
}

/// In how a prefix is declared: prefixes of the same way are the same parties'.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Way {
    marks: Vec<Mark>,
    /// What is declared around it, by its number.
    within: Option<usize>,
    loopback: bool,
}

impl Declared {
    fn of(marks: &[Mark]) -> Self {
        let mut declared = Self::default();
        for mark in marks {
            match *mark {
                Mark::Nothing => {}
                Mark::Component(index) => {
                    declared.components.insert(index);
                }
                Mark::Pods => declared.pods = true,
                Mark::PodsOf(index) => {
                    declared.pods = true;
                    declared.pod_nodes.insert(index);
                }
                Mark::ServiceNetwork => declared.service_network = true,
                Mark::Node(index) => {
                    declared.nodes.insert(index);
                }
                Mark::Service(index) => {
                    declared.services.insert(index);
                }
            }
        }
        declared
    }

    fn join(&mut self, wider: &Self) {
        self.components.extend(&wider.components);
        self.services.extend(&wider.services);
        self.nodes.extend(&wider.nodes);
        self.pod_nodes.extend(&wider.pod_nodes);
        self.pods |= wider.pods;
        self.service_network |= wider.service_network;
    }
}

fn is_loopback(net: &IpNet) -> bool {
    LOOPBACK.iter().any(|lo| lo.contains(net))
}

/// What parties are made from.
struct Cluster<'a> {
    policy: &'a Policy,
    node: &'a Node,
    here: Option<usize>,
    everyone: Set,
}

impl Parties {
    /// The parties of a policy on one of its nodes.
    pub fn of(policy: &Policy, node: &Node) -> Result<Self, CompileError> {
        let cluster = Cluster {
            policy,
            node,
            here: policy.nodes.iter().position(|n| n.name == node.name),
            everyone: indices(&policy.components, Component::is_everyone),
        };
        let mut parties = Self {
            infos: Vec::new(),
            numbers: HashMap::new(),
            prefixes: Arc::default(),
            prefix_lengths: Vec::new(),
            cgroups: Vec::new(),
            undeclared: NOBODY,
            local: NOBODY,
            own: NOBODY,
            pods: NOBODY,
        };
        // The first is NOBODY, who is only what everybody is.
        let nobody = PartyInfo {
            senders: cluster.everyone.clone(),
            ..PartyInfo::default()
        };
        parties.intern(nobody)?;
        parties.add_prefixes(&cluster)?;
        parties.add_cgroups(&cluster)?;
        parties.undeclared = parties.intern(cluster.process(&cluster.undeclared()))?;
        parties.pods = parties.intern(cluster.behind_pod_interface())?;
        parties.local = parties.intern(cluster.anybody_here())?;
        Ok(parties)
    }

    /// All of them, in the order of their numbers.
    pub fn infos(&self) -> &[PartyInfo] {
        &self.infos
    }

    fn intern(&mut self, info: PartyInfo) -> Result<Party, CompileError> {
        if let Some(party) = self.numbers.get(&info) {
            return Ok(*party);
        }
        let number = self.infos.len();
        if number >= limits::MAX_PARTIES as usize {
            let (what, max) = ("distinct sets of components", limits::MAX_PARTIES);
            return Err(CompileError::TooMany { what, max });
        }
        self.infos.push(info.clone());
        // MAX_PARTIES fits.
        self.numbers.insert(info, number as Party);
        Ok(number as Party)
    }

    fn add_prefixes(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        let marks = cluster.marks();
        let mut prefixes = Vec::with_capacity(marks.len());
        // Addresses come by the thousand, and in few ways.
        let mut ways: HashMap<Way, (usize, Place)> = HashMap::new();
        let mut all: Vec<Declared> = Vec::new();
        // Sorted by address and then length, so that a wider prefix comes before those within it.
        let mut enclosing: Vec<(IpNet, usize)> = Vec::new();
        let mut way = Way::default();
        for group in marks.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((net, _)) = group.first() else {
                continue;
            };
            while enclosing
                .last()
                .is_some_and(|(wider, _)| !wider.contains(net))
            {
                enclosing.pop();
            }
            way.within = enclosing.last().map(|(_, declared)| *declared);
            way.loopback = is_loopback(net);
            way.marks.clear();
            way.marks.extend(group.iter().map(|(_, mark)| *mark));
            let (declared, place) = match ways.get(&way) {
                Some(known) => *known,
                None => {
                    let mut declared = Declared::of(&way.marks);
                    if let Some(wider) = way.within.and_then(|wider| all.get(wider)) {
                        declared.join(wider);
                    }
                    let place = self.place(cluster, net, &declared)?;
                    all.push(declared);
                    let known = (all.len() - 1, place);
                    ways.insert(way.clone(), known);
                    known
                }
            };
            let (network, length) = mapped(net);
            prefixes.push(PrefixEntry {
                network,
                length,
                place,
            });
            enclosing.push((*net, declared));
        }
        if prefixes.len() > limits::MAX_PREFIXES as usize {
            let (what, max) = ("address prefixes", limits::MAX_PREFIXES);
            return Err(CompileError::TooMany { what, max });
        }
        let lengths: BTreeSet<u32> = prefixes.iter().map(|entry| entry.length).collect();
        self.prefix_lengths = lengths.into_iter().rev().collect();
        // IPv4 came first, and stands in the midst of IPv6.
        prefixes.sort_by_key(|entry| (entry.network, entry.length));
        self.prefixes = prefixes.into();
        Ok(())
    }

    fn place(
        &mut self,
        cluster: &Cluster<'_>,
        net: &IpNet,
        declared: &Declared,
    ) -> Result<Place, CompileError> {
        let party = self.intern(cluster.at(net, declared))?;
        let mut flags = 0;
        if let Some(node) = declared.nodes.first() {
            let here = Some(*node) == cluster.here;
            flags |= if here { Place::OWN } else { Place::OTHER_NODE };
            if here && self.own == NOBODY {
                self.own = party;
            }
        }
        if declared.pods {
            flags |= Place::POD;
            if declared
                .components
                .iter()
                .any(|c| !cluster.everyone.contains(c))
            {
                flags |= Place::NAMED;
            }
        }
        Ok(Place { party, flags })
    }

    fn add_cgroups(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        let mut declared: BTreeMap<&str, Set> = BTreeMap::new();
        for (index, component) in cluster.policy.components.iter().enumerate() {
            if cluster.may_run_here(component) {
                for pattern in &component.cgroups {
                    declared.entry(pattern).or_default().insert(index);
                }
            }
        }
        for (pattern, components) in declared {
            let party = self.intern(cluster.process(&components))?;
            let names = components
                .iter()
                .map(|i| cluster.policy.components[*i].name.clone());
            let components = names.collect();
            self.cgroups.push(CgroupRule {
                pattern: pattern.to_owned(),
                party,
                components,
            });
        }
        self.add_init(cluster)
    }

    /// Sockets of systemd itself are bound for a unit that it is yet to start (`ssh.socket`): whoever they are meant for, nobody
    /// but root can make one there.
    fn add_init(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        if self.cgroups.iter().any(|rule| rule.pattern == INIT) {
            return Ok(());
        }
        let party = self.intern(PartyInfo {
            init: true,
            ..cluster.process(&cluster.undeclared())
        })?;
        self.cgroups.push(CgroupRule {
            pattern: INIT.to_owned(),
            party,
            components: Vec::new(),
        });
        Ok(())
    }
}

/// Where systemd keeps process 1.
const INIT: &str = "/init.scope";

impl Cluster<'_> {
    /// All that is declared, by prefix and in the order of prefixes.
    fn marks(&self) -> Vec<(IpNet, Mark)> {
        // IPv4 stands within ::/0 in the tables: it needs an end of its own there.
        let mut marks = vec![
            (IpNet::V4(Ipv4Net::default()), Mark::Nothing),
            (IpNet::V6(Ipv6Net::default()), Mark::Nothing),
        ];
        marks.extend(LOOPBACK.map(|net| (net, Mark::Nothing)));
        for (index, component) in self.policy.components.iter().enumerate() {
            let nets = component.addresses.iter();
            marks.extend(nets.map(|net| (net.trunc(), Mark::Component(index))));
        }
        let nets = self.policy.pod_networks.iter();
        marks.extend(nets.map(|net| (net.trunc(), Mark::Pods)));
        let nets = self.policy.service_networks.iter();
        marks.extend(nets.map(|net| (net.trunc(), Mark::ServiceNetwork)));
        for (index, node) in self.policy.nodes.iter().enumerate() {
            let nets = node.pod_networks.iter();
            marks.extend(nets.map(|net| (net.trunc(), Mark::PodsOf(index))));
            let addresses = node.addresses.iter();
            marks.extend(addresses.map(|address| (IpNet::from(*address), Mark::Node(index))));
        }
        for (index, service) in self.policy.services.iter().enumerate() {
            marks.push((IpNet::from(service.address), Mark::Service(index)));
        }
        // What somebody wrote in order is sorted at once.
        marks.sort();
        marks.dedup();
        marks
    }

    fn at(&self, net: &IpNet, declared: &Declared) -> PartyInfo {
        let loopback = is_loopback(net);
        let pods = || indices(&self.policy.components, |c| c.in_pod_networks);
        let mut occupants = declared.components.clone();
        let mut senders = Set::new();
        if declared.pods {
            occupants.extend(pods());
        }
        let mut node = declared
            .nodes
            .first()
            .or(declared.pod_nodes.first())
            .copied();
        if loopback {
            occupants.extend(self.located_here());
            senders.extend(self.on_any_node());
            node = self.here;
        }
        for index in &declared.nodes {
            let there = &self.policy.nodes[*index];
            occupants.extend(indices(&self.policy.components, |c| c.runs_on(there)));
            senders.extend(self.on_any_node());
        }
        senders.extend(&occupants);
        if !loopback && self.is_outside(declared) {
            let components = &self.policy.components;
            occupants.extend(indices(components, Component::is_elsewhere));
            senders.extend(indices(components, |c| {
                c.is_elsewhere() && !c.only_receives_outside
            }));
        }
        // What leads to a service leads to pods; nobody sends from there.
        if declared.service_network {
            occupants.extend(pods());
        }
        PartyInfo {
            senders: self.closed(&senders),
            occupants,
            services: declared.services.clone(),
            loopback,
            process: false,
            init: false,
            node,
            is_virtual: declared.service_network || !declared.services.is_empty(),
        }
    }

    /// Nothing of the cluster is there, and no component with a port of its own.
    fn is_outside(&self, declared: &Declared) -> bool {
        let has_ports =
            |c: &usize| !self.everyone.contains(c) && !self.policy.components[*c].ports.is_empty();
        let Declared {
            components,
            services,
            nodes,
            pod_nodes: _,
            pods,
            service_network,
        } = declared;
        nodes.is_empty()
            && services.is_empty()
            && !pods
            && !service_network
            && !components.iter().any(has_ports)
    }

    /// What is known by its cgroup and by no role may be on any node, and sends from its addresses:
    /// pods in the host's network namespace among them.
    fn on_any_node(&self) -> Set {
        indices(&self.policy.components, |c| {
            c.runs_on.is_empty() && !c.cgroups.is_empty()
        })
    }

    fn located_here(&self) -> Set {
        indices(&self.policy.components, |c| {
            c.runs_on(self.node)
                || self
                    .node
                    .addresses
                    .iter()
                    .any(|own| c.addresses.iter().any(|n| n.contains(own)))
        })
    }

    fn may_run_here(&self, component: &Component) -> bool {
        component.runs_on.is_empty() || component.runs_on(self.node)
    }

    /// Who a process in no declared cgroup may be: whatever is here, declares none and needs none.
    fn undeclared(&self) -> Set {
        let mut here = self.located_here();
        here.retain(|i| self.policy.components[*i].counts_undeclared());
        here
    }

    fn process(&self, components: &Set) -> PartyInfo {
        let senders = self.closed(components);
        PartyInfo {
            senders,
            process: true,
            node: self.here,
            ..PartyInfo::default()
        }
    }

    fn behind_pod_interface(&self) -> PartyInfo {
        let senders = self.closed(&indices(&self.policy.components, |c| c.in_pod_networks));
        PartyInfo {
            senders,
            node: self.here,
            ..PartyInfo::default()
        }
    }

    fn anybody_here(&self) -> PartyInfo {
        let mut senders = self.located_here();
        senders.extend(indices(&self.policy.components, |c| {
            !c.cgroups.is_empty() && self.may_run_here(c)
        }));
        PartyInfo {
            senders: self.closed(&senders),
            node: self.here,
            ..PartyInfo::default()
        }
    }

    /// With everything that they are part of, and everyone.
    fn closed(&self, components: &Set) -> Set {
        let mut all = self.everyone.clone();
        let mut open: Vec<usize> = components.iter().copied().collect();
        while let Some(index) = open.pop() {
            if all.insert(index) {
                let part_of = &self.policy.components[index].part_of;
                open.extend(indices(&self.policy.components, |c| {
                    part_of.contains(&c.name)
                }));
            }
        }
        all
    }
}

const LOOPBACK: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

fn indices(components: &[Component], keep: impl Fn(&Component) -> bool) -> Set {
    components
        .iter()
        .enumerate()
        .filter(|(_, c)| keep(c))
        .map(|(i, _)| i)
        .collect()
}

/// A network as the kernel's trie holds it.
fn mapped(net: &IpNet) -> (Ip, u32) {
    let length = u32::from(net.prefix_len());
    let length = if matches!(net, IpNet::V4(_)) {
        length + 96
    } else {
        length
    };
    (Ip::from(net.network()), length)
}
