//! The TLS check of `tls: Required` checks what the application will read, and nothing else: not
//! urgent bytes, which the application never gets, not what multipath TCP discards, and not what
//! arrived on another connection.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::attempt::Server;
use enforcer_tests::craft::{Crafted, protocol, tcp};
use enforcer_tests::net;
use enforcer_tests::packet::{CLIENT_HELLO, to_hex};
use enforcer_tests::plan::{CP1, POD_A, POD_B, POD_GATEWAY_MAC, W1, port};
use enforcer_tests::probe::{Connect, Probe, Serve, Talk};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload};

/// How much of a ClientHello the lock examines.
const LOOKED_AT: usize = 11;
const URGENT: u8 = 0x30;
const PUSH: u8 = 0x18;
const SYN: u8 = 0x02;
/// How long an expected answer may take.
const SOON: Duration = Duration::from_secs(5);

fn policy() -> PolicyText {
    PolicyText {
        other_traffic: "Drop",
        ..PolicyText::default()
    }
}

/// A client that may use TLS to cp1's apiserver, and the node whose agent checks it.
struct Route {
    name: &'static str,
    workload: Workload,
    guard: &'static str,
    /// The interface, the source and the next hop of a frame, for clients that craft their own
    /// segments.
    interface: &'static str,
    own: SocketAddr,
    macs: [[u8; 6]; 2],
}

fn routes(lab: &Lab) -> [Route; 5] {
    let route = |name, workload: &Workload, guard, interface, own, macs| Route {
        name,
        workload: workload.clone(),
        guard,
        interface,
        own,
        macs,
    };
    let (pod_a, pod_b) = (POD_A.party, POD_B.party);
    let (scheduler, kubelet) = (lab.scheduler(), lab.kubelet("w1"));
    let through = [pod_b.mac, POD_GATEWAY_MAC];
    [
        route("over lo", &scheduler, "cp1", "lo", CP1.at(0), [[0; 6]; 2]),
        route(
            "from a pod of the node",
            lab.pod("pod-a"),
            "cp1",
            "eth0",
            pod_a.at(0),
            [pod_a.mac, POD_GATEWAY_MAC],
        ),
        route(
            "from another node",
            &kubelet,
            "cp1",
            "eth0",
            W1.at(0),
            [W1.mac, CP1.mac],
        ),
        route(
            "to another node",
            &kubelet,
            "w1",
            "eth0",
            W1.at(0),
            [W1.mac, CP1.mac],
        ),
        route(
            "from a pod, forwarded",
            lab.pod("pod-b"),
            "w1",
            "eth0",
            pod_b.at(0),
            through,
        ),
    ]
}

fn apiserver(lab: &Lab) -> Result<Server> {
    lab.apiserver().serve(Serve {
        tcp: CP1.both(port::APISERVER).to_vec(),
        ..Serve::default()
    })
}

fn heard(server: &Server, mark: &str) -> bool {
    let has = |heard: &enforcer_tests::probe::Heard| {
        heard
            .data
            .as_deref()
            .is_some_and(|data| data.contains(mark))
    };
    server.wait_for(has, SOON).is_some()
}

fn heard_already(server: &Server, mark: &str) -> bool {
    let all = server.heard();
    let mut ran = all.iter().filter_map(|heard| heard.data.as_deref());
    ran.any(|data| data.contains(mark))
}

/// Tries an attack on all routes: without a policy, where the server receives what it must not, and
/// with one.
fn is_locked(
    lab: &Lab,
    server: &Server,
    reason: &str,
    attempt: impl Fn(&Route, SocketAddr, &str) -> Result<()>,
) -> Result<()> {
    let routes = routes(lab);
    let mut number = 0;
    for route in &routes {
        for to in CP1.both(port::APISERVER) {
            let mark = format!("twin of {} to {to}.", route.name);
            attempt(route, to, &mark).with_context(|| mark.clone())?;
            ensure!(heard(server, &mark), "{mark} was not heard");
        }
    }
    let mut failures = Vec::new();
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(lab, guard, &policy())?;
        for route in routes.iter().filter(|route| route.guard == guard) {
            for to in CP1.both(port::APISERVER) {
                number += 1;
                let mark = format!("marked {number} {} to {to}.", route.name);
                let (before, _) = agent.denied(reason)?;
                attempt(route, to, &mark).with_context(|| mark.clone())?;
                let (after, _) = agent.denied(reason)?;
                if heard_already(server, &mark) || after == before {
                    let reported = after - before;
                    let heard = heard_already(server, &mark);
                    failures.push(format!("{mark} heard: {heard}, reported: {reported}"));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn urgent_bytes_are_not_what_the_application_reads() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = apiserver(&lab)?;
    is_locked(&lab, &server, "NotTls", |route, to, mark| {
        route.workload.connect_with(Connect {
            urgent: CLIENT_HELLO[..LOOKED_AT]
                .iter()
                .map(|byte| to_hex(&[*byte]))
                .collect(),
            piece: vec![to_hex(mark.as_bytes())],
            pause_ms: 5,
            timeout_ms: 250,
            ..Connect::to(to)
        })?;
        Ok(())
    })?;
    lab.close()
}

/// One urgent byte among others: an application reads the bytes around it as adjacent.
#[test]
fn an_urgent_byte_does_not_count_as_data() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = apiserver(&lab)?;
    is_locked(&lab, &server, "NotTls", |route, to, mark| {
        // The data that is read begins with the second byte.
        route.workload.connect_with(Connect {
            urgent: vec![to_hex(&CLIENT_HELLO[..1])],
            piece: vec![to_hex(&[&CLIENT_HELLO[1..], mark.as_bytes()].concat())],
            pause_ms: 5,
            timeout_ms: 250,
            ..Connect::to(to)
        })?;
        Ok(())
    })?;
    lab.close()
}

fn talk(route: &Route, to: SocketAddr, number: u16) -> Talk {
    let address = match (to, route.interface) {
        (SocketAddr::V4(_), _) => route.own.ip(),
        (SocketAddr::V6(_), _) => route.workload.party().v6.into(),
    };
    Talk {
        timeout_ms: 250,
        ..Talk::to(
            to,
            SocketAddr::new(address, 47_000 + number),
            route.interface,
            route.macs,
        )
    }
}

/// Empty segments whose urgent pointer lies ahead: the byte that arrives there next is never read,
/// although its own segment does not say so.
#[test]
fn an_urgent_pointer_ahead_of_its_segment_is_followed() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = apiserver(&lab)?;
    let number = std::cell::Cell::new(0);
    is_locked(&lab, &server, "NotTls", |route, to, mark| {
        number.set(number.get() + 1);
        let mut talk = talk(route, to, number.get());
        for (at, byte) in (0..).zip(&CLIENT_HELLO[..LOOKED_AT]) {
            talk = talk
                .segment(URGENT, 1, at, &[])
                .segment(PUSH, 0, at, &[*byte]);
        }
        talk.pause_ms = 2;
        let talk = talk.segment(PUSH, 0, LOOKED_AT as i32, mark.as_bytes());
        route.workload.probe(&Probe::Talk(talk))?;
        Ok(())
    })?;
    lab.close()
}

/// A segment of a ClientHello with an urgent pointer into it, from the first byte on.
#[test]
fn a_client_hello_with_an_urgent_pointer_is_refused() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = apiserver(&lab)?;
    let number = std::cell::Cell::new(100);
    is_locked(&lab, &server, "NotTls", |route, to, mark| {
        number.set(number.get() + 1);
        let data = [&CLIENT_HELLO[..], mark.as_bytes()].concat();
        // The third byte is removed from it.
        let talk = talk(route, to, number.get()).segment(URGENT | PUSH, 3, 0, &data);
        route.workload.probe(&Probe::Talk(talk))?;
        Ok(())
    })?;
    lab.close()
}

/// A multipath peer discards bytes without a mapping, and no observer can find out which bytes it
/// reads. So the connection falls back to TCP.
#[test]
fn multipath_tcp_falls_back_where_tls_is_required() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = lab.apiserver().serve(Serve {
        tcp: CP1.both(port::APISERVER).to_vec(),
        multipath: true,
        ..Serve::default()
    })?;
    let routes = routes(&lab);
    // A kernel that fell back once would not try again for an hour; older ones have no such memory.
    let forgets = [("mptcp/blackhole_timeout", "0")];
    for route in &routes {
        let _ = route.workload.namespace().set_sysctls(&forgets);
    }
    let open = |route: &Route, to, data: &[u8], timeout_ms| {
        let outcome = route.workload.connect_with(Connect {
            multipath: true,
            piece: vec![to_hex(data)],
            timeout_ms,
            ..Connect::to(to)
        });
        outcome.map(|report| report.outcome)
    };
    for route in &routes {
        for to in CP1.both(port::APISERVER) {
            let outcome = open(route, to, b"twin: plaintext", 5000)?;
            ensure!(
                outcome == Outcome::Answered,
                "twin: {} to {to}: {outcome}",
                route.name
            );
        }
    }
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(&lab, guard, &policy())?;
        for route in routes.iter().filter(|route| route.guard == guard) {
            let to = CP1.at(port::APISERVER);
            let (before, _) = agent.denied("MultipathTls")?;
            let outcome = open(route, to, &CLIENT_HELLO, 30_000)?;
            let (after, _) = agent.denied("MultipathTls")?;
            ensure!(
                after > before,
                "{}: {outcome}, and nothing is reported",
                route.name
            );
            ensure!(outcome == Outcome::Answered, "{}: {outcome}", route.name);
        }
    }
    drop(server);
    lab.close()
}

/// A lock could not follow a SYN that joins an existing connection.
#[test]
fn joining_a_multipath_connection_is_refused_where_tls_is_required() -> Result<()> {
    let lab = Lab::builder().build()?;
    let join = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    let capable = [30, 4, 0x01, 0x01];
    let to = CP1.at(port::APISERVER);
    let counted = |mark: u16| {
        let name = format!("join-{mark}");
        let expression = format!("ip id {mark}");
        enforcer_tests::arrivals::Arrivals::matching(&lab.login("cp1"), &name, &expression)
    };
    let send = |mark: u16, options: &[u8]| -> Result<_> {
        let arrivals = counted(mark)?;
        let from = POD_B.party.at(48_000 + mark);
        let segment = tcp(from, to, SYN, options, b"");
        let packet = Crafted::carrying(from.ip(), to.ip(), mark, protocol::TCP, segment);
        let pod = lab.pod("pod-b");
        pod.inject("eth0", &[packet.frame(pod.party().mac, POD_GATEWAY_MAC)])?;
        Ok(arrivals)
    };
    for (mark, options) in [(1, &join[..]), (2, &capable[..]), (3, &[][..])] {
        ensure!(send(mark, options)?.so_far()? == 1, "twin: {options:?}");
    }
    let agent = Agent::start(&lab, "w1", &policy())?;
    for (mark, options) in [(11, &join[..]), (12, &capable[..])] {
        let (before, _) = agent.denied("MultipathTls")?;
        let arrivals = send(mark, options)?;
        agent.event(|event| event.reason == "MultipathTls" && event.hook == "tc/ingress")?;
        let (after, _) = agent.denied("MultipathTls")?;
        ensure!(after == before + 1, "{options:?}: {before}, {after}");
        ensure!(arrivals.so_far()? == 0, "{options:?} arrives");
    }
    ensure!(send(13, &[])?.so_far()? == 1, "a plain SYN does not arrive");
    lab.close()
}

/// A verdict that is kept on a socket is about two complete endpoints, even if two addresses differ
/// in only their first four bytes.
#[test]
fn a_kept_verdict_does_not_apply_to_another_address() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (own, node) = ["w1", "cp1"]
        .map(|name| lab.host(name).namespace().name())
        .into();
    // cp1 has a second address, which ends like its first one.
    net::ip(Some(node), "addr add fd55::11/64 dev eth0 nodad\n")?;
    net::ip(Some(own), "route add fd55::/64 dev eth0\n")?;
    let second = SocketAddr::new("fd55::11".parse()?, port::APISERVER);
    let first = CP1.at6(port::APISERVER);
    let server = lab.apiserver().serve(Serve {
        tcp: vec![first, second],
        ..Serve::default()
    })?;
    let inventory = lab.inventory_yaml();
    let wanted = inventory.replace("\"fd77::11\"]", "\"fd77::11\", \"fd55::11\"]");
    ensure!(
        wanted != inventory,
        "cp1's addresses are not where they were"
    );
    let policy = PolicyText {
        inventory: Some(wanted),
        ..policy()
    };
    let kubelet = lab.kubelet("w1");
    let go_on = |from: u16, mark: &str| {
        kubelet.connect_with(Connect {
            from: Some(W1.at6(from)),
            first: Some(first),
            first_piece: Some(to_hex(&CLIENT_HELLO)),
            first_count: 3_000,
            piece: vec![to_hex(mark.as_bytes())],
            timeout_ms: 700,
            ..Connect::to(second)
        })
    };
    let report = go_on(48_500, "GET / twin")?;
    ensure!(report.outcome == Outcome::Answered, "twin: {report:?}");
    let agent = Agent::start(&lab, "w1", &policy)?;
    let report = go_on(48_501, "GET / marked")?;
    ensure!(report.outcome == Outcome::Timeout, "{report:?}");
    agent.event(|event| {
        event.reason == "NotTls" && event.destination.as_deref() == Some("fd55::11")
    })?;
    ensure!(
        !heard_already(&server, "GET / marked"),
        "the server has heard it"
    );
    lab.close()
}

/// What comes before the plaintext, and how the plaintext arrives.
type Sequence = fn(Talk, &[u8]) -> Talk;

/// Sequences of segments after which a server reads no ClientHello, although something similar was
/// seen.
fn sequences() -> Vec<(&'static str, Sequence)> {
    const HELLO: [u8; 16] = CLIENT_HELLO;
    const ACK: u8 = 0x10;
    vec![
        ("a ClientHello with a wrong checksum", |talk, plain| {
            talk.odd_segment(PUSH, 0, 0, &HELLO, "checksum")
                .segment(PUSH, 0, 0, plain)
        }),
        (
            "a ClientHello that acknowledges what was never sent",
            |talk, plain| {
                talk.odd_segment(PUSH, 0, 0, &HELLO, "acknowledgement")
                    .segment(PUSH, 0, 0, plain)
            },
        ),
        ("a ClientHello without ACK", |talk, plain| {
            talk.segment(0x08, 0, 0, &HELLO).segment(PUSH, 0, 0, plain)
        }),
        ("a ClientHello long before the first byte", |talk, plain| {
            talk.segment(PUSH, 0, -100_000, &HELLO)
                .segment(PUSH, 0, 0, plain)
        }),
        (
            "a ClientHello right before the first byte",
            |talk, plain| {
                talk.segment(PUSH, 0, -16, &HELLO)
                    .segment(PUSH, 0, 0, plain)
            },
        ),
        ("a ClientHello far beyond the window", |talk, plain| {
            talk.segment(PUSH, 0, 500_000_000, &HELLO)
                .segment(PUSH, 0, 0, plain)
        }),
        ("a ClientHello one byte late", |talk, plain| {
            talk.segment(PUSH, 0, 1, &HELLO)
                .segment(PUSH, 0, 0, &plain[..1])
                .segment(PUSH, 0, 17, plain)
        }),
        ("plaintext that begins one byte early", |talk, plain| {
            talk.segment(PUSH, 0, -1, &[b"x", plain].concat())
        }),
        ("plaintext byte by byte", |talk, plain| {
            (0..)
                .zip(plain)
                .fold(talk, |talk, (at, byte)| talk.segment(PUSH, 0, at, &[*byte]))
        }),
        ("plaintext from behind", |talk, plain| {
            let (first, rest) = plain.split_at(3);
            talk.segment(PUSH, 0, 3, rest).segment(PUSH, 0, 0, first)
        }),
        (
            "half a ClientHello, and plaintext over it",
            |talk, plain| {
                talk.segment(PUSH, 0, 0, &HELLO[..5])
                    .segment(PUSH, 0, 3, &[b"xx", plain].concat())
            },
        ),
        (
            "the second half of a ClientHello, and plaintext before it",
            |talk, plain| {
                talk.segment(PUSH, 0, 5, &HELLO[5..])
                    .segment(PUSH, 0, 0, &plain[..5])
                    .segment(PUSH, 0, 16, plain)
            },
        ),
        ("plaintext with FIN", |talk, plain| {
            talk.segment(0x19, 0, 0, plain)
        }),
        ("plaintext without PSH", |talk, plain| {
            talk.segment(ACK, 0, 0, plain)
        }),
        ("plaintext with ECE and CWR", |talk, plain| {
            talk.segment(0xd8, 0, 0, plain)
        }),
        (
            "an urgent pointer of nothing, and plaintext",
            |talk, plain| {
                talk.segment(URGENT, 0, 0, &[])
                    .segment(PUSH, 0, 0, &[b"x", plain].concat())
            },
        ),
        (
            "an urgent pointer far ahead, and plaintext",
            |talk, plain| {
                talk.segment(URGENT, 65_535, 0, &[])
                    .segment(PUSH, 0, 0, plain)
            },
        ),
        ("a ServerHello", |talk, plain| {
            let mut hello = HELLO;
            hello[5] = 2;
            talk.segment(PUSH, 0, 0, &[&hello[..], plain].concat())
        }),
        ("a ClientHello of SSL 3", |talk, plain| {
            let mut hello = HELLO;
            (hello[2], hello[10]) = (0, 0);
            talk.segment(PUSH, 0, 0, &[&hello[..], plain].concat())
        }),
        ("an alert", |talk, plain| {
            talk.segment(PUSH, 0, 0, &[&[21, 3, 1, 0, 2, 1, 0][..], plain].concat())
        }),
        ("a record that is too long", |talk, plain| {
            let mut hello = HELLO;
            hello[3] = 0x7f;
            talk.segment(PUSH, 0, 0, &[&hello[..], plain].concat())
        }),
        (
            "ten bytes of a ClientHello, and plaintext",
            |talk, plain| {
                talk.segment(PUSH, 0, 0, &HELLO[..10])
                    .segment(PUSH, 0, 10, plain)
            },
        ),
    ]
}

#[test]
fn discarded_segments_do_not_count_as_a_client_hello() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = apiserver(&lab)?;
    let routes = routes(&lab);
    let number = std::cell::Cell::new(200);
    let say = |route: &Route, to, sequence: Sequence, mark: &str| {
        number.set(number.get() + 1);
        let talk = sequence(talk(route, to, number.get()), mark.as_bytes());
        let timeout_ms = 150;
        route
            .workload
            .probe(&Probe::Talk(Talk { timeout_ms, ..talk }))
    };
    // It may also arrive byte by byte, in several pieces.
    let heard_all = |mark: &str| {
        let all = server.heard();
        let ran: String = all
            .iter()
            .filter_map(|heard| heard.data.as_deref())
            .collect();
        ran.contains(mark)
    };
    let sequences = sequences();
    for (at, (name, sequence)) in sequences.iter().enumerate() {
        let mark = format!("twin of sequence {at}.");
        say(&routes[4], CP1.at(port::APISERVER), *sequence, &mark)?;
        let deadline = std::time::Instant::now() + SOON;
        while !heard_all(&mark) {
            ensure!(
                std::time::Instant::now() < deadline,
                "twin: {name} was not heard"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let mut failures = Vec::new();
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(&lab, guard, &policy())?;
        for route in routes.iter().filter(|route| route.guard == guard) {
            for (at, (name, sequence)) in sequences.iter().enumerate() {
                let to = CP1.both(port::APISERVER)[at % 2];
                let mark = format!("marked {at} {}.", route.name);
                let (before, _) = agent.denied("NotTls")?;
                say(route, to, *sequence, &mark)?;
                let (after, _) = agent.denied("NotTls")?;
                if heard_all(&mark) || after == before {
                    let (heard, reported) = (heard_all(&mark), after - before);
                    failures.push(format!(
                        "{name}, {}: heard: {heard}, reported: {reported}",
                        route.name
                    ));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// A multipath TCP option is found after others, and not where the kernel itself would not look.
#[test]
fn multipath_options_are_read_as_the_kernel_reads_them() -> Result<()> {
    let lab = Lab::builder().build()?;
    let to = CP1.at(port::APISERVER);
    let multipath = [30, 4, 0x01, 0x01];
    let options: [(&str, Vec<u8>, bool); 9] = [
        ("behind padding", [&[1; 8][..], &multipath].concat(), true),
        (
            "behind a segment size",
            [&[2, 4, 5, 0xb4][..], &multipath].concat(),
            true,
        ),
        (
            "behind timestamps",
            [&[1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0][..], &multipath].concat(),
            true,
        ),
        ("at the very end", [&[1; 36][..], &multipath].concat(), true),
        (
            "behind an unknown option",
            [&[77, 4, 0, 0][..], &multipath].concat(),
            true,
        ),
        (
            "a join",
            [&[1; 4][..], &[30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
            true,
        ),
        (
            "behind the end of options",
            [&[0, 0, 0, 0][..], &multipath].concat(),
            false,
        ),
        (
            "behind an option of no length",
            [&[77, 0, 0, 0][..], &multipath].concat(),
            false,
        ),
        (
            "behind an option that is longer than all",
            [&[77, 40, 0, 0][..], &multipath].concat(),
            false,
        ),
    ];
    let send = |number: u16, options: &[u8]| -> Result<bool> {
        let name = format!("options-{number}");
        let expression = format!("ip id {number}");
        let arrivals =
            enforcer_tests::arrivals::Arrivals::matching(&lab.login("cp1"), &name, &expression)?;
        let from = POD_B.party.at(49_500 + number);
        let segment = tcp(from, to, SYN, options, b"");
        let packet = Crafted::carrying(from.ip(), to.ip(), number, protocol::TCP, segment);
        let pod = lab.pod("pod-b");
        pod.inject("eth0", &[packet.frame(pod.party().mac, POD_GATEWAY_MAC)])?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(arrivals.so_far()? > 0)
    };
    for ((name, options, _), number) in options.iter().zip(1..) {
        ensure!(send(number, options)?, "twin: {name}");
    }
    let agent = Agent::start(&lab, "w1", &policy())?;
    for ((name, options, is_one), number) in options.iter().zip(101..) {
        let (before, _) = agent.denied("MultipathTls")?;
        let arrived = send(number, options)?;
        let (after, _) = agent.denied("MultipathTls")?;
        ensure!(arrived != *is_one, "{name}: arrived: {arrived}");
        ensure!((after > before) == *is_one, "{name}: {before}, {after}");
    }
    lab.close()
}
