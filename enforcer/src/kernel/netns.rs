//! The network namespace that is enforced in, and the others of this machine.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
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

/// The network namespaces of this machine's processes, and those that have a name (`ip netns`), besides that of this process,
/// as far as this process may look at them.
pub fn others() -> Vec<OtherNamespace> {
    let numbered = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_processes = numbered
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok())
        })
        .map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let own = fs::metadata("/proc/self/ns/net").map_or(0, |own| own.ino());
    let mut found: HashMap<u64, OtherNamespace> = HashMap::new();
    for path in of_processes.chain(named.map(|entry| entry.path())) {
        // A process may have ended.
        let Ok(inode) = fs::metadata(&path).map(|metadata| metadata.ino()) else {
            continue;
        };
        if inode == own || found.contains_key(&inode) {
            continue;
        }
        if let Ok(file) = File::open(&path) {
            found.insert(inode, OtherNamespace { inode, file });
        }
    }
    found.into_values().collect()
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
