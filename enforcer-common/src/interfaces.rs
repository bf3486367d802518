//! A hash table of the roles of interfaces, which the programs and userspace read in the same way.
//!
//! It is looked up twice for each packet, so it is a plain array, whose elements programs read without a call. An interface
//! is in the slot of its hash or in one of the [`REACH`] minus one slots behind it. A slot that was used once never becomes
//! empty again, so that no search ends too early.

/// Slots of the table: many more than there are interfaces, so that [`REACH`] suffices.
pub const SLOTS: u32 = 1 << 16;
/// The number of consecutive slots that may hold an interface.
pub const REACH: u32 = 8;
/// The content of a slot whose interface is gone.
pub const GONE: u64 = u32::MAX as u64;

/// The slot where the search for an interface begins.
#[inline(always)]
const fn first(interface: u32) -> u32 {
    // Indices are assigned in sequence, so old interfaces are neighbours, and newer ones may be equal to them modulo any
    // power of two: the golden ratio spreads neighbours far apart.
    interface.wrapping_mul(0x9e37_79b1) >> 16
}

/// The slots that may hold an interface, in search order.
pub fn slots(interface: u32) -> impl Iterator<Item = u32> {
    let first = first(interface);
    (0..REACH).map(move |further| (first + further) % SLOTS)
}

/// The content of a slot: the index in the low half, the role's word ([`crate::tables::Role`]) in the high half. Indices
/// begin at 1, so none is 0.
pub const fn element(interface: u32, role: u32) -> u64 {
    (role as u64) << 32 | interface as u64
}

/// The role's word of an interface; 0 if it is not in the table. `element` reads a slot.
#[inline(always)]
pub fn role(interface: u32, element: impl Fn(u32) -> u64) -> u32 {
    for slot in slots(interface) {
        let found = element(slot);
        if found as u32 == interface {
            return (found >> 32) as u32;
        }
        if found == 0 {
            break;
        }
    }
    0
}

/// The slot to write an interface to: its own, or else the first free one.
pub fn slot(interface: u32, element: impl Fn(u32) -> u64) -> Option<u32> {
    let stands = slots(interface).find(|slot| element(*slot) as u32 == interface);
    stands.or_else(|| slots(interface).find(|slot| matches!(element(*slot), 0 | GONE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many interfaces that all begin at the element where `first` begins.
    fn alike(first: u32) -> Vec<u32> {
        let slot = slots(first).next();
        let others = (1..).filter(|other| slots(*other).next() == slot);
        others.take(REACH as usize + 1).collect()
    }

    #[test]
    fn each_has_its_role_whatever_came_and_went() {
        let mut table = vec![0; SLOTS as usize];
        let mut put = |interface: u32, role: u32| {
            let slot = slot(interface, |slot| table[slot as usize]).unwrap();
            table[slot as usize] = element(interface, role);
        };
        let alike = alike(5);
        let [a, b, c, d, next, ..] = alike[..] else {
            panic!("{alike:?}")
        };
        for (role, interface) in (1..).zip([a, b, c, d]) {
            put(interface, role);
        }
        put(b, 8);
        let find = |interface| role(interface, |slot| table[slot as usize]);
        assert_eq!([a, b, c, d, next].map(find), [1, 8, 3, 4, 0]);

        let gone = slot(a, |slot| table[slot as usize]).unwrap();
        table[gone as usize] = GONE;
        let find = |interface| role(interface, |slot| table[slot as usize]);
        assert_eq!([a, b, c, d].map(find), [0, 8, 3, 4]);
        assert_eq!(find(u32::MAX), 0);
        // The next interface takes its slot.
        assert_eq!(slot(next, |slot| table[slot as usize]), Some(gone));
    }

    /// Those of long ago stand in a row, and new ones come where the count is the same again.
    #[test]
    fn there_is_room_on_a_node_of_any_age() {
        for between in [64, 1 << 8, 1 << 14, 1 << 16, 1 << 20, 12_345] {
            let mut table = vec![0; SLOTS as usize];
            for round in 0..64_u32 {
                for number in 0..64_u32 {
                    let interface = 6 + number + round * between;
                    let slot = slot(interface, |slot| table[slot as usize]);
                    let slot = slot.unwrap_or_else(|| panic!("{between}, {round}, {number}"));
                    table[slot as usize] = element(interface, 3);
                }
            }
        }
    }

    #[test]
    fn there_may_be_no_room() {
        let alike = alike(5);
        let mut table = vec![0; SLOTS as usize];
        let (last, others) = alike.split_last().unwrap();
        for interface in others {
            let slot = slot(*interface, |slot| table[slot as usize]).unwrap();
            table[slot as usize] = element(*interface, 1);
        }
        assert_eq!(slot(*last, |slot| table[slot as usize]), None);
        assert_eq!(role(*last, |slot| table[slot as usize]), 0);
    }
}
