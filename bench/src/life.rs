//! What is not a packet in a namespace: the programs by themselves, a policy's way into force, memory, the
//! agent's processor time, and its start.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enforcer::kernel::{Kernel, Link, TcMode, apply::NewPolicy, trial::Trial};
use enforcer_common::tables::Role;
use enforcer_policy::compile::{Compiled, PathNumbers, compile};
use enforcer_policy::{SourceText, from_texts};
use enforcer_tests::plan::CP1;
use enforcer_tests::product::Agent;
use enforcer_tests::{Lab, tools};
use nix::net::if_::if_nametoindex;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::Effort;
use crate::filter::{Empty, Filter, Site};
use crate::frames;
use crate::measure::Measures;
use crate::policy::{Family, Scale};
use crate::receive;

pub const PROGRAMS: &str = "Programs by themselves";
pub const POLICY: &str = "A policy's way into force";
pub const AGENT: &str = "The agent";
const COLUMN: &str = "enforcer";

/// All of that.
pub fn life(measures: &mut Measures, effort: &Effort) -> Result<()> {
    programs(measures, effort)?;
    policies(measures, effort)?;
    agents(measures)?;
    start(measures, effort.rounds)
}

/// The node's role for a program in the calling thread's network namespace.
fn loaded() -> Result<(Kernel, u32)> {
    let mut kernel = Kernel::load(None, false)?;
    let index = if_nametoindex("eth0")?;
    let link = Link {
        index,
        name: "eth0".to_owned(),
        layer: libc::ARPHRD_ETHER,
        controller: None,
        is_port: false,
        controls_pods: false,
        peer_namespace: None,
    };
    let role = Role::Uplink;
    kernel.attach_interfaces(&[(link, role)], TcMode::Auto)?;
    Ok((kernel, index))
}

/// A policy, to be put in force.
fn new<'a>(compiled: &'a Compiled, numbers: &'a PathNumbers) -> NewPolicy<'a> {
    NewPolicy {
        compiled,
        numbers,
        name: "bench",
        roles: &[],
    }
}

/// Reads a policy.
pub fn read(text: String) -> Result<enforcer_policy::Policy> {
    let name = "bench.yaml".to_owned();
    Ok(from_texts(&[SourceText { name, text }])?)
}

/// Nanoseconds of the ingress program, and how long each program is.
fn programs(measures: &mut Measures, effort: &Effort) -> Result<()> {
    let lab = Lab::builder().build()?;
    let scale = Scale {
        family: Family::V4,
        addresses: *effort.addresses.last().unwrap_or(&1000),
        paths: 30,
    };
    lab.host("cp1").namespace().within(|| -> Result<()> {
        let (mut kernel, uplink) = loaded()?;
        for (name, length) in kernel.instructions() {
            measures.add(PROGRAMS, &name, "instructions", "", f64::from(length));
        }
        for (name, verified) in kernel.verified_instructions() {
            measures.add(PROGRAMS, &name, "verified", "", f64::from(verified));
        }
        let policy = read(scale.yaml(&lab.id().lab_name()))?;
        let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default())?;
        kernel.apply(new(&compiled, &PathNumbers::default()), &[], None)?;
        let family = scale.family;
        let client = std::net::SocketAddr::new(family.of(&enforcer_tests::plan::W1), 40_000);
        let many = std::net::SocketAddr::new(family.one_of_many(0), 40_000);
        for (source, subject) in [(many, "denied"), (client, "accepted")] {
            let mut generator = frames::datagrams(CP1.mac, source, 1, family.guarded());
            // No program writes the source here; its last four bytes are the whole of it.
            if let std::net::IpAddr::V4(address) = source.ip() {
                generator.frame[26..30].copy_from_slice(&address.octets());
            }
            for _ in 0..effort.rounds {
                let time =
                    kernel.time_frame(Trial::Arrives, &generator.frame, uplink, effort.frames)?;
                measures.add(
                    PROGRAMS,
                    "enforcer_tc_in",
                    subject,
                    "ns",
                    time.as_nanos() as f64,
                );
            }
        }
        Ok(())
    })?
}

/// Milliseconds since then.
pub fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// From a file to the kernel, and from one policy to the next.
fn policies(measures: &mut Measures, effort: &Effort) -> Result<()> {
    let lab = Lab::builder().build()?;
    for &addresses in effort.addresses {
        let row = |what: &str| format!("{what}, {addresses} addresses");
        let scale = Scale {
            family: Family::V4,
            addresses,
            paths: 1000,
        };
        for _ in 0..effort.rounds.min(3) {
            lab.host("cp1").namespace().within(|| -> Result<()> {
                let (mut kernel, _) = loaded()?;
                let text = scale.yaml(&lab.id().lab_name());
                let changed = text.replacen(
                    "from: [clients], to: 'server:p7'",
                    "from: [many], to: 'server:p7'",
                    1,
                );
                ensure!(changed != text || scale.paths < 10, "nothing changes");
                let mut numbers = PathNumbers::default();
                for (text, what) in [(text, "first"), (changed, "next")] {
                    let began = Instant::now();
                    let policy = read(text)?;
                    let reading = ms(began);
                    let began = Instant::now();
                    let compiled = compile(&policy, "cp1", None, &mut numbers)?;
                    let compiling = ms(began);
                    let began = Instant::now();
                    kernel.apply(new(&compiled, &numbers), &[], None)?;
                    let applying = ms(began);
                    for (step, time) in [
                        ("read", reading),
                        ("compile", compiling),
                        ("into the kernel", applying),
                    ] {
                        measures.add(
                            POLICY,
                            &row(&format!("{what} policy: {step}")),
                            COLUMN,
                            "ms",
                            time,
                        );
                    }
                    let whole = reading + compiling + applying;
                    measures.add(POLICY, &row(&format!("{what} policy")), COLUMN, "ms", whole);
                }
                Ok(())
            })??;
            for filter in [Filter::NftInput, Filter::IptablesSet, Filter::Iptables] {
                if filter == Filter::Iptables && addresses > 1000 {
                    continue;
                }
                let site = Site::build(filter, Scale { paths: 1, ..scale }, Empty::Drops)?;
                let time = site.took.as_secs_f64() * 1e3;
                measures.add(POLICY, &row("first policy"), filter.name(), "ms", time);
            }
        }
    }
    Ok(())
}

/// Memory and processor time of a running agent.
fn agents(measures: &mut Measures) -> Result<()> {
    for (addresses, name) in [(10, "10 addresses"), (100_000, "100000 addresses")] {
        let scale = Scale {
            family: Family::V4,
            addresses,
            paths: 30,
        };
        let site = Site::build(Filter::Enforcer, scale, Empty::Drops)?;
        let agent = site.agent.as_ref().context("the agent runs")?;
        let pid = agent.running().pid();
        let (resident, maps) = memory(pid)?;
        measures.add(AGENT, "resident memory", name, "MiB", resident);
        measures.add(AGENT, "memory of its maps", name, "MiB", maps);
        let busy = |time: Duration, work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
            let (began, before) = (Instant::now(), processor_seconds(pid)?);
            while began.elapsed() < time {
                work()?;
            }
            Ok(100.0 * (processor_seconds(pid)? - before) / began.elapsed().as_secs_f64())
        };
        // What it does once it has begun, such as giving memory back, is not idleness yet.
        thread::sleep(Duration::from_secs(1));
        let idle = busy(Duration::from_secs(5), &mut || {
            thread::sleep(Duration::from_millis(500));
            Ok(())
        })?;
        measures.add(AGENT, "processor, idle for 5 s", name, "%", idle);
        let first = std::net::SocketAddr::new(Family::V4.one_of_many(0), 40_000);
        let flood = frames::datagrams(CP1.mac, first, addresses, Family::V4.guarded());
        let (began, mut frames) = (Instant::now(), 0_u32);
        let flooded = busy(Duration::from_secs(3), &mut || {
            receive::send(&site, &flood, 100_000)?;
            frames += 100_000;
            Ok(())
        })?;
        let rate = f64::from(frames) / began.elapsed().as_secs_f64();
        measures.add(AGENT, "processor, under denials", name, "%", flooded);
        measures.add(AGENT, "denials meanwhile", name, "/s", rate);
        let (resident, _) = memory(pid)?;
        measures.add(AGENT, "resident memory after them", name, "MiB", resident);
    }
    let size = fs::metadata(tools::enforcer()?.path)?.len();
    measures.add(
        AGENT,
        "size of the program",
        "10 addresses",
        "MiB",
        size as f64 / 1048576.0,
    );
    Ok(())
}

/// Resident memory, and the memory of the maps by the kernel's account, in MiB.
pub fn memory(pid: i32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .context("no VmRSS")?;
    let mut maps = 0.0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        if text.lines().any(|line| line.starts_with("map_type:")) {
            let memory = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            maps += memory
                .and_then(|m| m.trim().parse::<f64>().ok())
                .unwrap_or(0.0);
        }
    }
    Ok((kib / 1024.0, maps / 1048576.0))
}

fn processor_seconds(pid: i32) -> Result<f64> {
    // By the scheduler's account: /proc counts in ticks, of which an idle process may have none or many.
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).context("the agent is gone")?;
    Ok(Duration::from(clock.now().context("the agent's clock is gone")?).as_secs_f64())
}

/// From the start of the process to the first packet that it drops.
fn start(measures: &mut Measures, rounds: usize) -> Result<()> {
    for (addresses, name) in [(10, "10 addresses"), (100_000, "100000 addresses")] {
        let scale = Scale {
            family: Family::V4,
            addresses,
            paths: 30,
        };
        for _ in 0..rounds.min(3) {
            let site = Site::build(Filter::Nothing, scale, Empty::Drops)?;
            let file = site.lab.directory().join("policy.yaml");
            fs::write(&file, scale.yaml(&site.lab.id().lab_name()))?;
            let time = until_enforced(&site, &file)?;
            measures.add(AGENT, "start to first dropped packet", name, "ms", time);
        }
    }
    Ok(())
}

fn until_enforced(site: &Site, policy: &Path) -> Result<f64> {
    let family = Family::V4;
    let first = std::net::SocketAddr::new(family.one_of_many(0), 40_000);
    let generator = frames::datagrams(CP1.mac, first, 1, family.guarded());
    let namespace = site.lab.host("cp1").namespace();
    let socket = namespace.within(|| UdpSocket::bind(family.guarded()))??;
    socket.set_nonblocking(true)?;
    let mut buffer = [0; 64];
    receive::send(site, &generator, 1)?;
    ensure!(
        socket.recv(&mut buffer).is_ok(),
        "nothing arrives without the agent"
    );
    let began = Instant::now();
    thread::scope(|scope| {
        let agent = scope.spawn(|| Agent::start_on_file(&site.lab, "cp1", policy));
        let mut last = began.elapsed();
        // A quarter of a second without a packet is the end.
        while last + Duration::from_millis(250) > began.elapsed() || !agent.is_finished() {
            receive::send(site, &generator, 1)?;
            while socket.recv(&mut buffer).is_ok() {
                last = began.elapsed();
            }
            ensure!(
                began.elapsed() < Duration::from_secs(30),
                "the agent never drops"
            );
        }
        let _agent = agent
            .join()
            .map_err(|_panic| anyhow::anyhow!("the start panicked"))??;
        Ok(last.as_secs_f64() * 1e3)
    })
}
