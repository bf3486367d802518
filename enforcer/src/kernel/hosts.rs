//! Fills the table of [`enforcer_common::hosts`].

use enforcer_common::hosts::{Bucket, REACH, SLOTS, first, takes};

use crate::compile::PrefixEntry;

/// Length of a prefix that is an address.
const WHOLE: u32 = 128;

/// Buckets for some addresses.
pub(super) struct Table {
    /// All of them.
    pub buckets: Vec<Bucket>,
    /// In how many of them a search may begin; the last ones only take what finds no room before.
    pub first_buckets: u32,
}

/// The table of all addresses, and what are networks or have no place in a table.
pub(super) fn split(prefixes: &[PrefixEntry]) -> (Table, Vec<&PrefixEntry>) {
    let is_host = |entry: &&PrefixEntry| entry.length == WHOLE && takes(&entry.network);
    let (hosts, networks): (Vec<_>, Vec<_>) = prefixes.iter().partition(is_host);
    // Half full on average: few searches go beyond their first bucket. Where chance has it that an
    // address finds no room, a table with more room is tried.
    let mut wanted = (hosts.len() * 2).div_ceil(SLOTS).max(1);
    loop {
        // MAX_PREFIXES is far below.
        let first_buckets = u32::try_from(wanted).unwrap_or(u32::MAX);
        if let Some(buckets) = filled(&hosts, first_buckets) {
            let table = Table {
                buckets,
                first_buckets,
            };
            return (table, networks);
        }
        wanted += wanted / 4 + 1;
    }
}

fn filled(hosts: &[&PrefixEntry], first_buckets: u32) -> Option<Vec<Bucket>> {
    let mut buckets = vec![Bucket::default(); (first_buckets + REACH - 1) as usize];
    for entry in hosts {
        let words = entry.network.words();
        let begin = first(&words, first_buckets) as usize;
        let within = &mut buckets[begin..begin + REACH as usize];
        let is_free = |key: &[u32; 4]| *key == [0; 4];
        let at = within
            .iter()
            .position(|bucket| bucket.keys.iter().any(is_free))?;
        let slot = within[at].keys.iter().position(is_free)?;
        within[at].keys[slot] = words;
        within[at].places[slot] = zerocopy::transmute!(entry.place);
        for bucket in &mut within[..at] {
            bucket.more = 1;
        }
    }
    Some(buckets)
}

#[cfg(test)]
mod tests {
    use enforcer_common::{
        addr::Ip,
        tables::{Party, Place},
    };

    use super::*;

    fn find(table: &Table, addr: &Ip) -> Option<Place> {
        let words = addr.words();
        let begin = first(&words, table.first_buckets) as usize;
        for bucket in &table.buckets[begin..begin + REACH as usize] {
            let found = bucket.find(&words);
            if found.is_some() || bucket.more == 0 {
                return found;
            }
        }
        None
    }

    #[test]
    fn all_are_found_and_no_others() {
        for count in [0_u32, 1, 2, 3, 10, 1000, 60_000] {
            let at = |number: u32| match number % 3 {
                0 => Ip::v4((0x0a80_0000 + number).to_be_bytes()),
                1 => Ip::v4((number << 8).to_be_bytes()),
                _ => {
                    let mut bytes = [0xfd; 16];
                    bytes[12..].copy_from_slice(&number.to_be_bytes());
                    Ip(bytes)
                }
            };
            let entry = |number: u32| PrefixEntry {
                network: at(number),
                length: WHOLE,
                place: Place {
                    party: number as Party,
                    flags: 1,
                },
            };
            let mut prefixes: Vec<PrefixEntry> = (0..count).map(entry).collect();
            let wide = PrefixEntry {
                length: 96,
                ..entry(0)
            };
            prefixes.push(wide);
            let (table, networks) = split(&prefixes);
            assert_eq!(networks, [&wide]);
            for number in 0..count {
                let found = find(&table, &at(number)).map(|place| place.party);
                assert_eq!(found, Some(number as Party), "{number} of {count}");
            }
            for number in count..count + 1000 {
                assert_eq!(find(&table, &at(number)), None, "{number} of {count}");
            }
            let spilled = table.buckets.iter().filter(|bucket| bucket.more != 0);
            let (spilled, all) = (spilled.count(), table.buckets.len());
            assert!(spilled * 4 <= all, "{spilled} of {all}");
        }
    }

    #[test]
    fn no_address_stands_with_the_networks() {
        let nowhere = PrefixEntry {
            network: Ip::UNSPECIFIED,
            length: WHOLE,
            place: Place::UNKNOWN,
        };
        let (_, networks) = split(std::slice::from_ref(&nowhere));
        assert_eq!(networks, [&nowhere]);
    }
}
