//! Attacks with work that is left to the kernel: a checksum that it has to complete, which
//! overwrites a port, an address, flags or a protocol after TC has seen another value there.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use enforcer_tests::craft::{Crafted, protocol, tagged};
use enforcer_tests::offload::{Offload, disguised, source_port_for};
use enforcer_tests::packet::to_hex;
use enforcer_tests::plan::{CP1, OUT, POD_A, POD_B, POD_GATEWAY_MAC, W1, port};
use enforcer_tests::probe::{Inject, Probe, Tap};
use enforcer_tests::{Workload, net};

use crate::attack::{Attack, Attacker, Attempt, Others, row};
use crate::stage::{At, BEHIND_UNDECLARED, CP1_MAC, Stage, TUNNEL, UNDECLARED, W1_MAC};

use Attacker::{HostPod, Neighbour, Pod};

const SYN: u8 = 0x02;
const ETCD: u16 = port::ETCD_CLIENT;
/// An unguarded port.
const SHOWN: u16 = 9_999;
/// Where the words are in a frame: the lower half of IPv4's destination, and the ports and flags
/// after it.
const ADDRESS: usize = 32;
const PORT: usize = 36;
const FLAGS: usize = 46;
const URGENT: usize = 52;
const UDP_DATA: usize = 42;
const PORT_V6: usize = 56;
const SENT: (&str, &str) = ("tc/egress", "ChecksumElsewhere");
const ENTERED: (&str, &str) = ("tc/ingress", "ChecksumElsewhere");

fn completed(start: usize, field: usize) -> String {
    let checksum = Some((start as u16, (field - start) as u16));
    to_hex(
        &Offload {
            checksum,
            ..Offload::default()
        }
        .bytes(),
    )
}

/// From w1's hostNetwork pod through its uplink to cp1: the kernel turns it into a SYN to etcd.
fn by_uplink<'a>(
    stage: &'a Stage,
    counted: &str,
    make: impl FnOnce(u16) -> (Vec<u8>, usize, usize),
) -> Result<Attempt<'a>> {
    stage.inject_one(
        &stage.lab.hostnet("w1"),
        (At::Input("cp1"), counted),
        |mark| {
            let (frame, start, field) = make(mark);
            let offload = Some(completed(start, field));
            Ok(Inject {
                offload,
                ..Inject::frames("eth0", &[frame])
            })
        },
    )
}

/// A SYN to etcd whose checksum is right once the port is overwritten.
fn syn(from: IpAddr, to: SocketAddr, mark: u16, field: usize) -> (Vec<u8>, usize, usize) {
    let from = SocketAddr::new(from, source_port_for(from, to.ip(), 20, SHOWN));
    let frame = Crafted::tcp(from, to, mark, SYN, b"").frame(W1_MAC, CP1_MAC);
    // No steering word is needed: the source port takes its role.
    let mut shown = frame.clone();
    shown[field..field + 2].copy_from_slice(&SHOWN.to_be_bytes());
    (shown, field, field)
}

/// A frame with the neighbour's hardware address as its source, to another hop than the original.
fn by_neighbour(mut frame: Vec<u8>, hop: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&hop);
    frame[6..12].copy_from_slice(&OUT.mac);
    frame
}

/// A datagram without a checksum, which IPv4 permits, to a tunnel.
fn datagram(from: SocketAddr, to: SocketAddr, mark: u16) -> Crafted {
    let mut packet = Crafted::udp(from, to, mark, b"\0\0 steered");
    packet.payload[6..8].fill(0);
    packet
}

/// The same from a pod's namespace, through any interface there.
fn to_far_tunnel(mark: u16, from: IpAddr) -> Vec<u8> {
    let packet = datagram(SocketAddr::new(from, 41_900), W1.at(TUNNEL), mark);
    let pod = POD_A.party.mac;
    let frame = packet.frame(pod, POD_GATEWAY_MAC);
    disguised(&frame, PORT, PORT, SHOWN, UDP_DATA)
}

/// A tap device in a namespace, created early so that agents have had time to attach to it.
fn tap(workload: &Workload, device: &str) -> Result<bool> {
    let name = workload.namespace().name();
    if workload.run("ip", ["link", "show", "dev", device])?.ok() {
        return Ok(true);
    }
    let made = format!("tuntap add dev {device} mode tap vnet_hdr\n");
    if net::ip(Some(name), &made).is_err() {
        return Ok(false);
    }
    net::ip(Some(name), &format!("link set {device} up\n"))?;
    workload.namespace().set_sysctls(&[
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        (&format!("ipv4/conf/{device}/rp_filter"), "0"),
        (&format!("ipv4/conf/{device}/accept_local"), "1"),
    ])?;
    Ok(true)
}

/// Out of a tap device towards w1's tunnel.
fn out_of_tap<'a>(
    stage: &'a Stage,
    from: &Workload,
    device: &str,
    source: IpAddr,
) -> Result<Attempt<'a>> {
    if !tap(from, device)? {
        return Ok(Attempt::skipped("this kernel has no tap devices"));
    }
    let mark = stage.unique_number();
    let arrivals = stage.counted(At::Input("w1"), &format!("ip id {mark} udp dport {TUNNEL}"))?;
    let report = from.probe(&Probe::Tap(Tap {
        device: device.to_owned(),
        frame: vec![to_hex(&to_far_tunnel(mark, source))],
        offload: completed(PORT, PORT),
    }))?;
    ensure!(report.outcome.worked(), "{report:?}");
    Ok(Attempt::new(1, None, move || arrivals.so_far()))
}

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("checksum-over-port", HostPod, "has its kernel write a checksum over the destination port of a frame, once TC has seen another one there (`PACKET_VNET_HDR`)", "w1", SENT, |stage| {
            by_uplink(stage, "tcp dport 2379", |mark| syn(W1.v4.into(), CP1.at(ETCD), mark, PORT))
        }),
        row("checksum-over-port-v6", HostPod, "the same over IPv6", "w1", SENT, |stage| {
            by_uplink(stage, "tcp dport 2379", |mark| syn(W1.v6.into(), CP1.at6(ETCD), mark, PORT_V6))
        }),
        row("checksum-over-address", HostPod, "the same over the destination address", "w1", SENT, |stage| {
            by_uplink(stage, "udp dport 4789", |mark| {
                let frame = datagram(W1.at(41_901), CP1.at(TUNNEL), mark).frame(W1_MAC, CP1_MAC);
                let [.., high, low] = OUT.v4.octets();
                let shown = u16::from_be_bytes([high, low]);
                (disguised(&frame, ADDRESS, ADDRESS, shown, UDP_DATA), ADDRESS, ADDRESS)
            })
        }),
        row("checksum-over-ethertype", HostPod, "the same over the protocol behind two VLAN tags", "w1", SENT, |stage| {
            by_uplink(stage, "tcp dport 2379", |mark| {
                let plain = Crafted::tcp(W1.at(41_903), CP1.at(ETCD), mark, SYN, b"").frame(W1_MAC, CP1_MAC);
                let mut frame = tagged(0x88a8, 0, &tagged(0x8100, 0, &plain));
                let padding = frame.len();
                frame.extend([0; 2]);
                (disguised(&frame, 20, 20, 0x88cc, padding), 20, 20)
            })
        }),
        row("checksum-ring", HostPod, "the same from memory shared with the kernel (`PACKET_TX_RING`)", "w1", SENT, |stage| {
            stage.inject_one(&stage.lab.hostnet("w1"), (At::Input("cp1"), "tcp dport 2379"), |mark| {
                let (frame, start, field) = syn(W1.v4.into(), CP1.at(ETCD), mark, PORT);
                let offload = Some(completed(start, field));
                Ok(Inject { offload, ring: true, ..Inject::frames("eth0", &[frame]) })
            })
        }),
        row("checksum-through-uplink", Neighbour, "has a node write a checksum over the port of what the node forwards for it to another node", "w1", SENT, |stage| {
            stage.inject_one(&stage.lab.neighbour(), (At::Input("cp1"), "tcp dport 2379"), |mark| {
                let (frame, start, field) = syn(OUT.v4.into(), CP1.at(ETCD), mark, PORT);
                Ok(Inject { offload: Some(completed(start, field)), ..Inject::frames("eth0", &[by_neighbour(frame, W1_MAC)]) })
            })
        }),
        row("checksum-through-undeclared", Neighbour, "the same, where the node forwards it by an undeclared interface", "cp1", SENT, |stage| {
            stage.inject_one(&stage.lab.neighbour(), (At::Device("out", UNDECLARED), "tcp dport 2379"), |mark| {
                let (frame, start, field) = syn(OUT.v4.into(), SocketAddr::new(BEHIND_UNDECLARED.into(), ETCD), mark, PORT);
                Ok(Inject { offload: Some(completed(start, field)), ..Inject::frames("eth0", &[by_neighbour(frame, CP1_MAC)]) })
            })
        }),
        row("checksum-through", Pod, "has its node write a checksum over the port of what it sends through it, into the tunnel of another node", "cp1", ENTERED, |stage| {
            stage.inject_one(stage.lab.pod("pod-a"), (At::Input("w1"), "udp dport 4789"), |mark| {
                let offload = Some(completed(PORT, PORT));
                let frame = to_far_tunnel(mark, POD_A.party.v4.into());
                Ok(Inject { offload, ..Inject::frames("eth0", &[frame]) })
            })
        }),
        row("checksum-tap", Pod, "the same out of a tap device in its own namespace", "cp1", ENTERED, |stage| {
            out_of_tap(stage, stage.lab.pod("pod-a"), "tap0", POD_A.party.v4.into())
        }),
        Attack {
            others: Others::Drop,
            ..row("checksum-over-flags", Pod, "the same over the flags of TCP: what TC sees as a webhook's answer opens a connection", "w1", ENTERED, |stage| {
                stage.inject_one(stage.lab.pod("pod-b"), (At::Input("cp1"), "tcp dport 7777 tcp flags & (syn | ack) == syn"), |mark| {
                    let from = POD_B.party.at(port::WEBHOOK);
                    let frame = Crafted::tcp(from, CP1.at(port::ECHO), mark, SYN, b"").frame(POD_B.party.mac, POD_GATEWAY_MAC);
                    let shown = disguised(&frame, FLAGS, FLAGS, 0x5010, URGENT);
                    Ok(Inject { offload: Some(completed(FLAGS, FLAGS)), ..Inject::frames("eth0", &[shown]) })
                })
            })
        },
        row("checksum-tap-host", HostPod, "the same out of a tap device in its node's namespace", "cp1", ENTERED, |stage| {
            out_of_tap(stage, &stage.lab.hostnet("cp1"), "tap0", OUT.v4.into())
        }),
    ]
}

/// Legitimate requests of virtual machines and user-space network stacks are served as before:
/// checksums in the right place, and segmentation.
pub fn honest_ones_pass(stage: &Stage) -> Result<()> {
    let (host, pod) = (stage.lab.hostnet("w1"), stage.lab.pod("pod-b"));
    let (node, own) = (W1, pod.party());
    for (from, addresses, hop, name) in [
        (&host, &node, CP1_MAC, "w1"),
        (pod, own, POD_GATEWAY_MAC, "pod-b"),
    ] {
        for (number, to) in [CP1.at(port::ECHO), CP1.at6(port::ECHO)]
            .into_iter()
            .enumerate()
        {
            let source = SocketAddr::new(
                addresses.like(to.ip()),
                41_910 + stage.unique_number() % 1000,
            );
            let headers: usize = if to.is_ipv4() { 34 } else { 54 };
            let kind = if to.is_ipv4() {
                enforcer_tests::offload::GSO_TCP4
            } else {
                enforcer_tests::offload::GSO_TCP6
            };
            let of = |data: &'static [u8], flags, segments| {
                let what = Offload {
                    checksum: Some((headers as u16, 16)),
                    segments,
                };
                let packet = move |mark| Crafted::tcp(source, to, mark, flags, data);
                (what, packet)
            };
            let long: &'static [u8] = &[b'x'; 1_200];
            let tcp = [
                of(b"", SYN, None),
                of(long, 0x10, Some((kind, headers as u16 + 20, 500))),
            ];
            let udp = Offload {
                checksum: Some((headers as u16, 6)),
                segments: None,
            };
            let mut tried: Vec<(Offload, Crafted, u16)> = Vec::new();
            for (what, packet) in tcp {
                let mark = stage.unique_number();
                tried.push((what, packet(mark), mark));
            }
            let mark = stage.unique_number();
            tried.push((udp, Crafted::udp(source, to, mark, b"data"), mark));
            for (what, packet, mark) in tried {
                let counted = if to.is_ipv4() {
                    format!("ip id >= {mark} ip id < {}", mark + 3)
                } else {
                    format!("ip6 flowlabel {mark}")
                };
                // The segments of a packet are numbered consecutively.
                if what.segments.is_some() {
                    stage.unique_number();
                    stage.unique_number();
                }
                let kind = if packet.protocol == protocol::UDP {
                    "udp"
                } else {
                    "tcp"
                };
                let arrivals = stage.counted(
                    At::Input("cp1"),
                    &format!("{counted} {kind} dport {}", port::ECHO),
                )?;
                let frame = packet.frame(addresses.mac, hop);
                let report = from.inject_with(Inject {
                    offload: Some(to_hex(&what.bytes())),
                    ..Inject::frames("eth0", &[frame])
                })?;
                ensure!(report.outcome.worked(), "{name}, {number}: {report:?}");
                let attempt = Attempt::new(1, None, move || Ok(arrivals.so_far()?.min(1)));
                let arrived = super::arrives(&attempt);
                ensure!(arrived.is_ok(), "{name} to {to}, {what:?}: {arrived:?}");
            }
        }
    }
    Ok(())
}
