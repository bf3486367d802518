//! The lock `tls: Required`: on such a path, a stream that does not begin with a ClientHello is cut
//! off. Each denial is first shown to work without a policy, by the same process on the same
//! connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use enforcer_tests::attempt::Server;
use enforcer_tests::packet::{CLIENT_HELLO, to_hex};
use enforcer_tests::plan::{CP1, LOOPBACK, POD_B, SERVICE, W1, port};
use enforcer_tests::probe::{Connect, Serve};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, net};

/// How long to wait for an answer that must not come, in milliseconds: on a single machine, those
/// that come take less than one.
const PATIENCE: u64 = 250;
/// How long an answer that must come may take: the machine may be busy, and recovering a lost
/// segment takes time.
const LONG_PATIENCE: u64 = 5000;

/// Data that is not TLS, although some of it begins like it.
fn plaintexts() -> Vec<(&'static str, Vec<u8>)> {
    let mut server_hello = CLIENT_HELLO.to_vec();
    server_hello[5] = 2;
    let mut ssl3 = CLIENT_HELLO.to_vec();
    ssl3[2] = 0;
    vec![
        (
            "HTTP",
            b"GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        ),
        ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec()),
        (
            "random bytes",
            vec![
                0x4c, 0x1f, 0x73, 0, 0x55, 2, 0x7e, 0x61, 0x33, 0x0d, 0x70, 0x11,
            ],
        ),
        ("a ServerHello", server_hello),
        ("SSL 3", ssl3),
    ]
}

/// Sends something that must be answered.
fn ask(workload: &Workload, to: SocketAddr, pieces: &[&[u8]]) -> Result<Outcome> {
    say_within(workload, to, pieces, LONG_PATIENCE)
}

/// Sends something that must not arrive.
fn say(workload: &Workload, to: SocketAddr, pieces: &[&[u8]]) -> Result<Outcome> {
    say_within(workload, to, pieces, PATIENCE)
}

fn say_within(
    workload: &Workload,
    to: SocketAddr,
    pieces: &[&[u8]],
    timeout_ms: u64,
) -> Result<Outcome> {
    let connect = Connect {
        piece: pieces.iter().map(|piece| to_hex(piece)).collect(),
        pause_ms: 2,
        timeout_ms,
        ..Connect::to(to)
    };
    Ok(workload.connect_with(connect)?.outcome)
}

/// An echo server as a component: if a client gets an answer, its first bytes have passed.
fn echo(workload: &Workload, addresses: &[SocketAddr]) -> Result<Server> {
    workload.serve(Serve {
        tcp: addresses.to_vec(),
        // A TLS server sends nothing before that.
        after: 11,
        ..Serve::default()
    })
}

fn policy() -> PolicyText {
    PolicyText {
        other_traffic: "Drop",
        ..PolicyText::default()
    }
}

/// The route of a connection, and the hook that must cut it off.
struct Route<'a> {
    name: &'static str,
    from: &'a Workload,
    to: Vec<SocketAddr>,
    /// The only node with an agent.
    guard: &'static str,
    hook: &'static str,
    server: &'a Server,
}

#[test]
fn plaintext_is_cut_off_on_every_route() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut addresses = CP1.both(port::APISERVER).to_vec();
    addresses.extend(LOOPBACK.both(port::APISERVER));
    let apiserver = echo(&lab.apiserver(), &addresses)?;
    let kubelet = echo(&lab.kubelet("w1"), &W1.both(port::KUBELET))?;
    let webhook = echo(lab.pod("pod-b"), &POD_B.party.both(8443))?;
    let (near_pod, far_pod) = (lab.pod("pod-a").clone(), lab.pod("pod-b").clone());
    let (scheduler, far_kubelet, client) = (lab.scheduler(), lab.kubelet("w1"), lab.apiserver());
    let route = |name, from, to, guard, hook, server| Route {
        name,
        from,
        to,
        guard,
        hook,
        server,
    };
    let to_apiserver = CP1.both(port::APISERVER).to_vec();
    let routes = [
        route(
            "over lo",
            &scheduler,
            addresses.clone(),
            "cp1",
            "cgroup/egress",
            &apiserver,
        ),
        route(
            "from another node",
            &far_kubelet,
            to_apiserver.clone(),
            "cp1",
            "cgroup/ingress",
            &apiserver,
        ),
        route(
            "to another node",
            &client,
            W1.both(port::KUBELET).to_vec(),
            "cp1",
            "cgroup/egress",
            &kubelet,
        ),
        route(
            "from a pod of the node",
            &near_pod,
            to_apiserver.clone(),
            "cp1",
            "cgroup/ingress",
            &apiserver,
        ),
        route(
            "from a pod, forwarded",
            &far_pod,
            to_apiserver,
            "w1",
            "tc/ingress",
            &apiserver,
        ),
        route(
            "from a pod, through a service",
            &far_pod,
            SERVICE.both(443).to_vec(),
            "w1",
            "tc/ingress",
            &apiserver,
        ),
        route(
            "to a pod, forwarded",
            &client,
            POD_B.party.both(8443).to_vec(),
            "w1",
            "tc/ingress",
            &webhook,
        ),
    ];
    for Route { name, from, to, .. } in &routes {
        for to in to {
            for (what, bytes) in plaintexts() {
                let outcome = ask(from, *to, &[&bytes])?;
                ensure!(
                    outcome == Outcome::Answered,
                    "twin: {name}, {what} to {to}: {outcome}"
                );
            }
        }
    }
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(&lab, guard, &policy())?;
        for route in routes.iter().filter(|route| route.guard == guard) {
            for to in &route.to {
                try_route(&agent, route, *to)?;
            }
        }
    }
    Ok(())
}

fn try_route(agent: &Agent, route: &Route<'_>, to: SocketAddr) -> Result<()> {
    let Route {
        name,
        from,
        server,
        hook,
        ..
    } = route;
    let hello = CLIENT_HELLO;
    let splits: Vec<Vec<&[u8]>> = vec![
        vec![&hello],
        vec![&hello[..1], &hello[1..]],
        vec![&hello[..5], &hello[5..10], &hello[10..]],
        hello.chunks(1).collect(),
    ];
    for pieces in &splits {
        let outcome = ask(from, to, pieces)?;
        ensure!(
            outcome == Outcome::Answered,
            "{name}, a ClientHello in {} pieces to {to}: {outcome}",
            pieces.len()
        );
    }
    let (before, _) = agent.denied("NotTls")?;
    let mut tried = plaintexts();
    if to != route.to[0] {
        tried.truncate(1);
    }
    // A closed connection keeps retransmitting; once the agent is gone, that arrives.
    let mark = format!(" marked {name} {to} ");
    for (what, bytes) in &tried {
        let whole = [&bytes[..], mark.as_bytes()].concat();
        let outcome = say(from, to, &[&whole])?;
        ensure!(
            outcome == Outcome::Timeout,
            "{name}, {what} to {to}: {outcome}"
        );
    }
    // Only the second piece is wrong; and what follows does not pass either.
    let wrong = [b"\x02", mark.as_bytes()].concat();
    let outcome = say(from, to, &[&hello[..5], &wrong, mark.as_bytes()])?;
    ensure!(
        outcome == Outcome::Timeout,
        "{name}, late, to {to}: {outcome}"
    );
    let (after, _) = agent.denied("NotTls")?;
    ensure!(
        after > before + tried.len() as u64,
        "{name}: {before} denials before, {after} after"
    );
    ensure!(!heard(server, &mark), "{name}: {to} has heard it");
    agent.event(|event| {
        event.reason == "NotTls" && event.hook == *hook && event.port == Some(to.port())
    })?;
    Ok(())
}

fn heard(server: &Server, text: &str) -> bool {
    server.heard().iter().any(|heard| {
        heard
            .data
            .as_deref()
            .is_some_and(|data| data.contains(text))
    })
}

fn with_hello(to: SocketAddr, cuts: &[usize]) -> Connect {
    let mut rest = &CLIENT_HELLO[..];
    let mut piece = Vec::new();
    for cut in cuts {
        let (now, later) = rest.split_at(*cut);
        piece.push(to_hex(now));
        rest = later;
    }
    piece.push(to_hex(rest));
    Connect {
        piece,
        timeout_ms: LONG_PATIENCE,
        ..Connect::to(to)
    }
}

#[test]
fn data_with_the_syn_is_checked_too() -> Result<()> {
    let lab = Lab::builder().build()?;
    let apiserver = echo(&lab.apiserver(), &CP1.both(port::APISERVER))?;
    let (scheduler, kubelet, pod) = (lab.scheduler(), lab.kubelet("w1"), lab.pod("pod-b"));
    for workload in [&scheduler, &kubelet, pod] {
        // Both sides, without cookies, for listeners that did not ask for it
        // (Documentation/networking/ip-sysctl).
        let on = "echo 1543 > /proc/sys/net/ipv4/tcp_fastopen";
        workload.run("sh", ["-c", on])?.checked()?;
    }
    let open =
        |workload: &Workload, to: SocketAddr, bytes: &[u8], timeout_ms: u64| -> Result<Outcome> {
            let connect = Connect {
                piece: vec![to_hex(bytes)],
                fast_open: true,
                timeout_ms,
                ..Connect::to(to)
            };
            Ok(workload.connect_with(connect)?.outcome)
        };
    let workloads = [
        ("over lo", &scheduler),
        ("from a node", &kubelet),
        ("from a pod", pod),
    ];
    for (name, workload) in workloads {
        for to in CP1.both(port::APISERVER) {
            let outcome = open(workload, to, b"twin: plaintext", LONG_PATIENCE)?;
            ensure!(
                outcome == Outcome::Answered,
                "twin: {name} to {to}: {outcome}"
            );
        }
    }
    // The kernel confirms that it went with the SYN: nothing was lost, so nothing was
    // retransmitted.
    let agent = Agent::start(&lab, "cp1", &policy())?;
    for (name, workload) in workloads {
        for to in CP1.both(port::APISERVER) {
            let outcome = open(workload, to, &CLIENT_HELLO, LONG_PATIENCE)?;
            ensure!(outcome == Outcome::Answered, "{name} to {to}: {outcome}");
            let mark = format!("GET / marked {name} {to}");
            let outcome = open(workload, to, mark.as_bytes(), 1500)?;
            ensure!(outcome != Outcome::Answered, "{name} to {to}: {outcome}");
            ensure!(!heard(&apiserver, &mark), "{name}: {to} has heard it");
        }
    }
    drop(agent);
    // It cannot be followed through a node; TCP tries again without.
    let agent = Agent::start(&lab, "w1", &policy())?;
    let to = CP1.at(port::APISERVER);
    let outcome = open(pod, to, &CLIENT_HELLO, LONG_PATIENCE)?;
    ensure!(outcome == Outcome::Answered, "through w1: {outcome}");
    agent.event(|event| event.reason == "FastOpenThrough" && event.hook == "tc/egress")?;
    let mark = "GET / marked through w1";
    let outcome = open(pod, to, mark.as_bytes(), 2500)?;
    ensure!(outcome != Outcome::Answered, "through w1: {outcome}");
    ensure!(!heard(&apiserver, mark), "through w1: {to} has heard it");
    Ok(())
}

#[test]
fn a_client_hello_passes_out_of_order_and_retransmitted() -> Result<()> {
    let lab = Lab::builder().build()?;
    let _apiserver = echo(&lab.apiserver(), &CP1.both(port::APISERVER))?;
    let (kubelet, pod) = (lab.kubelet("w1"), lab.pod("pod-b"));
    // Every other segment with payload is dropped, beginning with the first, so that later ones
    // arrive earlier; but never a retransmission: closed connections keep retransmitting, and their
    // segments must not affect others'.
    let loses = "table inet loses {
        set seen { typeof tcp sport . tcp sequence; flags dynamic; size 65535; }
        chain out {
            type filter hook output priority 0
            meta l4proto != tcp accept
            tcp dport != 6443 accept
            tcp flags & psh != psh accept
            tcp sport . tcp sequence @seen accept
            add @seen { tcp sport . tcp sequence }
            numgen inc mod 2 == 0 counter drop
        }
    }";
    net::nft(lab.host("w1").namespace().name(), loses)?;
    net::nft(pod.namespace().name(), loses)?;
    let _agents = Agent::on_both(&lab, &policy())?;
    for workload in [&kubelet, pod] {
        for to in CP1.both(port::APISERVER) {
            for cuts in [&[][..], &[5], &[1, 1, 1], &[10]] {
                let outcome = workload.connect_with(with_hello(to, cuts))?.outcome;
                ensure!(
                    outcome == Outcome::Answered,
                    "{} to {to}, cut at {cuts:?}: {outcome}",
                    workload.party().name
                );
            }
            let mark = format!("GET / again {to}");
            let connect = Connect {
                piece: vec![to_hex(b"GE"), to_hex(b"T /"), to_hex(mark.as_bytes())],
                ..Connect::to(to)
            };
            let outcome = workload.connect_with(connect)?.outcome;
            ensure!(outcome == Outcome::Timeout, "plaintext to {to}: {outcome}");
        }
    }
    let lost = lab
        .login("w1")
        .run("nft", ["list", "table", "inet", "loses"])?
        .checked()?;
    ensure!(
        !lost.stdout.contains("packets 0 "),
        "nothing was lost: {lost}"
    );
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_no_tls_server() -> Result<()> {
    let lab = Lab::builder().build()?;
    let to = CP1.both(port::APISERVER);
    let _greeter = lab.apiserver().serve(Serve {
        tcp: to.to_vec(),
        greet: Some("SSH-2.0-dropbear\r\n".to_owned()),
        ..Serve::default()
    })?;
    let (kubelet, pod) = (lab.kubelet("w1"), lab.pod("pod-b"));
    let listens = |workload: &Workload, to, timeout_ms| -> Result<Outcome> {
        // An empty piece sends nothing, and waits for data.
        let connect = Connect {
            piece: vec![String::new()],
            timeout_ms,
            ..Connect::to(to)
        };
        Ok(workload.connect_with(connect)?.outcome)
    };
    for (guard, hook) in [("cp1", "cgroup/egress"), ("w1", "tc/egress")] {
        // What a pod receives leaves w1 through the pod's interface.
        let workload = if guard == "cp1" { &kubelet } else { pod };
        for to in to {
            let outcome = listens(workload, to, LONG_PATIENCE)?;
            ensure!(outcome == Outcome::Answered, "twin: {to}: {outcome}");
        }
        let agent = Agent::start(&lab, guard, &policy())?;
        for to in to {
            let outcome = listens(workload, to, PATIENCE)?;
            ensure!(outcome == Outcome::Timeout, "{guard}, {to}: {outcome}");
        }
        agent.event(|event| event.reason == "NotTls" && event.hook == hook)?;
    }
    Ok(())
}

#[test]
fn the_lock_can_be_tried_in_dry_run_alone() -> Result<()> {
    let lab = Lab::builder().build()?;
    let _apiserver = echo(&lab.apiserver(), &CP1.both(port::APISERVER))?;
    let to = CP1.at(port::APISERVER);
    let policy = PolicyText {
        more: "  tlsLock: DryRun\n".to_owned(),
        ..policy()
    };
    let agents = Agent::on_both(&lab, &policy)?;
    let plaintext = b"GET / HTTP/1.1\r\n\r\n";
    for workload in [&lab.kubelet("w1"), lab.pod("pod-b"), &lab.scheduler()] {
        let outcome = ask(workload, to, &[plaintext])?;
        ensure!(
            outcome == Outcome::Answered,
            "{}: {outcome}",
            workload.party().name
        );
    }
    for agent in &agents {
        agent.event(|event| event.reason == "NotTls" && event.verdict == "wouldDeny")?;
        let (dropped, reported) = agent.denied("NotTls")?;
        ensure!(
            dropped == 0 && reported > 0,
            "{}: {dropped}, {reported}",
            agent.node()
        );
    }
    // Everything else is enforced.
    let outcome = lab.pod("pod-b").connect(CP1.at(port::ETCD_CLIENT))?;
    ensure!(outcome != Outcome::Connected, "a pod to etcd: {outcome}");
    for agent in &agents {
        agent.replace_policy(&lab, &self::policy())?;
    }
    let outcome = say(&lab.kubelet("w1"), to, &[plaintext])?;
    ensure!(outcome == Outcome::Timeout, "enforced: {outcome}");
    Ok(())
}

#[test]
fn real_programs_speak_tls_and_others_are_cut_off() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().build()?;
    let (kubelet, pod) = (lab.kubelet("w1"), lab.pod("pod-b"));
    let plain = |workload: &Workload, port: u16| {
        workload.run(
            "curl",
            ["-s", "-m", "1", &format!("http://{}/", CP1.at(port))],
        )
    };
    for workload in [&kubelet, pod] {
        let ran = plain(workload, port::APISERVER)?;
        ensure!(
            ran.stdout.contains("400"),
            "twin: nginx answers plain HTTP: {ran}"
        );
    }
    let agents = Agent::on_both(&lab, &policy())?;
    for workload in [&kubelet, pod] {
        let url = format!("https://{}/", CP1.at(port::APISERVER));
        let ran = workload.run("curl", ["-sk", "-m", "2", &url])?;
        ensure!(ran.stdout.contains("apiserver") || ran.ok(), "{ran}");
        let ran = plain(workload, port::APISERVER)?;
        ensure!(ran.stdout.is_empty() && !ran.ok(), "plain HTTP: {ran}");
    }
    let client = lab.apiserver();
    for (client, version, port) in [
        (&kubelet, "-tls1_2", port::APISERVER),
        (&client, "-tls1_2", port::ETCD_CLIENT),
        (&client, "-tls1_3", port::ETCD_CLIENT),
    ] {
        let at = CP1.at(port);
        let line = format!("echo | openssl s_client {version} -connect {at} 2>&1");
        let ran = client.run("sh", ["-c", &line])?;
        ensure!(ran.stdout.contains("BEGIN CERTIFICATE"), "{version}: {ran}");
    }
    let ran = plain(&client, port::ETCD_CLIENT)?;
    ensure!(!ran.ok(), "plain HTTP to etcd: {ran}");
    let mut cut = 0;
    for agent in &agents {
        agent.event(|event| event.reason == "NotTls")?;
        let status = agent.status()?;
        let packets = status["cutPackets"].as_u64().context("no cutPackets")?;
        let shown = agent.command(&["status"])?.checked()?.stdout;
        let is_shown = shown.contains("packets of connections that a TLS lock has cut off");
        ensure!(is_shown == (packets > 0), "{packets}: {shown}");
        cut += packets;
    }
    // Retransmissions are not counted as denials of their own.
    ensure!(cut > 0, "nothing was sent again");
    Ok(())
}

/// Once the server has the ClientHello, verdicts are kept as on any other path.
#[test]
fn streams_that_passed_are_not_checked_again() -> Result<()> {
    let lab = Lab::builder().build()?;
    let _apiserver = echo(&lab.apiserver(), &CP1.both(port::APISERVER))?;
    let agent = Agent::start(&lab, "cp1", &policy())?;
    let kept = || -> Result<u64> {
        let status = agent.status()?;
        Ok(status["keptVerdicts"].as_u64().unwrap_or_default())
    };
    let before = kept()?;
    let report = lab.scheduler().transfer(CP1.at(port::APISERVER), 4 << 20)?;
    ensure!(report.count == 4 << 20, "{report:?}");
    let after = kept()?;
    // One for each direction at both sockets, and a few more in case a cgroup comes or goes
    // meanwhile. If kept verdicts were never found again, there would be one for each segment.
    ensure!(
        (1..=16).contains(&(after - before)),
        "{before} verdicts kept before, {after} after"
    );
    Ok(())
}
