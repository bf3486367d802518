//! Networks as a data structure: which of them hold an address, and which are within another one. There may be
//! thousands, so a lookup visits only those that are near.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Included};

use ipnet::IpNet;

/// Networks, each with a value. If a network is inserted twice, the first value stays.
#[derive(Debug)]
pub(crate) struct Nets<T> {
    all: BTreeMap<IpNet, T>,
    /// The lengths of prefixes that occur: only these need to be looked up.
    lengths: BTreeSet<u8>,
}

impl<T> Default for Nets<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> Nets<T> {
    /// Inserts a network.
    pub fn insert(&mut self, net: IpNet, known: T) {
        self.lengths.insert(net.prefix_len());
        self.all.entry(net.trunc()).or_insert(known);
    }

    /// The networks that contain all of one, itself included, the widest first.
    pub fn around(&self, net: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
        let wider = self.lengths.range(..=net.prefix_len());
        wider.filter_map(move |length| {
            let wider = IpNet::new(net.addr(), *length).ok()?;
            self.all.get_key_value(&wider.trunc())
        })
    }

    /// The networks that contain an address, the widest first.
    pub fn holding(&self, address: IpAddr) -> impl Iterator<Item = (&IpNet, &T)> {
        self.around(IpNet::from(address))
    }

    /// The networks that lie within one and are narrower, in order.
    pub fn within(&self, net: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
        let net = net.trunc();
        let last = IpNet::from(net.broadcast());
        // Two networks either contain one another or are disjoint, so all that begin within it are within it.
        let narrower = net.prefix_len() < net.max_prefix_len();
        let bounds = (Excluded(net), Included(last));
        narrower
            .then(|| self.all.range(bounds))
            .into_iter()
            .flatten()
    }

    /// The networks that have an address in common with one.
    pub fn overlapping(&self, net: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
        self.around(net).chain(self.within(net))
    }
}

impl<T: Default> FromIterator<IpNet> for Nets<T> {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let mut nets = Self::default();
        for net in networks {
            nets.insert(net, T::default());
        }
        nets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compared with a check of every network, for networks of all lengths in a small range where they often overlap.
    #[test]
    fn the_same_is_found_as_by_looking_at_each() {
        let net = |number: u32| -> IpNet {
            let length = (number % 8) as u8;
            let text = match number % 2 {
                0 => format!("10.0.0.{}/{}", number * 37 % 256, 25 + length),
                _ => format!("fd00::{:x}/{}", number * 37 % 256, 121 + length),
            };
            text.parse::<IpNet>().map(|net| net.trunc()).unwrap()
        };
        let all: Vec<IpNet> = (0..60).map(net).collect();
        let nets: Nets<()> = all.iter().copied().collect();
        let sorted = |mut found: Vec<IpNet>| {
            found.sort();
            found.dedup();
            found
        };
        let found = |nets: &mut dyn Iterator<Item = (&IpNet, &())>| -> Vec<IpNet> {
            nets.map(|(net, ())| *net).collect()
        };
        let plainly = |keep: &dyn Fn(&IpNet) -> bool| {
            sorted(all.iter().copied().filter(|net| keep(net)).collect())
        };
        for number in 0..500 {
            let asked = net(number);
            let around = found(&mut nets.around(asked));
            assert!(around.is_sorted_by_key(IpNet::prefix_len), "{around:?}");
            assert_eq!(
                sorted(around),
                plainly(&|net| net.contains(&asked)),
                "around {asked}"
            );
            assert_eq!(
                found(&mut nets.within(asked)),
                plainly(&|net| asked.contains(net) && *net != asked),
                "within {asked}"
            );
            let overlapping = |net: &IpNet| net.contains(&asked) || asked.contains(net);
            assert_eq!(
                sorted(found(&mut nets.overlapping(asked))),
                plainly(&overlapping),
                "{asked}"
            );
            let address = asked.addr();
            assert_eq!(
                sorted(found(&mut nets.holding(address))),
                plainly(&|net| net.contains(&address)),
                "{address}"
            );
        }
    }
}
