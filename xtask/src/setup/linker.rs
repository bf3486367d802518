//! bpf-linker. It reads the compiler's bitcode, so its LLVM must be at least as new as the
//! compiler's.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{apt, compiler::Compiler};
use crate::{
    bpf_toolchain::{BpfToolchain, tools_path},
    shell,
};

/// The version to install.
pub const VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker can be built with.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Where a linker for a compiler comes from.
#[derive(Debug)]
pub enum Source {
    /// It is built with the LLVM in a directory.
    Llvm { major: u32, prefix: PathBuf },
    /// It is built with the LLVM of a package that is not installed yet.
    Package { major: u32 },
    /// The user has installed one.
    OnPath(PathBuf),
}

/// The toolchain of this compiler and an installed linker that runs.
pub fn find(compiler: &Compiler) -> Option<BpfToolchain> {
    let recorded = BpfToolchain::load(shell::workspace()).ok();
    let (linker, llvm) = match recorded {
        Some(recorded) if recorded.llvm >= compiler.llvm => (recorded.linker, recorded.llvm),
        _ => match source(compiler.llvm)? {
            Source::OnPath(linker) => (linker, compiler.llvm),
            Source::Llvm { major, .. } | Source::Package { major } => (own(major), major),
        },
    };
    has_version(&linker).then(|| BpfToolchain {
        bin: compiler.bin.clone(),
        core: compiler.core,
        llvm,
        linker,
    })
}

/// Where a linker for a compiler with this LLVM can come from. The user's own is the last choice,
/// since it does not say which LLVM it has.
pub fn source(compiler_llvm: u32) -> Option<Source> {
    let majors = || LLVM.filter(move |major| *major >= compiler_llvm);
    let installed = majors().find_map(|major| {
        let prefix = prefix_of(major)?;
        Some(Source::Llvm { major, prefix })
    });
    let packaged = || {
        let major = majors().find(|major| apt::candidate(&package(*major)).is_some())?;
        Some(Source::Package { major })
    };
    let on_path = || {
        let linker = shell::which("bpf-linker")?;
        has_version(&linker).then_some(Source::OnPath(linker))
    };
    installed.or_else(packaged).or_else(on_path).or_else(|| {
        apt::update();
        packaged()
    })
}

/// Builds the linker into `target/tools`.
pub fn install(compiler: &Compiler) -> Result<()> {
    let Some(source) = source(compiler.llvm) else {
        bail!(
            "LLVM {} or later, up to {}, with its headers is not here. Install it and name it in \
             LLVM_PREFIX, or put bpf-linker {VERSION} on the PATH",
            compiler.llvm,
            LLVM.end(),
        );
    };
    match source {
        Source::OnPath(_) => Ok(()),
        Source::Llvm { major, prefix } => build(major, &prefix),
        Source::Package { major } => {
            apt::install(&[&package(major)])?;
            let prefix = prefix_of(major).context("the package has no LLVM where it should be")?;
            build(major, &prefix)
        }
    }
}

fn build(major: u32, prefix: &Path) -> Result<()> {
    let scratch = tools_path(shell::workspace()).join("build");
    let log = shell::log_path("setup-bpf-linker")?;
    let mut command = shell::cargo();
    command
        .env("LLVM_PREFIX", prefix)
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
        ])
        .arg("--root")
        .arg(root(major))
        .arg("--target-dir")
        .arg(&scratch);
    if !shell::run_logged(&mut command, &log)? {
        bail!(
            "{} failed:\n{}",
            shell::display(&command),
            shell::failure(&log)
        );
    }
    // Only the binary is needed later; leftovers do no harm.
    let _ = std::fs::remove_dir_all(scratch);
    Ok(())
}

/// One directory for each LLVM, so that the path shows what the binary can read.
fn root(major: u32) -> PathBuf {
    tools_path(shell::workspace()).join(format!("llvm-{major}"))
}

fn own(major: u32) -> PathBuf {
    root(major).join("bin").join("bpf-linker")
}

fn package(major: u32) -> String {
    format!("llvm-{major}-dev")
}

/// An LLVM of this version, with what is needed to build with it.
fn prefix_of(major: u32) -> Option<PathBuf> {
    let named = std::env::var_os("LLVM_PREFIX").map(PathBuf::from);
    let usual = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    [named, Some(usual)].into_iter().flatten().find(|prefix| {
        let config = Command::new(prefix.join("bin/llvm-config"))
            .arg("--version")
            .output();
        let version = config.map(|output| output.stdout).unwrap_or_default();
        version.starts_with(format!("{major}.").as_bytes())
            && prefix.join("include/llvm-c/Core.h").is_file()
    })
}

fn has_version(linker: &Path) -> bool {
    let version = shell::output_of(Command::new(linker).arg("--version"));
    version.is_some_and(|version| version.split_whitespace().nth(1) == Some(VERSION))
}
