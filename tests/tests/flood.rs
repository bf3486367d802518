//! Floods: every denial is counted, the log stays short, and other senders that are denied
//! meanwhile are reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, POD_A, POD_GATEWAY_MAC, Party, port};
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload};

const SOON: Duration = Duration::from_secs(10);

/// More senders than can be reported at once: each packet is counted, and is either in a record or
/// counted as being without one. A sender that continues is reported all the same.
#[test]
fn a_flood_from_everywhere_is_counted_fully_and_reported_in_part() -> Result<()> {
    const CALLS: u16 = 6;
    const EACH: u16 = 1000;
    let lab = Lab::builder().build()?;
    let (neighbour, to) = (lab.neighbour(), CP1.at(port::ETCD_CLIENT));
    let frame = |source: Ipv4Addr| {
        let packet = Forged {
            source: SocketAddr::new(source.into(), 40_000),
            destination: to,
            content: Content::SYN,
        };
        packet.frame(neighbour.party().mac, CP1.mac)
    };
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    for call in 0..CALLS {
        let source = |n: u16| Ipv4Addr::from(0xc633_0000 | u32::from(call * EACH + n));
        let frames: Vec<Vec<u8>> = (0..EACH).map(|n| frame(source(n))).collect::<Result<_>>()?;
        neighbour.inject("eth0", &frames)?;
    }
    let all = u64::from(CALLS * EACH);
    let deadline = Instant::now() + SOON;
    while agent.denied("NoPath")? != (all, 0) {
        let so_far = agent.denied("NoPath")?;
        ensure!(Instant::now() < deadline, "{so_far:?} of {all}");
        thread::sleep(Duration::from_millis(20));
    }
    let reported: u64 = agent.events()?.iter().map(|event| event.count).sum();
    let status = agent.status()?;
    let lost = status["recordsLost"].as_u64().context("no recordsLost")?;
    ensure!(
        reported + lost == all && reported >= 1024 && lost > 0,
        "{reported} reported, {lost} not, of {all}"
    );
    // There is room again in the next tick.
    let who = Ipv4Addr::new(198, 18, 0, 1);
    thread::sleep(Duration::from_millis(50));
    neighbour.inject("eth0", &[frame(who)?])?;
    let who = who.to_string();
    agent.event(|event| event.source.as_deref() == Some(&who))?;
    Ok(())
}

/// Many senders at once: the log holds some of them, all are counted, and a sender of something
/// else is listed.
#[test]
fn a_flood_hides_no_sender_and_does_not_fill_the_log() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pod = lab.pod("pod-a");
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let frame = |source: u32, to: u16| {
        let packet = Forged {
            source: std::net::SocketAddr::new(
                std::net::Ipv4Addr::from(0x0a4e_0100 + source).into(),
                40_000,
            ),
            destination: CP1.at(to),
            content: Content::SYN,
        };
        packet.frame(POD_A.party.mac, pod.next_hop(CP1.v4.into()))
    };
    let rare = lab.hostnet("cp1").connect(CP1.at(port::ETCD_PEER))?;
    ensure!(rare == Outcome::Eperm, "{rare}");
    let flood: Vec<_> = (0..400)
        .map(|n| frame(n, port::ETCD_CLIENT))
        .collect::<Result<_>>()?;
    pod.inject("eth0", &flood)?;
    pod.inject("eth0", &[frame(1, port::KUBELET)?])?;
    let deadline = Instant::now() + patient(SOON);
    let events = loop {
        let events = agent.events()?;
        if events.len() > 200 {
            break events;
        }
        ensure!(Instant::now() < deadline, "{} events", events.len());
        thread::sleep(Duration::from_millis(50));
    };
    // One of each sender and endpoint, before all repeats.
    let first: Vec<_> = events[..3]
        .iter()
        .map(|event| event.endpoint.as_deref())
        .collect();
    for endpoint in ["etcd:peer", "kubelet:api", "etcd:client"] {
        ensure!(first.contains(&Some(endpoint)), "{endpoint}: {first:?}");
    }
    let left_out = |line: &str| line.contains("new denials of this second are left out here");
    agent.running().wait_for_line(left_out, patient(SOON))?;
    let log = agent.stop()?.checked()?;
    let lines = log
        .stdout
        .lines()
        .filter(|line| line.starts_with("denied "))
        .count();
    ensure!((3..100).contains(&lines), "{lines} lines");
    lab.close()
}

/// Frames of a flood: SYNs from addresses and ports derived from a number, to guarded and unguarded
/// ports.
fn flood(round: u32, from: &Party, hop: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    const EACH: u32 = 1000;
    const GUARDED: [u16; 3] = [port::ETCD_CLIENT, port::APISERVER, port::KUBELET];
    (round * EACH..(round + 1) * EACH)
        .map(|number| {
            // Multiplicative hashing: all differ, and consecutive ones are far apart.
            let random = number.wrapping_mul(2_654_435_761);
            let low = (random >> 8) as u16;
            let to = match number % 2 {
                0 => GUARDED[number as usize / 2 % GUARDED.len()],
                _ => 20_000 | low,
            };
            let packet = Forged {
                source: SocketAddr::new(Ipv4Addr::from(0xc612_0000 | random >> 15).into(), low | 1),
                destination: CP1.at(to),
                content: Content::SYN,
            };
            packet.frame(from.mac, hop)
        })
        .collect()
}

/// From a pod and from the segment at once, more than can be reported; and meanwhile others are
/// denied, each once.
#[test]
fn a_flood_hides_no_attack() -> Result<()> {
    const ROUNDS: u32 = 60;
    const GUESTS: u16 = 8;
    let lab = Lab::builder().build()?;
    let (pod, neighbour) = (lab.pod("pod-a"), lab.neighbour());
    let policy = PolicyText {
        other_traffic: "Drop",
        ..PolicyText::default()
    };
    let guests: Vec<(String, Workload)> = (0..GUESTS)
        .map(|guest| {
            let name = format!("kubepods.slice/guest-{guest}");
            Ok((name.clone(), lab.workload_in("cp1", &name)?))
        })
        .collect::<Result<_>>()?;
    let endpoints = [
        ("etcd:client", port::ETCD_CLIENT),
        ("etcd:peer", port::ETCD_PEER),
    ];
    for (name, guest) in &guests {
        let outcome = guest.connect(CP1.at(port::ETCD_CLIENT))?;
        ensure!(outcome == Outcome::Refused, "twin: {name}: {outcome}");
    }
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let lost = || -> Result<u64> {
        let status = agent.status()?;
        status["recordsLost"].as_u64().context("no recordsLost")
    };
    let is_over = AtomicBool::new(false);
    let under_flood = thread::scope(|scope| -> Result<()> {
        let of = |workload: Workload, party: Party, hop: [u8; 6]| {
            let is_over = &is_over;
            scope.spawn(move || -> Result<()> {
                for round in 0..ROUNDS {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    workload.inject("eth0", &flood(round, &party, hop)?)?;
                }
                Ok(())
            })
        };
        let floods = [
            of(pod.clone(), POD_A.party, POD_GATEWAY_MAC),
            of(neighbour.clone(), *neighbour.party(), CP1.mac),
        ];
        let tried = (|| -> Result<()> {
            // From here on, there is no room for the flood's records.
            let deadline = Instant::now() + patient(SOON);
            while lost()? == 0 {
                ensure!(Instant::now() < deadline, "the whole flood is reported");
                thread::sleep(Duration::from_millis(20));
            }
            for (_, to) in endpoints {
                for (name, guest) in &guests {
                    let outcome = guest.connect(CP1.at(to))?;
                    ensure!(outcome == Outcome::Eperm, "{name} to {to}: {outcome}");
                }
            }
            // Endpoints that the flood spares, by the interfaces through which the flood arrives.
            for to in [port::ETCD_PEER, port::INSECURE] {
                let frame = |from: &Party, hop| {
                    let packet = Forged {
                        source: from.at(40_000),
                        destination: CP1.at(to),
                        content: Content::SYN,
                    };
                    packet.frame(from.mac, hop)
                };
                pod.inject("eth0", &[frame(&POD_A.party, POD_GATEWAY_MAC)?])?;
                neighbour.inject("eth0", &[frame(neighbour.party(), CP1.mac)?])?;
            }
            Ok(())
        })();
        is_over.store(true, Ordering::Relaxed);
        for flood in floods {
            let ended = flood.join();
            ended.map_err(|_panic| anyhow::anyhow!("a flood panicked"))??;
        }
        tried
    });
    under_flood?;
    let mut attacks: Vec<(String, &str)> = Vec::new();
    for (endpoint, _) in endpoints {
        attacks.extend(guests.iter().map(|(name, _)| (name.clone(), endpoint)));
    }
    for endpoint in ["etcd:peer", "apiserver:insecure"] {
        attacks.push((POD_A.host_interface(), endpoint));
        attacks.push(("eth0".to_owned(), endpoint));
    }
    ensure!(attacks.len() == 20, "{attacks:?}");
    let events = agent.events()?;
    let is_told = |(name, endpoint): &(String, &str)| {
        events.iter().any(|event: &Event| {
            event.subject.name.trim_start_matches('/') == name
                && event.endpoint.as_deref() == Some(endpoint)
        })
    };
    let hidden: Vec<_> = attacks.iter().filter(|attack| !is_told(attack)).collect();
    ensure!(
        hidden.is_empty(),
        "{} of {} events do not mention {hidden:#?}",
        events.len(),
        lost()?
    );
    println!("{} events, {} denials without room", events.len(), lost()?);
    agent.stop()?.checked()?;
    lab.close()
}
