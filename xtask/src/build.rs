//! `cargo xtask build`: the release binary.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{setup, shell};

/// Sets up what the build needs, then builds.
pub fn run() -> Result<ExitCode> {
    setup::ensure(&[setup::Part::Toolchain])?;
    shell::run_in_sight(&mut release())?;
    println!("built {}", binary("enforcer").display());
    Ok(ExitCode::SUCCESS)
}

/// `cargo build --release`.
pub fn release() -> std::process::Command {
    let mut command = shell::cargo();
    command.args(["build", "--release"]);
    command
}

/// Where a release build leaves its binary.
pub fn binary(name: &str) -> PathBuf {
    shell::target_dir().join("release").join(name)
}
