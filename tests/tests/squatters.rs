//! Ports of components that another process takes without binding the number: by a port range that
//! contains only this one, and by listening without binding. It may get the port, but receives
//! nothing.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::packet::CLIENT_HELLO;
use enforcer_tests::plan::{CP1, LOOPBACK, port};
use enforcer_tests::probe::{Connect, Serve, Take, Udp};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Server, Workload};

const WIREGUARD: u16 = 51820;
/// How long an arrival may take.
const SOON: Duration = Duration::from_secs(2);
const NOT_LONG: Duration = Duration::from_millis(200);

/// A port, how it is taken, and a client that would have connected to the component.
struct Squat {
    name: &'static str,
    at: SocketAddr,
    udp: bool,
    take: Take,
    multipath: bool,
    mapped: bool,
    caller: Workload,
    to: SocketAddr,
}

impl Squat {
    fn serve(&self) -> Serve {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        if self.udp { &mut udp } else { &mut tcp }.push(self.at);
        Serve {
            tcp,
            udp,
            take: self.take,
            multipath: self.multipath,
            mapped: self.mapped,
            ..Serve::default()
        }
    }

    fn call(&self, mark: &str) -> Result<()> {
        if self.udp {
            self.caller.udp_with(Udp {
                send: mark.to_owned(),
                no_answer: true,
                ..Udp::to(self.to)
            })?;
        } else {
            // The path may require TLS.
            let data = [&CLIENT_HELLO[..], mark.as_bytes()].concat();
            self.caller.connect_with(Connect {
                piece: vec![enforcer_tests::packet::to_hex(&data)],
                timeout_ms: 300,
                ..Connect::to(self.to)
            })?;
        }
        Ok(())
    }

    /// What a process that took the port received.
    fn hears(&self, server: &Server, mark: &str, at_most: Duration) -> bool {
        let marked = |heard: &enforcer_tests::probe::Heard| {
            heard
                .data
                .as_deref()
                .is_some_and(|data| data.contains(mark))
        };
        server.wait_for(marked, at_most).is_some()
    }
}

fn all(lab: &Lab) -> Vec<Squat> {
    let any = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let any6 = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let tcp = |name, at, take, caller: &Workload, to| Squat {
        name,
        at,
        udp: false,
        take,
        multipath: false,
        mapped: false,
        caller: caller.clone(),
        to,
    };
    let (apiserver, kubelet) = (lab.apiserver(), lab.kubelet("w1"));
    let (etcd, manager) = (lab.etcd(), lab.controller_manager());
    let mut squats = Vec::new();
    for take in [Take::Range, Take::Unbound] {
        let kubelet_port = port::KUBELET;
        squats.extend([
            tcp(
                "kubelet",
                any(kubelet_port),
                take,
                &apiserver,
                CP1.at(kubelet_port),
            ),
            tcp(
                "apiserver",
                any6(port::APISERVER),
                take,
                &kubelet,
                CP1.at(port::APISERVER),
            ),
            tcp(
                "apiserver, IPv6",
                any6(port::APISERVER),
                take,
                &kubelet,
                CP1.at6(port::APISERVER),
            ),
            tcp(
                "etcd's peers",
                any(port::ETCD_PEER),
                take,
                &etcd,
                CP1.at(port::ETCD_PEER),
            ),
        ]);
        squats.extend([
            Squat {
                multipath: true,
                ..tcp(
                    "kubelet, multipath",
                    any(kubelet_port),
                    take,
                    &apiserver,
                    CP1.at(kubelet_port),
                )
            },
            Squat {
                mapped: true,
                ..tcp(
                    "kubelet, mapped",
                    any(kubelet_port),
                    take,
                    &apiserver,
                    CP1.at(kubelet_port),
                )
            },
            Squat {
                mapped: true,
                ..tcp(
                    "kubelet's address, mapped",
                    CP1.at(kubelet_port),
                    take,
                    &apiserver,
                    CP1.at(kubelet_port),
                )
            },
            tcp(
                "kubelet, from afar",
                any6(kubelet_port),
                take,
                &lab.static_pod("w1", "apiserver"),
                CP1.at6(kubelet_port),
            ),
        ]);
        squats.push(Squat {
            name: "WireGuard",
            at: any(WIREGUARD),
            udp: true,
            take,
            multipath: false,
            mapped: false,
            caller: kubelet.clone(),
            to: CP1.at(WIREGUARD),
        });
    }
    let insecure = LOOPBACK.at(port::INSECURE);
    squats.push(tcp(
        "insecure port",
        insecure,
        Take::Range,
        &manager,
        insecure,
    ));
    squats
}

/// A policy in which a UDP port belongs to a component as well.
fn with_mesh(lab: &Lab) -> Result<PolicyText> {
    lab.daemon("cp1", "mesh").cgroup().id()?;
    let mesh = format!(
        "    mesh:\n      addresses: [{}]\n      cgroups: [\"/system.slice/mesh.service\"]\n      ports: {{ wg: {WIREGUARD}/udp }}\n",
        CP1.v4
    );
    let path = "  paths:\n    - { name: mesh, from: [kubelet], to: \"mesh:wg\", because: test }\n";
    Ok(PolicyText {
        inventory: Some(lab.inventory_yaml() + &mesh),
        more: path.to_owned(),
        ..PolicyText::default()
    })
}

#[test]
fn a_port_taken_without_bind_receives_nothing() -> Result<()> {
    let lab = Lab::builder().build()?;
    // A common setting; not needed for ports from 32768 on.
    let host = lab.host("cp1").namespace();
    host.set_sysctls(&[("ipv4/ip_local_port_range", "1024 65535")])?;
    let squatter = lab.hostnet("cp1");
    let squats = all(&lab);
    for (squat, number) in squats.iter().zip(0..) {
        let Squat { name, take, .. } = squat;
        let server = squatter
            .serve(squat.serve())
            .with_context(|| format!("{name}, {take:?}"))?;
        let mark = format!("twin {number}.");
        squat.call(&mark)?;
        let heard = squat.hears(&server, &mark, SOON);
        ensure!(heard, "twin: {name}, {take:?}: nothing heard");
    }
    let policy = with_mesh(&lab)?;
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let mut failures = Vec::new();
    for (squat, number) in squats.iter().zip(0..) {
        let Squat { name, take, to, .. } = squat;
        let mark = format!("marked {number}.");
        let server = squatter.serve(squat.serve());
        squat.call(&mark)?;
        let heard = match &server {
            Ok(server) => squat.hears(server, &mark, NOT_LONG),
            Err(_refused) => false,
        };
        let about = |event: &enforcer_tests::product::Event| {
            let taken = event.hook == "cgroup/bind" && event.reason == "BindForeignPort";
            let heard = event.hook == "cgroup/ingress" && event.reason == "ForeignListener";
            let named = event.subject.name.ends_with("hostnet");
            (taken || heard) && named && event.port == Some(to.port())
        };
        let reported = agent.event(about);
        if heard || reported.is_err() {
            let (taken, reported) = (server.is_ok(), reported.is_ok());
            failures.push(format!(
                "{name}, {take:?}: taken: {taken}, heard: {heard}, reported: {reported}"
            ));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// The component itself may get its port in any way.
#[test]
fn a_component_may_take_its_port_in_any_way() -> Result<()> {
    let lab = Lab::builder().build()?;
    let host = lab.host("cp1").namespace();
    host.set_sysctls(&[("ipv4/ip_local_port_range", "1024 65535")])?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let kubelet = lab.kubelet("cp1");
    for (squat, number) in all(&lab)
        .iter()
        .zip(0..)
        .filter(|(squat, _)| squat.name == "kubelet")
    {
        let server = kubelet.serve(squat.serve())?;
        let mark = format!("mine {number}.");
        squat.call(&mark)?;
        let heard = squat.hears(&server, &mark, SOON);
        ensure!(heard, "{:?}: {:#?}", squat.take, agent.events()?);
    }
    lab.close()
}
