//! The lock `tls: Required`: on such a path, what does not begin with a ClientHello gets nowhere. Each
//! denial is shown to work without a policy first, by the same process on the same connection.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use enforcer_tests::attempt::Server;
use enforcer_tests::packet::{CLIENT_HELLO, to_hex};
use enforcer_tests::plan::{CP1, LOOPBACK, POD_B, SERVICE, W1, port};
use enforcer_tests::probe::{Connect, Serve};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Place};

/// How long an answer may take, in milliseconds: on one machine, those that come take less than one.
const PATIENCE: u64 = 250;

/// What is no TLS, though some of it begins like it.
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

fn say(place: &Place, to: SocketAddr, pieces: &[&[u8]]) -> Result<Outcome> {
    let connect = Connect {
        piece: pieces.iter().map(|piece| to_hex(piece)).collect(),
        pause_ms: 2,
        timeout_ms: PATIENCE,
        ..Connect::to(to)
    };
    Ok(place.connect_with(connect)?.outcome)
}

/// An echo server as a component: whoever gets an answer has got through with his first bytes.
fn echo(place: &Place, addresses: &[SocketAddr]) -> Result<Server> {
    place.serve(Serve {
        tcp: addresses.to_vec(),
        // No TLS server says anything before.
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

/// A way of one connection, and who has to cut it off.
struct Way<'a> {
    name: &'static str,
    from: &'a Place,
    to: Vec<SocketAddr>,
    /// The node whose agent is alone there.
    guard: &'static str,
    hook: &'static str,
    server: &'a Server,
}

#[test]
fn plaintext_gets_nowhere_on_any_way() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut addresses = CP1.both(port::APISERVER).to_vec();
    addresses.extend(LOOPBACK.both(port::APISERVER));
    let apiserver = echo(&lab.apiserver(), &addresses)?;
    let kubelet = echo(&lab.kubelet("w1"), &W1.both(port::KUBELET))?;
    let webhook = echo(lab.pod("pod-b"), &POD_B.party.both(8443))?;
    let (near_pod, far_pod) = (lab.pod("pod-a").clone(), lab.pod("pod-b").clone());
    let (scheduler, far_kubelet, client) = (lab.scheduler(), lab.kubelet("w1"), lab.apiserver());
    let way = |name, from, to, guard, hook, server| Way {
        name,
        from,
        to,
        guard,
        hook,
        server,
    };
    let to_apiserver = CP1.both(port::APISERVER).to_vec();
    let ways = [
        way(
            "over lo",
            &scheduler,
            addresses.clone(),
            "cp1",
            "cgroup/egress",
            &apiserver,
        ),
        way(
            "from another node",
            &far_kubelet,
            to_apiserver.clone(),
            "cp1",
            "cgroup/ingress",
            &apiserver,
        ),
        way(
            "to another node",
            &client,
            W1.both(port::KUBELET).to_vec(),
            "cp1",
            "cgroup/egress",
            &kubelet,
        ),
        way(
            "from a pod of the node",
            &near_pod,
            to_apiserver.clone(),
            "cp1",
            "cgroup/ingress",
            &apiserver,
        ),
        way(
            "from a pod, forwarded",
            &far_pod,
            to_apiserver,
            "w1",
            "tc/ingress",
            &apiserver,
        ),
        way(
            "from a pod, through a service",
            &far_pod,
            SERVICE.both(443).to_vec(),
            "w1",
            "tc/ingress",
            &apiserver,
        ),
        way(
            "to a pod, forwarded",
            &client,
            POD_B.party.both(8443).to_vec(),
            "w1",
            "tc/ingress",
            &webhook,
        ),
    ];
    for Way { name, from, to, .. } in &ways {
        for to in to {
            for (what, bytes) in plaintexts() {
                let outcome = say(from, *to, &[&bytes])?;
                ensure!(
                    outcome == Outcome::Answered,
                    "twin: {name}, {what} to {to}: {outcome}"
                );
            }
        }
    }
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(&lab, guard, &policy())?;
        for way in ways.iter().filter(|way| way.guard == guard) {
            for to in &way.to {
                try_way(&agent, way, *to)?;
            }
        }
    }
    Ok(())
}

fn try_way(agent: &Agent, way: &Way<'_>, to: SocketAddr) -> Result<()> {
    let Way {
        name,
        from,
        server,
        hook,
        ..
    } = way;
    let hello = CLIENT_HELLO;
    let splits: Vec<Vec<&[u8]>> = vec![
        vec![&hello],
        vec![&hello[..1], &hello[1..]],
        vec![&hello[..5], &hello[5..10], &hello[10..]],
        hello.chunks(1).collect(),
    ];
    for pieces in &splits {
        let outcome = say(from, to, pieces)?;
        ensure!(
            outcome == Outcome::Answered,
            "{name}, a ClientHello in {} pieces to {to}: {outcome}",
            pieces.len()
        );
    }
    let (before, _) = agent.denied("NotTls")?;
    let mut tried = plaintexts();
    if to != way.to[0] {
        tried.truncate(1);
    }
    // A closed connection goes on sending what it could not; after the agent is gone, that arrives.
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
