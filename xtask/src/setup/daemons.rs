//! The lab's servers. They are unpacked into `target/tools/lab` rather than installed, because the
//! packages would start them on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{apt, lab_tools};
use crate::{bpf_toolchain::tools_path, shell};

/// Where each program is in the tree, as in Debian.
const PROGRAMS: [&str; 9] = [
    "usr/bin/etcd",
    "usr/bin/etcdctl",
    "usr/sbin/nginx",
    "usr/sbin/dnsmasq",
    "usr/sbin/dropbear",
    "usr/bin/dropbearkey",
    "usr/bin/dbclient",
    "usr/bin/prometheus",
    "usr/bin/promtool",
];
/// nginx's load balancer at layer 4, which nginx looks for at a path set when it was built.
const MODULE: &str = "usr/lib/nginx/modules/ngx_stream_module.so";
const PACKAGES: [&str; 7] = [
    "etcd-server",
    "etcd-client",
    "nginx",
    "libnginx-mod-stream",
    "dnsmasq-base",
    "dropbear-bin",
    "prometheus",
];

/// Whether the tree is complete, and every program in it has its libraries.
pub fn find() -> Option<()> {
    let programs = PROGRAMS.map(|program| lab_tools().join(program));
    let complete = programs
        .iter()
        .all(|program| program.is_file() && lacks(program).is_empty());
    (complete && lab_tools().join(MODULE).is_file()).then_some(())
}

/// Unpacks Debian's packages; without them, points to the programs on the path.
pub fn install() -> Result<()> {
    if !apt::available() {
        return link_from_path();
    }
    if PROGRAMS
        .iter()
        .chain([&MODULE])
        .any(|file| !lab_tools().join(file).is_file())
    {
        unpack().or_else(|error| link_from_path().map_err(|_also_missing| error))?;
    }
    let missing: Vec<String> = PROGRAMS
        .iter()
        .flat_map(|program| lacks(&lab_tools().join(program)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = library_packages()?;
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt::install(&names).with_context(|| format!("libraries are missing: {}", missing.join(", ")))
}

/// Downloading needs no root, but outdated lists name files that no longer exist.
fn unpack() -> Result<()> {
    let debs = tools_path(shell::workspace()).join("debs");
    download(&debs).or_else(|_outdated| {
        apt::update();
        download(&debs)
    })?;
    let fresh = tools_path(shell::workspace()).join("lab.new");
    recreate(&fresh)?;
    for entry in fs::read_dir(&debs)
        .context("failed to list the packages")?
        .flatten()
    {
        let mut command = Command::new("dpkg-deb");
        command.arg("--extract").arg(entry.path()).arg(&fresh);
        if shell::output_of(&mut command).is_none() {
            bail!("{} failed", shell::display(&command));
        }
    }
    // No longer needed; leftovers do no harm.
    let _ = fs::remove_dir_all(&debs);
    let (tree, old) = (lab_tools(), tools_path(shell::workspace()).join("lab.old"));
    recreate(&old)?;
    if tree.exists() {
        // Moved away in one step: a running lab may start another server at any moment.
        fs::rename(&tree, &old).context("failed to move the old tree away")?;
    }
    fs::rename(&fresh, &tree).context("failed to put the new tree in place")?;
    fs::remove_dir_all(&old).context("failed to remove the old tree")
}

fn download(to: &Path) -> Result<()> {
    recreate(to)?;
    let log = shell::log_path("setup-download")?;
    let mut command = Command::new("apt-get");
    command
        .current_dir(to)
        .args(["-q", "download"])
        .args(PACKAGES);
    if shell::run_logged(&mut command, &log)? {
        return Ok(());
    }
    bail!(
        "{} failed; if it names files that are gone, run `sudo apt-get update` first:\n{}",
        shell::display(&command),
        shell::failure(&log)
    );
}

fn recreate(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("failed to remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to create {}", directory.display()))
}

/// The libraries that a program needs and does not find.
fn lacks(program: &Path) -> Vec<String> {
    let listed = shell::output_of(Command::new("ldd").arg(program)).unwrap_or_default();
    let missing = listed.lines().filter(|line| line.ends_with("not found"));
    missing
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The libraries that the packages depend on; their other dependencies are needed only for a
/// service.
fn library_packages() -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for package in PACKAGES {
        let depends = shell::output_of(Command::new("apt-cache").args(["depends", package]))
            .with_context(|| format!("failed to list what {package} depends on"))?;
        let libraries = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            // The libraries of web pages are not libraries of a program.
            .filter(|name| name.starts_with("lib") && !name.starts_with("libjs-"));
        packages.extend(libraries.map(str::to_owned));
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn link_from_path() -> Result<()> {
    let mut missing = Vec::new();
    for program in PROGRAMS {
        let name = program.rsplit('/').next().unwrap_or(program);
        match shell::which(name) {
            Some(found) => link(&found, &lab_tools().join(program))?,
            None => missing.push(name),
        }
    }
    let module = ["/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/local/lib"]
        .iter()
        .map(|root| Path::new(root).join("nginx/modules/ngx_stream_module.so"))
        .find(|path| path.is_file());
    match module {
        Some(found) => link(&found, &lab_tools().join(MODULE))?,
        None => missing.push("nginx's stream module"),
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "not found on the PATH, and no Debian packages here: {}",
        missing.join(", ")
    );
}

fn link(found: &Path, at: &PathBuf) -> Result<()> {
    if at.exists() {
        return Ok(());
    }
    // `exists` is false for a dangling link.
    let _ = fs::remove_file(at);
    at.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| std::os::unix::fs::symlink(found, at))
        .with_context(|| format!("failed to link {}", at.display()))
}
