//! The TLS check of `tls: Required` (the *lock*): what a client sends first must be a TLS ClientHello.
//!
//! Each of the first [`HELLO`] bytes of a stream is compared with the values allowed at its position, in whatever segment
//! it comes: so it makes no difference whether the ClientHello is split, reordered, sent twice or sent with the SYN, and
//! the only state is where the stream begins. A segment that passed and was then lost (a wrong checksum, a short hop limit)
//! gains nothing for those that follow. Once the server has received the first bytes, nothing is checked any more.
//!
//! What is allowed (RFC 8446, 5.1 and 4.1.2; RFC 5246, 6.2.1 and 7.4.1.2): a handshake record of version 1.0 to 1.2, which
//! TLS 1.3 uses as well, of at most 2^14 bytes, that begins with a ClientHello of less than 64 KiB, for version 1.0 or
//! later. SSL 2 and 3 are not TLS. The minimum version is up to the server (`--tls-min-version`): a ClientHello only says
//! what its client prefers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    decide,
    packet::{Packet, PacketBytes, Segment},
    tables::Tables,
    verdict::{Reason, Verdict},
};

/// How many bytes of a stream are checked: up to the version in the ClientHello.
pub const HELLO: u32 = 11;

/// A forwarded connection whose path requires TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stream {
    /// Sequence number of the client's first byte, as its server acknowledged it.
    pub first: u32,
    /// One of [`stage`].
    pub stage: u32,
}

/// The stage of a [`Stream`].
pub mod stage {
    /// The server has not acknowledged a ClientHello yet.
    pub const OPEN: u32 = 1;
    /// The server has acknowledged a ClientHello.
    pub const HEARD: u32 = 2;
    /// The check failed. No more of the connection passes.
    pub const CUT: u32 = 3;
}

/// The result of the TLS check for a packet that its path allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Lock {
    /// The path requires no TLS, or the connection needs no more checks.
    Open = 0,
    /// The packet passes.
    Holds = 1,
    /// The packet fails the check.
    Broken = 2,
    /// The connection is a subflow of multipath TCP.
    Multipath = 3,
    /// An earlier packet failed the check, and the connection is cut off.
    Cut = 4,
}

impl Lock {
    /// From its number; an invalid one counts as broken.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Open,
            1 => Self::Holds,
            3 => Self::Multipath,
            4 => Self::Cut,
            _ => Self::Broken,
        }
    }

    /// [`Self::Holds`] if the packet is fine, else [`Self::Broken`].
    pub const fn holds_if(fine: bool) -> Self {
        if fine { Self::Holds } else { Self::Broken }
    }

    /// The verdict after the check. `allowed` is the verdict of the path.
    pub fn verdict<T: Tables>(self, tables: &T, allowed: Verdict) -> Verdict {
        match self {
            Self::Open | Self::Holds => allowed,
            Self::Broken | Self::Cut => decide::not_tls(tables, allowed, Reason::NotTls),
            Self::Multipath => decide::not_tls(tables, allowed, Reason::MultipathTls),
        }
    }
}

/// What a segment of the server means for the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Answer {
    /// The server waits for the ClientHello and sends no data.
    Waits = 0,
    /// The server has received the ClientHello.
    Heard = 1,
    /// The server sends data first, as no TLS server does.
    Early = 2,
}

/// Whether a ClientHello can have that byte at that position of its stream.
pub const fn may_be_hello(position: u32, byte: u8) -> bool {
    match position {
        // Record: handshake, version, length.
        0 => byte == 22,
        1 => byte == 3,
        2 => matches!(byte, 1..=3),
        3 => byte <= 0x40,
        // Handshake: ClientHello, length, version.
        5 => byte == 1,
        6 => byte == 0,
        9 => byte == 3,
        10 => matches!(byte, 1..=3),
        _ => true,
    }
}

/// Whether a TCP header has an option of multipath TCP (RFC 8684). The server need not read the bytes of a subflow as they
/// come: a mapping places them in the stream, which may come by another subflow, and they may be discarded.
///
/// Parses as the kernel does (`tcp_parse_options` in net/ipv4/tcp_input.c), and stops where the kernel stops.
#[inline(always)]
pub fn is_multipath<B: PacketBytes + ?Sized>(bytes: &B, packet: &Packet) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MULTIPATH: u8 = 30;
    // The length of a header without options, and the most bytes of options that it can have.
    const HEADER: u32 = 20;
    const OPTIONS: u32 = 40;

    let first = packet.transport.wrapping_add(HEADER);
    let options = packet.segment.from.wrapping_sub(first);
    if options > OPTIONS {
        return false;
    }
    let mut at = 0;
    for _ in 0..OPTIONS {
        if at >= options {
            return false;
        }
        let byte = |at: u32| bytes.load::<1>(first.wrapping_add(at) as usize);
        // Options that can not be read must not make it pass.
        let Some([kind]) = byte(at) else { return true };
        at += 1;
        match kind {
            END => return false,
            NOTHING => continue,
            _ => {}
        }
        if at >= options {
            return false;
        }
        let Some([length]) = byte(at) else {
            return true;
        };
        // The length includes the bytes of kind and length.
        if length < 2 || u32::from(length) - 1 > options - at {
            return false;
        }
        if kind == MULTIPATH {
            return true;
        }
        at += u32::from(length) - 1;
    }
    false
}

/// Whether a segment of the client may pass, whose stream begins at `first`. Urgent data may not: a server does not read it
/// with the rest of the stream, so the checked bytes would differ from those that it reads.
#[inline(always)]
pub fn may_follow<B: PacketBytes + ?Sized>(bytes: &B, segment: &Segment, first: u32) -> bool {
    if segment.is_urgent() {
        return false;
    }
    let len = segment.len();
    // The segment's offset in the stream; huge if it is before the stream.
    let before = segment.start().wrapping_sub(first);
    for position in 0..HELLO {
        let at = position.wrapping_sub(before);
        if at < len {
            let byte = bytes.load::<1>(segment.from.wrapping_add(at) as usize);
            if !byte.is_some_and(|[byte]| may_be_hello(position, byte)) {
                return false;
            }
        }
    }
    true
}

/// What a segment of the server means, for a client whose stream begins at `first`.
pub const fn answer(segment: &Segment, first: u32) -> Answer {
    // Far less than 2^31: by then the check has ended, or the connection is gone.
    let acknowledged = segment.ack.wrapping_sub(first) as i32;
    if segment.acknowledges() && acknowledged >= HELLO as i32 {
        Answer::Heard
    } else if segment.is_empty() {
        Answer::Waits
    } else {
        Answer::Early
    }
}

#[cfg(test)]
mod tests;
