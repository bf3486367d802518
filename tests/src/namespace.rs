//! Network namespaces, and the mount namespaces that give a host its own file systems where that
//! matters.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::net;

/// TCP counters: they reveal a wrongly dropped packet even if nothing else fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSegments {
    /// Sent for the first time.
    pub sent: u64,
    /// Retransmitted. On a loaded machine, a few retransmissions are spurious and indicate no loss.
    pub again: u64,
}

/// A named network namespace; a host's also has its own mounts.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    net: File,
    mounts: Option<File>,
}

impl Namespace {
    /// Opens an existing one.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(net::NAMESPACES).join(name);
        let net = File::open(&path)
            .with_context(|| format!("failed to open the namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            net,
            mounts: None,
        })
    }

    /// Opens an existing one, and gives it its own `/run`, `/sys` and `/sys/fs/bpf`: two hosts on
    /// one machine must not find each other's pinned programs, sockets or interfaces. They vanish
    /// with the last process or handle. `scratch` is an empty directory.
    pub fn open_with_mounts(name: &str, scratch: &Path) -> Result<Self> {
        let mut namespace = Self::open(name)?;
        let mounts = namespace
            .within(|| own_mounts(scratch))?
            .with_context(|| format!("failed to make the mounts of {name}"))?;
        namespace.mounts = Some(mounts);
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle on the network namespace.
    pub fn net(&self) -> &File {
        &self.net
    }

    /// The handle on the mounts, if it has its own.
    pub fn mounts(&self) -> Option<&File> {
        self.mounts.as_ref()
    }

    /// Runs something on a thread in this network namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let in_namespace = || {
            setns(&self.net, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("failed to enter the namespace {}", self.name))?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(in_namespace).join())
            .map_err(|_panic| anyhow!("work in the namespace {} panicked", self.name))?
    }

    /// How many TCP segments this namespace has sent so far.
    pub fn tcp_segments(&self) -> Result<TcpSegments> {
        let table = self.within(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let table = table.context("failed to read the TCP counters")?;
        let counter =
            |name| find_counter(&table, "Tcp", name).with_context(|| format!("no {name}"));
        Ok(TcpSegments {
            sent: counter("OutSegs")?,
            again: counter("RetransSegs")?,
        })
    }

    /// Sets sysctls below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            settings.iter().try_for_each(|(name, value)| {
                let path = PathBuf::from("/proc/sys/net").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("failed to set {} to {value}", path.display()))
            })
        })?
    }
}

/// The value of a counter in `/proc/net/snmp`, whose lines come in pairs: names, then values.
fn find_counter(table: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut lines = table
        .lines()
        .filter(|line| line.split(':').next() == Some(protocol));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|found| found == name)?;
    values.split(' ').nth(at)?.parse().ok()
}

/// Unshares the calling thread's mounts, rearranges them and returns the handle that keeps them.
fn own_mounts(scratch: &Path) -> Result<File> {
    // The thread must not share its root and working directory with the others: NEWNS sees to that.
    unshare(CloneFlags::CLONE_NEWNS).context("failed to unshare the mounts")?;
    // A slave mount still follows unmounts of the machine, so that no other mount is pinned.
    mount_on(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
    )?;
    // Fails if no namespace was ever named; whatever is mounted there is hidden by /run anyway.
    let _ = umount2(net::NAMESPACES, MntFlags::MNT_DETACH);
    mount_on(
        Some("tmpfs"),
        Path::new("/run"),
        Some("tmpfs"),
        MsFlags::empty(),
    )?;

    // A sysfs shows the network namespace in which it was mounted. The cgroup mounts move over from
    // the machine's.
    mount_on(Some("sysfs"), scratch, Some("sysfs"), MsFlags::empty())?;
    let cgroups = scratch.join("fs/cgroup");
    mount_on(
        Some("/sys/fs/cgroup"),
        &cgroups,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REC,
    )?;
    let from = scratch
        .to_str()
        .context("the temporary directory's name is no UTF-8")?;
    mount_on(Some(from), Path::new("/sys"), None, MsFlags::MS_MOVE)?;
    mount_on(
        Some("bpf"),
        Path::new("/sys/fs/bpf"),
        Some("bpf"),
        MsFlags::empty(),
    )?;
    File::open("/proc/thread-self/ns/mnt").context("failed to open the mount namespace")
}

fn mount_on(source: Option<&str>, target: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(source, target, kind, flags, None::<&str>)
        .with_context(|| format!("failed to mount {source:?} on {}", target.display()))
}
