//! The meaning of a policy, implemented as naively as possible: from the project's documents, on
//! the policy as it was read. No tables, no classes, no numbers. Slow, and meant to be obviously
//! right.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use enforcer_common::packet::PortKind;
use enforcer_policy::model::{
    Component, Locality, Node, OtherTraffic, Path, Policy, Port, PortMatch, Service,
};

use crate::bytes::Meaning;

/// The verdict on a packet or a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Path(String),
    /// A path that requires TLS.
    TlsPath(String),
    Other,
    Denied(&'static str),
}

/// A verdict, with what decides between two of them: whether a guarded port is the target.
#[derive(Debug, Clone)]
struct Opinion {
    judgement: Judgement,
    guarded: bool,
    /// It is about the reverse direction.
    back: bool,
}

impl Opinion {
    /// A packet that was judged before is denied only for the sake of a guarded port.
    fn only_guarded(self) -> Judgement {
        match self.judgement {
            Judgement::Denied(_) if !self.guarded => Judgement::Other,
            judgement => judgement,
        }
    }
}

/// A denial because of what the packet is, whatever its target.
fn denied(reason: &'static str) -> Opinion {
    Opinion {
        judgement: Judgement::Denied(reason),
        guarded: true,
        back: false,
    }
}

/// What a packet is, as its sender would describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SYN and no ACK.
    Syn(u16, u16),
    /// Any other TCP segment.
    Segment(u16, u16),
    Udp(u16, u16),
    /// An ICMP or ICMPv6 message that is neither an error nor an echo reply.
    Message(PortKind, u8),
    EchoReply(PortKind),
    /// Another protocol.
    Protocol(u8),
    Arp,
    /// Any fragment but the first.
    LaterFragment,
}

impl Kind {
    /// The sender's and the receiver's port; `None` if it has none.
    fn numbers(self) -> Option<(PortKind, u16, u16)> {
        match self {
            Kind::Syn(own, other) | Kind::Segment(own, other) => Some((PortKind::Tcp, own, other)),
            Kind::Udp(own, other) => Some((PortKind::Udp, own, other)),
            Kind::Message(port_kind, number) => Some((port_kind, 0, number.into())),
            Kind::EchoReply(port_kind) => {
                let reply = if port_kind == PortKind::Icmp { 0 } else { 129 };
                Some((port_kind, request_of(port_kind), reply))
            }
            Kind::Protocol(number) => Some((PortKind::Protocol, number.into(), number.into())),
            Kind::Arp => Some((PortKind::Arp, 0, 0)),
            Kind::LaterFragment => None,
        }
    }
}

/// Where the packet enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Uplink,
    /// `true`: through the interface to which its source address is routed.
    Pod(bool),
}

/// Through which interface a packet arrived that a socket of this node receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceivedVia {
    Lo,
    Uplink,
    Pod,
    /// Through an undeclared interface, where nothing has judged it yet.
    Undeclared,
}

/// Through which interface a packet arrived that leaves this node again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedFrom {
    Uplink,
    Pod,
}

/// What a sender counts as.
#[derive(Debug, Clone)]
struct Sender<'a> {
    is: BTreeSet<&'a str>,
    node: Option<&'a str>,
    process: bool,
    /// Known only by its address.
    by_address: bool,
}

/// What there is at an address.
#[derive(Debug, Clone)]
struct Spot<'a> {
    sender: Sender<'a>,
    residents: BTreeSet<&'a str>,
    services: Vec<&'a Service>,
    loopback: bool,
    node: Option<&'a str>,
    /// A service's address: the node behind it is unknown.
    is_virtual: bool,
    own: bool,
    other_node: bool,
    pod: bool,
    /// A component among the pods is declared with this address.
    named: bool,
}

pub struct Oracle<'a> {
    pub policy: &'a Policy,
    pub node: &'a Node,
}

impl<'a> Oracle<'a> {
    /// The verdict on a frame that enters through an interface.
    pub fn frame_arrives(&self, entry: Entry, meaning: &Meaning) -> Judgement {
        match *meaning {
            Meaning::Packet(src, dst, kind) => self.arrives(entry, src, dst, kind),
            Meaning::Error { src, dst, about } => match self.may_come_from(entry, src, dst) {
                Ok(()) => self.reports(dst, about),
                Err(reason) => Judgement::Denied(reason),
            },
            Meaning::Unknown => self.unknown(),
            Meaning::Broken(reason) => Judgement::Denied(reason),
        }
    }

    /// The verdict on a frame that a process of this node sends.
    pub fn frame_is_sent(&self, cgroup: &str, on_lo: bool, meaning: &Meaning) -> Judgement {
        match *meaning {
            Meaning::Packet(src, dst, kind) => self.sends(cgroup, on_lo, src, dst, kind),
            Meaning::Error { src, dst, about } => {
                if !on_lo && (src.is_loopback() || dst.is_loopback()) {
                    Judgement::Denied("LoopbackOffLo")
                } else if self.spot(src).other_node {
                    Judgement::Denied("ForgedSource")
                } else {
                    self.reports(dst, about)
                }
            }
            Meaning::Unknown => self.unknown(),
            Meaning::Broken(reason) => Judgement::Denied(reason),
        }
    }

    fn unknown(&self) -> Judgement {
        match self.policy.other_traffic {
            OtherTraffic::Allow => Judgement::Other,
            OtherTraffic::Drop => Judgement::Denied("UnknownProtocol"),
        }
    }

    /// An ICMP error is treated like the packet that it quotes, if its receiver has sent that.
    fn reports(&self, to: IpAddr, (src, dst, kind): (IpAddr, IpAddr, Kind)) -> Judgement {
        if src != to {
            return Judgement::Denied("IcmpBadQuote");
        }
        let (from, to) = (self.spot(src), self.spot(dst));
        let Some((port_kind, back, there)) = kind.numbers() else {
            let known = self.knows(&from.sender, &to) || self.knows(&to.sender, &from);
            return if self.policy.other_traffic == OtherTraffic::Allow || known {
                Judgement::Other
            } else {
                Judgement::Denied("FragmentWithoutPath")
            };
        };
        let opinion = stronger(
            self.toward(&from.sender, &to, port_kind, there),
            self.toward(&to.sender, &from, port_kind, back),
        );
        match opinion.judgement {
            Judgement::Denied(_) if opinion.guarded => Judgement::Denied("IcmpQuotesDenied"),
            judgement => judgement,
        }
    }

    /// A packet that enters through an interface.
    pub fn arrives(&self, entry: Entry, src: IpAddr, dst: IpAddr, kind: Kind) -> Judgement {
        if let Err(reason) = self.may_come_from(entry, src, dst) {
            return Judgement::Denied(reason);
        }
        let (from, to) = (self.spot(src), self.spot(dst));
        let sender = match entry {
            Entry::Uplink => from.sender.clone(),
            Entry::Pod(true) if from.pod && from.named => from.sender.clone(),
            Entry::Pod(_) => self.pods(),
        };
        self.decide(&sender, &to.sender, &from, &to, kind).judgement
    }

    fn may_come_from(&self, entry: Entry, src: IpAddr, dst: IpAddr) -> Result<(), &'static str> {
        if src.is_loopback() || dst.is_loopback() {
            return Err("LoopbackOffLo");
        }
        let from = self.spot(src);
        let link_local = match src {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let forged = match entry {
            Entry::Uplink => from.own,
            Entry::Pod(_) if from.own || from.other_node => true,
            Entry::Pod(_) => !from.pod && !link_local && !src.is_unspecified(),
        };
        if forged {
            return Err("ForgedSource");
        }
        Ok(())
    }

    /// A packet that a process of this node sends.
    pub fn sends(
        &self,
        cgroup: &str,
        on_lo: bool,
        src: IpAddr,
        dst: IpAddr,
        kind: Kind,
    ) -> Judgement {
        if !on_lo && (src.is_loopback() || dst.is_loopback()) {
            return Judgement::Denied("LoopbackOffLo");
        }
        let (mut from, mut to) = (self.spot(src), self.spot(dst));
        if from.other_node {
            return Judgement::Denied("ForgedSource");
        }
        if let (true, Some((port_kind, own, other))) = (on_lo, kind.numbers()) {
            from = self.spot_on_lo(from, port_kind, own);
            to = self.spot_on_lo(to, port_kind, other);
        }
        let receiver = if on_lo {
            self.anybody_here()
        } else {
            to.sender.clone()
        };
        self.decide(&self.process(cgroup), &receiver, &from, &to, kind)
            .judgement
    }

    /// A packet of a process in another network namespace, whose interface is on top of an uplink.
    pub fn sends_from_elsewhere(
        &self,
        cgroup: &str,
        src: IpAddr,
        dst: IpAddr,
        kind: Kind,
    ) -> Judgement {
        if src.is_loopback() || dst.is_loopback() {
            return Judgement::Denied("LoopbackOffLo");
        }
        let (from, to) = (self.spot(src), self.spot(dst));
        if from.own || from.other_node {
            return Judgement::Denied("ForgedSource");
        }
        let mut sender = self.process(cgroup);
        // A sender that belongs to no component counts as a pod there.
        if sender.is == self.with_wholes(self.undeclared()) {
            sender = self.pods();
        }
        self.decide(&sender, &to.sender, &from, &to, kind).judgement
    }

    /// A packet that a socket of a process is about to receive.
    pub fn is_received(
        &self,
        cgroup: &str,
        came: ReceivedVia,
        src: IpAddr,
        dst: IpAddr,
        kind: Kind,
    ) -> Judgement {
        let (mut from, mut to) = (self.spot(src), self.spot(dst));
        let mut sender = self.anybody_here();
        if came != ReceivedVia::Lo {
            if src.is_loopback() || dst.is_loopback() {
                return Judgement::Denied("LoopbackOffLo");
            }
            if from.own {
                return Judgement::Denied("ForgedSource");
            }
            // A node's packets arrive through its uplink; elsewhere, a new pod may have taken its
            // address.
            if came == ReceivedVia::Undeclared && from.other_node {
                from = self.no_receiver(self.pods());
            }
            sender = match came {
                ReceivedVia::Pod => self.pods(),
                ReceivedVia::Lo | ReceivedVia::Uplink | ReceivedVia::Undeclared => {
                    from.sender.clone()
                }
            };
        }
        if let Some((port_kind, _, number)) = kind.numbers() {
            to = self.spot_on_lo(to, port_kind, number);
        }
        let opinion = self.decide(&sender, &self.process(cgroup), &from, &to, kind);
        // Another process may hold a component's port.
        if let (Judgement::Path(_) | Judgement::TlsPath(_), Some((port_kind, _, number))) =
            (&opinion.judgement, kind.numbers())
            && opinion.guarded
            && !opinion.back
            && self.holds(cgroup, &to, port_kind, number) == Judgement::Denied("BindForeignPort")
        {
            return Judgement::Denied("ForeignListener");
        }
        match came {
            ReceivedVia::Undeclared => opinion.judgement,
            ReceivedVia::Lo | ReceivedVia::Uplink | ReceivedVia::Pod => opinion.only_guarded(),
        }
    }

    /// A packet that this node has let in and forwards.
    pub fn leaves(
        &self,
        through: ForwardedFrom,
        src: IpAddr,
        dst: IpAddr,
        kind: Kind,
    ) -> Judgement {
        let (mut from, to) = (self.spot(src), self.spot(dst));
        let sender = match through {
            ForwardedFrom::Pod => {
                // Its source may have been translated to the node's address: it is a pod's all the
                // same.
                if from.own || from.other_node {
                    from = self.no_receiver(self.pods());
                }
                self.pods()
            }
            // The same, but not from a process of this node: those have sockets.
            ForwardedFrom::Uplink if from.own => Sender {
                is: self.with_wholes(BTreeSet::new()),
                node: None,
                process: false,
                by_address: false,
            },
            ForwardedFrom::Uplink => from.sender.clone(),
        };
        self.decide(&sender, &to.sender, &from, &to, kind)
            .only_guarded()
    }

    /// An address at which nothing exists that could have been asked.
    fn no_receiver(&self, sender: Sender<'a>) -> Spot<'a> {
        Spot {
            node: sender.node,
            sender,
            residents: BTreeSet::new(),
            services: Vec::new(),
            loopback: false,
            is_virtual: false,
            own: false,
            other_node: false,
            pod: false,
            named: false,
        }
    }

    /// A packet on lo goes from this node to itself, so both addresses are its own, even if they
    /// are not declared or are declared as something else. But if a component declares this very
    /// port there, it has the port; at a service's address that is only the service, and not the
    /// pods behind it.
    fn spot_on_lo(&self, spot: Spot<'a>, port_kind: PortKind, number: u16) -> Spot<'a> {
        let has_port = |(component, port): &(&Component, &Port)| {
            !component.is_elsewhere() && !port.matches.contains(&PortMatch::Any)
        };
        let is_declared = if spot.is_virtual {
            spot.services
                .iter()
                .any(|s| covers(s.at, port_kind, number))
        } else {
            self.ends(&spot, port_kind, number).iter().any(has_port)
        };
        let is_declared = !spot.pod && is_declared;
        if spot.own || spot.loopback || is_declared {
            return spot;
        }
        let own = self.node.addresses.iter().min();
        own.map_or(spot, |own| self.spot(*own))
    }

    /// A process connects, or sends a datagram. The unspecified address is this host.
    pub fn connects(
        &self,
        cgroup: &str,
        to: IpAddr,
        port_kind: PortKind,
        number: u16,
    ) -> Judgement {
        let to = match to {
            IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            to => to,
        };
        self.toward(&self.process(cgroup), &self.spot(to), port_kind, number)
            .judgement
    }

    /// A process asks to bind. A wildcard stands for every address of this node, so it includes
    /// those that are not loopback; the same holds for any other address, whatever it is declared
    /// as, except for its own ports.
    pub fn binds(&self, cgroup: &str, at: IpAddr, port_kind: PortKind, number: u16) -> Judgement {
        let own = self.node.addresses.iter().min();
        let at = match own {
            Some(own) if at.is_unspecified() => *own,
            _ => at,
        };
        let spot = self.spot_on_lo(self.spot(at), port_kind, number);
        self.holds(cgroup, &spot, port_kind, number)
    }

    /// Whether a process may hold a port at an address.
    fn holds(&self, cgroup: &str, spot: &Spot<'a>, port_kind: PortKind, number: u16) -> Judgement {
        let by = self.process(cgroup);
        let mut refused = None;
        for (component, port) in self.ends(spot, port_kind, number) {
            if !component.guard || port.matches.contains(&PortMatch::Any) {
                continue;
            }
            let is_foreign =
                !component.cgroups.is_empty() && !by.is.contains(component.name.as_str());
            if port.loopback_only && !spot.loopback {
                refused.get_or_insert(Judgement::Denied("BindNotLoopback"));
            } else if is_foreign {
                refused.get_or_insert(Judgement::Denied("BindForeignPort"));
            } else {
                return Judgement::Other;
            }
        }
        refused.unwrap_or(Judgement::Other)
    }

    fn decide(
        &self,
        sender: &Sender<'a>,
        receiver: &Sender<'a>,
        from: &Spot<'a>,
        to: &Spot<'a>,
        kind: Kind,
    ) -> Opinion {
        let forward = |port_kind, number| self.toward(sender, to, port_kind, number);
        let back = |port_kind, number| Opinion {
            back: true,
            ..self.toward(receiver, from, port_kind, number)
        };
        match kind {
            Kind::Syn(_, port) => forward(PortKind::Tcp, port),
            Kind::Segment(own, port) => {
                stronger(forward(PortKind::Tcp, port), back(PortKind::Tcp, own))
            }
            // Nothing was sent before that this could answer.
            Kind::Udp(_, port) => forward(PortKind::Udp, port),
            Kind::Message(port_kind, number) => forward(port_kind, number.into()),
            Kind::EchoReply(port_kind) => back(port_kind, request_of(port_kind)),
            Kind::Protocol(number) => stronger(
                forward(PortKind::Protocol, number.into()),
                back(PortKind::Protocol, number.into()),
            ),
            Kind::Arp => stronger(forward(PortKind::Arp, 0), back(PortKind::Arp, 0)),
            Kind::LaterFragment => {
                // A sender known by a cgroup or an interface has no declared ports.
                let there = receiver.by_address && self.knows(sender, to);
                let here = sender.by_address && self.knows(receiver, from);
                if self.policy.other_traffic == OtherTraffic::Allow || there || here {
                    Opinion {
                        judgement: Judgement::Other,
                        ..denied("")
                    }
                } else {
                    denied("FragmentWithoutPath")
                }
            }
        }
    }

    /// Whether any path leads from a sender to what is at an address.
    fn knows(&self, sender: &Sender<'a>, to: &Spot<'a>) -> bool {
        self.policy.paths.iter().any(|path| {
            let leads = to.residents.contains(path.to_component.as_str())
                || to
                    .services
                    .iter()
                    .any(|s| s.component == path.to_component && s.port == path.to_port);
            leads && is_from(path, sender)
        })
    }

    /// The ports that a number at an address stands for.
    fn ends(
        &self,
        to: &Spot<'a>,
        port_kind: PortKind,
        number: u16,
    ) -> Vec<(&'a Component, &'a Port)> {
        let mut ends = Vec::new();
        for component in &self.policy.components {
            for port in &component.ports {
                let here = to.residents.contains(component.name.as_str())
                    && port.matches.iter().any(|m| covers(*m, port_kind, number));
                let behind = to.services.iter().any(|s| {
                    s.component == component.name
                        && s.port == port.name
                        && covers(s.at, port_kind, number)
                });
                if here || behind {
                    ends.push((component, port));
                }
            }
        }
        ends
    }

    /// The verdict for a sender that addresses a port at an address.
    fn toward(
        &self,
        sender: &Sender<'a>,
        to: &Spot<'a>,
        port_kind: PortKind,
        number: u16,
    ) -> Opinion {
        let mut ends = self.ends(to, port_kind, number);
        let guarded = ends.iter().any(|(component, _)| component.guard);
        let opinion = |judgement| Opinion {
            judgement,
            guarded,
            back: false,
        };
        if guarded {
            ends.retain(|(component, _)| component.guard);
            let narrowest = ends.iter().map(|(_, port)| port.width()).min();
            ends.retain(|(_, port)| Some(port.width()) == narrowest);
        }
        let mut paths: Vec<(&Path, &Port)> = Vec::new();
        for path in &self.policy.paths {
            let end = ends
                .iter()
                .find(|(c, p)| c.name == path.to_component && p.name == path.to_port);
            paths.extend(end.map(|(_, port)| (path, *port)));
        }
        // The narrowest first; ties in the order of the policy.
        paths.sort_by_key(|(_, port)| port.width());
        let reaches =
            |path: &Path, port: &Port| to.loopback || !(path.loopback || port.loopback_only);
        // What this node sees of another node has already left it, or has yet to reach it, so it is
        // on the same node as nothing else.
        let near = |path: &Path| match (path.locality, sender.node, to.node) {
            (Locality::Any, ..) => true,
            (Locality::SameNode, Some(a), Some(b)) => a == b && a == self.node.name,
            (Locality::SameNode, ..) => !to.is_virtual,
        };
        let mut allows: Vec<&(&Path, &Port)> = paths
            .iter()
            .filter(|(path, port)| is_from(path, sender) && reaches(path, port) && near(path))
            .collect();
        let narrowest = allows.first().map(|(_, port)| port.width());
        allows.retain(|(_, port)| Some(port.width()) == narrowest);
        // A path grants a permission: if one path requires no TLS, none is required.
        if let Some((path, _)) = allows.iter().find(|(path, _)| !path.tls) {
            let judgement = Judgement::Path(path.name.clone());
            return opinion(judgement);
        }
        if let Some((path, _)) = allows.first() {
            return opinion(Judgement::TlsPath(path.name.clone()));
        }
        let mine = |(path, port): &(&Path, &Port)| is_from(path, sender) && reaches(path, port);
        if !guarded {
            let judgement = match self.policy.other_traffic {
                OtherTraffic::Allow => Judgement::Other,
                OtherTraffic::Drop if paths.iter().any(mine) => Judgement::Denied("OtherNode"),
                OtherTraffic::Drop => Judgement::Denied("OtherTraffic"),
            };
            return opinion(judgement);
        }
        let for_process_here = |(path, port): &(&Path, &Port)| {
            let known = |name: &String| {
                let component = self.policy.component(name);
                let has_cgroup = |c: &Component| !c.cgroups.is_empty() || c.needs_cgroup;
                component.is_some_and(|c| c.runs_on(self.node) && has_cgroup(c))
            };
            reaches(path, port) && path.from.iter().any(known)
        };
        let reason = if !to.loopback && ends.iter().all(|(_, port)| port.loopback_only) {
            "LoopbackOnly"
        } else if paths.is_empty() {
            "ClosedPort"
        } else if paths.iter().any(mine) {
            "OtherNode"
        } else if sender.process && paths.iter().any(for_process_here) {
            "WrongProcess"
        } else {
            "NoPath"
        };
        opinion(Judgement::Denied(reason))
    }

    fn spot(&self, at: IpAddr) -> Spot<'a> {
        let policy = self.policy;
        let node = policy
            .nodes
            .iter()
            .find(|node| node.addresses.contains(&at));
        let home = policy
            .nodes
            .iter()
            .find(|node| node.pod_networks.iter().any(|net| net.contains(&at)));
        let pod = home.is_some() || policy.pod_networks.iter().any(|net| net.contains(&at));
        let service_network = policy.service_networks.iter().any(|net| net.contains(&at));
        let services: Vec<&Service> = policy.services.iter().filter(|s| s.address == at).collect();
        let loopback = at.is_loopback();
        let declared = |c: &Component| c.addresses.iter().any(|net| net.contains(&at));
        let named = policy
            .components
            .iter()
            .any(|c| declared(c) && !c.is_everyone());
        let is_outside = !loopback
            && node.is_none()
            && !pod
            && !service_network
            && services.is_empty()
            && !policy
                .components
                .iter()
                .any(|c| declared(c) && !c.is_everyone() && !c.ports.is_empty());
        let mut residents = BTreeSet::new();
        let mut senders = BTreeSet::new();
        for component in &policy.components {
            let known = declared(component)
                || (pod && component.in_pod_networks)
                || (loopback && self.is_here(component))
                || node.is_some_and(|node| component.runs_on(node));
            let elsewhere = is_outside && component.is_elsewhere();
            let lives = known || elsewhere;
            let anywhere = component.runs_on.is_empty() && !component.cgroups.is_empty();
            if lives {
                residents.insert(component.name.as_str());
            }
            let is_taken_for_it = known || (elsewhere && !component.only_receives_outside);
            if is_taken_for_it || ((loopback || node.is_some()) && anywhere) {
                senders.insert(component.name.as_str());
            }
            if service_network && component.in_pod_networks {
                residents.insert(component.name.as_str());
            }
        }
        let place = if loopback {
            Some(self.node.name.as_str())
        } else {
            node.or(home).map(|node| node.name.as_str())
        };
        Spot {
            sender: Sender {
                is: self.with_wholes(senders),
                node: place,
                process: false,
                by_address: true,
            },
            residents,
            is_virtual: service_network || !services.is_empty(),
            services,
            loopback,
            node: place,
            own: node.is_some_and(|node| node.name == self.node.name),
            other_node: node.is_some_and(|node| node.name != self.node.name),
            pod,
            named,
        }
    }

    fn is_here(&self, component: &Component) -> bool {
        let own = |at: &IpAddr| component.addresses.iter().any(|net| net.contains(at));
        component.runs_on(self.node) || self.node.addresses.iter().any(own)
    }

    fn pods(&self) -> Sender<'a> {
        let pods = self.named(|c| c.in_pod_networks);
        Sender {
            is: self.with_wholes(pods),
            node: Some(&self.node.name),
            process: false,
            by_address: false,
        }
    }

    fn anybody_here(&self) -> Sender<'a> {
        let may = |c: &Component| {
            self.is_here(c)
                || (!c.cgroups.is_empty() && (c.runs_on.is_empty() || c.runs_on(self.node)))
        };
        Sender {
            is: self.with_wholes(self.named(may)),
            node: Some(&self.node.name),
            process: false,
            by_address: false,
        }
    }

    /// A process in a cgroup: it belongs to the components of the deepest declared cgroup above it.
    /// If there is none, it belongs to those that are here, and neither declare nor need a cgroup.
    fn process(&self, cgroup: &str) -> Sender<'a> {
        let may = |c: &Component| c.runs_on.is_empty() || c.runs_on(self.node);
        let mut above: Vec<&str> = cgroup.split('/').filter(|s| !s.is_empty()).collect();
        let is = loop {
            let path = format!("/{}", above.join("/"));
            let found = self.named(|c| may(c) && c.cgroups.contains(&path));
            if !found.is_empty() {
                break found;
            }
            if above.pop().is_none() {
                break self.undeclared();
            }
        };
        Sender {
            is: self.with_wholes(is),
            node: Some(&self.node.name),
            process: true,
            by_address: false,
        }
    }

    fn undeclared(&self) -> BTreeSet<&'a str> {
        self.named(|c| self.is_here(c) && c.cgroups.is_empty() && !c.needs_cgroup)
    }

    fn named(&self, wanted: impl Fn(&Component) -> bool) -> BTreeSet<&'a str> {
        let components = self.policy.components.iter();
        components
            .filter(|c| wanted(c))
            .map(|c| c.name.as_str())
            .collect()
    }

    /// Whatever belongs to a component also belongs to those that contain it, and to everyone.
    fn with_wholes(&self, mut names: BTreeSet<&'a str>) -> BTreeSet<&'a str> {
        names.extend(self.named(Component::is_everyone));
        loop {
            let wholes: Vec<&str> = self
                .policy
                .components
                .iter()
                .filter(|c| names.contains(c.name.as_str()))
                .flat_map(|c| c.part_of.iter().map(String::as_str))
                .collect();
            let before = names.len();
            names.extend(wholes);
            if names.len() == before {
                return names;
            }
        }
    }
}

fn is_from(path: &Path, sender: &Sender<'_>) -> bool {
    path.from
        .iter()
        .any(|from| sender.is.contains(from.as_str()))
}

/// For a packet that may go in either direction: verdicts about a guarded port take precedence.
fn stronger(forward: Opinion, back: Opinion) -> Opinion {
    let is_path = |opinion: &Opinion| {
        matches!(
            opinion.judgement,
            Judgement::Path(_) | Judgement::TlsPath(_)
        )
    };
    let is_denied = |opinion: &Opinion| matches!(opinion.judgement, Judgement::Denied(_));
    for wanted in [
        &(|o: &Opinion| o.guarded && is_path(o)) as &dyn Fn(&Opinion) -> bool,
        &|o: &Opinion| o.guarded && is_denied(o),
        &|o: &Opinion| is_path(o),
    ] {
        if let Some(first) = [&forward, &back].into_iter().find(|o| wanted(o)) {
            return first.clone();
        }
    }
    forward
}

fn request_of(port_kind: PortKind) -> u16 {
    if port_kind == PortKind::Icmp { 8 } else { 128 }
}

fn covers(found: PortMatch, port_kind: PortKind, number: u16) -> bool {
    match (found, port_kind) {
        (PortMatch::Any, _) | (PortMatch::Arp, PortKind::Arp) => true,
        (PortMatch::Tcp(first, last), PortKind::Tcp)
        | (PortMatch::Udp(first, last), PortKind::Udp) => (first..=last).contains(&number),
        (PortMatch::Icmp(first, last), PortKind::Icmp)
        | (PortMatch::Icmp6(first, last), PortKind::Icmp6) => {
            (u16::from(first)..=u16::from(last)).contains(&number)
        }
        (PortMatch::Protocol(known), PortKind::Protocol) => u16::from(known) == number,
        _ => false,
    }
}
