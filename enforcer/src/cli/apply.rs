//! `enforcer apply`, `enforcer confirm` and `enforcer rollback`.

use std::{thread, time::Duration};

use clap::{Args, ValueEnum};

use super::{AgentArguments, Failure, Format, Outcome, print_json, print_result};
use crate::{
    agent::{Conditions, ToApply, client, session},
    api::{Applied, Document, ErrorCode},
};

/// How long a policy waits to be confirmed by default.
const CONFIRM_WITHIN: &str = "60s";
/// The same for one that probes confirm.
const PROBED_WITHIN: Duration = Duration::from_secs(60);
/// How many findings fit on a screen.
const SHOWN: usize = 20;
/// Longer than anybody watches a terminal, and shorter than the kernel's clock can count.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Put in force what the policy's files hold now
///
/// Has the agent read its files and put them in force. With --confirm-within, the kernel programs
/// go back to the previous policy by themselves unless `enforcer confirm` comes in time: that works
/// without the agent and without this terminal. A policy that was not confirmed is put in force
/// again only on request, even after a reboot. Applying the same policy again while it waits gives
/// it the full time again.
///
/// First, open connections are checked against the policy as `enforcer preflight` does, and those that it cuts are listed. A
/// policy that would cut your own connection is not put in force without --allow-session-cut.
///
/// Example: enforcer apply --confirm-within 60s
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
    /// Go back unless `enforcer confirm` comes within this time; 60 s if it is not given a time
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = CONFIRM_WITHIN, value_parser = limited)]
    confirm_within: Option<humantime::Duration>,
    /// Wait, and confirm the policy once every path and every connection of this node that was alive in the last minute is
    /// alive again. Implies --confirm-within 60s unless another time is given
    #[arg(long, value_name = "WHAT", value_enum)]
    confirm_by: Option<By>,
    /// Put it in force only if it cuts no open connection and refuses no port that is in use
    #[arg(long)]
    require_clean: bool,
    /// Put it in force although it would cut the connection over which you run this command
    #[arg(long)]
    allow_session_cut: bool,
}

/// What confirms a policy by itself.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// What was alive before it
    Probes,
}

/// Keep the policy that is waiting to be confirmed
///
/// Ends the wait of `enforcer apply --confirm-within`. Fails if the time is over, because the
/// previous policy is in force again then.
///
/// Example: enforcer confirm
#[derive(Debug, Args)]
pub struct Answered {
    #[command(flatten)]
    agent: AgentArguments,
}

/// Go back to the previous policy
///
/// Takes back a policy that is waiting to be confirmed, at once. If there is none, puts the policy
/// in force that was confirmed before the last one. What the files hold is not put in force again
/// until `enforcer apply`, or until they change.
///
/// Example: enforcer rollback
#[derive(Debug, Args)]
pub struct RolledBack {
    #[command(flatten)]
    agent: AgentArguments,
}

/// A time between a second and a day.
pub fn limited(text: &str) -> Result<humantime::Duration, String> {
    let duration: humantime::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if (Duration::from_secs(1)..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err("it must be between a second and a day (90s, 5m)".to_owned())
    }
}

pub fn apply(arguments: &Arguments, format: Format) -> Outcome {
    let by_probes = arguments.confirm_by.is_some();
    let within = arguments.confirm_within.map(Into::into);
    let to_apply = ToApply {
        within: within.or(by_probes.then_some(PROBED_WITHIN)),
        by_probes,
        conditions: Conditions {
            requires_clean: arguments.require_clean,
            allows_session_cut: arguments.allow_session_cut,
            session: session(),
        },
    };
    let applied = client::apply(&arguments.agent.run_dir, to_apply)?;
    print(&applied, format)?;
    match applied.body.confirm_by.is_some() && by_probes {
        true => await_probes(&arguments.agent, applied.body.generation, format),
        false => Ok(()),
    }
}

pub fn confirm(arguments: &Answered, format: Format) -> Outcome {
    print(&client::confirm(&arguments.agent.run_dir)?, format)
}

pub fn roll_back(arguments: &RolledBack, format: Format) -> Outcome {
    print(&client::roll_back(&arguments.agent.run_dir)?, format)
}

/// Waits until probes have confirmed a policy, or it is taken back.
fn await_probes(agent: &AgentArguments, generation: u32, format: Format) -> Outcome {
    let status = loop {
        thread::sleep(Duration::from_millis(500));
        let status = client::status(&agent.run_dir, &agent.pin_dir)?.body;
        if status.confirm_by.is_none() {
            break status;
        }
    };
    if status.generation == generation {
        return match format {
            Format::Text => {
                print_result(&format!("generation {generation} is confirmed by probes"))
            }
            Format::Json => Ok(()),
        };
    }
    let what = status.rolled_back.unwrap_or_else(|| {
        format!(
            "generation {generation} is not in force any more; generation {} is",
            status.generation
        )
    });
    Err(Failure::cannot(ErrorCode::TooLate, what))
}

fn print(applied: &Document<Applied>, format: Format) -> Outcome {
    if format == Format::Json {
        return print_json(applied);
    }
    let Applied {
        policy,
        generation,
        confirm_by,
        preflight,
    } = &applied.body;
    let name = enforcer_policy::text::shown(policy);
    if let Some(preflight) = preflight.as_ref().filter(|found| !found.is_clean()) {
        print_result(&format!(
            "{}:\n  {}",
            preflight.summary(),
            preflight.lines(SHOWN).join("\n  ")
        ))?;
    }
    print_result(&match confirm_by {
        Some(time) => format!(
            "policy `{name}` is in force, generation {generation}; the one before is in force again from {time} on unless \
             `enforcer confirm` comes"
        ),
        None => format!("policy `{name}` is in force, generation {generation}"),
    })
}
