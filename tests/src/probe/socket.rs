//! Sockets with the options that the standard library does not offer.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{ReceiveTimeout, ReuseAddr, ReusePort, SendTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, bind,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::milliseconds;

/// A socket for talking to an address: its family follows from it.
pub(super) fn towards(to: SocketAddr, kind: SockType, timeout_ms: u64) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    open(family, kind, None, timeout_ms)
}

/// A socket that waits no longer than told, in any call.
pub(super) fn open(
    family: AddressFamily,
    kind: SockType,
    protocol: Option<SockProtocol>,
    timeout_ms: u64,
) -> Result<OwnedFd, Errno> {
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    let limit = milliseconds(timeout_ms);
    let limit = TimeVal::new(
        i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        libc::suseconds_t::from(limit.subsec_micros()),
    );
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    setsockopt(&socket, SendTimeout, &limit)?;
    Ok(socket)
}

/// A socket bound to an address.
pub(super) fn bound(at: SocketAddr, kind: SockType, reuse_port: bool) -> Result<OwnedFd, Errno> {
    let socket = towards(at, kind, 0)?;
    setsockopt(&socket, ReuseAddr, &(kind == SockType::Stream))?;
    setsockopt(&socket, ReusePort, &reuse_port)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(socket)
}

/// The IPv4-mapped IPv6 form of an address, if it is to be used.
pub(super) fn mapped(address: SocketAddr, mapped: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if mapped => {
            SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0).into()
        }
        _ => address,
    }
}

/// The address of an interface, for packet sockets.
pub(super) fn link_address(interface: &str) -> Result<LinkAddr, Errno> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_beyond| Errno::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).ok();
    // SAFETY: the pointer is to a valid sockaddr_ll of this length, and `from_raw` copies it.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), length) }.ok_or(Errno::EINVAL)
}
