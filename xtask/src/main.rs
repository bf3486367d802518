//! `cargo xtask`: set-up, build, lab, demo, tests and fuzzing of this repository. This is the only
//! place that knows how these are done; CI calls `cargo xtask test` and has no logic of its own.

mod bench;
mod bpf_toolchain;
mod build;
mod copy;
mod demo;
mod dist;
mod fuzz;
mod kernels;
mod lab;
#[cfg(test)]
mod layers;
mod miri;
mod mutants;
mod service;
mod setup;
mod shell;
mod test;
mod upgrades;

use std::process::ExitCode;

use clap::Parser;

/// The tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Cli {
    /// Installs what is missing: a compiler and a linker for BPF, and the lab's servers.
    Setup,
    /// Builds the release binary, kernel programs included.
    Build,
    /// Packs the release binary as a Debian package, with its service, man pages, completions and policies.
    Dist(dist::Args),
    /// Opens the lab: hosts, pods and real servers in network namespaces (as root).
    Lab(lab::Args),
    /// Shows denials in the lab without policy, in dry-run and enforced (as root).
    Demo(demo::Args),
    /// Runs every check there is; the lab tests as root.
    Test(test::Args),
    /// Tests the supported kernels, in emulated machines (minutes).
    Kernels(kernels::Args),
    /// Breaks the product's behaviour in small ways, and checks that the tests notice (minutes).
    Mutants(mutants::Args),
    /// Upgrades the agent under traffic, back and forth between two builds with other map layouts (as root, minutes).
    Upgrades(upgrades::Args),
    /// Measures the product beside nftables, iptables and nothing (as root, minutes; `--quick` for two).
    Bench(bench::Args),
    /// Fuzzes what reads other people's bytes, with libFuzzer (a minute for each target).
    Fuzz(fuzz::Args),
    /// Runs the tests of the shared crate under Miri, where Miri is installed.
    Miri,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli::Setup => setup::ensure(&setup::Part::ALL).map(|()| ExitCode::SUCCESS),
        Cli::Build => build::run(),
        Cli::Dist(args) => dist::run(&args),
        Cli::Lab(args) => lab::run(&args),
        Cli::Demo(args) => demo::run(&args),
        Cli::Test(args) => test::run(&args),
        Cli::Kernels(args) => kernels::run(&args),
        Cli::Mutants(args) => mutants::run(&args),
        Cli::Upgrades(args) => upgrades::run(&args),
        Cli::Bench(args) => bench::run(&args),
        Cli::Fuzz(args) => fuzz::run(&args),
        Cli::Miri => miri::run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
