//! Interfaces that change while the agent runs: they join a bridge, or another program's filter is
//! in the way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::holder::Accepter;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, POD_A, W1, port};
use enforcer_tests::probe::Serve;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, net};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A SYN to cp1 that claims to be from w1, and the count of those that arrive.
fn forged_syn(lab: &Lab) -> Result<(Forged, Arrivals)> {
    let packet = Forged {
        source: W1.at(40_000),
        destination: CP1.at(9999),
        content: Content::SYN,
    };
    let arrivals = Arrivals::count(&lab.login("cp1"), packet.source.ip(), packet.destination)?;
    Ok((packet, arrivals))
}

/// As the bridge plugin does with a new pod's interface: if programs were attached a second time,
/// they would be refused or removed.
#[test]
fn an_interface_that_joins_a_bridge_stays_enforced() -> Result<()> {
    // Until the agent has noticed it.
    const HEARD: Duration = Duration::from_millis(500);
    let lab = Lab::builder().build()?;
    let (pod, interface) = (lab.pod("pod-a"), POD_A.host_interface());
    let node = lab.host("cp1").namespace().name();
    let (packet, arrivals) = forged_syn(&lab)?;
    pod.forge(&packet)?;
    ensure!(arrivals.so_far()? == 1, "twin");
    for mode in ["auto", "clsact"] {
        let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--tc", mode])?;
        let attached = agent.status()?["attachments"].clone();
        for change in [
            format!("link add br-x type bridge\nlink set {interface} master br-x\n"),
            format!("link set {interface} nomaster\nlink del br-x\n"),
        ] {
            net::ip(Some(node), &change)?;
            thread::sleep(HEARD);
            let status = agent.status()?;
            ensure!(status["notAttached"].is_null(), "{mode}: {status}");
            ensure!(status["attachments"] == attached, "{mode}: {status}");
        }
        pod.forge(&packet)?;
        agent.event(|event| event.reason == "ForgedSource")?;
        ensure!(
            arrivals.so_far()? == 1,
            "{mode}: a forged packet has arrived"
        );
        agent.stop()?.checked()?;
    }
    Ok(())
}

/// Another program's filter is where the agent's should be. The agent reports it, and attaches once
/// the place is free.
#[test]
fn an_interface_that_cannot_be_enforced_is_reported() -> Result<()> {
    const NEW: &str = "cali-new";
    let lab = Lab::builder().build()?;
    let node = lab.host("cp1").namespace().name();
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--tc", "clsact"])?;
    // The agent attaches to every interface at once, so the filter is added while the agent is
    // stopped.
    agent.running().signal(Signal::SIGSTOP)?;
    net::ip(Some(node), "link add late type veth peer name late-peer\n")?;
    net::tc(
        node,
        "qdisc add dev late clsact\n\
         filter add dev late ingress prio 1 protocol all u32 match u32 0 0 classid 1:1\n",
    )?;
    net::ip(Some(node), &format!("link set late name {NEW}\n"))?;
    agent.running().signal(Signal::SIGCONT)?;
    let wait_for = |wanted: &dyn Fn(&Value) -> bool| -> Result<Value> {
        // The agent retries every five seconds.
        let deadline = Instant::now() + patient(Duration::from_secs(8));
        loop {
            let status = agent.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    };
    let status = wait_for(&|status| status["notAttached"].is_string())?;
    let reported = status["notAttached"].as_str().unwrap_or_default();
    ensure!(reported.contains(NEW), "{reported}");
    let attached = |status: &Value| {
        let attachments = status["attachments"].as_array().into_iter().flatten();
        attachments
            .filter(|attachment| attachment["where"] == NEW)
            .count()
    };
    ensure!(attached(&status) == 0, "{status:#}");
    let shown = agent.command(&["status"])?.checked()?.stdout;
    ensure!(
        shown.contains("ERROR     an interface is not enforced: ") && shown.contains(NEW),
        "{shown}"
    );
    net::tc(node, &format!("filter del dev {NEW} ingress prio 1\n"))?;
    let status = wait_for(&|status| status["notAttached"].is_null())?;
    ensure!(attached(&status) == 2, "{status:#}");
    Ok(())
}

/// A pod's interface that appears while the agent does not run has no program. What the pod sends
/// to other nodes still counts as a pod's, even though it has its node's address by then. The pod
/// also takes that address itself.
#[test]
fn a_pod_that_appears_while_the_agent_is_stopped_is_judged_as_a_pod() -> Result<()> {
    const OWN: &str = "10.78.1.77";
    let lab = Lab::builder().build()?;
    lab.masquerade_pods()?;
    let (node, pod) = (lab.host("cp1").namespace().name(), lab.pod("pod-a"));
    let inside = pod.namespace().name();
    let kubelet = W1.at(port::KUBELET);
    let target = kubelet.ip();
    let _server = lab.kubelet("w1").serve(Serve {
        tcp: vec![kubelet],
        ..Serve::default()
    })?;
    let come = || -> Result<()> {
        net::ip(
            Some(node),
            &format!(
                "link add late address 02:00:00:00:00:99 type veth peer name late0 address 02:00:00:00:00:98 netns {inside}\n\
                 link set late up\n\
                 neigh replace {OWN} lladdr 02:00:00:00:00:98 dev late\n\
                 route add {OWN}/32 dev late\n"
            ),
        )?;
        net::ip(
            Some(inside),
            &format!(
                "link set late0 up\n\
                 addr add {OWN}/32 dev late0\n\
                 neigh replace {target} lladdr 02:00:00:00:00:99 dev late0\n\
                 route add {target}/32 dev late0 src {OWN}\n"
            ),
        )
    };
    come()?;
    let outcome = pod.connect(kubelet)?;
    ensure!(outcome == Outcome::Connected, "twin: {outcome:?}");
    net::ip(Some(node), "link del late\n")?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    agent.running().signal(Signal::SIGSTOP)?;
    come()?;
    let outcome = pod.connect(kubelet)?;
    // From its node's address, which is also that of the node's apiserver.
    let packet = Forged {
        source: CP1.at(40_000),
        destination: kubelet,
        content: Content::SYN,
    };
    let arrivals = Arrivals::count(&lab.login("w1"), packet.source.ip(), packet.destination)?;
    pod.forge(&packet)?;
    let arrived = arrivals.so_far();
    agent.running().signal(Signal::SIGCONT)?;
    ensure!(outcome == Outcome::Timeout, "{outcome:?}");
    ensure!(arrived? == 0, "a forged packet has arrived");
    agent.event(|event| {
        event.hook == "tc/egress" && event.reason == "NoPath" && event.port == Some(port::KUBELET)
    })?;
    Ok(())
}

/// Another program that accepts everything is attached before ours: ours moves to the front again,
/// and both run.
#[test]
fn another_program_does_not_stay_before_ours() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-a");
    let (packet, arrivals) = forged_syn(&lab)?;
    let namespace = lab.host("cp1").namespace();
    let take = || -> Result<Accepter> {
        namespace.within(|| {
            let index = nix::net::if_::if_nametoindex(POD_A.host_interface().as_str())?;
            Accepter::first_at_ingress(index)
        })?
    };
    let arrives = || -> Result<bool> {
        let before = arrivals.so_far()?;
        pod.forge(&packet)?;
        Ok(arrivals.so_far()? > before)
    };
    for pin in [&["--tc", "tcx"][..], &["--tc", "tcx", "--no-pin"]] {
        let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), pin)?;
        let reported = || agent.running().stderr().matches("`accepter`").count();
        ensure!(!arrives()?, "before");
        for time in 1..3 {
            let accepter = take()?;
            // The twin, unless the agent has noticed already.
            ensure!(
                arrives()? || reported() >= time,
                "another program does not matter"
            );
            let deadline = Instant::now() + patient(Duration::from_secs(10));
            while arrives()? || reported() < time {
                let log = agent.running().stderr();
                ensure!(Instant::now() < deadline, "it stays first: {log}");
                thread::sleep(Duration::from_millis(50));
            }
            drop(accepter);
        }
        agent.stop()?.checked()?;
        ensure!(arrives()?, "after");
    }
    // Filters at clsact come after every TCX program, wherever they are. So it is reported.
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--tc", "clsact"])?;
    let warned = || -> Result<bool> {
        let status = agent.status()?;
        let warnings = status["warnings"].as_array().into_iter().flatten();
        let mut texts = warnings.filter_map(|warning| warning.as_str());
        Ok(texts.any(|text| text.contains("`accepter`") && text.contains("by TCX")))
    };
    ensure!(!arrives()? && !warned()?, "before");
    let accepter = take()?;
    ensure!(arrives()? && warned()?, "another program comes first");
    drop(accepter);
    ensure!(!arrives()? && !warned()?, "it is gone");
    agent.stop()?.checked()?;
    lab.close()
}
