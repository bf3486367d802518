//! Captures the frames that pass an interface.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Instant;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{LinkAddr, recvfrom};
use serde::{Deserialize, Serialize};

use super::{Failure, Outcome, READY, Report, Sniff, milliseconds, print_line, socket};

/// How often it checks the time while nothing passes.
const TICK_MS: u64 = 20;

/// A frame that passed. Ports are 0 where the packet has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Whether it left through the interface instead of arriving.
    pub outgoing: bool,
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `other`.
    pub protocol: String,
    /// TCP flags as letters, such as `SA`.
    pub flags: String,
}

pub(super) fn sniff(what: &Sniff) -> Report {
    match watch(what) {
        Ok(count) => Report {
            count,
            ..Report::new(Outcome::Closed, "sniff")
        },
        Err((errno, step)) => Report::of_errno(errno, step),
    }
}

fn watch(what: &Sniff) -> Result<u64, Failure> {
    let socket = socket::all_frames(&what.interface, TICK_MS)?;
    print_line(READY);
    let deadline = what
        .for_ms
        .map(|number| Instant::now() + milliseconds(number));
    let (mut buffer, mut count) = (vec![0; 65536], 0);
    while deadline.is_none_or(|end| Instant::now() < end) {
        let (length, link) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => continue,
            Err(errno) => return Err((errno, "receive")),
        };
        let outgoing = link.is_some_and(|link| link.pkttype() == libc::PACKET_OUTGOING);
        let frame = parse(buffer.get(..length).unwrap_or_default(), outgoing);
        if let Some(frame) = frame.filter(|frame| wanted(frame, what)) {
            count += 1;
            print_line(&serde_json::to_string(&frame).unwrap_or_default());
        }
    }
    Ok(count)
}

fn wanted(frame: &Frame, what: &Sniff) -> bool {
    let Frame {
        from,
        to,
        outgoing: _,
        protocol: _,
        flags: _,
    } = frame;
    let port = what
        .port
        .is_none_or(|port| from.port() == port || to.port() == port);
    port && what
        .address
        .is_none_or(|address| from.ip() == address || to.ip() == address)
}

fn parse(bytes: &[u8], outgoing: bool) -> Option<Frame> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => return None,
    };
    let (protocol, ports, flags) = match packet.transport.as_ref() {
        Some(TransportSlice::Tcp(tcp)) => {
            let letters = [
                (tcp.fin(), 'F'),
                (tcp.syn(), 'S'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.ack(), 'A'),
                (tcp.urg(), 'U'),
            ];
            let flags = letters
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, letter)| *letter)
                .collect();
            ("tcp", (tcp.source_port(), tcp.destination_port()), flags)
        }
        Some(TransportSlice::Udp(udp)) => (
            "udp",
            (udp.source_port(), udp.destination_port()),
            String::new(),
        ),
        Some(TransportSlice::Icmpv4(_)) => ("icmp", (0, 0), String::new()),
        Some(TransportSlice::Icmpv6(_)) => ("icmpv6", (0, 0), String::new()),
        _ => ("other", (0, 0), String::new()),
    };
    Some(Frame {
        outgoing,
        from: SocketAddr::new(from, ports.0),
        to: SocketAddr::new(to, ports.1),
        protocol: protocol.to_owned(),
        flags,
    })
}
