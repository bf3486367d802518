//! Senders that make their own packets.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, sendto,
};

use super::ring::TxRing;
use super::{
    Failure, Inject, Outcome, Ping, Raw, Report, Ring, TIMEOUT_MS, express, milliseconds, socket,
};
use crate::packet::from_hex;

/// The kernel takes the protocol from the frame.
const ANY: u16 = nix::libc::ETH_P_ALL as u16;
/// An echo reply of ICMP and of ICMPv6.
const REPLIES: [u8; 2] = [0, 129];

pub(super) fn ping(what: &Ping) -> Report {
    let started = Instant::now();
    let report = match echo(what) {
        Ok(()) => Report {
            count: 1,
            ..Report::new(Outcome::Answered, "receive")
        },
        Err((errno, step)) => Report::of_errno(errno, step),
    };
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report { took_ms, ..report }
}

pub(super) fn inject(what: &Inject) -> Report {
    let opened = match Injector::open(what) {
        Ok(opened) => opened,
        Err((errno, step)) => return Report::of_errno(errno, step),
    };
    if let Some(call) = what.express {
        let frames: Result<Vec<_>, _> = what.frame.iter().map(|frame| from_hex(frame)).collect();
        let frames = frames.map_err(|_reason| (Errno::EINVAL, "hex"));
        let sent = frames.and_then(|frames| express::send_all(&what.interface, &frames, call));
        return match sent {
            Ok(()) => each(&what.frame, |_| Ok(())),
            Err((errno, step)) => Report::of_errno(errno, step),
        };
    }
    if what.old {
        return each(&what.frame, |frame| {
            socket::send_as_of_old(&what.interface, frame).map_err(|errno| (errno, "send"))
        });
    }
    let Injector { socket, offload } = opened;
    if what.ring {
        let mut ring = match TxRing::of(socket) {
            Ok(ring) => ring,
            Err(errno) => return Report::of_errno(errno, "ring"),
        };
        let ring = std::cell::RefCell::new(&mut ring);
        return each(&what.frame, |frame| {
            let mut ring = ring.borrow_mut();
            let filled = ring.fill(&[&offload[..], frame].concat());
            filled
                .and_then(|()| ring.send())
                .map_err(|errno| (errno, "send"))
        });
    }
    each(&what.frame, |frame| {
        let at = |step: &'static str| move |errno| (errno, step);
        let (frame, address) = if what.cooked {
            let (address, rest) = cooked(&what.interface, frame).map_err(at("interface"))?;
            (rest, address)
        } else {
            let protocol = what.protocol.unwrap_or(ANY);
            let address = socket::destination(&what.interface, protocol, [0; 6]);
            (frame, address.map_err(at("interface"))?)
        };
        let bytes = [&offload[..], frame].concat();
        sendto(socket.as_raw_fd(), &bytes, &address, MsgFlags::empty())
            .map(drop)
            .map_err(at("send"))
    })
}

/// A packet socket for all frames: closing one makes the kernel wait for all processors.
struct Injector {
    socket: OwnedFd,
    offload: Vec<u8>,
}

impl Injector {
    fn open(what: &Inject) -> Result<Self, Failure> {
        let at = |step: &'static str| move |errno| (errno, step);
        let kind = if what.cooked {
            SockType::Datagram
        } else {
            SockType::Raw
        };
        let socket = packet_socket(kind).map_err(at("socket"))?;
        if what.ring {
            // A ring has no address of its own.
            let address = socket::destination(&what.interface, 0, [0; 6]);
            let address = address.map_err(at("interface"))?;
            bind(socket.as_raw_fd(), &address).map_err(at("bind"))?;
        }
        if let Some(call) = what.bypass {
            socket::bypass_queue(&socket, call).map_err(at("bypass"))?;
        }
        let offload = match &what.offload {
            Some(header) => {
                socket::take_offloads(&socket).map_err(at("offload"))?;
                from_hex(header).map_err(|_reason| (Errno::EINVAL, "hex"))?
            }
            None => Vec::new(),
        };
        Ok(Self { socket, offload })
    }
}

pub(super) fn send(what: &Raw) -> Report {
    each(&what.packet, |packet| {
        let at = |step: &'static str| move |errno| (errno, step);
        let to = destination(packet).ok_or((Errno::EINVAL, "packet"))?;
        let (protocol, bytes) = if what.tcp {
            let segment = segment(packet).ok_or((Errno::EINVAL, "packet"))?;
            (SockProtocol::Tcp, segment)
        } else {
            (SockProtocol::Raw, packet)
        };
        let socket = raw_socket(to, protocol, TIMEOUT_MS).map_err(at("socket"))?;
        let to = SockaddrStorage::from(to);
        if what.connected {
            connect(socket.as_raw_fd(), &to).map_err(at("connect"))?;
        }
        sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty())
            .map(drop)
            .map_err(at("send"))
    })
}

pub(super) fn ring(what: &Ring) -> Report {
    match express::open().and_then(|socket| express::ask_for_ring(&socket, what.call)) {
        Ok(()) => Report::new(Outcome::Bound, "ring"),
        Err(errno) => Report::of_errno(errno, "ring"),
    }
}

/// Sends each packet and stops at the first that fails.
fn each(packets: &[String], send: impl Fn(&[u8]) -> Result<(), Failure>) -> Report {
    for (packet, count) in packets.iter().zip(0..) {
        let failed = match from_hex(packet).map(|bytes| send(&bytes)) {
            Ok(Ok(())) => continue,
            Ok(Err((errno, step))) => Report::of_errno(errno, step),
            Err(reason) => Report {
                os_error: Some(reason),
                ..Report::new(Outcome::Other, "packet")
            },
        };
        return Report { count, ..failed };
    }
    let count = u64::try_from(packets.len()).unwrap_or(u64::MAX);
    Report {
        count,
        ..Report::new(Outcome::Sent, "send")
    }
}

fn echo(what: &Ping) -> Result<(), Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let to = SocketAddr::new(what.to, 0);
    let id = std::process::id().to_be_bytes();
    let id = u16::from_be_bytes([id[2], id[3]]);
    let header = IcmpEchoHeader { id, seq: 1 };
    let (protocol, request) = match what.to {
        IpAddr::V4(_) => {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(header), &[]);
            (SockProtocol::Icmp, header.to_bytes().to_vec())
        }
        // The kernel fills in the checksum of ICMPv6 itself.
        IpAddr::V6(_) => {
            let header = Icmpv6Header::new(Icmpv6Type::EchoRequest(header));
            (SockProtocol::IcmpV6, header.to_bytes().to_vec())
        }
    };
    let socket = raw_socket(to, protocol, what.timeout_ms).map_err(at("socket"))?;
    sendto(
        socket.as_raw_fd(),
        &request,
        &SockaddrStorage::from(to),
        MsgFlags::empty(),
    )
    .map_err(at("send"))?;
    let deadline = Instant::now() + milliseconds(what.timeout_ms);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        let length =
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(at("receive"))?;
        // IPv4 also returns the IP header; IPv6 does not.
        let header = if to.is_ipv4() {
            usize::from(buffer[0] & 0xf) * 4
        } else {
            0
        };
        let message = buffer.get(header..length).unwrap_or_default();
        if let [kind, _, _, _, high, low, ..] = message
            && REPLIES.contains(kind)
            && u16::from_be_bytes([*high, *low]) == id
        {
            return Ok(());
        }
    }
    Err((Errno::ETIMEDOUT, "receive"))
}

/// Splits a frame for a socket that has the kernel write the link header.
fn cooked<'a>(interface: &str, frame: &'a [u8]) -> Result<(LinkAddr, &'a [u8]), Errno> {
    let (header, rest) = frame.split_first_chunk::<14>().ok_or(Errno::EINVAL)?;
    let [a, b, c, d, e, f, _, _, _, _, _, _, high, low] = *header;
    let protocol = u16::from_be_bytes([high, low]);
    Ok((
        socket::destination(interface, protocol, [a, b, c, d, e, f])?,
        rest,
    ))
}

fn packet_socket(kind: SockType) -> Result<OwnedFd, Errno> {
    // Protocol 0: it only sends, and nothing is queued for receiving.
    socket::open(AddressFamily::Packet, kind, None, TIMEOUT_MS)
}

fn raw_socket(to: SocketAddr, kind: SockProtocol, timeout_ms: u64) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket::open(family, SockType::Raw, Some(kind), timeout_ms)
}

fn destination(packet: &[u8]) -> Option<SocketAddr> {
    let ip = match packet.first()? >> 4 {
        4 => IpAddr::from(*packet.get(16..)?.first_chunk::<4>()?),
        6 => IpAddr::from(*packet.get(24..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, 0))
}

/// What follows the IP header.
fn segment(packet: &[u8]) -> Option<&[u8]> {
    let first = packet.first()?;
    let header = match first >> 4 {
        4 => usize::from(first & 0xf) * 4,
        _ => 40,
    };
    packet.get(header..)
}
