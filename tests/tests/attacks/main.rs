//! Every attack that a careful attacker tries, each twice: without a policy, where it reaches its target, and with one,
//! where it does not and is reported with the expected reason. The tables and marks of `docs/threat-model.md` come from
//! this run.

mod attack;
mod bypass;
mod document;
mod elsewhere;
mod host;
mod limits;
mod namespaces;
mod offloads;
mod packets;
mod ports;
mod second;
mod sockets;
mod stage;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::probe::{Probe, Ring};
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload};

use attack::{Attack, Attempt, Others};
use stage::Stage;

/// How long an arrival or a report may take.
const SOON: Duration = Duration::from_secs(2);

fn rows() -> Vec<Attack> {
    [
        sockets::rows(),
        ports::rows(),
        host::rows(),
        bypass::rows(),
        offloads::rows(),
        namespaces::rows(),
        second::rows(),
        packets::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_attack_is_stopped_and_reported() -> Result<()> {
    let stage = Stage::build()?;
    let (mut rows, mut limits) = (rows(), limits::rows());
    // To run only some of them.
    let only = std::env::var("ENFORCER_ATTACKS").ok();
    if let Some(only) = &only {
        rows.retain(|row| row.id.contains(only));
        limits.retain(|limit| limit.id.contains(only));
    }
    let mut failures = Vec::new();
    let mut note = |id: &str, done: Result<()>| match done {
        Ok(()) => true,
        Err(error) => {
            failures.push(format!("{id}: {error:#}"));
            false
        }
    };
    let started = Instant::now();
    let reach = |row: &Attack| {
        let attempt = (row.attempt)(&stage)?;
        if let Some(why) = attempt.skipped {
            println!("{} is not tried: {why}", row.id);
        }
        arrives(&attempt).context("without a policy")
    };
    let mut held: BTreeSet<&str> = rows
        .iter()
        .filter(|row| note(row.id, reach(row)))
        .map(|row| row.id)
        .collect();
    let without = started.elapsed();
    let agents = Agent::on_both(&stage.lab, &PolicyText::default())?;
    for others in [Others::Allow, Others::Drop] {
        if others == Others::Drop {
            let policy = PolicyText {
                other_traffic: "Drop",
                ..PolicyText::default()
            };
            for agent in &agents {
                agent.replace_policy(&stage.lab, &policy)?;
            }
        }
        for row in rows.iter().filter(|row| row.others == others) {
            if !note(row.id, is_stopped(&stage, &agents, row)) {
                held.remove(row.id);
            }
        }
        for limit in limits.iter().filter(|limit| limit.others == others) {
            let attempt = (limit.attempt)(&stage);
            let works = attempt.and_then(|attempt| arrives(&attempt));
            note(limit.id, works.context("is documented as not defended"));
        }
    }
    println!(
        "{} attacks, {} held; {without:?} without a policy, {:?} in all",
        rows.len(),
        held.len(),
        started.elapsed()
    );
    let text = document::text(&rows, &held, &limits)?;
    let documented = only.map_or_else(|| is_documented(&text), |_some| Ok(()));
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    documented?;
    drop(agents);
    stage.lab.close()
}

/// Everything reaches its target.
fn arrives(attempt: &Attempt<'_>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let arrived = (attempt.arrived)()?;
        if arrived == attempt.aimed {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{arrived} of {} arrive",
            attempt.aimed
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_stopped(stage: &Stage, agents: &[Agent], row: &Attack) -> Result<()> {
    let agent = agents.iter().find(|agent| agent.node() == row.judge);
    let agent = agent.with_context(|| format!("no agent on {}", row.judge))?;
    let before = agent.events()?;
    let attempt = (row.attempt)(stage)?;
    if attempt.skipped.is_some() {
        return Ok(());
    }
    let count = |events: &[Event]| -> u64 {
        let about = events
            .iter()
            .filter(|event| is_about(row, attempt.reported, event));
        about.map(|event| event.count).sum()
    };
    let deadline = Instant::now() + SOON;
    loop {
        let events = agent.events()?;
        let reported = count(&events) - count(&before);
        if reported >= attempt.denials {
            break;
        }
        if Instant::now() > deadline {
            let new: Vec<String> = events
                .iter()
                .filter(|event| !before.iter().any(|old| same(old, event)))
                .map(|event| format!("{event:?}"))
                .collect();
            bail!(
                "reported {reported} of {} times, {} of {} arrive; new: {}",
                attempt.denials,
                (attempt.arrived)()?,
                attempt.aimed,
                new.join("\n  ")
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    let arrived = (attempt.arrived)()?;
    ensure!(arrived == 0, "{arrived} arrive");
    Ok(())
}

fn same(a: &Event, b: &Event) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

fn is_about(row: &Attack, reported: Option<SocketAddr>, event: &Event) -> bool {
    let right = event.verdict == "denied" && event.reason == row.reason && event.hook == row.hook;
    let Some(reported) = reported else {
        return right;
    };
    // An unspecified address matches several.
    let ip = reported.ip().is_unspecified() || event.destination == Some(reported.ip().to_string());
    let port = reported.port() == 0 || event.port == Some(reported.port());
    right && ip && port
}

fn is_documented(text: &str) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/threat-model.md");
    if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
        return std::fs::write(&file, text).context("failed to write docs/threat-model.md");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    ensure!(
        written == text,
        "docs/threat-model.md is out of date: run this test with ENFORCER_WRITE_DOCS=1"
    );
    Ok(())
}

#[test]
fn legitimate_offloads_still_work() -> Result<()> {
    let stage = Stage::build()?;
    offloads::honest_ones_pass(&stage).context("without a policy")?;
    let agents = Agent::on_both(&stage.lab, &PolicyText::default())?;
    offloads::honest_ones_pass(&stage).context("under the policy")?;
    drop(agents);
    stage.lab.close()
}

/// In dry-run, bypassing the hooks is permitted and reported. A pod is always permitted to: it is
/// judged where its packets leave its network namespace.
#[test]
fn harmless_bypasses_of_the_hooks_are_permitted() -> Result<()> {
    let lab = Lab::builder().build()?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::dry_run())?;
    let ring = |workload: &Workload| {
        workload
            .probe(&Probe::Ring(Ring::default()))
            .map(|report| report.outcome)
    };
    ensure!(ring(&lab.hostnet("cp1"))? == Outcome::Bound, "in dry-run");
    let event = agent.event(|event| event.reason == "BypassesHooks")?;
    ensure!(
        event.verdict == "wouldDeny"
            && event.subject.name.ends_with("hostnet")
            && event.comm.as_deref() == Some("lab-probe"),
        "{event:?}"
    );
    agent.replace_policy(&lab, &PolicyText::default())?;
    ensure!(ring(&lab.hostnet("cp1"))? == Outcome::Eperm, "enforced");
    ensure!(ring(lab.pod("pod-a"))? == Outcome::Bound, "a pod");
    lab.close()
}

#[test]
fn the_tests_of_the_other_attacks_exist() -> Result<()> {
    let mut ids: BTreeSet<&str> = rows().iter().map(|row| row.id).collect();
    ensure!(ids.len() == rows().len(), "two attacks have one name");
    for limit in limits::rows() {
        ensure!(ids.insert(limit.id), "two attacks are called {}", limit.id);
    }
    for row in elsewhere::rows() {
        ensure!(ids.insert(row.id), "two attacks are called {}", row.id);
        row.is_tested().with_context(|| row.id)?;
    }
    Ok(())
}
