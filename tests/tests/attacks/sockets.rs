//! Attacks with sockets: what a process can request from its own kernel.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::plan::{CP1, LOOPBACK, OUT, POD_A, VIP, W1, port};
use enforcer_tests::probe::{Bind, Connect, Udp};
use enforcer_tests::{Lab, Outcome, Workload, net};

use crate::attack::{Attack, Attacker, Attempt, row_on_cp1 as row};
use crate::stage::{At, DETOUR, Stage, TRANSLATED, TRANSLATED_LOOPBACK, TUNNEL};

use Attacker::{HostPod, Neighbour, Pod, User, World};

/// An unprivileged process of cp1, in an undeclared cgroup.
fn user(lab: &Lab) -> Workload {
    lab.daemon("cp1", "somebody").as_user(65534)
}

fn to_insecure(stage: &Stage, to: SocketAddr, how: Connect) -> Result<Attempt<'_>> {
    let connect = Connect { to, ..how };
    stage.send_tcp(&user(&stage.lab), &stage.insecure, connect)
}

fn plain(to: SocketAddr) -> Connect {
    Connect::to(to)
}

const CONNECT: &str = "cgroup/connect";
const WRONG: (&str, &str) = (CONNECT, "WrongProcess");

pub fn rows() -> Vec<Attack> {
    [tcp(), udp(), binding(), around()]
        .into_iter()
        .flatten()
        .collect()
}

fn tcp() -> Vec<Attack> {
    vec![
        row(
            "zero-v4",
            User,
            "connects to 0.0.0.0, which means this host",
            WRONG,
            |stage| {
                let to = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port::INSECURE);
                to_insecure(stage, to, plain(to))
            },
        ),
        row(
            "zero-v6",
            User,
            "connects to ::, which means this host",
            WRONG,
            |stage| {
                let to = "[::]:8080".parse()?;
                to_insecure(stage, to, plain(to))
            },
        ),
        row(
            "mapped-zero",
            User,
            "connects to ::ffff:0.0.0.0, which is both",
            WRONG,
            |stage| {
                let to = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port::INSECURE);
                to_insecure(
                    stage,
                    to,
                    Connect {
                        mapped: true,
                        ..plain(to)
                    },
                )
            },
        ),
        row(
            "mapped-v4",
            User,
            "connects to ::ffff:127.0.0.1 from an IPv6 socket",
            WRONG,
            |stage| {
                let to = LOOPBACK.at(port::INSECURE);
                to_insecure(
                    stage,
                    to,
                    Connect {
                        mapped: true,
                        ..plain(to)
                    },
                )
            },
        ),
        row(
            "other-loopback",
            User,
            "connects to another address of 127.0.0.0/8",
            WRONG,
            |stage| {
                let to = "127.9.9.9:8080".parse()?;
                to_insecure(stage, to, plain(to))
            },
        ),
        row(
            "fast-open",
            User,
            "sends data in the SYN (`MSG_FASTOPEN`), and never calls connect",
            WRONG,
            |stage| {
                let to = LOOPBACK.at(port::INSECURE);
                to_insecure(
                    stage,
                    to,
                    Connect {
                        fast_open: true,
                        ..plain(to)
                    },
                )
            },
        ),
        row("fast-open-v6", User, "the same over IPv6", WRONG, |stage| {
            let to = LOOPBACK.at6(port::INSECURE);
            to_insecure(
                stage,
                to,
                Connect {
                    fast_open: true,
                    ..plain(to)
                },
            )
        }),
        row("multipath", User, "uses multipath TCP", WRONG, |stage| {
            let to = LOOPBACK.at(port::INSECURE);
            to_insecure(
                stage,
                to,
                Connect {
                    multipath: true,
                    ..plain(to)
                },
            )
        }),
        row(
            "reconnect",
            User,
            "connects to what is allowed, disconnects (`AF_UNSPEC`), and uses the socket again",
            WRONG,
            |stage| {
                let (to, first) = (LOOPBACK.at(port::INSECURE), Some(LOOPBACK.at(port::ECHO)));
                to_insecure(stage, to, Connect { first, ..plain(to) })
            },
        ),
        row(
            "loopback-source",
            User,
            "connects to the node's own address from 127.0.0.1",
            (CONNECT, "LoopbackOnly"),
            |stage| {
                let from = Some(LOOPBACK.at(0));
                let to = CP1.at(port::INSECURE);
                to_insecure(stage, to, Connect { from, ..plain(to) })
            },
        ),
        row(
            "bind-to-device",
            HostPod,
            "binds its socket to lo (`SO_BINDTODEVICE`) and connects to the node's own address",
            (CONNECT, "LoopbackOnly"),
            |stage| {
                let to = CP1.at(port::INSECURE);
                let device = Some("lo".to_owned());
                stage.send_tcp(
                    &stage.lab.hostnet("cp1"),
                    &stage.insecure,
                    Connect {
                        device,
                        ..plain(to)
                    },
                )
            },
        ),
        row(
            "multipath-away",
            HostPod,
            "speaks multipath TCP to another node's etcd",
            (CONNECT, "NoPath"),
            |stage| {
                let to = CP1.at(port::ETCD_CLIENT);
                stage.send_tcp(
                    &stage.lab.hostnet("w1"),
                    &stage.etcd,
                    Connect {
                        multipath: true,
                        ..plain(to)
                    },
                )
            },
        )
        .judged_on_w1(),
        row(
            "transparent",
            HostPod,
            "takes another node's address for its own (`IP_TRANSPARENT`)",
            ("cgroup/egress", "ForgedSource"),
            |stage| {
                let (from, to) = (CP1.at(40_100), CP1.at(port::ECHO));
                let expression = format!(
                    "ip saddr {} tcp sport 40100 tcp dport {}",
                    from.ip(),
                    to.port()
                );
                let arrivals = stage.counted(At::Input("cp1"), &expression)?;
                let before = arrivals.so_far()?;
                let from = Some(from);
                stage.lab.hostnet("w1").connect_with(Connect {
                    from,
                    transparent: true,
                    timeout_ms: 200,
                    ..plain(to)
                })?;
                Ok(Attempt::new(1, Some(to), move || {
                    Ok(u64::from(arrivals.so_far()? > before))
                }))
            },
        )
        .judged_on_w1(),
    ]
}

fn to_tunnel(stage: &Stage, how: impl FnOnce(Udp) -> Udp) -> Result<Attempt<'_>> {
    let udp = how(Udp::to(W1.at(TUNNEL)));
    stage.send(&stage.lab.hostnet("cp1"), &stage.tunnel, udp)
}

fn udp() -> Vec<Attack> {
    let wrong = "NoPath";
    vec![
        row(
            "udp-connect",
            HostPod,
            "connects a UDP socket",
            (CONNECT, wrong),
            |stage| {
                to_tunnel(stage, |udp| Udp {
                    connected: true,
                    ..udp
                })
            },
        ),
        row(
            "udp-sendto",
            HostPod,
            "sends a datagram without connecting (`sendto`)",
            ("cgroup/sendmsg", wrong),
            |stage| to_tunnel(stage, |udp| udp),
        ),
        row(
            "udp-sendmsg-elsewhere",
            HostPod,
            "connects a UDP socket to what is allowed, and sends elsewhere (`sendmsg`)",
            ("cgroup/sendmsg", wrong),
            |stage| {
                to_tunnel(stage, |udp| Udp {
                    but_connect: Some(OUT.at(port::ECHO)),
                    ..udp
                })
            },
        ),
        row(
            "udp-mapped",
            HostPod,
            "sends to an IPv4-mapped address from an IPv6 socket",
            ("cgroup/sendmsg", wrong),
            |stage| {
                to_tunnel(stage, |udp| Udp {
                    mapped: true,
                    ..udp
                })
            },
        ),
        row(
            "udp-v6",
            HostPod,
            "sends a datagram over IPv6",
            ("cgroup/sendmsg", wrong),
            |stage| {
                to_tunnel(stage, |udp| Udp {
                    to: W1.at6(TUNNEL),
                    ..udp
                })
            },
        ),
    ]
}

/// cp1's hostNetwork pod binds; counts whether it gets the port.
fn takes(stage: &Stage, bind: Bind) -> Result<Attempt<'_>> {
    let reported = Some(bind.at);
    let bound = stage.lab.hostnet("cp1").bind_with(bind)?.outcome == Outcome::Bound;
    Ok(Attempt::new(1, reported, move || Ok(u64::from(bound))))
}

fn binding() -> Vec<Attack> {
    let foreign = ("cgroup/bind", "BindForeignPort");
    let exposed = ("cgroup/bind", "BindNotLoopback");
    vec![
        row(
            "bind-mapped",
            HostPod,
            "binds a component's port at an IPv4-mapped address",
            foreign,
            |stage| {
                takes(
                    stage,
                    Bind {
                        mapped: true,
                        ..Bind::at(LOOPBACK.at(port::SCHEDULER))
                    },
                )
            },
        ),
        row(
            "bind-mapped-zero",
            HostPod,
            "binds it at ::ffff:0.0.0.0",
            exposed,
            |stage| {
                let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port::SCHEDULER);
                takes(
                    stage,
                    Bind {
                        mapped: true,
                        ..Bind::at(at)
                    },
                )
            },
        ),
        row(
            "bind-multipath",
            HostPod,
            "binds it by multipath TCP",
            exposed,
            |stage| {
                takes(
                    stage,
                    Bind {
                        multipath: true,
                        ..Bind::at(CP1.at(port::SCHEDULER))
                    },
                )
            },
        ),
        row(
            "bind-beside",
            HostPod,
            "binds it beside its owner (`SO_REUSEPORT`)",
            foreign,
            |stage| {
                takes(
                    stage,
                    Bind {
                        reuse_port: true,
                        ..Bind::at(LOOPBACK.at6(port::SCHEDULER))
                    },
                )
            },
        ),
        row(
            "bind-other-loopback",
            HostPod,
            "binds it at another address of 127.0.0.0/8",
            foreign,
            |stage| takes(stage, Bind::at("127.9.9.9:10259".parse()?)),
        ),
    ]
}

/// cp1's hostNetwork pod opens a connection. That is enough if it can satisfy the server, for
/// example with a stolen certificate.
fn opens(stage: &Stage, to: SocketAddr) -> Result<Attempt<'_>> {
    let opened = stage.lab.hostnet("cp1").connect(to)?.worked();
    Ok(Attempt::new(1, Some(to), move || Ok(u64::from(opened))))
}

fn around() -> Vec<Attack> {
    vec![
        row(
            "undeclared-address-host",
            HostPod,
            "connects over lo to an undeclared address of its own node",
            ("cgroup/egress", "WrongProcess"),
            |stage| {
                let to = VIP.at(port::ETCD_CLIENT);
                opens(stage, to)
            },
        ),
        row(
            "undeclared-address-host-v6",
            HostPod,
            "the same over IPv6",
            ("cgroup/egress", "WrongProcess"),
            |stage| {
                let to = VIP.at6(port::ETCD_CLIENT);
                opens(stage, to)
            },
        ),
        row(
            "link-local-host",
            HostPod,
            "connects over lo to the link-local address of its own node",
            ("cgroup/egress", "WrongProcess"),
            |stage| {
                let to = on_link(&stage.lab, &stage.lab.login("cp1"), ("cp1", "eth0"))?;
                opens(stage, to)
            },
        ),
        row(
            "own-translation",
            HostPod,
            "connects to a service address behind which the node's own output translation has put etcd",
            ("cgroup/egress", "NoPath"),
            |stage| {
                let to = DETOUR.parse()?;
                let attempt = stage.send_tcp(&stage.lab.hostnet("w1"), &stage.etcd, plain(to))?;
                Ok(attempt.reported(CP1.v4.into(), port::ETCD_CLIENT))
            },
        ).judged_on_w1(),
        row(
            "redirected-port",
            World,
            "connects to a port of the node that is redirected to etcd",
            ("cgroup/ingress", "NoPath"),
            |stage| {
                let attempt = stage.send_tcp(
                    &stage.lab.neighbour(),
                    &stage.etcd,
                    plain(CP1.at(TRANSLATED)),
                )?;
                Ok(attempt.reported(CP1.v4.into(), port::ETCD_CLIENT))
            },
        ),
        row(
            "translated-to-loopback",
            World,
            "connects to a port of the node that is translated to 127.0.0.1:8080",
            ("cgroup/ingress", "LoopbackOffLo"),
            |stage| {
                let attempt = stage.send_tcp(
                    &stage.lab.neighbour(),
                    &stage.insecure,
                    plain(CP1.at(TRANSLATED_LOOPBACK)),
                )?;
                Ok(attempt.reported(LOOPBACK.v4.into(), port::INSECURE))
            },
        ),
        row(
            "link-local",
            Pod,
            "connects to the node's link-local address on its own link",
            ("cgroup/ingress", "NoPath"),
            |stage| {
                let interface = POD_A.host_interface();
                let to = on_link(&stage.lab, stage.lab.pod("pod-a"), ("cp1", &interface))?;
                stage.send_tcp(stage.lab.pod("pod-a"), &stage.kubelet, plain(to))
            },
        ),
        row(
            "link-local-uplink",
            Neighbour,
            "connects to the node's link-local address on the segment",
            ("cgroup/ingress", "NoPath"),
            |stage| {
                let to = on_link(&stage.lab, &stage.lab.neighbour(), ("cp1", "eth0"))?;
                stage.send_tcp(&stage.lab.neighbour(), &stage.kubelet, plain(to))
            },
        ),
        row(
            "simultaneous-open",
            Neighbour,
            "opens from its side while the node opens to it: two SYNs that cross",
            ("tc/ingress", "NoPath"),
            simultaneous_open,
        ),
    ]
}

/// The kubelet's address at a node's link-local address on an interface, as seen from the other
/// end.
pub fn on_link(lab: &Lab, from: &Workload, on: (&str, &str)) -> Result<SocketAddr> {
    let address = link_local(lab, on)?;
    let index = || nix::net::if_::if_nametoindex("eth0");
    let index = from.namespace().within(index)??;
    Ok(SocketAddrV6::new(address.parse()?, port::KUBELET, 0, index).into())
}

/// A node's link-local address on an interface.
pub fn link_local(lab: &Lab, (node, interface): (&str, &str)) -> Result<String> {
    let asked = [
        "-6", "-o", "addr", "show", "dev", interface, "scope", "link",
    ];
    let listing = lab.login(node).run("ip", asked)?.checked()?.stdout;
    let address = listing
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .with_context(|| format!("{interface} of {node} has no link-local address: {listing}"))?;
    Ok(address.to_owned())
}

/// etcd's process connects from its peer port; its SYN is lost, and the neighbour's SYN arrives.
fn simultaneous_open(stage: &Stage) -> Result<Attempt<'_>> {
    let (here, there) = (
        CP1.at(port::ETCD_PEER),
        OUT.at(40_000 + stage.unique_number()),
    );
    let lab = &stage.lab;
    net::nft(
        lab.host("out").namespace().name(),
        &format!(
            "add table ip crossing
             delete table ip crossing
             table ip crossing {{ chain pre {{ type filter hook prerouting priority -300;
               tcp dport {} tcp flags & (syn|ack) == syn drop\n}}\n}}",
            there.port()
        ),
    )?;
    let (opening, crossing) = thread::scope(|scope| {
        let from = Some(here);
        let opening = scope.spawn(move || {
            lab.etcd().connect_with(Connect {
                from,
                timeout_ms: 900,
                ..plain(there)
            })
        });
        thread::sleep(Duration::from_millis(200));
        let from = Some(there);
        let crossing = lab.neighbour().connect_with(Connect {
            from,
            timeout_ms: 500,
            ..plain(here)
        });
        (opening.join(), crossing)
    });
    let opening = opening.map_err(|_panic| anyhow::anyhow!("the opening side panicked"))??;
    let crossing = crossing?;
    ensure!(
        opening.step != "bind" && crossing.step != "bind",
        "{opening:?} {crossing:?}"
    );
    let both = opening.outcome.worked() && crossing.outcome.worked();
    let reported: IpAddr = here.ip();
    Ok(Attempt::new(1, None, move || Ok(u64::from(both))).reported(reported, here.port()))
}
