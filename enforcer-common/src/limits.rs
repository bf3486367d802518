//! Sizes that both sides of the kernel border rely on.

/// Paths a policy may hold. Path numbers are `0..MAX_PATHS`; a number stays with its name over
/// policy swaps, so that counters go on.
pub const MAX_PATHS: u32 = 4096;
/// Distinct sets of components that occur at an address, a cgroup or an interface.
pub const MAX_PARTIES: u32 = 4096;
/// Distinct classes of ports.
pub const MAX_CLASSES: u32 = 4096;
/// Distinct sets of endpoints that a place and a port class lead to.
pub const MAX_TARGETS: u32 = 8192;
/// Elements of the two dense tables (place by port class, party by target).
pub const MAX_CELLS: u32 = 1 << 22;
/// Address prefixes of a policy.
pub const MAX_PREFIXES: u32 = 1 << 20;
/// cgroups that are known by a declared component.
pub const MAX_CGROUPS: u32 = 16_384;
/// UDP flows that are remembered for their replies (least recently used go first).
pub const MAX_UDP_FLOWS: u32 = 65_536;
/// Forwarded connections on paths that ask for TLS that are remembered (least recently used go first).
pub const MAX_TLS_STREAMS: u32 = 65_536;
/// Connections on such paths that sockets of this node have accepted of late, likewise.
pub const MAX_TLS_ACCEPTED: u32 = 16_384;
/// Denial records; what does not fit is counted.
pub const MAX_RECORDS: u32 = 16_384;
/// New records that a CPU may begin in each tick of the kernel's clock (1 to 10 ms): a flood from everywhere must
/// take neither all the room, nor the time to make one for each of its packets and to tell it. What is
/// beyond is counted.
pub const NEW_RECORDS_A_TICK: u64 = 1;
/// What a CPU has not made use of adds up to so many, so that a scan of a host's ports is told whole.
pub const NEW_RECORDS_AT_ONCE: u64 = 1024;
/// Levels of cgroups that are searched for a declared one, deepest first.
pub const CGROUP_LEVELS: u32 = 16;
/// IPv6 extension headers that are read before a packet is called unreadable.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// What they may take together, in bytes, before it is called that.
pub const MAX_EXTENSION_BYTES: usize = 1024;
/// No byte of a packet that decides is further from its beginning, so that all of them can be made the kernel's own before
/// they are read: a link header, IP and its extension headers, ICMP, the same once more of the packet that an error
/// quotes, and a transport header.
pub const MAX_READ: u32 = 4096;
/// How long a UDP flow, or a translated connection, is remembered after the last packet of whoever opened it, in seconds.
/// As long as the kernel's own connection tracking remembers a UDP stream, and half of that again.
pub const MEMORY_SECONDS: u32 = 180;
/// Translated connections that are remembered for their replies (least recently used go first).
pub const MAX_TRANSLATED: u32 = 65_536;
/// New records for a sender and a guarded endpoint that have none yet, which a flood can not take. See
/// [`crate::record::PairKey`].
pub const MAX_PAIRS: u32 = 2048;

// Link header with two tags, IPv6, extension headers, and a transport header; twice where an error quotes a packet.
const _: () = assert!(22 + 2 * (40 + MAX_EXTENSION_BYTES + 60) <= MAX_READ as usize);
