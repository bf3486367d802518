//! What interfaces are for, in a table that both sides know how to read.
//!
//! Each packet asks twice, so a plain array is asked, whose elements programs read without a call. An interface
//! stands at its index or within [`REACH`] behind; where there was one, there is never nothing again, so that no
//! search ends too early.

/// Elements of the table.
pub const SLOTS: u32 = 16_384;
/// An interface stands in one of so many elements.
pub const REACH: u32 = 8;
/// What stands where an interface was.
pub const GONE: u64 = u32::MAX as u64;

/// The elements where an interface may stand, in the order of a search.
pub fn places(interface: u32) -> impl Iterator<Item = u32> {
    (0..REACH).map(move |further| interface.wrapping_add(further) % SLOTS)
}

/// An element: the index in the low half, the role's word ([`crate::tables::Role`]) in the high half. Indices begin
/// at 1, so none is 0.
pub const fn element(interface: u32, role: u32) -> u64 {
    (role as u64) << 32 | interface as u64
}

/// The role's word of an interface, by the elements of the table; 0 if it has none.
#[inline(always)]
pub fn role(interface: u32, element: impl Fn(u32) -> u64) -> u32 {
    for place in places(interface) {
        let found = element(place);
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
pub fn place(interface: u32, element: impl Fn(u32) -> u64) -> Option<u32> {
    let stands = places(interface).find(|place| element(*place) as u32 == interface);
    stands.or_else(|| places(interface).find(|place| matches!(element(*place), 0 | GONE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_role_whatever_came_and_went() {
        let mut table = vec![0; SLOTS as usize];
        let mut put = |interface: u32, role: u32| {
            let place = place(interface, |place| table[place as usize]).unwrap();
            table[place as usize] = element(interface, role);
        };
        // All of these begin at the same element.
        let same = [5, 5 + SLOTS, 5 + 2 * SLOTS, 5 + 3 * SLOTS];
        for (role, interface) in (1..).zip(same) {
            put(interface, role);
        }
        put(6, 9);
        put(SLOTS - 1, 3);
        put(2 * SLOTS - 1, 2);
        put(same[1], 8);
        let find = |interface| role(interface, |place| table[place as usize]);
        assert_eq!(same.map(find), [1, 8, 3, 4]);
        assert_eq!(
            [6, 7, SLOTS - 1, 2 * SLOTS - 1, SLOTS].map(find),
            [9, 0, 3, 2, 0]
        );

        let gone = place(same[0], |place| table[place as usize]).unwrap();
        table[gone as usize] = GONE;
        let find = |interface| role(interface, |place| table[place as usize]);
        assert_eq!(same.map(find), [0, 8, 3, 4]);
        assert_eq!(find(u32::MAX), 0);
        // What comes next takes its place.
        assert_eq!(
            place(5 + 4 * SLOTS, |place| table[place as usize]),
            Some(gone)
        );
    }

    #[test]
    fn there_may_be_no_room() {
        let table: Vec<u64> = (0..SLOTS).map(|at| element(at + SLOTS, 1)).collect();
        assert_eq!(place(7, |place| table[place as usize]), None);
        assert_eq!(role(7, |place| table[place as usize]), 0);
    }
}
