//! Writes a compiled policy into the maps and switches to it at once.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io, mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapError, lpm_trie::Key},
};
use enforcer_common::{
    limits,
    tables::{self, Party, Role, active},
};
use enforcer_policy::compile::{Compiled, PathNumbers, PrefixEntry};
use nix::time::{ClockId, clock_gettime};
use zerocopy::IntoBytes as _;

use super::{
    Kept, KernelError, Link, batch, hosts,
    kept::KeptPolicy,
    maps::{Owned, mapped, take},
    state::{
        Addresses, Block, Cell, Cgroups, Generation, Kernel, Networks, Settings, Slots, Word, Words,
    },
};

/// With this flag, the kernel accepts inner arrays of different sizes (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
/// With this flag, an array's elements begin at a page boundary (Linux 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_NO_PREALLOC: u32 = 1;

/// The inner maps of one generation: filled, but not in use yet.
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
            pending: mapped(bpf, "PENDING")?,
            epoch: 0,
            current: Generation::default(),
            fallback: None,
            slot_before: 0,
            settings: take(bpf, "SETTINGS")?,
            hosts: take(bpf, "HOSTS")?,
            networks: take(bpf, "NETWORKS")?,
            classes: take(bpf, "CLASSES")?,
            targets: take(bpf, "TARGETS")?,
            entries: take(bpf, "ENTRIES")?,
            related: take(bpf, "RELATED")?,
            cgroups: take(bpf, "CGROUPS")?,
        })
    }

    /// Writes a generation into a slot that is not in force. Updating a map in a map waits for all
    /// running programs; updating all of them in parallel takes as long as one.
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
            pending: _,
            epoch: _,
            current: _,
            fallback: _,
            slot_before: _,
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

    /// Puts the current generation in force and begins an epoch, so that programs discard cached
    /// results. A fallback gets a new epoch as well: what was cached under either policy must not
    /// apply under the other.
    ///
    /// A single store puts it in force: the next program sees all of it or nothing.
    fn publish(&mut self) -> Result<(), KernelError> {
        self.current.epoch = active::next(self.epoch);
        self.epoch = self.current.epoch;
        if let Some(fallback) = &mut self.fallback {
            fallback.epoch = active::next(self.epoch);
            self.epoch = fallback.epoch;
            let word = active::word(fallback.slot, fallback.upper_roles, fallback.epoch);
            self.pending_word(active::FALLBACK)?
                .store(word.into(), Ordering::Release);
        }
        self.store()
    }

    /// Writes the word that says what is in force.
    fn store(&self) -> Result<(), KernelError> {
        let word = self.active.u32(0).ok_or(KernelError::Missing("ACTIVE"))?;
        let Generation {
            slot,
            upper_roles,
            epoch,
            ..
        } = self.current;
        let pending = match self.fallback {
            Some(_) => active::PENDING,
            None => 0,
        };
        word.store(
            active::word(slot, upper_roles, epoch) | pending,
            Ordering::Release,
        );
        Ok(())
    }

    fn pending_word(&self, index: u32) -> Result<&AtomicU64, KernelError> {
        let word = self.pending.u64(index);
        word.ok_or(KernelError::Missing("PENDING"))
    }

    fn side(&mut self, side: Side) -> Option<&mut Generation> {
        match side {
            Side::InForce => Some(&mut self.current),
            Side::Fallback => self.fallback.as_mut(),
        }
    }
}

/// One of the two policies that the kernel holds while the last one is unconfirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The last policy.
    InForce,
    /// The one before it, which comes back into force after the deadline.
    Fallback,
}

/// The clock that programs compare a deadline with, in nanoseconds.
pub fn now() -> u64 {
    // Cannot fail for a clock that the kernel supports.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

/// A policy to put in force.
#[derive(Clone, Copy)]
pub struct NewPolicy<'a> {
    /// Its tables.
    pub compiled: &'a Compiled,
    /// The numbers of its paths.
    pub numbers: &'a PathNumbers,
    /// Its name.
    pub name: &'a str,
    /// The roles of interfaces under it.
    pub roles: &'a [(Link, Role)],
}

impl Kernel {
    /// Puts a policy in force, as the next generation. Every packet is judged entirely by the
    /// previous policy or entirely by this one.
    ///
    /// With `within`, the policy must be [confirmed](Self::confirm) within that time. Otherwise the
    /// programs go back to the previous policy by themselves.
    ///
    /// # Errors
    ///
    /// A map could not be created or filled, or the policy in force is not confirmed yet. What was
    /// in force stays in force.
    pub fn apply(
        &mut self,
        policy: NewPolicy<'_>,
        cgroups: &[(u64, Party)],
        within: Option<Duration>,
    ) -> Result<(), KernelError> {
        if self.slots.fallback.is_some() {
            return Err(KernelError::Unconfirmed {
                generation: self.generation(),
            });
        }
        let compiled = policy.compiled;
        // Never 0, which means no policy. A generation that was rolled back keeps its number, which
        // is not reused.
        let last = self.slots.current.number.max(self.kept.last);
        let number = last.checked_add(1).unwrap_or(1);
        let slots = &mut self.slots;
        let before = slots.current.addresses.as_ref();
        let addresses = match before.filter(|before| before.prefixes == compiled.prefixes) {
            Some(same) => Arc::clone(same),
            None => Arc::new(Addresses::of(&compiled.prefixes)?),
        };
        let filled = Filled::of(compiled, number, cgroups, addresses)?;
        let slot = active::free_slot(slots.current.slot, slots.slot_before);
        slots.fill(slot, &filled)?;
        // Before the switch: no program reads these of a slot that is not in force.
        if let Some(pinned) = &self.pinned {
            let instance = &pinned.instance;
            instance.pin_inner_map("SETTINGS", slot, filled.settings.map().fd())?;
            instance.pin_inner_map("CGROUPS", slot, filled.cgroups.map().fd())?;
        }
        let within = within.filter(|_| slots.current.number != 0);
        let deadline = within.map(|within| now() + within.as_nanos() as u64);
        // In the half that no program reads yet: roles change together with the policy.
        let upper_roles = !self.slots.current.upper_roles;
        for (link, role) in policy.roles {
            let word = link.role_word(*role);
            match self.attached.roles.set_half(link.index, upper_roles, word) {
                // A fault of that interface and not of the policy; reported when the interface is
                // attached.
                Ok(()) | Err(KernelError::NoRoomForInterface { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Before the switch: if the agent dies in between, the saved generation is not the one in
        // force, which shows. The numbers of paths only ever grow, so they are right in any case.
        self.keep(policy, number, deadline)?;
        let slots = &mut self.slots;
        let new = Generation {
            slot,
            upper_roles,
            epoch: 0,
            number,
            live: Some(filled.cgroups),
            parties: cgroups.iter().copied().collect(),
            addresses: Some(filled.addresses),
        };
        let before = mem::replace(&mut slots.current, new);
        slots.slot_before = before.slot;
        if let Some(deadline) = deadline {
            slots
                .pending_word(active::DEADLINE)?
                .store(deadline, Ordering::Release);
            slots.fallback = Some(before);
        }
        slots.publish()
    }

    /// When the programs fall back to the previous policy, by [`now`]; `None` if the policy in
    /// force is confirmed.
    pub fn deadline(&self) -> Option<u64> {
        self.slots.fallback.as_ref()?;
        Some(self.kept.deadline)
    }

    /// Moves the deadline.
    ///
    /// # Errors
    ///
    /// There is none, or it has passed.
    pub fn extend(&mut self, within: Duration) -> Result<(), KernelError> {
        self.is_in_time()?;
        let deadline = now() + within.as_nanos() as u64;
        self.slots
            .pending_word(active::DEADLINE)?
            .store(deadline, Ordering::Release);
        self.kept.deadline = deadline;
        self.write_kept()
    }

    /// Keeps the policy in force for good.
    ///
    /// # Errors
    ///
    /// It need not be confirmed, or the deadline has passed.
    pub fn confirm(&mut self) -> Result<(), KernelError> {
        self.is_in_time()?;
        self.slots.fallback = None;
        self.slots.store()?;
        self.kept.before = None;
        self.write_kept()
    }

    fn is_in_time(&self) -> Result<(), KernelError> {
        match self.deadline() {
            None => Err(KernelError::NothingToConfirm),
            Some(deadline) if now() >= deadline => Err(KernelError::TooLate {
                generation: self.generation(),
            }),
            Some(_) => Ok(()),
        }
    }

    /// Goes back to the previous policy, either now or because the programs have already done so.
    /// Returns whether there was one.
    ///
    /// # Errors
    ///
    /// The state cannot be saved. The previous policy is in force all the same.
    pub fn fall_back(&mut self) -> Result<bool, KernelError> {
        let slots = &mut self.slots;
        if slots.fallback.is_some() {
            // The programs switch in a single store, unless they have done so already.
            slots
                .pending_word(active::DEADLINE)?
                .store(0, Ordering::Release);
        }
        let Some(fallback) = slots.fallback.take() else {
            return Ok(false);
        };
        let given_up = mem::replace(&mut slots.current, fallback);
        slots.slot_before = given_up.slot;
        // With the epoch that the programs fell back with.
        slots.store()?;
        self.attached.fallback_roles.clear();
        if let Some(before) = self.kept.before.take() {
            self.kept.in_force = before;
        }
        self.write_kept()?;
        Ok(true)
    }

    /// Continues with the policy that a previous agent put in force, if it is the same. What is
    /// cached under its generation stays valid.
    ///
    /// # Errors
    ///
    /// The state cannot be saved.
    pub fn resume(&mut self, policy: NewPolicy<'_>) -> Result<bool, KernelError> {
        let adopted = self.pinned.as_ref().is_some_and(|pinned| pinned.adopted);
        let number = self.slots.current.number;
        let same = adopted
            && number != 0
            && number == self.kept.in_force.generation
            && self.kept.in_force.fingerprint == fingerprint(policy.compiled);
        if same {
            self.kept.version = env!("CARGO_PKG_VERSION").to_owned();
            self.kept.names = policy.numbers.names().to_vec();
            self.write_kept()?;
        }
        Ok(same)
    }

    fn keep(
        &mut self,
        policy: NewPolicy<'_>,
        generation: u32,
        deadline: Option<u64>,
    ) -> Result<(), KernelError> {
        let NewPolicy {
            compiled,
            numbers,
            name,
            roles: _,
        } = policy;
        let mut new = KeptPolicy {
            generation,
            fingerprint: fingerprint(compiled),
            policy: name.to_owned(),
            node: compiled.node.clone(),
            dry_run: compiled.settings.dry_run != 0,
            since: 0,
        };
        new.set_since(SystemTime::now());
        let kept = Kept {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            netns: self.kept.netns,
            names: numbers.names().to_vec(),
            before: deadline.map(|_| self.kept.in_force.clone()),
            in_force: new,
            deadline: deadline.unwrap_or(0),
            last: generation,
            evicted: self.kept.evicted,
        };
        if let Some(pinned) = &self.pinned {
            pinned.store.write(&kept)?;
        }
        self.kept = kept;
        Ok(())
    }

    fn write_kept(&self) -> Result<(), KernelError> {
        match &self.pinned {
            Some(pinned) => pinned.store.write(&self.kept),
            None => Ok(()),
        }
    }

    /// The generation in force; 0 for none.
    pub fn generation(&self) -> u32 {
        self.slots.current.number
    }

    /// What is saved about the policy in force.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Where all this is pinned; `None` if it ends with this process.
    pub fn pinned_at(&self) -> Option<&Path> {
        let pinned = self.pinned.as_ref()?;
        Some(pinned.instance.path())
    }

    /// Adds to the number of denials whose records were removed.
    pub fn count_evicted(&mut self, count: u64) {
        self.kept.evicted += count;
        // If this write fails, the next one includes the count.
        let _ = self.write_kept();
    }

    /// The cgroups of the policy on that side; `None` if there is no policy.
    pub fn cgroups(&self, side: Side) -> Option<&HashMap<u64, Party>> {
        match side {
            Side::InForce => Some(&self.slots.current.parties),
            Side::Fallback => self.slots.fallback.as_ref().map(|side| &side.parties),
        }
    }

    /// Adds a cgroup that appeared after its policy was applied.
    ///
    /// # Errors
    ///
    /// The map is full.
    pub fn learn_cgroup(&mut self, side: Side, id: u64, party: Party) -> Result<(), KernelError> {
        let Some(generation) = self.slots.side(side) else {
            return Ok(());
        };
        let Some(live) = &mut generation.live else {
            return Ok(());
        };
        live.insert(id, u32::from(party), 0)
            .map_err(KernelError::map("add a cgroup"))?;
        generation.parties.insert(id, party);
        // Results for sockets of this cgroup may be cached.
        self.slots.publish()
    }

    /// Removes a cgroup that is gone, since another one may get the same id.
    ///
    /// # Errors
    ///
    /// The kernel does not remove it.
    pub fn forget_cgroup(&mut self, side: Side, id: u64) -> Result<(), KernelError> {
        let Some(generation) = self.slots.side(side) else {
            return Ok(());
        };
        let Some(live) = &mut generation.live else {
            return Ok(());
        };
        match live.remove(&id) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(KernelError::map("take out a cgroup")(error)),
        }
        generation.parties.remove(&id);
        self.slots.publish()
    }
}

/// Distinguishes compiled policies. Another version of this program's compiler may compute another
/// number; then the same policy is put in force once more.
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
            // Starts at a page boundary, so that each bucket lies in one cache line.
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

/// An array sized to its elements.
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

/// A map has at least one element. The compiler keeps the count within the limits, which fit a
/// `u32`.
fn fitting(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}
