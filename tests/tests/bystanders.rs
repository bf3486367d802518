//! Whatever a policy does not concern works as it does without a policy, and no denial is reported.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Result, ensure};
use enforcer_tests::plan::{CP1, LOOPBACK, NODE_LOCAL_DNS, OUT, POD_A, POD_B, W1, port};
use enforcer_tests::probe::{Serve, Udp};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::servers::expect_answer;
use enforcer_tests::{Lab, Outcome};

const SOON: Duration = Duration::from_secs(3);

#[test]
fn bystanders_notice_nothing() -> Result<()> {
    let lab = Lab::builder().full().build()?;
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    for pod in [POD_A, POD_B] {
        let (workload, name) = (lab.pod(pod.party.name), pod.party.name);
        for port in [port::INSECURE, port::ETCD_CLIENT] {
            for at in LOOPBACK.both(port) {
                expect_answer(workload, at, name)?;
            }
        }
        for at in pod.party.both(port::INSECURE) {
            expect_answer(&lab.neighbour(), at, name)?;
            expect_answer(&lab.login("cp1"), at, name)?;
        }
    }
    let dns = SocketAddr::new(NODE_LOCAL_DNS.into(), port::INSECURE);
    expect_answer(lab.pod("pod-a"), dns, "node-local-dns")?;
    expect_answer(&lab.login("w1"), dns, "node-local-dns")?;
    for at in W1.both(port::INSECURE) {
        expect_answer(lab.pod("pod-a"), at, "worker")?;
        expect_answer(&lab.neighbour(), at, "worker")?;
    }
    for at in [CP1, W1, OUT].iter().flat_map(|host| host.both(port::ECHO)) {
        for workload in [&lab.login("cp1"), lab.pod("pod-b"), &lab.neighbour()] {
            let datagram = workload.udp(at)?;
            ensure!(
                datagram == Outcome::Answered,
                "{} to {at}/udp: {datagram}",
                workload.party().name
            );
            ensure!(workload.ping(at.ip())? == Outcome::Answered, "ping {at}");
        }
    }
    for agent in &agents {
        let denials = agent.events()?;
        ensure!(denials.is_empty(), "{} denies {denials:#?}", agent.node());
    }
    Ok(())
}

/// The kernel passes a copy of a node's broadcasts to the node itself, as if it came from the link.
#[test]
fn a_node_hears_its_own_broadcasts() -> Result<()> {
    const ALL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 255), 5353));
    let lab = Lab::builder().build()?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ALL.port());
    let listener = lab.login("cp1").serve(Serve {
        udp: vec![everywhere],
        ..Serve::default()
    })?;
    lab.hostnet("cp1").udp_with(Udp {
        send: "to all".to_owned(),
        no_answer: true,
        ..Udp::to(ALL)
    })?;
    ensure!(
        listener.hears("to all", SOON),
        "it heard {:?}",
        listener.heard()
    );
    let denials = agent.events()?;
    ensure!(denials.is_empty(), "it denies {denials:#?}");
    Ok(())
}
