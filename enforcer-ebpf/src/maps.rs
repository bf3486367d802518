//! The maps, and the view of one generation of a policy that the decision works on.
//!
//! A policy is a set of inner maps in one of three slots. [`ACTIVE`] says which slot is in force
//! ([`enforcer_common::tables::active`]) and is read once per packet, so that each packet is judged entirely by one policy.
//! Userspace fills the next slot and then writes that one number.

use core::{cell::Cell, ptr};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key,
    },
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::btf_map,
};
use enforcer_common::{
    addr::Ip,
    cache::{self, CacheEntry, CgroupParty},
    hosts::{self, Bucket, Kind},
    interfaces, limits,
    packet::PortKind,
    record::{PairKey, RecordCounter, RecordKey, RecordValue},
    tables::{
        AddressInfo, CLASS_BLOCKS, CLASSES_PER_BLOCK, DECLARED_PORT, FlowKey, Memory, NOBODY,
        Party, Role, Settings, Tables, Translated, active, class_block,
    },
    tls::Stream,
    verdict::{Verdict, counter},
};

/// `BPF_F_INNER_MAP` (kernel 5.10): inner arrays may differ in size.
const INNER: usize = 4096;
/// `BPF_F_MMAPABLE` (kernel 5.5): the elements begin at a page, so that one of 64 bytes is exactly one cache line.
const MAPPED: usize = 1024;
const SLOTS: usize = active::SLOTS as usize;
const BLOCKS: usize = CLASS_BLOCKS as usize;
/// The values of inner maps are arrays of words and not structs: before 6.2 a kernel rejects an inner map without type
/// information if the value of its template is a struct.
type SettingsWords = [u32; size_of::<Settings>() / 4];
type BucketWords = [u32; size_of::<Bucket>() / 4];

/// Userspace writes it through memory, with one store.
#[btf_map]
static ACTIVE: Array<u32, 1, MAPPED> = Array::new();
/// A deadline and what is in force from then on, where [`ACTIVE`] says that it has to be confirmed.
#[btf_map]
static PENDING: Array<u64, 2, MAPPED> = Array::new();
#[btf_map]
static SETTINGS: ArrayOfMaps<Array<SettingsWords, 1>, SLOTS> = ArrayOfMaps::new();
/// Addresses that are declared individually, see [`enforcer_common::hosts`].
#[btf_map]
static HOSTS: ArrayOfMaps<Array<BucketWords, 1, { INNER | MAPPED }>, SLOTS> = ArrayOfMaps::new();
/// Networks: prefixes of all other lengths.
#[btf_map]
static NETWORKS: ArrayOfMaps<LpmTrie<[u8; 16], u32, 1>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
/// All of one size, so that programs read them without a call.
static CLASSES: ArrayOfMaps<Array<[u16; CLASSES_PER_BLOCK], BLOCKS>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
static TARGETS: ArrayOfMaps<Array<u32, 1, INNER>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
static ENTRIES: ArrayOfMaps<Array<[Verdict; 2], 1, INNER>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
static RELATED: ArrayOfMaps<Array<u32, 1, INNER>, SLOTS> = ArrayOfMaps::new();
#[btf_map]
static CGROUPS: ArrayOfMaps<HashMap<u64, u32, 1, { BPF_F_NO_PREALLOC as usize }>, SLOTS> =
    ArrayOfMaps::new();

/// A cache of the parties of cgroups, declared or not, for one epoch. Without it, the programs at sockets take 1.6 to 1.9
/// times as long (docs/bench/notes.md).
#[btf_map]
static CGROUP_PARTIES: PerCpuArray<CgroupParty, { cache::CGROUPS as usize }> = PerCpuArray::new();
/// The roles of interfaces, see [`enforcer_common::interfaces`].
#[btf_map]
static INTERFACES: Array<u64, { interfaces::SLOTS as usize }> = Array::new();
#[btf_map]
static UDP_FLOWS: LruHashMap<FlowKey, u32, { limits::MAX_UDP_FLOWS as usize }> = LruHashMap::new();
/// Connections whose destination was translated, for their replies.
#[btf_map]
static TRANSLATED: LruHashMap<FlowKey, Translated, { limits::MAX_TRANSLATED as usize }> =
    LruHashMap::new();
#[btf_map]
static TLS_STREAMS: LruHashMap<FlowKey, Stream, { limits::MAX_TLS_STREAMS as usize }> =
    LruHashMap::new();
#[btf_map]
static TLS_ACCEPTED: LruHashMap<FlowKey, u32, { limits::MAX_TLS_ACCEPTED as usize }> =
    LruHashMap::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub static RECORDS: HashMap<
    RecordKey,
    RecordValue,
    { (limits::MAX_RECORDS + limits::MAX_PAIRS) as usize },
> = HashMap::new();
/// The numbers of records, by [`RecordCounter`] and in total. Userspace decrements them.
#[btf_map]
pub static RECORD_COUNTS: Array<u64, { RecordCounter::ALL as usize + 1 }, MAPPED> = Array::new();
/// Senders that were recently denied a guarded endpoint.
#[btf_map]
pub static PAIRS: LruHashMap<PairKey, u32, { limits::MAX_PAIRS as usize }> = LruHashMap::new();
/// How many new records this CPU may create.
#[btf_map]
pub static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();
/// The verdict cache, see [`enforcer_common::cache`].
#[btf_map]
pub static VERDICTS: PerCpuArray<CacheEntry, { cache::ENTRIES as usize }> = PerCpuArray::new();
/// Keys of new records ([`RecordKey`]), to wake the agent. Declared without a type, as libbpf rejects a ring buffer that has
/// one.
#[btf_map]
pub static WAKES: RingBuf<(), 65_536> = RingBuf::new();

/// The allowance for new records.
#[repr(C)]
pub struct Room {
    /// The tick of the kernel's clock (jiffies) when it was last updated.
    pub tick: u64,
    /// How many records are left.
    pub left: u64,
}

/// The role of an interface, as a word.
#[inline(always)]
pub fn role(interface: u32, active: Active) -> u32 {
    Role::half(
        role_searched(interface),
        active.0 & active::UPPER_ROLES != 0,
    )
}

#[inline(never)]
fn role_searched(interface: u32) -> u32 {
    interfaces::role(interface, interface_at)
}

#[inline(always)]
fn interface_at(slot: u32) -> u64 {
    INTERFACES.get(slot).copied().unwrap_or(0)
}

/// The policy that is in force. Read once for each packet, so that all lookups use the same one.
///
/// It is a word ([`active::parts`]), as BPF functions take five words at most.
#[derive(Clone, Copy)]
pub struct Active(u32);

impl Active {
    /// The policy in force now.
    #[inline(always)]
    pub fn now() -> Self {
        // Slot 0 is empty until a policy is loaded, and an empty slot denies.
        let word = ACTIVE.get(0).copied().unwrap_or(0);
        if word & active::PENDING == 0 {
            Self(word)
        } else {
            Self(unconfirmed(word))
        }
    }

    /// From its word.
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self(word)
    }

    /// The word, for global functions, which take numbers.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The epoch. It changes with the policy and with every declared cgroup that comes or goes, which invalidates everything
    /// that was cached before.
    #[inline(always)]
    pub fn epoch(self) -> u32 {
        active::parts(self.0).1
    }

    /// The class of a port.
    #[inline(always)]
    pub fn class(self, port_kind: PortKind, number: u16) -> Option<u16> {
        class(active::parts(self.0).0, port_kind, number)
    }

    /// Its tables.
    #[inline(always)]
    pub fn generation(self) -> Generation {
        let (slot, _) = active::parts(self.0);
        let settings = SETTINGS
            .get_value(slot, &0)
            .map_or(ptr::null(), ptr::from_ref);
        Generation {
            slot,
            settings,
            used_memory: Cell::new(false),
        }
    }
}

impl Active {
    /// The party of a process or socket in the cgroup `own`, whose ancestor at each level is `above(level)`, or 0 if there is
    /// none. Each cgroup is searched once in an epoch.
    #[inline(always)]
    pub fn party(self, own: u64, above: impl Fn(u32) -> u64) -> Party {
        if let Some(party) = self.known_party(own) {
            return party;
        }
        let party = self.generation().deepest(own, above);
        if let Some(known) = CGROUP_PARTIES.get_ptr_mut(CgroupParty::slot(own)) {
            // SAFETY: this CPU's own element. If another program interrupts this and writes it, its two words show that they
            // do not belong together.
            unsafe { *known = CgroupParty::new(own, self.epoch(), party) };
        }
        party
    }

    /// The same, if it is cached.
    #[inline(always)]
    pub fn known_party(self, own: u64) -> Option<Party> {
        // SAFETY: as above.
        let known = unsafe { CGROUP_PARTIES.get_ptr(CgroupParty::slot(own))?.read() };
        known.party(own, self.epoch())
    }
}

/// The word in force while the policy is not confirmed: its own, or the fallback from the deadline on.
#[inline(never)]
fn unconfirmed(word: u32) -> u32 {
    let deadline = PENDING.get(active::DEADLINE).copied().unwrap_or(0);
    // SAFETY: the helper takes nothing and reads a clock. The coarse one is cheaper, but not for programs of every type.
    let now = unsafe { bpf_ktime_get_ns() };
    if now < deadline {
        return word & !active::PENDING;
    }
    let fallback = PENDING.get(active::FALLBACK).copied().unwrap_or(0);
    fallback as u32
}

/// One generation of the policy.
pub struct Generation {
    slot: u32,
    /// Looked up once; null if no policy is in force.
    settings: *const SettingsWords,
    /// Whether a verdict depends on other packets.
    used_memory: Cell<bool>,
}

impl Generation {
    /// Whether a verdict depends on other packets, so that the next one may change it.
    pub fn used_memory(&self) -> bool {
        self.used_memory.get()
    }

    /// The party of the deepest declared cgroup among `own` and its ancestors, as in [`Active::party`]. If none is declared,
    /// the party of undeclared processes.
    #[inline(always)]
    fn deepest(&self, own: u64, above: impl Fn(u32) -> u64) -> Party {
        let Some(settings) = self.settings() else {
            return NOBODY;
        };
        if let Some(party) = self.cgroup(own) {
            return party;
        }
        let mut deepest = settings.undeclared_process as Party;
        // From the root (level 0) down: hierarchies are far less deep than the limit.
        for level in 0..limits::CGROUP_LEVELS {
            let id = above(level);
            if id == 0 {
                break;
            }
            if id != own
                && let Some(party) = self.cgroup(id)
            {
                deepest = party;
            }
        }
        deepest
    }

    /// The party of the processes in a declared cgroup.
    fn cgroup(&self, id: u64) -> Option<Party> {
        let cgroups = CGROUPS.get(self.slot)?;
        // SAFETY: the value is copied at once; userspace only ever adds elements to a map in force,
        // so none is reused under the reader.
        unsafe { cgroups.get(id) }.map(|party| *party as Party)
    }
}

impl Tables for Generation {
    fn settings(&self) -> Option<&Settings> {
        // SAFETY: null or a value of a map, which stays valid while the program runs, and which is not written while its
        // slot is in force.
        let words = unsafe { self.settings.as_ref() }?;
        Some(zerocopy::transmute_ref!(words))
    }

    fn address_info(&self, addr: &Ip) -> AddressInfo {
        let Some(settings) = self.settings() else {
            return AddressInfo::UNKNOWN;
        };
        zerocopy::transmute!(enforcer_address(addr, self.slot, settings))
    }

    fn class(&self, port_kind: PortKind, number: u16) -> Option<u16> {
        class(self.slot, port_kind, number)
    }

    fn target(&self, settings: &Settings, at: Party, class: u16) -> Option<u16> {
        let index = u32::from(at) * settings.classes + u32::from(class);
        TARGETS
            .get_value(self.slot, &index)
            .map(|target| *target as u16)
    }

    fn declares(&self, settings: &Settings, at: Party, class: u16) -> bool {
        let index = u32::from(at) * settings.classes + u32::from(class);
        TARGETS
            .get_value(self.slot, &index)
            .is_some_and(|word| *word & DECLARED_PORT != 0)
    }

    fn entry(&self, settings: &Settings, from: Party, target: u16) -> Option<Verdict> {
        let index = u32::from(from) * settings.targets + u32::from(target);
        ENTRIES
            .get_value(self.slot, &index)
            .map(|[packets, _]| *packets)
    }

    fn bind_entry(&self, settings: &Settings, by: Party, target: u16) -> Option<Verdict> {
        let index = u32::from(by) * settings.targets + u32::from(target);
        ENTRIES.get_value(self.slot, &index).map(|[_, bind]| *bind)
    }

    fn related(&self, settings: &Settings, a: Party, b: Party) -> bool {
        let index = u32::from(a) * settings.parties + u32::from(b);
        RELATED
            .get_value(self.slot, &index)
            .is_some_and(|related| *related != 0)
    }

    fn remembered(&self, flow: &FlowKey) -> Option<Memory> {
        self.used_memory.set(true);
        // SAFETY: a word, copied at once. If the element is reused meanwhile, the word is that of another flow; the policy
        // decides about the packet in any case.
        let word = unsafe { *UDP_FLOWS.get_ptr(flow)? };
        Memory::from_word(word, seconds())
    }

    #[inline(never)]
    fn remember(&self, flow: &FlowKey, memory: Memory) {
        let word = memory.word(seconds());
        match UDP_FLOWS.get_ptr_mut(flow) {
            // SAFETY: a word of the map. Once a second is often enough, and a cache line that is only read can be shared.
            Some(known) => unsafe {
                if *known != word {
                    *known = word;
                }
            },
            // If there is no room even after an eviction, only a reply is lost.
            None => _ = UDP_FLOWS.insert(flow, word, 0),
        }
    }

    #[inline(never)]
    fn translated(&self, settings: &Settings, flow: &FlowKey) -> Option<u16> {
        self.used_memory.set(true);
        // SAFETY: copied at once. If the element is reused meanwhile, its generation and time are still checked, and at most
        // a reply could pass by the path of another flow.
        let translated = unsafe { *TRANSLATED.get_ptr(flow)? };
        translated.path(settings.generation, seconds())
    }

    #[inline(never)]
    fn remember_translated(&self, settings: &Settings, flow: &FlowKey, path: u16) {
        let translated = Translated {
            seconds: seconds(),
            generation: settings.generation,
            path: path.into(),
            padding: 0,
        };
        let _ = TRANSLATED.insert(flow, translated, 0);
    }
}

/// The kernel's monotonic clock.
#[inline(always)]
fn seconds() -> u32 {
    // SAFETY: the helper takes nothing and reads a clock (Linux 5.11).
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    (now / 1_000_000_000) as u32
}

/// The class of a port, in the generation of a slot.
#[inline(always)]
fn class(slot: u32, port_kind: PortKind, number: u16) -> Option<u16> {
    let block = CLASSES.get_value(slot, &class_block(port_kind, number))?;
    block.get(usize::from(number as u8)).copied()
}

/// The stream of a forwarded connection whose path requires TLS.
pub fn tls_stream(flow: &FlowKey) -> Option<*mut Stream> {
    TLS_STREAMS.get_ptr_mut(flow)
}

/// Begins to track such a stream. If there is no room, it is not checked here, but only on the node whose socket receives
/// it.
pub fn follow_tls_stream(flow: &FlowKey, stream: &Stream) {
    let _ = TLS_STREAMS.insert(flow, stream, 0);
}

/// Where the client's stream begins, according to the SYN-ACK of a socket of this node.
pub fn tls_accepted(flow: &FlowKey) -> Option<u32> {
    // SAFETY: copied at once. If the element is reused meanwhile, it gives another beginning, and a packet that does not
    // match that is denied.
    TLS_ACCEPTED.get_ptr(flow).map(|first| unsafe { *first })
}

/// Remembers that. If there is no room, a client whose first packet after the SYN is lost retries.
pub fn accept_tls(flow: &FlowKey, first: u32) {
    let _ = TLS_ACCEPTED.insert(flow, first, 0);
}

/// The word of the [`AddressInfo`] of an address. A global function, which the verifier checks once and separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn enforcer_address(addr: *const Ip, slot: u32, settings: *const Settings) -> u32 {
    let unknown = zerocopy::transmute!(AddressInfo::UNKNOWN);
    // SAFETY: each is null or valid, as the verifier has made sure of every caller.
    let (Some(addr), Some(settings)) = (unsafe { (addr.as_ref(), settings.as_ref()) }) else {
        return unknown;
    };
    if hosts::takes(addr) {
        let found = match Kind::of(addr) {
            Kind::V4 => host(slot, Kind::V4, addr, (0, settings.v4_buckets)),
            Kind::V6 => {
                let behind = settings.v4_buckets + hosts::REACH - 1;
                host(slot, Kind::V6, addr, (behind, settings.v6_buckets))
            }
        };
        if let Some(info) = found {
            return zerocopy::transmute!(info);
        }
    }
    if settings.networks == 0 {
        return unknown;
    }
    NETWORKS
        .get(slot)
        .and_then(|networks| networks.get(&Key::new(128, addr.0)))
        .map_or(unknown, |word| *word)
}

/// The info of an address that the policy names individually. `behind` buckets of another kind come before its `buckets`.
#[inline(always)]
fn host(slot: u32, kind: Kind, addr: &Ip, (behind, buckets): (u32, u32)) -> Option<AddressInfo> {
    let first = behind + hosts::first(addr, buckets);
    let words = &addr.words();
    for further in 0..hosts::REACH {
        let bucket: &BucketWords = HOSTS.get_value(slot, &(first + further))?;
        let bucket: &Bucket = zerocopy::transmute_ref!(bucket);
        let found = bucket.find(kind, words);
        if found.is_some() || bucket.more == 0 {
            return found;
        }
    }
    None
}
