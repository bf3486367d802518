//! `enforcer status`.

use clap::Args;

use super::{AgentArguments, Format, Outcome, say, say_json};
use crate::{
    agent::{Status, client},
    text::shown,
};

/// Say what is in force here, and what came of it
///
/// Says what is in force on this node: mode, policy, attachments, what has no effect, and how many
/// packets each path and each reason saw.
///
/// Example: enforcer status -o json
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
}

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    let status = client::status(&arguments.agent.run_dir)?;
    if format == Format::Json {
        say_json(&status)
    } else {
        tell(&status)
    }
}

/// What a person should look at.
fn tell_troubles(status: &Status) -> Outcome {
    if let Some(error) = &status.last_error {
        let since = status.last_error_since.as_deref().unwrap_or_default();
        say(&format!(
            "ERROR     a newer policy is not in force: {error}\n          broken since {since}"
        ))?;
    } else if let Some(repaired) = &status.repaired {
        say(&format!(
            "repaired  the policy was broken from {} to {}: {}",
            repaired.broken_since,
            repaired.repaired_at,
            shown(&repaired.error)
        ))?;
    }
    if let Some(error) = &status.not_attached {
        say(&format!("ERROR     an interface is not enforced: {error}"))?;
    }
    for problem in &status.problems {
        say(&format!(
            "ERROR     since {}: {}",
            problem.since, problem.what
        ))?;
    }
    for warning in &status.warnings {
        say(&format!("WARNING   {}", shown(warning)))?;
    }
    for listener in &status.listeners {
        say(&format!("WARNING   {listener}"))?;
    }
    Ok(())
}

fn tell(status: &Status) -> Outcome {
    let mode = match status.mode.as_str() {
        "DryRun" => "dry-run: nothing is dropped",
        _ => "enforced: denied connections are dropped",
    };
    say(&format!("node      {} (agent {})", status.node, status.pid))?;
    say(&format!("mode      {mode}"))?;
    say(&format!("other     otherTraffic: {}", status.other_traffic))?;
    say(&format!(
        "policy    {}, generation {} since {}, digest {}",
        status.policy, status.generation, status.since, status.digest
    ))?;
    tell_troubles(status)?;
    for a in &status.attachments {
        let role = if a.role.is_empty() {
            String::new()
        } else {
            format!(" ({})", a.role)
        };
        say(&format!(
            "attached  {} at {}{role} by {}",
            a.hook,
            shown(&a.place),
            a.how
        ))?;
    }
    for feature in &status.kernel {
        say(&format!("kernel    {feature}"))?;
    }
    for note in &status.notes {
        say(&format!("note      {}", shown(note)))?;
    }
    say("")?;
    for path in &status.paths {
        let unused = match (path.forward + path.reply, path.elsewhere) {
            (0, true) => "  not for this node",
            (0, false) => "  never used",
            _ => "",
        };
        say(&format!(
            "path      {:10} {:10}  {}{unused}",
            path.forward,
            path.reply,
            shown(&path.name)
        ))?;
    }
    say(&format!(
        "other     {:10}             passed by otherTraffic",
        status.other_traffic_packets
    ))?;
    for reason in &status.reasons {
        let (dropped, would) = (reason.dropped, reason.would_drop);
        say(&format!(
            "denied    {dropped:10} {would:10}  {} (dropped, would drop)",
            reason.reason
        ))?;
    }
    if status.records_lost + status.records_evicted > 0 {
        say(&format!(
            "records   {} denials had no room, {} were removed for others; the counters hold all",
            status.records_lost, status.records_evicted
        ))?;
    }
    Ok(())
}
