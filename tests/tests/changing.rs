//! Bytes that change in flight: a process can still write to memory that it shares with the kernel
//! after a hook has read it. What is judged must be what arrives.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::attempt::Server;
use enforcer_tests::craft::Crafted;
use enforcer_tests::packet::{CLIENT_HELLO, to_hex};
use enforcer_tests::plan::{CP1, LOOPBACK, OUT, POD_B, POD_GATEWAY_MAC, W1, port};
use enforcer_tests::probe::{FlipFrame, FlipPage, Probe, Serve, ZeroCopy};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Workload};

const SYN: u8 = 0x02;
/// How many frames are sent under the policy.
const FRAMES: u32 = 20_000;
/// How many are sent at a time without one, where a single arrival is enough.
const FEW: u32 = 200;
const CONNECTIONS: u32 = 400;
/// Where the last bytes of the destination's port and of its address are.
const PORT: usize = 37;
const PORT_V6: usize = 57;
const ADDRESS: usize = 33;

/// A frame, and the byte that makes it innocent with one value and not with the other.
struct Flipped {
    name: &'static str,
    interface: &'static str,
    frame: Vec<u8>,
    at: usize,
    innocent: u8,
    /// The nftables expressions that match the two.
    aimed: String,
    harmless: Option<String>,
}

fn flipped(
    name: &'static str,
    interface: &'static str,
    macs: [[u8; 6]; 2],
    (from, to, mark): (SocketAddr, SocketAddr, u16),
) -> Flipped {
    let packet = Crafted::tcp(from, to, mark, SYN, b"");
    let frame = packet.frame(macs[0], macs[1]);
    let (at, marked) = if to.is_ipv4() {
        (PORT, format!("ip id {mark}"))
    } else {
        (PORT_V6, format!("ip6 flowlabel {mark}"))
    };
    let innocent = frame[at] ^ 1;
    let port = to.port() ^ 1;
    Flipped {
        name,
        interface,
        at,
        innocent,
        frame,
        aimed: format!("{marked} tcp dport {}", to.port()),
        harmless: Some(format!("{marked} tcp dport {port}")),
    }
}

impl Flipped {
    fn send(&self, from: &Workload, count: u32) -> Result<()> {
        let report = from.probe(&Probe::FlipFrame(FlipFrame {
            interface: self.interface.to_owned(),
            frame: to_hex(&self.frame),
            at: self.at,
            to: self.innocent,
            count,
        }))?;
        ensure!(report.outcome.worked(), "{}: {report:?}", self.name);
        Ok(())
    }

    /// Without a policy, some arrive; with one, only those that may.
    fn is_held(
        &self,
        lab: &Lab,
        from: &Workload,
        guard: &str,
        (hook, reason): (&str, &str),
    ) -> Result<()> {
        let name = self.name;
        let cp1 = lab.login("cp1");
        let aimed = Arrivals::matching(&cp1, &format!("aimed-{name}"), &self.aimed)?;
        let count = |what: &String| Arrivals::matching(&cp1, &format!("harmless-{name}"), what);
        let harmless = self.harmless.as_ref().map(count).transpose()?;
        let so_far = || harmless.as_ref().map_or(Ok(0), Arrivals::so_far);
        for _ in 0..100 {
            if aimed.so_far()? > 0 {
                break;
            }
            self.send(from, FEW)?;
        }
        let before = aimed.so_far()?;
        ensure!(before > 0, "twin: none arrives");
        let harmless_before = so_far()?;
        let agent = Agent::start(lab, guard, &PolicyText::default())?;
        self.send(from, FRAMES)?;
        agent.event(|event| {
            event.reason == reason && event.hook == hook && event.verdict == "denied"
        })?;
        let arrived = aimed.so_far()? - before;
        ensure!(arrived == 0, "{arrived} of {FRAMES} arrive");
        let passed = harmless.is_none() || so_far()? > harmless_before;
        ensure!(passed, "nothing arrives at all");
        Ok(())
    }
}

#[test]
fn frames_are_judged_as_they_arrive() -> Result<()> {
    let lab = Lab::builder().build()?;
    // Frames on lo are delivered without a route, as if from a wire.
    let host = lab.host("cp1").namespace();
    host.set_sysctls(&[("ipv4/conf/all/route_localnet", "1")])?;
    let nobody = [[0; 6]; 2];
    let (etcd, insecure) = (port::ETCD_CLIENT, port::INSECURE);
    let uplink = [W1.mac, CP1.mac];
    let pod = [POD_B.party.mac, POD_GATEWAY_MAC];
    let from = 46_000;
    let on_lo = (lab.hostnet("cp1"), "cp1", ("tc/egress", "WrongProcess"));
    let by_uplink = (lab.hostnet("w1"), "w1", ("tc/egress", "NoPath"));
    let by_pod = (lab.pod("pod-b").clone(), "w1", ("tc/ingress", "NoPath"));
    let mut address = flipped(
        "address",
        "eth0",
        uplink,
        (W1.at(from), CP1.at(etcd), 7_005),
    );
    // The other address is not one that w1 guards.
    (address.at, address.innocent) = (ADDRESS, OUT.v4.octets()[3]);
    // The header's checksum is valid for only one of the addresses, so packets to the other are not
    // counted.
    address.harmless = None;
    let flips = [
        (
            flipped(
                "lo",
                "lo",
                nobody,
                (LOOPBACK.at(from), LOOPBACK.at(insecure), 7_001),
            ),
            &on_lo,
        ),
        (
            flipped(
                "lo-v6",
                "lo",
                nobody,
                (LOOPBACK.at6(from), LOOPBACK.at6(insecure), 7_002),
            ),
            &on_lo,
        ),
        (
            flipped("uplink", "eth0", uplink, (W1.at(from), CP1.at(etcd), 7_003)),
            &by_uplink,
        ),
        (
            flipped(
                "uplink-v6",
                "eth0",
                uplink,
                (W1.at6(from), CP1.at6(etcd), 7_004),
            ),
            &by_uplink,
        ),
        (address, &by_uplink),
        (
            flipped(
                "pod",
                "eth0",
                pod,
                (POD_B.party.at(from), CP1.at(etcd), 7_006),
            ),
            &by_pod,
        ),
        (
            flipped(
                "pod-v6",
                "eth0",
                pod,
                (POD_B.party.at6(from), CP1.at6(etcd), 7_007),
            ),
            &by_pod,
        ),
    ];
    let failures: Vec<String> = flips
        .iter()
        .filter_map(|(flip, (workload, guard, judged))| {
            let held = flip.is_held(&lab, workload, guard, *judged);
            held.err().map(|error| format!("{}: {error:#}", flip.name))
        })
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

/// A value of the first byte that turns a ClientHello into plaintext.
const PLAIN: u8 = b'G';

/// A client that may use TLS to the apiserver, and the node whose agent checks it.
struct Route {
    name: &'static str,
    workload: Workload,
    guard: &'static str,
}

fn pages(route: &Route, how: ZeroCopy, mark: &str, count: u32) -> Result<()> {
    let page = [&CLIENT_HELLO[..], mark.as_bytes()].concat();
    let report = route.workload.probe(&Probe::FlipPage(FlipPage {
        connect: CP1.at(port::APISERVER),
        page: to_hex(&page),
        to: PLAIN,
        count,
        method: how,
    }))?;
    ensure!(report.outcome.worked(), "{report:?}");
    Ok(())
}

/// How often a server received plaintext with a mark, and how often a ClientHello.
fn heard(server: &Server, mark: &str) -> (usize, usize) {
    let all = server.heard();
    let marked = all.iter().filter_map(|heard| heard.data.as_deref());
    let marked: Vec<&str> = marked.filter(|data| data.contains(mark)).collect();
    let begin = |with: u8| {
        let first = |data: &&&str| data.as_bytes().first() == Some(&with);
        marked.iter().filter(first).count()
    };
    (begin(PLAIN), begin(CLIENT_HELLO[0]))
}

#[test]
fn a_client_hello_cannot_change_after_its_check() -> Result<()> {
    let lab = Lab::builder().build()?;
    let server = lab.apiserver().serve(Serve {
        tcp: CP1.both(port::APISERVER).to_vec(),
        ..Serve::default()
    })?;
    let route = |name, workload: &Workload, guard| Route {
        name,
        workload: workload.clone(),
        guard,
    };
    let routes = [
        route("over lo", &lab.scheduler(), "cp1"),
        route("from a pod of the node", lab.pod("pod-a"), "cp1"),
        route("from a pod, forwarded", lab.pod("pod-b"), "w1"),
        route("to another node", &lab.kubelet("w1"), "w1"),
        route("from another node", &lab.kubelet("w1"), "cp1"),
    ];
    let hows = [ZeroCopy::File, ZeroCopy::Pipe, ZeroCopy::Memory];
    for (route, number) in routes.iter().zip(0..) {
        for how in hows {
            let mark = format!(" twin {number} {how:?}.");
            for _ in 0..20 {
                pages(route, how, &mark, FEW / 10)?;
                if server.hears_plaintext(&mark) {
                    break;
                }
            }
            let (plain, _) = heard(&server, &mark);
            ensure!(plain > 0, "twin: {}, {how:?}: no plaintext", route.name);
        }
    }
    let mut failures = Vec::new();
    for guard in ["cp1", "w1"] {
        let agent = Agent::start(&lab, guard, &PolicyText::default())?;
        for (route, number) in routes
            .iter()
            .zip(0..)
            .filter(|(route, _)| route.guard == guard)
        {
            for how in hows {
                let mark = format!(" marked {number} {how:?}.");
                let (before, _) = agent.denied("NotTls")?;
                pages(route, how, &mark, CONNECTIONS).with_context(|| route.name)?;
                let (after, _) = agent.denied("NotTls")?;
                let (plain, hello) = heard(&server, &mark);
                if plain > 0 || hello == 0 || after == before {
                    let reported = after - before;
                    failures.push(format!(
                        "{}, {how:?}: {plain} plaintexts and {hello} ClientHellos heard, {reported} reported",
                        route.name
                    ));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    lab.close()
}

trait Hears {
    fn hears_plaintext(&self, mark: &str) -> bool;
}

impl Hears for Server {
    fn hears_plaintext(&self, mark: &str) -> bool {
        let soon = std::time::Duration::from_millis(300);
        let plain = |heard: &enforcer_tests::probe::Heard| {
            heard
                .data
                .as_deref()
                .is_some_and(|data| data.contains(mark) && data.as_bytes().first() == Some(&PLAIN))
        };
        self.wait_for(plain, soon).is_some()
    }
}
