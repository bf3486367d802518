//! Sizes that both sides of the kernel border rely on.

/// Paths in a policy. Path numbers are `0..MAX_PATHS`; a path keeps its number over policy swaps, so that its counters
/// continue.
pub const MAX_PATHS: u32 = 4096;
/// Distinct sets of components at an address, a cgroup or an interface.
pub const MAX_PARTIES: u32 = 4096;
/// Distinct classes of ports.
pub const MAX_CLASSES: u32 = 4096;
/// Distinct sets of endpoints that a party and a port class lead to.
pub const MAX_TARGETS: u32 = 8192;
/// Elements of each of the two dense tables (party by port class, party by target).
pub const MAX_CELLS: u32 = 1 << 22;
/// Address prefixes of a policy.
pub const MAX_PREFIXES: u32 = 1 << 20;
/// cgroups of declared components.
pub const MAX_CGROUPS: u32 = 16_384;
/// UDP flows that are remembered for their replies (least recently used are evicted first).
pub const MAX_UDP_FLOWS: u32 = 65_536;
/// Forwarded connections that are tracked on paths that require TLS (least recently used are evicted first).
pub const MAX_TLS_STREAMS: u32 = 65_536;
/// Recently accepted connections of local sockets that are tracked on such paths (least recently used are evicted first).
pub const MAX_TLS_ACCEPTED: u32 = 16_384;
/// Denial records. Denials beyond that are counted only.
pub const MAX_RECORDS: u32 = 16_384;
/// New records that a CPU may create in each tick of the kernel's clock (1 to 10 ms): a flood with many source addresses
/// must neither fill the table, nor spend the time to create and report a record for each of its packets. Denials beyond
/// that are counted only.
pub const NEW_RECORDS_A_TICK: u64 = 1;
/// Unused record allowance accumulates up to this number, so that a scan of a host's ports is reported completely.
pub const NEW_RECORDS_AT_ONCE: u64 = 1024;
/// Levels of cgroups that are searched for a declared one, deepest first.
pub const CGROUP_LEVELS: u32 = 16;
/// IPv6 extension headers that are read; a packet with more is denied as unreadable.
pub const MAX_EXTENSION_HEADERS: usize = 8;
/// Bytes that they may take together.
pub const MAX_EXTENSION_BYTES: usize = 1024;
/// All bytes of a packet that a verdict depends on are within this many bytes from its beginning, so that all of them can
/// be copied into the skb's head before they are read: a link header, IP and its extension headers, ICMP, the same headers
/// of the packet that an ICMP error quotes, and a transport header.
pub const MAX_READ: u32 = 4096;
/// How long a UDP flow or a translated connection is remembered after the last packet of its opener, in seconds: one and
/// a half times as long as the kernel's connection tracking remembers a UDP stream.
pub const MEMORY_SECONDS: u32 = 180;
/// Translated connections that are remembered for their replies (least recently used are evicted first).
pub const MAX_TRANSLATED: u32 = 65_536;
/// Records that are reserved for the first denial of a sender at a guarded endpoint, so that a flood can not use them up.
/// See [`crate::record::PairKey`].
pub const MAX_PAIRS: u32 = 2048;

// Link header with two tags, IPv6, extension headers, and a transport header; twice where an error quotes a packet.
const _: () = assert!(22 + 2 * (40 + MAX_EXTENSION_BYTES + 60) <= MAX_READ as usize);
