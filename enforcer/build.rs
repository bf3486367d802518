//! Builds the kernel programs for BPF and leaves the object in `OUT_DIR/enforcer`, where
//! `aya::include_bytes_aligned!` picks it up. The tools are those that `cargo xtask setup` chose.

#[path = "../xtask/src/bpf_toolchain.rs"]
mod bpf_toolchain;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bpf_toolchain::BpfToolchain;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Sentence(sentence)) => {
            println!("cargo::error={sentence}");
            ExitCode::SUCCESS
        }
        // Cargo prints the standard error of a failed build script unchanged, with its line breaks.
        Err(Failure::Diagnostics(text)) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

/// Why there is no object.
enum Failure {
    /// One line that says what to do.
    Sentence(String),
    /// The compiler's output.
    Diagnostics(String),
}

fn build() -> Result<(), Failure> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir.parent().unwrap_or(&manifest_dir);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    // Next to the directories of the profiles (`…/target/debug/build/enforcer-0123/out`), so that
    // all profiles and clippy share it. In any other layout fewer builds share it, which costs time
    // and nothing more.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("bpf");
    let toolchain = BpfToolchain::load(workspace).map_err(Failure::Sentence)?;

    let mut command = toolchain.cargo(
        "build",
        &variable("CARGO_CFG_TARGET_ENDIAN")?,
        &variable("CARGO_CFG_TARGET_ARCH")?,
    );
    command
        .current_dir(workspace)
        .arg("--target-dir")
        .arg(&target_dir);
    let output = command
        .output()
        .map_err(|error| Failure::Sentence(format!("failed to run {command:?}: {error}")))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Failure::Diagnostics(format!(
            "the kernel programs do not build:\n{diagnostics}"
        )));
    }
    // Quiet cargo prints only warnings, and a build script can pass them on only line by line.
    for line in diagnostics.lines() {
        println!("cargo::warning={line}");
    }
    copy_object(&target_dir, &out_dir.join("enforcer"))?;
    rerun_when_changed(workspace);
    Ok(())
}

fn variable(name: &str) -> Result<String, Failure> {
    env::var(name).map_err(|error| Failure::Sentence(format!("{name}: {error}")))
}

fn copy_object(target_dir: &Path, to: &Path) -> Result<(), Failure> {
    let triple = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let from = target_dir.join(triple).join("release").join("enforcer");
    fs::copy(&from, to).map(drop).map_err(|error| {
        Failure::Sentence(format!(
            "failed to copy {} to {}: {error}",
            from.display(),
            to.display()
        ))
    })
}

/// Cargo watches every file below a directory.
fn rerun_when_changed(workspace: &Path) {
    for path in [
        "enforcer-ebpf",
        "enforcer-common",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!(
        "cargo::rerun-if-changed={}",
        bpf_toolchain::record_path(workspace).display()
    );
}
