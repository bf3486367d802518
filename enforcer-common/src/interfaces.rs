//! What interfaces are for, in a table that both sides know how to read.
//!
//! Each packet asks twice, so a plain array is asked, whose elements programs read without a call. An interface
//! stands where a hash of its index says or within [`REACH`] behind; where there was one, there is never nothing again, so
//! that no search ends too early.

/// Elements of the table: many more than there are interfaces, so that [`REACH`] is far enough.
pub const SLOTS: u32 = 1 << 16;
/// An interface stands in one of so many elements.
pub const REACH: u32 = 8;
/// What stands where an interface was.
pub const GONE: u64 = u32::MAX as u64;

/// The element where an interface stands, most often.
#[inline(always)]
pub const fn first(interface: u32) -> u32 {
    // The kernel counts interfaces up, so that those of long ago are neighbours, and the next ones may come to be the
    // same modulo any power of two: the golden ratio puts neighbours far apart.
    interface.wrapping_mul(0x9e37_79b1) >> 16
}

/// The elements where an interface may stand, in the order of a search.
pub fn slots(interface: u32) -> impl Iterator<Item = u32> {
    let first = first(interface);
    (0..REACH).map(move |further| (first + further) % SLOTS)
}

/// An element: the index in the low half, the role's word ([`crate::tables::Role`]) in the high half. Indices begin
/// at 1, so none is 0.
pub const fn element(interface: u32, role: u32) -> u64 {
    (role as u64) << 32 | interface as u64
}

/// The role's word of an interface, by the elements of the table; 0 if it has none.
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

/// Where to write an interface: where it stands, or else the first element that is free.
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
        // What comes next takes its slot.
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
