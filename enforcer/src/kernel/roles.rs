//! The table of interfaces ([`enforcer_common::interfaces`]) and its contents.

use std::collections::HashMap;

use aya::{Ebpf, maps::Array};
use enforcer_common::{interfaces, tables::Role};

use super::{
    KernelError,
    maps::{Owned, take},
};

/// The kernel's table, and a copy of it.
pub(super) struct Roles {
    map: Array<Owned, u64>,
    elements: HashMap<u32, u64>,
}

impl Roles {
    /// Takes the programs' table, with what a previous agent wrote there.
    pub(super) fn take(bpf: &mut Ebpf, adopted: bool) -> Result<Self, KernelError> {
        let map: Array<Owned, u64> = take(bpf, "INTERFACES")?;
        let mut elements = HashMap::new();
        if adopted {
            for place in 0..interfaces::SLOTS {
                let element = map.get(&place, 0);
                let element = element.map_err(KernelError::map("read the roles of interfaces"))?;
                if element != 0 {
                    elements.insert(place, element);
                }
            }
        }
        Ok(Self { map, elements })
    }

    /// The interfaces that have a role.
    pub(super) fn interfaces(&self) -> Vec<u32> {
        let there = self.elements.values();
        let there = there.filter(|element| !matches!(**element, 0 | interfaces::GONE));
        there.map(|element| *element as u32).collect()
    }

    /// Sets the role of an interface under one generation, as its word. The other half stays as it
    /// is.
    pub(super) fn set_half(
        &mut self,
        interface: u32,
        upper: bool,
        word: u32,
    ) -> Result<(), KernelError> {
        let roles = interfaces::role(interface, |slot| self.element(slot));
        self.set(interface, Role::with_half(roles, upper, word))
    }

    /// Sets both roles of an interface.
    pub(super) fn set(&mut self, interface: u32, role: u32) -> Result<(), KernelError> {
        let Some(slot) = interfaces::slot(interface, |slot| self.element(slot)) else {
            return Err(KernelError::NoRoomForInterface { index: interface });
        };
        let element = interfaces::element(interface, role);
        if self.element(slot) == element {
            return Ok(());
        }
        self.write(slot, element)
    }

    /// Removes both roles of an interface.
    pub(super) fn remove(&mut self, interface: u32) -> Result<(), KernelError> {
        let mut slots = interfaces::slots(interface);
        match slots.find(|slot| self.element(*slot) as u32 == interface) {
            Some(slot) => self.write(slot, interfaces::GONE),
            None => Ok(()),
        }
    }

    fn element(&self, slot: u32) -> u64 {
        self.elements.get(&slot).copied().unwrap_or(0)
    }

    fn write(&mut self, slot: u32, element: u64) -> Result<(), KernelError> {
        self.map
            .set(slot, element, 0)
            .map_err(KernelError::map("write an interface's role"))?;
        self.elements.insert(slot, element);
        Ok(())
    }
}
