//! A compiler that can build for BPF: rustup's nightly with the sources of `core`, or Debian's,
//! which has `core` for BPF in a package.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{apt, linker};
use crate::{bpf_toolchain::Core, shell};

/// A compiler for BPF.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The directory of `cargo` and `rustc`.
    pub bin: PathBuf,
    /// Where its `core` comes from.
    pub core: Core,
    /// The major version of its LLVM.
    pub llvm: u32,
}

/// The best compiler that is installed. One whose LLVM is too new for every linker does not count.
pub fn find() -> Option<Compiler> {
    [nightly_sysroot(), Some("/usr".into())]
        .into_iter()
        .flatten()
        .filter_map(|sysroot| inspect(&sysroot))
        .find(|compiler| linker::source(compiler.llvm).is_some())
}

/// Installs Debian's compiler. Its files are separate from rustup's, and it does not become a
/// default.
pub fn install() -> Result<()> {
    // The second row has the names in newer Debian releases.
    const PACKAGES: [[&str; 3]; 2] = [
        ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
        ["rustc", "cargo", "libstd-rust-dev-bpf"],
    ];
    let choose = || {
        PACKAGES.iter().find(|packages| {
            packages
                .iter()
                .all(|package| apt::candidate(package).is_some())
                && apt::candidate(packages[0]).is_some_and(|version| is_new_enough(&version))
        })
    };
    let chosen = choose().or_else(|| {
        apt::update();
        choose()
    });
    match chosen {
        Some(packages) => apt::install(packages),
        // The lists may be old, and only root can update them.
        None if apt::available() && !shell::is_root() => apt::install(&PACKAGES[0]),
        None => bail!(
            "neither rustup's nightly with rust-src is here, nor do this system's packages have a \
             compiler for BPF of version {} or later. Install the first with\n    \
             rustup toolchain install nightly --component rust-src\n\
             or the packages {} of a Debian 12 or later",
            env!("CARGO_PKG_RUST_VERSION"),
            PACKAGES[0].join(", "),
        ),
    }
}

fn nightly_sysroot() -> Option<PathBuf> {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        // Looking must not install.
        .env("RUSTUP_AUTO_INSTALL", "0");
    Some(shell::output_of(&mut command)?.into())
}

fn inspect(sysroot: &Path) -> Option<Compiler> {
    let bin = sysroot.join("bin");
    let rustlib = sysroot.join("lib").join("rustlib");
    let core = if has_prebuilt_core(&rustlib) {
        Core::Prebuilt
    } else if rustlib.join("src/rust/library/core").is_dir() {
        Core::BuildStd
    } else {
        return None;
    };
    if !bin.join("cargo").is_file() {
        return None;
    }
    let about = shell::output_of(Command::new(bin.join("rustc")).arg("-vV"))?;
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
    // Only nightly may build `core` itself.
    let is_nightly = field("release: ")?.contains("nightly");
    if !is_new_enough(field("release: ")?) || (core == Core::BuildStd && !is_nightly) {
        return None;
    }
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some(Compiler { bin, core, llvm })
}

fn has_prebuilt_core(rustlib: &Path) -> bool {
    let target = if cfg!(target_endian = "big") {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    };
    let Ok(entries) = rustlib.join(target).join("lib").read_dir() else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Whether a version is at least the one that this workspace requires.
fn is_new_enough(version: &str) -> bool {
    minor_of(version) >= minor_of(env!("CARGO_PKG_RUST_VERSION"))
}

/// The first two numbers of a version; of Debian's `1.96.0+dfsg1-1~deb12u2`, too.
fn minor_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_every_spelling() {
        for (text, expected) in [
            ("1.95", Some((1, 95))),
            ("1.97.0-nightly", Some((1, 97))),
            ("1.96.0+dfsg1-1~deb12u2", Some((1, 96))),
            ("(none)", None),
            ("", None),
        ] {
            assert_eq!(minor_of(text), expected, "{text}");
        }
    }
}
