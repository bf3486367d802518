//! Hand-made packets with right checksums, for forging.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
    PacketBuilderStep, TcpHeader,
};

/// Hop limit of made packets.
const HOPS: u8 = 64;

/// A transport header and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment with these flags (`0x02` is SYN) and this payload.
    Tcp {
        /// The flags byte of the header.
        flags: u8,
        /// The payload.
        payload: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// The payload.
        payload: Vec<u8>,
    },
    /// An ICMP or ICMPv6 echo request, after the address family; ports mean identifier and number.
    Echo,
    /// An ICMP or ICMPv6 message of this type, after the address family.
    Message(u8),
    /// Something else, by the number of its protocol.
    Protocol(u8),
}

impl Content {
    /// The first segment of a connection.
    pub const SYN: Self = Self::Tcp {
        flags: 0x02,
        payload: Vec::new(),
    };

    /// A datagram with a text in it.
    pub fn udp(text: &str) -> Self {
        Self::Udp {
            payload: text.into(),
        }
    }
}

/// A packet: from where to where, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forged {
    /// The source that it claims.
    pub source: SocketAddr,
    /// Its destination.
    pub destination: SocketAddr,
    /// What it carries.
    pub content: Content,
}

impl Forged {
    /// The packet from its IP header on, for a raw socket.
    pub fn packet(&self) -> Result<Vec<u8>> {
        self.finish(PacketBuilder::ip(self.ip_header()?))
    }

    /// The packet in an Ethernet frame, for a packet socket.
    pub fn frame(&self, from: [u8; 6], to: [u8; 6]) -> Result<Vec<u8>> {
        self.finish(PacketBuilder::ethernet2(from, to).ip(self.ip_header()?))
    }

    fn ip_header(&self) -> Result<IpHeaders> {
        // The builder fills in lengths, protocol and checksum.
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header::new(
                    0,
                    HOPS,
                    IpNumber::UDP,
                    source.octets(),
                    destination.octets(),
                )
                .context("failed to make an IPv4 header")?;
                Ok(IpHeaders::Ipv4(
                    Ipv4Header {
                        fragment_offset: IpFragOffset::ZERO,
                        ..header
                    },
                    Default::default(),
                ))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => Ok(IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: 0,
                    next_header: IpNumber::UDP,
                    hop_limit: HOPS,
                    source: source.octets(),
                    destination: destination.octets(),
                },
                Default::default(),
            )),
            (source, destination) => bail!("{source} and {destination} are of two families"),
        }
    }

    fn finish(&self, builder: PacketBuilderStep<IpHeaders>) -> Result<Vec<u8>> {
        let (from, to) = (self.source.port(), self.destination.port());
        let mut bytes = Vec::new();
        let written = match &self.content {
            Content::Tcp { flags, payload } => builder
                .tcp_header(tcp_header(from, to, *flags))
                .write(&mut bytes, payload),
            Content::Udp { payload } => builder.udp(from, to).write(&mut bytes, payload),
            Content::Echo if self.destination.is_ipv4() => builder
                .icmpv4_echo_request(from, to)
                .write(&mut bytes, b"enforcer"),
            Content::Echo => builder
                .icmpv6_echo_request(from, to)
                .write(&mut bytes, b"enforcer"),
            Content::Message(kind) if self.destination.is_ipv4() => builder
                .icmpv4_raw(*kind, 0, [0; 4])
                .write(&mut bytes, &[0; 24]),
            Content::Message(kind) => builder
                .icmpv6_raw(*kind, 0, [0; 4])
                .write(&mut bytes, &[0; 24]),
            Content::Protocol(number) => builder.write(&mut bytes, (*number).into(), &[0; 24]),
        };
        written.context("failed to build a packet")?;
        Ok(bytes)
    }
}

fn tcp_header(from: u16, to: u16, flags: u8) -> TcpHeader {
    TcpHeader {
        fin: flags & 0x01 != 0,
        syn: flags & 0x02 != 0,
        rst: flags & 0x04 != 0,
        psh: flags & 0x08 != 0,
        ack: flags & 0x10 != 0,
        urg: flags & 0x20 != 0,
        ece: flags & 0x40 != 0,
        cwr: flags & 0x80 != 0,
        ..TcpHeader::new(from, to, 1, 64240)
    }
}

/// The beginning of a TLS client's first flight: a handshake record with a ClientHello. It is valid UTF-8, so that
/// servers can report it as text.
pub const CLIENT_HELLO: [u8; 16] = [
    22, 3, 1, 2, 0, 1, 0, 1, 0x7c, 3, 3, b'h', b'e', b'l', b'l', b'o',
];

/// Bytes as lab-probe takes them on its command line.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse; an odd length or another character is an error that says where.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text
        .chars()
        .enumerate()
        .map(|(at, digit)| {
            let value = digit
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok());
            value.ok_or_else(|| format!("`{digit}` at {at} is no hexadecimal digit"))
        })
        .collect::<Result<_, _>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("an odd number of hexadecimal digits".to_owned());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_round_trips() {
        assert_eq!(
            from_hex(&to_hex(&[0, 1, 0xab, 0xff])),
            Ok(vec![0, 1, 0xab, 0xff])
        );
        assert!(from_hex("abc").is_err());
        assert!(from_hex("0g").is_err());
    }
}
