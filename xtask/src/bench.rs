//! `cargo xtask bench`: the product next to its peers, in labs of network namespaces.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::{lab, setup::Part};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed to the benchmark unchanged; `cargo xtask bench -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the benchmark, and ends with its exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    let parts = [Part::Toolchain, Part::Lab, Part::Peers];
    lab::run_binary("enforcer-bench", &parts, &args.args)
}
