//! What is in the kernel: programs, maps, attachments. The modules above this one load them, apply
//! policies, attach and read.
//!
//! What must survive a restart of the agent is here and nowhere else, and each part is read back
//! from exactly one place: slot and epoch from `ACTIVE`, the generation from the slot's settings,
//! cgroups from the slot's map of them, roles from `INTERFACES`, attachments from the pins, and
//! everything else ([`Kept`]) from a map of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as StdHashMap},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf},
    programs::TcAttachType,
};
use enforcer_common::{
    cache::CacheEntry,
    hosts::Bucket,
    record::{RecordKey, RecordValue},
    tables::{self, CLASSES_PER_BLOCK, Party, Role},
};
use enforcer_policy::compile::PrefixEntry;

use super::{
    Link,
    kept::{Kept, Store},
    mapped::Mapped,
    maps::Owned,
    pins::{Instance, PinsLock},
    roles::Roles,
};

/// The programs and maps in the kernel. Dropping it detaches everything that is not pinned.
pub struct Kernel {
    pub(super) bpf: Ebpf,
    /// Where it is pinned; `None` if it ends with this process.
    pub(super) pinned: Option<Pinned>,
    /// What is saved in addition to the maps.
    pub(super) kept: Kept,
    pub(super) slots: Slots,
    pub(super) readers: Readers,
    pub(super) attached: Attached,
    /// Whether `cgroup_skb` programs can query a packet's network namespace.
    pub(super) netns_of_packets: bool,
    /// Whether every call of `setsockopt` is seen, see [`Self::sees_all_options`].
    pub(super) lsm: Result<(), String>,
    /// Whether the LSM program could be loaded.
    pub(super) lsm_loaded: Result<(), String>,
}

/// The pins of this agent, and those that it takes over.
pub(super) struct Pinned {
    pub(super) instance: Instance,
    pub(super) store: Store,
    /// Instances whose links this one takes over.
    pub(super) others: Vec<Instance>,
    /// Whether the instance existed before.
    pub(super) adopted: bool,
    pub(super) _lock: PinsLock,
}

pub(super) type Settings = [u8; size_of::<tables::Settings>()];
pub(super) type Word = [u8; 4];
pub(super) type Block = [u8; 2 * CLASSES_PER_BLOCK];
pub(super) type Cell = [u8; 8];
pub(super) type Words = Array<Owned, Word>;
pub(super) type Cgroups = HashMap<Owned, u64, u32>;
pub(super) type Hosts = Array<Owned, [u8; size_of::<Bucket>()]>;
pub(super) type Networks = LpmTrie<Owned, [u8; 16], [u8; 4]>;

/// The slots, the word that says which one is in force, and the live map of cgroups.
pub(super) struct Slots {
    pub(super) active: Mapped,
    /// The deadline of an unconfirmed policy, and what is in force from then on.
    pub(super) pending: Mapped,
    /// The last epoch that was assigned, see [`tables::active::next`].
    pub(super) epoch: u32,
    pub(super) current: Generation,
    /// The previous generation, while the programs may fall back to it without an agent.
    pub(super) fallback: Option<Generation>,
    /// The slot that was in force before the last switch.
    pub(super) slot_before: u32,
    pub(super) settings: ArrayOfMaps<Owned, Array<Owned, Settings>>,
    pub(super) hosts: ArrayOfMaps<Owned, Hosts>,
    pub(super) networks: ArrayOfMaps<Owned, Networks>,
    pub(super) classes: ArrayOfMaps<Owned, Array<Owned, Block>>,
    pub(super) targets: ArrayOfMaps<Owned, Words>,
    pub(super) entries: ArrayOfMaps<Owned, Array<Owned, Cell>>,
    pub(super) related: ArrayOfMaps<Owned, Words>,
    pub(super) cgroups: ArrayOfMaps<Owned, Cgroups>,
}

/// A policy in its slot.
#[derive(Default)]
pub(super) struct Generation {
    pub(super) slot: u32,
    /// Which half of the interfaces' role words is its own.
    pub(super) upper_roles: bool,
    /// The epoch that it was put in force with, or will be.
    pub(super) epoch: u32,
    /// 0 for none.
    pub(super) number: u32,
    /// Its map of cgroups, which changes as cgroups come and go.
    pub(super) live: Option<Cgroups>,
    /// The contents of that map.
    pub(super) parties: StdHashMap<u64, Party>,
    /// Its addresses: consecutive policies mostly have the same ones.
    pub(super) addresses: Option<Arc<Addresses>>,
}

/// Who has which address, as the kernel holds it.
pub(super) struct Addresses {
    pub(super) prefixes: Arc<[PrefixEntry]>,
    pub(super) hosts: Hosts,
    /// How many of the IPv4 buckets a search may begin in.
    pub(super) first_v4: u32,
    /// Likewise for IPv6.
    pub(super) first_v6: u32,
    pub(super) networks: Networks,
    pub(super) has_networks: bool,
}

pub(super) type KeyBytes = [u8; size_of::<RecordKey>()];
pub(super) type EntryBytes = [u8; size_of::<CacheEntry>()];
pub(super) type ValueBytes = [u8; size_of::<RecordValue>()];

/// The maps that userspace reads.
pub(super) struct Readers {
    pub(super) counters: PerCpuArray<Owned, u64>,
    pub(super) records: HashMap<Owned, KeyBytes, ValueBytes>,
    pub(super) record_counts: Mapped,
    pub(super) verdicts: PerCpuArray<Owned, EntryBytes>,
    pub(super) wakes: Option<RingBuf<Owned>>,
}

/// What is attached, and the roles of interfaces.
pub(super) struct Attached {
    pub(super) roles: Roles,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    /// In the order of [`CGROUP`](super::programs::CGROUP).
    pub(super) cgroups: Vec<CgroupHook>,
    /// A previous agent's filters at the clsact qdisc: interface, and whether on ingress.
    pub(super) filters: BTreeSet<(u32, bool)>,
    /// The link of the program for security modules.
    pub(super) lsm: Option<Hold>,
    /// The roles of interfaces under the fallback, if there is one.
    pub(super) fallback_roles: BTreeMap<u32, Role>,
}

/// One program that is attached to the cgroup root.
pub(super) struct CgroupHook {
    pub(super) name: &'static str,
    pub(super) place: String,
    pub(super) hold: Hold,
}

/// What keeps a program attached.
pub(super) enum Hold {
    /// A link that this process keeps open.
    Open(OwnedFd),
    /// A pinned link.
    Pinned(PathBuf),
    /// A filter at the clsact qdisc.
    Filter,
}

pub(super) struct Interface {
    pub(super) link: Link,
    pub(super) role: Role,
    pub(super) links: Vec<Classifier>,
}

/// One program that is attached to an interface.
pub(super) type Classifier = (TcAttachType, Hold);
