//! Sockets with the options that the standard library does not offer.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{ReceiveTimeout, ReuseAddr, ReusePort, SendTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike,
    SockaddrStorage, bind, sendto, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::{Call, Failure, Take, compat, milliseconds, uring};

// include/uapi/linux/if_packet.h, include/uapi/linux/in.h
const PACKET_VNET_HDR: libc::c_int = 15;
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// Lets a packet socket's frames bypass the queueing discipline, and TC with it.
pub(super) fn bypass_queue(socket: &OwnedFd, call: Call) -> Result<(), Errno> {
    let option = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
    set_option(socket, option, &1i32.to_ne_bytes(), call)
}

/// Makes a packet socket expect an offload header before each frame.
pub(super) fn take_offloads(socket: &OwnedFd) -> Result<(), Errno> {
    let option = (libc::SOL_PACKET, PACKET_VNET_HDR);
    set_option(socket, option, &1i32.to_ne_bytes(), Call::Native)
}

/// Sends a frame through a socket of type `SOCK_PACKET`, which names its interface.
pub(super) fn send_as_of_old(interface: &str, frame: &[u8]) -> Result<(), Errno> {
    const SOCK_PACKET: libc::c_int = 10;
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_PACKET, SOCK_PACKET | libc::SOCK_CLOEXEC, 0) };
    let socket = Errno::result(socket)?;
    // SAFETY: just created, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // `struct sockaddr_pkt`: a family, a name and a protocol.
    let mut address = [0u8; 18];
    address[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
    for (to, byte) in address[2..15].iter_mut().zip(interface.bytes()) {
        *to = byte;
    }
    let protocol = frame.get(12..14).unwrap_or_default();
    address[16..16 + protocol.len()].copy_from_slice(protocol);
    let (bytes, length) = (frame.as_ptr().cast(), address.len() as libc::socklen_t);
    let to = address.as_ptr().cast();
    // SAFETY: the pointers are to memory of these lengths.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), bytes, frame.len(), 0, to, length) };
    Errno::result(sent).map(drop)
}

/// Sets an option by any of the available calls.
pub(super) fn set_option(
    socket: &OwnedFd,
    (level, option): (libc::c_int, libc::c_int),
    value: &[u8],
    call: Call,
) -> Result<(), Errno> {
    match call {
        Call::Native => {
            let (length, value) = (value.len() as libc::socklen_t, value.as_ptr().cast());
            // SAFETY: the pointer is to a valid value of this length.
            let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
            Errno::result(set).map(drop)
        }
        Call::Compat => {
            let page = compat::LowPage::with(value)?;
            let numbers = [socket.as_raw_fd(), level, option].map(i32::cast_unsigned);
            let [file, level, option] = numbers;
            let arguments = [file, level, option, page.address()?, value.len() as u32];
            compat::call(compat::SETSOCKOPT, arguments).map(drop)
        }
        Call::Uring => uring::set_option(socket, (level, option), value, false),
        Call::UringCompat => uring::set_option(socket, (level, option), value, true),
    }
}

/// A socket for connecting to an address, of that address's family.
pub(super) fn towards(to: SocketAddr, kind: SockType, timeout_ms: u64) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    open(family, kind, None, timeout_ms)
}

/// A packet socket for all frames of an interface.
pub(super) fn all_frames(interface: &str, timeout_ms: u64) -> Result<OwnedFd, Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let protocol = Some(SockProtocol::EthAll);
    let socket =
        open(AddressFamily::Packet, SockType::Raw, protocol, timeout_ms).map_err(at("socket"))?;
    let address = link_address(interface).map_err(at("interface"))?;
    bind(socket.as_raw_fd(), &address).map_err(at("bind"))?;
    Ok(socket)
}

/// A socket whose calls wait no longer than the given time.
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

/// A multipath TCP socket for connecting to an address.
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
    // SAFETY: just created, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    limit(&socket, timeout_ms)?;
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
pub(super) fn bound(
    at: SocketAddr,
    kind: SockType,
    take: Take,
    [reuse_port, is_multipath]: [bool; 2],
) -> Result<OwnedFd, Errno> {
    let socket = if is_multipath {
        multipath(at, 0)?
    } else {
        towards(at, kind, 0)?
    };
    setsockopt(&socket, ReuseAddr, &(kind == SockType::Stream))?;
    setsockopt(&socket, ReusePort, &reuse_port)?;
    if take == Take::Free {
        let on = 1i32.to_ne_bytes();
        set_option(
            &socket,
            (libc::SOL_IP, libc::IP_FREEBIND),
            &on,
            Call::Native,
        )?;
    }
    let at = match take {
        Take::Bind | Take::Free => at,
        Take::Range | Take::Unbound => {
            let range = (u32::from(at.port()) << 16 | u32::from(at.port())).to_ne_bytes();
            let option = (libc::SOL_IP, IP_LOCAL_PORT_RANGE);
            set_option(&socket, option, &range, Call::Native)?;
            SocketAddr::new(at.ip(), 0)
        }
    };
    if take != Take::Unbound {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    } else if kind == SockType::Datagram {
        // The first datagram assigns a port; it need not arrive.
        let nobody = SocketAddr::new(loopback(at), 9);
        sendto(
            socket.as_raw_fd(),
            b"",
            &SockaddrStorage::from(nobody),
            MsgFlags::empty(),
        )?;
    }
    Ok(socket)
}

fn loopback(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

/// The IPv4-mapped IPv6 form of an address, if requested.
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

/// The same with a protocol and a hardware address, for when the kernel writes the link header.
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
