//! Fills the table of [`enforcer_common::hosts`].

use enforcer_common::hosts::{self, Bucket, Kind, REACH, takes};
use enforcer_policy::compile::PrefixEntry;

/// The prefix length of a single address.
const WHOLE: u32 = 128;

/// The buckets for a set of addresses; those for IPv4 come first.
pub(super) struct Table {
    /// All of them.
    pub buckets: Vec<Bucket>,
    /// How many of the IPv4 buckets a search may begin in. Another [`REACH`] - 1 only take
    /// overflow.
    pub first_v4: u32,
    /// Likewise for IPv6.
    pub first_v6: u32,
}

/// The table of all addresses, and the entries that are networks or do not fit the table.
pub(super) fn split(prefixes: &[PrefixEntry]) -> (Table, Vec<&PrefixEntry>) {
    let is_host = |entry: &&PrefixEntry| entry.length == WHOLE && takes(&entry.network);
    let (hosts, networks): (Vec<_>, Vec<_>) = prefixes.iter().partition(is_host);
    let is_v4 = |entry: &&PrefixEntry| Kind::of(&entry.network) == Kind::V4;
    let (v4, v6): (Vec<_>, Vec<_>) = hosts.into_iter().partition(is_v4);
    let (mut buckets, first_v4) = filled(Kind::V4, &v4);
    let (behind, first_v6) = filled(Kind::V6, &v6);
    buckets.extend(behind);
    let table = Table {
        buckets,
        first_v4,
        first_v6,
    };
    (table, networks)
}

/// Buckets with all addresses, and how many of them a search may begin in.
fn filled(kind: Kind, hosts: &[&PrefixEntry]) -> (Vec<Bucket>, u32) {
    // Few searches should go beyond their first bucket, and the smaller the table, the more of it
    // is in the processor's caches. If by chance an address does not fit, a larger table is tried.
    let room = match kind {
        Kind::V4 => hosts.len() * 5 / 3,
        Kind::V6 => hosts.len() * 2,
    };
    let mut wanted = room.div_ceil(kind.slots()).max(1);
    loop {
        // MAX_PREFIXES is far below that.
        let first_buckets = u32::try_from(wanted).unwrap_or(u32::MAX);
        if let Some(buckets) = filled_into(kind, hosts, first_buckets) {
            return (buckets, first_buckets);
        }
        wanted += wanted / 4 + 1;
    }
}

fn filled_into(kind: Kind, hosts: &[&PrefixEntry], first_buckets: u32) -> Option<Vec<Bucket>> {
    let mut buckets = vec![Bucket::default(); (first_buckets + REACH - 1) as usize];
    for entry in hosts {
        let words = entry.network.words();
        let begin = hosts::first(&entry.network, first_buckets) as usize;
        let within = &mut buckets[begin..begin + REACH as usize];
        let at = within
            .iter_mut()
            .position(|bucket| bucket.put(kind, &words, entry.info).is_some())?;
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
        limits::MAX_PARTIES,
        tables::{AddressInfo, Party},
    };

    use super::*;

    fn find(table: &Table, addr: &Ip) -> Option<AddressInfo> {
        let words = addr.words();
        let kind = Kind::of(addr);
        let (behind, first) = match kind {
            Kind::V4 => (0, table.first_v4),
            Kind::V6 => (table.first_v4 + REACH - 1, table.first_v6),
        };
        let begin = (behind + hosts::first(addr, first)) as usize;
        for bucket in &table.buckets[begin..begin + REACH as usize] {
            let found = bucket.find(kind, &words);
            if found.is_some() || bucket.more == 0 {
                return found;
            }
        }
        None
    }

    #[test]
    fn exactly_the_stored_addresses_are_found() {
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
            let party = |number: u32| (number % MAX_PARTIES) as Party;
            let entry = |number: u32| PrefixEntry {
                network: at(number),
                length: WHOLE,
                info: AddressInfo {
                    party: party(number),
                    flags: AddressInfo::NAMED | AddressInfo::POD,
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
                let found = find(&table, &at(number));
                assert_eq!(found, Some(entry(number).info), "{number} of {count}");
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
    fn no_address_is_among_the_networks() {
        for network in [Ip::UNSPECIFIED, Ip::v4([0; 4])] {
            let nowhere = PrefixEntry {
                network,
                length: WHOLE,
                info: AddressInfo::UNKNOWN,
            };
            let (_, networks) = split(std::slice::from_ref(&nowhere));
            assert_eq!(networks, [&nowhere]);
        }
    }
}
