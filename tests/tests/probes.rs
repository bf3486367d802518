//! A policy is confirmed by what it leaves alive, and taken back for what it does not.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, LOOPBACK, port};
use enforcer_tests::probe::Hold;
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, tools};

/// How long the command may wait.
const AT_MOST: Duration = Duration::from_secs(90);
/// Two looks at the counters of paths, and one more.
const THREE_LOOKS: Duration = Duration::from_secs(17);

fn apply(lab: &Lab, within: &str) -> Result<Ran> {
    lab.daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .args([
            "apply",
            "--confirm-by",
            "probes",
            "--confirm-within",
            within,
        ])
        .run_within(patient(AT_MOST))
}

fn without_insecure_port() -> PolicyText {
    PolicyText {
        disable: vec!["insecure-port"],
        ..PolicyText::default()
    }
}

/// A policy that leaves out what nobody uses.
fn harmless() -> PolicyText {
    PolicyText {
        disable: vec!["neighbour-discovery"],
        ..PolicyText::default()
    }
}

#[test]
fn connections_confirm_a_policy_or_have_it_taken_back() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let insecure = LOOPBACK.at(port::INSECURE);
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--manual"])?;
    fs::write(agent.policy(), without_insecure_port().yaml(&lab))?;
    // Nothing is alive, so nothing could go wrong.
    let refused = apply(&lab, "60s")?;
    ensure!(
        refused.code() == Some(2) && refused.stderr.contains("probes would confirm any policy"),
        "{refused}"
    );

    let held = lab.controller_manager().hold(Hold::http(insecure))?;
    ensure!(held.is_alive(), "before");
    let began = Instant::now();
    let refused = apply(&lab, "7s")?;
    ensure!(
        refused.code() == Some(2)
            && refused.stderr.contains("were alive before were not after")
            && refused.stderr.contains("to 127.0.0.1 port 8080")
            && refused.stderr.contains("controller-manager"),
        "{refused}"
    );
    ensure!(
        began.elapsed() >= Duration::from_secs(7),
        "before the deadline"
    );
    let outcome = lab.controller_manager().connect(insecure)?;
    ensure!(outcome == Outcome::Connected, "taken back: {outcome}");

    let held = lab.controller_manager().hold(Hold::http(insecure))?;
    ensure!(held.is_alive(), "taken back");
    let generation = agent.generation()?;
    fs::write(agent.policy(), harmless().yaml(&lab))?;
    let confirmed = apply(&lab, "60s")?.checked()?;
    ensure!(
        confirmed.stdout.contains("is confirmed by probes"),
        "{confirmed}"
    );
    ensure!(agent.generation()? > generation, "another generation");
    let status = agent.status()?;
    ensure!(
        status["confirmBy"].is_null() && status["lastError"].is_null(),
        "{status:#}"
    );
    ensure!(held.is_alive(), "confirmed");
    agent.stop()?.checked()?;
    lab.close()
}

/// Forwarded packets and short connections have no socket here that is there before and after: their paths' counters tell.
#[test]
fn paths_have_a_policy_taken_back() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &["--manual"])?;
    let (pod, secure) = (lab.pod("pod-a").clone(), CP1.at(port::APISERVER));
    let ends = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let user = scope.spawn(|| -> Result<()> {
            while !ends.load(Ordering::Relaxed) {
                pod.connect(secure)?;
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        });
        let done = || -> Result<()> {
            thread::sleep(THREE_LOOKS);
            fs::write(
                agent.policy(),
                PolicyText {
                    disable: vec!["pod-to-apiserver"],
                    ..PolicyText::default()
                }
                .yaml(&lab),
            )?;
            let refused = apply(&lab, "8s")?;
            ensure!(
                refused.code() == Some(2) && refused.stderr.contains("path pod-to-apiserver"),
                "{refused}"
            );
            fs::write(agent.policy(), harmless().yaml(&lab))?;
            let confirmed = apply(&lab, "60s")?.checked()?;
            ensure!(
                confirmed.stdout.contains("is confirmed by probes"),
                "{confirmed}"
            );
            Ok(())
        };
        let result = done();
        ends.store(true, Ordering::Relaxed);
        let used = user.join();
        result?;
        used.map_err(|_| anyhow::anyhow!("the pod's thread panicked"))?
    })?;
    agent.stop()?.checked()?;
    lab.close()
}
