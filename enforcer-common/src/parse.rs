//! Parses bytes into a [`Packet`]. The only place that knows header offsets.
//!
//! What can not be parsed has a [`Reason`]; nothing is guessed. Rules beyond those of the headers' RFCs: a first fragment
//! must hold the whole transport header (RFC 7112 requires this for IPv6, and RFC 3128 is the reason to require it for TCP
//! over IPv4), and a TCP fragment at offset 8 is denied because it could overwrite the flags of the first one (RFC 1858,
//! RFC 3128).
//!
//! Functions that return a small `Result` are always inlined: returned in a register, it has unset bytes, which the
//! verifier refuses to copy.

use crate::{
    addr::Ip,
    limits::{MAX_EXTENSION_BYTES, MAX_EXTENSION_HEADERS},
    packet::{Packet, PacketBytes, Phase, PortKind, Ports, Segment, Shape},
    verdict::Reason,
};

/// The header that a packet's bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With an Ethernet header, perhaps with VLAN tags (802.1Q, 802.1ad).
    Ethernet,
    /// With the IP header (cgroup hooks; tunnels and other devices without a link header).
    Ip,
}

const ETH_IPV4: u16 = 0x0800;
const ETH_ARP: u16 = 0x0806;
const ETH_IPV6: u16 = 0x86dd;
const ETH_VLAN: u16 = 0x8100;
const ETH_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMP6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// The network layer's part of a packet.
struct Network {
    scope: Scope,
    protocol: u8,
    /// A first fragment: it must hold everything that decides.
    first_fragment: bool,
    /// Offset of this fragment in the packet, in units of 8 bytes.
    fragment_offset: u16,
    /// Offset of the network header, then of what is behind the headers read so far.
    offset: usize,
    /// Where the packet ends according to its header; `usize::MAX` if the header does not say.
    end: usize,
}

impl Network {
    const fn at(offset: usize, scope: Scope) -> Self {
        let (protocol, first_fragment, fragment_offset, end) = (0, false, 0, usize::MAX);
        Self {
            scope,
            protocol,
            first_fragment,
            fragment_offset,
            offset,
            end,
        }
    }

    const fn too_short(&self) -> Reason {
        if self.first_fragment {
            Reason::FragmentTooShort
        } else {
            Reason::TruncatedHeader
        }
    }

    /// A length of 0 says nothing, and the packet in an ICMP error is cut short.
    fn ends_after(&mut self, total_len: usize) {
        if total_len != 0 && matches!(self.scope, Scope::Whole) {
            self.end = self.offset + total_len;
        }
    }
}

/// Whether the bytes are a whole packet, or the beginning of one that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Whole,
    Quote,
}

/// Parses a packet in place, into a [buffer](Packet::ROOM): the stack of a BPF program has 512 bytes.
///
/// # Errors
///
/// The reason why it can not be judged by its content; `packet` then means nothing.
#[inline(always)]
pub fn parse_into<B: PacketBytes + ?Sized>(
    bytes: &B,
    start: Start,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let (version, offset) = match start {
        Start::Ip => (read_version(bytes, 0)?, 0),
        Start::Ethernet => match read_ethernet(bytes)? {
            (ETH_IPV4, offset) if B::PLAIN => (4, offset),
            (ETH_IPV6, offset) if B::PLAIN => (6, offset),
            (ETH_IPV4 | ETH_IPV6, offset) => (read_version(bytes, offset)?, offset),
            (ETH_ARP, offset) => return parse_arp(bytes, offset, packet),
            _ => return Err(Reason::UnknownProtocol),
        },
    };
    parse_ip(bytes, version, offset, packet)
}

/// Reads a packet.
///
/// # Errors
///
/// The reason why it can not be judged by its content.
pub fn parse<B: PacketBytes + ?Sized>(bytes: &B, start: Start) -> Result<Packet, Reason> {
    let mut packet = Packet::ROOM;
    parse_into(bytes, start, &mut packet).map(|()| packet)
}

/// The ethertype of a frame's payload, and where the payload begins.
#[inline(always)]
fn read_ethernet<B: PacketBytes + ?Sized>(bytes: &B) -> Result<(u16, usize), Reason> {
    let mut offset = 12;
    let mut kind = ethertype(bytes, offset)?;
    if B::PLAIN {
        return Ok((kind, offset + 2));
    }
    // Two tags at most: 802.1ad allows one in one.
    for _ in 0..2 {
        if kind == ETH_VLAN || kind == ETH_QINQ {
            offset += 4;
            kind = ethertype(bytes, offset)?;
        }
    }
    Ok((kind, offset + 2))
}

#[inline(always)]
fn ethertype<B: PacketBytes + ?Sized>(bytes: &B, offset: usize) -> Result<u16, Reason> {
    bytes
        .near::<2>(offset)
        .map(u16::from_be_bytes)
        .ok_or(Reason::TruncatedHeader)
}

/// ARP for IPv4 over Ethernet (RFC 826): sender's protocol address at 14, target's at 24.
#[inline(always)]
fn parse_arp<B: PacketBytes + ?Sized>(
    bytes: &B,
    offset: usize,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let head = bytes.load::<6>(offset).ok_or(Reason::TruncatedHeader)?;
    if head != [0, 1, 0x08, 0, 6, 4] {
        return Err(Reason::BadHeader);
    }
    packet.src = Ip::v4(
        bytes
            .load::<4>(offset + 14)
            .ok_or(Reason::TruncatedHeader)?,
    );
    packet.dst = Ip::v4(
        bytes
            .load::<4>(offset + 24)
            .ok_or(Reason::TruncatedHeader)?,
    );
    packet.shape = Shape::Flow;
    packet.ports = Ports {
        phase: Phase::Following,
        kind: PortKind::Arp,
        source: 0,
        destination: 0,
    };
    Ok(())
}

#[inline(always)]
fn parse_ip<B: PacketBytes + ?Sized>(
    bytes: &B,
    version: u8,
    offset: usize,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let mut network = Network::at(offset, Scope::Whole);
    read_network(
        bytes,
        version,
        &mut network,
        &mut packet.src,
        &mut packet.dst,
    )?;
    if network.fragment_offset != 0 {
        if network.protocol == TCP && network.fragment_offset == 1 {
            return Err(Reason::FragmentTooShort);
        }
        packet.shape = Shape::LaterFragment;
        packet.ports = Ports::NONE;
        return Ok(());
    }
    if !B::PLAIN {
        packet.icmp_error = icmp_error(bytes, &network)?;
    }
    if B::PLAIN || packet.icmp_error == 0 {
        packet.shape = Shape::Flow;
        return read_ports(bytes, &network, packet);
    }
    parse_quote(bytes, network.offset + 8, packet)
}

/// Reads the packet that an ICMP error quotes.
// Not inlined, as few packets have one: the others are read without a call.
#[inline(never)]
fn parse_quote<B: PacketBytes + ?Sized>(
    bytes: &B,
    offset: usize,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let mut quoted = Network::at(offset, Scope::Quote);
    let mut source = Ip::UNSPECIFIED;
    let same_family = read_version(bytes, offset)
        .and_then(|version| {
            let destination = &mut packet.quoted_dst;
            read_network(bytes, version, &mut quoted, &mut source, destination)
        })
        .map(|()| source.is_v4() == packet.src.is_v4());
    if same_family != Ok(true) {
        return Err(Reason::IcmpBadQuote);
    }
    if quoted.fragment_offset != 0 {
        packet.shape = Shape::IcmpErrorLaterFragment;
        packet.ports = Ports::NONE;
    } else {
        packet.shape = Shape::IcmpError;
        read_ports(bytes, &quoted, packet).map_err(|_| Reason::IcmpBadQuote)?;
    }
    if source != packet.dst {
        packet.shape = Shape::IcmpErrorAstray;
    }
    Ok(())
}

/// The IP version, from the header's first bits.
#[inline(always)]
fn read_version<B: PacketBytes + ?Sized>(bytes: &B, offset: usize) -> Result<u8, Reason> {
    let [first] = bytes.near::<1>(offset).ok_or(Reason::TruncatedHeader)?;
    Ok(first >> 4)
}

/// Reads the network headers, up to the transport header.
#[inline(always)]
fn read_network<B: PacketBytes + ?Sized>(
    bytes: &B,
    version: u8,
    network: &mut Network,
    src: &mut Ip,
    dst: &mut Ip,
) -> Result<(), Reason> {
    match version {
        4 => read_ipv4(bytes, network, src, dst)?,
        6 => read_ipv6(bytes, network, src, dst)?,
        _ => return Err(Reason::BadHeader),
    }
    network.offset = bytes.opaque(network.offset);
    network.end = bytes.opaque(network.end);
    Ok(())
}

#[inline(always)]
fn read_ipv4<B: PacketBytes + ?Sized>(
    bytes: &B,
    network: &mut Network,
    src: &mut Ip,
    dst: &mut Ip,
) -> Result<(), Reason> {
    let words = bytes.words(network.offset);
    let [start, fragment, protocol, from, to] = words.ok_or(Reason::TruncatedHeader)?;
    let [version, _, length @ ..] = start.to_ne_bytes();
    let [_, _, fragment @ ..] = fragment.to_ne_bytes();
    let [_, protocol, ..] = protocol.to_ne_bytes();
    // The link header may say IPv4 of any bytes. 5 words are a header without options.
    if B::PLAIN && version != 0x45 {
        return Err(Reason::BadHeader);
    }
    let header_len = if B::PLAIN {
        20
    } else {
        usize::from(version & 0x0f) * 4
    };
    let total_len = usize::from(u16::from_be_bytes(length));
    // A length of 0 is a packet of more than 64 KiB that has not been segmented yet (BIG TCP, since 6.3).
    if header_len < 20 || (total_len != 0 && total_len < header_len) {
        return Err(Reason::BadHeader);
    }
    let fragment = u16::from_be_bytes(fragment);
    if B::PLAIN && fragment & 0x3fff != 0 {
        return Err(Reason::BadHeader);
    }
    network.fragment_offset = fragment & 0x1fff;
    network.first_fragment = fragment & 0x2000 != 0 && network.fragment_offset == 0;
    network.protocol = protocol;
    network.ends_after(total_len);
    network.offset += header_len;
    *src = Ip::v4(from.to_ne_bytes());
    *dst = Ip::v4(to.to_ne_bytes());
    Ok(())
}

#[inline(always)]
fn read_ipv6<B: PacketBytes + ?Sized>(
    bytes: &B,
    network: &mut Network,
    src: &mut Ip,
    dst: &mut Ip,
) -> Result<(), Reason> {
    let addresses = bytes.long_words(network.offset + 8);
    let [a, b, c, d] = addresses.ok_or(Reason::TruncatedHeader)?;
    let words = bytes.words(network.offset);
    let [first, start] = words.ok_or(Reason::TruncatedHeader)?;
    if B::PLAIN && first.to_ne_bytes()[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    *src = Ip::of_halves([a, b]);
    *dst = Ip::of_halves([c, d]);
    // IPv4-mapped addresses are not valid on the wire (RFC 4942, 2.2), and here they would count as the IPv4 address.
    if src.is_v4() || dst.is_v4() {
        return Err(Reason::BadHeader);
    }
    let [length @ .., protocol, _] = start.to_ne_bytes();
    network.protocol = protocol;
    // 0 is a jumbogram or BIG TCP.
    let payload_len = usize::from(u16::from_be_bytes(length));
    network.ends_after(if payload_len == 0 {
        0
    } else {
        payload_len + 40
    });
    network.offset += 40;
    if B::PLAIN || !is_extension(network.protocol) {
        Ok(())
    } else {
        skip_extensions(bytes, network)
    }
}

// Not inlined, as few packets have any.
#[inline(never)]
fn skip_extensions<B: PacketBytes + ?Sized>(
    bytes: &B,
    network: &mut Network,
) -> Result<(), Reason> {
    let first = network.offset;
    for position in 0..=MAX_EXTENSION_HEADERS {
        if !is_extension(network.protocol) || network.fragment_offset != 0 {
            return Ok(());
        }
        if position == MAX_EXTENSION_HEADERS || (network.protocol == HOP_BY_HOP && position > 0) {
            break;
        }
        skip_extension(bytes, network)?;
        if network.offset - first > MAX_EXTENSION_BYTES {
            break;
        }
    }
    Err(Reason::TooManyHeaders)
}

/// Lists the extension headers that are skipped. An unknown number is a transport protocol, and not an extension header.
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
    )
}

#[inline(always)]
fn skip_extension<B: PacketBytes + ?Sized>(bytes: &B, network: &mut Network) -> Result<(), Reason> {
    let [next, len, hi, lo] = bytes
        .load::<4>(network.offset)
        .ok_or_else(|| network.too_short())?;
    let size = match network.protocol {
        // Fixed size; its second byte is reserved and not a length (RFC 8200, 4.5).
        FRAGMENT => {
            let field = u16::from_be_bytes([hi, lo]);
            network.fragment_offset = field >> 3;
            network.first_fragment = network.fragment_offset == 0 && field & 1 != 0;
            8
        }
        // In units of 4 bytes, less 2 (RFC 4302, 2.2).
        AUTHENTICATION => (usize::from(len) + 2) * 4,
        _ => (usize::from(len) + 1) * 8,
    };
    network.protocol = next;
    network.offset = bytes.opaque(network.offset + size);
    if network.offset > network.end {
        Err(network.too_short())
    } else {
        Ok(())
    }
}

/// The type of an ICMP error, which quotes a packet, else 0: unreachable, source quench, time exceeded, parameter problem;
/// for ICMPv6 also packet too big. A redirect quotes a packet, too, but is not an error about it: it is judged by its own
/// type.
#[inline(always)]
fn icmp_error<B: PacketBytes + ?Sized>(bytes: &B, network: &Network) -> Result<u8, Reason> {
    if network.protocol != ICMP && network.protocol != ICMP6 {
        return Ok(0);
    }
    let [kind] = load_within::<B, 1>(bytes, network)?;
    let quotes = match network.protocol {
        ICMP => matches!(kind, 3 | 4 | 11 | 12),
        _ => matches!(kind, 1..=4),
    };
    Ok(if quotes { kind } else { 0 })
}

#[inline(always)]
fn read_ports<B: PacketBytes + ?Sized>(
    bytes: &B,
    network: &Network,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let ports = &mut packet.ports;
    // Only 8 bytes of a quoted transport header are guaranteed: no flags.
    let whole = matches!(network.scope, Scope::Whole);
    if whole {
        // Packets have less than 4 GiB.
        packet.transport = network.offset as u32;
    }
    match network.protocol {
        TCP if whole => {
            let words = words_within(bytes, network)?;
            let [both, _, _, fourth, _] = words;
            let [_, flags, ..] = fourth.to_ne_bytes();
            let opening = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
            ports.phase = if opening {
                Phase::Opening
            } else {
                Phase::Following
            };
            numbers(ports, PortKind::Tcp, both);
            packet.segment = segment(words, network);
        }
        UDP if whole => {
            let [both, _] = words_within(bytes, network)?;
            ports.phase = Phase::Datagram;
            numbers(ports, PortKind::Udp, both);
        }
        _ if B::PLAIN => return Err(Reason::UnknownProtocol),
        TCP | UDP => {
            let port_kind = if network.protocol == TCP {
                PortKind::Tcp
            } else {
                PortKind::Udp
            };
            ports.phase = Phase::Following;
            let [both] = words_within(bytes, network)?;
            numbers(ports, port_kind, both);
        }
        ICMP => icmp(
            ports,
            PortKind::Icmp,
            load_within::<B, 1>(bytes, network)?,
            (8, 0),
        ),
        ICMP6 => icmp(
            ports,
            PortKind::Icmp6,
            load_within::<B, 1>(bytes, network)?,
            (128, 129),
        ),
        other => {
            let number = u16::from(other);
            *ports = Ports {
                phase: Phase::Following,
                kind: PortKind::Protocol,
                source: number,
                destination: number,
            };
        }
    }
    Ok(())
}

/// The fields after a TCP header's ports. A header that is longer than its packet leaves no payload.
#[inline(always)]
fn segment([_, seq, ack, rest, _]: [u32; 5], network: &Network) -> Segment {
    let [length, flags, ..] = rest.to_ne_bytes();
    let known = !network.first_fragment && network.end < u32::MAX as usize;
    Segment {
        seq: u32::from_be(seq),
        ack: u32::from_be(ack),
        // Packets have less than 4 GiB.
        from: (network.offset + usize::from(length >> 4) * 4) as u32,
        end: if known { network.end as u32 } else { u32::MAX },
        flags: u32::from(flags),
    }
}

/// Both ports, from a word in memory order.
fn numbers(ports: &mut Ports, port_kind: PortKind, both: u32) {
    let [a, b, c, d] = both.to_ne_bytes();
    ports.kind = port_kind;
    ports.source = u16::from_be_bytes([a, b]);
    ports.destination = u16::from_be_bytes([c, d]);
}

fn icmp(ports: &mut Ports, port_kind: PortKind, [kind]: [u8; 1], (request, reply): (u8, u8)) {
    let answer = kind == reply;
    ports.phase = if answer {
        Phase::Answer
    } else {
        Phase::Opening
    };
    ports.kind = port_kind;
    ports.source = if answer { u16::from(request) } else { 0 };
    ports.destination = u16::from(kind);
}

/// The first `N` bytes of the transport header, if they are within the packet's own length: padding behind its end is not
/// read as ports.
#[inline(always)]
fn load_within<B: PacketBytes + ?Sized, const N: usize>(
    bytes: &B,
    network: &Network,
) -> Result<[u8; N], Reason> {
    if network.offset + N > network.end {
        return Err(network.too_short());
    }
    bytes
        .load::<N>(network.offset)
        .ok_or_else(|| network.too_short())
}

/// The first `N` words of the transport header, within the same limit.
#[inline(always)]
fn words_within<B: PacketBytes + ?Sized, const N: usize>(
    bytes: &B,
    network: &Network,
) -> Result<[u32; N], Reason> {
    if network.offset + N * 4 > network.end {
        return Err(network.too_short());
    }
    bytes
        .words::<N>(network.offset)
        .ok_or_else(|| network.too_short())
}

#[cfg(test)]
mod tests;
