//! What the kernel programs keep of denials: one record per distinct combination, with a count.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Ip,
    limits::{MAX_RECORDS, MAX_TARGETS},
    packet::PortKind,
    tables::FlowKey,
    verdict::{Denial, Direction},
};

/// Where a verdict was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hook {
    /// TC ingress of an uplink or of a pod's interface.
    TcIngress = 1,
    /// TC egress: packet sockets, and forwarded packets after translation.
    TcEgress = 2,
    /// `cgroup_skb` egress: a packet leaves a local socket.
    CgroupEgress = 3,
    /// `cgroup_skb` ingress: a packet is handed to a local socket.
    CgroupIngress = 4,
    /// `cgroup/connect4` and `connect6`.
    Connect = 5,
    /// `cgroup/sendmsg4` and `sendmsg6`.
    Sendmsg = 6,
    /// `cgroup/bind4` and `bind6`.
    Bind = 7,
    /// `cgroup/setsockopt`.
    Setsockopt = 8,
    /// `cgroup/sock_create`: stamps new sockets, and denies nothing.
    SockCreate = 9,
}

impl Hook {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::TcIngress,
        Self::TcEgress,
        Self::CgroupEgress,
        Self::CgroupIngress,
        Self::Connect,
        Self::Sendmsg,
        Self::Bind,
        Self::Setsockopt,
        Self::SockCreate,
    ];

    /// The hook with that number.
    pub const fn from_code(code: u8) -> Option<Self> {
        if code == 0 || code as usize > Self::ALL.len() {
            return None;
        }
        Some(Self::ALL[code as usize - 1])
    }

    /// 0 where its programs run with the kernel's bottom halves off, so that on one CPU they come one after the other; 1
    /// where those of the first kind may come between, or others of its own kind.
    pub const fn counter_lane(self) -> usize {
        match self {
            Self::TcIngress | Self::TcEgress | Self::CgroupIngress => 0,
            Self::CgroupEgress
            | Self::Connect
            | Self::Sendmsg
            | Self::Bind
            | Self::Setsockopt
            | Self::SockCreate => 1,
        }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcIngress => "tc/ingress",
            Self::TcEgress => "tc/egress",
            Self::CgroupEgress => "cgroup/egress",
            Self::CgroupIngress => "cgroup/ingress",
            Self::Connect => "cgroup/connect",
            Self::Sendmsg => "cgroup/sendmsg",
            Self::Bind => "cgroup/bind",
            Self::Setsockopt => "cgroup/setsockopt",
            Self::SockCreate => "cgroup/sock_create",
        }
    }
}

/// What kind of subject a record names.
pub mod subject {
    /// `subject` is the id of a cgroup.
    pub const CGROUP: u8 = 1;
    /// `subject` is the index of an interface.
    pub const INTERFACE: u8 = 2;
}

/// What makes a denial distinct. Source and destination are those of the connection: a denied reply
/// is kept under the direction of its opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordKey {
    /// A cgroup id or an interface index, as `subject_kind` says.
    pub subject: u64,
    /// Who opened, or would have.
    pub src: Ip,
    /// What it was for. All zero where the packet could not be read.
    pub dst: Ip,
    /// Destination port, message type or protocol, in host byte order.
    pub port: u16,
    /// Number of a [`crate::packet::PortKind`]; [`NO_PORT_KIND`] where the packet could not be read or has
    /// no ports.
    pub space: u8,
    /// Number of a [`Hook`].
    pub hook: u8,
    /// Number of a [`crate::verdict::Reason`].
    pub reason: u8,
    /// One of [`subject`].
    pub subject_kind: u8,
    /// 1 where nothing was dropped.
    pub dry_run: u8,
    /// 1 for a reply of a connection or flow, whose `src` and `dst` are then those of its opening.
    pub reply: u8,
}

/// Who was denied, and at which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whose {
    /// The hook.
    pub hook: Hook,
    /// One of [`subject`].
    pub kind: u8,
    /// A cgroup id or an interface index, as `kind` says.
    pub subject: u64,
}

impl RecordKey {
    /// The key of a denial between two addresses, without ports: it has the direction of its packet.
    #[inline(always)]
    pub fn between(whose: Whose, denial: Denial, src: Ip, dst: Ip) -> Self {
        let Whose {
            hook,
            kind,
            subject,
        } = whose;
        Self {
            subject,
            src,
            dst,
            port: 0,
            space: NO_PORT_KIND,
            hook: hook as u8,
            reason: denial.reason.code(),
            subject_kind: kind,
            dry_run: u8::from(denial.dry_run),
            reply: 0,
        }
    }

    /// Where records with this key are counted.
    #[inline(always)]
    pub fn place(&self) -> RecordPlace {
        RecordPlace::between(&self.src, &self.dst)
    }

    /// The key of a denied packet of a flow, in either direction: whoever opened it comes first.
    #[inline(always)]
    pub fn of_flow(whose: Whose, denial: Denial, space: PortKind, flow: &FlowKey) -> Self {
        let mut key = Self::between(whose, denial, flow.src, flow.dst);
        (key.space, key.port) = (space as u8, flow.destination);
        if matches!(denial.direction, Direction::Reply) {
            (key.src, key.dst, key.port) = (flow.dst, flow.src, flow.source);
            key.reply = 1;
        }
        key
    }

    /// The source address of the packet itself, whoever opened.
    #[inline(always)]
    pub const fn packet_src(&self) -> &Ip {
        if self.reply == 0 {
            &self.src
        } else {
            &self.dst
        }
    }
}

/// Where it is counted how many records there are between two addresses, whoever opened: where there is none, a flood of
/// denials without a record is spared the search. Never fewer than there are: a record is counted before it is made, and
/// no longer after it was taken out.
///
/// Four counts are in a word, as the more of them are in the processor's caches, the better. None can run over into the
/// next: it has 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPlace(u32);

const _: () = assert!(MAX_RECORDS <= 1 << 15);

impl RecordPlace {
    /// Words of counts.
    pub const WORDS: u32 = 1 << 14;
    /// Behind them, how many records there are in all.
    pub const ALL: u32 = Self::WORDS;

    /// Of a packet between two addresses, either way.
    #[inline(always)]
    pub fn between(src: &Ip, dst: &Ip) -> Self {
        let both = src.mixed().wrapping_add(dst.mixed());
        Self((both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32)
    }

    /// The word that the count is in.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 / 4 % Self::WORDS
    }

    /// One more, to be added to the word.
    #[inline(always)]
    pub const fn one(self) -> u64 {
        1 << self.shift()
    }

    /// The count in the word.
    #[inline(always)]
    pub const fn count(self, word: u64) -> u16 {
        (word >> self.shift()) as u16
    }

    const fn shift(self) -> u32 {
        self.0 % 4 * 16
    }
}

/// A sender and what it was denied, whatever addresses it used: a flood from everywhere is one of these. The first denial of
/// each has a record, also when a flood takes all the [room](crate::limits::NEW_RECORDS_A_TICK) that there is for others.
/// For guarded endpoints only, which are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PairKey {
    /// As in [`RecordKey`].
    pub subject: u64,
    /// Likewise.
    pub port: u16,
    /// Likewise.
    pub space: u8,
    /// Likewise.
    pub hook: u8,
    /// Likewise.
    pub reason: u8,
    /// Likewise.
    pub subject_kind: u8,
    /// Always zero.
    pub padding: u16,
}

impl PairKey {
    /// Of a record.
    #[inline(always)]
    pub const fn of(key: &RecordKey) -> Self {
        Self {
            subject: key.subject,
            port: key.port,
            space: key.space,
            hook: key.hook,
            reason: key.reason,
            subject_kind: key.subject_kind,
            padding: 0,
        }
    }
}

/// No ports were read.
pub const NO_PORT_KIND: u8 = 0xff;

/// What is known of all denials of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordValue {
    /// How many packets or calls. Exact.
    pub count: u64,
    /// Of the first, in nanoseconds of `CLOCK_BOOTTIME`.
    pub first_ns: u64,
    /// Of the last, likewise; good to a tick of the kernel's clock.
    pub last_ns: u64,
    /// The kernel's ticks (jiffies) at that time: only when they have moved on, a clock is read.
    pub tick: u64,
    /// Process of the first, where the hook knows it; else 0.
    pub pid: u32,
    /// Generation of the policy that denied the first. `sender` and `target` are numbers of its tables.
    pub generation: u32,
    /// Name of that process, padded with zeros.
    pub comm: [u8; 16],
    /// Who sent the first, as its judge knew it ([`crate::tables::Party`]).
    pub sender: u16,
    /// The set of endpoints that was meant; [`NO_TARGET`] where there was no port to tell.
    pub target: u16,
    /// Source port of the first, in host byte order.
    pub source_port: u16,
    /// Always zero.
    pub padding: u16,
}

/// Nothing was meant that could be told: a packet without ports, or one that could not be read.
pub const NO_TARGET: u16 = u16::MAX;

const _: () = assert!(MAX_TARGETS < NO_TARGET as u32);

const _: () = assert!(size_of::<RecordKey>() == 48 && size_of::<RecordValue>() == 64);
const _: () = assert!(size_of::<PairKey>() == 16 && size_of::<SocketState>().is_multiple_of(8));

/// What is kept on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketState {
    /// One of [`netns`].
    pub netns: u32,
    /// Process that made it or connected it last.
    pub pid: u32,
    /// Name of that process, padded with zeros.
    pub comm: [u8; 16],
    /// The verdict for what it sends: its epoch in the high half, its counter plus 1 in the low half,
    /// in one word so that the two can not part. 0 for none. Only what is allowed is kept.
    pub egress: u64,
    /// The same for what it receives.
    pub ingress: u64,
    /// Both ends that the verdicts were made for, as the socket has them: local port, in host byte
    /// order.
    pub local_port: u32,
    /// Remote port, in network byte order.
    pub remote_port: u32,
    /// Local address, the socket's own form: its words for IPv6, and that for IPv4.
    pub local_addr: [u32; 5],
    /// Remote address, likewise.
    pub remote_addr: [u32; 5],
    /// 1 where the connection began with something else than the TLS that its path asks for: no more
    /// of it passes. For the same ends.
    pub cut: u32,
    /// 1 where the socket has sent to a server whose path asks for TLS: what it sends first is looked at once more when
    /// it can change no more. For the same ends.
    pub client: u32,
    /// 1 while the socket is bound to whatever port is free: which one that is has to be judged when it is known.
    pub any_port: u32,
    /// Always zero.
    pub padding: u32,
}

impl SocketState {
    /// The word to keep for a number that holds for an epoch.
    pub const fn kept(epoch: u32, number: u32) -> u64 {
        (epoch as u64) << 32 | (number as u64 + 1)
    }

    /// The number in a kept word, if it is of that epoch.
    pub const fn number(kept: u64, epoch: u32) -> Option<u32> {
        if kept as u32 == 0 || (kept >> 32) as u32 != epoch {
            return None;
        }
        Some(kept as u32 - 1)
    }
}

/// Which network namespace a socket belongs to.
pub mod netns {
    /// Made before the programs were attached: not known.
    pub const UNKNOWN: u32 = 0;
    /// The one this agent enforces in.
    pub const HOST: u32 = 1;
    /// Another: a pod's own. Its packets are judged at its interface.
    pub const OTHER: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_counted_at_one_place() {
        let (a, b) = (Ip::v4([10, 0, 0, 1]), Ip([0xfd; 16]));
        assert_eq!(RecordPlace::between(&a, &b), RecordPlace::between(&b, &a));
    }

    #[test]
    fn counts_do_not_touch_each_other() {
        let places: Vec<RecordPlace> = (0..4).map(RecordPlace).collect();
        let mut word = 0_u64;
        for (place, count) in places.iter().zip([1, MAX_RECORDS, 0, MAX_RECORDS]) {
            assert_eq!(place.word(), 0);
            word += place.one() * u64::from(count);
        }
        let counts = |word| places.iter().map(move |place| place.count(word));
        assert!(counts(word).eq([1, MAX_RECORDS as u16, 0, MAX_RECORDS as u16]));
        word = word.wrapping_add(places[0].one().wrapping_neg());
        assert!(counts(word).eq([0, MAX_RECORDS as u16, 0, MAX_RECORDS as u16]));
        assert!(RecordPlace(u32::from(u16::MAX)).word() < RecordPlace::WORDS);
    }

    #[test]
    fn neighbours_are_spread() {
        let node = Ip::v4([10, 0, 0, 1]);
        let of = |number: u32| Ip::v4((0x0a63_0000 + number * 2).to_be_bytes());
        let places = (0..20_000).map(|number| RecordPlace::between(&of(number), &node).0);
        let distinct: std::collections::HashSet<u32> = places.collect();
        // So many by chance: 65,536 × (1 - e^(-20,000 / 65,536)).
        assert!(
            (16_500..18_500).contains(&distinct.len()),
            "{}",
            distinct.len()
        );
    }
}
