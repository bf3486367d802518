//! Sockets with the options that the standard library does not offer.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{ReceiveTimeout, ReuseAddr, ReusePort, SendTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, bind,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::milliseconds;

/// Lets a packet socket's frames go around the queueing discipline, and around TC with it.
pub(super) fn bypass_queue(socket: &OwnedFd) -> Result<(), Errno> {
    set_number(socket, (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS), 1)
}

/// A ring of an `AF_XDP` socket, by which it could send to a driver's queue.
pub(super) fn sending_ring() -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let socket = Errno::result(socket)?;
    // SAFETY: just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    set_number(&socket, (libc::SOL_XDP, libc::XDP_TX_RING), 64)
}

fn set_number(
    socket: &OwnedFd,
    (level, option): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> Result<(), Errno> {
    let length = size_of_val(&value) as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: the pointer is to a valid number of this length.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    Errno::result(set).map(drop)
}

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
    limit(&socket, timeout_ms)?;
    Ok(socket)
}

/// A multipath TCP socket for talking to an address.
pub(super) fn multipath(to: SocketAddr, timeout_ms: u64) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(family, kind, libc::IPPROTO_MPTCP) };
    let socket = Errno::result(socket)?;
    // SAFETY: just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    limit(&socket, timeout_ms)?;
    Ok(socket)
}

/// The same, bound to an address.
pub(super) fn multipath_bound(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = multipath(at, 0)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(socket)
}

/// Ends a connection and keeps the socket for another one.
pub(super) fn disconnect(socket: &OwnedFd) -> Result<(), Errno> {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the pointer is to a valid sockaddr of this length.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) }).map(drop)
}

fn limit(socket: &OwnedFd, timeout_ms: u64) -> Result<(), Errno> {
    let limit = milliseconds(timeout_ms);
    let limit = TimeVal::new(
        i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        libc::suseconds_t::from(limit.subsec_micros()),
    );
    setsockopt(socket, ReceiveTimeout, &limit)?;
    setsockopt(socket, SendTimeout, &limit)
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
    destination(interface, libc::ETH_P_ALL as u16, [0; 6])
}

/// The same with a protocol and a hardware address, for a kernel that writes the link header.
pub(super) fn destination(interface: &str, protocol: u16, hop: [u8; 6]) -> Result<LinkAddr, Errno> {
    let [a, b, c, d, e, f] = hop;
    let index = nix::net::if_::if_nametoindex(interface)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_beyond| Errno::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).ok();
    // SAFETY: the pointer is to a valid sockaddr_ll of this length, and `from_raw` copies it.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), length) }.ok_or(Errno::EINVAL)
}
