//! Random policies and packets, derived from a seed.

use std::fmt::Write as _;
use std::net::IpAddr;

use enforcer_common::packet::PortKind;
use enforcer_policy::catalogue::Catalogue;
pub use enforcer_tests::random::Random;

use crate::plainly::Kind;

/// cgroups that policies declare and processes are in.
pub const CGROUPS: [&str; 7] = [
    "/system.slice/etcd.service",
    "/system.slice/kubelet.service",
    "/kubepods.slice",
    "/kubepods.slice/api.slice",
    "/kubepods.slice/manager.slice",
    "/system.slice",
    "/a/b",
];

/// Addresses that occur in the policies below, and some that do not.
const ADDRESSES: [&str; 24] = [
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.21",
    "10.0.0.99",
    "10.244.0.5",
    "10.244.1.5",
    "10.244.9.9",
    "10.244.0.1",
    "10.96.0.1",
    "10.96.0.10",
    "10.96.7.7",
    "192.0.2.7",
    "203.0.113.9",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.20.10",
    "169.254.169.254",
    "224.0.0.18",
    "255.255.255.255",
    "fd00::11",
    "fd01::5",
    "fe80::1",
    "::1",
    "2001:db8::9",
];

const PORTS: [u16; 22] = [
    22, 53, 67, 68, 80, 123, 179, 443, 2379, 2380, 2381, 4789, 6443, 7000, 8080, 8443, 9153,
    10_248, 10_250, 10_255, 10_257, 30_080,
];

/// A policy in YAML. Many are invalid; those are skipped.
pub fn policy(random: &mut Random) -> String {
    let mut text = String::from(
        "apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata: { name: r }\nspec:\n  nodes:\n",
    );
    let split = random.chance(2);
    for (name, addresses, roles, pods) in [
        (
            "cp1",
            "10.0.0.11, \"fd00::11\"",
            "control-plane, etcd",
            "10.244.0.0/24",
        ),
        ("cp2", "10.0.0.12", "control-plane, etcd", "10.244.1.0/24"),
        ("w1", "10.0.0.21", "worker", "10.244.2.0/24"),
    ] {
        if name == "cp2" && random.chance(3) {
            continue;
        }
        let own = if split {
            format!(", podNetworks: [{pods}]")
        } else {
            String::new()
        };
        let more = if name == "cp1" && split && random.chance(2) {
            ", 10.244.0.1"
        } else {
            ""
        };
        let _ = writeln!(
            text,
            "    {name}: {{ addresses: [{addresses}{more}], roles: [{roles}]{own} }}"
        );
    }
    if split || !random.chance(6) {
        text.push_str("  podNetworks: [10.244.0.0/16, \"fd01::/56\"]\n");
    }
    if random.chance(2) {
        text.push_str("  serviceNetworks: [10.96.0.0/16]\n");
    }
    text.push_str("  services:\n    \"apiserver:secure\": [\"10.96.0.1:443\"]\n");
    if random.chance(2) {
        text.push_str("    \"dns:dns\": [\"10.96.0.10:53\"]\n");
    }
    text.push_str("  components:\n");
    let catalogue = Catalogue::builtin();
    let names: Vec<&str> = catalogue
        .components()
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    for name in &names {
        if ["world", "outside"].contains(name) || !random.chance(3) {
            continue;
        }
        let _ = writeln!(text, "    {name}: {{ {} }}", place(random));
    }
    let mut own = Vec::new();
    for name in ["alpha", "beta", "gamma"] {
        if random.chance(2) {
            own.push(name);
            let ports = ports(random);
            let _ = writeln!(
                text,
                "    {name}: {{ {}, ports: {{ p: {ports} }} }}",
                place(random)
            );
        }
    }
    text.push_str(
        "---\napiVersion: enforcer.dev/v1alpha1\nkind: PathPolicy\nmetadata: { name: r }\nspec:\n",
    );
    choose(random, &mut text);
    paths(random, &mut text, &names, &own);
    text
}

/// Where a component is, or part of that.
fn place(random: &mut Random) -> String {
    let mut fields = Vec::new();
    if random.chance(2) {
        let networks = [
            "10.0.0.99",
            "192.0.2.0/24",
            "10.244.0.5",
            "10.244.1.0/24",
            "10.96.0.10",
            "203.0.113.0/24",
            "0.0.0.0/1",
            "\"2001:db8::/64\"",
            "10.0.0.21",
            "10.0.0.0/24",
        ];
        fields.push(format!(
            "addresses: [{}]",
            random.subset(&networks, 5).join(", ")
        ));
    }
    if random.chance(2) {
        fields.push(format!(
            "cgroups: [{}]",
            random.subset(&CGROUPS, 4).join(", ")
        ));
    }
    if random.chance(6) {
        fields.push(format!("guard: {}", random.chance(2)));
    }
    if random.chance(8) {
        fields.push("outside: true".to_owned());
    }
    if random.chance(6) {
        fields.push(format!("needsCgroup: {}", random.chance(2)));
    }
    if random.chance(8) {
        fields.push("partOf: [node]".to_owned());
    }
    if random.chance(10) {
        fields.push("inPodNetworks: true".to_owned());
    }
    if random.chance(10) {
        fields.push("runsOn: [etcd]".to_owned());
    }
    if fields.is_empty() {
        fields.push("guard: true".to_owned());
    }
    fields.join(", ")
}

fn ports(random: &mut Random) -> String {
    let texts = [
        "7000/tcp",
        "2379/tcp",
        "2000-9000/tcp",
        "any/tcp",
        "any",
        "any/udp",
        "53/udp",
        "8/icmp",
        "any/icmp",
        "112/ip",
        "4/ip",
        "arp",
        "echo/icmp",
        "80/tcp",
    ];
    let mut chosen = random.subset(&texts, 6);
    if chosen.is_empty() {
        chosen.push("7000/tcp");
    }
    let lock = random.chance(6);
    format!("{{ match: [{}], loopbackOnly: {lock} }}", chosen.join(", "))
}

fn choose(random: &mut Random, text: &mut String) {
    let catalogue = Catalogue::builtin();
    if !random.chance(5) {
        let profile = random.pick(catalogue.profiles());
        let options: Vec<&str> = profile.options.iter().map(|o| o.name.as_str()).collect();
        let options = random.subset(&options, 4);
        let _ = writeln!(
            text,
            "  profile: {}\n  options: [{}]",
            profile.name,
            options.join(", ")
        );
        let on = profile.paths_with(&options);
        let disable = random.subset(&on, 12);
        let all: Vec<&str> = catalogue.paths().iter().map(|p| p.name.as_str()).collect();
        let off: Vec<&str> = all.into_iter().filter(|p| !on.contains(p)).collect();
        let enable = random.subset(&off, 8);
        let _ = writeln!(
            text,
            "  disable: [{}]\n  enable: [{}]",
            disable.join(", "),
            enable.join(", ")
        );
    }
    let mode = random.pick(&["DryRun", "Enforce"]);
    let other = random.pick(&["Allow", "Drop"]);
    let _ = writeln!(text, "  mode: {mode}\n  otherTraffic: {other}");
}

fn paths(random: &mut Random, text: &mut String, names: &[&str], own: &[&str]) {
    text.push_str(
        "  paths:\n    - { name: some, from: [admin], to: \"ssh-server:ssh\", because: x }\n",
    );
    let mut ends: Vec<String> = own.iter().map(|name| format!("{name}:p")).collect();
    ends.extend(
        [
            "etcd:client",
            "node:any",
            "world:any",
            "pods:any",
            "kubelet:api",
        ]
        .map(str::to_owned),
    );
    for number in 0..random.below(6) {
        let all: Vec<&str> = names.iter().chain(own).copied().collect();
        let from = random.pick(&all);
        let to = random.pick(&ends);
        let loopback = random.chance(8);
        let locality = random.pick(&["Any", "Any", "SameNode"]);
        let tls = random.pick(&["Optional", "Optional", "Required"]);
        let _ = writeln!(
            text,
            "    - {{ name: own-{number}, from: [{from}], to: \"{to}\", loopback: {loopback}, locality: {locality}, tls: {tls}, because: x }}"
        );
    }
}

/// Two addresses of one family.
pub fn addresses(random: &mut Random) -> (IpAddr, IpAddr) {
    let parse = |text: &&str| text.parse::<IpAddr>().unwrap_or(IpAddr::from([0; 4]));
    loop {
        let (a, b) = (
            parse(random.pick(&ADDRESSES)),
            parse(random.pick(&ADDRESSES)),
        );
        if a.is_ipv4() == b.is_ipv4() {
            return (a, b);
        }
    }
}

/// A port, usually one that occurs in the policies.
pub fn port(random: &mut Random) -> u16 {
    match random.below(3) {
        0 => random.below(65_536) as u16,
        _ => *random.pick(&PORTS),
    }
}

fn icmp(is_v4: bool) -> PortKind {
    if is_v4 {
        PortKind::Icmp
    } else {
        PortKind::Icmp6
    }
}

/// A kind of packet. ARP is only for IPv4.
pub fn kind(random: &mut Random, is_v4: bool) -> Kind {
    let (a, b) = (port(random), port(random));
    match random.below(12) {
        0..=3 => Kind::Syn(a, b),
        4..=6 => Kind::Segment(a, b),
        7 | 8 => Kind::Udp(a, b),
        9 => {
            // Neither an error nor an answer.
            let known: &[u8] = if is_v4 {
                &[5, 8, 9, 13]
            } else {
                &[128, 130, 133, 135, 143, 139]
            };
            Kind::Message(icmp(is_v4), *random.pick(known))
        }
        10 => match random.below(3) {
            0 => Kind::EchoReply(icmp(is_v4)),
            1 if is_v4 => Kind::Arp,
            _ => Kind::LaterFragment,
        },
        _ => Kind::Protocol(*random.pick(&[2, 4, 47, 50, 112, 132])),
    }
}
