//! The lab's part of the cgroup tree, laid out as systemd and a container runtime would do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// The cgroup of host daemons, as with systemd.
pub const SYSTEM: &str = "system.slice";
/// The cgroup of all pods, including static and hostNetwork ones.
pub const PODS: &str = "kubepods.slice";

/// The mount point of cgroup v2, wherever it is: on hybrid systems, it is not `/sys/fs/cgroup`.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("failed to read mountinfo")?;
    let found = table.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem
            .starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))
            .flatten()
    });
    found
        .map(PathBuf::from)
        .context("no cgroup2 file system is mounted; the lab needs one")
}

/// A static pod's cgroup, two levels below the slice of all pods, with the container's scope in it.
pub fn static_pod(name: &str) -> String {
    format!("{}/cri-{name}.scope", static_pod_slice(name))
}

/// A static pod's own slice, which policies name because the scope below it changes at every
/// restart.
pub fn static_pod_slice(name: &str) -> String {
    let burstable = "kubepods-burstable";
    format!("{PODS}/{burstable}.slice/{burstable}-pod{name}.slice")
}

/// One cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Creates the cgroup and its parents, unless they exist.
    pub fn create(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to make the cgroup {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its id, as the kernel's helpers return it: the inode of its directory.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(&self.directory)
            .context("failed to stat a cgroup")?
            .ino())
    }

    /// The file to which a process writes `0` to move itself into the cgroup.
    pub fn procs(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
    }
}

/// A cgroup below the mount point, for a test that moves itself between cgroups. At the end, it is
/// left and removed.
#[derive(Debug)]
pub struct OwnTree(PathBuf);

impl OwnTree {
    /// Creates it, and removes what killed runs of the same kind have left.
    pub fn create(kind: &str) -> Result<Self> {
        let (mount, prefix) = (mount_point()?, format!("enforcer-{kind}-"));
        for directory in children(&mount)? {
            let name = directory.file_name().and_then(|name| name.to_str());
            let owner = name.and_then(|name| name.strip_prefix(&prefix));
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                // Another test may have removed it already.
                let _ = remove_directories(&directory);
            }
        }
        let tree = Self(mount.join(format!("{prefix}{}", process::id())));
        Cgroup::create(tree.0.clone())?;
        Ok(tree)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Creates a cgroup in it, by its path relative to this one, with or without a leading slash.
    pub fn make(&self, cgroup: &str) -> Result<Cgroup> {
        Cgroup::create(self.0.join(cgroup.trim_start_matches('/')))
    }

    /// Creates one and moves this process into it.
    pub fn enter(&self, cgroup: &str) -> Result<()> {
        let cgroup = self.make(cgroup)?;
        let moved = cgroup.procs().and_then(|mut procs| procs.write_all(b"0"));
        moved.with_context(|| format!("failed to move to {}", cgroup.directory.display()))
    }
}

impl Drop for OwnTree {
    fn drop(&mut self) {
        let parent = self.0.parent().unwrap_or(&self.0).join("cgroup.procs");
        let _ = fs::write(parent, process::id().to_string());
        let _ = remove_directories(&self.0);
    }
}

/// Kills every process in or below this cgroup, waits for their end and removes the directories. It
/// is no error if the tree does not exist.
pub fn remove_tree(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    kill_tree(root)
        .with_context(|| format!("failed to end the processes in {}", root.display()))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match remove_directories(root) {
            Ok(()) => return Ok(()),
            // An exiting process still holds its cgroup.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => {
                return Err(error).with_context(|| format!("failed to remove {}", root.display()));
            }
        }
        if Instant::now() > deadline {
            bail!("processes in {} do not end", root.display());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn kill_tree(root: &Path) -> io::Result<()> {
    match fs::write(root.join("cgroup.kill"), "1") {
        // It was removed between the check and now.
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(()),
        // The file exists since Linux 5.14; also, another sweep may have removed the cgroup.
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_one_by_one(root),
        other => other,
    }
}

fn kill_one_by_one(directory: &Path) -> io::Result<()> {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let Ok(procs) = fs::read_to_string(directory.join("cgroup.procs")) else {
        return Ok(());
    };
    for pid in procs.lines().filter_map(|line| line.parse().ok()) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    children(directory)?
        .iter()
        .try_for_each(|child| kill_one_by_one(child))
}

fn remove_directories(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_directories(&child)?;
    }
    ignore_missing(fs::remove_dir(directory))
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect())
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
