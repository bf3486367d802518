//! A compiled policy into the maps, all at once.

use std::{io, thread};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapError, lpm_trie::Key},
};
use enforcer_common::{
    hosts::Bucket,
    limits,
    tables::{CLASSES_PER_BLOCK, Party},
    verdict::Verdict,
};
use zerocopy::IntoBytes as _;

use super::{
    Kernel, KernelError, hosts,
    load::{Owned, take},
};
use crate::compile::{Compiled, PrefixEntry};

type Word = [u8; 4];
type Settings = [u8; size_of::<enforcer_common::tables::Settings>()];
type Block = [u8; 2 * CLASSES_PER_BLOCK];
type Cell = [u8; 8];
type Words = Array<Owned, Word>;
type Cgroups = HashMap<Owned, u64, u32>;
type Hosts = Array<Owned, [u8; size_of::<Bucket>()]>;
type Places = LpmTrie<Owned, [u8; 16], [u8; 4]>;

/// The kernel takes inner arrays of different sizes if they are made with this flag (Linux 5.10).
const BPF_F_INNER_MAP: u32 = 1 << 12;
const BPF_F_NO_PREALLOC: u32 = 1;

/// Both slots, the number of the one in force, and the live map of cgroups.
pub(super) struct Slots {
    active: Words,
    settings: ArrayOfMaps<Owned, Array<Owned, Settings>>,
    hosts: ArrayOfMaps<Owned, Hosts>,
    places: ArrayOfMaps<Owned, Places>,
    classes: ArrayOfMaps<Owned, Array<Owned, Block>>,
    targets: ArrayOfMaps<Owned, Words>,
    entries: ArrayOfMaps<Owned, Array<Owned, Cell>>,
    related: ArrayOfMaps<Owned, Words>,
    cgroups: ArrayOfMaps<Owned, Cgroups>,
    live: Option<Cgroups>,
}

/// The inner maps of one generation, filled and not in use yet.
struct Filled {
    settings: Array<Owned, Settings>,
    hosts: Hosts,
    places: Places,
    classes: Array<Owned, Block>,
    targets: Words,
    entries: Array<Owned, Cell>,
    related: Words,
    cgroups: Cgroups,
}

impl Slots {
    pub(super) fn take(bpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            active: take(bpf, "ACTIVE")?,
            settings: take(bpf, "SETTINGS")?,
            hosts: take(bpf, "HOSTS")?,
            places: take(bpf, "PLACES")?,
            classes: take(bpf, "CLASSES")?,
            targets: take(bpf, "TARGETS")?,
            entries: take(bpf, "ENTRIES")?,
            related: take(bpf, "RELATED")?,
            cgroups: take(bpf, "CGROUPS")?,
            live: None,
        })
    }

    /// Puts a generation into a slot that is not in force. An update of a map in a map waits for all
    /// programs that run; all of them at once wait as long as one.
    fn fill(&mut self, slot: u32, filled: &Filled) -> Result<(), KernelError> {
        let Self {
            settings,
            hosts,
            places,
            classes,
            targets,
            entries,
            related,
            cgroups,
            active: _,
            live: _,
        } = self;
        let outcomes = thread::scope(|scope| {
            [
                scope.spawn(|| settings.set(slot, &filled.settings, 0)),
                scope.spawn(|| hosts.set(slot, &filled.hosts, 0)),
                scope.spawn(|| places.set(slot, &filled.places, 0)),
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
}

impl Kernel {
    /// Puts a policy in force. Every packet is judged wholly by the one before or wholly by this
    /// one. `generation` counts up and is never 0.
    ///
    /// # Errors
    ///
    /// A map could not be made or filled; what was in force stays in force.
    pub fn apply(
        &mut self,
        compiled: &Compiled,
        generation: u32,
        cgroups: &[(u64, Party)],
    ) -> Result<(), KernelError> {
        let filled = Filled::of(compiled, generation, cgroups)?;
        let slot = generation & 1;
        let slots = &mut self.slots;
        slots.fill(slot, &filled)?;
        let word = slot.to_ne_bytes();
        slots
            .active
            .set(0, word, 0)
            .map_err(KernelError::map("switch to the new policy"))?;
        slots.live = Some(filled.cgroups);
        // A program may have read the old number just now and still work on the old slot, which the
        // next policy is going to fill. An update of a map in a map returns only when all programs
        // that ran at its time have ended (1ae80cf31938, Linux 4.19), so one that changes nothing
        // is a wait for them. The policy is in force, whatever becomes of this.
        let _ = slots.settings.set(slot, &filled.settings, 0);
        Ok(())
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
            .map_err(KernelError::map("add a cgroup"))
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
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(KernelError::map("take out a cgroup")(error)),
        }
    }
}

impl Filled {
    fn of(
        compiled: &Compiled,
        generation: u32,
        cgroups: &[(u64, Party)],
    ) -> Result<Self, KernelError> {
        let max = limits::MAX_CGROUPS;
        if cgroups.len() > max as usize {
            return Err(KernelError::TooManyCgroups {
                count: cgroups.len(),
                max,
            });
        }
        let made = KernelError::map("create a map for the new policy");
        let (hosts, prefixes) = hosts::split(&compiled.prefixes);
        let mut settings_map = Array::create(1, 0).map_err(&made)?;
        let mut settings = compiled.settings;
        settings.generation = generation;
        settings.host_buckets = hosts.first_buckets;
        settings.networks = u32::from(!prefixes.is_empty());
        let bytes: Settings = zerocopy::transmute!(settings);
        settings_map
            .set(0, bytes, 0)
            .map_err(KernelError::map("write the settings"))?;
        let classes = compiled
            .classes
            .chunks_exact(CLASSES_PER_BLOCK)
            .map(|block| {
                let mut bytes: Block = [0; 2 * CLASSES_PER_BLOCK];
                bytes.copy_from_slice(block.as_bytes());
                bytes
            });
        let words = |words: &[u32]| array(words.iter().map(|word| word.to_ne_bytes()));
        let cell = |verdicts: &[Verdict; 2]| zerocopy::transmute!(*verdicts);
        let mut map = Cgroups::create(max, BPF_F_NO_PREALLOC).map_err(&made)?;
        for (id, party) in cgroups {
            map.insert(id, u32::from(*party), 0)
                .map_err(KernelError::map("write the cgroups"))?;
        }
        Ok(Self {
            settings: settings_map,
            hosts: array(
                hosts
                    .buckets
                    .iter()
                    .map(|bucket| zerocopy::transmute!(*bucket)),
            )?,
            places: networks(prefixes.into_iter())?,
            classes: array(classes)?,
            targets: words(&compiled.targets)?,
            entries: array(compiled.entries.iter().map(cell))?,
            related: words(&compiled.related)?,
            cgroups: map,
        })
    }
}

fn networks<'a>(
    networks: impl ExactSizeIterator<Item = &'a PrefixEntry>,
) -> Result<Places, KernelError> {
    let mut places = Places::create(fitting(networks.len()), BPF_F_NO_PREALLOC)
        .map_err(KernelError::map("create the map of networks"))?;
    for entry in networks {
        let value: [u8; 4] = zerocopy::transmute!(entry.place);
        places
            .insert(&Key::new(entry.length, entry.network.0), value, 0)
            .map_err(KernelError::map("write the networks"))?;
    }
    Ok(places)
}

fn array<const N: usize>(
    values: impl ExactSizeIterator<Item = [u8; N]>,
) -> Result<Array<Owned, [u8; N]>, KernelError> {
    let mut array = Array::create(fitting(values.len()), BPF_F_INNER_MAP)
        .map_err(KernelError::map("create a table of the policy"))?;
    for (index, value) in (0..).zip(values) {
        array
            .set(index, value, 0)
            .map_err(KernelError::map("write a table of the policy"))?;
    }
    Ok(array)
}

/// A map has at least one element. The compiler keeps within the limits, which fit.
fn fitting(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}
