//! The first process of a virtual machine in which `cargo xtask kernels` tests another kernel:
//! mounts what a host has, loads modules, runs the steps of its plan one after another, and powers
//! off. The output of a step goes to the console between two lines that begin with `@@`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use serde::Deserialize;

/// What to do, as `cargo xtask kernels` writes it to `/plan.json`.
#[derive(Debug, Deserialize)]
struct Plan {
    /// Files of kernel modules, in the order of their dependencies.
    modules: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    name: String,
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Whether the JIT compiler of BPF is hardened meanwhile.
    hardened: bool,
    /// After this time, the step is killed and counts as failed.
    seconds: u64,
}

fn main() {
    if let Err(error) = run() {
        println!("@@ failed {error:#}");
    }
    // If a kernel's first process ends, the kernel panics instead of powering off.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is the first process of a virtual machine; run `cargo xtask kernels`");
    }
    mounts()?;
    let plan = fs::read("/plan.json").context("failed to read /plan.json")?;
    let plan: Plan = serde_json::from_slice(&plan).context("/plan.json is no plan")?;
    for module in &plan.modules {
        load(Path::new(module))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("@@ kernel {}", release.trim());
    for step in &plan.steps {
        println!("@@ begin {}", step.name);
        let began = Instant::now();
        let outcome = match perform(step) {
            Ok(()) => "passed".to_owned(),
            Err(error) => format!("failed {error:#}"),
        };
        let seconds = began.elapsed().as_secs();
        println!("@@ end {} {seconds}s {outcome}", step.name);
    }
    println!("@@ done");
    Ok(())
}

fn mounts() -> Result<()> {
    let rows = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ];
    // The root file system is in memory already, and the clone that built this may be below `/tmp`.
    fs::create_dir_all("/tmp").context("failed to make /tmp")?;
    for (kind, directory) in rows {
        fs::create_dir_all(directory).with_context(|| format!("failed to make {directory}"))?;
        mount(
            Some(kind),
            directory,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("failed to mount {kind} on {directory}"))?;
    }
    Ok(())
}

fn load(module: &Path) -> Result<()> {
    let file =
        File::open(module).with_context(|| format!("failed to open {}", module.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => bail!("the kernel refuses {}: {error}", module.display()),
    }
}

fn perform(step: &Step) -> Result<()> {
    let value = if step.hardened { "2" } else { "0" };
    fs::write("/proc/sys/net/core/bpf_jit_harden", value)
        .context("failed to set bpf_jit_harden")?;
    println!("net.core.bpf_jit_harden={value}");
    let mut child = Command::new(&step.program)
        .args(&step.arguments)
        .envs(step.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {}", step.program))?;
    let deadline = Instant::now() + Duration::from_secs(step.seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                bail!("{status}")
            };
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("no end after {} s", step.seconds);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
