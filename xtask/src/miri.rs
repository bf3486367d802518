//! `cargo xtask miri`: the tests of what the kernel programs share with userspace, under Miri. That
//! crate has no `unsafe` of its own; Miri checks what it depends on.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::shell;

/// Runs the tests under Miri.
///
/// # Errors
///
/// Miri is not installed; the error says what to run.
pub fn run() -> Result<ExitCode> {
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle}");
    }
    shell::exit_code_of(&mut command())
}

/// Why Miri cannot run here, if so.
pub fn obstacle() -> Option<String> {
    let version = Command::new("cargo")
        .args(["+nightly", "miri", "--version"])
        .output();
    let is_here = version.is_ok_and(|output| output.status.success());
    let message =
        "Miri is not installed: `rustup toolchain install nightly --component miri,rust-src`";
    (!is_here).then(|| message.to_owned())
}

/// The tests, as cargo runs them.
pub fn command() -> Command {
    let mut command = Command::new("cargo");
    // Nightly must not use the compiler of the cargo that runs this.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC"] {
        command.env_remove(variable);
    }
    command
        .current_dir(shell::workspace())
        .args(["+nightly", "miri", "test", "--package", "enforcer-common"])
        .arg("--target-dir")
        .arg(shell::target_dir().join("miri"));
    command
}
