//! `enforcer apply`, `enforcer confirm` and `enforcer rollback`.

use std::time::Duration;

use clap::Args;

use super::{AgentArguments, Format, Outcome, print_json, print_result};
use crate::{
    agent::client,
    api::{Applied, Document},
};

/// How long a policy waits to be confirmed by default.
const CONFIRM_WITHIN: &str = "60s";
/// Longer than anybody watches a terminal, and short enough for the kernel's clock.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Put in force what the policy's files hold now
///
/// Has the agent read its files and put them in force. With --confirm-within, the kernel programs
/// go back to the previous policy by themselves unless `enforcer confirm` comes in time: that works
/// without the agent and without this terminal. A policy that was not confirmed is put in force
/// again only on request, even after a reboot. Applying the same policy again while it waits gives
/// it the full time again.
///
/// Example: enforcer apply --confirm-within 60s
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
    /// Go back unless `enforcer confirm` comes within this time; 60 s if it is not given a time
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = CONFIRM_WITHIN, value_parser = limited)]
    confirm_within: Option<humantime::Duration>,
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
    let within = arguments.confirm_within.map(Into::into);
    print(&client::apply(&arguments.agent.run_dir, within)?, format)
}

pub fn confirm(arguments: &Answered, format: Format) -> Outcome {
    print(&client::confirm(&arguments.agent.run_dir)?, format)
}

pub fn roll_back(arguments: &RolledBack, format: Format) -> Outcome {
    print(&client::roll_back(&arguments.agent.run_dir)?, format)
}

fn print(applied: &Document<Applied>, format: Format) -> Outcome {
    if format == Format::Json {
        return print_json(applied);
    }
    let Applied {
        policy,
        generation,
        confirm_by,
    } = &applied.body;
    let name = enforcer_policy::text::shown(policy);
    print_result(&match confirm_by {
        Some(time) => format!(
            "policy `{name}` is in force, generation {generation}; the one before is in force again from {time} on unless \
             `enforcer confirm` comes"
        ),
        None => format!("policy `{name}` is in force, generation {generation}"),
    })
}
