//! The parsed packet as the decision uses it, and the trait by which the parser reads bytes.

use zerocopy::FromBytes as _;

use crate::addr::Ip;

/// Bytes of a packet: an skb in the kernel, a slice on the host.
pub trait PacketBytes {
    /// Whether only the most frequent packets are parsed: TCP or UDP directly behind an IP header without options, and not
    /// a fragment. For any other packet the parser then returns an error, which says nothing about the packet.
    const PLAIN: bool = false;

    /// `N` bytes from `offset`; `None` if the packet ends before that.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same, for what every packet has near its beginning. These reads are worth the extra branches that the verifier
    /// has to follow where bytes are read without a helper.
    fn near<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.load(offset)
    }

    /// `N` words of a header, in the byte order that they have in memory.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// The same for words of 64 bits.
    fn long_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]>;

    /// Returns the number unchanged, and makes the verifier forget its value: otherwise the verifier follows every branch
    /// that led to it separately, and their number doubles with each header.
    fn opaque(&self, number: usize) -> usize {
        number
    }
}

impl PacketBytes for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let (words, _) = <[u32; N]>::read_from_prefix(self.get(offset..)?).ok()?;
        Some(words)
    }

    fn long_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let (words, _) = <[u64; N]>::read_from_prefix(self.get(offset..)?).ok()?;
        Some(words)
    }
}

/// What a number names: a port, a message type or a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PortKind {
    /// TCP ports.
    Tcp = 0,
    /// UDP ports.
    Udp = 1,
    /// ICMP (IPv4) message types.
    Icmp = 2,
    /// ICMPv6 message types.
    Icmp6 = 3,
    /// Numbers of other IP protocols.
    Protocol = 4,
    /// ARP; its number is always 0.
    Arp = 5,
}

impl PortKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Icmp6,
        Self::Protocol,
        Self::Arp,
    ];

    /// The kind with that number.
    pub const fn from_code(code: u8) -> Option<Self> {
        // No look-up in `ALL`: the kernel programs would have to read it from memory.
        Some(match code {
            0 => Self::Tcp,
            1 => Self::Udp,
            2 => Self::Icmp,
            3 => Self::Icmp6,
            4 => Self::Protocol,
            5 => Self::Arp,
            _ => return None,
        })
    }

    /// Its name in files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmp6 => "icmpv6",
            Self::Protocol => "ip",
            Self::Arp => "arp",
        }
    }
}

/// Which of a packet's two numbers can name an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// The destination: the packet opens a connection or is a request.
    Opening,
    /// The source: the packet is a reply (an echo reply; its number is the request's type).
    Answer,
    /// Either: the packet belongs to an open connection and may go in either direction.
    Following,
    /// UDP: the destination, or the source if the flow is remembered.
    Datagram,
}

/// The port numbers of a packet, in host byte order.
///
/// Here and in [`Packet`] the field with a niche comes first: rustc puts the tag of an `Option` or a `Result` there, and
/// the kernel rejects BTF with a union member anywhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Ports {
    /// Which of the numbers can name an endpoint.
    pub phase: Phase,
    /// What the numbers name.
    pub kind: PortKind,
    /// The sender's.
    pub source: u16,
    /// The receiver's.
    pub destination: u16,
}

/// The fields of a TCP header besides its ports. They are needed where a path requires TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Segment {
    /// Sequence number, in host byte order.
    pub seq: u32,
    /// Acknowledgement number, in host byte order.
    pub ack: u32,
    /// Where the payload begins, counted from the packet's first byte.
    pub from: u32,
    /// Where it ends; [`u32::MAX`] where the headers do not say, or the rest is in later fragments.
    pub end: u32,
    /// The flags, as byte 13 of the header has them.
    pub flags: u32,
}

impl Segment {
    /// No TCP header.
    pub const NONE: Self = Self {
        seq: 0,
        ack: 0,
        from: 0,
        end: 0,
        flags: 0,
    };

    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    const URG: u32 = 0x20;

    /// Bytes of payload.
    pub const fn len(&self) -> u32 {
        self.end.saturating_sub(self.from)
    }

    /// Whether it carries no payload.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it opens a connection.
    pub const fn is_syn(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Whether it accepts a connection.
    pub const fn is_syn_ack(&self) -> bool {
        self.flags & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }

    /// Whether it points to urgent data, which a server does not read with the rest of the stream.
    pub const fn is_urgent(&self) -> bool {
        self.flags & Self::URG != 0
    }

    /// Whether its acknowledgement number is valid.
    pub const fn acknowledges(&self) -> bool {
        self.flags & Self::ACK != 0
    }

    /// Whether its sequence numbers pick it, as they do about one segment in 128: short connections most often have none,
    /// and long ones soon have one. A peer that controls this gains nothing. What that saves is in docs/bench/notes.md.
    #[inline(always)]
    pub const fn is_sampled(&self) -> bool {
        // The golden ratio spreads numbers that are some steps apart.
        self.seq.wrapping_add(self.ack).wrapping_mul(0x9e37_79b1) >> 25 == 0
    }

    /// Sequence number of the first byte of payload: a SYN counts for one.
    pub const fn start(&self) -> u32 {
        self.seq.wrapping_add((self.flags & Self::SYN) / Self::SYN)
    }
}

/// The kind of a packet, as far as the decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shape {
    /// A whole packet or a first fragment: judged by its own ports.
    Flow,
    /// A fragment without ports. That is a separate state and never port 0.
    LaterFragment,
    /// An ICMP error: judged by the packet it quotes.
    IcmpError,
    /// An ICMP error that quotes a later fragment and so has no ports.
    IcmpErrorLaterFragment,
    /// An ICMP error whose destination is not the source of the packet it quotes.
    IcmpErrorAstray,
}

/// A packet that was parsed.
///
/// It is one flat struct with every field set, and not an enum with fields: the verifier refuses to copy the bytes that
/// variants leave unset. It is aligned to words of 64 bits, so that programs clear it with 10 stores instead of 19.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct Packet {
    /// The kind of packet; it says which of the fields below are valid.
    pub shape: Shape,
    /// Type of an ICMP error, else 0.
    pub icmp_error: u8,
    /// Ports of the packet, or of the packet that it quotes. [`Ports::NONE`] for later fragments.
    pub ports: Ports,
    /// Source address (ARP: the sender's protocol address).
    pub src: Ip,
    /// Destination address (ARP: the target's protocol address).
    pub dst: Ip,
    /// Destination address of the packet that an ICMP error quotes; its source address is the error's destination.
    pub quoted_dst: Ip,
    /// Of a TCP packet, but not of a quoted one; else [`Segment::NONE`].
    pub segment: Segment,
    /// Where the transport header begins, counted from the packet's first byte; 0 where there is none.
    pub transport: u32,
}

impl Ports {
    /// No ports, or not read yet.
    pub const NONE: Self = Self {
        phase: Phase::Following,
        kind: PortKind::Protocol,
        source: 0,
        destination: 0,
    };
}

impl Packet {
    /// A later fragment between two addresses: all that a network header alone says.
    pub const fn between(src: Ip, dst: Ip) -> Self {
        Self {
            shape: Shape::LaterFragment,
            icmp_error: 0,
            ports: Ports::NONE,
            src,
            dst,
            quoted_dst: Ip::UNSPECIFIED,
            segment: Segment::NONE,
            transport: 0,
        }
    }

    /// A buffer to parse a packet into: all zero, and not a valid packet.
    pub const ROOM: Self = Self {
        shape: Shape::Flow,
        ports: Ports {
            phase: Phase::Opening,
            kind: PortKind::Tcp,
            ..Ports::NONE
        },
        ..Self::between(Ip::UNSPECIFIED, Ip::UNSPECIFIED)
    };

    /// A packet with ports between two addresses.
    pub const fn flow(src: Ip, dst: Ip, ports: Ports) -> Self {
        Self {
            shape: Shape::Flow,
            ports,
            ..Self::between(src, dst)
        }
    }

    /// Whether it opens a connection or flow, rather than belonging to an open one.
    pub const fn opens(&self) -> bool {
        matches!(self.shape, Shape::Flow)
            && matches!(self.ports.phase, Phase::Opening | Phase::Datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a connection sends: small requests and replies or bulk data, from any initial sequence number.
    #[test]
    fn a_connection_that_goes_on_soon_has_one_of_many() {
        let mut segment = Segment::NONE;
        let mut longest = 0;
        let mut all = 0;
        for (start, step) in (0..200_u32).flat_map(|start| {
            let steps = [1, 2, 64, 512, 1448, 1460, 4096, 65_535];
            steps.map(|step| (start.wrapping_mul(0x0123_4567), step))
        }) {
            segment.seq = start;
            let first = (0..10_000).find(|_| {
                segment.seq = segment.seq.wrapping_add(step);
                segment.is_sampled()
            });
            longest = longest.max(first.unwrap());
            all += first.unwrap();
        }
        assert!(longest < 2_000, "{longest}");
        let mean = all / 1_600;
        assert!((40..200).contains(&mean), "{mean}");
    }
}
