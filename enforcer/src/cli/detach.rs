//! `enforcer detach`.

use clap::Args;

use super::{AgentArguments, Format, Outcome, print_json, print_result};
use crate::{
    agent::client,
    api::{DetachResult, Document},
};

/// Stop the agent and detach everything that it attached
///
/// Stops the agent of this node and detaches everything that it attached, and nothing else. If no
/// agent runs, detaches what one left in force, whatever its version. Returns when that is done.
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
        Format::Text => print_result("detached: nothing is enforced on this node"),
        Format::Json => print_json(&Document::new(DetachResult { detached: true })),
    }
}
