//! Names that identify owners, and the removal of what dead owners left behind.
//!
//! Everything that a lab creates has its id in the name, and the id is the owner's pid and start
//! time: the name alone shows whether the owner is alive, and no file can be missing or half
//! written.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};

use crate::{cgroup, net};

/// The prefix of the names of all network namespaces.
pub const NAMESPACE_PREFIX: &str = "enf-";
/// The prefix of the names of all cgroups and temporary directories.
pub const LAB_PREFIX: &str = "enforcer-lab-";

/// A lab's id: the owning process, distinguished from later ones with the same pid, and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LabId {
    pid: i32,
    start: u64,
    number: u32,
}

impl LabId {
    /// A new id for a lab of this process.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = i32::try_from(std::process::id()).context("a pid beyond the kernel's limit")?;
        let start = start_time(pid).context("failed to read the own start time from /proc")?;
        Ok(Self {
            pid,
            start,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Whether the process that created the lab still runs.
    pub fn owner_lives(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// The full name of one of its network namespaces.
    pub fn namespace(&self, name: &str) -> String {
        format!("{NAMESPACE_PREFIX}{self}-{name}")
    }

    /// The name of its cgroup and, with a suffix, of its temporary directory.
    pub fn lab_name(&self) -> String {
        format!("{LAB_PREFIX}{self}")
    }

    /// Reads the id out of a name made by [`LabId::namespace`] or [`LabId::lab_name`].
    fn of_name(name: &str, prefix: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(prefix)?.splitn(4, '-');
        let id = [parts.next()?, parts.next()?, parts.next()?].join("-");
        id.parse().ok()
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, start, number } = self;
        write!(formatter, "{pid}-{start}-{number}")
    }
}

impl FromStr for LabId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow!("`{text}` is no lab id");
        let mut parts = text.split('-');
        let (pid, start, number) = (parts.next(), parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            pid: pid.and_then(|part| part.parse().ok()).ok_or_else(wrong)?,
            start: start.and_then(|part| part.parse().ok()).ok_or_else(wrong)?,
            number: number
                .and_then(|part| part.parse().ok())
                .ok_or_else(wrong)?,
        })
    }
}

/// Removes what labs of dead owners left. Never touches a living owner's lab.
pub fn sweep() -> Result<()> {
    for id in cgroups()?.into_iter().filter(|id| !id.owner_lives()) {
        // Processes first: they hold the namespaces.
        cgroup::remove_tree(&cgroup::mount_point()?.join(id.lab_name()))?;
    }
    let dead: Vec<_> = namespaces()
        .into_iter()
        .filter(|name| LabId::of_name(name, NAMESPACE_PREFIX).is_some_and(|id| !id.owner_lives()))
        .collect();
    net::delete_namespaces(&dead)?;
    for name in names(&std::env::temp_dir()) {
        if LabId::of_name(&name, LAB_PREFIX).is_some_and(|id| !id.owner_lives()) {
            // Another sweep may have removed it.
            let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
        }
    }
    Ok(())
}

/// Everything that a lab has on this machine now, as text: for tests of the cleanup.
pub fn traces(id: &LabId) -> Result<Vec<String>> {
    let namespaces = namespaces()
        .into_iter()
        .filter(|name| LabId::of_name(name, NAMESPACE_PREFIX).as_ref() == Some(id))
        .map(|name| format!("network namespace {name}"));
    let cgroups = cgroups()?
        .into_iter()
        .filter(|found| found == id)
        .map(|id| format!("cgroup of {id}"));
    let directories = names(&std::env::temp_dir())
        .into_iter()
        .filter(|name| LabId::of_name(name, LAB_PREFIX).as_ref() == Some(id))
        .map(|name| format!("temporary directory {name}"));
    Ok(namespaces.chain(cgroups).chain(directories).collect())
}

fn namespaces() -> Vec<String> {
    names(Path::new(net::NAMESPACES))
}

fn cgroups() -> Result<Vec<LabId>> {
    let root = cgroup::mount_point()?;
    Ok(names(&root)
        .iter()
        .filter_map(|name| LabId::of_name(name, LAB_PREFIX))
        .collect())
}

/// The names in a directory; empty if it does not exist.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A process's start time in clock ticks since boot; `None` if it has ended, or is a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X"))
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_identifies_its_owner() -> Result<()> {
        let id = LabId::new()?;
        assert!(id.owner_lives());
        assert_ne!(id, LabId::new()?);
        assert_eq!(id.to_string().parse::<LabId>()?, id);
        assert_eq!(
            LabId::of_name(&id.namespace("pod-a"), NAMESPACE_PREFIX),
            Some(id)
        );
        assert_eq!(LabId::of_name(&id.lab_name(), LAB_PREFIX), Some(id));
        let directory = format!("{}-Xy12", id.lab_name());
        assert_eq!(LabId::of_name(&directory, LAB_PREFIX), Some(id));
        for stranger in ["enf-cp1", "enf-1-2-x-cp1", "cni-1-2-3", "enf-"] {
            assert_eq!(LabId::of_name(stranger, NAMESPACE_PREFIX), None);
        }
        let LabId { pid, start, number } = id;
        // The same pid, assigned a second time.
        assert!(
            !LabId {
                pid,
                start: start + 1,
                number
            }
            .owner_lives()
        );
        Ok(())
    }
}
