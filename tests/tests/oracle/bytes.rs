//! Bytes, valid, odd and malformed, and their meaning, implemented again: from the standards and
//! from the project's rules about fragments and malformed packets, without looking at the product's
//! parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use enforcer_common::packet::PortKind;
use enforcer_tests::packet::{Content, Forged};

use crate::plainly::Kind;
use crate::random::{self, Random};

/// The meaning of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A packet: source, destination, and kind.
    Packet(IpAddr, IpAddr, Kind),
    /// An ICMP error from `from` to `to` about a packet that `to` sent elsewhere.
    Error {
        src: IpAddr,
        dst: IpAddr,
        about: (IpAddr, IpAddr, Kind),
    },
    /// Neither IP nor ARP.
    Unknown,
    /// It cannot be read, for this reason.
    Broken(&'static str),
}

type Read<T> = Result<T, &'static str>;

/// Reads an Ethernet frame.
pub fn meaning(frame: &[u8]) -> Meaning {
    read(frame).unwrap_or_else(Meaning::Broken)
}

/// Reads a packet without a link header.
pub fn meaning_of_packet(packet: &[u8]) -> Meaning {
    ip(packet).unwrap_or_else(Meaning::Broken)
}

fn read(frame: &[u8]) -> Read<Meaning> {
    let mut rest = frame.get(12..).unwrap_or_default();
    let mut tags = 0;
    loop {
        let kind = word(rest, 0).ok_or("TruncatedHeader")?;
        match kind {
            0x8100 | 0x88a8 if tags < 2 => {
                tags += 1;
                rest = rest.get(4..).unwrap_or_default();
            }
            0x0800 | 0x86dd => return ip(&rest[2..]),
            0x0806 => return arp(&rest[2..]),
            _ => return Ok(Meaning::Unknown),
        }
    }
}

/// RFC 826, for IPv4 over Ethernet.
fn arp(bytes: &[u8]) -> Read<Meaning> {
    let head = bytes.get(..6).ok_or("TruncatedHeader")?;
    if head != [0, 1, 8, 0, 6, 4] {
        return Err("BadHeader");
    }
    let whole = bytes.get(..28).ok_or("TruncatedHeader")?;
    Ok(Meaning::Packet(
        v4(&whole[14..]),
        v4(&whole[24..]),
        Kind::Arp,
    ))
}

/// The network header, and what it says about the rest.
struct Head<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// What follows, as far as it was captured.
    payload: &'a [u8],
    /// How much of that belongs to the packet according to the header, which may be less or more
    /// than there is.
    length: Option<usize>,
    fragment: Fragment,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Fragment {
    Whole,
    First,
    /// By its offset, in units of eight bytes.
    Later(u16),
}

impl Head<'_> {
    /// A first fragment that is too short is worse: the rest might arrive later, and be read by
    /// others.
    fn too_short(&self) -> &'static str {
        too_short(self.fragment)
    }

    /// The first bytes of the payload, if the packet has that many.
    fn first(&self, count: usize) -> Read<&[u8]> {
        if self.length.is_some_and(|length| length < count) {
            return Err(self.too_short());
        }
        self.payload.get(..count).ok_or(self.too_short())
    }
}

fn too_short(fragment: Fragment) -> &'static str {
    if fragment == Fragment::First {
        "FragmentTooShort"
    } else {
        "TruncatedHeader"
    }
}

fn ip(bytes: &[u8]) -> Read<Meaning> {
    let head = head(bytes, true)?;
    if let Fragment::Later(offset) = head.fragment {
        // A TCP fragment at offset 8 would overwrite the flags.
        if head.protocol == 6 && offset == 1 {
            return Err("FragmentTooShort");
        }
        return Ok(Meaning::Packet(head.src, head.dst, Kind::LaterFragment));
    }
    let quotes = match head.protocol {
        1 => matches!(head.first(1)?[0], 3 | 4 | 11 | 12),
        58 => matches!(head.first(1)?[0], 1..=4),
        _ => false,
    };
    if quotes {
        return error(&head);
    }
    let kind = match head.protocol {
        6 => {
            let tcp = head.first(20)?;
            let (from, to) = ports(tcp);
            if tcp[13] & 0x12 == 0x02 {
                Kind::Syn(from, to)
            } else {
                Kind::Segment(from, to)
            }
        }
        17 => {
            let (from, to) = ports(head.first(8)?);
            Kind::Udp(from, to)
        }
        1 => message(PortKind::Icmp, head.first(1)?[0]),
        58 => message(PortKind::Icmp6, head.first(1)?[0]),
        other => Kind::Protocol(other),
    };
    Ok(Meaning::Packet(head.src, head.dst, kind))
}

fn message(port_kind: PortKind, number: u8) -> Kind {
    match (port_kind, number) {
        (PortKind::Icmp, 0) | (PortKind::Icmp6, 129) => Kind::EchoReply(port_kind),
        _ => Kind::Message(port_kind, number),
    }
}

/// An error quotes the beginning of a packet, after eight bytes of its own.
fn error(outer: &Head<'_>) -> Read<Meaning> {
    let bad = |_| "IcmpBadQuote";
    let quote = outer.payload.get(8..).unwrap_or_default();
    let head = head(quote, false).map_err(bad)?;
    if head.src.is_ipv4() != outer.src.is_ipv4() {
        return Err("IcmpBadQuote");
    }
    let kind = if let Fragment::Later(_) = head.fragment {
        Kind::LaterFragment
    } else {
        match head.protocol {
            6 => {
                let (from, to) = ports(head.first(4).map_err(bad)?);
                Kind::Segment(from, to)
            }
            // A quoted datagram may have gone in either direction, like a segment.
            17 => {
                let (from, to) = ports(head.first(4).map_err(bad)?);
                Kind::Udp(from, to)
            }
            1 => message(PortKind::Icmp, head.first(1).map_err(bad)?[0]),
            58 => message(PortKind::Icmp6, head.first(1).map_err(bad)?[0]),
            other => Kind::Protocol(other),
        }
    };
    Ok(Meaning::Error {
        src: outer.src,
        dst: outer.dst,
        about: (head.src, head.dst, kind),
    })
}

fn head(bytes: &[u8], is_whole: bool) -> Read<Head<'_>> {
    match bytes.first().ok_or("TruncatedHeader")? >> 4 {
        4 => head_v4(bytes, is_whole),
        6 => head_v6(bytes, is_whole),
        _ => Err("BadHeader"),
    }
}

/// RFC 791. A length of 0 is that of a large packet that is not segmented yet.
fn head_v4(bytes: &[u8], is_whole: bool) -> Read<Head<'_>> {
    let fixed = bytes.get(..20).ok_or("TruncatedHeader")?;
    let size = usize::from(fixed[0] % 16) * 4;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if size < 20 || (total > 0 && total < size) {
        return Err("BadHeader");
    }
    let field = u16::from_be_bytes([fixed[6], fixed[7]]);
    let fragment = match (field % 0x2000, field & 0x2000 != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        (offset, _) => Fragment::Later(offset),
    };
    Ok(Head {
        src: v4(&fixed[12..]),
        dst: v4(&fixed[16..]),
        protocol: fixed[9],
        payload: bytes.get(size..).unwrap_or_default(),
        length: (is_whole && total > 0).then(|| total - size),
        fragment,
    })
}

/// RFC 8200, with at most eight extension headers of a kilobyte in total, and hop-by-hop options
/// only in the first place.
fn head_v6(bytes: &[u8], is_whole: bool) -> Read<Head<'_>> {
    let fixed = bytes.get(..40).ok_or("TruncatedHeader")?;
    let (src, dst) = (v6(&fixed[8..]), v6(&fixed[24..]));
    // A mapped address is not valid in a header.
    if [src, dst]
        .iter()
        .any(|at| matches!(at, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()))
    {
        return Err("BadHeader");
    }
    let declared = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let mut head = Head {
        src,
        dst,
        protocol: fixed[6],
        payload: &bytes[40..],
        length: (is_whole && declared > 0).then_some(declared),
        fragment: Fragment::Whole,
    };
    let (mut seen, mut taken) = (0, 0);
    while matches!(head.protocol, 0 | 43 | 44 | 51 | 60 | 135) {
        if matches!(head.fragment, Fragment::Later(_)) {
            break;
        }
        if seen == 8 || (head.protocol == 0 && seen > 0) {
            return Err("TooManyHeaders");
        }
        seen += 1;
        let start = head.payload.get(..4).ok_or(head.too_short())?;
        let size = match head.protocol {
            44 => 8,
            51 => usize::from(start[1]) * 4 + 8,
            _ => usize::from(start[1]) * 8 + 8,
        };
        if head.protocol == 44 {
            let field = u16::from_be_bytes([start[2], start[3]]);
            head.fragment = match (field / 8, field % 2) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First,
                (offset, _) => Fragment::Later(offset),
            };
        }
        head.protocol = start[0];
        if let Some(length) = head.length {
            let left = length.checked_sub(size);
            head.length = Some(left.ok_or(too_short(head.fragment))?);
        }
        head.payload = head.payload.get(size..).unwrap_or_default();
        taken += size;
        // This much can be made linear in the kernel before it is read.
        if taken > 1024 {
            return Err("TooManyHeaders");
        }
    }
    Ok(head)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ports(bytes: &[u8]) -> (u16, u16) {
    let at = |at| word(bytes, at).unwrap_or_default();
    (at(0), at(2))
}

fn v4(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 4] = *bytes.first_chunk().unwrap_or(&[0; 4]);
    Ipv4Addr::from(octets).into()
}

fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = *bytes.first_chunk().unwrap_or(&[0; 16]);
    Ipv6Addr::from(octets).into()
}

/// A frame between two addresses of the policies: valid, odd, or malformed.
pub fn frame(random: &mut Random) -> Vec<u8> {
    let (src, dst) = random::addresses(random);
    let mut packet = packet(random, src, dst);
    if random.chance(6) {
        packet = quoting(random, src, dst, &packet);
    }
    if random.chance(8) {
        // A tunnel: IPIP, IPv6 in IPv4, or GRE, with any contents.
        let outer = random::addresses(random);
        packet = wrapped(random, outer.0, outer.1, &packet);
    }
    if src.is_ipv4() && random.chance(4) {
        options(random, &mut packet);
    }
    if random.chance(3) {
        fragment(random, &mut packet);
    }
    if src.is_ipv6() && random.chance(20) {
        // An IPv4-mapped IPv6 address at one end.
        let at = *random.pick(&[8, 24]);
        packet[at..at + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    }
    let kind: u16 = match packet.first().map(|first| first >> 4) {
        _ if random.chance(60) => *random.pick(&[0x0806, 0x88cc, 0x8847, 0x0800, 0x86dd]),
        Some(6) => 0x86dd,
        _ => 0x0800,
    };
    let mut frame = vec![4; 6];
    frame.extend([2; 6]);
    if random.chance(6) {
        for _ in 0..=random.below(3) {
            frame.extend(random.pick(&[[0x81, 0x00], [0x88, 0xa8]]));
            frame.extend([random.below(256) as u8, random.below(256) as u8]);
        }
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    if random.chance(4) {
        frame.truncate(random.below(frame.len() + 1));
    }
    if random.chance(3) {
        for _ in 0..=random.below(3) {
            // Mostly cuts into the headers.
            let end = if random.chance(2) {
                frame.len()
            } else {
                frame.len().min(80)
            };
            if end > 14 {
                let at = 14 + random.below(end - 14);
                let any = match random.below(11) {
                    10 => random.below(256) as u8,
                    known => [0, 1, 4, 6, 17, 43, 44, 58, 60, 255][known],
                };
                frame[at] = any;
            }
        }
    }
    if random.chance(20) {
        frame.extend((0..random.below(30)).map(|i| i as u8));
    }
    frame
}

fn packet(random: &mut Random, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let (from, to) = (random::port(random), random::port(random));
    let content = match random.below(8) {
        0..=3 => Content::Tcp {
            flags: random.below(256) as u8,
            payload: payload(random),
        },
        4 => Content::udp("random"),
        5 | 6 => Content::Message(random.below(256) as u8),
        _ => {
            let bytes = payload(random);
            return around(src, dst, random.below(256) as u8, &bytes);
        }
    };
    // Ports are chosen so that no later datagram answers a remembered one.
    let from = if matches!(content, Content::Tcp { .. }) {
        from
    } else {
        49_152 + random.below(16_384) as u16
    };
    let forged = Forged {
        source: SocketAddr::new(src, from),
        destination: SocketAddr::new(dst, to),
        content,
    };
    let bytes = forged.packet().unwrap_or_else(|_| vec![0x45; 40]);
    if src.is_ipv6() && random.chance(2) {
        extended(random, &bytes)
    } else {
        bytes
    }
}

fn payload(random: &mut Random) -> Vec<u8> {
    let hello = enforcer_tests::packet::CLIENT_HELLO;
    match random.below(3) {
        0 => Vec::new(),
        1 => hello[..random.below(hello.len() + 1)].to_vec(),
        _ => vec![b'x'; random.below(30)],
    }
}

/// Extension headers of all kinds, both as many as are read and more.
fn extended(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let (head, rest) = bytes.split_at(40.min(bytes.len()));
    let mut head = head.to_vec();
    let mut next = head[6];
    let mut rest = rest.to_vec();
    for _ in 0..random.below(11) {
        let kind: u8 = *random.pick(&[0, 43, 44, 51, 60, 60, 60, 135]);
        let units = random.below(3);
        let size = match kind {
            44 => 8,
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        let mut header = vec![0; size];
        header[0] = next;
        header[1] = units as u8;
        if kind == 44 {
            let field = *random.pick(&[0, 1, 8, 9, 0x0100]);
            header[2..4].copy_from_slice(&u16::to_be_bytes(field));
        }
        rest = [header, rest].concat();
        next = kind;
    }
    head[6] = next;
    head[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    [head, rest].concat()
}

/// An ICMP error about a packet, sent by the packet's receiver or by someone else.
fn quoting(random: &mut Random, src: IpAddr, dst: IpAddr, packet: &[u8]) -> Vec<u8> {
    let honest = random.chance(2);
    let (from, to) = if honest { (dst, src) } else { (src, dst) };
    let kind = *random.pick(&[1u8, 2, 3, 4, 5, 11, 12]);
    let quoted = &packet[..random.below(packet.len() + 1)];
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat();
    let protocol = if src.is_ipv4() { 1 } else { 58 };
    around(from, to, protocol, &message)
}

fn wrapped(random: &mut Random, src: IpAddr, dst: IpAddr, packet: &[u8]) -> Vec<u8> {
    around(src, dst, *random.pick(&[4, 41, 47]), packet)
}

/// A plain header before bytes.
fn around(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (20 + bytes.len()) as u16;
            let mut head = vec![0x45, 0];
            head.extend(total.to_be_bytes());
            head.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
            head.extend(src.octets());
            head.extend(dst.octets());
            [head, bytes.to_vec()].concat()
        }
        _ => {
            let octets = |at: IpAddr| match at {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut head = vec![0x60, 0, 0, 0];
            head.extend((bytes.len() as u16).to_be_bytes());
            head.extend([protocol, 64]);
            head.extend(octets(src));
            head.extend(octets(dst));
            [head, bytes.to_vec()].concat()
        }
    }
}

/// IPv4 options: up to forty bytes before the payload.
fn options(random: &mut Random, packet: &mut Vec<u8>) {
    if packet.len() < 20 || packet[0] != 0x45 {
        return;
    }
    let words = 1 + random.below(10);
    let total = u16::from_be_bytes([packet[2], packet[3]]) + 4 * words as u16;
    packet[0] = 0x45 + words as u8;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let after = packet.split_off(20);
    packet.extend(vec![1; 4 * words]);
    packet.extend(after);
}

/// A fragment, and a length that may be too small, too large or missing.
fn fragment(random: &mut Random, packet: &mut [u8]) {
    let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    if packet.len() < 20 {
        return;
    }
    if is_v4 && random.chance(2) {
        let field: u16 = *random.pick(&[0x2000, 0x2001, 0x0001, 0x0002, 0x00b9, 0x4000, 0x1fff]);
        packet[6..8].copy_from_slice(&field.to_be_bytes());
    }
    if random.chance(3) {
        let at = if is_v4 { 2 } else { 4 };
        let length = *random.pick(&[0, 1, 19, 20, 21, 28, 39, 40, 44, 60, 1500]);
        packet[at..at + 2].copy_from_slice(&u16::to_be_bytes(length));
    }
}
