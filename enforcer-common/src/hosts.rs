//! A hash table of the addresses that a policy names individually, rather than as part of a network.
//!
//! It consists of [`Bucket`]s of one cache line each. Userspace fills it, and it does not change afterwards. However many
//! addresses there are, a lookup most often ends at the first bucket. The kernel's own hash table needs a longer hash, a
//! chain and three cache lines for that, and its trie one step for every bit in which addresses differ.
//!
//! IPv4 addresses have buckets of their own, which hold more of them: the smaller a table is, the more of it is in the
//! processor's caches.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Ip, tables::AddressInfo};

/// The number of consecutive buckets that may hold an address.
pub const REACH: u32 = 4;

/// The kinds of buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ten addresses, of a word each.
    V4,
    /// Three addresses, of four words each.
    V6,
}

impl Kind {
    /// The kind that holds an address.
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

    /// How many words of an address a bucket of this kind stores: the last ones, as the kind implies the others.
    const fn key_words(self) -> usize {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }

    /// The word that holds the [`AddressInfo`] of a slot, and the shift within it.
    #[inline(always)]
    const fn info_at(self, slot: usize) -> (usize, u32) {
        let half = self.slots() * self.key_words() * 2 + slot;
        (half / 2, half as u32 % 2 * u16::BITS)
    }
}

/// The first of the buckets that may hold an address, out of `buckets` of its kind.
#[inline(always)]
pub const fn first(addr: &Ip, buckets: u32) -> u32 {
    let hash = addr.mixed().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((hash * buckets as u64) >> 32) as u32
}

/// Addresses of one [`Kind`], each with its [`AddressInfo`]. A free slot has the address 0.0.0.0 or `::`, which are never
/// stored.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Bucket {
    /// The addresses, by the words that the kind does not imply, in the form of [`Ip::words`]; then as many
    /// [packed](AddressInfo::packed) infos, two to a word, the lower half first; zeroes up to the end.
    words: [u32; 15],
    /// 1 if a search that reaches this bucket must continue in the next one.
    pub more: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// The info of an address, if it is in this bucket.
    #[inline(always)]
    pub fn find(&self, kind: Kind, words: &[u32; 4]) -> Option<AddressInfo> {
        (0..kind.slots())
            .find(|slot| self.holds(kind, *slot, words))
            .map(|slot| {
                let (word, shift) = kind.info_at(slot);
                AddressInfo::unpacked((self.words[word] >> shift) as u16)
            })
    }

    /// Puts an address into a free slot. `None` if there is none.
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
            // The last words differ most often.
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

/// Whether the table can hold an address.
pub fn takes(addr: &Ip) -> bool {
    !addr.is_unspecified()
}
