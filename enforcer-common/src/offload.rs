//! Checksums that a device, or the kernel in its place, writes into a packet after every program has seen it.
//!
//! A sender may leave the checksum of a transport header to the device (`CHECKSUM_PARTIAL` in
//! include/linux/skbuff.h): it specifies where the sum begins and where it is written. A packet socket with
//! `PACKET_VNET_HDR` and a tun device can specify any bytes, so that a port could be judged and then be overwritten with
//! a checksum that was chosen to be another port.

use crate::packet::{Packet, PortKind, Shape};

/// A checksum that is yet to be written. Offsets count from the packet's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Where the sum begins.
    pub start: u32,
    /// Where its two bytes go.
    pub field: u32,
}

// Offsets of the checksum in a transport header: RFC 9293, RFC 768, RFC 792 and RFC 4443.
const TCP: u32 = 16;
const UDP: u32 = 6;
const ICMP: u32 = 2;
const UDP_HEADER: u32 = 8;

impl Completion {
    /// Whether it leaves the bytes alone that the packet was judged by: it is written to the transport header's checksum
    /// field, or to bytes that no verdict depends on, such as a packet in a tunnel, which is judged when it is unpacked.
    ///
    /// The payload of TCP does not qualify, as a path may require TLS.
    pub const fn is_harmless(self, packet: &Packet) -> bool {
        let Self { start, field } = self;
        let transport = packet.transport;
        if transport == 0 || start < transport || field < start {
            return false;
        }
        match packet.shape {
            Shape::Flow => match packet.ports.kind {
                PortKind::Tcp => start == transport && field == transport + TCP,
                PortKind::Udp => {
                    (start == transport && field == transport + UDP)
                        || start >= transport + UDP_HEADER
                }
                PortKind::Icmp | PortKind::Icmp6 => start == transport && field == transport + ICMP,
                PortKind::Protocol => true,
                PortKind::Arp => false,
            },
            Shape::IcmpError | Shape::IcmpErrorLaterFragment | Shape::IcmpErrorAstray => {
                start == transport && field == transport + ICMP
            }
            Shape::LaterFragment => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::Ip,
        packet::{Phase, Ports},
    };

    const TRANSPORT: u32 = 34;

    fn packet(port_kind: PortKind) -> Packet {
        let ports = Ports {
            phase: Phase::Following,
            kind: port_kind,
            source: 1,
            destination: 2,
        };
        let mut packet = Packet::flow(Ip::v4([10, 0, 0, 1]), Ip::v4([10, 0, 0, 2]), ports);
        packet.transport = TRANSPORT;
        packet
    }

    fn harmless(port_kind: PortKind, start: u32, field: u32) -> bool {
        Completion { start, field }.is_harmless(&packet(port_kind))
    }

    #[test]
    fn a_checksum_goes_where_its_header_has_it() {
        for (port_kind, offset) in [
            (PortKind::Tcp, 16),
            (PortKind::Udp, 6),
            (PortKind::Icmp, 2),
            (PortKind::Icmp6, 2),
        ] {
            for field in 0..TRANSPORT + 40 {
                let own = field == TRANSPORT + offset;
                assert_eq!(
                    harmless(port_kind, TRANSPORT, field),
                    own,
                    "{port_kind:?} {field}"
                );
            }
            assert!(!harmless(port_kind, 0, TRANSPORT + offset), "{port_kind:?}");
        }
    }

    #[test]
    fn what_is_in_a_tunnel_is_judged_when_it_is_unpacked() {
        assert!(harmless(PortKind::Udp, TRANSPORT + 8, TRANSPORT + 8));
        assert!(harmless(PortKind::Udp, TRANSPORT + 50, TRANSPORT + 66));
        assert!(!harmless(PortKind::Udp, TRANSPORT + 4, TRANSPORT + 50));
        assert!(harmless(PortKind::Protocol, TRANSPORT + 20, TRANSPORT + 36));
        assert!(!harmless(PortKind::Protocol, TRANSPORT - 4, TRANSPORT - 2));
    }

    #[test]
    fn what_has_no_transport_header_has_no_checksum_to_come() {
        let mut fragment = Packet::between(Ip::v4([10, 0, 0, 1]), Ip::v4([10, 0, 0, 2]));
        fragment.transport = TRANSPORT;
        let everywhere = (0..200).map(|start| Completion {
            start,
            field: start + 16,
        });
        assert!(everywhere.clone().all(|c| !c.is_harmless(&fragment)));
        assert!(
            everywhere
                .clone()
                .all(|c| !c.is_harmless(&packet(PortKind::Arp)))
        );
        let mut nowhere = packet(PortKind::Tcp);
        nowhere.transport = 0;
        assert!(everywhere.clone().all(|c| !c.is_harmless(&nowhere)));
    }
}
