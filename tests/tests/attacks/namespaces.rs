//! Attacks through interfaces: from a pod that has a link on top of its node's uplink, and from a
//! node with undeclared interfaces.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use enforcer_tests::annex::Annex;
use enforcer_tests::craft::Crafted;
use enforcer_tests::net;
use enforcer_tests::plan::{CP1, OUT, Party, W1, port};
use enforcer_tests::probe::{Connect, Udp};

use crate::attack::{Attack, Attacker, Attempt, row};
use crate::packets::{in_ipip, in_vxlan, syn_of_pod_b};
use crate::stage::{At, CP1_MAC, Stage, TUNNEL, UNDECLARED, UNDECLARED_MAC, W1_MAC};

use Attacker::{Neighbour, Pod};

const SYN: u8 = 0x02;
const ETCD: u16 = port::ETCD_CLIENT;
const EGRESS: &str = "tc/egress";

/// A pod with a share of w1's uplink.
const SIDE: Party = Party {
    name: "side",
    v4: Ipv4Addr::new(10, 77, 0, 77),
    v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x77),
    mac: [0x02, 0x77, 0, 0, 0, 0x77],
};

/// The hardware address of another interface of the pod.
const INNER_MAC: [u8; 6] = [0x02, 0x77, 0, 0, 0, 0x78];

/// A kind of link on top of another one.
#[derive(Debug, Clone, Copy)]
enum Child {
    Macvlan,
    Ipvlan,
    Vlan,
}

impl Child {
    /// A removed link blocks its hardware address for a while, so each gets a new one.
    fn words(self, number: u16) -> String {
        let [high, low] = number.to_be_bytes();
        match self {
            Self::Macvlan => {
                format!("address 02:77:01:00:{high:02x}:{low:02x} type macvlan mode bridge")
            }
            Self::Ipvlan => "type ipvlan mode l2".to_owned(),
            Self::Vlan => "type vlan id 7".to_owned(),
        }
    }

    fn missing(self) -> &'static str {
        match self {
            Self::Macvlan => "this kernel has no macvlan",
            Self::Ipvlan => "this kernel has no ipvlan",
            Self::Vlan => "this kernel has no VLAN devices",
        }
    }
}

/// A pod's namespace with a child of w1's uplink in it, which has an address; `None` if this kernel
/// has no such links.
fn annexed(stage: &Stage, child: Child, address: &Party) -> Result<Option<Annex>> {
    let (lab, host) = (&stage.lab, stage.lab.host("w1").namespace().name());
    let annex = Annex::create(lab, "w1", SIDE)?;
    let index = lab
        .host("w1")
        .namespace()
        .within(|| nix::net::if_::if_nametoindex("eth0"))??;
    let inner = INNER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    // What arrives there looks as if it had arrived through the node's uplink.
    net::ip(
        Some(annex.name()),
        &format!(
            "link add in0 address {inner} index {index} type veth peer name in1 index 99\nlink set in0 up\nlink set in1 up\n"
        ),
    )?;
    if net::ip(
        Some(host),
        &format!(
            "link add part0 link eth0 {}\n",
            child.words(stage.unique_number())
        ),
    )
    .is_err()
    {
        return Ok(None);
    }
    net::ip(
        Some(host),
        &format!("link set part0 netns {}\n", annex.name()),
    )?;
    let to = CP1_MAC.map(|byte| format!("{byte:02x}")).join(":");
    net::ip(
        Some(annex.name()),
        &format!(
            "addr add {}/24 dev part0\naddr add {}/64 dev part0 nodad\nlink set part0 up\n\
             neigh replace {} lladdr {to} dev part0 nud permanent\n\
             neigh replace {} lladdr {to} dev part0 nud permanent\n",
            address.v4, address.v6, CP1.v4, CP1.v6
        ),
    )?;
    Ok(Some(annex))
}

/// Connections to etcd from a child of w1's uplink, of both families.
fn connects(stage: &Stage, child: Child, address: Party, at: At) -> Result<Attempt<'_>> {
    let Some(annex) = annexed(stage, child, &address)? else {
        return Ok(Attempt::skipped(child.missing()));
    };
    let from = 43_000 + stage.unique_number();
    let expression = format!("tcp sport {from} tcp dport {ETCD}");
    let expression = match child {
        // Behind its tag.
        Child::Vlan => format!("vlan id 7 {expression}"),
        Child::Macvlan | Child::Ipvlan => expression,
    };
    let arrivals = stage.counted(at, &expression)?;
    for to in CP1.both(ETCD) {
        annex.workload().connect_with(Connect {
            from: Some(SocketAddr::new(address.like(to.ip()), from)),
            timeout_ms: 150,
            ..Connect::to(to)
        })?;
    }
    let attempt = Attempt::new(2, None, move || {
        let _held = &annex;
        Ok(arrivals.so_far()?.min(2))
    });
    Ok(attempt.reported(Ipv6Addr::UNSPECIFIED.into(), ETCD))
}

const INPUT: At = At::Input("cp1");

/// SYNs to etcd for a packet or a raw socket there, from an address.
fn crafted(from: &Party, mark: u16) -> [Crafted; 2] {
    [
        Crafted::tcp(from.at(43_100), CP1.at(ETCD), mark, SYN, b""),
        Crafted::tcp(from.at6(43_100), CP1.at6(ETCD), mark, SYN, b""),
    ]
}

fn holding<'a>(annex: Annex, attempt: Attempt<'a>) -> Attempt<'a> {
    let arrived = attempt.arrived;
    let arrived = Box::new(move || {
        let _held = &annex;
        arrived()
    });
    let attempt = Attempt { arrived, ..attempt };
    attempt.reported(Ipv6Addr::UNSPECIFIED.into(), ETCD)
}

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("macvlan", Pod, "connects by a macvlan of its node's uplink, from an address of its own", "w1", (EGRESS, "NoPath"), |stage| {
            connects(stage, Child::Macvlan, SIDE, INPUT)
        }),
        row("macvlan-node-address", Pod, "the same from its node's address", "w1", (EGRESS, "ForgedSource"), |stage| {
            connects(stage, Child::Macvlan, Party { name: "side", ..W1 }, INPUT)
        }),
        row("ipvlan", Pod, "connects by an ipvlan of its node's uplink", "w1", (EGRESS, "NoPath"), |stage| {
            connects(stage, Child::Ipvlan, SIDE, INPUT)
        }),
        row("vlan-child", Pod, "connects by a VLAN of its node's uplink", "w1", (EGRESS, "NoPath"), |stage| {
            connects(stage, Child::Vlan, SIDE, At::Device("cp1", "eth0"))
        }),
        row("macvlan-packet", Pod, "sends by a packet socket on a macvlan of its node's uplink, from an address of its own", "w1", (EGRESS, "NoPath"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let attempt = stage.inject(annex.workload(), "part0", INPUT, |mark| {
                crafted(&SIDE, mark).map(|packet| packet.frame(SIDE.mac, CP1_MAC)).to_vec()
            })?;
            Ok(holding(annex, attempt))
        }),
        row("macvlan-packet-node-address", Pod, "the same from its node's address and hardware address", "w1", (EGRESS, "ForgedSource"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let attempt = stage.inject(annex.workload(), "part0", INPUT, |mark| {
                crafted(&W1, mark).map(|packet| packet.frame(W1_MAC, CP1_MAC)).to_vec()
            })?;
            Ok(holding(annex, attempt))
        }),
        row("macvlan-raw", Pod, "sends by a raw socket there, from its node's address", "w1", (EGRESS, "ForgedSource"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let attempt = stage.raw(annex.workload(), INPUT, |mark| vec![crafted(&W1, mark)[0].clone()])?;
            Ok(holding(annex, attempt))
        }),
        row("macvlan-forwarded", Pod, "forwards to a macvlan of its node's uplink what came in by an interface whose number is the uplink's", "w1", (EGRESS, "NoPath"), |stage| {
            forwards(stage, (ETCD, &|mark| {
                let from = SocketAddr::new(Ipv4Addr::new(10, 77, 0, 78).into(), 43_101);
                Crafted::tcp(from, CP1.at(ETCD), mark, SYN, b"")
            }))
        }),
        row("macvlan-forwarded-node-address", Pod, "the same from its node's address, into another node's tunnel", "w1", (EGRESS, "NoPath"), |stage| {
            forwards(stage, (TUNNEL, &|mark| Crafted::udp(W1.at(43_102), CP1.at(TUNNEL), mark, b"tunnelled")))
        }),
        row("macvlan-tunnel", Pod, "sends from its node's address by a macvlan of its uplink into another node's tunnel", "w1", (EGRESS, "ForgedSource"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &Party { name: "side", ..W1 })? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let from = 43_000 + stage.unique_number();
            let arrivals = stage.counted(INPUT, &format!("udp sport {from} udp dport {TUNNEL}"))?;
            annex.workload().udp_with(Udp { from: Some(W1.at(from)), no_answer: true, ..Udp::to(CP1.at(TUNNEL)) })?;
            let attempt = Attempt::new(1, None, move || {
                let _held = &annex;
                arrivals.so_far()
            });
            Ok(attempt.reported(CP1.v4.into(), TUNNEL))
        }),
        row("macvlan-packet-tunnel", Pod, "sends that way into another node's tunnel, from an undeclared cgroup", "w1", (EGRESS, "ForgedSource"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let stranger = annex.workload().in_cgroup(stage.lab.login("w1").cgroup());
            let attempt = stage.inject(&stranger, "part0", INPUT, |mark| {
                vec![Crafted::udp(W1.at(43_103), CP1.at(TUNNEL), mark, b"tunnelled").frame(W1_MAC, CP1_MAC)]
            })?;
            Ok(holding(annex, attempt).reported(CP1.v4.into(), TUNNEL))
        }),
        row("macvlan-tunnel-undeclared", Pod, "sends that way by a UDP socket, from an address of its own", "w1", (EGRESS, "NoPath"), |stage| {
            let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
                return Ok(Attempt::skipped(Child::Macvlan.missing()));
            };
            let stranger = annex.workload().in_cgroup(stage.lab.login("w1").cgroup());
            let from = 43_000 + stage.unique_number();
            let arrivals = stage.counted(INPUT, &format!("udp sport {from} udp dport {TUNNEL}"))?;
            stranger.udp_with(Udp { from: Some(SIDE.at(from)), no_answer: true, ..Udp::to(CP1.at(TUNNEL)) })?;
            let attempt = Attempt::new(1, None, move || {
                let _held = &annex;
                arrivals.so_far()
            });
            Ok(attempt.reported(CP1.v4.into(), TUNNEL))
        }),
        row("vxlan-undeclared", Neighbour, "puts a pod's packet to etcd into VXLAN, and sends it from a node's address by an undeclared interface", "cp1", ("tc/ingress", "NoPath"), |stage| {
            let attempt = by_undeclared(stage, |mark| in_vxlan(W1.at(43_200), &syn_of_pod_b(mark)))?;
            Ok(attempt.reported(CP1.v4.into(), TUNNEL))
        }),
        row("ipip-undeclared", Neighbour, "puts it into IPIP, and sends it by such an interface", "cp1", ("tc/ingress", "NoPath"), |stage| {
            let attempt = by_undeclared(stage, |mark| in_ipip(OUT.v4.into(), mark))?;
            Ok(attempt.reported(CP1.v4.into(), enforcer_tests::craft::protocol::IPIP.into()))
        }),
        row("ipip-undeclared-node-address", Neighbour, "the same from a node's address", "cp1", ("tc/ingress", "NoPath"), |stage| {
            let attempt = by_undeclared(stage, |mark| in_ipip(W1.v4.into(), mark))?;
            Ok(attempt.reported(CP1.v4.into(), enforcer_tests::craft::protocol::IPIP.into()))
        }),
        row("node-address-undeclared", Neighbour, "connects to etcd from a node's address by an undeclared interface", "cp1", ("tc/ingress", "NoPath"), |stage| {
            let attempt = by_undeclared(stage, |mark| Crafted::tcp(W1.at(43_201), CP1.at(ETCD), mark, SYN, b""))?;
            Ok(attempt.reported(CP1.v4.into(), ETCD))
        }),
    ]
}

fn forwards<'a>(
    stage: &'a Stage,
    (port, make): (u16, &dyn Fn(u16) -> Crafted),
) -> Result<Attempt<'a>> {
    let Some(annex) = annexed(stage, Child::Macvlan, &SIDE)? else {
        return Ok(Attempt::skipped(Child::Macvlan.missing()));
    };
    let attempt = stage.inject(annex.workload(), "in1", INPUT, |mark| {
        vec![make(mark).frame([2; 6], INNER_MAC)]
    })?;
    Ok(holding(annex, attempt).reported(CP1.v4.into(), port))
}

fn by_undeclared(stage: &Stage, make: impl FnOnce(u16) -> Crafted) -> Result<Attempt<'_>> {
    stage.inject(&stage.lab.neighbour(), UNDECLARED, INPUT, |mark| {
        vec![make(mark).frame([2; 6], UNDECLARED_MAC)]
    })
}
