//! `cargo xtask test`: every check, with one line for each that passes. The output of each check is
//! in `target/xtask-logs`; that of a failed one is shown, with the command to run by hand.

mod readme;
mod report;

use std::{
    env,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{bpf_toolchain::BpfToolchain, build, kernels, lab, miri, setup, shell};
use report::Report;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leaves out the tests in network namespaces, which need root.
    #[arg(long)]
    no_lab: bool,
    /// Leaves out the other kernels, which run in emulated machines for minutes.
    #[arg(long)]
    no_kernels: bool,
    /// Runs the evaluator over ten million packets (a release build, then five minutes), and no other check.
    #[arg(long, conflicts_with_all = ["no_lab", "no_kernels", "filter"])]
    long: bool,
    /// Kills the agent a thousand times and swaps policies ten thousand times under traffic, and applies a hundred hostile policies with a deadline (forty
    /// minutes), and no other check.
    #[arg(long, conflicts_with_all = ["no_lab", "no_kernels", "filter", "long"])]
    survival: bool,
    /// Runs the tests whose name contains this, and no other check.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

/// Runs the checks. Fails if one failed, or if the lab should have run and could not.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Args {
        no_lab,
        no_kernels,
        long,
        survival,
        filter,
    } = args;
    if *long {
        return long_run(&ORACLE);
    }
    if *survival {
        return long_run(&SURVIVAL);
    }
    let mut parts = vec![setup::Part::Toolchain, setup::Part::Clippy];
    if !no_lab {
        parts.push(setup::Part::Lab);
    }
    setup::ensure(&parts)?;

    let mut report = Report::default();
    if filter.is_none() {
        static_checks(&mut report);
    }
    report.command(
        "unit and documentation tests",
        &mut unit_tests(filter.as_deref()),
    );
    if filter.is_none() {
        under_miri(&mut report);
    }
    if report.command("release build", &mut build::release()) {
        if filter.is_none() {
            report.check("commands in the documents", readme::check);
        }
        lab_tests(&mut report, args);
        if filter.is_none() {
            other_kernels(&mut report, *no_lab || *no_kernels);
        }
    }
    Ok(report.finish())
}

/// Tests that can run for any length of time.
struct Long {
    /// Arguments of `cargo test`.
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// Millions of random policies and packets.
const ORACLE: Long = Long {
    arguments: &["--release", "--test", "oracle", "--", "--nocapture"],
    environment: &[
        ("ENFORCER_ORACLE_PACKETS", "10000000"),
        ("ENFORCER_ORACLE_EACH", "5000"),
    ],
};

/// Kills and deadlines.
const SURVIVAL: Long = Long {
    arguments: &[
        "--test",
        "survival",
        "--test",
        "confirm",
        "--",
        "--nocapture",
        "no_kill_and_no_swap",
        "no_policy_locks_out",
    ],
    environment: &[
        ("ENFORCER_KILLS", "1000"),
        ("ENFORCER_SWAPS", "10000"),
        ("ENFORCER_HOSTILE", "100"),
    ],
};

/// Runs them with visible output: they print their seeds and their figures.
fn long_run(long: &Long) -> Result<ExitCode> {
    setup::ensure(&[setup::Part::Toolchain, setup::Part::Lab])?;
    shell::run_in_sight(&mut build::release())?;
    let mut command = shell::cargo();
    command
        .args(["test", "--package", "enforcer-tests"])
        .args(long.arguments)
        .envs(long.environment.iter().copied());
    lab::environment(&mut command);
    if !shell::is_root() {
        anyhow::bail!(
            "kernel programs need root; cargo stays with the user:\n    {}=\"sudo -E\" {}",
            runner_variable(),
            shell::display(&command)
        );
    }
    shell::exit_code_of(&mut command)
}

/// The checks that run no tests: format, lints, documentation.
fn static_checks(report: &mut Report) {
    report.command("format", shell::cargo().args(["fmt", "--all", "--check"]));
    let mut clippy = shell::cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    report.command("clippy", &mut clippy);
    bpf_clippy(report);
    let mut documentation = shell::cargo();
    documentation
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings");
    report.command("documentation", &mut documentation);
}

/// Clippy on the kernel programs, for their target.
fn bpf_clippy(report: &mut Report) {
    const NAME: &str = "clippy of the kernel programs";
    let toolchain = match BpfToolchain::load(shell::workspace()) {
        Ok(toolchain) => toolchain,
        Err(error) => return report.skip(NAME, &error),
    };
    if !toolchain.bin.join("cargo-clippy").is_file() {
        return report.skip(NAME, "the BPF compiler has no clippy");
    }
    let endian = if cfg!(target_endian = "big") {
        "big"
    } else {
        "little"
    };
    let mut clippy = toolchain.cargo("clippy", endian, env::consts::ARCH);
    clippy
        .current_dir(shell::workspace())
        .arg("--target-dir")
        .arg(shell::target_dir().join("bpf"))
        .args(["--", "-D", "warnings"]);
    report.command(NAME, &mut clippy);
}

/// The tests that need neither root nor a network, including randomized ones.
fn unit_tests(filter: Option<&str>) -> Command {
    let mut command = shell::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--exclude", "enforcer-ebpf", "--exclude", "enforcer-tests"]);
    command.args(filter);
    command
}

/// The shared crate's tests again, where Miri is installed.
fn under_miri(report: &mut Report) {
    const NAME: &str = "shared crate under Miri";
    match miri::obstacle() {
        Some(obstacle) => report.skip(NAME, &obstacle),
        None => {
            report.command(NAME, &mut miri::command());
        }
    }
}

fn lab_tests(report: &mut Report, args: &Args) {
    const NAME: &str = "lab tests";
    let mut command = shell::cargo();
    command
        .args(["test", "--package", "enforcer-tests", "--no-fail-fast"])
        .args(&args.filter);
    lab::environment(&mut command);
    if args.no_lab {
        report.skip(NAME, "--no-lab");
    } else if shell::is_root() {
        report.command(NAME, &mut command);
    } else {
        // Cargo runs as the user, so that no file in `target` belongs to root.
        command.env(runner_variable(), "sudo -E");
        report.miss(
            NAME,
            "network namespaces and kernel programs need root",
            &command,
        );
    }
}

/// The supported kernels that this machine does not run.
fn other_kernels(report: &mut Report, left_out: bool) {
    const NAME: &str = "other kernels (6.1, 6.12)";
    if left_out {
        report.skip(NAME, "--no-kernels or --no-lab");
    } else if let Some(obstacle) = kernels::obstacle() {
        report.skip(NAME, &obstacle);
    } else {
        match kernels::slowness() {
            Ok(None) => report.check(NAME, kernels::check),
            Ok(Some(slow)) => report.skip(NAME, &slow),
            Err(error) => report.check(NAME, || Err(error)),
        }
    }
}

/// The variable that makes cargo run tests through another program.
fn runner_variable() -> String {
    let about = shell::output_of(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.unwrap_or("x86_64-unknown-linux-gnu");
    format!(
        "CARGO_TARGET_{}_RUNNER",
        host.to_uppercase().replace('-', "_")
    )
}
