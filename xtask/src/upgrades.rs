//! `cargo xtask upgrades`: one agent after another under traffic, of two builds in turn whose maps have other layouts.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::{build, copy::copy_tree, lab, setup, shell};

/// A size of a map and its line in the written layout, each with the text that makes the other build.
const CHANGES: [(&str, &str, &str); 2] = [
    (
        "enforcer-common/src/limits.rs",
        "pub const MAX_PAIRS: u32 = 2048;",
        "pub const MAX_PAIRS: u32 = 1024;",
    ),
    ("enforcer/src/kernel/layout.txt", " 2048\n", " 1024\n"),
];

/// Options of `cargo xtask upgrades`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many upgrades
    #[arg(default_value_t = 100)]
    count: usize,
}

/// Builds both, and runs the test.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(shell::is_root(), "kernel programs need root");
    setup::ensure(&[setup::Part::Toolchain, setup::Part::Lab])?;
    shell::run_in_sight(&mut build::release())?;
    let tree = shell::target_dir().join("upgrades").join("tree");
    copy_tree(&tree)?;
    for (name, from, to) in CHANGES {
        let file = tree.join(name);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
        ensure!(
            text.matches(from).count() == 1,
            "`{}` is not in {name} once",
            from.trim()
        );
        fs::write(&file, text.replacen(from, to, 1))
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    let target = shell::target_dir().join("upgrades").join("target");
    let mut other = build::release();
    other.current_dir(&tree).env("CARGO_TARGET_DIR", &target);
    other.args(["--package", "enforcer"]);
    shell::run_in_sight(&mut other)?;
    let mut test = shell::cargo();
    test.args(["test", "--package", "enforcer-tests", "--test", "survival"])
        .args([
            "--",
            "--ignored",
            "--nocapture",
            "no_upgrade_lets_anybody_in",
        ])
        .env(
            "ENFORCER_OTHER_BIN",
            target.join("release").join("enforcer"),
        )
        .env("ENFORCER_UPGRADES", args.count.to_string());
    lab::environment(&mut test);
    shell::exit_code_of(&mut test)
}
