//! Offload headers before a frame (`struct virtio_net_hdr`), as virtual machines pass them to their
//! host: what the kernel still has to do before it sends the frame.

use std::net::IpAddr;

use crate::craft::{checksum, protocol, pseudo_header};

/// The checksum must be completed.
const NEEDS_CHECKSUM: u8 = 1;
/// Segments of TCP over IPv4.
pub const GSO_TCP4: u8 = 1;
/// Segments of TCP over IPv6.
pub const GSO_TCP6: u8 = 4;

/// Datagrams of UDP.
pub const GSO_UDP: u8 = 5;

/// An offload header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Where the checksum begins, counted from the frame's first byte, and how far after that it is
    /// written.
    pub checksum: Option<(u16, u16)>,
    /// The kind of segments, the length of the headers and that of each segment's data.
    pub segments: Option<(u8, u16, u16)>,
}

impl Offload {
    /// The header's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let flags = if self.checksum.is_some() {
            NEEDS_CHECKSUM
        } else {
            0
        };
        let (kind, header, size) = self.segments.unwrap_or_default();
        let (start, offset) = self.checksum.unwrap_or_default();
        let mut bytes = vec![flags, kind];
        // In this machine's byte order.
        for number in [header, size, start, offset] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes
    }
}

/// A frame in which `field` shows another value than it will have: completing the checksum from
/// `start` writes to `field` the value that it has now. The word at `steer` is chosen for that;
/// both are after `start`, at an even distance from it.
pub fn disguised(frame: &[u8], start: usize, field: usize, shown: u16, steer: usize) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let wanted = word(&bytes, field);
    put(&mut bytes, field, shown);
    put(&mut bytes, steer, 0);
    // The steering word is part of the sum: it gets the difference to the wanted value.
    let sum = !checksum(&[bytes.get(start..).unwrap_or_default()]);
    let steered = subtract(!wanted, sum);
    put(&mut bytes, steer, steered);
    bytes
}

/// The source port of a TCP segment of this length for which its own checksum stays right although
/// another destination port is shown and the checksum is completed into the port field.
pub fn source_port_for(from: IpAddr, to: IpAddr, length: usize, shown: u16) -> u16 {
    let pseudo = !checksum(&[&pseudo_header(from, to, protocol::TCP, length)]);
    subtract(shown, pseudo)
}

/// `a - b` in the arithmetic of checksums.
fn subtract(a: u16, b: u16) -> u16 {
    let sum = u32::from(a) + u32::from(!b);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn word(bytes: &[u8], at: usize) -> u16 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u16::from_be_bytes(*word))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(word) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *word = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::craft::tcp;

    #[test]
    fn completion_restores_the_original_value() {
        let frame: Vec<u8> = (0..61).map(|byte| byte * 3).collect();
        let shown = disguised(&frame, 20, 36, 9999, 50);
        assert_eq!(word(&shown, 36), 9999);
        assert_eq!(checksum(&[&shown[20..]]), word(&frame, 36));
    }

    #[test]
    fn a_source_port_keeps_the_checksum_right() -> anyhow::Result<()> {
        let (from, to): (SocketAddr, SocketAddr) =
            ("10.77.0.21:1".parse()?, "10.77.0.11:2379".parse()?);
        let from = SocketAddr::new(from.ip(), source_port_for(from.ip(), to.ip(), 20, 9999));
        let whole = tcp(from, to, 2, &[], b"");
        let mut shown = whole.clone();
        put(&mut shown, 2, 9999);
        assert_eq!(checksum(&[&shown[2..]]), 2379);
        Ok(())
    }
}
