//! What the product does to real connections. Each denial is first shown to work without a policy,
//! in the same lab and by the same process, so that nothing but the product can be the reason.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::plan::{CP1, LOOPBACK, NODE_LOCAL_DNS, OUT, POD_A, POD_B, Party, W1, port};
use enforcer_tests::probe::{Connect, Hold, Serve};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, net, plan, servers};

const SOON: Duration = Duration::from_secs(3);

/// The other node may be compromised: cp1 defends itself alone.
#[test]
fn one_node_defends_itself() -> Result<()> {
    let mut lab = Lab::builder().etcd().apiserver().build()?;
    lab.expose_insecure_port()?;
    let intruders = [
        lab.login("w1"),
        lab.hostnet("w1"),
        lab.pod("pod-b").clone(),
        lab.neighbour(),
    ];
    let ports = [port::ETCD_CLIENT, port::ETCD_PEER, port::INSECURE];
    let attempts: Vec<(&Workload, SocketAddr)> = intruders
        .iter()
        .flat_map(|workload| {
            ports
                .iter()
                .flat_map(move |p| CP1.both(*p).map(|at| (workload, at)))
        })
        .collect();
    for (workload, at) in &attempts {
        ensure!(
            workload.connect(*at)? == Outcome::Connected,
            "twin: {} to {at}",
            workload.party().name
        );
    }
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    for (workload, at) in &attempts {
        let outcome = workload.connect(*at)?;
        ensure!(
            outcome == Outcome::Timeout,
            "{} to {at}: {outcome}",
            workload.party().name
        );
        let reason = if at.port() == port::INSECURE {
            "LoopbackOnly"
        } else {
            "NoPath"
        };
        let source = workload.party().like(at.ip()).to_string();
        agent.event(|event| {
            event.reason == reason
                && event.source.as_ref() == Some(&source)
                && event.port == Some(at.port())
                && event.hook == "tc/ingress"
        })?;
    }
    for at in CP1.both(port::APISERVER) {
        ensure!(
            lab.kubelet("w1").connect(at)? == Outcome::Connected,
            "the kubelet to {at}"
        );
    }
    Ok(())
}

#[test]
fn etcd_serves_the_apiserver_without_an_error() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    let (workload, client) = (lab.apiserver(), Some(lab.certs().apiserver_etcd_client()));
    for endpoint in [
        LOOPBACK.at(port::ETCD_CLIENT),
        CP1.at(port::ETCD_CLIENT),
        CP1.at6(port::ETCD_CLIENT),
    ] {
        for round in 0..10 {
            let value = round.to_string();
            workload
                .etcdctl(endpoint, client, ["put", "key", &value])?
                .checked()?;
            let got = workload
                .etcdctl(endpoint, client, ["get", "key"])?
                .checked()?;
            ensure!(got.stdout == format!("key\n{value}\n"), "{got}");
        }
        servers::watch_and_save(&lab, &workload, endpoint)?;
    }
    // A busy kernel occasionally retransmits a segment, even without the product.
    let segments = workload.namespace().tcp_segments()?;
    ensure!(
        segments.sent > 300 && segments.again * 50 < segments.sent,
        "{segments:?}"
    );
    let denials = agents[0].events()?;
    ensure!(denials.is_empty(), "{denials:#?}");
    Ok(())
}

#[test]
fn a_new_node_local_dns_may_bind_its_8080() -> Result<()> {
    let lab = Lab::builder().build()?;
    let _agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let at = SocketAddr::new(NODE_LOCAL_DNS.into(), port::INSECURE);
    let outcome = lab.hostnet("cp1").bind(at)?;
    ensure!(outcome == Outcome::Bound, "{outcome}");
    Ok(())
}

#[test]
fn connections_older_than_the_policy_continue_if_it_allows_them() -> Result<()> {
    let lab = Lab::builder().apiserver().bystanders().build()?;
    let insecure = LOOPBACK.at(port::INSECURE);
    let allowed = lab.controller_manager().hold(Hold::http(insecure))?;
    let other = lab.pod("pod-b").hold(Hold::to(CP1.at(port::ECHO)))?;
    let forbidden = lab.hostnet("cp1").hold(Hold::http(insecure))?;
    ensure!(
        allowed.is_alive() && forbidden.is_alive() && other.is_alive(),
        "before the policy"
    );
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    forbidden.wait_for_end(SOON)?;
    ensure!(
        allowed.is_alive(),
        "the controller-manager's connection is cut"
    );
    ensure!(other.is_alive(), "the pod's connection is cut");
    agents[0]
        .event(|event| event.reason == "WrongProcess" && event.port == Some(port::INSECURE))?;
    Ok(())
}

#[test]
fn removing_a_path_ends_its_connections() -> Result<()> {
    let lab = Lab::builder().apiserver().kubelets().build()?;
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    let held = [
        lab.controller_manager()
            .hold(Hold::http(LOOPBACK.at(port::INSECURE)))?,
        lab.scheduler()
            .hold(Hold::http(LOOPBACK.at6(port::INSECURE)))?,
    ];
    ensure!(held.iter().all(|held| held.is_alive()), "with the path");
    let without = PolicyText {
        disable: vec!["insecure-port"],
        ..PolicyText::default()
    };
    agents[0].replace_policy(&lab, &without)?;
    for held in held {
        held.wait_for_end(SOON)?;
    }
    let again = lab
        .controller_manager()
        .connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(again == Outcome::Eperm, "{again}");
    agents[0].event(|event| {
        event.reason == "ClosedPort" && event.endpoint.as_deref() == Some("apiserver:insecure")
    })?;
    agents[0].replace_policy(&lab, &PolicyText::default())?;
    let again = lab
        .controller_manager()
        .connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(again == Outcome::Connected, "with the path again: {again}");
    Ok(())
}

#[test]
fn a_forged_source_reaches_nothing() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-a");
    let at = lab.login("cp1");
    let packets: Vec<(Forged, Arrivals)> = [port::ETCD_CLIENT, 9999]
        .iter()
        .flat_map(|p| CP1.both(*p))
        .flat_map(|destination| {
            // The apiserver's own address, another node's, and that of an unrelated host.
            [
                CP1.like(destination.ip()),
                W1.like(destination.ip()),
                OUT.like(destination.ip()),
            ]
            .map(|source| (source, destination))
        })
        .map(|(source, destination)| {
            let source = SocketAddr::new(source, 40_000);
            let arrivals = Arrivals::count(&at, source.ip(), destination)?;
            Ok((
                Forged {
                    source,
                    destination,
                    content: Content::SYN,
                },
                arrivals,
            ))
        })
        .collect::<Result<_>>()?;
    let send_all = || {
        packets
            .iter()
            .try_for_each(|(packet, _)| pod.forge(packet).map(drop))
    };
    let counts = || {
        packets
            .iter()
            .map(|(_, arrivals)| arrivals.so_far())
            .collect::<Result<Vec<_>>>()
    };
    send_all()?;
    let before = counts()?;
    ensure!(
        before.iter().all(|count| *count == 1),
        "without a policy: {before:?}"
    );
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    send_all()?;
    for (packet, _) in &packets {
        let source = packet.source.ip().to_string();
        agent.event(|event| {
            event.reason == "ForgedSource" && event.source.as_ref() == Some(&source)
        })?;
    }
    ensure!(counts()? == before, "a forged packet arrived");
    ensure!(
        agent.denied("ForgedSource")? == (packets.len() as u64, 0),
        "{:?}",
        agent.denied("ForgedSource")?
    );
    // Its own address still works.
    ensure!(
        pod.ping(CP1.v4.into())? == Outcome::Answered,
        "the pod's own address"
    );
    Ok(())
}

/// The kernel itself creates a multipath connection's subflow sockets, in no process's context. A
/// pod's own port 8080 is no port of the node.
#[test]
fn multipath_within_a_pod_is_attributed_to_the_pod() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (pod, intruder) = (lab.pod("pod-a"), lab.hostnet("cp1"));
    let to = |at: SocketAddr| Connect {
        multipath: true,
        send: Some("hello".to_owned()),
        ..Connect::to(at)
    };
    for at in LOOPBACK.both(port::INSECURE) {
        let serve = || Serve {
            tcp: vec![at],
            multipath: true,
            ..Serve::default()
        };
        // Twin: the same within the node.
        let server = intruder.serve(serve())?;
        let asked = intruder.connect_with(to(at))?;
        ensure!(asked.outcome == Outcome::Answered, "twin: {asked:?}");
        let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
        let asked = intruder.connect_with(to(at))?;
        ensure!(asked.outcome == Outcome::Eperm, "on the node: {asked:?}");
        agent.event(|event| event.reason == "WrongProcess" && event.hook == "cgroup/connect")?;
        drop(server);
        let _server = pod.serve(serve())?;
        let asked = pod.connect_with(to(at))?;
        ensure!(asked.outcome == Outcome::Answered, "in a pod: {asked:?}");
        let denials = agent.events()?;
        ensure!(denials.len() == 1, "more than the node's: {denials:#?}");
        agent.stop()?.checked()?;
    }
    Ok(())
}

/// A hostNetwork pod's packet socket bypasses the cgroup hooks, but still has a subject.
#[test]
fn an_injected_frame_is_known_by_its_cgroup() -> Result<()> {
    let lab = Lab::builder().build()?;
    let intruder = lab.hostnet("w1");
    let at = lab.login("cp1");
    for (family, party) in [
        (W1.at(40_000), CP1.at(port::ETCD_CLIENT)),
        (W1.at6(40_000), CP1.at6(port::ETCD_CLIENT)),
    ] {
        let arrivals = Arrivals::count(&at, family.ip(), party)?;
        let packet = Forged {
            source: family,
            destination: party,
            content: Content::SYN,
        };
        intruder.forge(&packet)?;
        intruder.raw(&packet)?;
        ensure!(
            arrivals.so_far()? == 2,
            "twin: {} arrived",
            arrivals.so_far()?
        );
        let agent = Agent::start(&lab, "w1", &PolicyText::default())?;
        intruder.forge(&packet)?;
        intruder.raw(&packet)?;
        for hook in ["tc/egress", "cgroup/egress"] {
            let event = agent.event(|event| event.hook == hook)?;
            ensure!(
                event.reason == "NoPath" && event.subject.name.contains("hostnet"),
                "{event:?}"
            );
        }
        ensure!(arrivals.so_far()? == 2, "an injected frame arrived");
        agent.stop()?.checked()?;
    }
    Ok(())
}

/// A service whose backend is etcd: the address has no owner until the node has translated it.
#[test]
fn address_translation_does_not_bypass_the_policy() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    for node in ["cp1", "w1"] {
        let rules = format!(
            "table ip detour {{
               chain pre {{ type nat hook prerouting priority -101; ip daddr 10.96.0.99 tcp dport 80 dnat to {0}:2379; }}
               chain post {{ type nat hook postrouting priority 99; ip daddr {0} tcp dport 2379 masquerade; }}
             }}",
            CP1.v4
        );
        net::nft(lab.host(node).namespace().name(), &rules)?;
    }
    let detour: SocketAddr = "10.96.0.99:80".parse()?;
    let pods = [
        (lab.pod("pod-a"), "cp1", "cgroup/ingress"),
        (lab.pod("pod-b"), "w1", "tc/egress"),
    ];
    for (pod, _, _) in pods {
        ensure!(
            pod.connect(detour)? == Outcome::Connected,
            "twin: {}",
            pod.party().name
        );
    }
    let agents = Agent::on_both(&lab, &PolicyText::dry_run())?;
    for (pod, node, hook) in pods {
        ensure!(
            pod.connect(detour)? == Outcome::Connected,
            "dry-run: {}",
            pod.party().name
        );
        let agent = agents
            .iter()
            .find(|agent| agent.node() == node)
            .context("no agent")?;
        agent.event(|event| {
            event.hook == hook && event.endpoint.as_deref() == Some("etcd:client")
        })?;
    }
    for agent in &agents {
        agent.replace_policy(&lab, &PolicyText::default())?;
    }
    for (pod, node, hook) in pods {
        let outcome = pod.connect(detour)?;
        ensure!(
            outcome == Outcome::Timeout,
            "{}: {outcome}",
            pod.party().name
        );
        let agent = agents
            .iter()
            .find(|agent| agent.node() == node)
            .context("no agent")?;
        agent.event(|event| event.hook == hook && event.verdict == "denied")?;
    }
    Ok(())
}

#[test]
fn ports_cannot_be_taken_by_other_processes() -> Result<()> {
    let lab = Lab::builder().build()?;
    let wildcard = |port| [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
    let parse = |text: String| text.parse::<SocketAddr>().context("no address");
    let refused: Vec<(Workload, SocketAddr, &str)> = [
        wildcard(8080).map(|at| (lab.apiserver(), at, "BindNotLoopback")),
        [CP1.at(8080), CP1.at6(8080)]
            .map(|at| (lab.apiserver(), at.to_string(), "BindNotLoopback")),
        wildcard(2379).map(|at| (lab.hostnet("cp1"), at, "BindForeignPort")),
        LOOPBACK
            .both(2379)
            .map(|at| (lab.hostnet("cp1"), at.to_string(), "BindForeignPort")),
        LOOPBACK
            .both(8080)
            .map(|at| (lab.hostnet("cp1"), at.to_string(), "BindForeignPort")),
    ]
    .into_iter()
    .flatten()
    .map(|(workload, at, reason)| Ok((workload, parse(at)?, reason)))
    .collect::<Result<_>>()?;
    let allowed = [
        (lab.apiserver(), LOOPBACK.at(8080)),
        (lab.apiserver(), LOOPBACK.at6(8080)),
        (lab.etcd(), CP1.at(2379)),
        (lab.etcd(), parse("[::]:2380".to_owned())?),
        (lab.hostnet("cp1"), CP1.at(8081)),
        (lab.hostnet("w1"), parse("0.0.0.0:2379".to_owned())?),
    ];
    let bound = |workload: &Workload, at: SocketAddr| -> Result<()> {
        let outcome = workload.bind(at)?;
        ensure!(outcome == Outcome::Bound, "{at}: {outcome}");
        Ok(())
    };
    for (workload, at, _) in &refused {
        bound(workload, *at).context("without a policy")?;
    }
    let agents = Agent::on_both(&lab, &PolicyText::dry_run())?;
    for (workload, at, reason) in &refused {
        bound(workload, *at).context("in dry-run")?;
        let address = at.ip().to_string();
        agents[0].event(|event| {
            event.reason == *reason
                && event.hook == "cgroup/bind"
                && event.destination.as_ref() == Some(&address)
                && event.port == Some(at.port())
        })?;
    }
    for agent in &agents {
        agent.replace_policy(&lab, &PolicyText::default())?;
    }
    for (workload, at, _) in &refused {
        let outcome = workload.bind(*at)?;
        ensure!(outcome == Outcome::Eperm, "{at}: {outcome}");
    }
    for (workload, at) in &allowed {
        bound(workload, *at).context("what is allowed")?;
    }
    Ok(())
}

#[test]
fn counts_are_exact_under_a_flood() -> Result<()> {
    const EACH: usize = 400;
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-a");
    let frames = |source: u16| -> Result<Vec<Vec<u8>>> {
        let packet = Forged {
            source: SocketAddr::new(POD_A.party.v4.into(), source),
            destination: CP1.at(port::ETCD_CLIENT),
            content: Content::SYN,
        };
        let frame = packet.frame(POD_A.party.mac, pod.next_hop(CP1.v4.into()))?;
        Ok(vec![frame; EACH])
    };
    for policy in [PolicyText::dry_run(), PolicyText::default()] {
        let agent = Agent::start(&lab, "cp1", &policy)?;
        for source in [40_000, 40_001, 40_002] {
            pod.inject("eth0", &frames(source)?)?;
        }
        let all = 3 * EACH as u64;
        let dry = policy.mode == "DryRun";
        let deadline = Instant::now() + SOON;
        while agent.denied("NoPath")? != (if dry { (0, all) } else { (all, 0) }) {
            ensure!(
                Instant::now() < deadline,
                "{:?} of {all}",
                agent.denied("NoPath")?
            );
            thread::sleep(Duration::from_millis(20));
        }
        // The source port does not distinguish denials: one record, one line, all counted.
        let events = agent.events()?;
        ensure!(events.len() == 1 && events[0].count == all, "{events:#?}");
        ensure!(
            events[0].endpoint.as_deref() == Some("etcd:client"),
            "{events:?}"
        );
        agent.stop()?.checked()?;
    }
    Ok(())
}

#[test]
fn a_pod_behind_its_nodes_address_is_still_a_pod() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    lab.masquerade_pods()?;
    let pod = lab.pod("pod-b");
    for at in CP1.both(port::ETCD_CLIENT) {
        ensure!(pod.connect(at)? == Outcome::Connected, "twin: {at}");
    }
    let agent = Agent::start(&lab, "w1", &PolicyText::default())?;
    for at in CP1.both(port::ETCD_CLIENT) {
        ensure!(pod.connect(at)? == Outcome::Timeout, "{at}");
    }
    agent.event(|event| {
        event.hook == "tc/ingress" && event.subject.name == POD_B.host_interface()
    })?;
    Ok(())
}

#[test]
fn a_denied_udp_path_is_refused_by_every_method_of_sending_and_replies_pass() -> Result<()> {
    use enforcer_tests::probe::Udp;
    let lab = Lab::builder().build()?;
    let at = W1.at(5353);
    let _server = lab.kubelet("w1").serve(Serve {
        udp: vec![at],
        ..Serve::default()
    })?;
    let policy = PolicyText {
        more:
            "  paths:\n    - { name: ask, from: [apiserver], to: \"answers:udp\", because: test }\n"
                .to_owned(),
        ..PolicyText::default()
    };
    let policy_text = policy.yaml(&lab).replace(
        "  components:\n",
        "  components:\n    answers:\n      addresses: [10.77.0.21]\n      ports: { udp: 5353/udp }\n",
    );
    let methods = |to| {
        [
            Udp::to(to),
            Udp {
                connected: true,
                ..Udp::to(to)
            },
            Udp {
                but_connect: Some(W1.at(9)),
                no_answer: true,
                ..Udp::to(to)
            },
            Udp {
                mapped: true,
                ..Udp::to(to)
            },
        ]
    };
    for method in methods(at) {
        ensure!(
            lab.hostnet("cp1")
                .udp_with(method.clone())?
                .outcome
                .worked(),
            "twin: {method:?}"
        );
    }
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    for agent in &agents {
        let before = agent.generation()?;
        agent.write_policy(&policy_text)?;
        let deadline = Instant::now() + SOON;
        while agent.generation()? == before {
            ensure!(Instant::now() < deadline, "{}", agent.running().stderr());
        }
    }
    for method in methods(at) {
        let outcome = lab.hostnet("cp1").udp_with(method.clone())?.outcome;
        ensure!(outcome == Outcome::Eperm, "{method:?}: {outcome}");
        let outcome = lab.apiserver().udp_with(method.clone())?.outcome;
        ensure!(outcome.worked(), "the apiserver, {method:?}: {outcome}");
    }
    agents[0].event(|event| event.reason == "WrongProcess" && event.port == Some(5353))?;
    let (forward, reply) = agents[1].path_packets("ask")?;
    ensure!(forward > 0 && reply > 0, "{forward}/{reply}");
    Ok(())
}

#[test]
fn stopping_the_agent_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let at = CP1.at(port::ETCD_CLIENT);
    for how in ["SIGTERM", "detach"] {
        let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--tc", "clsact"])?;
        ensure!(
            lab.hostnet("cp1").connect(at)? == Outcome::Eperm,
            "enforced"
        );
        if how == "detach" {
            agent.command(&["detach"])?.checked()?;
            ensure!(agent.status().is_err(), "the agent still answers");
        } else {
            agent.stop()?.checked()?;
        }
        ensure!(
            lab.hostnet("cp1").connect(at)? == Outcome::Connected,
            "after {how}"
        );
        ensure!(
            lab.pod("pod-a").connect(at)? == Outcome::Connected,
            "after {how}"
        );
    }
    Ok(())
}

#[test]
fn the_kernel_log_shows_program_results_on_request() -> Result<()> {
    let lab = Lab::builder().build()?;
    for (args, logs) in [(&[][..], false), (&["--kernel-log"][..], true)] {
        let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), args)?;
        let outcome = lab.hostnet("cp1").connect(CP1.at(port::ETCD_CLIENT))?;
        ensure!(outcome == Outcome::Eperm, "{outcome}");
        let line = agent
            .running()
            .wait_for_line(|line| line.contains("enforcer_conn4 returns 0"), SOON);
        ensure!(line.is_ok() == logs, "{args:?}: {line:?}");
        agent.stop()?.checked()?;
    }
    Ok(())
}

/// Every error is reported, the exit code reflects it, and what was in force stays in force.
#[test]
fn bad_input_changes_nothing() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let policy = PolicyText::default();
    let good = policy.yaml(&lab);
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let denied = || -> Result<()> {
        let outcome = lab.hostnet("cp1").connect(CP1.at(port::ETCD_CLIENT))?;
        ensure!(outcome == Outcome::Eperm, "{outcome}");
        Ok(())
    };
    denied()?;
    let generation = agent.generation()?;
    for (what, text) in [
        ("malformed", "apiVersion: [".to_owned()),
        (
            "an unknown field",
            good.replace("otherTraffic:", "otherTrafic:"),
        ),
        ("too large", format!("{good}# {}", "x".repeat(33 << 20))),
        ("empty", String::new()),
    ] {
        agent.write_policy(&text)?;
        let deadline = Instant::now() + SOON;
        while agent.status()?["lastError"].is_null() {
            ensure!(Instant::now() < deadline, "{what}: no error is reported");
            thread::sleep(Duration::from_millis(20));
        }
        ensure!(
            agent.generation()? == generation,
            "{what}: another generation"
        );
        denied().context(what)?;
        agent.write_policy(&good)?;
        let deadline = Instant::now() + SOON;
        while !agent.status()?["lastError"].is_null() {
            ensure!(Instant::now() < deadline, "{what}: the error stays");
            thread::sleep(Duration::from_millis(20));
        }
    }
    // A second agent on the same node.
    let file = agent.policy().to_string_lossy().into_owned();
    let second = agent.command(&["run", "-p", &file, "--node", "cp1"])?;
    ensure!(
        second.code() == Some(2) && second.stderr.contains("agent"),
        "{second}"
    );
    denied()?;
    agent.stop()?.checked()?;

    // Each of these would start, except for a single error.
    let workload = lab.daemon("cp1", "enforcer");
    let enforcer = || enforcer_tests::tools::enforcer();
    for (change, expected) in [
        (("uplinks: [eth0]", "uplinks: [eth7]"), "eth7"),
        (
            ("cgroupRoot: \"/enforcer", "cgroupRoot: \"/missing-enforcer"),
            "missing-enforcer",
        ),
    ] {
        fs::write(&file, good.replace(change.0, change.1))?;
        let ran = workload
            .command_of(&enforcer()?)?
            .args(["run", "--node", "cp1", "-p", &file])
            .run()?;
        ensure!(
            ran.code() == Some(2) && ran.stderr.contains(expected),
            "{ran}"
        );
    }
    fs::write(&file, &good)?;
    let ran = workload
        .as_user(65534)
        .command_of(&enforcer()?)?
        .args(["run", "--node", "cp1", "-p", &file])
        .run()?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("root"),
        "{ran}"
    );
    let outcome = lab.hostnet("cp1").connect(CP1.at(port::ETCD_CLIENT))?;
    ensure!(
        outcome == Outcome::Connected,
        "a failed start left something: {outcome}"
    );
    Ok(())
}

#[test]
fn an_undeclared_address_of_the_node_is_guarded_like_the_others() -> Result<()> {
    // A second address, which the inventory does not mention.
    guarded_at_another_address(&plan::VIP, |_| PolicyText::default())
}

#[test]
fn a_node_address_declared_for_another_component_is_guarded_too() -> Result<()> {
    // Shared by the apiservers; its ports belong to the load balancer, and this is none of them.
    guarded_at_another_address(&plan::VIP, |lab| {
        let addresses = format!("addresses: [\"{}\", \"{}\"]", plan::VIP.v4, plan::VIP.v6);
        let inventory = lab.inventory().with("load-balancer", &addresses);
        PolicyText {
            inventory: Some(inventory.yaml()),
            ..PolicyText::default()
        }
    })?;
    // The node's own address in the pod network: a bridge's.
    guarded_at_another_address(&BRIDGE, |_| PolicyText::default())
}

/// What a bridge of cp1 would have.
const BRIDGE: Party = Party {
    name: "bridge",
    v4: Ipv4Addr::new(10, 78, 1, 1),
    v6: Ipv6Addr::new(0xfd78, 1, 0, 0, 0, 0, 0, 1),
    mac: [0; 6],
};

fn guarded_at_another_address(party: &Party, policy: impl Fn(&Lab) -> PolicyText) -> Result<()> {
    let lab = Lab::builder().full().build()?;
    lab.claim(&CP1, party)?;
    let pod = lab.pod("pod-a");
    for at in party.both(port::KUBELET) {
        ensure!(
            pod.connect(at)?.worked(),
            "without a policy nobody listens at {at}"
        );
    }
    let agents = Agent::on_both(&lab, &policy(&lab))?;
    for at in party.both(port::KUBELET) {
        let outcome = pod.connect(at)?;
        ensure!(
            !outcome.worked(),
            "a pod reaches the kubelet by {at}: {outcome}"
        );
        let destination = at.ip().to_string();
        let event = agents[0].event(|event| event.destination.as_ref() == Some(&destination))?;
        ensure!(
            event.reason == "NoPath" && event.endpoint.as_deref() == Some("kubelet:api"),
            "{event:?}"
        );
    }
    // And whoever may do so at the other addresses may do so there.
    ensure!(
        lab.kubelet("cp1")
            .connect(party.at(port::APISERVER))?
            .worked()
    );
    Ok(())
}
