//! What a previous agent left pinned, and what this agent adopts of it.

use aya::maps::{Array, HashMap, Map};
use enforcer_common::tables::{self, active};

use super::{
    Kept, KernelError, Pins,
    kept::{self, Store},
    layout,
    maps::Owned,
    pins::{Instance, PinsLock},
    state::{Generation, Pinned, Slots},
};

/// What is pinned, locked for this process before anything is loaded.
pub struct PinnedState {
    pins: Pins,
    lock: PinsLock,
    adopted: Option<(Instance, Store)>,
    others: Vec<Instance>,
    kept: Kept,
}

/// The instance to load into, and what is adopted.
pub(super) struct Target {
    pub(super) lock: PinsLock,
    pub(super) instance: Instance,
    /// `None` for a new instance.
    pub(super) store: Option<Store>,
    pub(super) others: Vec<Instance>,
}

impl PinnedState {
    /// Looks for pins, and creates the directory unless it exists. `netns` is the cookie of this
    /// network namespace.
    ///
    /// # Errors
    ///
    /// Nothing can be pinned there, or the pinned programs enforce in another network namespace.
    pub fn find(pins: &Pins) -> Result<Self, KernelError> {
        pins.prepare()?;
        let lock = pins.lock()?;
        let netns = super::netns::netns_cookie()?;
        let (mut adopted, mut others, mut newest) = (None, Vec::new(), None);
        for instance in pins.instances() {
            let store = Store::open(&instance.map(kept::NAME)).ok();
            let found = store.and_then(|store| Some((store.read()?, store)));
            let Some((kept, store)) = found else {
                // An agent died while starting, or somebody removed a pin.
                others.push(instance);
                continue;
            };
            if kept.netns != netns {
                return Err(KernelError::PinsElsewhere {
                    path: pins.root().to_owned(),
                });
            }
            newest.get_or_insert(kept);
            if adopted.is_none() && instance.layout() == layout::DIGEST && is_whole(&instance) {
                adopted = Some((instance, store));
            } else {
                others.push(instance);
            }
        }
        let kept = Kept {
            netns,
            ..newest.unwrap_or_default()
        };
        Ok(Self {
            pins: pins.clone(),
            lock,
            adopted,
            others,
            kept,
        })
    }

    /// The saved state of the instance to adopt. Paths have their numbers from it.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// A description for the log; `None` if nothing was pinned.
    pub fn describe(&self) -> Option<String> {
        let version = enforcer_policy::text::shown(&self.kept.version);
        let generation = self.kept.in_force.generation;
        if self.adopted.is_some() {
            Some(format!(
                "takes over from enforcer {version}: generation {generation} was enforced meanwhile"
            ))
        } else if !self.others.is_empty() {
            Some(format!(
                "takes over from enforcer {version}, whose maps have another layout or are not whole: its programs are \
                 replaced one by one, and counters and records begin anew"
            ))
        } else {
            None
        }
    }

    /// The instance to work on: the adopted one, or a new one.
    pub(super) fn target(self) -> Result<(Target, Kept), KernelError> {
        let Self {
            pins,
            lock,
            adopted,
            others,
            kept,
        } = self;
        let (instance, store) = match adopted {
            Some((instance, store)) => (instance, Some(store)),
            None => (pins.add(layout::DIGEST)?, None),
        };
        let target = Target {
            lock,
            instance,
            store,
            others,
        };
        Ok((target, kept))
    }
}

impl Pins {
    /// What the owner of these pins saved; `None` if it saved nothing, or nothing readable.
    pub fn kept(&self) -> Option<Kept> {
        let mut instances = self.instances().into_iter();
        instances.find_map(|instance| Store::open(&instance.map(kept::NAME)).ok()?.read())
    }
}

/// Whether all maps exist and are of the kind that this version creates. The names alone could be
/// another program's.
fn is_whole(instance: &Instance) -> bool {
    layout::maps().all(|expected| {
        let Ok(map) = Owned::from_pin(instance.map(expected.name)) else {
            return false;
        };
        map.info().is_ok_and(|info| {
            info.map_type()
                .is_ok_and(|kind| kind as u32 == expected.kind)
                && info.key_size() == expected.key
                && info.value_size() == expected.value
                && info.max_entries() == expected.entries
        })
    })
}

impl Pinned {
    /// With the map of the agent's state, which is created for a new instance: an instance without
    /// it is incomplete.
    pub(super) fn new(target: Target) -> Result<Self, KernelError> {
        let Target {
            lock,
            instance,
            store,
            others,
        } = target;
        let adopted = store.is_some();
        let store = match store {
            Some(store) => store,
            None => Store::create(&instance.map(kept::NAME))?,
        };
        Ok(Self {
            instance,
            store,
            others,
            adopted,
            _lock: lock,
        })
    }
}

impl Slots {
    /// Reads back what is in force, and what would come into force without an agent.
    pub(super) fn read_back(&mut self, instance: &Instance) -> Result<(), KernelError> {
        let word = self.active.u32(0).ok_or(KernelError::Missing("ACTIVE"))?;
        let word = word.load(std::sync::atomic::Ordering::Acquire);
        if active::parts(word).1 == 0 {
            // An agent died before it put anything in force.
            return Ok(());
        }
        self.current = self.generation(word, instance)?;
        self.epoch = self.current.epoch;
        self.slot_before = (self.current.slot + 1) % active::SLOTS;
        if word & active::PENDING != 0 {
            let fallback = self.pending.u64(active::FALLBACK);
            let fallback = fallback.ok_or(KernelError::Missing("PENDING"))?;
            let word = fallback.load(std::sync::atomic::Ordering::Acquire) as u32;
            let fallback = self.generation(word, instance)?;
            (self.epoch, self.slot_before) = (fallback.epoch, fallback.slot);
            self.fallback = Some(fallback);
        }
        Ok(())
    }

    /// The generation that a word of `ACTIVE` refers to.
    fn generation(&self, word: u32, instance: &Instance) -> Result<Generation, KernelError> {
        let failed = || KernelError::map("read what is in force");
        let (slot, epoch) = active::parts(word);
        let pinned = |name| Owned::from_pin(instance.inner_map(name, slot));
        let settings = match pinned("SETTINGS") {
            Ok(map) => Array::try_from(Map::Array(map)),
            // Its pin was removed. Opening the map this way takes more privileges than an agent
            // otherwise needs.
            Err(_) => self.settings.get(&slot, 0),
        };
        let settings = settings.map_err(failed())?;
        let settings: tables::Settings =
            zerocopy::transmute!(settings.get(&0, 0).map_err(failed())?);
        let live = match pinned("CGROUPS") {
            Ok(map) => HashMap::try_from(Map::HashMap(map)),
            Err(_) => self.cgroups.get(&slot, 0),
        };
        let live = live.map_err(failed())?;
        let mut parties = std::collections::HashMap::new();
        for entry in live.iter() {
            let (id, party) = entry.map_err(failed())?;
            parties.insert(id, party as u16);
        }
        Ok(Generation {
            slot,
            epoch,
            upper_roles: word & active::UPPER_ROLES != 0,
            number: settings.generation,
            live: Some(live),
            parties,
            addresses: None,
        })
    }
}
