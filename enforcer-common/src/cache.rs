//! The verdict cache: recent verdicts, so that packets of a stream or a flood are not decided one by one.
//!
//! A [`CacheEntry`] holds one complete [`CacheKey`] and the verdict of the decision for it. It is valid for one [`Stamp`],
//! which changes with every change of the tables and with every tick of the kernel's clock (1 to 10 ms): what a verdict
//! depends on besides the tables, such as routes and the UDP memory, is not trusted for longer.
//!
//! The kernel programs write the entries. They are defined here because userspace reads them, too, for what they have
//! [counted](CacheEntry::pending).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Ip,
    limits::{MAX_CLASSES, MAX_PARTIES},
    mark::PacketMark,
    packet::{Packet, Phase, PortKind, Ports, Shape},
    record::{Hook, RecordKey, Whose, subject},
    tables::{FlowKey, Party},
    vantage::{Kind, Vantage},
    verdict::{Outcome, Verdict},
};

/// Entries of each CPU, half of them for the send path: together half the size of a CPU's first-level cache.
pub const ENTRIES: u32 = 256;
/// The receive path is never interrupted by itself, so what it [counts](CacheEntry::pending) in its entries is exact. The
/// send path can be interrupted by either path, so it has entries of its own.
const HALF: u32 = ENTRIES / 2;
const _: () = assert!(HALF.is_power_of_two());

/// Stands for the class of a port that has none. No class has this number.
const NO_CLASS: u16 = u16::MAX;
const _: () = assert!(MAX_CLASSES <= NO_CLASS as u32);

/// The period for which a cached verdict is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Changes with every generation, and with every declared cgroup that comes or goes.
    pub epoch: u32,
    /// The kernel's clock (jiffies).
    pub tick: u32,
}

/// Everything that a verdict depends on besides the tables.
#[derive(Debug, Clone, Copy)]
pub struct CacheKey<'a> {
    stamp: Stamp,
    how: u16,
    /// [`CacheEntry::number_and_ports`].
    number_and_ports: u64,
    /// A hash of the addresses and the words above except the stamp.
    mixed: u64,
    packet: &'a Packet,
}

impl<'a> CacheKey<'a> {
    /// The key of a packet that [has one](Self::has_key). The verdict must depend on nothing else besides the tables.
    ///
    /// `class` returns the class of a port. For TCP the tables depend on the class only, so connections between the same
    /// two hosts that differ only in an ephemeral port have the same key. But not where denials are
    /// [counted](CacheEntry::pending), as their records name ports; and not for UDP, whose memory distinguishes ports.
    #[inline(always)]
    pub fn new(
        vantage: Vantage,
        stamp: Stamp,
        packet: &'a Packet,
        class: impl Fn(PortKind, u16) -> Option<u16>,
    ) -> Self {
        let Ports {
            phase,
            kind: port_kind,
            source,
            destination,
        } = packet.ports;
        let by_class = matches!(port_kind, PortKind::Tcp) && !vantage.is(Kind::Arrived);
        let name = |number| {
            if by_class {
                class(port_kind, number).unwrap_or(NO_CLASS)
            } else {
                number
            }
        };
        // The source port of an opening packet does not matter, and would otherwise make a new key each time.
        let source = if matches!(phase, Phase::Opening) {
            0
        } else {
            name(source)
        };
        let how = u16::from(vantage.head()) << 8 | (port_kind as u16) << 4 | phase as u16;
        let ports = u32::from(source) << 16 | u32::from(name(destination));
        let [a, b] = packet.src.halves();
        let [c, d] = packet.dst.halves();
        let number_and_ports = u64::from(vantage.number()) << 32 | u64::from(ports);
        // Odd constants without a pattern: the fractions of the golden ratio and of the roots of 2, 3 and 5. The upper bits
        // of a product depend on all the bits below them.
        let mixed = (a ^ number_and_ports).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ b.wrapping_mul(0x6a09_e667_f3bc_c909)
            ^ (c ^ u64::from(how)).wrapping_mul(0xbb67_ae85_84ca_a73b)
            ^ d.wrapping_mul(0x3c6e_f372_fe94_f82b);
        Self {
            stamp,
            how,
            number_and_ports,
            mixed,
            packet,
        }
    }

    /// Whether a packet has a key: it is judged by its own ports.
    pub const fn has_key(packet: &Packet) -> bool {
        matches!(packet.shape, Shape::Flow)
    }

    /// Whether it belongs to a kind of vantage.
    #[inline(always)]
    pub const fn is_at(&self, kind: Kind) -> bool {
        self.how >> 12 == kind as u16
    }

    /// The index of the entry that may hold its verdict.
    #[inline(always)]
    pub const fn index(&self) -> u32 {
        let entry = (self.mixed >> (u64::BITS - HALF.trailing_zeros())) as u32;
        if self.is_at(Kind::Sent) {
            HALF + entry
        } else {
            entry
        }
    }
}

/// A key and its verdict, in one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CacheEntry {
    /// A sequence counter: odd while the entry is being written. The send path can be interrupted while it writes an entry,
    /// by a program that uses the same entry: that program then does not write, and an interrupted reader finds that the
    /// version has changed.
    pub version: u32,
    /// [`Stamp::tick`].
    pub tick: u32,
    /// [`Stamp::epoch`].
    pub epoch: u32,
    /// [`Vantage::head`], and port kind and phase with four bits each; 0 if the entry is empty.
    pub how: u16,
    /// The [mark](crate::mark) that goes with the verdict.
    pub mark: u16,
    /// [`Vantage::number`] in the upper half, and below it source port and destination port, or their classes.
    pub number_and_ports: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// Packets that were denied by this entry and are not in a record yet. Counting each in its record at once would take
    /// the packet a quarter longer, see docs/bench/notes.md.
    pub pending: u32,
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
}

const _: () = assert!(size_of::<CacheEntry>() == 64);

impl CacheEntry {
    /// Whether it holds the verdict of a key.
    #[inline(always)]
    pub fn matches(&self, key: &CacheKey<'_>) -> bool {
        self.tick == key.stamp.tick
            && self.how == key.how
            && self.number_and_ports == key.number_and_ports
            && self.epoch == key.stamp.epoch
            && self.src == key.packet.src
            && self.dst == key.packet.dst
    }

    /// Whether an entry with that version is being written.
    pub const fn is_written(version: u32) -> bool {
        version & 1 != 0
    }

    /// Stores a key and its verdict. What was [pending](Self::pending) must have been added to its record, and the
    /// [version](Self::version) must say that the entry is being written.
    #[inline(always)]
    pub fn store(&mut self, key: &CacheKey<'_>, verdict: Verdict, mark: PacketMark) {
        self.tick = key.stamp.tick;
        self.epoch = key.stamp.epoch;
        self.how = key.how;
        self.number_and_ports = key.number_and_ports;
        self.verdict = verdict;
        self.mark = mark.word();
        self.pending = 0;
        // By words: the compiler would call a function to move these bytes one by one.
        let [a, b] = key.packet.src.halves();
        let [c, d] = key.packet.dst.halves();
        (self.src, self.dst) = (Ip::of_halves([a, b]), Ip::of_halves([c, d]));
    }

    /// The record that the pending packets belong to. Only denials at an interface's ingress hook are counted here.
    #[inline(always)]
    pub fn record(&self) -> Option<RecordKey> {
        let Outcome::Denied(denial) = self.verdict.outcome() else {
            return None;
        };
        if self.how >> 12 != Kind::Arrived as u16 {
            return None;
        }
        let whose = Whose {
            hook: Hook::TcIngress,
            kind: subject::INTERFACE,
            subject: self.number_and_ports >> 32,
        };
        let flow = FlowKey {
            src: self.src,
            dst: self.dst,
            source: (self.number_and_ports >> 16) as u16,
            destination: self.number_and_ports as u16,
            port_kind: u32::from(self.how >> 4 & 0xf),
        };
        let port_kind = PortKind::from_code(flow.port_kind as u8)?;
        Some(RecordKey::of_flow(whose, denial, port_kind, &flow))
    }
}

/// Cgroups of each CPU whose party is cached.
pub const CGROUPS: u32 = 64;

/// A cgroup, declared or not, and the party of its processes and sockets.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CgroupParty {
    /// The cgroup's id.
    pub cgroup: u64,
    /// The epoch in the upper half; below it 20 bits of a hash of the cgroup's id, by which a reader detects that two
    /// programs wrote the two words at once; and 12 bits of party.
    pub word: u64,
}

const _: () = assert!(MAX_PARTIES == 1 << 12);

impl CgroupParty {
    /// The party of a cgroup in an epoch, which is not 0.
    #[inline(always)]
    pub const fn new(cgroup: u64, epoch: u32, party: Party) -> Self {
        let word = Self::frame(cgroup, epoch) | party as u64;
        Self { cgroup, word }
    }

    /// The index of a cgroup's element.
    #[inline(always)]
    pub const fn slot(cgroup: u64) -> u32 {
        (Self::hash(cgroup) >> 58) as u32 % CGROUPS
    }

    /// The party, if the element is of that cgroup and that epoch.
    #[inline(always)]
    pub const fn party(&self, cgroup: u64, epoch: u32) -> Option<Party> {
        let party = self.word ^ Self::frame(cgroup, epoch);
        if self.cgroup == cgroup && party < MAX_PARTIES as u64 && epoch != 0 {
            Some(party as Party)
        } else {
            None
        }
    }

    const fn hash(cgroup: u64) -> u64 {
        let low = cgroup.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (low ^ low >> 32).wrapping_mul(0x6a09_e667_f3bc_c909)
    }

    const fn frame(cgroup: u64, epoch: u32) -> u64 {
        (epoch as u64) << 32 | (Self::hash(cgroup) >> 20 & 0xf_ffff) << 12
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        tables::Role,
        vantage::{Entered, Origin, View},
        verdict::Reason,
    };

    const NOW: Stamp = Stamp { epoch: 3, tick: 7 };
    const HERE: Vantage = Vantage::new(View::Arrived {
        role: Role::Uplink,
        interface: 5,
    });

    fn packet(phase: Phase) -> Packet {
        let ports = Ports {
            phase,
            kind: PortKind::Udp,
            source: 1000,
            destination: 53,
        };
        Packet::flow(Ip::v4([10, 0, 0, 1]), Ip::v4([10, 0, 0, 2]), ports)
    }

    /// Ports below 1024 have classes of their own.
    fn class(_: PortKind, number: u16) -> Option<u16> {
        Some(if number < 1024 { number } else { 0 })
    }

    fn key(vantage: Vantage, stamp: Stamp, packet: &Packet) -> CacheKey<'_> {
        CacheKey::new(vantage, stamp, packet, class)
    }

    const MARK: PacketMark = PacketMark::JUDGED;
    const ELSEWHERE: [Vantage; 3] = [
        Vantage::new(View::Left {
            entered: Entered::FromPod,
            to_pod: false,
        }),
        Vantage::new(View::Sent {
            sender: 5,
            origin: Origin::Socket,
            on_lo: false,
        }),
        Vantage::new(View::Received {
            receiver: 5,
            role: Role::Uplink,
            judged: true,
        }),
    ];

    fn entry(key: &CacheKey<'_>) -> CacheEntry {
        let mut entry: CacheEntry = zerocopy::transmute!([0_u32; 16]);
        assert!(!entry.matches(key), "an empty entry matches");
        let denied = Verdict::denied(Reason::NoPath, false, true);
        entry.store(key, denied, MARK);
        assert!(entry.matches(key));
        entry
    }

    /// Whatever differs, the entry has no answer.
    #[test]
    fn an_entry_matches_its_own_key_only() {
        let first = packet(Phase::Datagram);
        let entry = entry(&key(HERE, NOW, &first));
        assert_eq!(entry.mark, MARK.word());
        type Change = fn(&mut Vantage, &mut Stamp, &mut Packet);
        let changes: [Change; 12] = [
            |_, now, _| now.epoch += 1,
            |_, now, _| now.tick += 1,
            |vantage, _, _| {
                *vantage = Vantage::new(View::Received {
                    receiver: 5,
                    role: Role::Uplink,
                    judged: false,
                });
            },
            |vantage, _, _| {
                *vantage = Vantage::new(View::Arrived {
                    role: Role::Pod,
                    interface: 5,
                });
            },
            |vantage, _, _| {
                *vantage = Vantage::new(View::Arrived {
                    role: Role::Uplink,
                    interface: 6,
                });
            },
            |_, _, packet| packet.src = Ip::v4([10, 0, 0, 3]),
            |_, _, packet| packet.dst = Ip::v4([10, 0, 0, 3]),
            |_, _, packet| packet.src.0[0] = 1,
            |_, _, packet| packet.ports.kind = PortKind::Tcp,
            |_, _, packet| packet.ports.phase = Phase::Following,
            |_, _, packet| packet.ports.source += 1,
            |_, _, packet| packet.ports.destination += 1,
        ];
        for (number, change) in changes.iter().enumerate() {
            let (mut vantage, mut now, mut packet) = (HERE, NOW, first);
            change(&mut vantage, &mut now, &mut packet);
            assert!(!entry.matches(&key(vantage, now, &packet)), "{number}");
        }
    }

    #[test]
    fn what_is_sent_has_entries_of_its_own() {
        let packet = packet(Phase::Datagram);
        for vantage in [HERE].into_iter().chain(ELSEWHERE) {
            let own = key(vantage, NOW, &packet).index() >= HALF;
            assert_eq!(own, vantage.is(Kind::Sent), "{vantage:?}");
        }
    }

    #[test]
    fn what_opens_has_one_key_from_every_port() {
        let mut packet = packet(Phase::Opening);
        let first = key(HERE, NOW, &packet);
        let (entry, index) = (entry(&first), first.index());
        packet.ports.source += 1;
        let second = key(HERE, NOW, &packet);
        assert!(entry.matches(&second) && second.index() == index);
    }

    /// At sockets, where nothing is counted in entries.
    #[test]
    fn connections_between_the_same_two_have_one_key() {
        let mut packet = packet(Phase::Following);
        packet.ports = Ports {
            kind: PortKind::Tcp,
            source: 40_000,
            destination: 443,
            ..packet.ports
        };
        for vantage in ELSEWHERE {
            let entry = entry(&key(vantage, NOW, &packet));
            let mut other = packet;
            other.ports.source += 1;
            assert!(entry.matches(&key(vantage, NOW, &other)));
            other.ports.destination = 444;
            assert!(!entry.matches(&key(vantage, NOW, &other)));
        }
        let entry = entry(&key(HERE, NOW, &packet));
        packet.ports.source += 1;
        assert!(!entry.matches(&key(HERE, NOW, &packet)));
    }

    #[test]
    fn neighbours_have_entries_of_their_own() {
        let mut taken = std::collections::HashSet::new();
        let mut packet = packet(Phase::Following);
        for last in 0..64 {
            packet.src.0[15] = last;
            taken.insert(key(HERE, NOW, &packet).index());
        }
        assert!(taken.len() > 40, "{} entries for 64", taken.len());
    }

    #[test]
    fn a_cgroup_is_who_it_is_in_its_epoch() {
        let one = CgroupParty::new(77, 3, 4095);
        assert_eq!(one.party(77, 3), Some(4095));
        assert_eq!(one.party(77, 4), None);
        assert_eq!(one.party(78, 3), None);
        assert_eq!(CgroupParty::default().party(0, 0), None);
        let other = CgroupParty::new(78, 3, 5);
        let torn = CgroupParty {
            word: other.word,
            ..one
        };
        assert_eq!(torn.party(77, 3), None);
        let slots: std::collections::HashSet<u32> = (5000..5064).map(CgroupParty::slot).collect();
        assert!(slots.len() > 30, "{} slots for 64", slots.len());
    }

    #[test]
    fn what_is_pending_belongs_to_who_opened() {
        let packet = packet(Phase::Datagram);
        let mut entry = entry(&key(HERE, NOW, &packet));
        let record = entry.record().unwrap();
        assert_eq!(
            (record.src, record.dst, record.port),
            (packet.src, packet.dst, 53)
        );
        assert_eq!((record.subject, record.hook), (5, Hook::TcIngress as u8));
        entry.verdict = entry.verdict.back();
        let record = entry.record().unwrap();
        assert_eq!(
            (record.src, record.dst, record.port),
            (packet.dst, packet.src, 1000)
        );
        entry.verdict = Verdict::OTHER;
        assert_eq!(entry.record(), None);
    }
}
