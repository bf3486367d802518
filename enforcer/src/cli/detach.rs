//! `enforcer detach`.

use clap::Args;

use super::{AgentArguments, Format, Outcome, say, say_json};
use crate::{
    agent::client,
    api::{DetachResult, Document},
};

/// End the agent and take everything off the node that it attached
///
/// Ends the agent of this node and takes off all that it attached, and nothing else; where no agent runs, what one left
/// in force, of whatever version. Comes back when that is done.
///
/// Example: enforcer detach
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
}

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    let AgentArguments { run_dir, pin_dir } = &arguments.agent;
    client::detach(run_dir, pin_dir)?;
    match format {
        Format::Text => say("detached: nothing is enforced on this node"),
        Format::Json => say_json(&Document::new(DetachResult { detached: true })),
    }
}
