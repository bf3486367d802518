//! `enforcer events`.

use std::ops::ControlFlow;

use clap::Args;

use super::{AgentArguments, Format, Outcome, print_json_line, print_result};
use crate::agent::client;

/// List what was denied, and why
///
/// Lists what was denied on this node, and why: one line for each distinct sender, destination, port,
/// reason and hook, with how often it happened.
///
/// Example: enforcer events --follow -o json
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    agent: AgentArguments,
    /// Keep running, and print new denials as they happen
    #[arg(short, long)]
    follow: bool,
    /// Only what was denied, without what dry-run let pass
    #[arg(long)]
    denied: bool,
}

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    let mut result = Ok(());
    client::events(&arguments.agent.run_dir, arguments.follow, |event| {
        if arguments.denied && !event.body.is_denied() {
            return ControlFlow::Continue(());
        }
        let printed = match format {
            Format::Json => print_json_line(&event),
            Format::Text => print_result(&event.body.to_string()),
        };
        // If the reader has stopped, do not wait for more events.
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                result = Err(failure);
                ControlFlow::Break(())
            }
        }
    })?;
    result
}
