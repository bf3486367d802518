//! `cargo xtask setup`: installs what is missing. Every step is check, act, verify: it checks
//! whether the thing is there, installs it if not, and checks again. Packages come from apt;
//! everything else goes into the clone's `target/tools`.

pub mod apt;
mod compiler;
mod daemons;
mod linker;

use std::{io::Write as _, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::{bpf_toolchain, bpf_toolchain::BpfToolchain, shell};
use compiler::Compiler;

/// What a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Compiler and linker for the kernel programs.
    Toolchain,
    /// The linter of that compiler.
    Clippy,
    /// The lab's servers and clients.
    Lab,
    /// The peers that the benchmark compares the product with.
    Peers,
}

impl Part {
    /// Everything.
    pub const ALL: [Self; 4] = [Self::Toolchain, Self::Clippy, Self::Lab, Self::Peers];
    /// What the lab and everything in it needs.
    pub const FOR_LAB: [Self; 2] = [Self::Toolchain, Self::Lab];
}

/// Installs what is missing of the parts. Continues after a failure where possible, so that one run
/// names everything that must be done by hand.
pub fn ensure(parts: &[Part]) -> Result<()> {
    let mut failures = Vec::new();
    let compiler = part_toolchain(parts).unwrap_or_else(|error| {
        failures.push(error);
        None
    });
    if let Some(compiler) = compiler
        && parts.contains(&Part::Clippy)
        && let Err(error) = part_clippy(&compiler)
    {
        // A missing linter does not prevent building; the test reports that it was left out.
        println!("       {error:#}");
    }
    if parts.contains(&Part::Lab) {
        failures.extend(part_clients().err());
        failures.extend(part_daemons().err());
    }
    if parts.contains(&Part::Peers) {
        failures.extend(part_peers().err());
    }
    if failures.is_empty() {
        return Ok(());
    }
    for failure in &failures {
        eprintln!("\n{failure:#}");
    }
    bail!("set-up is not complete: see above; then run `cargo xtask setup` again");
}

/// The tree with the lab's servers: `usr/bin/etcd`, `usr/sbin/nginx` and so on.
pub fn lab_tools() -> PathBuf {
    bpf_toolchain::tools_path(shell::workspace()).join("lab")
}

/// Compiler and linker, and the file by which the build script finds them.
fn part_toolchain(parts: &[Part]) -> Result<Option<Compiler>> {
    if !parts.contains(&Part::Toolchain) {
        return Ok(None);
    }
    let compiler = step("compiler for BPF", compiler::find, compiler::install)
        .context("no compiler for the kernel programs (`cargo build` needs it)")?;
    let toolchain = step(
        &format!("bpf-linker {} for LLVM {}", linker::VERSION, compiler.llvm),
        || linker::find(&compiler),
        || linker::install(&compiler),
    )
    .context("no linker for the kernel programs (`cargo build` needs it)")?;
    write_record(&toolchain)?;
    Ok(Some(compiler))
}

fn part_clippy(compiler: &Compiler) -> Result<()> {
    let path = compiler.bin.join("cargo-clippy");
    step(
        "clippy for BPF",
        || path.is_file().then_some(()),
        || match compiler.core {
            bpf_toolchain::Core::Prebuilt => apt::install(&["rust-web-clippy"]),
            bpf_toolchain::Core::BuildStd => {
                bail!("nightly has no clippy: rustup component add --toolchain nightly clippy")
            }
        },
    )
    .context("`cargo xtask test` will leave out clippy of the kernel programs")
}

/// The programs that the lab calls on the host. Only clients: nothing that starts a service when
/// installed.
fn part_clients() -> Result<()> {
    const CLIENTS: [(&str, &str); 5] = [
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("nft", "nftables"),
        ("curl", "curl"),
        ("openssl", "openssl"),
    ];
    programs("the lab's clients", &CLIENTS)
        .context("programs are missing (`cargo xtask lab`, `demo` and `test` need them)")
}

/// Installing them changes no rules.
fn part_peers() -> Result<()> {
    const PEERS: [(&str, &str); 2] = [("iptables-legacy", "iptables"), ("ipset", "ipset")];
    programs("the peers", &PEERS).context("programs are missing (`cargo xtask bench` needs them)")
}

/// Programs, and the packages that they come in.
fn programs(name: &str, programs: &[(&str, &'static str)]) -> Result<()> {
    let missing = || {
        programs
            .iter()
            .filter(|(program, _)| shell::which(program).is_none())
    };
    step(
        name,
        || missing().next().is_none().then_some(()),
        || apt::install(&missing().map(|(_, package)| *package).collect::<Vec<_>>()),
    )
}

fn part_daemons() -> Result<()> {
    step("the lab's servers", daemons::find, daemons::install)
        .context("servers are missing (`cargo xtask lab`, `demo` and `test` need them)")
}

/// Checks, acts, verifies, and prints a line about it.
fn step<T>(
    name: &str,
    check: impl Fn() -> Option<T>,
    act: impl FnOnce() -> Result<()>,
) -> Result<T> {
    print!("setup: {name} … ");
    // An incomplete line is only for display; failing to show it is no reason to stop.
    let _ = std::io::stdout().flush();
    if let Some(found) = check() {
        println!("present");
        return Ok(found);
    }
    let start = Instant::now();
    let outcome = act().and_then(|()| check().context("installed, but can still not be used"));
    match &outcome {
        Ok(_) => println!("installed ({} s)", start.elapsed().as_secs()),
        Err(_) => println!("failed"),
    }
    outcome
}

/// Tells the build script. Written only if it differs, since cargo checks the modification time.
fn write_record(toolchain: &BpfToolchain) -> Result<()> {
    if BpfToolchain::load(shell::workspace()).as_ref() == Ok(toolchain) {
        return Ok(());
    }
    let path = bpf_toolchain::record_path(shell::workspace());
    std::fs::create_dir_all(bpf_toolchain::tools_path(shell::workspace()))
        .and_then(|()| std::fs::write(&path, toolchain.to_string()))
        .with_context(|| format!("failed to write {}", path.display()))
}
