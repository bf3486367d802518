//! Attacks on a component's ports: ports taken without binding the number, or at undeclared
//! addresses.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use anyhow::{Context, Result};
use enforcer_tests::Outcome;
use enforcer_tests::plan::{VIP, port};
use enforcer_tests::probe::{Bind, Take};

use crate::attack::{Attack, Attempt, row_of_host_pod as row};
use crate::sockets::link_local;
use crate::stage::Stage;

const FOREIGN: (&str, &str) = ("cgroup/bind", "BindForeignPort");
const EXPOSED: (&str, &str) = ("cgroup/bind", "BindNotLoopback");

/// cp1's hostNetwork pod binds; counts whether it gets the port.
fn takes(stage: &Stage, bind: Bind) -> Result<Attempt<'_>> {
    let reported = Some(bind.at);
    let bound = stage.lab.hostnet("cp1").bind_with(bind)?.outcome == Outcome::Bound;
    Ok(Attempt::new(1, reported, move || Ok(u64::from(bound))))
}

#[rustfmt::skip]
pub fn rows() -> Vec<Attack> {
    vec![
        row("bind-undeclared", "binds a component's port at an undeclared address of its node", FOREIGN, |stage| {
            takes(stage, Bind::at(VIP.at(port::ETCD_PEER)))
        }),
        row("bind-undeclared-v6", "the same over IPv6", FOREIGN, |stage| {
            takes(stage, Bind::at(VIP.at6(port::ETCD_PEER)))
        }),
        row("bind-undeclared-loopback", "binds a loopback-only port at such an address", EXPOSED, |stage| {
            takes(stage, Bind::at(VIP.at(port::SCHEDULER)))
        }),
        row("bind-link-local", "binds a component's port at the link-local address of an interface", FOREIGN, |stage| {
            let at = link_local(&stage.lab, ("cp1", "eth0"))?.parse().context("no address")?;
            let scope = stage.lab.host("cp1").namespace().within(|| nix::net::if_::if_nametoindex("eth0"))??;
            let at: SocketAddr = SocketAddrV6::new(at, port::ETCD_PEER, 0, scope).into();
            let attempt = takes(stage, Bind::at(at))?;
            Ok(attempt.reported(at.ip(), at.port()))
        }),
        row("bind-free", "binds it at an address that its node does not have yet (`IP_FREEBIND`)", FOREIGN, |stage| {
            let at = SocketAddr::new(Ipv4Addr::new(10, 99, 9, 9).into(), port::ETCD_PEER);
            takes(stage, Bind { take: Take::Free, ..Bind::at(at) })
        }),
        row("bind-free-v6", "the same over IPv6", FOREIGN, |stage| {
            let at = SocketAddr::new(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 9).into(), port::ETCD_PEER);
            takes(stage, Bind { take: Take::Free, ..Bind::at(at) })
        }),
        row("bind-free-multicast", "binds it at a multicast address", FOREIGN, |stage| {
            takes(stage, Bind { take: Take::Free, ..Bind::at("224.0.0.1:2380".parse()?) })
        }),
    ]
}
