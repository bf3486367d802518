//! The lab's hand in a namespace: does one thing from where it stands and tells the outcome as JSON.

use std::process::ExitCode;

use clap::Parser;
use enforcer_tests::probe::Probe;

/// Does one thing on the network and tells the outcome as a line of JSON
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
