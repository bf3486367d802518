//! Full disks, file systems that are read-only, files that are cut short: it is said what is the matter, and what is in force
//! stays in force.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, port};
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, tools};

/// How long an agent may take to answer, on a busy machine.
const SOON: Duration = Duration::from_secs(40);
/// Where the lab has the product keep confirmed policies.
const STATE: &str = "/run/enforcer-state";

fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.command_of(&tools::enforcer()?)?.args(args).run()
}

/// Runs commands on that host, whose mounts are its own.
fn shell(lab: &Lab, line: &str) -> Result<()> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.run("/bin/sh", ["-euc", line])?.checked()?;
    Ok(())
}

/// Whether a pod is kept from etcd.
fn is_enforced(lab: &Lab) -> Result<bool> {
    let outcome = lab.pod("pod-a").connect(CP1.at(port::ETCD_CLIENT))?;
    Ok(outcome == Outcome::Timeout)
}

fn without_dns() -> PolicyText {
    PolicyText {
        disable: vec!["dns"],
        ..PolicyText::default()
    }
}

#[test]
fn a_full_disk_keeps_the_last_policy_in_force() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    ensure!(!is_enforced(&lab)?, "twin");
    shell(
        &lab,
        &format!(
            "mkdir {STATE}; mount -t tmpfs -o size=64k none {STATE}; dd if=/dev/zero of={STATE}/filler bs=4k || true"
        ),
    )?;
    // It enforces all the same, and says what it could not write.
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--manual"])?;
    ensure!(is_enforced(&lab)?, "with a full disk");
    let log = agent.running().stderr();
    ensure!(
        log.contains("policies.json") && log.contains("after a restart of this machine"),
        "{log}"
    );
    // What could not be taken back after a reboot is not put in force with a deadline.
    let generation = agent.generation()?;
    fs::write(agent.policy(), without_dns().yaml(&lab))?;
    let refused = enforcer(&lab, &["apply", "--confirm-within", "60s"])?;
    ensure!(
        refused.code() == Some(2)
            && refused.stderr.contains("policies.json")
            && refused.stderr.contains("No space left"),
        "{refused}"
    );
    ensure!(agent.generation()? == generation, "it was put in force");
    shell(&lab, &format!("rm {STATE}/filler"))?;
    enforcer(&lab, &["apply", "--confirm-within", "60s"])?.checked()?;
    enforcer(&lab, &["confirm"])?.checked()?;
    ensure!(agent.generation()? > generation, "with room");
    agent.stop()?.checked()?;
    lab.close()
}

#[test]
fn a_state_file_that_is_cut_short_is_reported() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    agent.stop()?.checked()?;
    let whole = Agent::start(&lab, "cp1", &policy)?;
    let log = whole.running().stderr();
    ensure!(
        !log.contains("which policies were confirmed"),
        "twin: {log}"
    );
    whole.stop()?.checked()?;
    shell(
        &lab,
        &format!("cd {STATE}; head -c 20 policies.json > cut; mv cut policies.json"),
    )?;
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let log = agent.running().stderr();
    ensure!(
        log.contains("failed to read")
            && log.contains("which policies were confirmed is not known"),
        "{log}"
    );
    ensure!(is_enforced(&lab)?, "with a state file that is cut short");
    agent.stop()?.checked()?;
    lab.close()
}

#[test]
fn what_is_in_force_stays_where_nothing_can_be_written() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let file = agent.policy().to_string_lossy().into_owned();
    agent.kill()?;
    let start = |more: &[&str]| {
        enforcer(
            &lab,
            &[&["run", "--node", "cp1", "-p", &file], more].concat(),
        )
    };
    shell(
        &lab,
        "mkdir /run/ro /run/ro-bpf; mount -t tmpfs -o ro none /run/ro; mount -t bpf -o ro none /run/ro-bpf",
    )?;
    for (what, more, part) in [
        (
            "no run directory",
            ["--run-dir", "/run/ro/enforcer"],
            "/run/ro/enforcer",
        ),
        (
            "no pins",
            ["--pin-dir", "/run/ro-bpf/enforcer"],
            "/run/ro-bpf/enforcer",
        ),
    ] {
        let refused = start(&more)?;
        ensure!(
            refused.code() == Some(2)
                && refused.stderr.contains(part)
                && refused.stderr.contains("Read-only file system"),
            "{what}: {refused}"
        );
        ensure!(is_enforced(&lab)?, "{what}");
    }
    // No policy where the file was: the last one that was confirmed stays, and the agent says so.
    fs::remove_file(&file).context("the policy's file")?;
    fs::create_dir(&file)?;
    let agent = lab
        .daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .args(["run", "--node", "cp1", "-p", &file])
        .spawn()?;
    let deadline = Instant::now() + patient(SOON);
    while !enforcer(&lab, &["status"])?.ok() {
        ensure!(Instant::now() < deadline, "{}", agent.stderr());
        thread::sleep(Duration::from_millis(50));
    }
    let log = agent.stderr();
    ensure!(
        log.contains("there is no policy in this directory")
            && log.contains("what was in force stays in force"),
        "{log}"
    );
    ensure!(is_enforced(&lab)?, "an empty directory");
    enforcer(&lab, &["detach"])?.checked()?;
    ensure!(!is_enforced(&lab)?, "detached");
    lab.close()
}
