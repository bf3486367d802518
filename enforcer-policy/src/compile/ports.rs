//! Ports to classes: two ports that mean the same endpoints everywhere are one class.

use std::collections::{BTreeSet, HashMap};

use enforcer_common::{
    limits,
    packet::Space,
    tables::{CLASS_BLOCKS, CLASSES_PER_BLOCK, class_block},
};

use super::tables::CompileError;
use crate::model::{Policy, PortMatch};

/// A component's named port, by index of the component and of the port in it.
pub type Endpoint = (usize, usize);

/// What a port may mean, depending on the address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Endpoints of components that are at the address.
    pub endpoints: BTreeSet<Endpoint>,
    /// Services whose virtual address it is.
    pub services: BTreeSet<usize>,
}

/// All classes and the table of them.
pub struct PortClasses {
    /// In the order of their numbers; the first is of what no endpoint names.
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
        let always = class_of(policy, |m| m == PortMatch::Any, |_| false);
        numbers.insert(always.clone(), 0);
        ports.classes.push(always);
        for space in Space::ALL {
            for (first, last) in intervals(policy, space) {
                let class = class_of(
                    policy,
                    |m| range(m, space).is_some_and(|(from, to)| from <= first && last <= to),
                    |m| range(m, space).is_some_and(|(from, to)| from <= first && last <= to),
                );
                let number = *numbers.entry(class).or_insert_with_key(|class| {
                    ports.classes.push(class.clone());
                    ports.classes.len() - 1
                });
                if number >= limits::MAX_CLASSES as usize {
                    let (what, max) = ("distinct classes of ports", limits::MAX_CLASSES);
                    return Err(CompileError::TooMany { what, max });
                }
                for port in first..=last {
                    let block = class_block(space, port) as usize * CLASSES_PER_BLOCK;
                    // MAX_CLASSES fits.
                    ports.table[block + usize::from(port as u8)] = number as u16;
                }
            }
        }
        Ok(ports)
    }
}

fn class_of(
    policy: &Policy,
    endpoint: impl Fn(PortMatch) -> bool,
    service: impl Fn(PortMatch) -> bool,
) -> Class {
    let mut class = Class::default();
    for (c, component) in policy.components.iter().enumerate() {
        for (p, port) in component.ports.iter().enumerate() {
            if port.matches.iter().any(|m| endpoint(*m)) {
                class.endpoints.insert((c, p));
            }
        }
    }
    class
        .services
        .extend((0..policy.services.len()).filter(|i| service(policy.services[*i].at)));
    class
}

/// The ranges of a space within which all numbers mean the same.
fn intervals(policy: &Policy, space: Space) -> Vec<(u16, u16)> {
    let last = match space {
        Space::Tcp | Space::Udp => u16::MAX,
        Space::Icmp | Space::Icmp6 | Space::Protocol => u16::from(u8::MAX),
        Space::Arp => 0,
    };
    let ports = policy
        .components
        .iter()
        .flat_map(|c| &c.ports)
        .flat_map(|p| &p.matches);
    let mut starts = BTreeSet::from([0]);
    for m in ports.chain(policy.services.iter().map(|s| &s.at)) {
        if let Some((from, to)) = range(*m, space) {
            starts.insert(from);
            starts.extend(to.checked_add(1).filter(|next| *next <= last));
        }
    }
    let starts: Vec<u16> = starts.into_iter().collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([last]);
    starts.iter().copied().zip(ends).collect()
}

/// The numbers of a space that a match covers.
fn range(m: PortMatch, space: Space) -> Option<(u16, u16)> {
    match (m, space) {
        (PortMatch::Tcp(a, b), Space::Tcp) | (PortMatch::Udp(a, b), Space::Udp) => Some((a, b)),
        (PortMatch::Icmp(a, b), Space::Icmp) | (PortMatch::Icmp6(a, b), Space::Icmp6) => {
            Some((a.into(), b.into()))
        }
        (PortMatch::Protocol(n), Space::Protocol) => Some((n.into(), n.into())),
        (PortMatch::Arp, Space::Arp) => Some((0, 0)),
        (PortMatch::Any, _) => Some((0, u16::MAX)),
        _ => None,
    }
}
