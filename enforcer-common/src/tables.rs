//! The compiled policy as the decision reads it: maps in the kernel, vectors in userspace.
//!
//! An address, a cgroup or an interface reduces to a [`Party`]: one of the distinct sets of
//! components that occur. A port reduces to a class. The party at an address and the class of the port lead to a *target*,
//! the set of endpoints that are addressed; the sender's party and the target lead to the verdict. That takes two loads from
//! dense tables, however many paths there are.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Ip,
    limits::{MAX_PARTIES, MAX_PATHS, MEMORY_SECONDS},
    packet::PortKind,
    verdict::Verdict,
};

/// The number of a distinct set of components.
pub type Party = u16;

/// The empty party: nothing is declared there.
pub const NOBODY: Party = 0;

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressInfo {
    /// The party there.
    pub party: Party,
    /// A combination of the constants below.
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
    /// With [`Self::POD`]: the address also belongs to another component (DNS, an agent).
    pub const NAMED: u16 = 8;

    /// Packed into 16 bits: twelve of party, four of flags.
    pub const fn packed(self) -> u16 {
        self.party | self.flags << PARTY_BITS
    }

    /// The reverse of [`Self::packed`].
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

/// The settings of one generation of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// Incremented for every policy; never 0 in force.
    pub generation: u32,
    /// 1 in dry-run.
    pub dry_run: u32,
    /// 1 if the TLS check is report only.
    pub tls_dry_run: u32,
    /// Number of port classes: the row length of the table of targets.
    pub classes: u32,
    /// Number of targets: the row length of the table of entries.
    pub targets: u32,
    /// Number of parties: the row length of the table of relations.
    pub parties: u32,
    /// The party of this node's processes outside of all declared cgroups.
    pub undeclared_process: u32,
    /// The party of everything that may run on this node: the peer on lo.
    pub local: u32,
    /// The party at this node's own addresses.
    pub own: u32,
    /// The party of what sends from a pod's interface.
    pub pods: u32,
    /// Buckets of [`crate::hosts`] where the search for an IPv4 address may begin. The loader sets it.
    pub v4_buckets: u32,
    /// The same for IPv6. These buckets come after those for IPv4.
    pub v6_buckets: u32,
    /// 1 if the policy also names networks. The loader sets it.
    pub networks: u32,
    /// Word of the [`Verdict`] for protocols that have no endpoint at all.
    pub other: Verdict,
}

/// The word that says which slot of the tables is in force, and for which epoch. A swap of policies is one write of it,
/// and so is the arrival or departure of a declared cgroup within one.
pub mod active {
    /// Slots for generations. With three there is always one that is neither in force nor was in force last. A program that
    /// still used it would have started before the last swap; but that swap waited for all running programs before its
    /// switch, so there is none.
    pub const SLOTS: u32 = 3;

    /// In the word that userspace writes: the policy has to be confirmed. From a deadline on, the *fallback* is in force
    /// instead: the word of the generation before, in [`FALLBACK`] of the map `PENDING`. The programs compare the clock
    /// with the deadline themselves, so this works without an agent.
    pub const PENDING: u32 = 1 << 2;
    /// In any word: which half of an interface's roles ([`super::Role::half`]) is of its generation. Two generations that
    /// follow one another use different halves, so that policy and roles change with one store.
    pub const UPPER_ROLES: u32 = 1 << 3;
    /// Element of the map `PENDING`: the deadline, in nanoseconds of the kernel's monotonic clock.
    pub const DEADLINE: u32 = 0;
    /// Element of the map `PENDING`: the word that is in force from the deadline on.
    pub const FALLBACK: u32 = 1;

    /// A slot that is neither of two.
    pub const fn free_slot(in_force: u32, before: u32) -> u32 {
        let mut slot = 0;
        while slot == in_force || slot == before {
            slot += 1;
        }
        slot
    }

    /// The word. An epoch has 28 bits.
    pub const fn word(slot: u32, upper_roles: bool, epoch: u32) -> u32 {
        let roles = if upper_roles { UPPER_ROLES } else { 0 };
        epoch << 4 | roles | slot & 3
    }

    /// The slot and the epoch.
    pub const fn parts(word: u32) -> (u32, u32) {
        (word & 3, word >> 4)
    }

    /// The next epoch; never 0, which stands for no policy.
    pub const fn next(epoch: u32) -> u32 {
        let next = (epoch + 1) & (u32::MAX >> 4);
        if next == 0 { 1 } else { next }
    }
}

/// Blocks of [`CLASSES_PER_BLOCK`] numbers in the table of port classes.
pub const CLASS_BLOCKS: u32 = 512 + 4;
/// Port classes are stored in blocks, as a map element has at least 8 bytes.
pub const CLASSES_PER_BLOCK: usize = 256;

/// The block that holds the class of a number; the number's low byte is the index in it. TCP and UDP take 256 blocks each;
/// the other kinds, whose numbers are bytes, take one each.
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

/// A flag beside a target in the table of targets: a component declares the port there, and not just as one of every port.
pub const DECLARED_PORT: u32 = 1 << 16;

/// The role of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// Not declared. What arrives there for a local socket is judged at that socket.
    Undeclared = 0,
    /// The loopback interface.
    Loopback = 1,
    /// Connects to other hosts: the source address identifies the sender.
    Uplink = 2,
    /// A pod's: the interface identifies the sender.
    Pod = 3,
}

impl Role {
    /// A role's word has so many bits. An interface has two of them, for two generations of the policy
    /// ([`active::UPPER_ROLES`]).
    pub const BITS: u32 = 16;

    /// The word of one of the two roles.
    #[inline(always)]
    pub const fn half(roles: u32, upper: bool) -> u32 {
        if upper {
            roles >> Self::BITS
        } else {
            roles & ((1 << Self::BITS) - 1)
        }
    }

    /// Both roles, with the word of one of them exchanged.
    pub const fn with_half(roles: u32, upper: bool, word: u32) -> u32 {
        if upper {
            Self::half(roles, false) | word << Self::BITS
        } else {
            roles & !((1 << Self::BITS) - 1) | word
        }
    }

    /// Set beside the role where packets have no link header.
    pub const NO_LINK_HEADER: u32 = 1 << 8;

    /// From the word in the table of interfaces.
    pub const fn from_word(word: u32) -> Self {
        // Covers all values of two bits, so that no check is needed.
        match word & 3 {
            1 => Self::Loopback,
            2 => Self::Uplink,
            3 => Self::Pod,
            _ => Self::Undeclared,
        }
    }
}

/// The two ends of a flow, in the direction of its first packet.
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
    /// Its settings. `None` if no policy is loaded.
    fn settings(&self) -> Option<&Settings>;
    /// What is known of an address; [`AddressInfo::UNKNOWN`] if nothing is declared there.
    fn address_info(&self, addr: &Ip) -> AddressInfo;
    /// The class of a port.
    fn class(&self, port_kind: PortKind, number: u16) -> Option<u16>;
    /// The set of endpoints that a port class addresses at the address of a party.
    fn target(&self, settings: &Settings, at: Party, class: u16) -> Option<u16>;
    /// Whether a component at the address of a party declares a port of that class, and not just every port.
    fn declares(&self, settings: &Settings, at: Party, class: u16) -> bool;
    /// The verdict for packets of a party to a target.
    fn entry(&self, settings: &Settings, from: Party, target: u16) -> Option<Verdict>;
    /// The verdict for a process of a party that binds a target.
    fn bind_entry(&self, settings: &Settings, by: Party, target: u16) -> Option<Verdict>;
    /// Whether two parties may exchange anything at all.
    fn related(&self, settings: &Settings, a: Party, b: Party) -> bool;
    /// What is remembered of a UDP flow, if that is not older than [`MEMORY_SECONDS`].
    fn remembered(&self, flow: &FlowKey) -> Option<Memory>;
    /// Remembers a UDP flow.
    fn remember(&self, flow: &FlowKey, memory: Memory);
    /// The path by which a connection came in before its destination was translated to that of `flow`, if this generation
    /// of the policy allowed it.
    fn translated(&self, settings: &Settings, flow: &FlowKey) -> Option<u16>;
    /// Remembers the path of a translated connection.
    fn remember_translated(&self, settings: &Settings, flow: &FlowKey, path: u16);
}

/// The verdict on a UDP flow that is remembered for its replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Memory {
    /// A path allowed them.
    Allowed = 0,
    /// They were denied in dry-run, so their replies are not reported again.
    WouldDeny = 1,
}

impl Memory {
    /// As a word, with the current second.
    pub const fn word(self, seconds: u32) -> u32 {
        seconds << 1 | self as u32
    }

    /// From the word, in a later second; `None` if it has expired.
    pub const fn from_word(word: u32, seconds: u32) -> Option<Self> {
        // 31 bits of seconds wrap around once in 68 years.
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
    /// The generation of the policy that allowed it.
    pub generation: u32,
    /// The path that allowed it.
    pub path: u32,
    /// Always zero.
    pub padding: u32,
}

impl Translated {
    /// The path, if the entry is of this generation and has not expired in this second.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_slot_roles_and_epoch() {
        for slot in 0..active::SLOTS {
            for upper in [false, true] {
                for epoch in [1, 2, u32::MAX >> 4] {
                    let word = active::word(slot, upper, epoch);
                    assert_eq!(active::parts(word), (slot, epoch));
                    assert_eq!(active::parts(word | active::PENDING), (slot, epoch));
                    assert_eq!(word & active::UPPER_ROLES != 0, upper);
                    assert_eq!(word & active::PENDING, 0);
                }
            }
        }
        assert_eq!(active::next(u32::MAX >> 4), 1, "never that of no policy");
        for in_force in 0..active::SLOTS {
            for before in 0..active::SLOTS {
                let free = active::free_slot(in_force, before);
                assert!(free < active::SLOTS && free != in_force && free != before);
            }
        }
    }

    #[test]
    fn an_interface_has_two_roles() {
        let pod = Role::Pod as u32;
        let uplink = Role::Uplink as u32 | Role::NO_LINK_HEADER;
        let both = Role::with_half(Role::with_half(0, false, pod), true, uplink);
        assert_eq!(
            (Role::half(both, false), Role::half(both, true)),
            (pod, uplink)
        );
        let other = Role::with_half(both, true, pod);
        assert_eq!(
            (Role::half(other, false), Role::half(other, true)),
            (pod, pod)
        );
        let other = Role::with_half(both, false, uplink);
        assert_eq!(
            (Role::half(other, false), Role::half(other, true)),
            (uplink, uplink)
        );
    }
}
