//! `cargo xtask fuzz`: the targets of `enforcer-fuzz` under libFuzzer, with AddressSanitizer, which
//! also finds leaks. `cargo xtask test` runs the same targets for seconds, without it.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{bpf_toolchain::tools_path, setup, shell};

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The targets; all of them if none is named.
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// How long to fuzz each target.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

const TARGETS: [&str; 4] = ["policy", "cases", "packet", "tls"];

/// The version of cargo-fuzz to install.
const VERSION: &str = "0.13.2";

/// An input that takes longer than this, in seconds, is reported as a hang.
const HANG: u32 = 10;

/// Runs the targets one after another. Fails at the first finding.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[setup::Part::Toolchain])?;
    let program = cargo_fuzz()?;
    let targets: Vec<&str> = match &args.targets[..] {
        [] => TARGETS.to_vec(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    for target in targets {
        let directory = shell::target_dir().join("fuzz").join(target);
        let (seeds, corpus) = (directory.join("seeds"), directory.join("corpus"));
        fs::create_dir_all(&corpus)
            .with_context(|| format!("failed to make {}", corpus.display()))?;
        let mut write = shell::cargo();
        write
            .args([
                "run",
                "--quiet",
                "--package",
                "enforcer-fuzz",
                "--bin",
                "fuzz-seeds",
                target,
            ])
            .arg(&seeds);
        shell::run_in_sight(&mut write)?;
        let mut fuzz = shell::cargo();
        fuzz.env("RUSTC_BOOTSTRAP", "1")
            .arg("fuzz")
            .args(["run", "--fuzz-dir", "fuzz/libfuzzer", "--target-dir"])
            .arg(shell::target_dir().join("fuzz").join("build"))
            .arg(target)
            .args([&corpus, &seeds])
            .args(["--", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-timeout={HANG}"))
            .arg(format!("-artifact_prefix={}/", directory.display()));
        // Cargo finds its subcommands on the path.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = program.parent().map(PathBuf::from).into_iter();
        fuzz.env(
            "PATH",
            std::env::join_paths(paths.chain(std::env::split_paths(&path)))?,
        );
        println!("fuzzing {target} for {} s", args.seconds);
        if !shell::run_logged(&mut fuzz, &shell::log_path(&format!("fuzz-{target}"))?)? {
            let log = shell::log_path(&format!("fuzz-{target}"))?;
            bail!(
                "{target}: a finding, in {}; put the input into fuzz/findings/{target} when it is mended\n{}",
                directory.display(),
                shell::failure(&log)
            );
        }
        println!("{}", figures(target)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures in libFuzzer's output.
fn figures(target: &str) -> Result<String> {
    let log = shell::log_path(&format!("fuzz-{target}"))?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    let figure = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.unwrap_or("?").trim().to_owned()
    };
    Ok(format!(
        "{target}: {} inputs, {} kept as new, slowest {} s, {} MB at most: no finding",
        figure("number_of_executed_units"),
        figure("new_units_added"),
        figure("slowest_unit_time_sec"),
        figure("peak_rss_mb")
    ))
}

/// cargo-fuzz, installed in this clone if it is missing.
///
/// # Errors
///
/// It cannot be installed: the end of cargo's output.
fn cargo_fuzz() -> Result<PathBuf> {
    if let Some(program) = shell::which("cargo-fuzz") {
        return Ok(program);
    }
    let root = tools_path(shell::workspace()).join("cargo-fuzz");
    let program = root.join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    println!("installing cargo-fuzz {VERSION} (a minute)");
    let log = shell::log_path("setup-cargo-fuzz")?;
    let mut install = shell::cargo();
    install
        .args([
            "install",
            "cargo-fuzz",
            "--version",
            VERSION,
            "--locked",
            "--root",
        ])
        .arg(&root);
    if !shell::run_logged(&mut install, &log)? {
        bail!("cargo-fuzz cannot be installed:\n{}", shell::failure(&log));
    }
    Ok(program)
}
