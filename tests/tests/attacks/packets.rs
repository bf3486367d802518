//! Attacks with crafted packets from a pod, from the segment and from outside, which no socket
//! would send.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use enforcer_tests::Workload;
use enforcer_tests::craft::{Crafted, ethernet, fix_ipv4_checksum, protocol, tagged, tcp};
use enforcer_tests::plan::{CP1, LOOPBACK, OUT, POD_A, POD_B, SERVICE, W1, port};

use crate::attack::{Attack, Attacker, Attempt, Others, row_on_cp1 as row};
use crate::stage::{At, CP1_MAC, Stage, TUNNEL, W1_MAC};

use Attacker::{Neighbour, Pod, World};

const SYN: u8 = 0x02;
const FROM: u16 = 40_000;
const TC: &str = "tc/ingress";
pub const INPUT: At = At::Input("cp1");
pub const WIRE: At = At::Device("cp1", "eth0");
const BROADCAST: [u8; 6] = [0xff; 6];
const ETCD: u16 = port::ETCD_CLIENT;

const fn if_others_are_dropped(attack: Attack) -> Attack {
    Attack {
        others: Others::Drop,
        ..attack
    }
}

const NO_PATH: (&str, &str) = (TC, "NoPath");

pub fn rows() -> Vec<Attack> {
    [
        headers(),
        fragments(),
        addresses(),
        links(),
        errors(),
        dropped(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// From pod-a to cp1, through the pod's gateway.
fn from_pod(stage: &Stage, at: At, make: impl FnOnce(u16) -> Vec<Crafted>) -> Result<Attempt<'_>> {
    let pod = stage.lab.pod("pod-a");
    stage.craft(pod, pod.next_hop(CP1.v4.into()), at, make)
}

/// From the neighbour's interface to cp1's.
pub fn from_wire(
    stage: &Stage,
    at: At,
    make: impl FnOnce(u16) -> Vec<Crafted>,
) -> Result<Attempt<'_>> {
    stage.craft(&stage.lab.neighbour(), CP1_MAC, at, make)
}

fn pod_to_etcd() -> [(SocketAddr, SocketAddr); 2] {
    let pod = POD_A.party;
    [(pod.at(FROM), CP1.at(ETCD)), (pod.at6(FROM), CP1.at6(ETCD))]
}

fn to_etcd(attempt: Attempt<'_>) -> Attempt<'_> {
    attempt.reported(CP1.v4.into(), ETCD)
}

fn with_flags(mark: u16, flags: &[u8]) -> Vec<Crafted> {
    let segment = |(from, to)| {
        flags
            .iter()
            .map(move |f| Crafted::tcp(from, to, mark, *f, b""))
    };
    pod_to_etcd().into_iter().flat_map(segment).collect()
}

fn with_options<'a>(stage: &'a Stage, options: &[&[u8]]) -> Result<Attempt<'a>> {
    from_pod(stage, INPUT, |mark| {
        let [(from, to), _] = pod_to_etcd();
        let plain = Crafted::tcp(from, to, mark, SYN, b"");
        let with = |options: &&[u8]| Crafted {
            options: options.to_vec(),
            ..plain.clone()
        };
        options.iter().map(with).collect()
    })
}

fn with_extensions(mark: u16, extensions: Vec<(u8, Vec<u8>)>) -> Crafted {
    let [_, (from, to)] = pod_to_etcd();
    Crafted {
        extensions,
        ..Crafted::tcp(from, to, mark, SYN, b"")
    }
}

/// A fragment that is its whole packet (RFC 6946).
fn atomic(whole: Crafted) -> Crafted {
    whole.part(0, &whole.payload, false)
}

/// An extension header of 8 bytes that contains only padding, without its first byte.
fn padding() -> Vec<u8> {
    vec![0, 1, 4, 0, 0, 0, 0]
}

#[rustfmt::skip]
fn headers() -> Vec<Attack> {
    vec![
        row("syn-flags", Pod, "opens with odd flags beside SYN: FIN, RST, PSH and URG, ECE and CWR, all but ACK", NO_PATH, |stage| {
            from_pod(stage, INPUT, |mark| with_flags(mark, &[0x03, 0x06, 0x2a, 0xc2, 0xef])).map(to_v4_or_v6)
        }),
        row("no-syn", Pod, "sends segments that open nothing: none, FIN, RST, ACK, SYN and ACK, Xmas, all flags", NO_PATH, |stage| {
            from_pod(stage, INPUT, |mark| with_flags(mark, &[0x00, 0x01, 0x04, 0x10, 0x12, 0x29, 0xff])).map(to_v4_or_v6)
        }),
        row("multipath-join", Pod, "joins a multipath connection that others opened (`MP_JOIN`)", NO_PATH, |stage| {
            from_pod(stage, INPUT, |mark| {
                let join = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];
                pod_to_etcd().into_iter().map(|(from, to)| {
                    let segment = tcp(from, to, SYN, &join, b"");
                    Crafted::carrying(from.ip(), to.ip(), mark, protocol::TCP, segment)
                }).collect()
            }).map(to_v4_or_v6)
        }),
        row("ip-options", Pod, "moves the ports away by IP options: one, ten times four bytes, a timestamp, a router alert", NO_PATH, |stage| {
            with_options(stage, &[&[1, 1, 1, 0], &[1; 40], &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[148, 4, 0, 0]]).map(to_etcd)
        }),
        row("source-route", Neighbour, "sends to a worker what a source route leads on to etcd", ("tc/egress", "NoPath"), |stage| {
            stage.craft(&stage.lab.neighbour(), W1_MAC, INPUT, |mark| {
                let [a, b, c, d] = CP1.v4.octets();
                // TCP's checksum is for the final destination.
                let segment = tcp(OUT.at(FROM), CP1.at(ETCD), SYN, &[], b"");
                let options = vec![131, 7, 4, a, b, c, d, 0];
                vec![Crafted { options, ..Crafted::carrying(OUT.v4.into(), W1.v4.into(), mark, protocol::TCP, segment) }]
            }).map(to_etcd)
        }).judged_on_w1(),
        row("segment-route", Neighbour, "the same by an IPv6 segment routing header", ("tc/egress", "NoPath"), |stage| {
            let attempt = stage.craft(&stage.lab.neighbour(), W1_MAC, INPUT, |mark| {
                let segment = tcp(OUT.at6(FROM), CP1.at6(ETCD), SYN, &[], b"");
                let header = [&[4, 4, 1, 1, 0, 0, 0][..], &CP1.v6.octets(), &W1.v6.octets()].concat();
                let extensions = vec![(protocol::ROUTING, header)];
                vec![Crafted { extensions, ..Crafted::carrying(OUT.v6.into(), W1.v6.into(), mark, protocol::TCP, segment) }]
            })?;
            Ok(attempt.reported(CP1.v6.into(), ETCD))
        }).judged_on_w1(),
        row("extension-headers", Pod, "hides the ports behind IPv6 extension headers: hop-by-hop, routing, destination options, eight of them, a fragment header of a whole packet", NO_PATH, |stage| {
            let attempt = from_pod(stage, INPUT, |mark| vec![
                with_extensions(mark, vec![(protocol::HOP_BY_HOP, padding())]),
                with_extensions(mark, vec![(protocol::ROUTING, vec![0, 4, 0, 0, 0, 0, 0])]),
                with_extensions(mark, vec![(protocol::HOP_BY_HOP, padding()), (protocol::DESTINATION_OPTIONS, padding())]),
                with_extensions(mark, vec![(protocol::DESTINATION_OPTIONS, padding()); 8]),
                atomic(with_extensions(mark, Vec::new())),
            ])?;
            Ok(attempt.reported(CP1.v6.into(), ETCD))
        }),
        row("too-many-headers", Pod, "hides them behind more extension headers than are read, or puts one where it is not allowed", (TC, "TooManyHeaders"), |stage| {
            from_pod(stage, INPUT, |mark| vec![
                with_extensions(mark, vec![(protocol::DESTINATION_OPTIONS, padding()); 9]),
                with_extensions(mark, vec![(protocol::DESTINATION_OPTIONS, padding()), (protocol::HOP_BY_HOP, padding())]),
            ])
        }),
        row("padding", Pod, "ends the packet within the TCP header, and puts the rest of it behind the end", (TC, "TruncatedHeader"), |stage| {
            let pod = stage.lab.pod("pod-a");
            stage.inject(pod, "eth0", INPUT, |mark| {
                let [(from, to), _] = pod_to_etcd();
                let mut packet = Crafted::tcp(from, to, mark, SYN, b"").packet();
                packet[2..4].copy_from_slice(&32u16.to_be_bytes());
                fix_ipv4_checksum(&mut packet[..20]);
                vec![ethernet(pod.party().mac, pod.next_hop(CP1.v4.into()), 0x0800, &packet)]
            })
        }),
        row("bad-header", Pod, "contradicts itself: a header of 16 bytes, a packet shorter than its header, version 5", (TC, "BadHeader"), |stage| {
            let pod = stage.lab.pod("pod-a");
            let interface = At::Device("cp1", "cali-pod-a");
            stage.inject(pod, "eth0", interface, |mark| {
                let [(from, to), _] = pod_to_etcd();
                [(0, 0x44), (3, 19), (0, 0x55)].map(|(at, value)| {
                    let mut packet = Crafted::tcp(from, to, mark, SYN, b"").packet();
                    packet[at] = value;
                    fix_ipv4_checksum(&mut packet[..20]);
                    ethernet(pod.party().mac, pod.next_hop(CP1.v4.into()), 0x0800, &packet)
                }).to_vec()
            })
        }),
        row("fast-open-blind", World, "sends data with a SYN from an address that is not its own, to a server that takes it (TCP Fast Open)", NO_PATH, |stage| {
            let attempt = stage.send_frames(&stage.lab.neighbour(), &stage.etcd, |word| vec![fast(&stage.unique_number(), "203.0.113.9", word)])?;
            Ok(to_etcd(attempt))
        }),
    ]
}

/// A SYN with data to etcd, and with an empty request for a cookie.
pub fn fast(mark: &u16, source: &str, word: &[u8]) -> Vec<u8> {
    let from = SocketAddr::new(
        source.parse().unwrap_or(IpAddr::V4(OUT.v4)),
        FROM + mark % 1000,
    );
    let segment = tcp(from, CP1.at(ETCD), SYN, &[34, 2, 1, 1], word);
    Crafted::carrying(from.ip(), CP1.v4.into(), *mark, protocol::TCP, segment)
        .frame(OUT.mac, CP1_MAC)
}

/// Reports either family: any address of cp1.
fn to_v4_or_v6(attempt: Attempt<'_>) -> Attempt<'_> {
    attempt.reported(Ipv6Addr::UNSPECIFIED.into(), ETCD)
}

#[rustfmt::skip]
fn fragments() -> Vec<Attack> {
    let short = (TC, "FragmentTooShort");
    vec![
        row("tiny-fragment", Pod, "cuts the TCP header in two, after the ports and before the flags", short, |stage| {
            let attempt = from_pod(stage, INPUT, |mark| {
                let [(from, to), _] = pod_to_etcd();
                let whole = Crafted::tcp(from, to, mark, SYN, b"");
                vec![whole.part(0, &whole.payload[..8], true), whole.part(1, &whole.payload[8..], false)]
            })?;
            Ok(attempt.aimed(1).denied(2))
        }),
        row("tiny-fragment-v6", Pod, "the same over IPv6, the ports behind destination options in the second fragment", short, |stage| {
            let attempt = from_pod(stage, At::Device("cp1", "cali-pod-a"), |mark| {
                let [_, (from, to)] = pod_to_etcd();
                let whole = Crafted::tcp(from, to, mark, SYN, b"");
                let options = [&[protocol::TCP][..], &padding()].concat();
                let first = Crafted { protocol: protocol::DESTINATION_OPTIONS, ..whole.part(0, &options, true) };
                vec![first, whole.part(0, &whole.payload[..8], true)]
            })?;
            Ok(attempt)
        }),
        row("overlap", Pod, "sends a first fragment to an open port and writes over its flags by a second at offset 8", short, |stage| {
            let pod = POD_A.party.at(FROM);
            overlapping(stage, pod, |whole, mark| {
                let rest = &Crafted::tcp(pod, CP1.at(port::ECHO), mark, 0x12, b"0123456789ab").payload[8..];
                whole.part(1, rest, false)
            }, "ip frag-off & 0x1fff == 1")
        }),
        row("overlap-whole", Pod, "sends two first fragments, one to an open port and one to etcd", NO_PATH, |stage| {
            let pod = POD_A.party.at(FROM);
            let attempt = overlapping(stage, pod, |whole, mark| {
                let other = Crafted::tcp(pod, CP1.at(ETCD), mark, SYN, b"0123456789ab");
                whole.part(0, &other.payload, true)
            }, "ip protocol tcp @th,16,16 2379")?;
            Ok(to_etcd(attempt))
        }),
        row("fragmented", Pod, "opens to etcd in fragments that are large enough", NO_PATH, |stage| {
            let attempt = from_pod(stage, INPUT, |mark| {
                pod_to_etcd().into_iter().flat_map(|(from, to)| {
                    let whole = Crafted::tcp(from, to, mark, SYN, b"0123456789ab");
                    [whole.part(0, &whole.payload[..24], true), whole.part(3, &whole.payload[24..], false)]
                }).collect()
            })?;
            Ok(to_v4_or_v6(attempt.aimed(2).denied(2)))
        }),
    ]
}

/// Two overlapping fragments of one packet: an innocent one, and one that is counted.
fn overlapping<'a>(
    stage: &'a Stage,
    from: SocketAddr,
    second: impl FnOnce(&Crafted, u16) -> Crafted,
    expression: &str,
) -> Result<Attempt<'a>> {
    let mark = stage.unique_number();
    let whole = Crafted::tcp(from, CP1.at(port::ECHO), mark, SYN, b"0123456789ab");
    let parts = [whole.part(0, &whole.payload, true), second(&whole, mark)];
    let counted = format!("ip id {mark} {expression}");
    let arrivals = stage.counted(At::Device("cp1", "cali-pod-a"), &counted)?;
    let pod = stage.lab.pod("pod-a");
    let hop = pod.next_hop(CP1.v4.into());
    pod.inject("eth0", &parts.map(|part| part.frame(pod.party().mac, hop)))?;
    Ok(Attempt::new(1, None, move || arrivals.so_far()))
}

/// One SYN from a claimed address.
fn claims(from: IpAddr, to: SocketAddr) -> impl FnOnce(u16) -> Vec<Crafted> {
    move |mark| {
        vec![Crafted::tcp(
            SocketAddr::new(from, FROM),
            to,
            mark,
            SYN,
            b"",
        )]
    }
}

#[rustfmt::skip]
fn addresses() -> Vec<Attack> {
    let (off_lo, forged) = ((TC, "LoopbackOffLo"), (TC, "ForgedSource"));
    vec![
        row("loopback-from-pod", Pod, "sends to 127.0.0.1 of its node, while `route_localnet` is set", off_lo, |stage| {
            let to = LOOPBACK.at(port::INSECURE);
            Ok(from_pod(stage, INPUT, claims(POD_A.party.v4.into(), to))?.reported(to.ip(), to.port()))
        }),
        row("loopback-source-from-pod", Pod, "sends from 127.0.0.1", off_lo, |stage| {
            let to = CP1.at(port::ECHO);
            Ok(from_pod(stage, INPUT, claims(LOOPBACK.v4.into(), to))?.reported(to.ip(), to.port()))
        }),
        row("loopback-source-from-wire", Neighbour, "sends from 127.0.0.1, while `route_localnet` is set (CVE-2020-8558)", off_lo, |stage| {
            let to = CP1.at(port::INSECURE);
            Ok(from_wire(stage, INPUT, claims(LOOPBACK.v4.into(), to))?.reported(to.ip(), to.port()))
        }),
        row("loopback-v6-from-wire", Neighbour, "sends to ::1 and from ::1", off_lo, |stage| {
            let attempt = from_wire(stage, WIRE, |mark| vec![
                Crafted::tcp(OUT.at6(FROM), LOOPBACK.at6(port::INSECURE), mark, SYN, b""),
                Crafted::tcp(LOOPBACK.at6(FROM), CP1.at6(port::INSECURE), mark, SYN, b""),
            ])?;
            Ok(attempt.reported(Ipv6Addr::UNSPECIFIED.into(), port::INSECURE))
        }),
        row("nobody-from-pod", Pod, "sends from 0.0.0.0, from ::, and from link-local addresses", NO_PATH, |stage| {
            let attempt = from_pod(stage, At::Device("cp1", "cali-pod-a"), |mark| {
                ["0.0.0.0", "::", "169.254.1.1", "fe80::1"].into_iter().flat_map(|text| text.parse()).map(|source: IpAddr| {
                    Crafted::tcp(SocketAddr::new(source, FROM), SocketAddr::new(CP1.like(source), ETCD), mark, SYN, b"")
                }).collect()
            })?;
            Ok(to_v4_or_v6(attempt))
        }),
        row("cluster-address-from-wire", Neighbour, "sends from the address of a pod of this node, or of a service", NO_PATH, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| {
                [POD_A.party, SERVICE].into_iter().flat_map(|claimed| {
                    [(claimed.at(FROM), CP1.at(ETCD)), (claimed.at6(FROM), CP1.at6(ETCD))]
                }).map(|(from, to)| Crafted::tcp(from, to, mark, SYN, b"")).collect()
            })?;
            Ok(to_v4_or_v6(attempt))
        }),
        row("own-address-from-wire", Neighbour, "sends from the node's own address", forged, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| vec![
                Crafted::tcp(CP1.at(FROM), CP1.at(ETCD), mark, SYN, b""),
                Crafted::tcp(CP1.at6(FROM), CP1.at6(ETCD), mark, SYN, b""),
            ])?;
            Ok(to_v4_or_v6(attempt))
        }),
        row("mapped-on-the-wire", Neighbour, "writes an IPv4-mapped address into an IPv6 header", (TC, "BadHeader"), |stage| {
            from_wire(stage, WIRE, |mark| {
                let mapped = |ip: std::net::Ipv4Addr, port| SocketAddr::new(ip.to_ipv6_mapped().into(), port);
                vec![
                    Crafted::tcp(OUT.at6(FROM), mapped(CP1.v4, ETCD), mark, SYN, b""),
                    Crafted::tcp(mapped(W1.v4, FROM), CP1.at6(ETCD), mark, SYN, b""),
                ]
            })
        }),
        row("world", World, "opens to etcd from anywhere", NO_PATH, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| {
                ["203.0.113.9", "2001:db8::9"].into_iter().flat_map(|text| text.parse()).map(|source: IpAddr| {
                    let to = SocketAddr::new(CP1.like(source), ETCD);
                    Crafted::tcp(SocketAddr::new(source, FROM), to, mark, SYN, b"")
                }).collect()
            })?;
            Ok(to_v4_or_v6(attempt))
        }),
        row("arp", Pod, "announces the node's address as its own (ARP)", forged, |stage| {
            let pod = stage.lab.pod("pod-a");
            let expression = format!("arp saddr ip {}", CP1.v4);
            let arrivals = stage.counted(At::Device("cp1", "cali-pod-a"), &expression)?;
            pod.inject("eth0", &[announcement(pod)])?;
            Ok(Attempt::new(1, None, move || arrivals.so_far()).reported(CP1.v4.into(), 0))
        }),
        row("broadcast", Neighbour, "broadcasts a datagram on the segment, to a guarded port", ("cgroup/ingress", "NoPath"), |stage| {
            let attempt = stage.send_frames(&stage.lab.neighbour(), &stage.tunnel, |word| {
                ["255.255.255.255:4789", "10.77.0.255:4789", "[ff02::1]:4789"].into_iter()
                    .flat_map(|text| text.parse::<SocketAddr>())
                    .map(|to| Crafted::udp(SocketAddr::new(OUT.like(to.ip()), FROM), to, 1, word).frame(OUT.mac, BROADCAST))
                    .collect()
            })?;
            Ok(attempt.reported(Ipv6Addr::UNSPECIFIED.into(), TUNNEL))
        }).judged_on_w1(),
    ]
}

fn announcement(pod: &Workload) -> Vec<u8> {
    let (mac, ip) = (pod.party().mac, CP1.v4.octets());
    let message = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &ip, &[0; 6], &ip].concat();
    ethernet(mac, BROADCAST, 0x0806, &message)
}

/// The neighbour's SYN to etcd with tags before it, innermost last.
fn with_tags<'a>(stage: &'a Stage, at: At, tags: &[(u16, u16)]) -> Result<Attempt<'a>> {
    stage.inject(&stage.lab.neighbour(), "eth0", at, |mark| {
        let plain =
            Crafted::tcp(OUT.at(FROM), CP1.at(ETCD), mark, SYN, b"").frame(OUT.mac, CP1_MAC);
        let wrap = |frame: Vec<u8>, (kind, number): &(u16, u16)| tagged(*kind, *number, &frame);
        vec![tags.iter().rev().fold(plain, wrap)]
    })
}

const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

#[rustfmt::skip]
fn links() -> Vec<Attack> {
    vec![
        row("vlan", Neighbour, "puts a VLAN tag before the packet", NO_PATH, |stage| with_tags(stage, WIRE, &[(Q, 7)]).map(to_etcd)),
        row("vlan-priority", Neighbour, "puts a tag of VLAN 0 before it, which is no VLAN: every kernel takes it", NO_PATH, |stage| {
            with_tags(stage, INPUT, &[(Q, 0)]).map(to_etcd)
        }),
        row("vlan-twice", Neighbour, "puts a tag into a tag (802.1Q in 802.1ad)", NO_PATH, |stage| {
            with_tags(stage, INPUT, &[(AD, 0), (Q, 0)]).map(to_etcd)
        }),
        row("vlan-many", Neighbour, "puts more tags before it than are read: the socket's hook sees what the kernel makes of it", ("cgroup/ingress", "NoPath"), |stage| {
            let attempt = stage.send_frames(&stage.lab.neighbour(), &stage.etcd, |word| {
                let plain = fast(&stage.unique_number(), "10.77.0.200", word);
                vec![(0..4).fold(plain, |frame, _| tagged(Q, 0, &frame))]
            })?;
            Ok(to_etcd(attempt))
        }),
        row("ipip", Neighbour, "puts a pod's packet into IPIP", NO_PATH, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| vec![in_ipip(OUT.v4.into(), mark)])?;
            Ok(attempt.reported(CP1.v4.into(), protocol::IPIP.into()))
        }),
        row("ipip-pod", Pod, "puts another pod's packet into IPIP", NO_PATH, |stage| {
            let attempt = from_pod(stage, INPUT, |mark| vec![in_ipip(POD_A.party.v4.into(), mark)])?;
            Ok(attempt.reported(CP1.v4.into(), protocol::IPIP.into()))
        }),
        row("vxlan", Neighbour, "puts a pod's packet to etcd into VXLAN, and the node's tunnel unpacks it", NO_PATH, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| vec![in_vxlan(OUT.at(FROM), &syn_of_pod_b(mark))])?;
            Ok(attempt.reported(CP1.v4.into(), TUNNEL))
        }),
        row("vxlan-pod", Pod, "puts another pod's packet to etcd into VXLAN", NO_PATH, |stage| {
            let attempt = from_pod(stage, INPUT, |mark| vec![in_vxlan(POD_A.party.at(FROM), &syn_of_pod_b(mark))])?;
            Ok(attempt.reported(CP1.v4.into(), TUNNEL))
        }),
        row("vxlan-own", Attacker::OtherNode, "sends by the tunnel a packet from the node's own address", (TC, "NoPath"), |stage| {
            let node = stage.lab.login("w1");
            let attempt = stage.send_frames(&node, &stage.tunnel_here, |word| {
                let inner = Crafted::udp(CP1.at6(FROM), CP1.at6(8472), 1, word);
                vec![in_vxlan(W1.at(FROM), &inner).frame(W1_MAC, CP1_MAC)]
            })?;
            Ok(attempt.reported(CP1.v6.into(), 8472))
        }),
        row("vxlan-node", Attacker::OtherNode, "sends by the tunnel, which it may, a pod's packet to etcd", (TC, "NoPath"), |stage| {
            let node = stage.lab.login("w1");
            let attempt = stage.send_frames(&node, &stage.etcd, |word| {
                // No host has this address, so none resets a connection that it did not open.
                let from = SocketAddr::new([10, 78, 2, 77].into(), FROM + stage.unique_number() % 1000);
                let segment = tcp(from, CP1.at(ETCD), SYN, &[34, 2, 1, 1], word);
                let inner = Crafted::carrying(from.ip(), CP1.v4.into(), 1, protocol::TCP, segment);
                vec![in_vxlan(W1.at(FROM), &inner).frame(W1_MAC, CP1_MAC)]
            })?;
            Ok(to_etcd(attempt))
        }),
    ]
}

pub fn syn_of_pod_b(mark: u16) -> Crafted {
    Crafted::tcp(POD_B.party.at(FROM), CP1.at(ETCD), mark, SYN, b"")
}

pub fn in_ipip(from: IpAddr, mark: u16) -> Crafted {
    let inner = syn_of_pod_b(mark).packet();
    Crafted::carrying(from, CP1.v4.into(), mark, protocol::IPIP, inner)
}

pub fn in_vxlan(from: SocketAddr, inner: &Crafted) -> Crafted {
    let header = [8, 0, 0, 0, 0, 0, crate::stage::TUNNEL_ID, 0];
    let frame = inner.frame([2; 6], crate::stage::TUNNEL_MAC);
    Crafted::udp(from, CP1.at(TUNNEL), 1, &[&header[..], &frame].concat())
}

/// An ICMP error from the neighbour to cp1 that reports a packet as too big, of either family.
pub fn too_narrow(mark: u16, about: &Crafted, quoted: usize) -> Crafted {
    let to = CP1.like(about.source);
    let kind = if to.is_ipv4() { (3, 4) } else { (2, 0) };
    let packet = about.packet();
    let quote = &packet[..quoted.min(packet.len())];
    Crafted::icmp(OUT.like(to), to, mark, kind, [0, 0, 0x05, 0x00], quote)
}

pub fn both(from: &enforcer_tests::plan::Party, from_port: u16, to_port: u16) -> [Crafted; 2] {
    let segment = |(from, to)| Crafted::tcp(from, to, 1, 0x10, b"");
    [
        segment((from.at(from_port), OUT.at(to_port))),
        segment((from.at6(from_port), OUT.at6(to_port))),
    ]
}

#[rustfmt::skip]
fn errors() -> Vec<Attack> {
    let quotes = (TC, "IcmpBadQuote");
    vec![
        row("icmp-quotes-others", Neighbour, "reports an error about a packet that the receiver never sent", quotes, |stage| {
            from_wire(stage, INPUT, |mark| both(&W1, port::KUBELET, FROM).map(|about| too_narrow(mark, &about, 100)).to_vec())
        }),
        row("icmp-quotes-denied", Neighbour, "reports an error about a connection that was never allowed: etcd's, with the neighbour", (TC, "IcmpQuotesDenied"), |stage| {
            from_wire(stage, INPUT, |mark| both(&CP1, ETCD, FROM).map(|about| too_narrow(mark, &about, 100)).to_vec())
        }),
        row("icmp-quotes-nothing", Neighbour, "reports an error that quotes too little of a packet", quotes, |stage| {
            from_wire(stage, INPUT, |mark| both(&CP1, ETCD, FROM).map(|about| too_narrow(mark, &about, 18)).to_vec())
        }),
    ]
}

#[rustfmt::skip]
fn dropped() -> Vec<Attack> {
    let (other, unknown) = ((TC, "OtherTraffic"), (TC, "UnknownProtocol"));
    [
        row("icmp-redirect", Neighbour, "redirects the node's packets to itself (ICMP)", other, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| {
                let [about, _] = both(&CP1, FROM, port::ECHO);
                vec![Crafted::icmp(OUT.v4.into(), CP1.v4.into(), mark, (5, 1), OUT.v4.octets(), &about.packet())]
            })?;
            Ok(attempt.reported(CP1.v4.into(), 5))
        }),
        row("unasked-answer", Neighbour, "sends a UDP reply without a request", other, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| {
                [(OUT.at(53), CP1.at(FROM)), (OUT.at6(53), CP1.at6(FROM))].map(|(from, to)| Crafted::udp(from, to, mark, b"answer")).to_vec()
            })?;
            Ok(attempt.reported(Ipv6Addr::UNSPECIFIED.into(), FROM))
        }),
        row("other-protocol", Neighbour, "uses another protocol (SCTP)", other, |stage| {
            let attempt = from_wire(stage, INPUT, |mark| vec![Crafted::carrying(OUT.v4.into(), CP1.v4.into(), mark, 132, vec![0; 24])])?;
            Ok(attempt.reported(CP1.v4.into(), 132))
        }),
        row("no-ip", Neighbour, "uses neither IP nor ARP (MPLS)", unknown, |stage| {
            let arrivals = stage.counted(WIRE, "meta protocol 0x8847")?;
            let before = arrivals.so_far()?;
            stage.lab.neighbour().inject("eth0", &[ethernet(OUT.mac, CP1_MAC, 0x8847, &[0; 46])])?;
            Ok(Attempt::new(1, None, move || Ok(arrivals.so_far()? - before)))
        }),
        row("vlan-many-dropped", Neighbour, "puts more VLAN tags before a packet than are read", unknown, |stage| {
            with_tags(stage, INPUT, &[(Q, 0); 4])
        }),
    ]
    .map(if_others_are_dropped)
    .into()
}
