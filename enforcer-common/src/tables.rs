//! What a compiled policy looks like to the decision: maps in the kernel, vectors in userspace.
//!
//! An address, a cgroup or an interface reduces to a [`Party`]: one of the distinct sets of
//! components that occur. A port reduces to a class. The party at an address and the class of the
//! port lead to a *target*, the set of endpoints meant; the sender's party and the target lead to the
//! verdict. Two loads from dense tables, however many paths there are.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Ip,
    limits::{MAX_PARTIES, MAX_PATHS, MEMORY_SECONDS},
    packet::PortKind,
    verdict::Verdict,
};

/// A distinct set of components, by its number.
pub type Party = u16;

/// Nobody declared.
pub const NOBODY: Party = 0;

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressInfo {
    /// Who is there.
    pub party: Party,
    /// Any of the constants below.
    pub flags: u16,
}

impl AddressInfo {
    /// An address that no prefix of the policy covers.
    pub const UNKNOWN: Self = Self {
        party: NOBODY,
        flags: 0,
    };
    /// An address of this node.
    pub const OWN: u16 = 1;
    /// An address of another declared node.
    pub const OTHER_NODE: u16 = 2;
    /// An address of a pod network.
    pub const POD: u16 = 4;
    /// With [`Self::POD`]: a pod that is more than a pod, by its address (DNS, an agent).
    pub const NAMED: u16 = 8;

    /// In half a word: twelve bits of party, four of flags.
    pub const fn packed(self) -> u16 {
        self.party | self.flags << PARTY_BITS
    }

    /// The same again.
    pub const fn unpacked(packed: u16) -> Self {
        Self {
            party: packed & (MAX_PARTIES - 1) as u16,
            flags: packed >> PARTY_BITS,
        }
    }

    /// Whether a flag is set.
    pub const fn is(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

const PARTY_BITS: u32 = MAX_PARTIES.trailing_zeros();
const _: () = assert!(MAX_PARTIES.is_power_of_two());
const _: () = assert!(
    (AddressInfo::OWN | AddressInfo::OTHER_NODE | AddressInfo::POD | AddressInfo::NAMED)
        >> (16 - PARTY_BITS)
        == 0
);

/// What holds for a whole generation of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// Counts up with every policy; never 0 in force.
    pub generation: u32,
    /// 1 in dry-run.
    pub dry_run: u32,
    /// 1 where plaintext on a path that asks for TLS is told and not dropped.
    pub tls_dry_run: u32,
    /// Number of port classes: the row length of the table of targets.
    pub classes: u32,
    /// Number of targets: the row length of the table of entries.
    pub targets: u32,
    /// Number of parties: the row length of the table of relations.
    pub parties: u32,
    /// Processes of this node in no declared cgroup.
    pub undeclared_process: u32,
    /// All that may run on this node: who is at the other end of lo.
    pub local: u32,
    /// Who is at this node's own addresses.
    pub own: u32,
    /// Who sends from a pod's interface.
    pub pods: u32,
    /// Buckets of [`crate::hosts`] where the search for an IPv4 address may begin. The loader sets it.
    pub v4_buckets: u32,
    /// Likewise for IPv6. They stand behind those for IPv4.
    pub v6_buckets: u32,
    /// 1 where the policy names networks, too. The loader sets it.
    pub networks: u32,
    /// Word of the [`Verdict`] for protocols that have no endpoint at all.
    pub other: Verdict,
}

/// The word that says which slot of the tables is in force, and for which epoch. Everything about a swap of
/// policies, and about cgroups that come and go in one, is one write of it.
pub mod active {
    /// Slots for generations, taken in turn. With three, the one that is filled was in force two swaps ago. A
    /// program that still works on it began before the last swap, which waited for all programs before its
    /// own switch: so there is none.
    pub const SLOTS: u32 = 3;

    /// The slot of a generation.
    pub const fn slot(generation: u32) -> u32 {
        generation % SLOTS
    }

    /// The word. An epoch has 30 bits.
    pub const fn word(slot: u32, epoch: u32) -> u32 {
        epoch << 2 | slot & 3
    }

    /// The slot and the epoch.
    pub const fn parts(word: u32) -> (u32, u32) {
        (word & 3, word >> 2)
    }

    /// The epoch that follows; never 0, which is that of no policy.
    pub const fn next(epoch: u32) -> u32 {
        let next = (epoch + 1) & (u32::MAX >> 2);
        if next == 0 { 1 } else { next }
    }
}

/// Blocks of [`CLASSES_PER_BLOCK`] numbers in the table of port classes.
pub const CLASS_BLOCKS: u32 = 512 + 4;
/// Port classes stand in blocks, as a map element has at least 8 bytes.
pub const CLASSES_PER_BLOCK: usize = 256;

/// The block that holds the class of a number; its low byte is the place in it. TCP and UDP take 256
/// blocks each, the others, whose numbers are bytes, one.
pub const fn class_block(port_kind: PortKind, number: u16) -> u32 {
    match port_kind {
        PortKind::Tcp => number as u32 >> 8,
        PortKind::Udp => 256 + (number as u32 >> 8),
        PortKind::Icmp => 512,
        PortKind::Icmp6 => 513,
        PortKind::Protocol => 514,
        PortKind::Arp => 515,
    }
}

/// In the table of targets, beside the target: the port is declared there, by more than "every port".
pub const DECLARED_PORT: u32 = 1 << 16;

/// What an interface is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// Nobody declared it. What arrives there for a local socket is judged at that socket.
    Undeclared = 0,
    /// The loopback interface.
    Loopback = 1,
    /// Towards other hosts: the source address tells who sends.
    Uplink = 2,
    /// A pod's: the interface tells who sends.
    Pod = 3,
}

impl Role {
    /// Set beside the role where packets have no link header.
    pub const NO_LINK_HEADER: u32 = 1 << 8;

    /// From the word in the table of interfaces.
    pub const fn from_word(word: u32) -> Self {
        // All that the bits can say, so that nothing is left to be looked at.
        match word & 3 {
            1 => Self::Loopback,
            2 => Self::Uplink,
            3 => Self::Pod,
            _ => Self::Undeclared,
        }
    }
}

/// Both ends of a flow, as its first packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey {
    /// The address that opened it.
    pub src: Ip,
    /// The address of the endpoint.
    pub dst: Ip,
    /// The port that opened it.
    pub source: u16,
    /// The endpoint's port.
    pub destination: u16,
    /// Number of a [`PortKind`]: TCP's flows are not UDP's.
    pub port_kind: u32,
}

impl FlowKey {
    /// The same flow as seen from its other end.
    #[must_use]
    pub const fn back(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            source: self.destination,
            destination: self.source,
            port_kind: self.port_kind,
        }
    }
}

const _: () = assert!(size_of::<FlowKey>() == 40 && size_of::<Settings>() == 56);

/// One generation of a compiled policy.
pub trait Tables {
    /// What holds for all of it. Nothing if no policy is loaded.
    fn settings(&self) -> Option<&Settings>;
    /// Who is at an address; [`AddressInfo::UNKNOWN`] where nobody is declared.
    fn address_info(&self, addr: &Ip) -> AddressInfo;
    /// The class of a port.
    fn class(&self, port_kind: PortKind, number: u16) -> Option<u16>;
    /// The set of endpoints that a class of port means at the address of a party.
    fn target(&self, settings: &Settings, at: Party, class: u16) -> Option<u16>;
    /// Whether a port of that class is declared at the address of a party, by more than "every port".
    fn declares(&self, settings: &Settings, at: Party, class: u16) -> bool;
    /// The verdict for packets of a party to a target.
    fn entry(&self, settings: &Settings, from: Party, target: u16) -> Option<Verdict>;
    /// The verdict for a process of a party that binds a target.
    fn bind_entry(&self, settings: &Settings, by: Party, target: u16) -> Option<Verdict>;
    /// Whether two parties may exchange anything at all.
    fn related(&self, settings: &Settings, a: Party, b: Party) -> bool;
    /// What is remembered of a flow, if that is not older than [`MEMORY_SECONDS`].
    fn remembered(&self, flow: &FlowKey) -> Option<Memory>;
    /// Remember that this flow was seen. UDP.
    fn remember(&self, flow: &FlowKey, memory: Memory);
    /// The path by which a connection came in, before its destination was translated to what `flow` says: as long as
    /// this generation of the policy is the one that let it in.
    fn translated(&self, settings: &Settings, flow: &FlowKey) -> Option<u16>;
    /// Remember that.
    fn remember_translated(&self, settings: &Settings, flow: &FlowKey, path: u16);
}

/// What became of the packets of a UDP flow that are remembered for their replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Memory {
    /// A path allowed them.
    Allowed = 0,
    /// They would have been denied, but for dry-run: so their replies are no news.
    WouldDeny = 1,
}

impl Memory {
    /// In a word, with the second in which it was so.
    pub const fn word(self, seconds: u32) -> u32 {
        seconds << 1 | self as u32
    }

    /// From the word, in a later second; nothing if that is too long ago.
    pub const fn from_word(word: u32, seconds: u32) -> Option<Self> {
        // 31 bits of seconds go around once in 68 years.
        let age = (seconds << 1).wrapping_sub(word & !1) >> 1;
        if age > MEMORY_SECONDS {
            return None;
        }
        Some(if word & 1 == 0 {
            Self::Allowed
        } else {
            Self::WouldDeny
        })
    }
}

/// What is remembered of a connection whose destination was translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Translated {
    /// The second of its last packet, by the kernel's monotonic clock.
    pub seconds: u32,
    /// The generation of the policy that let it in.
    pub generation: u32,
    /// The path that did.
    pub path: u32,
    /// Always zero.
    pub padding: u32,
}

impl Translated {
    /// The path, if what is remembered holds in a generation and a later second.
    pub const fn path(&self, generation: u32, seconds: u32) -> Option<u16> {
        if self.generation != generation
            || seconds.wrapping_sub(self.seconds) > MEMORY_SECONDS
            || self.path >= MAX_PATHS
        {
            return None;
        }
        Some(self.path as u16)
    }
}
