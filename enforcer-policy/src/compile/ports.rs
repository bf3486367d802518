//! Reduces ports to classes: two ports that belong to the same endpoints at every address are one class.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::iter::Peekable;

use enforcer_common::{
    limits,
    packet::PortKind,
    tables::{CLASS_BLOCKS, CLASSES_PER_BLOCK, class_block},
};

use super::tables::CompileError;
use crate::model::{Policy, PortMatch};

/// A component's named port, by index of the component and of the port in it.
pub type Endpoint = (usize, usize);

/// The endpoints that a port may belong to, depending on the address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Endpoints of components, if they are at the address.
    pub endpoints: BTreeSet<Endpoint>,
    /// Services, if their virtual address is the address.
    pub services: BTreeSet<usize>,
}

/// All classes and the table of them.
pub struct PortClasses {
    /// In the order of their numbers; the first is for ports that no endpoint names.
    pub classes: Vec<Class>,
    /// See [`class_block`].
    pub table: Vec<u16>,
}

impl PortClasses {
    /// The classes of a policy.
    pub fn of(policy: &Policy) -> Result<Self, CompileError> {
        let mut ports = Self {
            classes: Vec::new(),
            table: vec![0; CLASS_BLOCKS as usize * CLASSES_PER_BLOCK],
        };
        let mut numbers = HashMap::new();
        let always = Class::always(policy);
        numbers.insert(always.clone(), 0);
        ports.classes.push(always.clone());
        for port_kind in PortKind::ALL {
            for (first, last, class) in Intervals::of(policy, port_kind, &always) {
                let number = *numbers.entry(class).or_insert_with_key(|class| {
                    ports.classes.push(class.clone());
                    ports.classes.len() - 1
                });
                if number >= limits::MAX_CLASSES as usize {
                    return Err(CompileError::TooMany {
                        what: "distinct classes of ports",
                        max: limits::MAX_CLASSES,
                        help: "each end of a range begins another: write ranges, the same ones where that will do",
                    });
                }
                for port in first..=last {
                    let block = class_block(port_kind, port) as usize * CLASSES_PER_BLOCK;
                    // The number is below MAX_CLASSES.
                    ports.table[block + usize::from(port as u8)] = number as u16;
                }
            }
        }
        Ok(ports)
    }
}

impl Class {
    /// The endpoints that every port belongs to.
    fn always(policy: &Policy) -> Self {
        let mut class = Self::default();
        for (c, component) in policy.components.iter().enumerate() {
            for (p, port) in component.ports.iter().enumerate() {
                if port.matches.contains(&PortMatch::Any) {
                    class.endpoints.insert((c, p));
                }
            }
        }
        class
    }
}

/// An endpoint or service whose range begins or ends at a number.
#[derive(Clone, Copy)]
enum PortUse {
    Endpoint(Endpoint),
    Service(usize),
}

/// Iterates over the ranges of a port kind within which all numbers have the same class, so that each match is visited
/// only where it begins and where it ends.
struct Intervals {
    /// Where a match begins (`true`) or ends. 0 is always included.
    changes: Peekable<btree_map::IntoIter<u16, Vec<(bool, PortUse)>>>,
    last: u16,
    now: Class,
    /// How many matches of an endpoint cover the number.
    times: HashMap<Endpoint, u32>,
}

impl Intervals {
    fn of(policy: &Policy, port_kind: PortKind, always: &Class) -> Self {
        let last = match port_kind {
            PortKind::Tcp | PortKind::Udp => u16::MAX,
            PortKind::Icmp | PortKind::Icmp6 | PortKind::Protocol => u16::from(u8::MAX),
            PortKind::Arp => 0,
        };
        let mut changes: BTreeMap<u16, Vec<(bool, PortUse)>> = BTreeMap::from([(0, Vec::new())]);
        let mut add = |found: PortMatch, item: PortUse| {
            // What every port belongs to is in all classes already.
            if let (Some((from, to)), true) = (range(found, port_kind), found != PortMatch::Any) {
                changes.entry(from).or_default().push((true, item));
                if let Some(next) = to.checked_add(1).filter(|next| *next <= last) {
                    changes.entry(next).or_default().push((false, item));
                }
            }
        };
        for (c, component) in policy.components.iter().enumerate() {
            for (p, port) in component.ports.iter().enumerate() {
                for found in &port.matches {
                    add(*found, PortUse::Endpoint((c, p)));
                }
            }
        }
        for (index, service) in policy.services.iter().enumerate() {
            add(service.at, PortUse::Service(index));
        }
        let times = always.endpoints.iter().map(|end| (*end, 1));
        Self {
            changes: changes.into_iter().peekable(),
            last,
            now: always.clone(),
            times: times.collect(),
        }
    }

    fn apply(&mut self, begins: bool, item: PortUse) {
        match (begins, item) {
            (true, PortUse::Service(index)) => {
                self.now.services.insert(index);
            }
            (false, PortUse::Service(index)) => {
                self.now.services.remove(&index);
            }
            (true, PortUse::Endpoint(end)) => {
                *self.times.entry(end).or_default() += 1;
                self.now.endpoints.insert(end);
            }
            (false, PortUse::Endpoint(end)) => {
                let times = self.times.entry(end).or_default();
                *times = times.saturating_sub(1);
                if *times == 0 {
                    self.now.endpoints.remove(&end);
                }
            }
        }
    }
}

impl Iterator for Intervals {
    type Item = (u16, u16, Class);

    fn next(&mut self) -> Option<Self::Item> {
        let (first, changes) = self.changes.next()?;
        for (begins, item) in changes {
            self.apply(begins, item);
        }
        let next = self.changes.peek().map(|(next, _)| *next);
        let last = next.map_or(self.last, |next| next - 1);
        Some((first, last, self.now.clone()))
    }
}

/// The numbers of a port kind that a match covers.
fn range(m: PortMatch, port_kind: PortKind) -> Option<(u16, u16)> {
    match (m, port_kind) {
        (PortMatch::Tcp(a, b), PortKind::Tcp) | (PortMatch::Udp(a, b), PortKind::Udp) => {
            Some((a, b))
        }
        (PortMatch::Icmp(a, b), PortKind::Icmp) | (PortMatch::Icmp6(a, b), PortKind::Icmp6) => {
            Some((a.into(), b.into()))
        }
        (PortMatch::Protocol(n), PortKind::Protocol) => Some((n.into(), n.into())),
        (PortMatch::Arp, PortKind::Arp) => Some((0, 0)),
        (PortMatch::Any, _) => Some((0, u16::MAX)),
        _ => None,
    }
}
