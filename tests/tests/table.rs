//! The table of who may connect to what, as the demo shows it, in three rounds: without a policy,
//! in dry-run, enforced. In the first round everything works, so that nothing but the product can
//! be the reason in the last; and `explain` must agree with what happened to the packets.

use anyhow::{Context, Result, ensure};
use enforcer_tests::Lab;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::scenario::{Expected, Family, Row, Tried, Try, rows};

fn full_lab() -> Result<Lab> {
    let mut lab = Lab::builder().full().build()?;
    lab.expose_insecure_port()?;
    lab.expose_loopback()?;
    Ok(lab)
}

fn try_all(lab: &Lab, rows: &[Row]) -> Result<Vec<Tried>> {
    rows.iter()
        .map(|row| row.run(lab).with_context(|| row.name()))
        .collect()
}

fn judge<'a>(agents: &'a [Agent], row: &Row) -> Result<&'a Agent> {
    agents
        .iter()
        .find(|agent| agent.node() == row.judge)
        .context("no agent judges this")
}

fn the_table_holds(family: Family, more: &[&str]) -> Result<()> {
    let lab = full_lab()?;
    let rows = rows(&lab, family);
    for (row, tried) in rows.iter().zip(try_all(&lab, &rows)?) {
        ensure!(
            tried.worked,
            "without a policy: {}: {}",
            row.name(),
            tried.how
        );
    }

    let start = |policy: &PolicyText| -> Result<Vec<Agent>> {
        ["cp1", "w1"]
            .iter()
            .map(|node| Agent::start_with(&lab, node, policy, more))
            .collect()
    };
    let agents = start(&PolicyText::dry_run())?;
    for (row, tried) in rows.iter().zip(try_all(&lab, &rows)?) {
        ensure!(tried.worked, "in dry-run: {}: {}", row.name(), tried.how);
        let agent = judge(&agents, row)?;
        match row.expected {
            Expected::Denied(reason) => {
                agent
                    .event(|event| row.is_about(event))
                    .with_context(|| row.name())?;
                let events = agent.events()?;
                let reported: Vec<_> = events.iter().filter(|event| row.is_about(event)).collect();
                ensure!(
                    reported.len() == 1,
                    "{} is reported {} times: {reported:#?}",
                    row.name(),
                    reported.len()
                );
                ensure!(
                    reported[0].reason == reason,
                    "{}: {:?}",
                    row.name(),
                    reported[0]
                );
                ensure!(
                    reported[0].verdict == "wouldDeny" && reported[0].count > 0,
                    "{:?}",
                    reported[0]
                );
            }
            Expected::Path(path) => {
                let (forward, reply) = agent.path_packets(path)?;
                ensure!(
                    forward > 0 && reply > 0,
                    "{}: {path} {forward}/{reply}",
                    row.name()
                );
            }
            Expected::Other => {}
        }
    }
    for agent in agents {
        agent.stop()?.checked()?;
    }

    let agents = start(&PolicyText::default())?;
    for row in &rows {
        let tried = row.run(&lab)?;
        let agent = judge(&agents, row)?;
        match row.expected {
            Expected::Denied(reason) => {
                ensure!(!tried.worked, "enforced: {} works", row.name());
                let event = agent.event(|event| row.is_about(event))?;
                ensure!(event.reason == reason, "{}: {event:?}", row.name());
                ensure!(event.verdict == "denied", "{event:?}");
            }
            Expected::Path(_) | Expected::Other => {
                ensure!(tried.worked, "enforced: {}: {}", row.name(), tried.how);
                let events = agent.events()?;
                let reported = events.iter().find(|event| row.is_about(event));
                ensure!(
                    reported.is_none(),
                    "{} is allowed and reported: {reported:?}",
                    row.name()
                );
            }
        }
        explain_agrees(agent, row)?;
    }
    Ok(())
}

fn explain_agrees(agent: &Agent, row: &Row) -> Result<()> {
    let to = format!("{}/tcp", row.attempt.address());
    let bind = matches!(row.attempt, Try::Bind(_));
    let mut args = vec!["explain", "--from", &row.from, "--to", &to];
    if bind {
        args.push("--bind");
    }
    // Without -p it explains what is in force.
    let ran = agent.command(&args)?;
    let (code, word) = match row.expected {
        Expected::Denied(reason) => (1, reason),
        Expected::Path(path) => (0, path),
        Expected::Other => (0, "other"),
    };
    ensure!(
        ran.code() == Some(code) && ran.stdout.contains(word),
        "explain of {} says {ran}",
        row.name()
    );
    Ok(())
}

#[test]
fn the_table_holds_for_ipv4() -> Result<()> {
    the_table_holds(Family::V4, &[])
}

#[test]
fn the_table_holds_for_ipv6() -> Result<()> {
    the_table_holds(Family::V6, &[])
}

#[test]
fn the_table_holds_with_clsact_instead_of_tcx() -> Result<()> {
    the_table_holds(Family::V4, &["--tc", "clsact"])
}
