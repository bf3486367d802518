//! TCP, segment by segment: sends what a kernel's own TCP never would.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Instant;

use etherparse::{SlicedPacket, TcpSlice, TransportSlice};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    Backlog, MsgFlags, SockType, SockaddrStorage, bind, listen, recv, sendto, setsockopt,
};

use super::{Failure, Outcome, Report, Talk, milliseconds, socket};
use crate::craft::{Crafted, Segment, fix_ipv4_checksum, protocol, segment};
use crate::packet::from_hex;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// The initial sequence number of this side.
const FIRST: u32 = 7_000;
const TICK_MS: u64 = 50;

pub(super) fn talk(what: &Talk) -> Report {
    let started = Instant::now();
    let report = match converse(what) {
        Ok(answer) => Report {
            answer: Some(String::from_utf8_lossy(&answer).into_owned()),
            count: 1,
            ..Report::new(Outcome::Answered, "receive")
        },
        Err((errno, step)) => Report::of_errno(errno, step),
    };
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report { took_ms, ..report }
}

fn converse(what: &Talk) -> Result<Vec<u8>, Failure> {
    let _silent = silence(what.from).map_err(|errno| (errno, "listen"))?;
    let mut line = Wire::open(what)?;
    line.send(Segment::flags(SYN), FIRST, 0)?;
    let first = line.wait(|tcp| tcp.syn() && tcp.ack(), "connect")?;
    line.acknowledged = first.1.wrapping_add(1);
    let own = FIRST.wrapping_add(1);
    line.send(Segment::flags(ACK), own, line.acknowledged)?;
    let mut end = own;
    for text in &what.segment {
        let (flags, urgent, at, data, odd) = read(text).ok_or((Errno::EINVAL, "segment"))?;
        let sequence = own.wrapping_add_signed(at);
        let segment = Segment {
            urgent,
            data: &data,
            ..Segment::flags(flags)
        };
        let acknowledged = match odd {
            Odd::Acknowledgement => line.acknowledged.wrapping_add(1_000_000),
            _ => line.acknowledged,
        };
        line.send_odd(segment, sequence, acknowledged, odd)?;
        end = end.max(sequence.wrapping_add(data.len() as u32));
        thread::sleep(milliseconds(what.pause_ms));
    }
    let answer = line.wait(|tcp| !tcp.payload().is_empty() || tcp.rst(), "receive");
    // So that the peer does not keep the connection forever.
    line.send(Segment::flags(RST | ACK), end, line.acknowledged)?;
    let (data, _) = answer?;
    if data.is_empty() {
        return Err((Errno::ECONNRESET, "receive"));
    }
    Ok(data)
}

/// The flaw for which a segment is discarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Odd {
    Nothing,
    Checksum,
    Acknowledgement,
    Hops,
}

/// `FLAGS:URGENT:AT:DATA:ODD`
fn read(text: &str) -> Option<(u8, u16, i32, Vec<u8>, Odd)> {
    let mut parts = text.splitn(5, ':');
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let (urgent, at) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let data = from_hex(parts.next()?).ok()?;
    let odd = match parts.next()? {
        "checksum" => Odd::Checksum,
        "acknowledgement" => Odd::Acknowledgement,
        "hops" => Odd::Hops,
        _ => Odd::Nothing,
    };
    Some((flags, urgent, at, data, odd))
}

/// The kernel would reset a connection that it does not know. A raw socket that receives nothing
/// prevents that.
fn silence(at: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket::towards(at, SockType::Stream, 0)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
    // BPF_RET: accept nothing.
    let mut nothing = [libc::sock_filter {
        code: 6,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: nothing.as_mut_ptr(),
    };
    let length = size_of_val(&program) as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    let value = (&raw const program).cast();
    // SAFETY: the pointer is to a valid program of this length, which the kernel copies.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    Errno::result(set)?;
    listen(&socket, Backlog::new(1)?)?;
    Ok(socket)
}

/// Leaves one hop, which a router uses up.
fn spend_hops(frame: &mut [u8]) {
    match frame.get(14).map(|byte| byte >> 4) {
        Some(4) => {
            frame[22] = 1;
            fix_ipv4_checksum(&mut frame[14..34]);
        }
        _ => frame[21] = 1,
    }
}

struct Wire<'a> {
    what: &'a Talk,
    socket: OwnedFd,
    macs: [[u8; 6]; 2],
    acknowledged: u32,
}

impl<'a> Wire<'a> {
    fn open(what: &'a Talk) -> Result<Self, Failure> {
        let at = |step: &'static str| move |errno| (errno, step);
        let socket = socket::all_frames(&what.interface, TICK_MS)?;
        if let Some(call) = what.bypass {
            socket::bypass_queue(&socket, call).map_err(at("bypass"))?;
        }
        let macs = from_hex(&what.macs).ok();
        let macs = macs.as_deref().and_then(|bytes| match bytes.as_chunks() {
            ([own, hop], []) => Some([*own, *hop]),
            _ => None,
        });
        Ok(Self {
            what,
            socket,
            macs: macs.ok_or((Errno::EINVAL, "macs"))?,
            acknowledged: 0,
        })
    }

    fn send(&self, what: Segment<'_>, sequence: u32, acknowledged: u32) -> Result<(), Failure> {
        self.send_odd(what, sequence, acknowledged, Odd::Nothing)
    }

    fn send_odd(
        &self,
        what: Segment<'_>,
        sequence: u32,
        acknowledged: u32,
        odd: Odd,
    ) -> Result<(), Failure> {
        let (from, to) = (self.what.from, self.what.to);
        let mut bytes = segment(
            from,
            to,
            &Segment {
                sequence,
                acknowledged,
                ..what
            },
        );
        if odd == Odd::Checksum {
            // Of the checksum field itself.
            bytes[16] ^= 0xff;
        }
        let packet = Crafted::carrying(from.ip(), to.ip(), 0, protocol::TCP, bytes);
        let [own, hop] = self.macs;
        let address = socket::link_address(&self.what.interface);
        let address = address.map_err(|errno| (errno, "interface"))?;
        let mut frame = packet.frame(own, hop);
        if odd == Odd::Hops {
            spend_hops(&mut frame);
        }
        match sendto(self.socket.as_raw_fd(), &frame, &address, MsgFlags::empty()) {
            // The sender gets an error for a segment that is dropped at egress; the next one may
            // pass.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EPERM) => Ok(()),
            Err(errno) => Err((errno, "send")),
        }
    }

    /// Waits for a segment from the other side: its data and its sequence number.
    fn wait(
        &self,
        wanted: impl Fn(&TcpSlice<'_>) -> bool,
        step: &'static str,
    ) -> Result<(Vec<u8>, u32), Failure> {
        let deadline = Instant::now() + milliseconds(self.what.timeout_ms);
        let mut buffer = vec![0; 65536];
        while Instant::now() < deadline {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::ENETDOWN) => continue,
                Err(errno) => return Err((errno, step)),
            };
            let Ok(packet) = SlicedPacket::from_ethernet(buffer.get(..length).unwrap_or_default())
            else {
                continue;
            };
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                continue;
            };
            let ports = (tcp.source_port(), tcp.destination_port());
            if ports == (self.what.to.port(), self.what.from.port()) && wanted(&tcp) {
                return Ok((tcp.payload().to_vec(), tcp.sequence_number()));
            }
        }
        Err((Errno::ETIMEDOUT, step))
    }
}
