//! Enforcement outlives the agent: the agent is killed, replaced by another, and finds what the
//! last one left, whatever happened to it meanwhile.

use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, ensure};
use enforcer_tests::attempt::{Held, Knocker};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, LOOPBACK, POD_A, port};
use enforcer_tests::probe::Hold;
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::tools::Tool;
use enforcer_tests::{Lab, Outcome, net, tools};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(3);
const PINS: &str = "/sys/fs/bpf/enforcer";

/// Runs the product's command line where an agent would run.
fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.command_of(&tools::enforcer()?)?.args(args).run()
}

/// Runs a shell command in the directory of that host's pins.
fn shell(lab: &Lab, line: &str) -> Result<String> {
    let workload = lab.daemon("cp1", "enforcer");
    let ran = workload.run("/bin/sh", ["-euc", line])?.checked()?;
    Ok(ran.stdout)
}

/// The directories of instances.
fn instances(lab: &Lab) -> Result<Vec<String>> {
    let listed = shell(lab, &format!("ls {PINS} 2>/dev/null || true"))?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

/// Unauthorized clients do not reach etcd, and authorized ones do.
fn is_enforced(lab: &Lab, when: &str) -> Result<()> {
    let at = CP1.at(port::ETCD_CLIENT);
    let outcome = lab.hostnet("cp1").connect(at)?;
    ensure!(outcome == Outcome::Eperm, "{when}, a process: {outcome}");
    let outcome = lab.pod("pod-a").connect(at)?;
    ensure!(outcome == Outcome::Timeout, "{when}, a pod: {outcome}");
    let outcome = lab.apiserver().connect(at)?;
    ensure!(
        outcome == Outcome::Connected,
        "{when}, the apiserver: {outcome}"
    );
    Ok(())
}

fn is_not_enforced(lab: &Lab, when: &str) -> Result<()> {
    let at = CP1.at(port::ETCD_CLIENT);
    for workload in [lab.hostnet("cp1"), lab.pod("pod-a").clone()] {
        let outcome = workload.connect(at)?;
        ensure!(outcome == Outcome::Connected, "{when}: {outcome}");
    }
    Ok(())
}

/// How many packets and calls were denied, for any reason.
fn denials(status: &Value) -> u64 {
    let reasons = status["reasons"].as_array().into_iter().flatten();
    reasons.filter_map(|reason| reason["denied"].as_u64()).sum()
}

#[test]
fn enforcement_outlives_the_agent_and_the_next_one_continues() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().build()?;
    is_not_enforced(&lab, "twin")?;
    let policy = PolicyText::default();
    for mode in ["auto", "clsact"] {
        let agent = Agent::start_with(&lab, "cp1", &policy, &["--tc", mode])?;
        is_enforced(&lab, "with an agent")?;
        let before = agent.status()?;
        let event = agent.event(|event| event.endpoint.as_deref() == Some("etcd:client"))?;
        agent.kill()?;
        is_enforced(&lab, "after its death")?;
        let ran = enforcer(&lab, &["status"])?;
        ensure!(
            ran.code() == Some(2) && ran.stderr.contains("is in force without one"),
            "{ran}"
        );
        let ran = enforcer(&lab, &["status", "-o", "json"])?;
        let error: Value = serde_json::from_str(&ran.stderr)?;
        let left = &error["unattended"];
        ensure!(
            ran.code() == Some(2)
                && ran.stdout.is_empty()
                && error["code"] == "Unattended"
                && left["mode"] == "Enforce"
                && left["pinDir"] == PINS,
            "{ran}"
        );
        for same in ["policy", "generation", "since", "node"] {
            ensure!(left[same] == before[same], "{mode}, {same}: {ran}");
        }

        let agent = Agent::start_with(&lab, "cp1", &policy, &["--tc", mode])?;
        is_enforced(&lab, "with the next one")?;
        let status = agent.status()?;
        for same in ["generation", "since", "digest", "pinnedAt"] {
            ensure!(status[same] == before[same], "{mode}, {same}: {status:#}");
        }
        ensure!(
            status["attachments"] == before["attachments"],
            "{mode}: {status:#}"
        );
        ensure!(denials(&status) > denials(&before), "counters began anew");
        let again = agent.event(|again| again.subject.name == event.subject.name)?;
        ensure!(again.count >= event.count, "records began anew: {again:?}");
        ensure!(again.endpoint == event.endpoint, "{again:?}");
        let at = instances(&lab)?;
        ensure!(at.len() == 1, "{at:?}");
        ensure!(
            status["pinnedAt"] == format!("{PINS}/{}", at.join(" ")),
            "{mode}: {status:#}"
        );
        let ran = enforcer(&lab, &["status"])?.checked()?;
        ensure!(
            ran.stdout.contains(&format!("pinned    at {PINS}/"))
                && ran.stdout.contains(": enforcement outlives the agent\n"),
            "{ran}"
        );

        // What ends with the agent's own exit stays in force, too.
        let generation = agent.generation()?;
        let left = agent.leave()?.checked()?;
        ensure!(left.stderr.contains("stays in force without it"), "{left}");
        is_enforced(&lab, "after its end")?;
        let other = PolicyText {
            disable: vec!["insecure-port"],
            ..policy.clone()
        };
        let agent = Agent::start_with(&lab, "cp1", &other, &["--tc", mode])?;
        ensure!(agent.generation()? == generation + 1, "of another policy");
        is_enforced(&lab, "with another policy")?;
        agent.kill()?;

        enforcer(&lab, &["detach"])?.checked()?;
        is_not_enforced(&lab, "after detach without an agent")?;
        ensure!(instances(&lab)?.is_empty(), "{:?}", instances(&lab)?);
        let ran = enforcer(&lab, &["detach"])?;
        ensure!(
            ran.code() == Some(2) && ran.stderr.contains("no agent runs here"),
            "{ran}"
        );
    }
    lab.close()
}

/// A verdict that was kept on a socket under the policy before the last one is not mistaken for one
/// of the next agent's.
#[test]
fn a_kept_verdict_does_not_become_true_again() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let insecure = LOOPBACK.at(port::INSECURE);
    let policy = PolicyText::default();
    let without = PolicyText {
        disable: vec!["insecure-port"],
        ..PolicyText::default()
    };
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let hold = || Hold {
        every_ms: 1,
        ..Hold::http(insecure)
    };
    let held = lab.controller_manager().hold(hold())?;
    let deadline = Instant::now() + patient(SOON);
    while agent.status()?["keptVerdicts"].as_u64() == Some(0) {
        ensure!(Instant::now() < deadline, "no verdict is kept");
    }
    agent.kill()?;
    ensure!(held.is_alive(), "without an agent");
    let agent = Agent::start(&lab, "cp1", &policy)?;
    ensure!(held.is_alive(), "twin: the same policy");
    agent.kill()?;
    let agent = Agent::start(&lab, "cp1", &without)?;
    held.wait_for_end(SOON)?;
    agent.stop()?.checked()?;
    lab.close()
}

/// What an agent of another version left is replaced in place: its programs, link by link, while
/// others work on maps of their own.
#[test]
fn maps_of_another_layout_are_replaced_by_new_ones() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().build()?;
    let at = CP1.at(port::ETCD_CLIENT);
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let generation = agent.generation()?;
    let attached = agent.status()?["attachments"].clone();
    agent.kill()?;
    let process = lab.hostnet("cp1").knock(at)?;
    let pod = lab.pod("pod-a").knock(at)?;
    let before = instances(&lab)?;
    let [instance] = before.as_slice() else {
        anyhow::bail!("{before:?}")
    };
    for (what, line) in [
        (
            "another layout",
            format!("mv {PINS}/{instance} {PINS}/00000000deadbeef-7"),
        ),
        (
            "a map is gone",
            format!("rm $(ls -d {PINS}/*/maps/ENTRIES)"),
        ),
        (
            "the state is gone",
            format!("rm $(ls -d {PINS}/*/maps/STATE)"),
        ),
        (
            "a map is another's",
            format!("cd {PINS}/*/maps; rm COUNTERS; ln -s RECORDS COUNTERS"),
        ),
    ] {
        shell(&lab, &line)?;
        let agent = Agent::start(&lab, "cp1", &policy).context(what)?;
        is_enforced(&lab, what)?;
        let status = agent.status()?;
        ensure!(status["attachments"] == attached, "{what}: {status:#}");
        if what == "another layout" {
            ensure!(
                status["generation"].as_u64() > Some(generation),
                "{status:#}"
            );
        }
        let log = agent.running().stderr();
        ensure!(
            what == "the state is gone" || log.contains("takes over from enforcer"),
            "{what}: {log}"
        );
        let left = instances(&lab)?;
        ensure!(left.len() == 1 && left != before, "{what}: {left:?}");
        process.tries_more(patient(SOON))?;
        pod.tries_more(patient(SOON))?;
        agent.kill()?;
        is_enforced(&lab, what)?;
    }
    for (who, knocker) in [("a process", &process), ("a pod", &pod)] {
        let opened = knocker.opened();
        ensure!(opened.is_empty(), "{who} was let in: {opened:?}");
        ensure!(knocker.tried() > 4000, "{who}: {} tries", knocker.tried());
    }
    enforcer(&lab, &["detach"])?.checked()?;
    is_not_enforced(&lab, "after all")?;
    lab.close()
}

/// Interfaces that came and went while no agent ran, with the names and indices of others.
#[test]
fn interfaces_that_changed_while_no_agent_ran_are_picked_up() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let at = CP1.at(port::ETCD_CLIENT);
    let node = lab.host("cp1").namespace().name();
    let policy = PolicyText::default();
    for mode in ["auto", "clsact"] {
        let agent = Agent::start_with(&lab, "cp1", &policy, &["--tc", mode])?;
        let add = |name: &str, index: u32| {
            net::ip(
                Some(node),
                &format!(
                    "link add {name} index {index} type veth peer name {name}-p\nlink set {name} up\n"
                ),
            )
        };
        add("cali-a", 901)?;
        add("cali-b", 902)?;
        let has = |agent: &Agent, name: &str| -> Result<()> {
            let deadline = Instant::now() + patient(Duration::from_secs(8));
            loop {
                let status = agent.status()?;
                let there = status["attachments"].as_array().into_iter().flatten();
                let count = there.filter(|found| found["where"] == name).count();
                if count == 2 {
                    return Ok(());
                }
                ensure!(Instant::now() < deadline, "{name}: {status:#}");
                thread::sleep(Duration::from_millis(20));
            }
        };
        has(&agent, "cali-a")?;
        has(&agent, "cali-b")?;
        agent.kill()?;
        // One is removed, one is replaced with the same name and index, one is renamed, one is new.
        let interface = POD_A.host_interface();
        net::ip(Some(node), "link del cali-a\nlink del cali-b\n")?;
        add("cali-b", 902)?;
        add("cali-c", 903)?;
        let agent = Agent::start_with(&lab, "cp1", &policy, &["--tc", mode])?;
        has(&agent, "cali-b")?;
        has(&agent, "cali-c")?;
        has(&agent, &interface)?;
        let status = agent.status()?;
        ensure!(!status.to_string().contains("cali-a"), "{status:#}");
        ensure!(status["notAttached"].is_null(), "{status:#}");
        if mode == "auto" {
            let pinned = shell(&lab, &format!("ls {PINS}/*/interfaces"))?;
            ensure!(
                !pinned.contains("901") && pinned.contains("902"),
                "{pinned}"
            );
        }
        // And while an agent runs: the interface has the name and the index that another had a
        // moment ago, and the status is the same.
        let attached = || agent.running().stderr().matches("cali-b is pod").count();
        let before = attached();
        net::ip(
            Some(node),
            "link del cali-b\nlink add cali-b index 902 type veth peer name cali-b-p\nlink set cali-b up\n",
        )?;
        let deadline = Instant::now() + patient(Duration::from_secs(8));
        while attached() == before {
            ensure!(
                Instant::now() < deadline,
                "{mode}: it is taken for the one before: {}",
                agent.running().stderr()
            );
            thread::sleep(Duration::from_millis(20));
        }
        has(&agent, "cali-b")?;
        let outcome = lab.pod("pod-a").connect(at)?;
        ensure!(outcome == Outcome::Timeout, "{outcome}");
        net::ip(Some(node), "link del cali-b\nlink del cali-c\n")?;
        agent.stop()?.checked()?;
    }
    lab.close()
}

#[test]
fn untrusted_or_impossible_pins_are_reported() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let policy = PolicyText::default();
    let file = lab.directory().join("policy.yaml");
    std::fs::write(&file, policy.yaml(&lab))?;
    let file = file.to_string_lossy().into_owned();
    let start = |more: &[&str]| -> Result<Ran> {
        let args = [&["run", "--node", "cp1", "-p", &file], more].concat();
        enforcer(&lab, &args)
    };
    // The error code, from the last line.
    let code = |more: &[&str]| -> Result<Value> {
        let ran = start(&[more, &["-o", "json"]].concat())?;
        let error = ran.stderr.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(error).with_context(|| ran.to_string())?;
        Ok(error["code"].clone())
    };
    // Not on a BPF file system.
    let elsewhere = ["--pin-dir", "/run/pins"];
    ensure!(code(&elsewhere)? == "NoBpfFs");
    let ran = start(&elsewhere)?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("mount -t bpf bpf /sys/fs/bpf"),
        "{ran}"
    );
    // In a directory where others could replace them.
    shell(&lab, &format!("mkdir {PINS}; chmod 0777 {PINS}"))?;
    ensure!(code(&[])? == "PinsOfOthers");
    let ran = start(&[])?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("that only root, or the user"),
        "{ran}"
    );
    shell(&lab, &format!("rmdir {PINS}; mkdir {PINS}"))?;
    is_not_enforced(&lab, "refused")?;
    // What is not ours is left alone.
    shell(&lab, &format!("mkdir {PINS}/other"))?;
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let agent_pins = instances(&lab)?;
    ensure!(agent_pins.len() == 2, "{agent_pins:?}");
    agent.leave()?.checked()?;
    // Enforcement that should end with the agent, next to some that does not.
    ensure!(code(&["--no-pin"])? == "PinsLeft");
    let ran = start(&["--no-pin"])?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("`enforcer detach`"),
        "{ran}"
    );
    enforcer(&lab, &["detach"])?.checked()?;
    ensure!(instances(&lab)? == ["other"], "{:?}", instances(&lab)?);
    is_not_enforced(&lab, "after detach")?;
    for mode in ["auto", "clsact"] {
        let agent = Agent::start_with(&lab, "cp1", &policy, &["--no-pin", "--tc", mode])?;
        let at = CP1.at(port::ETCD_CLIENT);
        let outcome = lab.pod("pod-a").connect(at)?;
        ensure!(outcome == Outcome::Timeout, "{outcome}");
        let status = agent.status()?;
        ensure!(status["pinnedAt"].is_null(), "{status:#}");
        let ran = enforcer(&lab, &["status"])?.checked()?;
        ensure!(
            ran.stdout
                .contains("pinned    no: enforcement ends with the agent\n"),
            "{ran}"
        );
        agent.leave()?.checked()?;
        is_not_enforced(&lab, "after its end, without pins")?;
    }
    lab.close()
}

/// Two agents with different run directories but the same pins would undo each other's work.
#[test]
fn only_one_agent_uses_the_pins() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().build()?;
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let file = agent.policy().to_string_lossy().into_owned();
    for args in [
        &[
            "run",
            "--node",
            "cp1",
            "-p",
            &file,
            "--run-dir",
            "/run/other",
        ][..],
        &["detach", "--run-dir", "/run/other"],
    ] {
        let ran = enforcer(&lab, args)?;
        ensure!(
            ran.code() == Some(2) && ran.stderr.contains("another agent works with"),
            "{ran}"
        );
        is_enforced(&lab, "beside another agent")?;
    }
    agent.stop()?.checked()?;
    is_not_enforced(&lab, "twin: after the one whose they are")?;
    lab.close()
}

/// How often: a few times, or as often as a person wants it.
fn times(variable: &str, default: usize) -> usize {
    let wanted = env::var(variable).ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Who tries to get in all the time, and who uses connections that are allowed.
struct Traffic {
    knockers: Vec<(&'static str, Knocker)>,
    held: Vec<Held>,
}

impl Traffic {
    fn start(lab: &Lab) -> Result<Self> {
        let at = CP1.at(port::ETCD_CLIENT);
        Ok(Self {
            held: vec![
                lab.controller_manager()
                    .hold(Hold::http(LOOPBACK.at(port::INSECURE)))?,
                lab.pod("pod-b").hold(Hold::to(CP1.at(port::ECHO)))?,
            ],
            knockers: vec![
                ("a process", lab.hostnet("cp1").knock(at)?),
                ("a pod", lab.pod("pod-a").knock(at)?),
                ("a pod of another node", lab.pod("pod-b").knock(at)?),
            ],
        })
    }

    fn nobody_got_in(&self, when: &str) -> Result<()> {
        for (who, knocker) in &self.knockers {
            let opened = knocker.opened();
            ensure!(opened.is_empty(), "{when}: {who} was let in: {opened:?}");
        }
        Ok(())
    }

    /// After all: they have tried, nobody got in, and nothing that is allowed broke.
    fn ends_well(&self) -> Result<()> {
        for (who, knocker) in &self.knockers {
            knocker.tries_more(patient(SOON))?;
            println!("{who}: {} tries, 0 got in", knocker.tried());
        }
        self.nobody_got_in("after all")?;
        for held in &self.held {
            ensure!(held.is_alive(), "a connection that is allowed broke");
        }
        Ok(())
    }

    /// The twin: without enforcement, those who knock on this node get in.
    fn get_in(&self) -> Result<()> {
        let deadline = Instant::now() + patient(SOON);
        while self.knockers[..2]
            .iter()
            .any(|(_, knocker)| knocker.opened().is_empty())
        {
            ensure!(Instant::now() < deadline, "twin: they do not get in either");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Two policies that allow both connections of [`Traffic`].
fn two_policies() -> [PolicyText; 2] {
    [
        PolicyText::default(),
        PolicyText {
            disable: vec!["dns"],
            ..PolicyText::default()
        },
    ]
}

/// The agent is killed repeatedly under traffic, and policies come and go: no unauthorized client
/// gets in, and no connection that is allowed by all of the policies breaks.
#[test]
fn no_kill_and_no_swap_lets_anybody_in_or_breaks_a_connection() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().bystanders().build()?;
    let policies = two_policies();
    let mut running = Agent::start(&lab, "cp1", &policies[0])?;
    let _other = Agent::start(&lab, "w1", &policies[0])?;
    let traffic = Traffic::start(&lab)?;
    for kill in 0..times("ENFORCER_KILLS", 8) {
        running.kill()?;
        running = Agent::start(&lab, "cp1", &policies[kill % 2])?;
        if kill % 3 == 0 {
            running.replace_policy(&lab, &policies[(kill + 1) % 2])?;
        }
        traffic.nobody_got_in(&format!("kill {kill}"))?;
    }
    // Many swaps of one agent.
    let swaps = times("ENFORCER_SWAPS", 20);
    let began = running.generation()?;
    for swap in 0..swaps {
        running.replace_policy(&lab, &policies[swap % 2])?;
        if swap % 100 == 0 {
            traffic.nobody_got_in(&format!("swap {swap}"))?;
        }
    }
    println!("{} generations", running.generation()? - began);
    traffic.ends_well()?;
    let instances = instances(&lab)?;
    ensure!(instances.len() == 1, "{instances:?}");
    running.stop()?.checked()?;
    traffic.get_in()?;
    lab.close()
}

/// One build after the other, whose maps have other layouts: the same.
#[test]
#[ignore = "needs a second build of the product: cargo xtask upgrades"]
fn no_upgrade_lets_anybody_in_or_breaks_a_connection() -> Result<()> {
    let other = env::var_os("ENFORCER_OTHER_BIN").context("ENFORCER_OTHER_BIN is not set")?;
    let builds = [
        tools::enforcer()?,
        Tool {
            path: other.into(),
            libraries: Vec::new(),
        },
    ];
    let lab = Lab::builder().etcd().apiserver().bystanders().build()?;
    let policies = two_policies();
    let mut running = Agent::start_of(&lab, "cp1", &policies[0], &builds[0])?;
    let _other = Agent::start(&lab, "w1", &policies[0])?;
    let traffic = Traffic::start(&lab)?;
    let mut layouts = instances(&lab)?;
    for upgrade in 1..=times("ENFORCER_UPGRADES", 6) {
        match upgrade % 4 {
            0 => running.kill()?,
            _ => drop(running.leave()?.checked()?),
        }
        let policy = &policies[upgrade / 3 % 2];
        running = Agent::start_of(&lab, "cp1", policy, &builds[upgrade % 2])?;
        traffic.nobody_got_in(&format!("upgrade {upgrade}"))?;
        is_enforced(&lab, &format!("upgrade {upgrade}"))?;
        let now = instances(&lab)?;
        ensure!(now.len() == 1, "upgrade {upgrade}: {now:?}");
        let digest = |names: &[String]| names[0].split('-').next().map(str::to_owned);
        ensure!(
            digest(&now) != digest(&layouts),
            "both builds have one layout: {now:?}"
        );
        layouts = now;
    }
    traffic.ends_well()?;
    running.stop()?.checked()?;
    traffic.get_in()?;
    lab.close()
}
