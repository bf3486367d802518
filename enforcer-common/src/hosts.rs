//! Where an address stands that a policy names by itself, and not as one of a network.
//!
//! A table of [`Bucket`]s, each of a cache line, that userspace fills and nobody changes. However many
//! addresses there are, one is found or missed at once, most often in the first bucket that is looked
//! at. The kernel's own hash table spends a longer hash, a chain and three cache lines on that, and its
//! trie a step for every bit in which addresses differ.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Ip, tables::Place};

/// Addresses in a bucket.
pub const SLOTS: usize = 3;
/// An address stands in one of so many buckets.
pub const REACH: u32 = 4;

/// Some addresses and what is there. A slot that holds none has the address `::`, which stands nowhere.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Bucket {
    /// As [`Ip::words`] has them.
    pub keys: [[u32; 4]; SLOTS],
    /// Words of a [`Place`].
    pub places: [u32; SLOTS],
    /// 1 if an address that belongs here stands in the next.
    pub more: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// What is at an address, if it stands in this bucket.
    #[inline(always)]
    pub fn find(&self, words: &[u32; 4]) -> Option<Place> {
        for slot in 0..SLOTS {
            let [a, b, c, d] = self.keys[slot];
            // The last words differ most.
            if d == words[3] && c == words[2] && b == words[1] && a == words[0] {
                return Some(zerocopy::transmute!(self.places[slot]));
            }
        }
        None
    }
}

/// The first of the buckets where an address may stand, of so many.
#[inline(always)]
pub const fn first(words: &[u32; 4], buckets: u32) -> u32 {
    let [a, b, c, d] = *words;
    let high = (a as u64) << 32 | b as u64;
    let low = (c as u64) << 32 | d as u64;
    // Odd constants without a pattern: the fractions of the golden ratio and of the root of 2.
    let mixed =
        (high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low).wrapping_mul(0x6a09_e667_f3bc_c909);
    let hash = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((hash * buckets as u64) >> 32) as u32
}

/// Whether an address can stand in the table.
pub fn takes(addr: &Ip) -> bool {
    *addr != Ip::UNSPECIFIED
}
