//! A compiled policy into the maps, all at once.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread,
    time::SystemTime,
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapError, lpm_trie::Key},
};
use enforcer_common::{
    limits,
    tables::{self, Party, active},
};
use enforcer_policy::compile::{Compiled, PathNumbers, PrefixEntry};
use zerocopy::IntoBytes as _;

use super::{
    Kept, KernelError, batch, hosts,
    maps::{Owned, mapped, take},
    state::{Addresses, Block, Cell, Cgroups, Kernel, Networks, Settings, Slots, Word, Words},
};

/// The kernel takes inner arrays of different sizes if they are made with this flag (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// An array's elements begin with a page if it is made with this flag (Linux 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_NO_PREALLOC: u32 = 1;

/// The inner maps of one generation, filled and not in use yet.
struct Filled {
    settings: Array<Owned, Settings>,
    addresses: Arc<Addresses>,
    classes: Array<Owned, Block>,
    targets: Words,
    entries: Array<Owned, Cell>,
    related: Words,
    cgroups: Cgroups,
}

impl Slots {
    pub(super) fn take(bpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            active: mapped(bpf, "ACTIVE")?,
            slot: 0,
            epoch: 0,
            generation: 0,
            settings: take(bpf, "SETTINGS")?,
            hosts: take(bpf, "HOSTS")?,
            networks: take(bpf, "NETWORKS")?,
            classes: take(bpf, "CLASSES")?,
            targets: take(bpf, "TARGETS")?,
            entries: take(bpf, "ENTRIES")?,
            related: take(bpf, "RELATED")?,
            cgroups: take(bpf, "CGROUPS")?,
            live: None,
            parties: HashMap::new(),
            addresses: None,
        })
    }

    /// Puts a generation into a slot that is not in force. An update of a map in a map waits for all
    /// programs that run; all of them at once wait as long as one.
    fn fill(&mut self, slot: u32, filled: &Filled) -> Result<(), KernelError> {
        let Self {
            settings,
            hosts,
            networks,
            classes,
            targets,
            entries,
            related,
            cgroups,
            active: _,
            slot: _,
            epoch: _,
            generation: _,
            live: _,
            parties: _,
            addresses: _,
        } = self;
        let outcomes = thread::scope(|scope| {
            [
                scope.spawn(|| settings.set(slot, &filled.settings, 0)),
                scope.spawn(|| hosts.set(slot, &filled.addresses.hosts, 0)),
                scope.spawn(|| networks.set(slot, &filled.addresses.networks, 0)),
                scope.spawn(|| classes.set(slot, &filled.classes, 0)),
                scope.spawn(|| targets.set(slot, &filled.targets, 0)),
                scope.spawn(|| entries.set(slot, &filled.entries, 0)),
                scope.spawn(|| related.set(slot, &filled.related, 0)),
                scope.spawn(|| cgroups.set(slot, &filled.cgroups, 0)),
            ]
            .map(|update| update.join())
        });
        for outcome in outcomes {
            outcome
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(KernelError::map("put the new policy into its slot"))?;
        }
        Ok(())
    }

    /// Puts a slot in force, and begins an epoch: what programs have found out so far is found out anew.
    ///
    /// One store: the next program sees all of it or nothing.
    fn switch(&mut self, slot: u32) -> Result<(), KernelError> {
        let word = self.active.u32(0).ok_or(KernelError::Missing("ACTIVE"))?;
        let epoch = active::next(self.epoch);
        word.store(active::word(slot, epoch), Ordering::Release);
        (self.slot, self.epoch) = (slot, epoch);
        Ok(())
    }
}

/// A policy as it is put in force.
#[derive(Clone, Copy)]
pub struct NewPolicy<'a> {
    /// Its tables.
    pub compiled: &'a Compiled,
    /// The numbers of its paths.
    pub numbers: &'a PathNumbers,
    /// Its name.
    pub name: &'a str,
}

impl Kernel {
    /// Puts a policy in force, as the next generation. Every packet is judged wholly by the one before or wholly by this
    /// one.
    ///
    /// # Errors
    ///
    /// A map could not be made or filled; what was in force stays in force.
    pub fn apply(
        &mut self,
        policy: NewPolicy<'_>,
        cgroups: &[(u64, Party)],
    ) -> Result<(), KernelError> {
        let compiled = policy.compiled;
        // Never 0, which is no policy.
        let generation = self.slots.generation.checked_add(1).unwrap_or(1);
        let slots = &mut self.slots;
        let before = slots.addresses.as_ref();
        let addresses = match before.filter(|before| before.prefixes == compiled.prefixes) {
            Some(same) => Arc::clone(same),
            None => Arc::new(Addresses::of(&compiled.prefixes)?),
        };
        let filled = Filled::of(compiled, generation, cgroups, addresses)?;
        let slot = active::slot(generation);
        slots.fill(slot, &filled)?;
        // Before the switch: should the agent die between, what is kept is of a generation that is not in force, and
        // says so. The numbers of paths only ever grow, so they are right in any case.
        self.keep(policy, generation)?;
        let slots = &mut self.slots;
        slots.switch(slot)?;
        slots.generation = generation;
        slots.live = Some(filled.cgroups);
        slots.parties = cgroups.iter().copied().collect();
        slots.addresses = Some(filled.addresses);
        Ok(())
    }

    /// Goes on with the policy in force that an agent before this one put there, if it is the same. So what is remembered
    /// under its generation goes on, too.
    ///
    /// # Errors
    ///
    /// What is to be kept can not be written.
    pub fn resume(&mut self, policy: NewPolicy<'_>) -> Result<bool, KernelError> {
        let adopted = self.pinned.as_ref().is_some_and(|pinned| pinned.adopted);
        let generation = self.slots.generation;
        let same = adopted
            && generation != 0
            && generation == self.kept.generation
            && self.kept.fingerprint == fingerprint(policy.compiled);
        if same {
            let since = self.kept.since;
            self.keep(policy, generation)?;
            self.kept.since = since;
            self.write_kept()?;
        }
        Ok(same)
    }

    fn keep(&mut self, policy: NewPolicy<'_>, generation: u32) -> Result<(), KernelError> {
        let NewPolicy {
            compiled,
            numbers,
            name,
        } = policy;
        self.kept = Kept {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            netns: self.kept.netns,
            names: numbers.names().to_vec(),
            generation,
            fingerprint: fingerprint(compiled),
            policy: name.to_owned(),
            node: compiled.node.clone(),
            dry_run: compiled.settings.dry_run != 0,
            since: 0,
            evicted: self.kept.evicted,
        };
        self.kept.set_since(SystemTime::now());
        self.write_kept()
    }

    fn write_kept(&self) -> Result<(), KernelError> {
        match &self.pinned {
            Some(pinned) => pinned.store.write(&self.kept),
            None => Ok(()),
        }
    }

    /// The generation in force; 0 for none.
    pub fn generation(&self) -> u32 {
        self.slots.generation
    }

    /// What is kept of the policy in force.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Where all this is pinned; nothing where it ends with this process.
    pub fn pinned_at(&self) -> Option<&Path> {
        let pinned = self.pinned.as_ref()?;
        Some(pinned.instance.path())
    }

    /// Adds to the denials whose records were removed.
    pub fn count_evicted(&mut self, count: u64) {
        self.kept.evicted += count;
        // What can not be written now is written with the next one.
        let _ = self.write_kept();
    }

    /// The cgroups that the policy in force knows.
    pub fn cgroups(&self) -> &HashMap<u64, Party> {
        &self.slots.parties
    }

    /// Adds a cgroup that came to be after its policy was applied.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn learn_cgroup(&mut self, id: u64, party: Party) -> Result<(), KernelError> {
        let Some(live) = &mut self.slots.live else {
            return Ok(());
        };
        live.insert(id, u32::from(party), 0)
            .map_err(KernelError::map("add a cgroup"))?;
        self.slots.parties.insert(id, party);
        // Sockets of this cgroup may have been asked for before.
        self.slots.switch(self.slots.slot)
    }

    /// Forgets a cgroup of the policy in force that is gone: its id may come back as another one's.
    ///
    /// # Errors
    ///
    /// The kernel does not take it out.
    pub fn forget_cgroup(&mut self, id: u64) -> Result<(), KernelError> {
        let Some(live) = &mut self.slots.live else {
            return Ok(());
        };
        match live.remove(&id) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(KernelError::map("take out a cgroup")(error)),
        }
        self.slots.parties.remove(&id);
        self.slots.switch(self.slots.slot)
    }
}

/// Tells one compiled policy from another. Another version of the compiler of this program may compute another number, and
/// then the same policy is put in force once more.
fn fingerprint(compiled: &Compiled) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(compiled.settings.as_bytes());
    hasher.write(compiled.classes.as_bytes());
    hasher.write(compiled.targets.as_bytes());
    hasher.write(compiled.entries.as_bytes());
    hasher.write(compiled.related.as_bytes());
    for PrefixEntry {
        network,
        length,
        info,
    } in compiled.prefixes.iter()
    {
        (network, length, info).hash(&mut hasher);
    }
    compiled.paths.hash(&mut hasher);
    hasher.finish()
}

impl Addresses {
    fn of(prefixes: &Arc<[PrefixEntry]>) -> Result<Self, KernelError> {
        let (table, networks) = hosts::split(prefixes);
        Ok(Self {
            prefixes: Arc::clone(prefixes),
            // From the beginning of a page on, so that each bucket is in one cache line.
            hosts: array_with(BPF_F_INNER_MAP | BPF_F_MMAPABLE, table.buckets.as_bytes())?,
            first_v4: table.first_v4,
            first_v6: table.first_v6,
            has_networks: !networks.is_empty(),
            networks: trie(&networks)?,
        })
    }
}

impl Filled {
    fn of(
        compiled: &Compiled,
        generation: u32,
        cgroups: &[(u64, Party)],
        addresses: Arc<Addresses>,
    ) -> Result<Self, KernelError> {
        let max = limits::MAX_CGROUPS;
        if cgroups.len() > max as usize {
            return Err(KernelError::TooManyCgroups {
                count: cgroups.len(),
                max,
            });
        }
        let settings = tables::Settings {
            generation,
            v4_buckets: addresses.first_v4,
            v6_buckets: addresses.first_v6,
            networks: addresses.has_networks.into(),
            ..compiled.settings
        };
        let mut map = Cgroups::create(max, BPF_F_NO_PREALLOC)
            .map_err(KernelError::map("create the map of cgroups"))?;
        for (id, party) in cgroups {
            map.insert(id, u32::from(*party), 0)
                .map_err(KernelError::map("write the cgroups"))?;
        }
        Ok(Self {
            settings: array_with(0, settings.as_bytes())?,
            addresses,
            classes: array_with(0, compiled.classes.as_bytes())?,
            targets: array(compiled.targets.as_bytes())?,
            entries: array(compiled.entries.as_bytes())?,
            related: array(compiled.related.as_bytes())?,
            cgroups: map,
        })
    }
}

fn trie(networks: &[&PrefixEntry]) -> Result<Networks, KernelError> {
    let mut map = Networks::create(fitting(networks.len()), BPF_F_NO_PREALLOC)
        .map_err(KernelError::map("create the map of networks"))?;
    for entry in networks {
        let value: Word = zerocopy::transmute!(entry.info);
        map.insert(&Key::new(entry.length, entry.network.0), value, 0)
            .map_err(KernelError::map("write the networks"))?;
    }
    Ok(map)
}

/// An array of its own size.
fn array<const N: usize>(elements: &[u8]) -> Result<Array<Owned, [u8; N]>, KernelError> {
    array_with(BPF_F_INNER_MAP, elements)
}

fn array_with<const N: usize>(
    flags: u32,
    elements: &[u8],
) -> Result<Array<Owned, [u8; N]>, KernelError> {
    let array = Array::create(fitting(elements.len() / N), flags)
        .map_err(KernelError::map("create a table of the policy"))?;
    batch::fill(array.map(), elements).map_err(|source| KernelError::System {
        action: "write a table of the policy",
        source,
    })?;
    Ok(array)
}

/// A map has at least one element. The compiler keeps within the limits, which fit.
fn fitting(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}
