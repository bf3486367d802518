//! The advice for a denial.

use enforcer_common::tables::Tables as _;

use super::*;
use crate::{
    SourceText,
    compile::{PathNumbers, Simulator, compile},
    from_texts,
};

const POLICY: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11], roles: [control-plane, etcd] }
    w1: { addresses: [10.0.0.21], roles: [worker] }
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/16]
  services:
    apiserver:secure: ['10.96.0.1:443']
  components:
    pods: { cgroups: [/kubepods.slice] }
    konnectivity-agent: { cgroups: [/agent] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: test }
spec:
  profile: control-plane-stacked-etcd
  options: []
  disable: []
  mode: Enforce
  otherTraffic: Drop
";

/// Advice for a packet that arrives on cp1 from an address.
fn advice(text: &str, from: &str, to: &str, number: (PortKind, u16)) -> Vec<Advice> {
    let source = SourceText {
        name: "p.yaml".to_owned(),
        text: text.to_owned(),
    };
    let policy = from_texts(&[source]).unwrap_or_else(|errors| panic!("{errors}"));
    let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
    let tables = Simulator::new(&compiled);
    let place = |text: &str| {
        let address: std::net::IpAddr = text.parse().unwrap();
        tables.address_info(&address.into()).party
    };
    let (port_kind, port) = number;
    let target = tables
        .class(port_kind, port)
        .and_then(|class| tables.target(&compiled.settings, place(to), class))
        .unwrap();
    advise(
        &policy,
        Catalogue::builtin(),
        &Denied {
            senders: &compiled.party_names[usize::from(place(from))],
            endpoints: &compiled.target_endpoints[usize::from(target)],
            number,
            destination: to.parse().ok(),
            source_port: None,
        },
    )
}

/// Paths that are commonly forgotten, found by what breaks without them.
#[test]
fn a_denial_says_what_it_breaks() {
    let (tcp, udp, ip) = (PortKind::Tcp, PortKind::Udp, PortKind::Protocol);
    for (line, from, to, number, path, symptom) in [
        (
            "",
            "203.0.113.9",
            "10.0.0.11",
            (tcp, 6443),
            "kubelet-bootstrap",
            "kubeadm join hangs",
        ),
        (
            "",
            "203.0.113.9",
            "10.0.0.11",
            (tcp, 9345),
            "node-join",
            "join of a node hangs",
        ),
        (
            "disable: [apiserver-to-kubelet]",
            "10.0.0.11",
            "10.0.0.21",
            (tcp, 10250),
            "apiserver-to-kubelet",
            "logs and exec fail",
        ),
        (
            "disable: [etcd-to-etcd]",
            "10.0.0.11",
            "10.0.0.11",
            (tcp, 2380),
            "etcd-to-etcd",
            "can not join",
        ),
        (
            "disable: [apiserver-to-webhook]",
            "10.0.0.11",
            "10.244.0.9",
            (tcp, 8443),
            "apiserver-to-webhook",
            "context deadline exceeded",
        ),
        (
            "options: [konnectivity]",
            "10.0.0.11",
            "10.0.0.21",
            (tcp, 10250),
            "apiserver-to-kubelet",
            "logs and exec fail",
        ),
        (
            "disable: [kubelet-probes]",
            "10.0.0.21",
            "10.244.0.9",
            (tcp, 9),
            "kubelet-probes",
            "never become ready",
        ),
        (
            "disable: [node-to-node]",
            "10.0.0.21",
            "10.0.0.11",
            (udp, 4789),
            "node-to-node",
            "pods on different nodes",
        ),
        (
            "disable: [node-to-node]",
            "10.0.0.21",
            "10.0.0.11",
            (ip, 4),
            "node-to-node",
            "pods on different nodes",
        ),
        (
            "disable: [cni-to-cni]",
            "10.0.0.21",
            "10.0.0.11",
            (ip, 50),
            "cni-to-cni",
            "nothing gets through",
        ),
        (
            "",
            "10.0.0.21",
            "224.0.0.18",
            (ip, 112),
            "vrrp",
            "two nodes claim",
        ),
        (
            "disable: [dhcp-answer]",
            "203.0.113.9",
            "10.0.0.11",
            (udp, 68),
            "dhcp-answer",
            "loses its address",
        ),
        (
            "disable: [ntp]",
            "10.0.0.11",
            "203.0.113.9",
            (udp, 123),
            "ntp",
            "become invalid",
        ),
        (
            "disable: [node-to-registry]",
            "10.0.0.11",
            "203.0.113.9",
            (tcp, 5000),
            "node-to-registry",
            "ImagePullBackOff",
        ),
        (
            "disable: [node-to-cloud-metadata]",
            "10.0.0.11",
            "169.254.169.254",
            (tcp, 80),
            "node-to-cloud-metadata",
            "volumes",
        ),
        (
            "",
            "203.0.113.9",
            "10.0.0.11",
            (udp, 30_080),
            "node-ports",
            "not reachable from outside",
        ),
        (
            "disable: [arp]",
            "203.0.113.9",
            "10.0.0.11",
            (PortKind::Arp, 0),
            "arp",
            "silent on IPv4",
        ),
        (
            "disable: [neighbour-discovery]",
            "203.0.113.9",
            "10.0.0.11",
            (PortKind::Icmp6, 135),
            "neighbour-discovery",
            "silent on IPv6",
        ),
        (
            "",
            "10.244.0.5",
            "203.0.113.9",
            (tcp, 443),
            "pod-to-outside",
            "nothing outside",
        ),
        // DNS that is not placed in the Inventory.
        (
            "",
            "10.244.0.5",
            "10.9.9.9",
            (tcp, 53),
            "dns",
            "long answers fail",
        ),
    ] {
        let field = line.split(':').next().unwrap_or_default();
        let text = match field {
            "" => POLICY.to_owned(),
            field => POLICY.replace(&format!("{field}: []"), line),
        };
        let found = advice(&text, from, to, number);
        let named = found.iter().find(|advice| advice.path == path);
        let Some(named) = named else {
            panic!("{from} to {to} {number:?}: no {path}, but {found:?}");
        };
        assert!(named.symptom.contains(symptom), "{named:?}");
    }
}

#[test]
fn the_remedy_is_one_line() {
    let closed = POLICY.replace("options: []", "options: [konnectivity]");
    let found = advice(&closed, "10.0.0.11", "10.0.0.21", (PortKind::Tcp, 10250));
    assert!(
        found[0].remedy.contains("Option konnectivity closes it"),
        "{found:?}"
    );
    let off = POLICY.replace("disable: []", "disable: [ntp]");
    let found = advice(&off, "10.0.0.11", "203.0.113.9", (PortKind::Udp, 123));
    assert!(
        found[0].remedy.contains("off by `disable: [ntp]`"),
        "{found:?}"
    );
    let found = advice(POLICY, "203.0.113.9", "10.0.0.11", (PortKind::Tcp, 6443));
    let join = found
        .iter()
        .find(|advice| advice.path == "kubelet-bootstrap");
    let remedy = join.map_or("", |advice| &advice.remedy);
    assert!(remedy.contains("`options: [joining-nodes]`"), "{found:?}");
    let found = advice(POLICY, "203.0.113.9", "10.0.0.11", (PortKind::Tcp, 22));
    assert!(found[0].remedy.contains("`admin` is nowhere"), "{found:?}");
}

/// One connection does not justify a path to everything: the advice is for this connection alone, or for what it was
/// meant to be.
#[test]
fn a_hint_opens_no_more_than_is_needed() {
    let tcp = |port| (PortKind::Tcp, port);
    let found = advice(POLICY, "10.244.0.5", "203.0.113.9", tcp(443));
    let wide = found
        .iter()
        .find(|advice| advice.path == "pod-to-outside")
        .unwrap();
    assert!(wide.wide && !wide.remedy.contains("enable"), "{wide:?}");
    let said = wide.sentence();
    for part in [
        "addresses: [\"203.0.113.9\"]",
        "443/tcp",
        "from: [pods]",
        "opens far more",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    // The apiserver's webhook on a node, in the node's network namespace.
    let found = advice(POLICY, "10.0.0.11", "10.0.0.21", tcp(9443));
    let proxy = found
        .iter()
        .find(|advice| advice.path == "apiserver-proxy-to-nodes")
        .unwrap();
    assert!(proxy.wide && proxy.remedy.contains("9443/tcp"), "{proxy:?}");
    // A node that is not in the inventory: the node is missing, and a path to everything is not the advice.
    for (port, path) in [
        (10250, "apiserver-to-kubelet"),
        (179, "cni-to-cni"),
        (2380, "etcd-to-etcd"),
    ] {
        let found = advice(POLICY, "10.0.0.11", "10.0.0.77", tcp(port));
        let [one] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(one.path, path);
        assert!(one.remedy.contains("10.0.0.77 is no node"), "{one:?}");
    }
    // A reply is not a connection of its own.
    let denied = Denied {
        senders: &["pods".to_owned(), "world".to_owned()],
        endpoints: &["outside:any".to_owned()],
        number: tcp(40_000),
        destination: "203.0.113.9".parse().ok(),
        source_port: Some(80),
    };
    let source = SourceText {
        name: "p.yaml".to_owned(),
        text: POLICY.to_owned(),
    };
    let policy = from_texts(&[source]).unwrap();
    assert_eq!(advise(&policy, Catalogue::builtin(), &denied), []);
    let asked = Denied {
        source_port: Some(50_000),
        ..denied
    };
    assert_eq!(advise(&policy, Catalogue::builtin(), &asked).len(), 1);
}

/// A person's curl at a port of the control plane does not mean that monitoring is missing.
#[test]
fn who_is_known_is_not_somebody_else() {
    let text = POLICY.replace(
        "    pods:",
        "    session: { cgroups: [/user.slice] }\n    pods:",
    );
    let source = SourceText {
        name: "p.yaml".to_owned(),
        text,
    };
    let policy = from_texts(&[source]).unwrap();
    for (senders, port) in [
        ("session node world", 10257),
        ("pods world", 10257),
        ("outside world", 10257),
    ] {
        let senders: Vec<String> = senders.split(' ').map(str::to_owned).collect();
        let denied = Denied {
            senders: &senders,
            endpoints: &["controller-manager:secure".to_owned()],
            number: (PortKind::Tcp, port),
            destination: "127.0.0.1".parse().ok(),
            source_port: None,
        };
        let found = advise(&policy, Catalogue::builtin(), &denied);
        assert!(
            found
                .iter()
                .all(|advice| !advice.remedy.contains("monitoring")),
            "{found:?}"
        );
    }
}

/// A static pod with a new hash, and an undeclared unit.
#[test]
fn a_component_that_lost_its_cgroup_is_reported() {
    let text = POLICY.replace(
        "    pods:",
        "    apiserver: { cgroups: [/kubepods.slice/a/pod1] }\n    pods:",
    );
    let source = SourceText {
        name: "p.yaml".to_owned(),
        text,
    };
    let policy = from_texts(&[source]).unwrap();
    let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
    let told = |name, cgroup, senders: &[&str], populated: bool| {
        let senders: Vec<String> = senders.iter().map(|name| (*name).to_owned()).collect();
        let process = Process {
            name,
            cgroup,
            senders: &senders,
        };
        let found = unrecognised(&policy, &compiled, &process, |_| populated);
        found.map(|advice| advice.sentence()).unwrap_or_default()
    };
    let scope = "/kubepods.slice/a/pod2/cri-7.scope";
    let said = told("kube-apiserver", scope, &["pods"], false);
    for part in [
        "undeclared static pod",
        "/kubepods.slice/a/pod1, does not exist",
        "add /kubepods.slice/a/pod2 to",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert_eq!(
        told("kube-apiserver", scope, &["pods"], true),
        "",
        "the declared one is there"
    );
    assert_eq!(
        told("kube-apiserver", scope, &["apiserver"], false),
        "",
        "it is known"
    );
    assert_eq!(told("curl", scope, &["pods"], false), "");
    // The kernel keeps fifteen characters of a name.
    let said = told(
        "cloud-controlle",
        "/system.slice/ccm.service",
        &["node"],
        false,
    );
    assert!(
        said.contains("no cgroup of `cloud-controller-manager` is declared"),
        "{said}"
    );
}

/// There is no advice to open the core of a cluster.
#[test]
fn what_must_stay_closed_gets_no_advice() {
    for from in ["10.244.0.5", "203.0.113.9"] {
        for port in [
            2379, 2380, 2381, 8080, 10250, 10255, 4194, 10257, 10259, 10251, 10252,
        ] {
            let found = advice(POLICY, from, "10.0.0.11", (PortKind::Tcp, port));
            assert_eq!(found, [], "{from} to {port}");
        }
    }
}
