//! Where maps and links are pinned, so that enforcement outlives the agent.
//!
//! ```text
//! /sys/fs/bpf/enforcer/                 --pin-dir; 0700
//!   5f3a90c1d2e4b607-1/                 an instance: the layout of its maps, and a number
//!     maps/ACTIVE, maps/COUNTERS, …     by the map's name
//!     maps/SETTINGS-1, maps/CGROUPS-1   what a restart reads of each slot
//!     maps/STATE                        what else a restart needs, see `kept`
//!     cgroup/enforcer_conn4, …          by the program's name
//!     interfaces/7/ingress, …           by the interface's index
//!     lsm
//! ```
//!
//! An agent adopts the instance whose maps have its own layout. If there is none, it creates a new
//! instance next to the existing ones and moves their links over, one by one, each in place. Filters
//! at the clsact qdisc are not pinned: they stay anyway.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::programs::TcAttachType;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use super::{KernelError, calls};

/// The default directory of pins.
pub const PIN_DIR: &str = "/sys/fs/bpf/enforcer";

/// The directory of all pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

/// Held as long as an agent works with what is pinned.
pub(super) struct PinsLock(#[expect(dead_code, reason = "held, never looked at")] Flock<fs::File>);

/// One set of maps, with the links of the programs that work on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    path: PathBuf,
    layout: u64,
    number: u32,
}

impl Pins {
    /// The pins in a directory, which need not exist.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates the directory, unless it exists.
    ///
    /// # Errors
    ///
    /// It is not on a BPF file system, cannot be created, or is writable by users other than root
    /// and this process's user.
    pub fn prepare(&self) -> Result<(), KernelError> {
        let failed = |source| KernelError::Pins {
            action: "create",
            path: self.root.clone(),
            source,
        };
        let there = self.root.ancestors().find(|path| path.exists());
        let of = statfs(there.unwrap_or(&self.root)).map_err(|errno| failed(errno.into()))?;
        if of.filesystem_type() != BPF_FS_MAGIC {
            return Err(KernelError::NoBpfFs {
                path: self.root.clone(),
            });
        }
        make_directory(&self.root).map_err(failed)?;
        let metadata = fs::symlink_metadata(&self.root).map_err(failed)?;
        // Whoever owns the directory decides what is in force: root may, and so may the user that
        // this agent runs as. An agent of root trusts no other user.
        let is_ours = [0, geteuid().as_raw()].contains(&metadata.uid());
        if !metadata.is_dir() || !is_ours || metadata.mode() & 0o022 != 0 {
            return Err(KernelError::PinsOfOthers {
                path: self.root.clone(),
            });
        }
        Ok(())
    }

    /// Locks the directory for this process: two agents on the same maps would undo each other's
    /// work. The kernel releases the lock with the process.
    ///
    /// # Errors
    ///
    /// Another agent holds it, or it cannot be opened.
    pub(super) fn lock(&self) -> Result<PinsLock, KernelError> {
        let failed = |source| KernelError::Pins {
            action: "lock",
            path: self.root.clone(),
            source,
        };
        let directory = fs::File::open(&self.root).map_err(failed)?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinsLock(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(KernelError::PinsInUse {
                path: self.root.clone(),
            }),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Whether an agent has pinned anything there.
    pub fn is_empty(&self) -> bool {
        self.instances().is_empty()
    }

    /// Detaches everything that is pinned here, and removes the directory. Returns how many links
    /// there were.
    ///
    /// # Errors
    ///
    /// An agent uses it, or the first pin that could not be removed. The others are removed all the
    /// same.
    pub fn remove(&self) -> Result<usize, KernelError> {
        if self.is_empty() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        let (mut links, mut result) = (0, Ok(()));
        for instance in self.instances() {
            links += instance.links().len();
            result = result.and(instance.remove());
        }
        // The directory may contain something else. That of a service's user was there before its
        // agent, and stays.
        if fs::symlink_metadata(&self.root).is_ok_and(|root| root.uid() == geteuid().as_raw()) {
            let _ = fs::remove_dir(&self.root);
        }
        result.map(|()| links)
    }

    /// All instances, the newest first.
    pub(super) fn instances(&self) -> Vec<Instance> {
        let mut found: Vec<Instance> = entries(&self.root)
            .filter_map(|path| {
                let (layout, number) = path.file_name()?.to_str()?.split_once('-')?;
                Some(Instance {
                    layout: (layout.len() == 16)
                        .then(|| u64::from_str_radix(layout, 16).ok())
                        .flatten()?,
                    number: number.parse().ok()?,
                    path,
                })
            })
            .collect();
        found.sort_by_key(|instance| std::cmp::Reverse(instance.number));
        found
    }

    /// Creates a new instance and its directories.
    pub(super) fn add(&self, layout: u64) -> Result<Instance, KernelError> {
        let last = self.instances().first().map_or(0, |newest| newest.number);
        let number = last.saturating_add(1);
        let instance = Instance {
            path: self.root.join(format!("{layout:016x}-{number}")),
            layout,
            number,
        };
        for directory in ["maps", "cgroup", "interfaces"] {
            let path = instance.path.join(directory);
            make_directory(&path).map_err(|source| KernelError::Pins {
                action: "create",
                path,
                source,
            })?;
        }
        Ok(instance)
    }
}

impl Instance {
    /// The layout of its maps, see [`layout`](super::layout).
    pub(super) const fn layout(&self) -> u64 {
        self.layout
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    /// Where an inner map is pinned, by its slot. Opening it by its id would take CAP_SYS_ADMIN.
    pub(super) fn inner_map(&self, name: &str, slot: u32) -> PathBuf {
        self.map(&format!("{name}-{slot}"))
    }

    /// Pins an inner map, replacing the previous one of this slot.
    pub(super) fn pin_inner_map(
        &self,
        name: &str,
        slot: u32,
        map: &impl AsFd,
    ) -> Result<(), KernelError> {
        let path = self.inner_map(name, slot);
        unpin(&path)?;
        calls::pin(map, &path).map_err(|source| KernelError::Pins {
            action: "create",
            path,
            source,
        })
    }

    /// Where the link of a program that is attached to the cgroup root is pinned.
    pub(super) fn cgroup(&self, program: &str) -> PathBuf {
        self.path.join("cgroup").join(program)
    }

    /// Where the link of a program that is attached to an interface is pinned.
    pub(super) fn interface(&self, index: u32, direction: TcAttachType) -> PathBuf {
        let name = match direction {
            TcAttachType::Ingress => "ingress",
            _ => "egress",
        };
        self.path
            .join("interfaces")
            .join(index.to_string())
            .join(name)
    }

    /// Where the link of the program for security modules is pinned.
    pub(super) fn lsm(&self) -> PathBuf {
        self.path.join("lsm")
    }

    /// The indices of interfaces that have links here.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = u32> + use<> {
        let entries = entries(&self.path.join("interfaces"));
        entries.filter_map(|path| path.file_name()?.to_str()?.parse().ok())
    }

    /// Where links are pinned.
    pub(super) fn links(&self) -> Vec<PathBuf> {
        let of_interfaces = entries(&self.path.join("interfaces")).flat_map(|path| entries(&path));
        let of_cgroup = entries(&self.path.join("cgroup"));
        let of_lsm = Some(self.lsm()).filter(|path| path.exists());
        of_interfaces.chain(of_cgroup).chain(of_lsm).collect()
    }

    /// Detaches everything, and removes the instance's directory.
    pub(super) fn remove(&self) -> Result<(), KernelError> {
        let mut result = Ok(());
        for path in self.links() {
            result = result.and(remove_link(&path));
        }
        for path in entries(&self.path.join("maps")) {
            result = result.and(unpin(&path));
        }
        for path in entries(&self.path.join("interfaces")) {
            let _ = fs::remove_dir(path);
        }
        for directory in ["maps", "cgroup", "interfaces", ""] {
            result = result.and(removed(&self.path.join(directory), |path| {
                fs::remove_dir(path)
            }));
        }
        result
    }
}

/// Detaches the program of a pinned link, and removes the pin. It is no error if the pin does not
/// exist.
pub(super) fn remove_link(path: &Path) -> Result<(), KernelError> {
    if let Ok(link) = calls::open_pin(path) {
        // Not every kind of link can be detached, and one whose target is gone already is. Without
        // its pin, the link goes in any case.
        let _ = calls::detach_link(&link);
    }
    unpin(path)?;
    remove_directory_of(path);
    Ok(())
}

/// Where a link is pinned for a moment before it replaces another.
pub(super) fn replacement(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-new");
    path.with_file_name(name)
}

/// Removes the directory of an interface after its last link.
pub(super) fn remove_directory_of(path: &Path) {
    if let Some(directory) = path.parent() {
        let _ = fs::remove_dir(directory);
    }
}

fn unpin(path: &Path) -> Result<(), KernelError> {
    removed(path, |path| fs::remove_file(path))
}

/// Removes something; it is no error if it does not exist.
fn removed(path: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> Result<(), KernelError> {
    match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::Pins {
            action: "remove",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Creates a directory that only its owner may access, and its parents.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The contents of a directory; empty if it does not exist.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
