//! Where an address stands that a policy names by itself, and not as one of a network.
//!
//! A table of [`Bucket`]s, each of a cache line, that userspace fills and nobody changes. However many
//! addresses there are, one is found or missed at once, most often in the first bucket that is looked
//! at. The kernel's own hash table spends a longer hash, a chain and three cache lines on that, and its
//! trie a step for every bit in which addresses differ.
//!
//! IPv4 addresses have buckets of their own, which hold more of them: the smaller a table, the more of it is in the
//! processor's caches.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Ip, tables::AddressInfo};

/// An address stands in one of so many buckets.
pub const REACH: u32 = 4;

/// Which buckets an address stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ten addresses, of a word each.
    V4,
    /// Three addresses, of four words each.
    V6,
}

impl Kind {
    /// That of an address.
    #[inline(always)]
    pub fn of(addr: &Ip) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }

    /// Addresses in a bucket.
    pub const fn slots(self) -> usize {
        match self {
            Self::V4 => 10,
            Self::V6 => 3,
        }
    }

    /// The words of an address that its bucket does not tell by its kind: the last ones.
    const fn key_words(self) -> usize {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }

    /// The word in which the place of a slot stands, and where in it.
    #[inline(always)]
    const fn info_at(self, slot: usize) -> (usize, u32) {
        let half = self.slots() * self.key_words() * 2 + slot;
        (half / 2, half as u32 % 2 * u16::BITS)
    }
}

/// The first of the buckets where an address may stand, of so many of its kind.
#[inline(always)]
pub const fn first(addr: &Ip, buckets: u32) -> u32 {
    let hash = addr.mixed().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((hash * buckets as u64) >> 32) as u32
}

/// Some addresses of one [`Kind`] and what is there. A slot that holds none has the address 0.0.0.0 or `::`, which stand
/// nowhere.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Bucket {
    /// The addresses, by the words that the kind does not tell, as [`Ip::words`] has them; then as many
    /// [packed](AddressInfo::packed) places, two to a word, the lower half first; zeroes up to the end.
    words: [u32; 15],
    /// 1 if an address that belongs here stands in the next.
    pub more: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// What is at an address, if it stands in this bucket of that kind.
    #[inline(always)]
    pub fn find(&self, kind: Kind, words: &[u32; 4]) -> Option<AddressInfo> {
        (0..kind.slots())
            .find(|slot| self.holds(kind, *slot, words))
            .map(|slot| {
                let (word, shift) = kind.info_at(slot);
                AddressInfo::unpacked((self.words[word] >> shift) as u16)
            })
    }

    /// Puts an address into a slot that holds none. Nothing if there is none.
    pub fn put(&mut self, kind: Kind, words: &[u32; 4], info: AddressInfo) -> Option<()> {
        let slot = (0..kind.slots()).find(|slot| self.holds(kind, *slot, &[0; 4]))?;
        let length = kind.key_words();
        let at = slot * length;
        self.words[at..at + length].copy_from_slice(&words[4 - length..]);
        let (word, shift) = kind.info_at(slot);
        self.words[word] |= u32::from(info.packed()) << shift;
        Some(())
    }

    #[inline(always)]
    fn holds(&self, kind: Kind, slot: usize, words: &[u32; 4]) -> bool {
        let [a, b, c, d] = *words;
        match kind {
            Kind::V4 => self.words[slot] == d,
            // The last words differ most.
            Kind::V6 => {
                let at = slot * 4;
                self.words[at + 3] == d
                    && self.words[at + 2] == c
                    && self.words[at + 1] == b
                    && self.words[at] == a
            }
        }
    }
}

/// Whether an address can stand in the table.
pub fn takes(addr: &Ip) -> bool {
    !addr.is_unspecified()
}
