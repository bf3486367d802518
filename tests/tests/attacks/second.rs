//! The second series of attacks: odder options, kinds of sockets, offloads, cgroups and interfaces,
//! tried on the defences that stopped the first one.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use enforcer_tests::craft::{Crafted, fix_ipv4_checksum};
use enforcer_tests::net;
use enforcer_tests::offload::{GSO_TCP4, GSO_UDP, Offload, disguised};
use enforcer_tests::packet::to_hex;
use enforcer_tests::plan::{CP1, LOOPBACK, OUT, POD_A, POD_GATEWAY_MAC, W1, port};
use enforcer_tests::probe::{Bind, Call, Connect, Inject, Probe, Tap, Udp};
use enforcer_tests::{Outcome, Workload};

use crate::attack::{Attack, Attacker, Attempt, row};
use crate::bypass::is_possible;
use crate::stage::{At, CP1_MAC, Stage, TUNNEL, W1_MAC, to_etcd_from_w1, to_insecure_on_lo};

use Attacker::{HostPod, Pod, User};

const SYN: u8 = 0x02;
const FROM: u16 = 44_000;
const ETCD: u16 = port::ETCD_CLIENT;
const INPUT: At = At::Input("cp1");
const INJECTED: (&str, &str) = ("tc/egress", "NoPath");
const ON_LO: (&str, &str) = ("tc/egress", "WrongProcess");
const FROM_POD: (&str, &str) = ("tc/ingress", "NoPath");
const CHECKSUM: (&str, &str) = ("tc/egress", "ChecksumElsewhere");
/// LLDP, which is not guarded.
const HARMLESS: u16 = 0x88cc;

fn on_lo<'a>(stage: &'a Stage, how: impl Fn(Inject) -> Inject) -> Result<Attempt<'a>> {
    stage.inject_with(&stage.lab.hostnet("cp1"), INPUT, |mark| {
        let frames = to_insecure_on_lo(FROM, mark).map(|packet| packet.frame([0; 6], [0; 6]));
        how(Inject::frames("lo", &frames))
    })
}

fn by_uplink<'a>(stage: &'a Stage, how: impl Fn(Inject) -> Inject) -> Result<Attempt<'a>> {
    stage.inject_with(&stage.lab.hostnet("w1"), INPUT, |mark| {
        let frames = to_etcd_from_w1(FROM, mark).map(|packet| packet.frame(W1_MAC, CP1_MAC));
        how(Inject::frames("eth0", &frames))
    })
}

fn by_pod<'a>(stage: &'a Stage, how: impl Fn(Inject) -> Inject) -> Result<Attempt<'a>> {
    stage.inject_with(stage.lab.pod("pod-a"), INPUT, |mark| {
        let pod = POD_A.party;
        let frames = [
            Crafted::tcp(pod.at(FROM), CP1.at(ETCD), mark, SYN, b""),
            Crafted::tcp(pod.at6(FROM), CP1.at6(ETCD), mark, SYN, b""),
        ];
        how(Inject::frames(
            "eth0",
            &frames.map(|packet| packet.frame(pod.mac, POD_GATEWAY_MAC)),
        ))
    })
}

/// A frame of w1 with an offload header, and the expression by which it is counted.
fn offloaded<'a>(
    stage: &'a Stage,
    counted: &str,
    make: impl FnOnce(u16) -> (Vec<u8>, Offload),
) -> Result<Attempt<'a>> {
    stage.inject_one(&stage.lab.hostnet("w1"), (INPUT, counted), |mark| {
        let (frame, what) = make(mark);
        let offload = Some(to_hex(&what.bytes()));
        Ok(Inject {
            offload,
            ..Inject::frames("eth0", &[frame])
        })
    })
}

fn completed(start: usize, field: usize) -> Offload {
    let checksum = Some((start as u16, (field - start) as u16));
    Offload {
        checksum,
        ..Offload::default()
    }
}

/// A datagram to cp1's tunnel without a checksum, with two steering bytes, in a frame.
fn datagram(from: SocketAddr, mark: u16) -> Vec<u8> {
    let mut packet = Crafted::udp(from, CP1.at(TUNNEL), mark, b"\0\0 steered");
    packet.payload[6..8].fill(0);
    packet.frame(W1_MAC, CP1_MAC)
}

/// Where its steering bytes are.
const STEER: usize = 42;

/// A workload in a cgroup that is this many levels below the pods' cgroup.
fn deep(stage: &Stage, host: &str, levels: usize) -> Result<Workload> {
    let below = vec!["deep"; levels].join("/");
    stage
        .lab
        .workload_in(host, &format!("kubepods.slice/{below}"))
}

/// A datagram into cp1's tunnel through a macvtap device of w1's uplink, opened by a process with
/// access to it.
fn by_macvtap<'a>(stage: &'a Stage, from: &Workload) -> Result<Attempt<'a>> {
    let host = stage.lab.login("w1");
    let namespace = host.namespace().name();
    let name = format!("mt{}", stage.unique_number());
    let made = format!("link add {name} link eth0 type macvtap mode bridge\nlink set {name} up\n");
    if net::ip(Some(namespace), &made).is_err() {
        return Ok(Attempt::skipped("this kernel has no macvtap"));
    }
    let file = stage.lab.directory().join(&name);
    let line = format!(
        "mknod {} c $(cat /sys/class/net/{name}/macvtap/tap*/dev | tr : ' ')",
        file.display()
    );
    host.run("sh", ["-c", &line])?.checked()?;
    let mark = stage.unique_number();
    let arrivals = stage.counted(INPUT, &format!("ip id {mark} udp dport {TUNNEL}"))?;
    let frame = Crafted::udp(W1.at(FROM), CP1.at(TUNNEL), mark, b"tapped").frame(W1_MAC, CP1_MAC);
    let report = from.probe(&Probe::Tap(Tap {
        device: file.display().to_string(),
        frame: vec![to_hex(&frame)],
        offload: to_hex(&Offload::default().bytes()),
    }))?;
    net::ip(Some(namespace), &format!("link del {name}\n"))?;
    ensure!(report.step == "send", "{report:?}");
    Ok(Attempt::new(1, None, move || arrivals.so_far()))
}

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("old-packet", HostPod, "injects on lo by the predecessor of packet sockets (`SOCK_PACKET`)", "cp1", ON_LO, |stage| {
            on_lo(stage, |inject| Inject { old: true, ..inject })
        }),
        row("old-packet-uplink", HostPod, "the same on the uplink", "w1", INJECTED, |stage| {
            by_uplink(stage, |inject| Inject { old: true, ..inject })
        }),
        row("protocol-lie", HostPod, "declares another protocol for its frames than they contain", "w1", INJECTED, |stage| {
            by_uplink(stage, |inject| Inject { protocol: Some(HARMLESS), ..inject })
        }),
        row("protocol-lie-v6", HostPod, "declares all of them as IPv6", "w1", INJECTED, |stage| {
            by_uplink(stage, |inject| Inject { protocol: Some(0x86dd), ..inject })
        }),
        row("protocol-lie-lo", HostPod, "the same on lo", "cp1", ON_LO, |stage| {
            on_lo(stage, |inject| Inject { protocol: Some(HARMLESS), ..inject })
        }),
        row("protocol-lie-pod", Pod, "the same", "cp1", FROM_POD, |stage| {
            by_pod(stage, |inject| Inject { protocol: Some(HARMLESS), ..inject })
        }),
        row("ring-lo", HostPod, "injects on lo from memory shared with the kernel (`PACKET_TX_RING`)", "cp1", ON_LO, |stage| {
            on_lo(stage, |inject| Inject { ring: true, ..inject })
        }),
        row("ring-uplink", HostPod, "the same on the uplink", "w1", INJECTED, |stage| {
            by_uplink(stage, |inject| Inject { ring: true, ..inject })
        }),
        row("ring-pod", Pod, "the same", "cp1", FROM_POD, |stage| by_pod(stage, |inject| Inject { ring: true, ..inject })),
        row("express-pod", Pod, "sends by an `AF_XDP` socket in its own namespace", "cp1", FROM_POD, |stage| {
            by_pod(stage, |inject| Inject { express: Some(Call::Native), ..inject })
        }),
        row("bypass-pod", Pod, "bypasses the queueing discipline in its own namespace", "cp1", FROM_POD, |stage| {
            by_pod(stage, |inject| Inject { bypass: Some(Call::Native), ..inject })
        }),
        row("offload-nothing", HostPod, "declares that no offload is needed (`PACKET_VNET_HDR` with zeroes)", "w1", INJECTED, |stage| {
            offloaded(stage, "tcp dport 2379", |mark| {
                (Crafted::tcp(W1.at(FROM), CP1.at(ETCD), mark, SYN, b"").frame(W1_MAC, CP1_MAC), Offload::default())
            })
        }),
        row("segments", HostPod, "leaves it to the kernel to cut its frame into segments", "w1", INJECTED, |stage| {
            let attempt = stage.inject_one(&stage.lab.hostnet("w1"), (INPUT, "tcp dport 2379"), |mark| {
                let frame = Crafted::tcp(W1.at(FROM), CP1.at(ETCD), mark, 0x10, &[b'x'; 900]).frame(W1_MAC, CP1_MAC);
                let what = Offload { checksum: Some((34, 16)), segments: Some((GSO_TCP4, 54, 1_000)) };
                Ok(Inject { offload: Some(to_hex(&what.bytes())), ..Inject::frames("eth0", &[frame]) })
            })?;
            Ok(attempt)
        }),
        row("segments-udp", HostPod, "the same with datagrams into a tunnel", "w1", INJECTED, |stage| {
            offloaded(stage, "udp dport 4789", |mark| {
                let frame = Crafted::udp(W1.at(FROM), CP1.at(TUNNEL), mark, &[b'x'; 900]).frame(W1_MAC, CP1_MAC);
                (frame, Offload { checksum: Some((34, 6)), segments: Some((GSO_UDP, 42, 1_000)) })
            })
        }),
        row("segments-of-long-headers", HostPod, "declares longer headers than there are", "w1", INJECTED, |stage| {
            offloaded(stage, "udp dport 4789", |mark| {
                let frame = Crafted::udp(W1.at(FROM), CP1.at(TUNNEL), mark, &[b'x'; 900]).frame(W1_MAC, CP1_MAC);
                (frame, Offload { checksum: Some((34, 6)), segments: Some((GSO_UDP, 900, 1_000)) })
            })
        }),
        row("checksum-over-source", HostPod, "has its kernel write a checksum over the source address", "w1", CHECKSUM, |stage| {
            offloaded(stage, "udp dport 7777", |mark| {
                let mut packet = Crafted::udp(OUT.at(FROM), CP1.at(port::ECHO), mark, b"\0\0 steered");
                packet.payload[6..8].fill(0);
                let [.., high, low] = W1.v4.octets();
                let frame = disguised(&packet.frame(W1_MAC, CP1_MAC), 28, 28, u16::from_be_bytes([high, low]), STEER);
                (frame, completed(28, 28))
            })
        }),
        row("checksum-over-protocol", HostPod, "the same over the number of the protocol", "w1", CHECKSUM, |stage| {
            offloaded(stage, "udp dport 4789", |mark| {
                (disguised(&datagram(W1.at(FROM), mark), 22, 22, 0x4084, STEER), completed(22, 22))
            })
        }),
        row("checksum-over-fragment", HostPod, "the same over the offset of a fragment", "w1", CHECKSUM, |stage| {
            offloaded(stage, "udp dport 4789", |mark| {
                let mut frame = datagram(W1.at(FROM), mark);
                // "Do not fragment", because a checksum is never zero.
                frame[20] = 0x40;
                fix_ipv4_checksum(&mut frame[14..34]);
                (disguised(&frame, 20, 20, 0x0100, STEER), completed(20, 20))
            })
        }),
        row("checksum-over-data", HostPod, "the same over the data of TCP, where the TLS check reads", "w1", INJECTED, |stage| {
            offloaded(stage, "tcp dport 2379", |mark| {
                let frame = Crafted::tcp(W1.at(FROM), CP1.at(ETCD), mark, 0x18, b"0123456789ab").frame(W1_MAC, CP1_MAC);
                (frame, completed(54, 54))
            })
        }),
        row("checksum-with-segments", HostPod, "the same over a port, of a frame that the kernel also cuts into segments", "w1", CHECKSUM, |stage| {
            offloaded(stage, "udp dport 4789", |mark| {
                let frame = disguised(&datagram(W1.at(FROM), mark), 36, 36, 9_999, STEER);
                (frame, completed(36, 36))
            })
        }),
        row("deep-cgroup", HostPod, "sends into a tunnel from a cgroup many levels below its own", "cp1", ("cgroup/sendmsg", "NoPath"), |stage| {
            stage.send(&deep(stage, "cp1", 20)?, &stage.tunnel, Udp::to(W1.at(TUNNEL)))
        }),
        row("deep-cgroup-packet", HostPod, "injects on the uplink from there", "w1", INJECTED, |stage| {
            let workload = deep(stage, "w1", 20)?;
            stage.inject(&workload, "eth0", INPUT, |mark| {
                vec![Crafted::udp(W1.at(FROM), CP1.at(TUNNEL), mark, b"deep").frame(W1_MAC, CP1_MAC)]
            })
        }),
        row("compat-connect", User, "connects to the insecure port by a 32-bit system call", "cp1", ("cgroup/connect", "WrongProcess"), |stage| {
            if !is_possible(stage, Call::Compat)? {
                return Ok(Attempt::skipped("this kernel takes no 32-bit system calls"));
            }
            let to = LOOPBACK.at(port::INSECURE);
            let user = stage.lab.daemon("cp1", "somebody").as_user(65534);
            stage.send_tcp(&user, &stage.insecure, Connect { compat: true, ..Connect::to(to) })
        }),
        row("compat-bind", HostPod, "binds a component's port by a 32-bit system call", "cp1", ("cgroup/bind", "BindForeignPort"), |stage| {
            if !is_possible(stage, Call::Compat)? {
                return Ok(Attempt::skipped("this kernel takes no 32-bit system calls"));
            }
            let at = LOOPBACK.at(port::SCHEDULER);
            let bound = stage.lab.hostnet("cp1").bind_with(Bind { compat: true, ..Bind::at(at) })?.outcome;
            Ok(Attempt::new(1, Some(at), move || Ok(u64::from(bound == Outcome::Bound))))
        }),
        row("macvlan-of-its-own", HostPod, "injects by a macvlan of the uplink in its node's namespace", "w1", INJECTED, |stage| {
            let host = stage.lab.host("w1").namespace().name();
            let name = format!("mv{}", stage.unique_number());
            if net::ip(Some(host), &format!("link add {name} link eth0 type macvlan mode bridge\nlink set {name} up\n")).is_err() {
                return Ok(Attempt::skipped("this kernel has no macvlan"));
            }
            let attempt = stage.inject(&stage.lab.hostnet("w1"), &name, INPUT, |mark| {
                vec![Crafted::tcp(W1.at(FROM), CP1.at(ETCD), mark, SYN, b"").frame(W1_MAC, CP1_MAC)]
            });
            net::ip(Some(host), &format!("link del {name}\n"))?;
            attempt
        }),
        row("macvtap", HostPod, "writes to a macvtap device of the uplink in its node's namespace, as a virtual machine does", "w1", INJECTED, |stage| {
            by_macvtap(stage, &stage.lab.hostnet("w1"))
        }),
        row("macvtap-pod", Pod, "the same from its own namespace", "w1", ("tc/egress", "ForgedSource"), |stage| {
            by_macvtap(stage, stage.lab.pod("pod-b"))
        }),
        row("veth-in-host", HostPod, "bypasses TC by a 32-bit system call on one end of a link within its node's namespace, into the node's own tunnel", "cp1", ("tc/ingress", "NoPath"), |stage| {
            let host = stage.lab.host("cp1").namespace().name();
            if !stage.lab.login("cp1").run("ip", ["link", "show", "dev", "pair0"])?.ok() {
                net::ip(Some(host), "link add pair0 address 02:97:00:00:00:01 type veth peer name pair1\nlink set pair0 up\nlink set pair1 up\n")?;
            }
            if !is_possible(stage, Call::Compat)? {
                return Ok(Attempt::skipped("this kernel takes no 32-bit system calls"));
            }
            let attempt = stage.inject_with(&stage.lab.hostnet("cp1"), INPUT, |mark| {
                let frame = Crafted::udp(W1.at(FROM), CP1.at(TUNNEL), mark, b"looped").frame([2; 6], [2, 0x97, 0, 0, 0, 1]);
                Inject { bypass: Some(Call::Compat), ..Inject::frames("pair1", &[frame]) }
            })?;
            Ok(attempt)
        }),
    ]
}
