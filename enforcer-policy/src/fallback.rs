//! Rules for nftables that hold a node's guarded ports by address, for a kernel that refuses the programs.
//!
//! They are made by asking the decision itself about every range of addresses that the policy tells apart, so they let in from
//! other machines and from pods what the programs would. They hold guarded ports alone, and know neither processes nor TLS
//! nor `bind`: what a process of this node sends is not judged, and neither is other traffic.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use enforcer_common::{
    addr::Ip,
    judge::judge,
    packet::{Packet, Phase, PortKind, Ports},
    tables::{AddressInfo, Role, Tables as _},
    vantage::{Vantage, View},
    verdict::Verdict,
};

use crate::{
    compile::{Compiled, Simulator},
    model::{Policy, PortMatch},
};

/// The name of the table in nftables' family `inet`.
pub const TABLE: &str = "enforcer-fallback";

/// What the rules let in to guarded ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What the policy allows, by address.
    ByAddress,
    /// Nothing but what comes over lo.
    Closed,
}

/// Rules, and what they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// A script for `nft -f`, which replaces the table as a whole.
    pub script: String,
    /// The guarded ports of this node that they hold, as `2379/tcp`.
    pub ports: Vec<String>,
}

/// The script that removes the table, and does nothing where there is none.
pub fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// The rules for the node that a policy was compiled for. `uplinks` are the names of the interfaces that lead to other machines;
/// what comes by any other counts as a pod's.
pub fn rules(
    policy: &Policy,
    compiled: &Compiled,
    uplinks: &[String],
    strictness: Strictness,
) -> Rules {
    let question = Question {
        tables: Simulator::new(compiled),
        ports: guarded_ports(policy),
    };
    let node = policy.node(&compiled.node);
    let own = node
        .map(|node| node.addresses.as_slice())
        .unwrap_or_default();
    let (mut input, mut held) = (String::new(), BTreeSet::new());
    for is_v4 in [true, false] {
        let spans = spans(compiled, is_v4);
        let own: Vec<IpAddr> = own
            .iter()
            .copied()
            .filter(|a| a.is_ipv4() == is_v4)
            .collect();
        let (family, nfproto) = names(is_v4);
        for range in &question.ports {
            let guarded: Vec<&IpAddr> = own
                .iter()
                .filter(|a| question.is_guarded(**a, range))
                .collect();
            let Some(last) = guarded.last() else {
                continue;
            };
            held.insert(range.to_string());
            let places = guarded.iter().map(|address| {
                let place = format!("{family} daddr {address} {}", range.matches());
                (place, **address)
            });
            // Every other address that the node has and that the policy does not name.
            let rest = format!("meta nfproto {nfproto} {}", range.matches());
            for (place, address) in places.chain([(rest, **last)]) {
                for (by, role) in [("iifname != @uplinks ", Role::Pod), ("", Role::Uplink)] {
                    let allowed = match strictness {
                        Strictness::Closed => Vec::new(),
                        Strictness::ByAddress => joined(spans.iter().filter(|(first, _)| {
                            question.verdict(role, *first, address, range).passes()
                        })),
                    };
                    if !allowed.is_empty() {
                        let from = set(&allowed, is_v4);
                        let _ = writeln!(input, "    {by}{place} {family} saddr {from} accept");
                    }
                    let _ = writeln!(input, "    {by}{place} counter drop");
                }
            }
        }
    }
    let quoted: Vec<String> = uplinks.iter().map(|name| format!("\"{name}\"")).collect();
    let elements = match quoted.is_empty() {
        true => String::new(),
        false => format!("    elements = {{ {} }}\n", quoted.join(", ")),
    };
    let script = format!(
        "{}table inet {TABLE} {{\n  \
           set uplinks {{\n    type ifname\n{elements}  }}\n  \
           chain input {{\n    type filter hook input priority -10; policy accept;\n    iifname \"lo\" accept\n{input}  }}\n  \
           chain forward {{\n    type filter hook forward priority -10; policy accept;\n{}  }}\n\
         }}\n",
        removal(),
        question.forwarded(policy, compiled),
    );
    Rules {
        script,
        ports: held.into_iter().collect(),
    }
}

/// A range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    /// First, as the first rule that matches decides.
    width: u16,
    is_udp: bool,
    first: u16,
    last: u16,
}

impl Range {
    const fn of(wanted: PortMatch) -> Option<Self> {
        let (is_udp, first, last) = match wanted {
            PortMatch::Tcp(first, last) => (false, first, last),
            PortMatch::Udp(first, last) => (true, first, last),
            _ => return None,
        };
        Some(Self {
            width: last - first,
            is_udp,
            first,
            last,
        })
    }

    const fn protocol(&self) -> &'static str {
        if self.is_udp { "udp" } else { "tcp" }
    }

    fn numbers(&self) -> String {
        match self.width {
            0 => self.first.to_string(),
            _ => format!("{}-{}", self.first, self.last),
        }
    }

    fn matches(&self) -> String {
        format!("{} dport {}", self.protocol(), self.numbers())
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.numbers(), self.protocol())
    }
}

/// The ports of guarded components. At which addresses they are guarded, the tables say.
fn guarded_ports(policy: &Policy) -> Vec<Range> {
    let guarded = policy.components.iter().filter(|component| component.guard);
    let ports = guarded.flat_map(|component| &component.ports);
    let ranges = ports.flat_map(|port| port.matches.iter().copied().filter_map(Range::of));
    let ranges: BTreeSet<Range> = ranges.collect();
    ranges.into_iter().collect()
}

struct Question<'a> {
    tables: Simulator<'a>,
    ports: Vec<Range>,
}

impl Question<'_> {
    /// What the programs would say of a connection that comes in by an interface.
    fn verdict(&self, role: Role, from: Ip, to: IpAddr, range: &Range) -> Verdict {
        let (kind, phase) = match range.is_udp {
            true => (PortKind::Udp, Phase::Datagram),
            false => (PortKind::Tcp, Phase::Opening),
        };
        let ports = Ports {
            phase,
            kind,
            source: 0,
            destination: range.first,
        };
        let packet = Packet::flow(from, to.into(), ports);
        let vantage = Vantage::new(View::Arrived { role, interface: 0 });
        // Whether the route to a pod's address leads back to its interface is not asked: nftables does not.
        judge(&self.tables, vantage, &packet, || true).verdict
    }

    /// Whether strangers are kept from it whatever happens to other traffic.
    fn is_guarded(&self, address: IpAddr, range: &Range) -> bool {
        // Addresses for documentation (RFC 5737, RFC 3849), of which no policy of a real cluster names this one.
        let stranger = match address.is_ipv4() {
            true => IpAddr::from([198, 51, 100, 77]),
            false => IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x77]),
        };
        [Role::Uplink, Role::Pod].into_iter().any(|role| {
            let verdict = self.verdict(role, stranger.into(), address, range);
            is_held(verdict)
        })
    }

    /// Rules for what pods send through this node to guarded ports of other nodes, and may not.
    fn forwarded(&self, policy: &Policy, compiled: &Compiled) -> String {
        let mut rules = String::new();
        for is_v4 in [true, false] {
            let (family, _) = names(is_v4);
            let (mut ordinary, mut named) = (None, Vec::new());
            for span in spans(compiled, is_v4) {
                let info = self.tables.address_info(&span.0);
                if info.is(AddressInfo::NAMED) {
                    named.push(span);
                } else if info.is(AddressInfo::POD) {
                    ordinary.get_or_insert(span.0);
                }
            }
            let Some(pod) = ordinary else {
                continue;
            };
            let mut closed: BTreeMap<Range, Vec<String>> = BTreeMap::new();
            let others = policy.nodes.iter().filter(|n| n.name != compiled.node);
            let others = others.flat_map(|node| &node.addresses);
            for address in others.filter(|address| address.is_ipv4() == is_v4) {
                for range in &self.ports {
                    let verdict = self.verdict(Role::Pod, pod, *address, range);
                    if is_held(verdict) {
                        closed.entry(*range).or_default().push(address.to_string());
                    }
                }
            }
            // A pod that the policy knows by its address may reach what others may not.
            let except = match joined(named.iter()) {
                named if named.is_empty() => String::new(),
                named => format!("{family} saddr != {} ", set(&named, is_v4)),
            };
            for (range, mut addresses) in closed {
                addresses.sort();
                addresses.dedup();
                let _ = writeln!(
                    rules,
                    "    iifname != @uplinks {except}{family} daddr {{ {} }} {} counter drop",
                    addresses.join(", "),
                    range.matches()
                );
            }
        }
        rules
    }
}

/// Whether the programs would drop it at a guarded port. What a path's own dry-run lets pass, they would only report.
const fn is_held(verdict: Verdict) -> bool {
    verdict.is_guarded_denial() && !verdict.passes()
}

/// What nftables calls a family: in expressions, and as a protocol.
const fn names(is_v4: bool) -> (&'static str, &'static str) {
    if is_v4 {
        ("ip", "ipv4")
    } else {
        ("ip6", "ipv6")
    }
}

/// The first and the last address of a range.
type Span = (Ip, Ip);

const fn number(address: Ip) -> u128 {
    u128::from_be_bytes(address.0)
}

const fn address(number: u128) -> Ip {
    Ip(number.to_be_bytes())
}

/// IPv4 addresses in their mapped form.
const V4: (u128, u128) = (
    number(Ip::v4([0, 0, 0, 0])),
    number(Ip::v4([255, 255, 255, 255])),
);

/// The ranges within which a policy tells no two addresses apart. They cover a family, in order.
fn spans(compiled: &Compiled, is_v4: bool) -> Vec<Span> {
    let (lowest, highest) = if is_v4 { V4 } else { (0, u128::MAX) };
    let mut starts = BTreeSet::from([lowest]);
    for entry in compiled.prefixes.iter() {
        let first = number(entry.network);
        // A prefix has 128 bits at most.
        let last = first | u128::MAX.checked_shr(entry.length).unwrap_or(0);
        starts.insert(first);
        starts.extend(last.checked_add(1));
    }
    let starts: Vec<u128> = starts.range(lowest..=highest).copied().collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([highest]);
    let ranges = starts.iter().zip(ends);
    ranges
        .map(|(first, last)| (address(*first), address(last)))
        .collect()
}

/// Ranges in their order, with neighbours as one.
fn joined<'a>(spans: impl Iterator<Item = &'a Span>) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for &(first, last) in spans {
        match joined.last_mut() {
            Some((_, end)) if number(*end).checked_add(1) == Some(number(first)) => *end = last,
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// As nftables writes it. It takes no range of everything within a set.
fn set(spans: &[Span], is_v4: bool) -> String {
    let (lowest, highest) = if is_v4 { V4 } else { (0, u128::MAX) };
    if let [(first, last)] = spans
        && (number(*first), number(*last)) == (lowest, highest)
    {
        return if is_v4 { "0.0.0.0/0" } else { "::/0" }.to_owned();
    }
    let text = |number: Ip| match is_v4 {
        true => IpAddr::from(number).to_string(),
        // Not the mapped form, which an IPv6 range may end in.
        false => std::net::Ipv6Addr::from(number.0).to_string(),
    };
    let range = |(first, last): &Span| match first == last {
        true => text(*first),
        false => format!("{}-{}", text(*first), text(*last)),
    };
    let ranges: Vec<String> = spans.iter().map(range).collect();
    format!("{{ {} }}", ranges.join(", "))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        SourceText,
        compile::{PathNumbers, compile},
        from_texts,
        model::Mode,
    };

    fn shipped(name: &str) -> Policy {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../policies/{name}.yaml"));
        let source = SourceText {
            name: file.display().to_string(),
            text: fs::read_to_string(&file).unwrap(),
        };
        from_texts(&[source]).unwrap()
    }

    fn rules_of(name: &str, node: &str, strictness: Strictness) -> Rules {
        // The policies that are shipped are in dry-run, which holds nothing.
        let mode = Some(Mode::Enforce);
        let policy = shipped(name);
        let compiled = compile(&policy, node, mode, &mut PathNumbers::default()).unwrap();
        rules(&policy, &compiled, &["eth0".to_owned()], strictness)
    }

    #[test]
    fn etcd_is_held_for_its_members_and_apiservers() {
        let rules = rules_of("control-plane-stacked-etcd", "cp1", Strictness::ByAddress);
        assert!(rules.ports.contains(&"2379/tcp".to_owned()), "{rules:?}");
        assert!(rules.ports.contains(&"6443/tcp".to_owned()), "{rules:?}");
        let etcd: Vec<&str> = rules
            .script
            .lines()
            .filter(|line| line.contains("dport 2379"))
            .collect();
        let by_uplink = etcd
            .iter()
            .find(|line| !line.contains("@uplinks") && line.contains("accept"))
            .unwrap();
        assert!(by_uplink.contains("10.0.0.12"), "{by_uplink}");
        assert!(!by_uplink.contains("10.0.0.21"), "a worker: {by_uplink}");
        let pods = etcd
            .iter()
            .filter(|line| line.contains("iifname != @uplinks"));
        assert!(pods.clone().all(|line| line.contains("drop")), "{etcd:?}");
        assert!(pods.count() >= 2, "{etcd:?}");
    }

    #[test]
    fn closed_ports_are_closed_to_everybody() {
        let rules = rules_of("control-plane-stacked-etcd", "cp1", Strictness::Closed);
        assert!(rules.ports.contains(&"2379/tcp".to_owned()), "{rules:?}");
        let accepting = rules.script.lines().filter(|line| line.contains("accept"));
        let accepting: Vec<&str> = accepting
            .filter(|line| !line.contains("policy accept"))
            .collect();
        assert_eq!(accepting, ["    iifname \"lo\" accept"]);
    }

    #[test]
    fn dry_run_holds_nothing() {
        let policy = shipped("control-plane-stacked-etcd");
        let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
        let rules = rules(&policy, &compiled, &[], Strictness::Closed);
        assert_eq!(rules.ports, Vec::<String>::new());
        assert!(!rules.script.contains("drop"), "{}", rules.script);
    }

    /// Without a gap or an overlap, so that every source has one rule.
    #[test]
    fn ranges_cover_every_address_once() {
        let policy = shipped("worker");
        let node = &policy.nodes[0].name;
        let compiled = compile(&policy, node, None, &mut PathNumbers::default()).unwrap();
        for is_v4 in [true, false] {
            let spans = spans(&compiled, is_v4);
            assert!(spans.len() > 3);
            for pair in spans.windows(2) {
                assert_eq!(number(pair[0].1) + 1, number(pair[1].0));
            }
            let all = joined(spans.iter());
            let text = set(&all, is_v4);
            assert_eq!(text, if is_v4 { "0.0.0.0/0" } else { "::/0" });
        }
    }
}
