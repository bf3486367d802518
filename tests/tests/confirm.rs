//! Policies with a deadline: the kernel programs go back to the previous policy by themselves,
//! whatever happens to the agent.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, LOOPBACK, port};
use enforcer_tests::probe::Hold;
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::random::{self, Random};
use enforcer_tests::{Lab, Outcome, Workload, tools};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(3);
/// Long enough for what a test does before it expires.
const DEADLINE: Duration = Duration::from_secs(6);
/// Longer than any test.
const LONG: &str = "10m";

fn deadline() -> String {
    format!("{}s", patient(DEADLINE).as_secs())
}

fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.command_of(&tools::enforcer()?)?.args(args).run()
}

/// The output of a shell command on that host.
fn fs_of(lab: &Lab, line: &str) -> Result<String> {
    let workload = lab.daemon("cp1", "enforcer");
    let ran = workload.run("/bin/sh", ["-euc", line])?.checked()?;
    Ok(ran.stdout)
}

/// A policy that takes away the insecure port from those who may use it.
fn without() -> PolicyText {
    PolicyText {
        disable: vec!["insecure-port"],
        ..PolicyText::default()
    }
}

fn use_insecure_port(lab: &Lab) -> Result<Outcome> {
    lab.controller_manager()
        .connect(LOOPBACK.at(port::INSECURE))
}

/// Waits until a client reaches something again, or no longer does.
fn comes_to(
    workload: &Workload,
    to: std::net::SocketAddr,
    wanted: Outcome,
    at_most: Duration,
) -> Result<()> {
    let end = Instant::now() + at_most;
    loop {
        let outcome = workload.connect(to)?;
        if outcome == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < end, "it stays {outcome}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn json(ran: &Ran) -> Result<Value> {
    Ok(serde_json::from_str(&ran.stdout)?)
}

/// As on a node that a person works on: changes wait to be applied.
fn manual(lab: &Lab, policy: &PolicyText) -> Result<Agent> {
    Agent::start_with(lab, "cp1", policy, &["--manual"])
}

#[test]
fn the_programs_roll_back_without_an_agent() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let policy = PolicyText::default();
    for mode in ["auto", "clsact"] {
        // No policy was ever confirmed here.
        let host = lab.daemon("cp1", "enforcer");
        host.run("/bin/rm", ["-rf", "/run/enforcer-state"])?
            .checked()?;
        let agent = Agent::start_with(&lab, "cp1", &policy, &["--manual", "--tc", mode])?;
        let generation = agent.generation()?;
        ensure!(use_insecure_port(&lab)? == Outcome::Connected, "before");
        fs::write(agent.policy(), without().yaml(&lab))?;
        let ran = enforcer(&lab, &["apply", "--confirm-within", &deadline()])?.checked()?;
        let began = Instant::now();
        ensure!(
            ran.stdout.contains("unless `enforcer confirm` comes"),
            "{ran}"
        );
        let outcome = use_insecure_port(&lab)?;
        // A very slow machine may have passed the deadline already.
        let in_time = began.elapsed() < patient(DEADLINE);
        ensure!(outcome == Outcome::Eperm || !in_time, "applied: {outcome}");
        // Now no agent is left that could do anything.
        agent.kill()?;
        comes_to(
            &lab.controller_manager(),
            LOOPBACK.at(port::INSECURE),
            Outcome::Connected,
            patient(DEADLINE + SOON),
        )?;
        let intruder = lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))?;
        ensure!(intruder == Outcome::Eperm, "the policy before: {intruder}");
        let ran = enforcer(&lab, &["status"])?;
        ensure!(
            ran.stderr
                .contains(&format!("generation {generation}, is in force")),
            "{ran}"
        );
        // The next agent says so, and does nothing more: its files hold what nobody confirmed.
        let file = lab.directory().join("cp1.yaml");
        let agent = Agent::start_with(&lab, "cp1", &without(), &["--manual", "--tc", mode])?;
        ensure!(
            fs::read_to_string(&file)? == without().yaml(&lab),
            "its files"
        );
        ensure!(
            use_insecure_port(&lab)? == Outcome::Connected,
            "the next agent"
        );
        let status = agent.status()?;
        ensure!(
            status["lastError"]
                .as_str()
                .is_some_and(|error| error.contains("was not confirmed")),
            "{status:#}"
        );
        // Even with nothing pinned any more, as after a reboot.
        agent.stop()?.checked()?;
        let agent = Agent::start_with(&lab, "cp1", &without(), &["--tc", mode])?;
        ensure!(
            use_insecure_port(&lab)? == Outcome::Connected,
            "after a restart"
        );
        // A person may request it all the same.
        enforcer(&lab, &["apply"])?.checked()?;
        ensure!(use_insecure_port(&lab)? == Outcome::Eperm, "applied again");
        let status = agent.status()?;
        ensure!(
            status["lastError"].is_null() && status["confirmBy"].is_null(),
            "{status:#}"
        );
        agent.stop()?.checked()?;
    }
    lab.close()
}

#[test]
fn confirmed_policies_stay_and_rolled_back_ones_do_not() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = manual(&lab, &PolicyText::default())?;
    let ran = enforcer(&lab, &["confirm"])?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("nothing waits to be confirmed"),
        "{ran}"
    );
    let ran = enforcer(&lab, &["rollback"])?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("no policy was confirmed"),
        "{ran}"
    );
    // A change alone has no effect.
    fs::write(agent.policy(), without().yaml(&lab))?;
    let end = Instant::now() + patient(Duration::from_secs(8));
    while agent.status()?["lastError"].is_null() {
        ensure!(Instant::now() < end, "the change is not reported");
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(use_insecure_port(&lab)? == Outcome::Connected, "by itself");

    // Rolled back by request.
    let generation = agent.generation()?;
    enforcer(&lab, &["apply", "--confirm-within", LONG])?.checked()?;
    ensure!(agent.generation()? == generation + 1, "applied");
    ensure!(use_insecure_port(&lab)? == Outcome::Eperm, "applied");
    ensure!(
        agent.status()?["confirmBy"].is_string(),
        "{:#}",
        agent.status()?
    );
    enforcer(&lab, &["rollback"])?.checked()?;
    ensure!(agent.generation()? == generation, "taken back");
    ensure!(use_insecure_port(&lab)? == Outcome::Connected, "taken back");
    let status = agent.status()?;
    ensure!(
        status["rolledBack"]
            .as_str()
            .is_some_and(|what| what.contains("by request")),
        "{status:#}"
    );

    // Again; meanwhile another policy is refused, and the same one gets more time.
    let applied = enforcer(&lab, &["apply", "--confirm-within", LONG, "-o", "json"])?.checked()?;
    let first = json(&applied)?["confirmBy"].clone();
    let state = fs_of(&lab, "cat /run/enforcer-state/policies.json")?;
    let state: Value = serde_json::from_str(&state)?;
    let unconfirmed = state["unconfirmed"].clone();
    ensure!(unconfirmed.is_string(), "{state:#}");
    ensure!(
        agent.generation()? == generation + 2,
        "a number is used once"
    );
    fs::write(agent.policy(), PolicyText::dry_run().yaml(&lab))?;
    let refused = enforcer(&lab, &["apply", "-o", "json"])?;
    ensure!(
        refused.code() == Some(2) && refused.stderr.contains("\"Unconfirmed\""),
        "{refused}"
    );
    // It is also still recorded that the first one is unconfirmed, in case everything ends now.
    let refused = enforcer(&lab, &["apply", "--confirm-within", LONG])?;
    ensure!(refused.code() == Some(2), "{refused}");
    let state = fs_of(&lab, "cat /run/enforcer-state/policies.json")?;
    let state: Value = serde_json::from_str(&state)?;
    let waiting = state["unconfirmed"].clone();
    ensure!(waiting == unconfirmed, "{waiting} {unconfirmed}");
    fs::write(agent.policy(), without().yaml(&lab))?;
    let again = enforcer(&lab, &["apply", "--confirm-within", "20m", "-o", "json"])?.checked()?;
    let second = json(&again)?["confirmBy"].clone();
    ensure!(first.as_str() < second.as_str(), "{first} {second}");
    enforcer(&lab, &["confirm"])?.checked()?;
    ensure!(use_insecure_port(&lab)? == Outcome::Eperm, "confirmed");
    ensure!(
        agent.status()?["confirmBy"].is_null(),
        "{:#}",
        agent.status()?
    );
    agent.kill()?;
    let agent = manual(&lab, &without())?;
    ensure!(
        use_insecure_port(&lab)? == Outcome::Eperm,
        "confirmed, the next agent"
    );

    // Back to what was confirmed before. The files do not hold it, but it stays in force.
    enforcer(&lab, &["rollback"])?.checked()?;
    ensure!(
        use_insecure_port(&lab)? == Outcome::Connected,
        "rolled back"
    );
    agent.kill()?;
    let agent = manual(&lab, &without())?;
    ensure!(
        use_insecure_port(&lab)? == Outcome::Connected,
        "rolled back, the next agent"
    );
    agent.stop()?.checked()?;
    lab.close()
}

/// The next agent continues to wait, and cgroups that appear meanwhile are known to both policies.
#[test]
fn an_unconfirmed_policy_outlives_the_agent() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = manual(&lab, &PolicyText::default())?;
    let held = lab
        .controller_manager()
        .hold(Hold::http(LOOPBACK.at(port::INSECURE)))?;
    fs::write(agent.policy(), without().yaml(&lab))?;
    enforcer(&lab, &["apply", "--confirm-within", LONG])?.checked()?;
    held.wait_for_end(SOON)?;
    let generation = agent.generation()?;
    agent.kill()?;
    let agent = manual(&lab, &without())?;
    let status = agent.status()?;
    ensure!(
        status["generation"].as_u64() == Some(generation) && status["confirmBy"].is_string(),
        "{status:#}"
    );
    // A recreated static pod has another cgroup.
    let pod = lab.static_pod("cp1", "scheduler");
    let (directory, before) = (pod.cgroup().directory(), pod.cgroup().id()?);
    fs::remove_dir(directory)?;
    fs::create_dir(directory)?;
    ensure!(pod.cgroup().id()? != before, "the same cgroup");
    let end = Instant::now() + patient(SOON);
    while agent.status()?["problems"]
        .as_array()
        .is_some_and(|p| !p.is_empty())
    {
        ensure!(Instant::now() < end, "{:#}", agent.status()?);
    }
    thread::sleep(Duration::from_millis(300));
    enforcer(&lab, &["rollback"])?.checked()?;
    ensure!(
        use_insecure_port(&lab)? == Outcome::Connected,
        "rolled back"
    );
    let outcome = pod.connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(
        outcome == Outcome::Connected,
        "a cgroup of meanwhile: {outcome}"
    );
    agent.stop()?.checked()?;
    lab.close()
}

/// An agent with another map layout does not keep an unconfirmed policy.
#[test]
fn an_upgrade_confirms_no_policy() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = manual(&lab, &PolicyText::default())?;
    fs::write(agent.policy(), without().yaml(&lab))?;
    enforcer(&lab, &["apply", "--confirm-within", LONG])?.checked()?;
    ensure!(use_insecure_port(&lab)? == Outcome::Eperm, "applied");
    agent.kill()?;
    fs_of(&lab, "cd /sys/fs/bpf/enforcer; mv * 00000000deadbeef-7")?;
    let agent = manual(&lab, &without())?;
    ensure!(
        use_insecure_port(&lab)? == Outcome::Connected,
        "confirmed by nobody"
    );
    let status = agent.status()?;
    ensure!(
        status["confirmBy"].is_null()
            && status["lastError"]
                .as_str()
                .is_some_and(|error| error.contains("was not confirmed")),
        "{status:#}"
    );
    agent.stop()?.checked()?;
    lab.close()
}

/// A policy that assigns wrong roles to interfaces is rolled back together with these roles.
#[test]
fn roles_of_interfaces_are_rolled_back_too() -> Result<()> {
    let lab = Lab::builder().bystanders().build()?;
    let echo = CP1.at(port::ECHO);
    let (neighbour, pod) = (lab.login("w1"), lab.pod("pod-a"));
    let policy = PolicyText::default();
    let text = policy.yaml(&lab);
    let hostile = text.replace("uplinks: [eth0]", "uplinks: []").replace(
        "podInterfaces: [\"cali*\"]",
        "podInterfaces: [\"cali*\", eth0]",
    );
    ensure!(text != hostile, "{text}");
    let agent = manual(&lab, &policy)?;
    ensure!(neighbour.connect(echo)? == Outcome::Connected, "before");
    ensure!(pod.connect(echo)? == Outcome::Connected, "before");
    fs::write(agent.policy(), &hostile)?;
    enforcer(&lab, &["apply", "--confirm-within", &deadline()])?.checked()?;
    comes_to(&neighbour, echo, Outcome::Timeout, patient(SOON))?;
    agent.kill()?;
    comes_to(
        &neighbour,
        echo,
        Outcome::Connected,
        patient(DEADLINE + SOON),
    )?;
    ensure!(pod.connect(echo)? == Outcome::Connected, "after");
    let agent = Agent::start_with(&lab, "cp1", &policy, &["--manual"])?;
    ensure!(
        neighbour.connect(echo)? == Outcome::Connected,
        "with the next agent"
    );
    agent.stop()?.checked()?;
    lab.close()
}

/// An invalid policy is reported with the location of the error, and changes nothing.
#[test]
fn applying_a_broken_policy_reports_its_error() -> Result<()> {
    let lab = Lab::builder().build()?;
    let agent = manual(&lab, &PolicyText::default())?;
    let generation = agent.generation()?;
    let broken = PolicyText::default().yaml(&lab);
    fs::write(
        agent.policy(),
        broken.replace("otherTraffic:", "otherTrafic:"),
    )?;
    let ran = enforcer(&lab, &["apply", "--confirm-within", LONG])?;
    ensure!(
        ran.code() == Some(2)
            && ran.stderr.contains("cp1.yaml:")
            && ran.stderr.contains("otherTrafic"),
        "{ran}"
    );
    ensure!(agent.generation()? == generation, "applied");
    agent.stop()?.checked()?;
    lab.close()
}

/// How many policies to try: a few, or as many as the environment says.
fn hostile() -> u64 {
    let wanted = std::env::var("ENFORCER_HOSTILE").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Whatever a policy says, and whatever is killed meanwhile: what was reachable before is reachable
/// again after the deadline.
#[test]
fn no_policy_locks_out_for_longer_than_its_deadline() -> Result<()> {
    const CHANGES: [(&str, &str); 7] = [
        ("uplinks: [eth0]", "uplinks: []"),
        (
            "podInterfaces: [\"cali*\"]",
            "podInterfaces: [\"cali*\", eth0]",
        ),
        ("otherTraffic: Allow", "otherTraffic: Drop"),
        ("roles: [control-plane, etcd]", "roles: [worker]"),
        ("roles: [worker]", "roles: [control-plane, etcd]"),
        ("options: [insecure-port]", "options: []"),
        ("podInterfaces: [\"cali*\"]", "podInterfaces: []"),
    ];
    let mut random = Random::new(random::seed()?);
    let lab = Lab::builder().apiserver().bystanders().build()?;
    let policy = PolicyText::default();
    let good = policy.yaml(&lab);
    let (neighbour, echo) = (lab.login("w1"), CP1.at(port::ECHO));
    let (mut applied, mut locked_out) = (0, 0);
    for number in 0..hostile() {
        let agent = manual(&lab, &policy)?;
        ensure!(
            neighbour.connect(echo)? == Outcome::Connected,
            "{number}: before"
        );
        let mut text = good.clone();
        for (from, to) in CHANGES {
            if random.chance(2) {
                text = text.replace(from, to);
            }
        }
        fs::write(agent.policy(), &text)?;
        let ran = enforcer(&lab, &["apply", "--confirm-within", "1s"])?;
        let at = Instant::now();
        applied += u64::from(ran.code() == Some(0));
        let kills = random.chance(2);
        if kills {
            agent.kill()?;
        }
        locked_out += u64::from(neighbour.connect(echo)? != Outcome::Connected);
        comes_to(&neighbour, echo, Outcome::Connected, patient(SOON))?;
        comes_to(
            &lab.controller_manager(),
            LOOPBACK.at(port::INSECURE),
            Outcome::Connected,
            patient(SOON),
        )?;
        println!("policy {number}: {ran}, reachable after {:?}", at.elapsed());
    }
    println!(
        "{applied} policies applied, {locked_out} of them locked a neighbour out, 0 for longer than their deadline"
    );
    // If there are only a few, all may be invalid by chance.
    ensure!(applied > 0 || hostile() < 20, "none was applied");
    // An agent that was stopped and not killed has detached it already.
    let _ = enforcer(&lab, &["detach"])?;
    lab.close()
}
