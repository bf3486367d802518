//! The tables in userspace: `explain`, cases and tests run the decision on them.

use std::{cell::RefCell, collections::HashMap};

use enforcer_common::{
    addr::Ip,
    packet::PortKind,
    tables::{
        AddressInfo, CLASSES_PER_BLOCK, DECLARED_PORT, FlowKey, Memory, Party, Settings, Tables,
        class_block,
    },
    verdict::Verdict,
};

use super::{cgroups, tables::Compiled};

/// One generation of a policy, with its own memory of UDP flows and of translated connections.
pub struct Simulator<'a> {
    compiled: &'a Compiled,
    flows: RefCell<HashMap<FlowKey, Memory>>,
    translated: RefCell<HashMap<FlowKey, u16>>,
}

impl<'a> Simulator<'a> {
    /// A simulator of these tables. Cheap: the agent creates one for each batch of denials.
    pub fn new(compiled: &'a Compiled) -> Self {
        Self {
            compiled,
            flows: RefCell::default(),
            translated: RefCell::default(),
        }
    }

    /// The tables.
    pub const fn compiled(&self) -> &'a Compiled {
        self.compiled
    }

    /// The party of processes in a cgroup, given below the node's cgroup root: that of the deepest
    /// declared cgroup above it.
    pub fn party_of_cgroup(&self, path: &str) -> Party {
        match cgroups::rule_for(&self.compiled.cgroups, path) {
            Some(rule) => rule.party,
            // A party number, which the kernel stores as a wider word.
            None => self.compiled.settings.undeclared_process as Party,
        }
    }
}

impl Tables for Simulator<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.compiled.settings)
    }

    fn address_info(&self, addr: &Ip) -> AddressInfo {
        let Compiled {
            prefixes,
            prefix_lengths,
            ..
        } = self.compiled;
        let found = prefix_lengths.iter().find_map(|length| {
            let wanted = (truncated(addr, *length), *length);
            let found = prefixes.binary_search_by_key(&wanted, |e| (e.network, e.length));
            found.ok().and_then(|at| prefixes.get(at)).map(|e| e.info)
        });
        found.unwrap_or(AddressInfo::UNKNOWN)
    }

    fn class(&self, port_kind: PortKind, number: u16) -> Option<u16> {
        let block = class_block(port_kind, number) as usize * CLASSES_PER_BLOCK;
        self.compiled
            .classes
            .get(block + usize::from(number as u8))
            .copied()
    }

    fn target(&self, settings: &Settings, at: Party, class: u16) -> Option<u16> {
        let index = u32::from(at) * settings.classes + u32::from(class);
        // The number is below MAX_TARGETS.
        self.compiled
            .targets
            .get(index as usize)
            .map(|target| *target as u16)
    }

    fn declares(&self, settings: &Settings, at: Party, class: u16) -> bool {
        let index = u32::from(at) * settings.classes + u32::from(class);
        let word = self.compiled.targets.get(index as usize);
        word.is_some_and(|word| word & DECLARED_PORT != 0)
    }

    fn entry(&self, settings: &Settings, from: Party, target: u16) -> Option<Verdict> {
        let index = u32::from(from) * settings.targets + u32::from(target);
        self.compiled
            .entries
            .get(index as usize)
            .map(|[packet, _]| *packet)
    }

    fn bind_entry(&self, settings: &Settings, by: Party, target: u16) -> Option<Verdict> {
        let index = u32::from(by) * settings.targets + u32::from(target);
        self.compiled
            .entries
            .get(index as usize)
            .map(|[_, bind]| *bind)
    }

    fn related(&self, settings: &Settings, a: Party, b: Party) -> bool {
        let index = u32::from(a) * settings.parties + u32::from(b);
        self.compiled
            .related
            .get(index as usize)
            .is_some_and(|related| *related != 0)
    }

    fn remembered(&self, flow: &FlowKey) -> Option<Memory> {
        self.flows.borrow().get(flow).copied()
    }

    fn remember(&self, flow: &FlowKey, memory: Memory) {
        self.flows.borrow_mut().insert(*flow, memory);
    }

    fn translated(&self, _: &Settings, flow: &FlowKey) -> Option<u16> {
        self.translated.borrow().get(flow).copied()
    }

    fn remember_translated(&self, _: &Settings, flow: &FlowKey, path: u16) {
        self.translated.borrow_mut().insert(*flow, path);
    }
}

fn truncated(addr: &Ip, length: u32) -> Ip {
    let mask = match length {
        0 => 0,
        length => u128::MAX << (128 - length.min(128)),
    };
    Ip((u128::from_be_bytes(addr.0) & mask).to_be_bytes())
}
