//! The lab's helper within a namespace: performs one action there and prints the outcome as JSON.

use std::process::ExitCode;

use clap::Parser;
use enforcer_tests::probe::Probe;

/// Performs one action on the network and prints the outcome as a line of JSON
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    probe: Probe,
}

fn main() -> ExitCode {
    let report = Arguments::parse().probe.perform();
    match serde_json::to_string(&report) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("failed to write the report: {error}"),
    }
    if report.outcome.worked() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
