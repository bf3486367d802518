//! `enforcer status`.

use clap::Args;
use enforcer_policy::{model::Mode, text::shown};

use super::{AgentArguments, Format, Outcome, print_json, print_result};
use crate::{
    agent::client,
    api::{Attachment, PathCount, Status, Word},
};

/// Say what is in force here, and its effect so far
///
/// Says what is in force on this node: mode, policy, attachments, what has no effect, and how many
/// packets each path and each reason saw.
///
/// Interfaces, and paths that no packet used, are summed up; --verbose shows each, and the JSON has
/// all.
///
/// Example: enforcer status -o json
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
    /// Show every attachment and every path
    #[arg(short, long)]
    verbose: bool,
}

/// Enough names for a person to see what the line is about.
const NAMED: usize = 8;
/// Where a line of names is cut.
const COLUMNS: usize = 100;

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    let status = client::status(&arguments.agent.run_dir, &arguments.agent.pin_dir)?;
    if format == Format::Json {
        print_json(&status)
    } else {
        print_status(&status.body, arguments.verbose)
    }
}

/// What a person should look at.
fn print_problems(status: &Status) -> Outcome {
    if let Some(time) = &status.confirm_by {
        print_result(&format!(
            "CONFIRM   generation {} waits for `enforcer confirm`: the policy before is in force again from {time} on",
            status.generation
        ))?;
    }
    if let Some(probing) = &status.probing {
        let (expected, silent) = (probing.expected, probing.silent.len() as u64);
        print_result(&format!(
            "          by probes: {} of {expected} that were alive before are alive",
            expected.saturating_sub(silent)
        ))?;
        for what in &probing.silent {
            print_result(&format!("          silent: {}", shown(what)))?;
        }
    }
    if let Some(what) = &status.rolled_back {
        print_result(&format!("ROLLBACK  {what}"))?;
    }
    if let Some(error) = &status.last_error {
        let since = status.last_error_since.as_deref().unwrap_or_default();
        print_result(&format!(
            "ERROR     a newer policy is not in force: {error}\n          broken since {since}"
        ))?;
    } else if let Some(repaired) = &status.repaired {
        print_result(&format!(
            "repaired  the policy was broken from {} to {}: {}",
            repaired.broken_since,
            repaired.repaired_at,
            shown(&repaired.error)
        ))?;
    }
    if let Some(error) = &status.not_attached {
        print_result(&format!("ERROR     an interface is not enforced: {error}"))?;
    }
    for problem in &status.problems {
        print_result(&format!(
            "ERROR     since {}: {}",
            problem.since, problem.what
        ))?;
    }
    for warning in &status.warnings {
        print_result(&format!("WARNING   {}", shown(warning)))?;
    }
    for table in status.tables.iter().filter(|table| table.is_nearly_full()) {
        print_result(&format!(
            "WARNING   table {} has {} of {} entries. When it is full: {}",
            shown(&table.name),
            table.entries.unwrap_or_default(),
            table.capacity,
            shown(&table.when_full)
        ))?;
    }
    for listener in &status.listeners {
        print_result(&format!("WARNING   {listener}"))?;
    }
    Ok(())
}

fn print_status(status: &Status, all: bool) -> Outcome {
    let mode = match &status.mode {
        Word::Known(Mode::DryRun) => "dry-run: nothing is dropped".to_owned(),
        Word::Known(Mode::Enforce) => "enforced: denied connections are dropped".to_owned(),
        // From a newer agent.
        other => other.to_string(),
    };
    print_result(&format!("node      {} (agent {})", status.node, status.pid))?;
    print_result(&format!("mode      {mode}"))?;
    print_result(&format!("other     otherTraffic: {}", status.other_traffic))?;
    print_result(&format!(
        "policy    {}, generation {} since {}, digest {}",
        status.policy,
        status.generation,
        status.since,
        status.digest.get(..12).unwrap_or(&status.digest)
    ))?;
    match &status.pinned_at {
        Some(path) => print_result(&format!(
            "pinned    at {}: enforcement outlives the agent",
            shown(path)
        ))?,
        None => print_result("pinned    no: enforcement ends with the agent")?,
    }
    print_problems(status)?;
    print_attachments(&status.attachments, all)?;
    for feature in &status.kernel {
        print_result(&format!("kernel    {feature}"))?;
    }
    for note in &status.notes {
        print_result(&format!("note      {}", shown(note)))?;
    }
    print_result("")?;
    print_paths(&status.paths, all)?;
    print_result(&format!(
        "other     {:10}             passed by otherTraffic",
        status.other_traffic_packets
    ))?;
    for reason in &status.reasons {
        let (denied, would) = (reason.denied, reason.would_deny);
        print_result(&format!(
            "denied    {denied:10} {would:10}  {} (denied, would deny)",
            reason.reason
        ))?;
    }
    if status.cut_packets > 0 {
        print_result(&format!(
            "cut       {:10}             packets of connections that a TLS lock has cut off already",
            status.cut_packets
        ))?;
    }
    if status.records_lost + status.records_evicted > 0 {
        print_result(&format!(
            "records   {} denials had no room, {} were removed for others; the counters hold all",
            status.records_lost, status.records_evicted
        ))?;
    }
    for table in status.tables.iter().filter(|_| all) {
        let entries = table
            .entries
            .map_or_else(|| "?".to_owned(), |entries| entries.to_string());
        print_result(&format!(
            "table     {entries:>10} {:10}  {} (entries, room for)",
            table.capacity,
            shown(&table.name)
        ))?;
    }
    Ok(())
}

/// One line for all programs at a cgroup, and one for all interfaces with the same programs.
fn print_attachments(attachments: &[Attachment], all: bool) -> Outcome {
    // The hooks at each place, by method.
    let mut places: Vec<(&Attachment, Vec<String>)> = Vec::new();
    for attachment in attachments {
        let same = |a: &Attachment| a.place == attachment.place && a.how == attachment.how;
        let mut hook = attachment.hook.to_string();
        if all {
            hook = format!("{hook} {}", shown(&attachment.program));
        }
        match places.last_mut() {
            // IPv4 and IPv6 programs share a hook.
            Some((first, hooks)) if same(first) && hooks.last() == Some(&hook) => {}
            Some((first, hooks)) if same(first) => hooks.push(hook),
            _ => places.push((attachment, vec![hook])),
        }
    }
    // The same programs in the same role, and the places.
    let mut lines: Vec<(String, String, Vec<String>)> = Vec::new();
    for (first, hooks) in places {
        let what = format!("{} by {}", hooks.join(", "), first.how);
        let role = first.role.as_ref();
        let role = role.map_or_else(String::new, |role| format!(" ({role})"));
        let place = shown(&first.place).into_owned();
        let same = lines
            .iter_mut()
            .find(|line| line.0 == what && line.1 == role);
        match same {
            Some((_, _, places)) if !all => places.push(place),
            _ => lines.push((what, role, vec![place])),
        }
    }
    for (what, role, places) in lines {
        print_result(&format!("attached  {what} at {}{role}", listed(&places)))?;
    }
    Ok(())
}

fn print_paths(paths: &[PathCount], all: bool) -> Outcome {
    let is_used = |path: &PathCount| path.forward + path.reply > 0;
    for path in paths.iter().filter(|path| all || is_used(path)) {
        let unused = match (is_used(path), path.elsewhere) {
            (true, _) => "",
            (false, true) => "  not for this node",
            (false, false) => "  never used",
        };
        let name = shown(&path.name);
        let (forward, reply) = (path.forward, path.reply);
        print_result(&format!(
            "path      {forward:10} {reply:10}  {name}{unused}"
        ))?;
    }
    if all {
        return Ok(());
    }
    let unused = paths.iter().filter(|path| !is_used(path));
    let (elsewhere, never): (Vec<_>, Vec<_>) = unused.partition(|path| path.elsewhere);
    if !never.is_empty() {
        let mut line = format!("unused    {} never used:", never.len());
        let last = never.len() - 1;
        for (index, path) in never.into_iter().enumerate() {
            let comma = if index < last { "," } else { "" };
            let name = format!(" {}{comma}", shown(&path.name));
            if line.len() + name.len() > COLUMNS {
                print_result(&line)?;
                line = " ".repeat(9);
            }
            line += &name;
        }
        print_result(&line)?;
    }
    if !elsewhere.is_empty() {
        print_result(&format!(
            "elsewhere {} of {} paths do not concern this node",
            elsewhere.len(),
            paths.len()
        ))?;
    }
    Ok(())
}

/// Names in a line; only the first ones if there are many.
fn listed(names: &[String]) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>();
    match names.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more (--verbose)", named.join(", ")),
    }
}
