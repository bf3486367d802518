//! `cargo xtask kernels`: the supported kernels, in virtual machines. In each, all programs are
//! loaded, the shipped cases and random packets run through them, and connections are made in a
//! lab.
//!
//! The machines are emulated (no KVM), so this is slow and needs nothing from its host but qemu.

mod emulator;
mod image;
mod outcome;
pub mod packages;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{lab, setup, shell};
pub use emulator::Emulator;
use emulator::Machine;
use image::Extent;
use outcome::Outcome;

/// The series to test, oldest first. The README's supported kernels are these, and the one that the
/// tests run on.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// How long a machine may run.
const LIMIT: Duration = Duration::from_secs(3600);

/// Options of `cargo xtask kernels`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tests only this series (6.1, 6.12).
    #[arg(long, value_name = "SERIES", value_parser = SERIES)]
    only: Option<String>,
    /// Runs all end-to-end tests of the small lab in each machine (half an hour).
    #[arg(long)]
    all: bool,
    /// Runs all tests of this binary in each machine, and nothing else.
    #[arg(long, value_name = "TEST", value_parser = image::tests().collect::<Vec<_>>(), conflicts_with = "all")]
    test: Option<String>,
    /// Writes docs/kernels.md, including this machine's own kernel (as root).
    #[arg(long, conflicts_with_all = ["only", "all", "test"])]
    write: bool,
}

/// Tests all of them and prints a table. Fails if one failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[setup::Part::Toolchain, setup::Part::Lab])?;
    let chosen = |series: &&str| args.only.as_deref().is_none_or(|only| only == *series);
    let series: Vec<&str> = SERIES.into_iter().filter(chosen).collect();
    let extent = match &args.test {
        Some(test) => Extent::One(test.clone()),
        None if args.all => Extent::All,
        None => Extent::Some,
    };
    let outcomes = try_all(&series, &extent)?;
    for outcome in &outcomes {
        print!("{outcome}");
    }
    if args.write && outcomes.iter().all(Outcome::is_good) {
        let document = shell::workspace().join("docs/kernels.md");
        let text = outcome::document(&outcomes, &here()?);
        fs::write(&document, text)
            .with_context(|| format!("failed to write {}", document.display()))?;
        println!("\nwritten: {}", document.display());
    }
    Ok(if outcomes.iter().all(Outcome::is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// For `cargo xtask test`: the result of each kernel, or what failed.
pub fn check() -> Result<()> {
    let outcomes = try_all(&SERIES, &Extent::Some)?;
    let report: String = outcomes.iter().map(Outcome::to_string).collect();
    if outcomes.iter().all(Outcome::is_good) {
        return Ok(());
    }
    bail!("{report}")
}

/// Whether the machines would take far more than ten minutes here, which is too long for every test
/// run: if so, a sentence about it. Measures how long one takes to boot, which is two or three
/// seconds elsewhere.
pub fn slowness() -> Result<Option<String>> {
    const PATIENCE: Duration = Duration::from_secs(6);
    let emulator = Emulator::install()?;
    let programs = image::build_programs()?;
    let series = SERIES[0];
    let kernel = packages::kernel(series)?;
    // Dropping it stops it.
    let machine = start(&emulator, series, &kernel, &programs, &Extent::Some)?;
    while machine.age() < PATIENCE {
        if machine.text()?.contains("@@ kernel") {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(format!(
        "an emulated machine has not booted in {} s, so all of it would take far more than ten minutes here; \
         by hand: cargo xtask kernels",
        PATIENCE.as_secs()
    )))
}

/// Why machines cannot run here, if so.
pub fn obstacle() -> Option<String> {
    packages::obstacle()
}

/// Runs the machines in parallel: each has one processor.
fn try_all(series: &[&str], extent: &Extent) -> Result<Vec<Outcome>> {
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle}");
    }
    let emulator = Emulator::install()?;
    let programs = image::build_programs()?;
    let mut machines = Vec::new();
    for series in series {
        let kernel = packages::kernel(series)?;
        let machine = start(&emulator, series, &kernel, &programs, extent)?;
        machines.push((kernel.release, machine));
    }
    let outcome = |(release, mut machine): (String, Machine)| {
        machine.wait(LIMIT)?;
        let (text, log) = (machine.text()?, machine.log().to_owned());
        Ok(Outcome::read(release, &text, log, machine.age()))
    };
    machines.into_iter().map(outcome).collect()
}

/// How this machine's own kernel loads the programs.
fn here() -> Result<Outcome> {
    let programs = image::build_programs()?;
    let mut cases = Command::new(programs.test("cases")?);
    lab::environment(&mut cases);
    let began = Instant::now();
    let log = shell::log_path("kernel-here")?;
    let good = shell::run_logged(&mut cases, &log)?;
    if !good {
        bail!("the cases fail on this kernel: {}", shell::failure(&log));
    }
    let text = fs::read(&log).context("failed to read a log")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let series: Vec<&str> = release.trim().split('.').take(2).collect();
    Ok(Outcome::read(
        series.join("."),
        &String::from_utf8_lossy(&text),
        log,
        began.elapsed(),
    ))
}

/// Starts a machine that runs the tests on a kernel.
fn start(
    emulator: &Emulator,
    series: &str,
    kernel: &packages::Kernel,
    programs: &image::Programs,
    extent: &Extent,
) -> Result<Machine> {
    let image = image::make(series, kernel, programs, extent)?;
    let log = shell::log_path(&format!("kernel-{series}"))?;
    emulator.start(kernel, &image, "", log)
}

/// A file's name.
fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
