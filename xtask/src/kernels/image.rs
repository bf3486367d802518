//! A machine's file system: the tests and what they run, with their shared libraries, and the
//! kernel's modules, in one archive that the kernel unpacks into memory.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::packages::{Kernel, files};
use crate::{build, setup, shell};

/// Modules that the lab needs; their dependencies are added.
const MODULES: [&str; 16] = [
    "veth",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "cls_u32",
    "nf_tables",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
    "nft_ct",
    "tun",
    "vxlan",
    "nft_redir",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
];
/// Programs of this machine that the tests run.
const TOOLS: [&str; 13] = [
    "ip", "tc", "nft", "sh", "openssl", "curl", "ls", "mv", "rm", "ln", "mkdir", "rmdir", "chmod",
];

/// Programs that were built to run in machines.
pub struct Programs {
    /// The product, the lab's helper, the machine's first process.
    binaries: Vec<PathBuf>,
    /// Test binaries by the names of their targets.
    tests: Vec<(String, PathBuf)>,
}

impl Programs {
    /// A test binary by the name of its target.
    pub fn test(&self, name: &str) -> Result<&Path> {
        let found = self.tests.iter().find(|(known, _)| known == name);
        found
            .map(|(_, path)| path.as_path())
            .with_context(|| format!("there is no test `{name}`"))
    }
}

/// Builds them like the tests of this machine.
pub fn build_programs() -> Result<Programs> {
    shell::run_in_sight(build::release().arg("--quiet"))?;
    let mut command = shell::cargo();
    command
        .args(["test", "--package", "enforcer-tests", "--no-run", "--quiet"])
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit());
    let output = command.output().context("failed to run cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let mut programs = Programs {
        binaries: vec![build::binary("enforcer")],
        tests: Vec::new(),
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let (Some(executable), Some(name)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            continue;
        };
        let kind = message["target"]["kind"][0].as_str();
        match kind {
            Some("test") => programs.tests.push((name.to_owned(), executable.into())),
            Some("bin") if message["profile"]["test"] == false => {
                programs.binaries.push(executable.into());
            }
            _ => {}
        }
    }
    Ok(programs)
}

/// Makes the archive for a kernel.
pub fn make(
    series: &str,
    kernel: &Kernel,
    programs: &Programs,
    extent: &Extent,
) -> Result<PathBuf> {
    let root = shell::workspace().join("target/kernels").join(series);
    let _ = fs::remove_dir_all(&root);
    let mut stage = Stage {
        root: root.join("root"),
        libraries: BTreeSet::new(),
    };
    for directory in ["proc", "sys", "dev", "run", "tmp", "etc", "var/run", "root"] {
        stage.directory(Path::new(directory))?;
    }
    for binary in &programs.binaries {
        stage.program(binary, &Path::new("programs").join(super::name_of(binary)))?;
    }
    stage.copy(Path::new("programs/enforcer-vm"), Path::new("init"))?;
    for (name, binary) in &programs.tests {
        if STEPS.iter().any(|step| step.test == name) {
            stage.program(binary, &Path::new("programs").join(format!("test-{name}")))?;
        }
    }
    for tool in TOOLS {
        let path = shell::which(tool).with_context(|| format!("`{tool}` is not here"))?;
        stage.program(&path, &Path::new("usr/bin").join(tool))?;
    }
    stage.tree(&setup::lab_tools(), Path::new("lab"))?;
    // The tests look for these where they were built.
    let workspace = shell::workspace();
    stage.tree(
        &workspace.join("policies"),
        &inside(&workspace.join("policies")),
    )?;
    stage.directory(&inside(&workspace.join("tests")))?;
    stage.bring_libraries()?;
    let modules = stage.modules(kernel)?;
    stage.write(
        Path::new("plan.json"),
        plan(&modules, extent).to_string().as_bytes(),
    )?;
    stage.write(
        Path::new("etc/passwd"),
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    stage.write(Path::new("etc/group"), b"root:x:0:\nnogroup:x:65534:\n")?;
    stage.link("usr/bin", "bin")?;
    stage.link("usr/bin", "sbin")?;
    let archive = root.join("initramfs");
    stage.pack(&archive)?;
    Ok(archive)
}

/// How much to run in each machine.
#[derive(Debug, Clone)]
pub enum Extent {
    /// What takes minutes.
    Some,
    /// All tests of every binary.
    All,
    /// All tests of one binary.
    One(String),
}

/// The available test binaries.
pub fn tests() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|step| step.test)
}

/// A test binary to run in each machine.
struct Step {
    test: &'static str,
    /// Parts of test names, or none to run all tests; and options of the test runner.
    filters: &'static [&'static str],
    /// Whether the JIT compiler is hardened (`net.core.bpf_jit_harden=2`): some kernels refuse or slow down programs then.
    hardened: bool,
    /// The time limit; 0 for a binary that runs only on request.
    seconds: u64,
}

/// What takes minutes; `--all` runs these binaries without filters.
const STEPS: [Step; 7] = [
    Step {
        test: "options",
        filters: &["--nocapture"],
        hardened: true,
        seconds: 600,
    },
    Step {
        test: "cases",
        filters: &[],
        hardened: false,
        seconds: 1200,
    },
    Step {
        test: "tls",
        filters: &["dry_run", "not_checked_again", "speaks_first"],
        hardened: false,
        seconds: 1200,
    },
    Step {
        test: "survival",
        // Takes longer than all others together: only with `--all` or `--test survival`.
        filters: &[],
        hardened: false,
        seconds: 0,
    },
    Step {
        test: "confirm",
        filters: &["roles_of_interfaces"],
        hardened: false,
        seconds: 1200,
    },
    Step {
        test: "preflight",
        filters: &["what_would_be_cut"],
        hardened: false,
        seconds: 1200,
    },
    Step {
        test: "enforcement",
        filters: &[
            "an_injected_frame_is_known_by_its_cgroup",
            "address_translation_does_not_bypass_the_policy",
            "ports_cannot_be_taken_by_other_processes",
            "removing_a_path_ends_its_connections",
            "a_forged_source_reaches_nothing",
        ],
        hardened: true,
        seconds: 1200,
    },
];

fn plan(modules: &[String], extent: &Extent) -> Value {
    let steps: Vec<Value> = STEPS
        .iter()
        .filter(|step| match extent {
            Extent::Some => step.seconds > 0,
            Extent::All => true,
            Extent::One(test) => step.test == test,
        })
        .map(|step| {
            let is_wanted = |filter: &&str| match extent {
                Extent::Some => true,
                Extent::All | Extent::One(_) => filter.starts_with("--"),
            };
            let filters: Vec<&str> = step.filters.iter().copied().filter(is_wanted).collect();
            json!({
                "name": step.test,
                "program": format!("/programs/test-{}", step.test),
                "arguments": filters,
                "hardened": step.hardened,
                "environment": [
                    ["PATH", "/usr/bin"],
                    ["HOME", "/root"],
                    ["ENFORCER_BIN", "/programs/enforcer"],
                    ["ENFORCER_LAB_PROGRAMS", "/programs"],
                    ["ENFORCER_LAB_TOOLS", "/lab"],
                    // An emulated machine is slow.
                    ["ENFORCER_CASES_PACKETS", "500"],
                    ["ENFORCER_LAB_PATIENCE", "10"],
                    ["RUST_TEST_THREADS", "1"],
                ],
                "seconds": match extent {
                    Extent::Some => step.seconds,
                    Extent::All | Extent::One(_) => 1700,
                },
            })
        })
        .collect();
    json!({ "modules": modules, "steps": steps })
}

/// A path of this machine as it is inside the root.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// The root directory while it is assembled.
struct Stage {
    root: PathBuf,
    /// Shared libraries that the programs need.
    libraries: BTreeSet<PathBuf>,
}

impl Stage {
    fn directory(&self, path: &Path) -> Result<()> {
        let path = self.root.join(path);
        fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))
    }

    fn write(&self, to: &Path, content: &[u8]) -> Result<()> {
        let to = self.room_for(to)?;
        fs::write(&to, content).with_context(|| format!("failed to write {}", to.display()))
    }

    fn link(&self, to: &str, name: &str) -> Result<()> {
        std::os::unix::fs::symlink(to, self.root.join(name))
            .with_context(|| format!("failed to make the link {name}"))
    }

    fn room_for(&self, to: &Path) -> Result<PathBuf> {
        if let Some(parent) = to.parent() {
            self.directory(parent)?;
        }
        Ok(self.root.join(to))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let (from, to) = (self.root.join(from), self.room_for(to)?);
        fs::copy(&from, &to)
            .map(|_bytes| ())
            .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))
    }

    /// Adds a program without its debug information, which would fill the machine's memory.
    fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.libraries_of(from);
        let to = self.room_for(to)?;
        let stripped = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .args([&to, from])
            .stderr(Stdio::null())
            .status();
        if stripped.is_ok_and(|status| status.success()) {
            return Ok(());
        }
        fs::copy(from, &to)
            .map(|_bytes| ())
            .with_context(|| format!("failed to copy {}", from.display()))
    }

    fn libraries_of(&mut self, program: &Path) {
        let output = shell::output_of(Command::new("ldd").arg(program)).unwrap_or_default();
        let paths = output
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        self.libraries
            .extend(paths.map(|path| PathBuf::from(path.trim_end_matches(':'))));
    }

    fn bring_libraries(&mut self) -> Result<()> {
        for library in std::mem::take(&mut self.libraries) {
            let to = self.room_for(&inside(&library))?;
            fs::copy(&library, &to)
                .with_context(|| format!("failed to copy {}", library.display()))?;
        }
        Ok(())
    }

    /// Adds a directory with everything in it.
    fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.directory(to)?;
        for entry in files(from) {
            let to = to.join(super::name_of(&entry));
            if entry.is_dir() {
                self.tree(&entry, &to)?;
            } else if entry.exists() && !is_document(&entry) {
                if entry
                    .parent()
                    .is_some_and(|parent| parent.ends_with("bin") || parent.ends_with("sbin"))
                {
                    self.libraries_of(&entry);
                }
                let to = self.room_for(&to)?;
                fs::copy(&entry, &to)
                    .with_context(|| format!("failed to copy {}", entry.display()))?;
            }
        }
        Ok(())
    }

    /// Adds the kernel modules that the lab needs, and returns them in the order of their
    /// dependencies.
    fn modules(&self, kernel: &Kernel) -> Result<Vec<String>> {
        let mut all = Vec::new();
        walk(&kernel.modules.join("kernel"), &mut all);
        let mut order = Vec::new();
        for name in MODULES {
            self.module(name, &all, &mut order)?;
        }
        Ok(order)
    }

    fn module(&self, name: &str, all: &[PathBuf], order: &mut Vec<String>) -> Result<()> {
        let inside = format!("/modules/{name}.ko");
        if order.contains(&inside) {
            return Ok(());
        }
        let found = all.iter().find(|path| {
            let file = super::name_of(path).replace('-', "_");
            file.split('.').next() == Some(name)
        });
        // A built-in module has no file.
        let Some(path) = found else { return Ok(()) };
        let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz").args(["-dc"]).arg(path).output();
            output.context("failed to run xz")?.stdout
        } else {
            fs::read(path).with_context(|| format!("failed to read {}", path.display()))?
        };
        for needed in dependencies(&bytes) {
            self.module(&needed, all, order)?;
        }
        self.write(Path::new(inside.trim_start_matches('/')), &bytes)?;
        order.push(inside);
        Ok(())
    }

    fn pack(&self, archive: &Path) -> Result<()> {
        let mut names = String::new();
        let mut all = Vec::new();
        walk_all(&self.root, &mut all);
        for path in all {
            let name = path.strip_prefix(&self.root).unwrap_or(&path);
            names.push_str(&name.to_string_lossy());
            names.push('\n');
        }
        let file = File::create(archive)
            .with_context(|| format!("failed to create {}", archive.display()))?;
        let mut cpio = Command::new("cpio")
            .args(["--quiet", "-o", "-H", "newc"])
            .current_dir(&self.root)
            .stdin(Stdio::piped())
            .stdout(file)
            .spawn()
            .context("failed to start cpio")?;
        if let Some(mut input) = cpio.stdin.take() {
            input
                .write_all(names.as_bytes())
                .context("cpio ended early")?;
        }
        if cpio.wait().context("failed to wait for cpio")?.success() {
            Ok(())
        } else {
            bail!("cpio failed")
        }
    }
}

/// The names in `depends=` of a module's own description.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Manuals and the like, which no program reads.
fn is_document(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/share/doc/") || text.contains("/share/man/") || text.contains("/share/locale/")
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in files(directory) {
        if entry.is_dir() {
            walk(&entry, found);
        } else {
            found.push(entry);
        }
    }
}

/// Includes directories, each before its contents.
fn walk_all(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in files(directory) {
        let enter = entry.is_dir() && !entry.is_symlink();
        found.push(entry.clone());
        if enter {
            walk_all(&entry, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_a_module() {
        let module = b"\x7fELF\0license=GPL\0depends=nf-conntrack,nf_nat\0name=x\0";
        assert_eq!(dependencies(module), ["nf_conntrack", "nf_nat"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
