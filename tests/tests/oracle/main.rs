//! Compares the compiled tables, the decision and the loaded kernel programs with an evaluator that
//! was written only to be right: random policies, random packets, and not a single difference.
//!
//! `ENFORCER_TEST_SEED` repeats a run; `ENFORCER_ORACLE_PACKETS` makes it longer, and
//! `ENFORCER_ORACLE_EACH` tries more packets for each policy.

mod bytes;
mod kernel;
mod plainly;
mod random;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use enforcer_common::decide;
use enforcer_common::judge::{Report, report};
use enforcer_common::mark::PacketMark;
use enforcer_common::packet::{Packet, Phase, PortKind, Ports};
use enforcer_common::parse::{Start, parse};
use enforcer_common::tables::{Party, Role};
use enforcer_common::tls::Lock;
use enforcer_common::vantage::{Entered, Origin, Vantage, View};
use enforcer_common::verdict::{Outcome, Verdict};
use enforcer_policy::compile::{Compiled, PathNumbers, Simulator, compile};
use enforcer_policy::{Policy, SourceText, from_texts};
use enforcer_tests::packet::{Content, Forged};
use kernel::{At, Expected, Judge};
use plainly::{Entry, ForwardedFrom, Judgement, Kind, Oracle, ReceivedVia};
use random::{CGROUPS, Random};

/// Packets in total, by default.
const PACKETS: usize = 100_000;
/// Packets for each policy, by default.
const EACH: usize = 500;

/// One question.
#[derive(Debug, Clone)]
enum Question {
    Arrives(Entry, IpAddr, IpAddr, Kind),
    Sends(&'static str, bool, IpAddr, IpAddr, Kind),
    /// Bytes that arrive through an interface.
    Frame(Entry, Vec<u8>),
    /// The same from a process.
    SentFrame(&'static str, bool, Vec<u8>),
    /// From a process in another network namespace, through an interface on top of the uplink.
    SendsFromElsewhere(&'static str, IpAddr, IpAddr, Kind),
    /// To be received by a socket of a process.
    Receives(&'static str, ReceivedVia, IpAddr, IpAddr, Kind),
    /// Forwarded.
    Leaves(ForwardedFrom, IpAddr, IpAddr, Kind),
    Connects(&'static str, IpAddr, PortKind, u16),
    Binds(&'static str, IpAddr, PortKind, u16),
}

#[test]
fn tables_say_what_the_policy_means() -> Result<()> {
    let wanted = number_from("ENFORCER_ORACLE_PACKETS", PACKETS)?;
    let each = number_from("ENFORCER_ORACLE_EACH", EACH)?;
    let seed = enforcer_tests::random::seed()?;
    let mut random = Random::new(seed);
    let mut judge_in_kernel = Judge::new()?;
    let began = Instant::now();
    let (mut packets, mut policies, mut invalid, mut in_kernel) = (0, 0, 0, 0);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    while packets < wanted {
        let text = random::policy(&mut random);
        let source = SourceText {
            name: "random.yaml".to_owned(),
            text: text.clone(),
        };
        let Ok(policy) = from_texts(&[source]) else {
            invalid += 1;
            ensure!(
                invalid < 1000 + 20 * policies,
                "hardly any policy is valid:\n{text}"
            );
            continue;
        };
        policies += 1;
        let node = &policy.nodes[random.below(policy.nodes.len())];
        let compiled = compile(&policy, &node.name, None, &mut PathNumbers::default())?;
        let oracle = Oracle {
            policy: &policy,
            node,
        };
        let here = cgroup(&mut random);
        judge_in_kernel.apply(&compiled, here)?;
        for _ in 0..each {
            let question = ask(&mut random, here);
            let meant = answer(&oracle, &question);
            let (found, tried) = judge(&compiled, &question, here)?;
            packets += 1;
            if let Some(Tried {
                at,
                frame,
                expected,
            }) = tried
            {
                in_kernel += 1;
                judge_in_kernel.agrees(at, &frame, expected).with_context(|| {
                    format!("seed {seed}, policy {policies}: on {}, in {here}, {question:?}\n{text}", node.name)
                })?;
            }
            *outcomes.entry(format!("{meant:?}")).or_default() += 1;
            if found != meant {
                let (line, smaller) = shrink(&text, &question);
                bail!(
                    "seed {seed}, policy {policies}: on {} {line:?}: the policy means {meant:?}, the tables say {found:?}\n{smaller}",
                    node.name
                );
            }
        }
    }
    let denials = outcomes
        .keys()
        .filter(|key| key.starts_with("Denied"))
        .count();
    println!(
        "{packets} packets and calls over {policies} policies ({invalid} were invalid), {in_kernel} of them through the \
         kernel programs: {} outcomes, no difference, {} s",
        outcomes.len(),
        began.elapsed().as_secs()
    );
    // A test that sees few outcomes proves little.
    ensure!(denials >= 9 && outcomes.len() > 60, "{outcomes:?}");
    Ok(())
}

/// A number from the environment, or else a default.
fn number_from(variable: &str, otherwise: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(number) => number
            .parse()
            .with_context(|| format!("{variable} is no number")),
        Err(_) => Ok(otherwise),
    }
}

fn ask(random: &mut Random, here: &'static str) -> Question {
    let (src, dst) = random::addresses(random);
    let kind = match random::kind(random, src.is_ipv4()) {
        // The kernel remembers flows between questions, and with these ports none answers another.
        Kind::Udp(_, port) => Kind::Udp(49_152 + random.below(16_384) as u16, port),
        kind => kind,
    };
    match random.below(18) {
        14 => Question::SendsFromElsewhere(here, src, dst, kind),
        15 | 16 => {
            let came = *random.pick(&[
                ReceivedVia::Lo,
                ReceivedVia::Uplink,
                ReceivedVia::Pod,
                ReceivedVia::Undeclared,
            ]);
            Question::Receives(here, came, src, dst, kind)
        }
        17 => {
            let through = *random.pick(&[ForwardedFrom::Uplink, ForwardedFrom::Pod]);
            Question::Leaves(through, src, dst, kind)
        }
        8..=12 => {
            let entry = *random.pick(&[Entry::Uplink, Entry::Pod(true), Entry::Pod(false)]);
            Question::Frame(entry, bytes::frame(random))
        }
        13 => Question::SentFrame(here, random.chance(2), bytes::frame(random)),
        5 | 6 => {
            let at = match random.below(6) {
                0 => IpAddr::from([0; 4]),
                1 => IpAddr::from([0; 16]),
                _ => dst,
            };
            let port_kind = *random.pick(&[PortKind::Tcp, PortKind::Tcp, PortKind::Udp]);
            let (cgroup, number) = (cgroup(random), random::port(random));
            match random.chance(2) {
                true => Question::Connects(cgroup, at, port_kind, number),
                false => Question::Binds(cgroup, at, port_kind, number),
            }
        }
        0 => Question::Arrives(Entry::Uplink, src, dst, kind),
        1 => Question::Arrives(Entry::Pod(true), src, dst, kind),
        2 => Question::Arrives(Entry::Pod(false), src, dst, kind),
        _ => {
            let cgroup = if random.chance(4) {
                cgroup(random)
            } else {
                here
            };
            Question::Sends(cgroup, random.chance(2), src, dst, kind)
        }
    }
}

/// cgroups that no policy declares.
const MORE_CGROUPS: [&str; 3] = ["/kubepods.slice/x/y", "/c", "/"];

/// A trial of the kernel programs, and the expected result.
struct Tried {
    at: At,
    frame: Vec<u8>,
    expected: Expected,
}

fn cgroup(random: &mut Random) -> &'static str {
    let all: Vec<&'static str> = CGROUPS.iter().chain(&MORE_CGROUPS).copied().collect();
    all[random.below(all.len())]
}

fn answer(oracle: &Oracle<'_>, question: &Question) -> Judgement {
    match *question {
        Question::Frame(entry, ref frame) => oracle.frame_arrives(entry, &bytes::meaning(frame)),
        Question::SentFrame(cgroup, on_lo, ref frame) => {
            oracle.frame_is_sent(cgroup, on_lo, &bytes::meaning_of_packet(tail(frame)))
        }
        Question::Arrives(entry, src, dst, kind) => oracle.arrives(entry, src, dst, kind),
        Question::Sends(cgroup, on_lo, src, dst, kind) => {
            oracle.sends(cgroup, on_lo, src, dst, kind)
        }
        Question::SendsFromElsewhere(cgroup, src, dst, kind) => {
            oracle.sends_from_elsewhere(cgroup, src, dst, kind)
        }
        Question::Receives(cgroup, came, src, dst, kind) => {
            oracle.is_received(cgroup, came, src, dst, kind)
        }
        Question::Leaves(through, src, dst, kind) => oracle.leaves(through, src, dst, kind),
        Question::Connects(cgroup, at, port_kind, number) => {
            oracle.connects(cgroup, at, port_kind, number)
        }
        Question::Binds(cgroup, at, port_kind, number) => {
            oracle.binds(cgroup, at, port_kind, number)
        }
    }
}

/// The verdict of the tables, and a trial in the kernel if one is possible.
fn judge(
    compiled: &Compiled,
    question: &Question,
    here: &str,
) -> Result<(Judgement, Option<Tried>)> {
    let tables = Simulator::new(compiled);
    let expected = |vantage, verdict| Expected {
        verdict,
        reported: report(vantage, PacketMark::NONE, verdict, Lock::Open) == Report::Verdict,
    };
    let tried = |at, vantage, (packet, bytes): (&Packet, Option<Vec<u8>>), allowed| {
        let frame = frame(bytes?, packet.src.is_v4());
        // The link header has 14 bytes.
        let verdict = kernel::with_lock(&tables, at, &frame[14..], packet, allowed);
        let expected = expected(vantage, verdict);
        Some(Tried {
            at,
            frame,
            expected,
        })
    };
    let (verdict, tried) = match *question {
        Question::Frame(entry, ref frame) => {
            let (role, home) = role(entry);
            let at = At::Arrives(entry);
            let read = parse(&frame[..], Start::Ethernet);
            let (verdict, locked) = match read {
                Ok(packet) => {
                    let verdict = judge_from(&tables, arrived(role), &packet, home);
                    (
                        verdict,
                        kernel::with_lock(&tables, at, frame, &packet, verdict),
                    )
                }
                Err(reason) => {
                    let verdict = decide::unreadable(&tables, reason);
                    (verdict, verdict)
                }
            };
            (
                verdict,
                kernel::takes(frame).then(|| Tried {
                    at,
                    frame: frame.clone(),
                    expected: expected(arrived(role), locked),
                }),
            )
        }
        Question::SentFrame(cgroup, on_lo, ref frame) => {
            let at = At::Sent(on_lo);
            let packet = tail(frame);
            let (verdict, locked) = match parse(packet, Start::Ip) {
                Ok(read) => {
                    let party = tables.party_of_cgroup(cgroup);
                    let verdict =
                        judge_from(&tables, sent(party, Origin::Socket, on_lo), &read, false);
                    (
                        verdict,
                        kernel::with_lock(&tables, at, packet, &read, verdict),
                    )
                }
                Err(reason) => {
                    let verdict = decide::unreadable(&tables, reason);
                    (verdict, verdict)
                }
            };
            let can = cgroup == here && kernel::takes(frame) && kernel::is_plain_ip(frame);
            (
                verdict,
                can.then(|| Tried {
                    at,
                    frame: frame.clone(),
                    expected: expected(sent(0, Origin::Socket, on_lo), locked),
                }),
            )
        }
        Question::Arrives(entry, src, dst, kind) => {
            let (packet, bytes) = packet(src, dst, kind)?;
            let (role, home) = role(entry);
            let verdict = judge_from(&tables, arrived(role), &packet, home);
            (
                verdict,
                tried(At::Arrives(entry), arrived(role), (&packet, bytes), verdict),
            )
        }
        Question::Sends(cgroup, on_lo, src, dst, kind) => {
            let (packet, bytes) = packet(src, dst, kind)?;
            let party = tables.party_of_cgroup(cgroup);
            let vantage = sent(party, Origin::Socket, on_lo);
            let verdict = judge_from(&tables, vantage, &packet, false);
            let bytes = bytes.filter(|_| cgroup == here);
            (
                verdict,
                tried(At::Sent(on_lo), vantage, (&packet, bytes), verdict),
            )
        }
        Question::SendsFromElsewhere(cgroup, src, dst, kind) => {
            let (packet, bytes) = packet(src, dst, kind)?;
            let party = tables.party_of_cgroup(cgroup);
            let vantage = sent(party, Origin::OtherNamespace, false);
            let verdict = judge_from(&tables, vantage, &packet, false);
            let bytes = bytes.filter(|_| cgroup == here);
            (
                verdict,
                tried(At::Elsewhere, vantage, (&packet, bytes), verdict),
            )
        }
        Question::Receives(cgroup, came, src, dst, kind) => {
            let (packet, bytes) = packet(src, dst, kind)?;
            let (role, judged) = match came {
                ReceivedVia::Lo => (Role::Loopback, true),
                ReceivedVia::Uplink => (Role::Uplink, true),
                ReceivedVia::Pod => (Role::Pod, true),
                ReceivedVia::Undeclared => (Role::Undeclared, false),
            };
            let vantage = Vantage::new(View::Received {
                receiver: tables.party_of_cgroup(cgroup),
                role,
                judged,
            });
            let verdict = judge_from(&tables, vantage, &packet, false);
            let bytes = bytes.filter(|_| cgroup == here);
            (
                verdict,
                tried(At::Received(came), vantage, (&packet, bytes), verdict),
            )
        }
        // A trial's packet has a socket, so it has not been forwarded.
        Question::Leaves(through, src, dst, kind) => {
            let (packet, _) = packet(src, dst, kind)?;
            let entered = match through {
                ForwardedFrom::Uplink => Entered::ByUplink(None),
                ForwardedFrom::Pod => Entered::FromPod,
            };
            let to_pod = false;
            let vantage = Vantage::new(View::Left { entered, to_pod });
            (judge_from(&tables, vantage, &packet, false), None)
        }
        Question::Connects(cgroup, at, port_kind, number) => {
            let party = tables.party_of_cgroup(cgroup);
            let verdict = decide::connecting(&tables, party, &at.into(), port_kind, number);
            (verdict, None)
        }
        Question::Binds(cgroup, at, port_kind, number) => {
            let party = tables.party_of_cgroup(cgroup);
            let verdict = decide::binding(&tables, party, &at.into(), port_kind, number);
            (verdict, None)
        }
    };
    Ok((judgement(compiled, verdict)?, tried))
}

fn role(entry: Entry) -> (Role, bool) {
    match entry {
        Entry::Uplink => (Role::Uplink, false),
        Entry::Pod(home) => (Role::Pod, home),
    }
}

fn arrived(role: Role) -> Vantage {
    Vantage::new(View::Arrived { role, interface: 0 })
}

fn sent(sender: Party, origin: Origin, on_lo: bool) -> Vantage {
    Vantage::new(View::Sent {
        sender,
        origin,
        on_lo,
    })
}

fn judge_from(
    tables: &Simulator<'_>,
    vantage: Vantage,
    packet: &Packet,
    is_route_back: bool,
) -> Verdict {
    enforcer_common::judge::judge(tables, vantage, packet, || is_route_back).verdict
}

/// A frame without its link header.
fn tail(frame: &[u8]) -> &[u8] {
    frame.get(14..).unwrap_or_default()
}

/// A packet in an Ethernet frame.
fn frame(packet: Vec<u8>, is_v4: bool) -> Vec<u8> {
    let kind: [u8; 2] = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&[4; 6][..], &[2; 6], &kind, &packet].concat()
}

fn judgement(compiled: &Compiled, verdict: Verdict) -> Result<Judgement> {
    Ok(match verdict.outcome() {
        Outcome::Path(number, _) => {
            let name = compiled
                .paths
                .get(&number)
                .context("a path without a name")?;
            if verdict.is_tls_path() {
                Judgement::TlsPath(name.clone())
            } else {
                Judgement::Path(name.clone())
            }
        }
        Outcome::Other | Outcome::LaterFragment => Judgement::Other,
        Outcome::Denied(denial) => Judgement::Denied(denial.reason.name()),
    })
}

/// The packet as bytes and parsed again, if it can be expressed as bytes.
fn packet(src: IpAddr, dst: IpAddr, kind: Kind) -> Result<(Packet, Option<Vec<u8>>)> {
    let (content, from, to) = match kind {
        Kind::Syn(from, to) => (Content::SYN, from, to),
        Kind::Segment(from, to) => {
            let (flags, payload) = (0x10, vec![0; 8]);
            (Content::Tcp { flags, payload }, from, to)
        }
        Kind::Udp(from, to) => (Content::udp("random"), from, to),
        Kind::Message(_, number) => (Content::Message(number), 0, 0),
        Kind::EchoReply(_) => (Content::Message(if src.is_ipv4() { 0 } else { 129 }), 0, 0),
        Kind::Protocol(number) => (Content::Protocol(number), 0, 0),
        Kind::LaterFragment => return Ok((Packet::between(src.into(), dst.into()), None)),
        Kind::Arp => {
            let ports = Ports {
                phase: Phase::Following,
                kind: PortKind::Arp,
                source: 0,
                destination: 0,
            };
            return Ok((Packet::flow(src.into(), dst.into(), ports), None));
        }
    };
    let forged = Forged {
        source: SocketAddr::new(src, from),
        destination: SocketAddr::new(dst, to),
        content,
    };
    let bytes = forged.packet()?;
    let packet = parse(&bytes[..], Start::Ip)
        .map_err(|reason| anyhow::anyhow!("{forged:?} is {}", reason.name()))?;
    Ok((packet, Some(bytes)))
}

/// Removes lines of the policy as long as the difference remains: what is left is the case to
/// report.
fn shrink<'q>(text: &str, question: &'q Question) -> (&'q Question, String) {
    let mut lines: Vec<&str> = text.lines().collect();
    let differs = |lines: &[&str]| -> bool {
        let text = lines.join("\n") + "\n";
        let source = SourceText {
            name: "smaller.yaml".to_owned(),
            text,
        };
        let Ok(policy) = from_texts(&[source]) else {
            return false;
        };
        policy
            .nodes
            .iter()
            .any(|node| difference(&policy, node, question))
    };
    let mut at = lines.len();
    while at > 0 {
        at -= 1;
        let mut fewer = lines.clone();
        fewer.remove(at);
        if differs(&fewer) {
            lines = fewer;
        }
    }
    (question, lines.join("\n"))
}

fn difference(policy: &Policy, node: &enforcer_policy::model::Node, question: &Question) -> bool {
    let Ok(compiled) = compile(policy, &node.name, None, &mut PathNumbers::default()) else {
        return false;
    };
    let oracle = Oracle { policy, node };
    judge(&compiled, question, "").is_ok_and(|(found, _)| found != answer(&oracle, question))
}
