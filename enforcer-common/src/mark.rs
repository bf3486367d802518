//! What one hook passes on to the next about a packet: 16 bits that the packet carries through one network namespace
//! (`tc_index` in include/linux/skbuff.h, which nothing else in the kernel uses since `cls_tcindex` and `sch_dsmark` were
//! removed in 6.3). Senders can not set them, only programs at TC hooks can.

use crate::{
    limits::{MAX_PARTIES, MAX_PATHS},
    tables::{Party, Role},
    vantage::Entered,
    verdict::Verdict,
};

/// The mark on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketMark(u16);

impl PacketMark {
    /// The low bits: a party with [`Self::KNOWN`], else the number of a path plus 1.
    const NUMBER: u16 = (1 << 12) - 1;
    /// A hook of this namespace has judged it.
    const SEEN: u16 = 1 << 12;
    /// It is a SYN with data, and its path requires TLS.
    const FAST_OPEN: u16 = 1 << 13;
    /// Its source address is verified to be the pod's own, and the number is the pod's party.
    const KNOWN: u16 = 1 << 14;
    /// Dry-run has reported it already and let it pass.
    const REPORTED: u16 = 1 << 15;

    /// A packet that no hook has judged.
    pub const NONE: Self = Self(0);
    /// A packet that a hook has judged, without further facts.
    pub const JUDGED: Self = Self(Self::SEEN);

    /// A packet from a pod whose party is known.
    pub const fn from_known_pod(party: Party) -> Self {
        Self(Self::SEEN | Self::KNOWN | party & Self::NUMBER)
    }

    /// The mark of a packet that came in by an interface, with the path that allowed it there, if one did.
    #[must_use]
    pub const fn let_in_by(self, verdict: Verdict) -> Self {
        match verdict.forward_path() {
            // The highest path number does not fit and counts as no path: a reply may be lost then.
            Some(path) if self.0 & Self::KNOWN == 0 && path < Self::NUMBER => {
                Self(self.0 & !Self::NUMBER | (path + 1))
            }
            _ => self,
        }
    }

    /// The same mark, reported in dry-run.
    #[must_use]
    pub const fn reported(self) -> Self {
        Self(self.0 | Self::REPORTED)
    }

    /// The same mark, for a SYN with data.
    #[must_use]
    pub const fn with_fast_open(self) -> Self {
        Self(self.0 | Self::FAST_OPEN)
    }

    /// Whether a hook of this network namespace has judged it.
    pub const fn is_judged(self) -> bool {
        self.0 & Self::SEEN != 0
    }

    /// Whether dry-run has reported it.
    pub const fn is_reported(self) -> bool {
        self.0 & Self::REPORTED != 0
    }

    /// Whether it is a SYN with data on a path that requires TLS.
    pub const fn is_fast_open(self) -> bool {
        self.0 & Self::FAST_OPEN != 0
    }

    /// Whether it is from a pod whose party is known.
    pub const fn is_from_known_pod(self) -> bool {
        self.0 & Self::KNOWN != 0
    }

    /// How it came in, by an interface with that role. If it was not judged there, nothing is known and it counts as a pod's.
    pub const fn entered(self, role: Role) -> Entered {
        let number = self.0 & Self::NUMBER;
        if !self.is_judged() {
            return Entered::FromPod;
        }
        match role {
            Role::Pod if self.is_from_known_pod() => Entered::FromKnownPod(number),
            Role::Uplink if number != 0 && !self.is_from_known_pod() => {
                Entered::ByUplink(Some(number - 1))
            }
            Role::Uplink => Entered::ByUplink(None),
            Role::Pod | Role::Loopback | Role::Undeclared => Entered::FromPod,
        }
    }

    /// As a word.
    pub const fn word(self) -> u16 {
        self.0
    }

    /// From the word.
    pub const fn from_word(word: u16) -> Self {
        Self(word)
    }
}

const _: () = assert!(
    MAX_PARTIES - 1 == PacketMark::NUMBER as u32 && MAX_PATHS - 1 == PacketMark::NUMBER as u32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_hook_says_the_next_one_hears() {
        let known = PacketMark::from_known_pod(4095).reported().with_fast_open();
        assert!(known.is_judged() && known.is_reported() && known.is_fast_open());
        assert_eq!(known.entered(Role::Pod), Entered::FromKnownPod(4095));
        // A pod's party is no path.
        assert_eq!(known.let_in_by(Verdict::path(7)), known);

        for path in [0, 1, 4094] {
            let by = PacketMark::JUDGED.let_in_by(Verdict::path(path));
            assert_eq!(by.entered(Role::Uplink), Entered::ByUplink(Some(path)));
            assert_eq!(by.entered(Role::Pod), Entered::FromPod);
        }
        for verdict in [Verdict::path(4095), Verdict::path(3).back(), Verdict::OTHER] {
            let by = PacketMark::JUDGED.let_in_by(verdict);
            assert_eq!(by.entered(Role::Uplink), Entered::ByUplink(None));
        }
        assert_eq!(PacketMark::from_word(known.word()), known);
    }

    #[test]
    fn what_no_hook_has_judged_is_a_pods() {
        for role in [Role::Undeclared, Role::Loopback, Role::Uplink, Role::Pod] {
            assert_eq!(PacketMark::NONE.entered(role), Entered::FromPod);
        }
        for role in [Role::Undeclared, Role::Loopback] {
            assert_eq!(PacketMark::JUDGED.entered(role), Entered::FromPod);
        }
    }
}
