//! What tables may depend on: never on the number of nodes, and never on anything that the policy does not mean.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;

use enforcer_common::{
    addr::Ip,
    packet::PortKind,
    tables::Tables as _,
    verdict::{Outcome, Verdict},
};

use super::{Compiled, Compiler, PathNumbers, Simulator, compile, ground::Ground};
use crate::model::{Component, Locality, Node, OtherTraffic, Path, Policy, Port, PortMatch};
use crate::{SourceText, from_texts, warnings_for_node};

fn read(text: String) -> Option<Policy> {
    let name = "p.yaml".to_owned();
    from_texts(&[SourceText { name, text }]).ok()
}

fn compiled(policy: &Policy, node: &str) -> Compiled {
    compile(policy, node, None, &mut PathNumbers::default()).unwrap()
}

/// A cluster with that many nodes of two kinds, each with addresses of both families and networks for its pods.
fn cluster(nodes: usize) -> Policy {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata: { name: many }\nspec:\n  nodes:\n",
    );
    for node in 0..nodes {
        let roles = if node < 3 {
            "control-plane, etcd"
        } else {
            "worker"
        };
        let (high, low) = (node / 250, node % 250 + 1);
        let _ = writeln!(
            text,
            "    n{node}: {{ addresses: [10.0.{high}.{low}, 'fd00::{node:x}:1'], roles: [{roles}], uplinks: [eth0], \
             podInterfaces: ['cali*'], podNetworks: [100.{}.{}.0/24, 'fd01:0:0:{node:x}::/64'] }}",
            64 + node / 256,
            node % 256
        );
    }
    text.push_str(
        "  podNetworks: [100.64.0.0/10, 'fd01::/32']
  serviceNetworks: [10.96.0.0/12]
  services: { 'apiserver:secure': ['10.96.0.1:443'], 'dns:dns': ['10.96.0.10:53'] }
  components:
    etcd: { cgroups: [/system.slice/etcd.service] }
    kubelet: { cgroups: [/system.slice/kubelet.service] }
    pods: { cgroups: [/kubepods.slice] }
    admin: { addresses: [198.51.100.0/24] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: many }
spec: { profile: control-plane-stacked-etcd, mode: Enforce, otherTraffic: Drop }
",
    );
    read(text).unwrap()
}

/// The tables are the same, word for word; only the prefixes grow. Clusters have five thousand nodes (Kubernetes,
/// considerations for large clusters), and lists of all their addresses (kubernetes-sigs/kubespray#11289).
#[test]
fn tables_do_not_grow_with_the_nodes() {
    let (few, many) = (cluster(10), cluster(1000));
    for node in ["n0", "n5"] {
        let (few, many) = (compiled(&few, node), compiled(&many, node));
        assert_eq!(few.settings, many.settings, "{node}");
        assert_eq!(few.targets, many.targets, "{node}");
        assert_eq!(few.entries, many.entries, "{node}");
        assert_eq!(few.related, many.related, "{node}");
        assert_eq!(few.party_names, many.party_names, "{node}");
        assert_eq!(few.target_names, many.target_names, "{node}");
        assert_eq!(few.prefixes.len() + 4 * 990, many.prefixes.len(), "{node}");
        assert!(many.settings.parties < 40, "{}", many.settings.parties);
    }
}

/// Work that is done for each distinct declaration and each kind of node is the same for a thousand nodes as for ten.
#[test]
fn work_does_not_grow_with_the_nodes() {
    let kinds = |policy: &Policy| -> (usize, BTreeSet<usize>) {
        let ground = Ground::of(policy);
        (
            ground.declarations.len(),
            ground.alike().into_iter().collect(),
        )
    };
    let (declarations, alike) = kinds(&cluster(10));
    assert_eq!(kinds(&cluster(1000)), (declarations, alike.clone()));
    assert_eq!(
        alike,
        BTreeSet::from([0, 3]),
        "a kind with a control plane and one without"
    );
    assert!(declarations < 20, "{declarations}");
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// A small inventory in which everything occurs together: nodes of few kinds, some with their own networks for pods,
/// and components by role, by address, among pods and outside.
fn small(random: &mut Random) -> String {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata: { name: small }\nspec:\n  nodes:\n",
    );
    let split = random.below(4) > 0;
    for node in 0..2 + random.below(4) {
        let roles = random.pick(&[
            "control-plane, etcd",
            "worker",
            "worker",
            "own",
            "worker, own",
        ]);
        let own = match split && random.below(6) > 0 {
            true => format!(", podNetworks: [10.244.{node}.0/24]"),
            false => String::new(),
        };
        let bridge = match own.is_empty() || random.below(3) > 0 {
            true => String::new(),
            false => format!(", 10.244.{node}.1"),
        };
        let _ = writeln!(
            text,
            "    n{node}: {{ addresses: [10.0.0.{node}{bridge}], roles: [{roles}]{own} }}"
        );
    }
    let alpha = random.pick(&[
        "runsOn: [own]",
        "runsOn: ['*']",
        "addresses: [10.0.0.1, 192.0.2.1]",
    ]);
    let beta = random.pick(&[
        "inPodNetworks: true",
        "addresses: [10.244.1.7, 10.244.2.7]",
        "addresses: [10.0.0.0/30]",
        "outside: true",
    ]);
    let guard = random.below(3) > 0;
    let _ = write!(
        text,
        "  podNetworks: [10.244.0.0/16]
  services: {{ 'alpha:a': ['10.96.0.1:7000'] }}
  components:
    alpha: {{ {alpha}, guard: {guard}, ports: {{ a: [7000/tcp, 7100-7200/tcp], any: any }} }}
    beta: {{ {beta}, partOf: [pods], ports: {{ b: 7000/tcp, c: 7150/tcp }} }}
    pods: {{ cgroups: [/kubepods.slice] }}
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: {{ name: small }}
spec:
  mode: Enforce
  otherTraffic: {}
",
        random.pick(&["Allow", "Drop"])
    );
    if random.below(2) == 0 {
        text.push_str("  profile: control-plane-stacked-etcd\n");
    }
    text.push_str("  paths:\n");
    for path in 0..2 + random.below(5) {
        let from = random.pick(&[
            "alpha", "beta", "node", "pods", "kubelet", "etcd", "outside",
        ]);
        let to = random.pick(&[
            "alpha:a",
            "alpha:any",
            "beta:b",
            "beta:c",
            "pods:any",
            "node:any",
            "etcd:client",
        ]);
        let locality = random.pick(&["Any", "SameNode", "SameNode"]);
        let _ = writeln!(
            text,
            "    - {{ name: p{path}, from: [{from}], to: '{to}', locality: {locality}, because: x }}"
        );
    }
    text
}

const PORTS: [u16; 6] = [22, 2379, 7000, 7150, 7200, 10250];

/// Addresses of the nodes, of pods here and there, and of others.
fn ends(policy: &Policy) -> Vec<IpAddr> {
    let nodes = policy.nodes.iter().flat_map(|node| node.addresses.clone());
    let others = [
        "10.0.0.9",
        "10.244.0.9",
        "10.244.1.7",
        "10.244.2.7",
        "10.244.9.9",
    ];
    let others = others
        .iter()
        .chain(&["10.96.0.1", "192.0.2.1", "203.0.113.9"]);
    nodes
        .chain(others.map(|text| text.parse().unwrap()))
        .collect()
}

/// The node of an address, with all nodes distinguished.
fn node_of(policy: &Policy, address: IpAddr) -> Option<&Node> {
    let has = |node: &&Node| {
        node.addresses.contains(&address)
            || node.pod_networks.iter().any(|net| net.contains(&address))
    };
    policy.nodes.iter().find(has)
}

/// The verdict for a sender at one address that opens a connection to another, computed as naively as possible from the
/// policy as it was read, with all nodes distinguished.
fn plainly(policy: &Policy, source: IpAddr, destination: IpAddr, number: u16) -> String {
    let by_address = |c: &Component, at: IpAddr| c.addresses.iter().any(|net| net.contains(&at));
    let is_pod = |at: IpAddr| policy.pod_networks.iter().any(|net| net.contains(&at));
    let owner = |at: IpAddr| {
        policy
            .nodes
            .iter()
            .find(|node| node.addresses.contains(&at))
    };
    let services = |at: IpAddr| policy.services.iter().filter(move |s| s.address == at);
    let is_outside = |at: IpAddr| {
        let has_ports =
            |c: &&Component| !c.is_everyone() && !c.ports.is_empty() && by_address(c, at);
        owner(at).is_none()
            && !is_pod(at)
            && services(at).next().is_none()
            && !policy.components.iter().any(|c| has_ports(&c))
    };
    let is_at = |c: &Component, at: IpAddr| {
        by_address(c, at)
            || owner(at).is_some_and(|node| c.runs_on(node))
            || (c.in_pod_networks && is_pod(at))
            || (c.is_elsewhere() && is_outside(at))
    };
    let mut senders: BTreeSet<&str> = BTreeSet::new();
    for component in &policy.components {
        let on_any_node = component.runs_on.is_empty() && !component.cgroups.is_empty();
        let is_received_only = component.is_elsewhere() && component.only_receives_outside;
        if component.is_everyone()
            || (is_at(component, source) && !is_received_only)
            || (on_any_node && owner(source).is_some())
        {
            senders.insert(&component.name);
        }
    }
    loop {
        let wholes = policy
            .components
            .iter()
            .filter(|c| senders.contains(&*c.name));
        let wholes: Vec<&str> = wholes
            .flat_map(|c| &c.part_of)
            .map(|name| &**name)
            .collect();
        let before = senders.len();
        senders.extend(wholes);
        if senders.len() == before {
            break;
        }
    }
    let covers = |found: &PortMatch| match found {
        PortMatch::Any => true,
        PortMatch::Tcp(first, last) => (*first..=*last).contains(&number),
        _ => false,
    };
    let mut meant: Vec<(&Component, &Port)> = Vec::new();
    for component in &policy.components {
        for port in &component.ports {
            let behind = services(destination)
                .any(|s| s.component == component.name && s.port == port.name && covers(&s.at));
            let here = is_at(component, destination) && port.matches.iter().any(covers);
            if here || behind {
                meant.push((component, port));
            }
        }
    }
    let guarded = meant.iter().any(|(component, _)| component.guard);
    if guarded {
        meant.retain(|(component, _)| component.guard);
        let narrowest = meant.iter().map(|(_, port)| port.width()).min();
        meant.retain(|(_, port)| Some(port.width()) == narrowest);
    }
    let is_virtual = services(destination).next().is_some();
    let (from, to) = (node_of(policy, source), node_of(policy, destination));
    let near = |path: &Path| match (path.locality, from, to) {
        (Locality::Any, ..) => true,
        (Locality::SameNode, Some(from), Some(to)) => from.name == to.name,
        (Locality::SameNode, ..) => !is_virtual,
    };
    let mut allowing: Vec<(u32, &Path)> = Vec::new();
    for path in &policy.paths {
        let end = meant
            .iter()
            .find(|(c, p)| c.name == path.to_component && p.name == path.to_port);
        let is_from = path.from.iter().any(|name| senders.contains(&**name));
        if let Some((_, port)) = end
            && is_from
            && near(path)
            && !path.loopback
            && !port.loopback_only
        {
            allowing.push((port.width(), path));
        }
    }
    let narrowest = allowing.iter().map(|(width, _)| *width).min();
    allowing.retain(|(width, _)| Some(*width) == narrowest);
    let plain = allowing.iter().find(|(_, path)| !path.tls);
    match plain.or(allowing.first()) {
        Some((_, path)) => path.name.clone(),
        None if guarded || policy.other_traffic == OtherTraffic::Drop => "denied".to_owned(),
        None => "other".to_owned(),
    }
}

/// For every pair of ends, as every node sees it, the tables give the verdict that is right with all nodes
/// distinguished, except if both ends are on one node other than this.
#[test]
fn nodes_are_told_apart_where_it_matters() {
    let mut random = Random(1);
    let (mut pairs, mut policies, mut differ) = (0, 0, 0);
    while policies < 40 {
        let text = small(&mut random);
        let Some(policy) = read(text.clone()) else {
            continue;
        };
        policies += 1;
        let all: Vec<Compiled> = policy
            .nodes
            .iter()
            .map(|node| compiled(&policy, &node.name))
            .collect();
        let ends = ends(&policy);
        let questions = ends
            .iter()
            .flat_map(|from| ends.iter().map(move |to| (*from, *to)))
            .flat_map(|(from, to)| PORTS.map(|number| (from, to, number)));
        for (source, destination, number) in questions {
            let expected = plainly(&policy, source, destination, number);
            let nodes = (
                node_of(&policy, source).map(|node| &node.name),
                node_of(&policy, destination).map(|node| &node.name),
            );
            for compiled in &all {
                pairs += 1;
                let found = asked(compiled, source, destination, number);
                if found == expected {
                    continue;
                }
                differ += 1;
                let path = policy.paths.iter().find(|path| path.name == expected);
                let on_one_other =
                    nodes.0 == nodes.1 && nodes.0.is_some_and(|name| *name != compiled.node);
                assert!(
                    on_one_other && path.is_some_and(|path| path.locality == Locality::SameNode),
                    "on {}, {source} to {destination}:{number}: {found}, and not {expected}\n{text}",
                    compiled.node
                );
            }
        }
    }
    // The test proves nothing if the interesting pairs are too few.
    assert!(pairs > 100_000 && differ > 100, "{differ} of {pairs}");
}

/// What this node sees of another node has left it. So a path on the same node needs both ends on this node; it allows
/// neither two ends on one other node nor two on different ones, which are one party here.
#[test]
fn one_node_is_never_another_one() {
    let text = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: three }
spec:
  nodes:
    n1: { addresses: [10.0.0.1], roles: [worker], uplinks: [eth0], podInterfaces: ['cali*'], podNetworks: [10.244.1.0/24] }
    n2: { addresses: [10.0.0.2], roles: [worker], uplinks: [eth0], podInterfaces: ['cali*'], podNetworks: [10.244.2.0/24] }
    n3: { addresses: [10.0.0.3], roles: [worker], uplinks: [eth0], podInterfaces: ['cali*'], podNetworks: [10.244.3.0/24] }
  podNetworks: [10.244.0.0/16]
  components:
    pods: { cgroups: [/kubepods.slice] }
    agent: { runsOn: [worker], cgroups: [/system.slice/agent.service], ports: { api: 9999/tcp } }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: near }
spec:
  mode: Enforce
  otherTraffic: Allow
  paths:
    - { name: near, from: [pods, agent], to: agent:api, locality: SameNode, because: test }
";
    let policy = read(text.to_owned()).unwrap();
    for here in 1..=3 {
        let compiled = compiled(&policy, &format!("n{here}"));
        for (from, to) in (1..=3).flat_map(|from| (1..=3).map(move |to| (from, to))) {
            let expected = if (from, to) == (here, here) {
                "near"
            } else {
                "denied"
            };
            let destination = IpAddr::from([10, 0, 0, to]);
            for source in [[10, 244, from, 5], [10, 0, 0, from]].map(IpAddr::from) {
                assert_eq!(
                    asked(&compiled, source, destination, 9999),
                    expected,
                    "on n{here}, {source} to {destination}"
                );
            }
        }
    }
}

/// The verdict of the tables for a sender at one address and a port at another.
fn asked(compiled: &Compiled, source: IpAddr, destination: IpAddr, number: u16) -> String {
    let tables = Simulator::new(compiled);
    let settings = &compiled.settings;
    let party = |at: IpAddr| tables.address_info(&Ip::from(at)).party;
    let class = tables.class(PortKind::Tcp, number).unwrap();
    let target = tables.target(settings, party(destination), class).unwrap();
    let verdict = tables.entry(settings, party(source), target).unwrap();
    match verdict.outcome() {
        Outcome::Path(number, _) => compiled.paths[&number].clone(),
        Outcome::Denied(_) => "denied".to_owned(),
        Outcome::Other | Outcome::LaterFragment => "other".to_owned(),
    }
}

/// The first of the nodes that are alike stands for all of them.
#[test]
fn nodes_that_are_alike_have_tables_alike() {
    let mut random = Random(2);
    let (mut policies, mut others) = (0, 0);
    while policies < 40 {
        let text = small(&mut random);
        let Some(policy) = read(text.clone()) else {
            continue;
        };
        policies += 1;
        let alike = Compiler::new(&policy).unwrap().alike();
        for (node, first) in alike.into_iter().enumerate() {
            assert!(first <= node);
            if first < node {
                others += 1;
                let told = [first, node].map(|index| but_for_addresses(&policy, index));
                assert_eq!(told[0], told[1], "{first} and {node} of\n{text}");
            }
        }
    }
    assert!(others > 20, "{others}");
}

/// Everything in a node's tables, in an order that does not depend on addresses.
fn but_for_addresses(policy: &Policy, node: usize) -> impl PartialEq + std::fmt::Debug + use<> {
    let name = &policy.nodes[node].name;
    let compiled = compiled(policy, name);
    let mut entries: HashMap<[Verdict; 2], usize> = HashMap::new();
    for entry in &compiled.entries {
        *entries.entry(*entry).or_default() += 1;
    }
    let settings = compiled.settings;
    let sorted = |mut names: Vec<Vec<String>>| {
        names.sort();
        names
    };
    (
        [settings.parties, settings.targets, settings.classes],
        compiled.prefixes.len(),
        sorted(compiled.party_names),
        sorted(compiled.target_names),
        entries,
        warnings_for_node(policy, name),
    )
}

/// The sender and target in a record are those that the judge itself found, at each vantage.
#[test]
fn the_sides_of_a_denial_are_the_judges() {
    use enforcer_common::{
        denial,
        mark::PacketMark,
        record::{Hook, NO_PORT_KIND, NO_TARGET, RecordKey, Whose, subject},
        tables::Role,
        vantage::{Entered, Origin, Vantage, View},
        verdict::{Denial, Direction, Reason},
    };
    let policy = cluster(10);
    let compiled = compiled(&policy, "n0");
    let tables = Simulator::new(&compiled);
    let address = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
    let party = |text: &str| tables.address_info(&address(text)).party;
    let key = |hook, reason, src: &str, dst: &str, port: Option<u16>| {
        let whose = Whose {
            hook,
            kind: subject::CGROUP,
            subject: 1,
        };
        let denial = Denial {
            reason,
            dry_run: false,
            guarded: true,
            direction: Direction::Forward,
        };
        let mut key = RecordKey::between(whose, denial, address(src), address(dst));
        if let Some(port) = port {
            (key.port_kind, key.port) = (PortKind::Tcp as u8, port);
        }
        key
    };
    let named = |view, mark, key: &RecordKey| {
        let vantage = Vantage::new(view);
        let target = denial::target(&tables, vantage, key);
        let target =
            (target != NO_TARGET).then(|| compiled.target_names[usize::from(target)].join(", "));
        let sender = denial::sender(&tables, vantage, mark, key);
        // The names without those that include everybody.
        let names = compiled.party_names[usize::from(sender)].iter();
        let named: Vec<&str> = names
            .map(String::as_str)
            .filter(|name| ["admin", "pods"].contains(name))
            .collect();
        let sender = named.join(", ");
        (sender, target)
    };
    let is = |sender: &str, target: Option<&str>| (sender.to_owned(), target.map(str::to_owned));
    let (own, next, pod, admin) = ("10.0.0.1", "10.0.0.2", "100.64.0.9", "198.51.100.4");
    let arrived = |role| View::Arrived { role, interface: 2 };
    let (tc, etcd) = (Hook::TcIngress, Some("etcd:client"));

    let from_admin = key(tc, Reason::NoPath, admin, own, Some(2379));
    let judged = PacketMark::JUDGED;
    assert_eq!(
        named(arrived(Role::Uplink), judged, &from_admin),
        is("admin", etcd)
    );
    // A packet from a pod's interface is a pod's, unless the route back verifies its address.
    let from_pod = key(tc, Reason::NoPath, pod, own, Some(2379));
    let known = PacketMark::from_known_pod(party(admin));
    let on_pods = arrived(Role::Pod);
    assert_eq!(named(on_pods, judged, &from_pod), is("pods", etcd));
    assert_eq!(named(on_pods, judged, &from_admin), is("pods", etcd));
    assert_eq!(named(on_pods, known, &from_pod), is("admin", etcd));
    let left = |entered| View::Left {
        entered,
        to_pod: false,
    };
    for (entered, sender) in [
        (Entered::FromPod, "pods"),
        (Entered::FromKnownPod(party(admin)), "admin"),
        (Entered::ByUplink(None), "admin"),
    ] {
        let out = key(Hook::TcEgress, Reason::NoPath, admin, next, Some(2379));
        assert_eq!(
            named(left(entered), PacketMark::NONE, &out),
            is(sender, etcd)
        );
    }
    // A process is identified by its cgroup, whatever its address is.
    let by_cgroup = tables.party_of_cgroup("/kubepods.slice/a");
    let sent = |origin, on_lo| View::Sent {
        sender: by_cgroup,
        origin,
        on_lo,
    };
    let to_lo = key(
        Hook::CgroupEgress,
        Reason::NoPath,
        "127.0.0.1",
        "127.0.0.1",
        Some(2379),
    );
    let none = PacketMark::NONE;
    assert_eq!(
        named(sent(Origin::Socket, true), none, &to_lo),
        is("pods", etcd)
    );
    // A wildcard stands for all addresses of the node.
    let bind = key(Hook::Bind, Reason::BindForeignPort, "::", "::", Some(2379));
    let call = Vantage::of_call(by_cgroup).view();
    assert_eq!(named(call, none, &bind), is("pods", etcd));
    // A packet that a socket here receives is addressed to this node; a reply is from an endpoint of the other node.
    let received = |role| View::Received {
        receiver: by_cgroup,
        role,
        judged: false,
    };
    let hook = Hook::CgroupIngress;
    let here = key(hook, Reason::NoPath, admin, own, Some(2379));
    assert_eq!(
        named(received(Role::Undeclared), none, &here),
        is("admin", etcd)
    );
    let held = key(hook, Reason::ForeignListener, admin, own, Some(2379));
    assert_eq!(named(received(Role::Uplink), none, &held), is("pods", etcd));
    let mut answer = key(hook, Reason::NoPath, pod, "10.0.0.9", Some(10250));
    answer.reply = 1;
    let (_, target) = named(received(Role::Uplink), none, &answer);
    assert_eq!(target.as_deref(), Some("kubelet:api"));
    // Not an endpoint of this node, whatever the port is.
    answer.dst = address(pod);
    let (_, target) = named(received(Role::Uplink), none, &answer);
    assert_ne!(target.as_deref(), Some("kubelet:api"));
    // A packet that could not be parsed has no target.
    let unread = key(tc, Reason::TruncatedHeader, "::", "::", None);
    assert_eq!(unread.port_kind, NO_PORT_KIND);
    assert_eq!(named(on_pods, judged, &unread), is("pods", None));
}
