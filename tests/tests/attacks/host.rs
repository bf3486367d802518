//! Attacks from the node's own network namespace, with raw and packet sockets: the former bypass
//! the `connect` and `sendmsg` hooks, the latter those of all sockets.

use anyhow::Result;
use enforcer_tests::Outcome;
use enforcer_tests::craft::{Crafted, tagged};
use enforcer_tests::plan::{LOOPBACK, OUT, W1, port};
use enforcer_tests::probe::{Call, Inject, Probe, Ring};

use crate::attack::{self, Attack, Attacker, Attempt};
use crate::stage::{At, CP1_MAC, Stage, W1_MAC, to_etcd_from_w1, to_insecure_on_lo};

const SYN: u8 = 0x02;
const FROM: u16 = 41_000;
const ETCD: u16 = port::ETCD_CLIENT;
const INPUT: At = At::Input("cp1");

const fn row(
    id: &'static str,
    what: &'static str,
    judge: &'static str,
    denial: (&'static str, &'static str),
    attempt: fn(&Stage) -> Result<Attempt<'_>>,
) -> Attack {
    attack::row(id, Attacker::HostPod, what, judge, denial, attempt)
}

fn reported(attempt: Attempt<'_>, port: u16) -> Attempt<'_> {
    attempt.reported(std::net::Ipv6Addr::UNSPECIFIED.into(), port)
}

const INJECTED: &str = "tc/egress";
const SENT: &str = "cgroup/egress";
const ASKED: (&str, &str) = ("cgroup/setsockopt", "BypassesHooks");

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("packet-on-lo", "injects a frame on lo by a packet socket", "cp1", (INJECTED, "WrongProcess"), |stage| {
            let attempt = stage.inject(&stage.lab.hostnet("cp1"), "lo", INPUT, |mark| to_insecure_on_lo(FROM, mark).map(|packet| packet.frame([0; 6], [0; 6])).to_vec())?;
            Ok(reported(attempt, port::INSECURE))
        }),
        row("raw-on-lo", "sends to loopback by a raw socket", "cp1", (SENT, "WrongProcess"), |stage| {
            Ok(reported(stage.raw(&stage.lab.hostnet("cp1"), INPUT, |mark| to_insecure_on_lo(FROM, mark).to_vec())?, port::INSECURE))
        }),
        row("packet-cooked", "injects by a packet socket for which the kernel writes the link header (SOCK_DGRAM)", "w1", (INJECTED, "NoPath"), |stage| {
            let attempt = stage.inject_with(&stage.lab.hostnet("w1"), INPUT, |mark| {
                let frames = to_etcd_from_w1(FROM, mark).map(|packet| packet.frame(W1_MAC, CP1_MAC));
                Inject { cooked: true, ..Inject::frames("eth0", &frames) }
            })?;
            Ok(reported(attempt, ETCD))
        }),
        row("packet-tagged", "injects a frame with a VLAN tag", "w1", (INJECTED, "NoPath"), |stage| {
            let attempt = stage.inject(&stage.lab.hostnet("w1"), "eth0", INPUT, |mark| {
                to_etcd_from_w1(FROM, mark).map(|packet| tagged(0x8100, 0, &packet.frame(W1_MAC, CP1_MAC))).to_vec()
            })?;
            Ok(reported(attempt, ETCD))
        }),
        row("packet-fragments", "injects fragments that cut the TCP header in two", "w1", (INJECTED, "FragmentTooShort"), |stage| {
            let attempt = stage.inject(&stage.lab.hostnet("w1"), "eth0", INPUT, |mark| {
                let [whole, _] = to_etcd_from_w1(FROM, mark);
                [(0, 0..8, true), (1, 8..20, false)].map(|(offset, range, more)| {
                    whole.part(offset, &whole.payload[range], more).frame(W1_MAC, CP1_MAC)
                }).to_vec()
            })?;
            Ok(attempt.aimed(1).denied(2))
        }),
        row("packet-bypass", "requests that its packet socket's frames bypass the queueing discipline (`PACKET_QDISC_BYPASS`), and TC with it", "cp1", ASKED, |stage| {
            stage.inject_with(&stage.lab.hostnet("cp1"), INPUT, |mark| {
                let frames = to_insecure_on_lo(FROM, mark).map(|packet| packet.frame([0; 6], [0; 6]));
                Inject { bypass: Some(Call::Native), ..Inject::frames("lo", &frames) }
            })
        }),
        row("express-ring", "requests a ring to send by an `AF_XDP` socket, which bypasses TC", "cp1", ASKED, |stage| {
            let outcome = stage.lab.hostnet("cp1").probe(&Probe::Ring(Ring::default()))?.outcome;
            Ok(Attempt::new(1, None, move || Ok(u64::from(outcome == Outcome::Bound))))
        }),
        row("raw-forged", "sends from another node's address by a raw socket", "cp1", (SENT, "ForgedSource"), |stage| {
            let attempt = stage.raw(&stage.lab.hostnet("cp1"), At::Input("out"), |mark| vec![Crafted::tcp(W1.at(FROM), OUT.at(port::ECHO), mark, SYN, b"")])?;
            Ok(attempt.reported(OUT.v4.into(), port::ECHO))
        }),
        row("packet-forged", "injects from another node's address", "cp1", (INJECTED, "ForgedSource"), |stage| {
            let attempt = stage.inject(&stage.lab.hostnet("cp1"), "eth0", At::Input("out"), |mark| {
                vec![Crafted::tcp(W1.at6(FROM), OUT.at6(port::ECHO), mark, SYN, b"").frame(CP1_MAC, OUT.mac)]
            })?;
            Ok(attempt.reported(OUT.v6.into(), port::ECHO))
        }),
        row("packet-loopback-on-wire", "injects a packet to 127.0.0.1 on the uplink, for another node that takes it", "w1", (INJECTED, "LoopbackOffLo"), |stage| {
            let attempt = stage.inject(&stage.lab.hostnet("w1"), "eth0", INPUT, |mark| {
                vec![Crafted::tcp(W1.at(FROM), LOOPBACK.at(port::INSECURE), mark, SYN, b"").frame(W1_MAC, CP1_MAC)]
            })?;
            Ok(attempt.reported(LOOPBACK.v4.into(), port::INSECURE))
        }),
    ]
}
