//! The compiler and linker for the kernel programs: where the choice is recorded, and how they are
//! called. `cargo xtask setup` chooses and writes; `cargo xtask test` reads; `enforcer/build.rs`
//! reads as well, by including this file, so it uses only the standard library.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// A compiler that has `core` for BPF or can build it, and a linker that reads its bitcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfToolchain {
    /// The directory of `cargo` and `rustc`.
    pub bin: PathBuf,
    /// Where `core` for the BPF target comes from.
    pub core: Core,
    /// The major version of the linker's LLVM; the compiler's is the same or older.
    pub llvm: u32,
    /// The `bpf-linker` binary.
    pub linker: PathBuf,
}

/// Where `core` for the BPF target comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    /// It comes precompiled with the toolchain, as in Debian's `libstd-rust-web-dev-bpf`.
    Prebuilt,
    /// Cargo compiles it from the toolchain's `rust-src`, as nightly can.
    BuildStd,
}

impl BpfToolchain {
    /// Reads what set-up wrote. The error is a sentence that ends with the command to run.
    pub fn load(workspace: &Path) -> Result<Self, String> {
        let file = record_path(workspace);
        let text = std::fs::read_to_string(&file).map_err(|_absent| NOT_SET_UP.to_owned())?;
        let toolchain = Self::parse(&text)
            .ok_or_else(|| format!("{} cannot be read, so {NOT_SET_UP}", file.display()))?;
        for tool in [
            toolchain.cargo_path(),
            toolchain.rustc_path(),
            toolchain.linker.clone(),
        ] {
            if !tool.is_file() {
                return Err(format!("{} is gone, so {NOT_SET_UP}", tool.display()));
            }
        }
        Ok(toolchain)
    }

    /// Reads the text form, one `name=value` per line, as [`fmt::Display`] writes it.
    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            bin: value("bin")?.into(),
            core: match value("core")? {
                "prebuilt" => Core::Prebuilt,
                "build-std" => Core::BuildStd,
                _ => return None,
            },
            llvm: value("llvm")?.parse().ok()?,
            linker: value("linker")?.into(),
        })
    }

    /// `cargo SUBCOMMAND` for the kernel programs, on the BPF target of the given endianness, and
    /// for the kernel of the given architecture. The caller adds the target directory.
    pub fn cargo(&self, subcommand: &str, endian: &str, arch: &str) -> Command {
        let target = if endian == "big" {
            "bpfeb-unknown-none"
        } else {
            "bpfel-unknown-none"
        };
        let linker_variable = format!(
            "CARGO_TARGET_{}_LINKER",
            target.to_uppercase().replace('-', "_")
        );
        let mut command = Command::new(self.cargo_path());
        command
            .args([subcommand, "--quiet", "--release", "--target", target])
            .args(["--package", "enforcer-ebpf", "--bins", "--features", "bpf"])
            .env("PATH", self.search_path())
            .env("RUSTC", self.rustc_path())
            .env(linker_variable, &self.linker)
            .env("RUSTFLAGS", rustflags(arch));
        // Set by the cargo, clippy and rustup that run this process, for their own toolchain. The
        // last one would override the flags above.
        for name in [
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
            "CARGO_ENCODED_RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        match self.core {
            // aya-ebpf and our programs use one unstable feature each; only these are allowed.
            Core::Prebuilt => command.env("RUSTC_BOOTSTRAP", "aya_ebpf,enforcer"),
            Core::BuildStd => command
                .args(["-Z", "build-std=core"])
                .env_remove("RUSTC_BOOTSTRAP"),
        };
        command
    }

    fn cargo_path(&self) -> PathBuf {
        self.bin.join("cargo")
    }

    fn rustc_path(&self) -> PathBuf {
        self.bin.join("rustc")
    }

    fn search_path(&self) -> OsString {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let mut directories = vec![self.bin.clone()];
        directories.extend(env::split_paths(&inherited));
        // Fails only for a directory with a colon in its name; then the absolute paths must do.
        env::join_paths(directories).unwrap_or(inherited)
    }
}

impl fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bin,
            core,
            llvm,
            linker,
        } = self;
        let core = match core {
            Core::Prebuilt => "prebuilt",
            Core::BuildStd => "build-std",
        };
        writeln!(
            f,
            "bin={}\ncore={core}\nllvm={llvm}\nlinker={}",
            bin.display(),
            linker.display()
        )
    }
}

/// The directory that set-up installs into. Always inside the clone, regardless of
/// `CARGO_TARGET_DIR`, so that one set-up serves all target directories.
pub fn tools_path(workspace: &Path) -> PathBuf {
    workspace.join("target").join("tools")
}

/// The file that the choice is recorded in.
pub fn record_path(workspace: &Path) -> PathBuf {
    tools_path(workspace).join("bpf-toolchain")
}

/// The flags of aya's own build helper: the kernel's architecture for the register layouts, and
/// debug information, which the linker turns into BTF.
fn rustflags(arch: &str) -> String {
    // The kernel has one riscv64; Rust has several.
    let arch = if arch.starts_with("riscv64") {
        "riscv64"
    } else {
        arch
    };
    format!("--cfg=bpf_target_arch=\"{arch}\" -Cdebuginfo=2 -Clink-arg=--btf")
}

const NOT_SET_UP: &str = "the BPF toolchain is not set up: run `cargo xtask setup`";
