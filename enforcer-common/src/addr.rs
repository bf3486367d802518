//! One form for all addresses: IPv6, with IPv4 as `::ffff:a.b.c.d`.

use core::{
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address in network byte order. IPv4 addresses are stored IPv4-mapped, so that a mapped address on an IPv6 socket
/// equals the address in the IPv4 packet that the socket sends.
#[derive(Debug, Clone, Copy, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
// Without an alignment, BPF code takes it apart byte by byte.
#[repr(C, align(8))]
pub struct Ip(pub [u8; 16]);

impl Ip {
    /// `::`.
    pub const UNSPECIFIED: Self = Self([0; 16]);
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::v4([127, 0, 0, 1]);

    /// From the four bytes of an IPv4 header.
    pub const fn v4(b: [u8; 4]) -> Self {
        const MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        let low: u64 = zerocopy::transmute!([MARK, u32::from_ne_bytes(b)]);
        Self::of_halves([0, low])
    }

    /// From both halves, as they stand in an IPv6 header.
    pub const fn of_halves(halves: [u64; 2]) -> Self {
        zerocopy::transmute!(halves)
    }

    /// The same 16 bytes as words in native byte order, for comparisons.
    pub const fn words(&self) -> [u32; 4] {
        zerocopy::transmute!(*self)
    }

    /// The same 16 bytes as two words of 64 bits.
    pub const fn halves(&self) -> [u64; 2] {
        zerocopy::transmute!(*self)
    }

    /// A hash of the address. It is the same in the kernel and in userspace, which read the same tables.
    #[inline(always)]
    pub const fn mixed(&self) -> u64 {
        // Odd constants without a pattern: the fractions of the golden ratio and of the root of 2. The last shift spreads
        // differences in the upper bits to the lower ones.
        let [high, low] = self.halves();
        let mixed =
            (high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low).wrapping_mul(0x6a09_e667_f3bc_c909);
        mixed ^ mixed >> 32
    }

    /// Whether this is an IPv4 address.
    pub fn is_v4(&self) -> bool {
        const MAPPED: [u32; 4] = Ip::v4([0; 4]).words();
        let [.., mark, _] = self.words();
        self.halves()[0] == 0 && mark == MAPPED[2]
    }

    /// 127.0.0.0/8 or ::1.
    pub fn is_loopback(&self) -> bool {
        (self.is_v4() && self.0[12] == 127) || *self == Self::LOOPBACK_V6
    }

    /// 0.0.0.0 or `::`: this host as a destination, and no address yet as a source.
    pub fn is_unspecified(&self) -> bool {
        *self == Self::UNSPECIFIED || *self == Self::v4([0; 4])
    }

    /// 169.254.0.0/16 or fe80::/10.
    pub fn is_link_local(&self) -> bool {
        if self.is_v4() {
            self.0[12] == 169 && self.0[13] == 254
        } else {
            self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
        }
    }

    /// The loopback address that a connection to [`Self::is_unspecified`] reaches.
    pub fn this_host(&self) -> Self {
        if self.is_v4() {
            Self::LOOPBACK_V4
        } else {
            Self::LOOPBACK_V6
        }
    }
}

// By words, as above. The lower halves differ most often.
impl PartialEq for Ip {
    fn eq(&self, other: &Self) -> bool {
        let [a, b] = self.halves();
        let [c, d] = other.halves();
        b == d && a == c
    }
}

impl Hash for Ip {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        let [.., a, b, c, d] = ip.0;
        if ip.is_v4() {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(ip.0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(s: &str) -> Ip {
        s.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn kinds_of_addresses() {
        for (text, loopback, unspecified, link_local) in [
            ("127.0.0.1", true, false, false),
            ("127.255.255.254", true, false, false),
            ("::ffff:127.0.0.1", true, false, false),
            ("::1", true, false, false),
            ("0.0.0.0", false, true, false),
            ("::", false, true, false),
            ("169.254.20.10", false, false, true),
            ("fe80::1", false, false, true),
            ("febf::1", false, false, true),
            ("fec0::1", false, false, false),
            ("10.0.0.1", false, false, false),
            ("::127.0.0.1", false, false, false),
        ] {
            let ip = ip(text);
            assert_eq!(
                (ip.is_loopback(), ip.is_unspecified(), ip.is_link_local()),
                (loopback, unspecified, link_local),
                "{text}"
            );
        }
    }

    #[test]
    fn mapped_and_plain_are_one() {
        assert_eq!(ip("::ffff:10.1.2.3"), ip("10.1.2.3"));
        assert_eq!(IpAddr::from(ip("::ffff:10.1.2.3")).to_string(), "10.1.2.3");
    }
}
