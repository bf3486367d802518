//! The network namespace that is enforced in, and the others of this machine.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::KernelError;

/// Another network namespace than this process's.
pub struct OtherNamespace {
    /// Its inode: how `/proc/PID/ns/net` names it.
    pub inode: u64,
    file: File,
}

/// The network namespaces of this machine's processes, and those that have a name (`ip netns`), besides that of this process;
/// and how many there are that may not be opened.
pub fn others() -> (Vec<OtherNamespace>, usize) {
    let numbered = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_processes = numbered
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok())
        })
        .map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let all: Vec<PathBuf> = of_processes
        .chain(named.map(|entry| entry.path()))
        .collect();
    let own = fs::metadata("/proc/self/ns/net").map_or(0, |own| own.ino());
    let mut found: HashMap<u64, OtherNamespace> = HashMap::new();
    let mut closed: HashSet<u64> = HashSet::new();
    for path in all {
        // Of a process that has ended, or that may not be looked at: then its namespace may be any.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        let inode = metadata.ino();
        if inode == own || found.contains_key(&inode) {
            continue;
        }
        match File::open(&path) {
            Ok(file) => {
                closed.remove(&inode);
                found.insert(inode, OtherNamespace { inode, file });
            }
            Err(_) => _ = closed.insert(inode),
        }
    }
    (found.into_values().collect(), closed.len())
}

impl OtherNamespace {
    /// Its descriptor, as netlink takes it, which lives as long as this.
    pub(super) fn descriptor(&self) -> u32 {
        // Never negative, as it is open.
        self.file.as_raw_fd().unsigned_abs()
    }

    /// Runs `f` on a thread of its own in this namespace.
    ///
    /// # Errors
    ///
    /// This process may not enter it (`CAP_SYS_ADMIN`), or gets no thread.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let entered = thread::Builder::new().spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(f())
            })?;
            match entered.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Unchanging name of the network namespace that this process is in.
pub(super) fn netns_cookie() -> Result<u64, KernelError> {
    let system = |source| KernelError::System {
        action: "ask for the cookie of the network namespace (Linux 5.14)",
        source,
    };
    let socket = std::net::UdpSocket::bind("[::]:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))
        .map_err(system)?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of `length` bytes and to that length, and outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(system(io::Error::last_os_error()))
    }
}
