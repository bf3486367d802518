//! Packets that no socket would produce, byte by byte: options, extension headers, fragments, tags,
//! tunnels, ICMP errors. Their checksums are right, so that each is odd in exactly one way.

use std::net::{IpAddr, SocketAddr};

/// Numbers of protocols and of IPv6 extension headers.
pub mod protocol {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// A routing header.
    pub const ROUTING: u8 = 43;
    /// A fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// Destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

const HOPS: u8 = 64;

/// A part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Where it begins, in units of 8 bytes.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// An IP packet, header by header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crafted {
    /// The source that it claims.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Identifies the packet for a counter: IPv4's identification, IPv6's flow label.
    pub mark: u16,
    /// IPv4 options; the length must be a multiple of four.
    pub options: Vec<u8>,
    /// IPv6 extension headers: the number of each, and what follows its first byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Set if it is a fragment.
    pub fragment: Option<Fragment>,
    /// The number of the payload's protocol.
    pub protocol: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Crafted {
    /// A whole TCP segment, ordinary except perhaps for its flags.
    pub fn tcp(from: SocketAddr, to: SocketAddr, mark: u16, flags: u8, data: &[u8]) -> Self {
        let payload = tcp(from, to, flags, &[], data);
        Self::carrying(from.ip(), to.ip(), mark, protocol::TCP, payload)
    }

    /// A whole UDP datagram.
    pub fn udp(from: SocketAddr, to: SocketAddr, mark: u16, data: &[u8]) -> Self {
        let payload = udp(from, to, data);
        Self::carrying(from.ip(), to.ip(), mark, protocol::UDP, payload)
    }

    /// An ICMP or ICMPv6 message, depending on the family: type, code, the four bytes after the
    /// checksum, and what follows.
    pub fn icmp(
        from: IpAddr,
        to: IpAddr,
        mark: u16,
        (kind, code): (u8, u8),
        rest: [u8; 4],
        data: &[u8],
    ) -> Self {
        let mut payload = vec![kind, code, 0, 0];
        payload.extend(rest);
        payload.extend(data);
        let number = if from.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMP6
        };
        let pseudo = if from.is_ipv4() {
            Vec::new()
        } else {
            pseudo_header(from, to, number, payload.len())
        };
        let sum = checksum(&[&pseudo, &payload]).to_be_bytes();
        payload[2..4].copy_from_slice(&sum);
        Self::carrying(from, to, mark, number, payload)
    }

    /// Anything else.
    pub fn carrying(
        source: IpAddr,
        destination: IpAddr,
        mark: u16,
        protocol: u8,
        payload: Vec<u8>,
    ) -> Self {
        Self {
            source,
            destination,
            mark,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            protocol,
            payload,
        }
    }

    /// A fragment of it, from an offset in units of 8 bytes.
    pub fn part(&self, offset: u16, bytes: &[u8], more: bool) -> Self {
        Self {
            fragment: Some(Fragment { offset, more }),
            payload: bytes.to_vec(),
            ..self.clone()
        }
    }

    /// The packet from its IP header on.
    pub fn packet(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.ipv4(source.octets(), destination.octets())
            }
            (source, destination) => self.ipv6(sixteen(source), sixteen(destination)),
        }
    }

    /// The packet in an Ethernet frame.
    pub fn frame(&self, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
        let kind = if self.source.is_ipv4() && self.destination.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        ethernet(from, to, kind, &self.packet())
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let length = 20 + self.options.len();
        let total = (length + self.payload.len()) as u16;
        let fragment = self.fragment.map_or(0, |fragment| {
            fragment.offset | if fragment.more { 0x2000 } else { 0 }
        });
        let mut bytes = vec![0x40 | (length / 4) as u8, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.mark.to_be_bytes());
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([HOPS, self.protocol, 0, 0]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(&self.options);
        fix_ipv4_checksum(&mut bytes);
        bytes.extend(&self.payload);
        bytes
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some(fragment) = self.fragment {
            let field = (fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes();
            let body = [&[0][..], &field, &u32::from(self.mark).to_be_bytes()].concat();
            extensions.push((protocol::FRAGMENT, body));
        }
        let numbers: Vec<u8> = extensions
            .iter()
            .map(|(number, _)| *number)
            .chain([self.protocol])
            .collect();
        let mut rest = Vec::new();
        for ((_, body), next) in extensions.iter().zip(&numbers[1..]) {
            rest.push(*next);
            rest.extend(body);
        }
        rest.extend(&self.payload);
        let [high, low] = self.mark.to_be_bytes();
        let mut bytes = vec![0x60, 0, high, low];
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend([numbers[0], HOPS]);
        bytes.extend(source);
        bytes.extend(destination);
        bytes.extend(rest);
        bytes
    }
}

/// The fields of a TCP segment that an attacker may choose.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; the length must be a multiple of four.
    pub options: &'a [u8],
    /// The payload.
    pub data: &'a [u8],
}

impl Segment<'_> {
    /// An empty segment with these flags.
    pub const fn flags(flags: u8) -> Self {
        Self {
            flags,
            sequence: 1,
            acknowledged: 0,
            urgent: 0,
            options: &[],
            data: &[],
        }
    }
}

/// A TCP segment. The options' length must be a multiple of four.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let plain = Segment::flags(flags);
    segment(
        from,
        to,
        &Segment {
            options,
            data,
            ..plain
        },
    )
}

/// A TCP segment, field by field.
pub fn segment(from: SocketAddr, to: SocketAddr, what: &Segment<'_>) -> Vec<u8> {
    let Segment {
        flags,
        sequence,
        acknowledged,
        urgent,
        options,
        data,
    } = *what;
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledged.to_be_bytes());
    bytes.extend([(((20 + options.len()) / 4) << 4) as u8, flags]);
    bytes.extend(64_240u16.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(urgent.to_be_bytes());
    bytes.extend(options);
    bytes.extend(data);
    fix_checksum(&mut bytes, 16, from.ip(), to.ip(), protocol::TCP);
    bytes
}

/// A UDP datagram.
pub fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(data);
    fix_checksum(&mut bytes, 6, from.ip(), to.ip(), protocol::UDP);
    bytes
}

/// An Ethernet frame with any payload.
pub fn ethernet(from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The same frame with a VLAN tag before its type: 0x8100 (802.1Q) or 0x88a8 (802.1ad), and a
/// number.
pub fn tagged(kind: u16, number: u16, frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(frame.len().min(12));
    [addresses, &kind.to_be_bytes(), &number.to_be_bytes(), rest].concat()
}

/// Puts the right checksum into an IPv4 header of 20 bytes or more.
pub fn fix_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum(&[header]).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
}

fn fix_checksum(bytes: &mut [u8], at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    let pseudo = pseudo_header(from, to, protocol, bytes.len());
    let sum = checksum(&[&pseudo, bytes]).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

pub(crate) fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut bytes = [octets(from), octets(to)].concat();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The checksum of RFC 1071. All parts except the last have an even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;
    use crate::packet::{Content, Forged};

    /// Compares with the builder of a widely used crate.
    #[test]
    fn ordinary_packets_match_those_of_another_builder() -> anyhow::Result<()> {
        for (from, to) in [
            ("10.77.0.99:4000", "10.77.0.11:2379"),
            ("[fd77::99]:4000", "[fd77::11]:2379"),
        ] {
            let (source, destination): (SocketAddr, SocketAddr) = (from.parse()?, to.parse()?);
            let forged = |content| Forged {
                source,
                destination,
                content,
            };
            let crafted = Crafted::tcp(source, destination, 0, 0x02, b"odd");
            let payload = b"odd".to_vec();
            let same = forged(Content::Tcp { flags: 2, payload });
            // Other builders set "don't fragment" in IPv4; the checksum differs accordingly.
            let plain = |mut packet: Vec<u8>| {
                if packet[0] >> 4 == 4 {
                    packet[6] = 0;
                    packet[10..12].fill(0);
                }
                packet
            };
            assert_eq!(plain(crafted.packet()), plain(same.packet()?));
            let crafted = Crafted::udp(source, destination, 0, b"even");
            let same = forged(Content::udp("even"));
            assert_eq!(plain(crafted.packet()), plain(same.packet()?));
        }
        Ok(())
    }

    #[test]
    fn extension_headers_are_a_chain() -> anyhow::Result<()> {
        let at = |text: &str| text.parse::<SocketAddr>();
        let (from, to) = (at("[fd77::99]:4000")?, at("[fd77::11]:2379")?);
        let crafted = Crafted {
            extensions: vec![
                (protocol::HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]),
                (protocol::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0]),
            ],
            ..Crafted::tcp(from, to, 7, 2, b"")
        };
        let frame = crafted.frame([2; 6], [3; 6]);
        let read = SlicedPacket::from_ethernet(&frame)?;
        let Some(etherparse::TransportSlice::Tcp(tcp)) = read.transport else {
            anyhow::bail!("no TCP behind the extension headers");
        };
        assert_eq!((tcp.destination_port(), tcp.syn()), (2379, true));
        Ok(())
    }
}
