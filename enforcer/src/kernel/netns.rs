//! The network namespace in which the policy is enforced.

use std::{io, os::fd::AsRawFd as _};

use super::KernelError;

/// A unique and unchanging number of this process's network namespace.
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
