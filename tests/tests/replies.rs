//! Replies: the memory of UDP requests opens no guarded port, and what was let in through an
//! address translation is answered under "drop all other connectivity".

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::craft::Crafted;
use enforcer_tests::plan::{CP1, NODE_LOCAL_DNS, OUT, POD_A, POD_B, POD_GATEWAY_MAC, VIP, port};
use enforcer_tests::probe::{Connect, Serve, Udp};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, cgroup, net};

const TUNNEL: u16 = 4789;
const WIREGUARD: u16 = 51820;
/// The port of an accomplice that receives requests and answers them.
const ACCOMPLICE: u16 = 5_300;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const TUNNEL_MAC: [u8; 6] = [2, 0x99, 0, 0, 0, 2];
const TUNNEL_ID: u8 = 42;

/// A tunnel end on cp1, and a server that records what arrives at another guarded port.
fn open_tunnel(lab: &Lab) -> Result<()> {
    let mac = TUNNEL_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let host = lab.host("cp1").namespace();
    net::ip(
        Some(host.name()),
        &format!(
            "link add vx0 address {mac} type vxlan id {TUNNEL_ID} dstport {TUNNEL} local {} nolearning\n\
             link set vx0 up\n",
            CP1.v4
        ),
    )?;
    host.set_sysctls(&[
        ("ipv4/conf/vx0/rp_filter", "0"),
        // Translations are forgotten after a second instead of half a minute.
        ("netfilter/nf_conntrack_udp_timeout", "1"),
        ("netfilter/nf_conntrack_udp_timeout_stream", "1"),
    ])
}

/// The packet that comes out of the tunnel if it is decapsulated.
fn in_tunnel(mark: u16) -> Vec<u8> {
    let inner = Crafted::tcp(POD_B.party.at(49_000), CP1.at(port::ECHO), mark, SYN, b"");
    let header = [8, 0, 0, 0, 0, 0, TUNNEL_ID, 0];
    [&header[..], &inner.frame([2; 6], TUNNEL_MAC)].concat()
}

/// A datagram through a raw socket, with an arbitrary source address.
fn raw(from: &Workload, (source, to): (SocketAddr, SocketAddr), data: &[u8]) -> Result<()> {
    let packet = Crafted::udp(source, to, 1, data).packet();
    from.raw_bytes(&[packet]).map(drop)
}

/// How an accomplice answers to a port.
struct Answer<'a> {
    name: &'static str,
    from: &'a Workload,
    source: SocketAddr,
    hook: &'static str,
}

/// A remembered request makes its answer a reply, but lifts no denial.
#[test]
fn a_udp_request_opens_no_guarded_port() -> Result<()> {
    let lab = Lab::builder().build()?;
    open_tunnel(&lab)?;
    lab.masquerade_pods()?;
    let word = |mark: u16| format!("word-{mark}");
    let guarded = lab.daemon("cp1", "wireguard").serve(Serve {
        udp: vec![CP1.at(WIREGUARD)],
        ..Serve::default()
    })?;
    let (host, out) = (lab.hostnet("cp1"), lab.neighbour());
    let dns = SocketAddr::new(NODE_LOCAL_DNS.into(), port::DNS);
    let answers = [
        Answer {
            name: "over lo, from node-local DNS",
            from: &host,
            source: dns,
            hook: "cgroup/egress",
        },
        Answer {
            name: "from the neighbour",
            from: &out,
            source: OUT.at(port::DNS),
            hook: "tc/ingress",
        },
    ];
    let unpacked = |mark: u16| {
        Arrivals::matching(
            &lab.login("cp1"),
            &format!("unpacked-{mark}"),
            &format!("ip id {mark}"),
        )
    };
    // Sends a request from the guarded port of the node's own address, and waits for the answer.
    let tried = |answer: &Answer<'_>, to: u16, mark: u16| -> Result<bool> {
        let arrivals = unpacked(mark)?;
        raw(&host, (CP1.at(to), answer.source), b"question")?;
        let text = word(mark);
        let data = if to == TUNNEL {
            in_tunnel(mark)
        } else {
            text.clone().into_bytes()
        };
        raw(answer.from, (answer.source, CP1.at(to)), &data)?;
        if to == TUNNEL {
            // Over lo, it is decapsulated before the call returns; over the wire, soon after.
            thread::sleep(Duration::from_millis(50));
            return Ok(arrivals.so_far()? > 0);
        }
        Ok(guarded.hears(&text, Duration::from_millis(150)))
    };
    let mut mark = 600;
    for answer in &answers {
        for to in [TUNNEL, WIREGUARD] {
            mark += 1;
            ensure!(tried(answer, to, mark)?, "twin: {} to {to}", answer.name);
        }
    }
    lab.daemon("cp1", "wireguard").cgroup().id()?;
    let node_dns = cgroup::static_pod_slice("node-local-dns");
    let components = format!(
        "    mesh:\n      addresses: [{}]\n      cgroups: [\"/system.slice/wireguard.service\"]\n      ports: {{ wg: {WIREGUARD}/udp }}\n    \
         dns: {{ addresses: [{}] }}\n    node-local-dns: {{ cgroups: [\"/{node_dns}\"] }}\n",
        CP1.v4, OUT.v4
    );
    let path = "  paths:\n    - { name: mesh, from: [kubelet], to: \"mesh:wg\", because: test }\n";
    let policy = PolicyText {
        options: vec!["insecure-port", "node-local-dns"],
        inventory: Some(lab.inventory_yaml() + &components),
        more: path.to_owned(),
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let mut failures = Vec::new();
    for answer in &answers {
        for to in [TUNNEL, WIREGUARD] {
            mark += 1;
            let arrived = tried(answer, to, mark)?;
            let (ip, hook) = (Some(CP1.v4.to_string()), answer.hook);
            let reported = agent.event(|event| {
                event.hook == hook
                    && event.destination == ip
                    && event.port == Some(to)
                    && matches!(&event.reason[..], "NoPath" | "WrongProcess")
            });
            if arrived || reported.is_err() {
                let reported = reported.is_ok();
                failures.push(format!(
                    "{} to {to}: arrived {arrived}, reported {reported}",
                    answer.name
                ));
            }
        }
    }
    // A plain pod sends from the tunnel's port, and its source address is translated to its node's.
    let accomplice = lab.daemon("out", "dns").serve(Serve {
        udp: vec![OUT.at(ACCOMPLICE)],
        ..Serve::default()
    })?;
    let pod = lab.pod("pod-a");
    // As far as the agent can know, the reply would go to the node's tunnel, so the pod gets none.
    pod.udp_with(Udp {
        from: Some(POD_A.party.at(TUNNEL)),
        timeout_ms: 200,
        ..Udp::to(OUT.at(ACCOMPLICE))
    })?;
    let seen = accomplice.heard();
    let seen = seen.last().context("the accomplice heard nothing")?.from;
    ensure!(seen == CP1.at(TUNNEL), "translated to {seen}");
    for _ in 0..2 {
        // The translation is forgotten by now, but the request may still be remembered.
        thread::sleep(Duration::from_millis(1500));
        mark += 1;
        let arrivals = unpacked(mark)?;
        raw(&out, (OUT.at(ACCOMPLICE), CP1.at(TUNNEL)), &in_tunnel(mark))?;
        thread::sleep(Duration::from_millis(50));
        if arrivals.so_far()? > 0 {
            failures.push("by a pod and an accomplice: it is unpacked".to_owned());
        }
    }
    // Legitimate replies still pass.
    let asked = host.udp(OUT.at(ACCOMPLICE))?;
    ensure!(asked == Outcome::Answered, "an honest question: {asked}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// Ports of cp1 that lead to its pod and preserve the visitor's address: a NodePort with the
/// traffic policy `Local`, and one that works like a hostPort.
const NODE_PORT: u16 = port::NODE_PORT;
const HOST_PORT: u16 = 31_234;

fn translate(lab: &Lab) -> Result<()> {
    let pod = POD_A.party;
    let mut rules =
        "table inet visitors { chain pre { type nat hook prerouting priority -101;\n".to_owned();
    for (family, to) in [("ip", pod.at(port::ECHO)), ("ip6", pod.at6(port::ECHO))] {
        let local = if family == "ip" { "ipv4" } else { "ipv6" };
        rules.push_str(&format!(
            "fib daddr type local meta nfproto {local} meta l4proto {{ tcp, udp }} th dport {NODE_PORT} dnat {family} to {to}\n"
        ));
    }
    rules.push_str(&format!(
        "ip daddr {} tcp dport {HOST_PORT} dnat ip to {}\n}}\n}}",
        CP1.v4,
        pod.at(port::ECHO)
    ));
    net::nft(lab.host("cp1").namespace().name(), &rules)
}

#[test]
fn connections_translated_to_a_pod_are_answered() -> Result<()> {
    let lab = Lab::builder().build()?;
    translate(&lab)?;
    lab.claim(&CP1, &VIP)?;
    let pod = lab.pod("pod-a");
    let own = POD_A.party.both(port::ECHO).to_vec();
    let _server = pod.serve(Serve {
        tcp: own.clone(),
        udp: own,
        ..Serve::default()
    })?;
    let visitor = lab.neighbour();
    let tcp = [
        CP1.at(NODE_PORT),
        CP1.at6(NODE_PORT),
        CP1.at(HOST_PORT),
        // An address that the node has in addition to its own.
        VIP.at(NODE_PORT),
        VIP.at6(NODE_PORT),
    ];
    let udp = [CP1.at(NODE_PORT), CP1.at6(NODE_PORT), VIP.at(NODE_PORT)];
    let all = |when: &str| -> Result<Vec<String>> {
        let mut failures = Vec::new();
        for to in tcp {
            let report = visitor.transfer(to, 200_000)?;
            if report.count != 200_000 {
                failures.push(format!("{when}: TCP to {to}: {report:?}"));
            }
        }
        for to in udp {
            let outcome = visitor.udp_with(Udp {
                count: 3,
                ..Udp::to(to)
            })?;
            if outcome.outcome != Outcome::Answered {
                failures.push(format!("{when}: UDP to {to}: {outcome:?}"));
            }
        }
        Ok(failures)
    };
    let failures = all("twin")?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    let inventory = lab.inventory_yaml();
    let more = format!("\"{}\", \"{}\", \"{}\"]", CP1.v6, VIP.v4, VIP.v6);
    let declared = inventory.replace(&format!("\"{}\"]", CP1.v6), &more);
    ensure!(
        declared != inventory,
        "cp1's addresses are not where they were"
    );
    let policy = PolicyText {
        options: vec!["insecure-port", "node-ports"],
        inventory: Some(declared),
        other_traffic: "Drop",
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let mut failures = all("under Drop")?;
    // A client that never connected gets no reply, nor does one that connected from another port.
    let before = agent.denied("OtherTraffic")?.0;
    let asked: Vec<u16> = {
        let from = 50_000;
        let connected = visitor.connect_with(Connect {
            from: Some(OUT.at(from)),
            ..Connect::to(CP1.at(NODE_PORT))
        })?;
        if !connected.outcome.worked() {
            failures.push(format!("from a port of its own: {connected:?}"));
        }
        vec![from + 1, from + 2]
    };
    for (number, to) in asked.into_iter().enumerate() {
        let mark = 900 + number as u16;
        let arrivals = Arrivals::matching(
            &lab.login("out"),
            &format!("unasked-{mark}"),
            &format!("ip id {mark}"),
        )?;
        let from = POD_A.party.at(port::ECHO);
        let packets = [
            Crafted::tcp(from, OUT.at(to), mark, SYN_ACK, b""),
            Crafted::udp(from, OUT.at(to), mark, b"unasked"),
            Crafted::tcp(from, OUT.at(to), mark, SYN, b""),
        ];
        let frames = packets.map(|packet| packet.frame(pod.party().mac, POD_GATEWAY_MAC));
        pod.inject("eth0", &frames)?;
        thread::sleep(Duration::from_millis(100));
        let arrived = arrivals.so_far()?;
        if arrived > 0 {
            failures.push(format!(
                "{arrived} of 3 unasked answers to port {to} arrive"
            ));
        }
    }
    agent.event(|event| {
        event.reason == "OtherTraffic" && event.destination == Some(OUT.v4.to_string())
    })?;
    let reported = agent.denied("OtherTraffic")?.0 - before;
    if reported < 6 {
        failures.push(format!("{reported} of 6 reported"));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// One datagram, and whether it is a reply to the request.
struct Datagram {
    name: &'static str,
    packet: fn(u16) -> Crafted,
    answers: bool,
}

/// A remembered request matches exactly its two endpoints.
#[test]
fn a_reply_must_match_both_ends_of_its_request() -> Result<()> {
    const ASKING: u16 = 40_001;
    let lab = Lab::builder().build()?;
    let host = lab.kubelet("cp1");
    let out = lab.neighbour();
    let datagram = |name, packet, answers| Datagram {
        name,
        packet,
        answers,
    };
    fn other(port: u16) -> SocketAddr {
        SocketAddr::new([10, 77, 0, 98].into(), port)
    }
    let dns = port::DNS;
    ensure!(dns == 53);
    let tried = [
        datagram(
            "another port asked",
            |mark| Crafted::udp(OUT.at(54), CP1.at(ASKING), mark, b"no"),
            false,
        ),
        datagram(
            "another port asking",
            |mark| Crafted::udp(OUT.at(53), CP1.at(ASKING + 1), mark, b"no"),
            false,
        ),
        datagram(
            "another address asked",
            |mark| Crafted::udp(other(53), CP1.at(ASKING), mark, b"no"),
            false,
        ),
        datagram(
            "another address asking",
            |mark| Crafted::udp(OUT.at(53), VIP.at(ASKING), mark, b"no"),
            false,
        ),
        datagram(
            "both ports the other way",
            |mark| Crafted::udp(OUT.at(ASKING), CP1.at(53), mark, b"no"),
            false,
        ),
        datagram(
            "IPv6",
            |mark| Crafted::udp(OUT.at6(53), CP1.at6(ASKING), mark, b"no"),
            false,
        ),
        datagram(
            "TCP",
            |mark| Crafted::tcp(OUT.at(53), CP1.at(ASKING), mark, SYN, b""),
            false,
        ),
        datagram(
            "the answer itself",
            |mark| Crafted::udp(OUT.at(53), CP1.at(ASKING), mark, b"yes"),
            true,
        ),
        datagram(
            "the answer, in fragments",
            |mark| {
                let whole = Crafted::udp(OUT.at(53), CP1.at(ASKING), mark, b"0123456789abcdef");
                whole.part(0, &whole.payload, false)
            },
            true,
        ),
    ];
    lab.claim(&CP1, &VIP)?;
    let all = |from: u16| -> Result<Vec<bool>> {
        let numbered = tried.iter().zip(from..);
        let mut arrived = Vec::new();
        for (datagram, mark) in numbered {
            let arrivals = [format!("ip id {mark}"), format!("ip6 flowlabel {mark}")];
            let cp1 = lab.login("cp1");
            let counted = arrivals.iter().zip(0..).map(|(what, number)| {
                Arrivals::matching(&cp1, &format!("answer-{mark}-{number}"), what)
            });
            let counted = counted.collect::<Result<Vec<_>>>()?;
            out.inject("eth0", &[(datagram.packet)(mark).frame(OUT.mac, CP1.mac)])?;
            thread::sleep(Duration::from_millis(20));
            let so_far: Result<Vec<u64>> = counted.iter().map(Arrivals::so_far).collect();
            arrived.push(so_far?.iter().sum::<u64>() > 0);
        }
        Ok(arrived)
    };
    let twin = all(2_000)?;
    ensure!(twin.iter().all(|arrived| *arrived), "twin: {twin:?}");
    let policy = PolicyText {
        other_traffic: "Drop",
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let early = all(2_100)?;
    ensure!(
        early.iter().all(|arrived| !arrived),
        "before anybody asked: {early:?}"
    );
    raw(&host, (CP1.at(ASKING), OUT.at(dns)), b"question")?;
    let answers = all(2_200)?;
    let mut failures = Vec::new();
    for (datagram, arrived) in tried.iter().zip(answers) {
        if arrived != datagram.answers {
            failures.push(format!("{}: arrived: {arrived}", datagram.name));
        }
    }
    agent.event(|event| event.reason == "OtherTraffic" && event.hook == "tc/ingress")?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// What is remembered of a visitor allows the pod to answer it, and nothing else; and it ends with
/// the visitor's path.
#[test]
fn only_a_real_visitor_is_answered() -> Result<()> {
    const VISITOR: u16 = 50_100;
    let lab = Lab::builder().build()?;
    translate(&lab)?;
    let pod = lab.pod("pod-a");
    let _server = pod.serve(Serve {
        tcp: POD_A.party.both(port::ECHO).to_vec(),
        udp: POD_A.party.both(port::ECHO).to_vec(),
        ..Serve::default()
    })?;
    let own = POD_A.party;
    let (echo, other) = (port::ECHO, port::ECHO + 1);
    let visitor = OUT.at(VISITOR);
    let stranger = SocketAddr::new([10, 77, 0, 98].into(), VISITOR);
    let ack = 0x10;
    let packets: [(&str, Crafted, bool); 9] = [
        (
            "a segment of the connection",
            Crafted::tcp(own.at(echo), visitor, 0, ack, b""),
            true,
        ),
        (
            "its end",
            Crafted::tcp(own.at(echo), visitor, 0, 0x14, b""),
            true,
        ),
        (
            "a connection to the visitor",
            Crafted::tcp(own.at(echo), visitor, 0, SYN, b""),
            false,
        ),
        (
            "from another port",
            Crafted::tcp(own.at(other), visitor, 0, ack, b""),
            false,
        ),
        (
            "to another port",
            Crafted::tcp(own.at(echo), OUT.at(VISITOR + 1), 0, ack, b""),
            false,
        ),
        (
            "to somebody else",
            Crafted::tcp(own.at(echo), stranger, 0, ack, b""),
            false,
        ),
        (
            "by another protocol",
            Crafted::udp(own.at(echo), visitor, 0, b"no"),
            false,
        ),
        (
            "over IPv6",
            Crafted::tcp(own.at6(echo), OUT.at6(VISITOR), 0, ack, b""),
            false,
        ),
        (
            "from another pod's address",
            Crafted::tcp(POD_B.party.at(echo), visitor, 0, ack, b""),
            false,
        ),
    ];
    let all = |first: u16| -> Result<Vec<bool>> {
        let mut passed = Vec::new();
        for ((_, packet, _), mark) in packets.iter().zip(first..) {
            // Conntrack gives some of them other addresses, so they are identified by their mark.
            let (what, kind) = (format!("ip id {mark}"), format!("ip6 flowlabel {mark}"));
            let cp1 = lab.login("cp1");
            let counted = [what, kind];
            let counted = counted.iter().zip(0..).map(|(what, number)| {
                let name = format!("visitor-{mark}-{number}");
                Arrivals::on_device(&cp1, "cali-pod-a", &name, what)
            });
            let counted = counted.collect::<Result<Vec<_>>>()?;
            let marked = Crafted {
                mark,
                ..packet.clone()
            };
            pod.inject("eth0", &[marked.frame(own.mac, POD_GATEWAY_MAC)])?;
            thread::sleep(Duration::from_millis(20));
            let so_far: Result<Vec<u64>> = counted.iter().map(Arrivals::so_far).collect();
            passed.push(so_far?.iter().sum::<u64>() > 0);
        }
        Ok(passed)
    };
    let twin = all(3_000)?;
    ensure!(twin.iter().all(|passed| *passed), "twin: {twin:?}");
    let policy = |options| PolicyText {
        options,
        other_traffic: "Drop",
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy(vec!["insecure-port", "node-ports"]))?;
    let early = all(3_100)?;
    ensure!(
        early.iter().all(|passed| !passed),
        "before anybody came: {early:?}"
    );
    let visit = lab.neighbour().connect_with(Connect {
        from: Some(visitor),
        send: Some("hello".to_owned()),
        ..Connect::to(CP1.at(NODE_PORT))
    })?;
    ensure!(visit.outcome == Outcome::Answered, "{visit:?}");
    let mut failures = Vec::new();
    for ((name, _, wanted), passed) in packets.iter().zip(all(3_200)?) {
        if passed != *wanted {
            failures.push(format!("{name}: passed: {passed}"));
        }
    }
    agent.replace_policy(&lab, &policy(vec!["insecure-port"]))?;
    let late = all(3_300)?;
    if late.contains(&true) {
        failures.push(format!("without its path: {late:?}"));
    }
    agent.event(|event| event.reason == "OtherTraffic" && event.subject.name == "cali-pod-a")?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}
