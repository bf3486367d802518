//! Debian's packages.

use std::{process::Command, sync::OnceLock};

use anyhow::{Result, bail};

use crate::shell;

/// Installs packages, as root; otherwise the error says what to run.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !available() {
        bail!(
            "there is no apt-get here. Install the like of Debian's {}",
            packages.join(", ")
        );
    }
    if !shell::is_root() {
        bail!("installing packages needs root. Run\n    {by_hand}");
    }
    if packages.iter().any(|package| candidate(package).is_none()) {
        update();
    }
    let mut arguments = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    // An outdated list names files that no longer exist; updating it helps.
    if run(&arguments).is_ok() {
        return Ok(());
    }
    update();
    run(&arguments)
}

/// Whether this machine has apt.
pub fn available() -> bool {
    shell::which("apt-get").is_some() && shell::which("dpkg-deb").is_some()
}

/// The version that would be installed.
pub fn candidate(package: &str) -> Option<String> {
    let policy = shell::output_of(apt("apt-cache").args(["policy", package]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Updates the package lists: once per run, and only as root. A failure shows up later, when
/// something is missing.
pub fn update() {
    static ONCE: OnceLock<()> = OnceLock::new();
    if available() && shell::is_root() {
        ONCE.get_or_init(|| {
            let _ = run(&["update"]);
        });
    }
}

/// Runs `apt-get`, with its output in a log that is shown on failure.
pub fn run(arguments: &[&str]) -> Result<()> {
    let log = shell::log_path("setup-apt")?;
    let mut command = apt("apt-get");
    // Another apt may be running, as on a machine that has just started.
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    if shell::run_logged(&mut command, &log)? {
        return Ok(());
    }
    bail!(
        "{} failed:\n{}",
        shell::display(&command),
        shell::failure(&log)
    );
}

fn apt(program: &str) -> Command {
    let mut command = Command::new(program);
    // Its output is parsed above, and it must not ask questions.
    command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}
