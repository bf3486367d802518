//! `cargo xtask demo`: the product at work, in the lab.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::{lab, setup};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed to the demo unchanged; `cargo xtask demo -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the demo, and ends with its exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    lab::run_binary("enforcer-demo", &setup::Part::FOR_LAB, &args.args)
}
