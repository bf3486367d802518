//! `cargo xtask lab`: opens the lab. Also what the demo and the lab tests have in common with it.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Result, bail};

use crate::{build, setup, shell};

/// Options of `cargo xtask lab`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Passed to the lab unchanged; `cargo xtask lab -- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Opens the lab, and ends with its exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    run_binary("enforcer-lab", &setup::Part::FOR_LAB, &args.args)
}

/// Builds the product and a binary that uses the lab, and runs that binary as root. Without root,
/// everything is built, so that the command left to run with sudo compiles nothing and creates no
/// file in `target`.
pub fn run_binary(name: &str, parts: &[setup::Part], args: &[OsString]) -> Result<ExitCode> {
    setup::ensure(parts)?;
    let mut build = build::release();
    for package in ["enforcer", "enforcer-tests", "enforcer-bench"] {
        // The benchmark is built only for itself, so that others need not wait for it.
        if package != "enforcer-bench" || parts.contains(&setup::Part::Peers) {
            build.args(["--package", package]);
        }
    }
    build.arg("--bins");
    shell::run_in_sight(&mut build)?;

    let mut command = Command::new(build::binary(name));
    command.args(args);
    environment(&mut command);
    if !shell::is_root() {
        bail!(
            "network namespaces and kernel programs need root; everything is built, so run\n    \
             sudo env {}",
            shell::display(&command)
        );
    }
    shell::exit_code_of(&mut command)
}

/// Tells the lab where the product and the servers are.
pub fn environment(command: &mut Command) {
    let mut path: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    // Debian's `ip` and `nft` are here, which may be missing from a user's path.
    for directory in ["/usr/sbin", "/sbin"] {
        if !path.iter().any(|present| present.as_os_str() == directory) {
            path.push(directory.into());
            if let Ok(joined) = std::env::join_paths(&path) {
                command.env("PATH", joined);
            }
        }
    }
    command
        .env("ENFORCER_BIN", build::binary("enforcer"))
        .env("ENFORCER_LAB_TOOLS", setup::lab_tools());
}
