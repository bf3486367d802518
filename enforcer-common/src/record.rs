//! Records of denials, which the kernel programs write: one per distinct denial, with a count.

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

/// What makes a denial distinct. Source and destination are those of the connection: a denied reply has the direction in
/// which its connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordKey {
    /// A cgroup id or an interface index, as `subject_kind` says.
    pub subject: u64,
    /// The address that opened the connection, or tried to.
    pub src: Ip,
    /// The address of the endpoint. All zero if the packet could not be parsed.
    pub dst: Ip,
    /// Destination port, message type or protocol, in host byte order.
    pub port: u16,
    /// Number of a [`crate::packet::PortKind`]; [`NO_PORT_KIND`] if the packet could not be parsed or has no ports.
    pub port_kind: u8,
    /// Number of a [`Hook`].
    pub hook: u8,
    /// Number of a [`crate::verdict::Reason`].
    pub reason: u8,
    /// One of [`subject`].
    pub subject_kind: u8,
    /// 1 if nothing was dropped.
    pub dry_run: u8,
    /// 1 for a reply of a connection or flow; `src` and `dst` are then those of its first packet.
    pub reply: u8,
}

/// The denied subject, and the hook that denied it.
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
    /// The key of a denial between two addresses, without ports, in the direction of its packet.
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
            port_kind: NO_PORT_KIND,
            hook: hook as u8,
            reason: denial.reason.code(),
            subject_kind: kind,
            dry_run: u8::from(denial.dry_run),
            reply: 0,
        }
    }

    /// The counter that counts records with this key.
    #[inline(always)]
    pub fn counter(&self) -> RecordCounter {
        RecordCounter::between(&self.src, &self.dst)
    }

    /// The key of a denied packet of a flow in either direction: the opener's address is the source.
    #[inline(always)]
    pub fn of_flow(whose: Whose, denial: Denial, port_kind: PortKind, flow: &FlowKey) -> Self {
        let mut key = Self::between(whose, denial, flow.src, flow.dst);
        (key.port_kind, key.port) = (port_kind as u8, flow.destination);
        if matches!(denial.direction, Direction::Reply) {
            (key.src, key.dst, key.port) = (flow.dst, flow.src, flow.source);
            key.reply = 1;
        }
        key
    }

    /// The source address of the packet itself, in whichever direction it goes.
    #[inline(always)]
    pub const fn packet_src(&self) -> &Ip {
        if self.reply == 0 {
            &self.src
        } else {
            &self.dst
        }
    }
}

/// A bucket of counts: how many records there are between two addresses, in either direction. Where the count is 0, a
/// denial without a record skips the search for one: without that, a packet of a flood from many sources takes 7 % longer
/// (docs/bench/notes.md). The count is never too low: a record is counted before it is inserted, and uncounted after it was
/// removed.
///
/// Four counts of 16 bits share a word, so that more of them fit into the processor's caches. None can overflow into the
/// next, as there are fewer records than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordCounter(u32);

const _: () = assert!(MAX_RECORDS <= 1 << 15);

impl RecordCounter {
    /// Words of counts.
    pub const WORDS: u32 = 1 << 14;
    /// The index of the word behind them, which counts all records.
    pub const ALL: u32 = Self::WORDS;

    /// The counter of two addresses, in either direction.
    #[inline(always)]
    pub fn between(src: &Ip, dst: &Ip) -> Self {
        let both = src.mixed().wrapping_add(dst.mixed());
        Self((both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32)
    }

    /// The index of the word that holds the count.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 / 4 % Self::WORDS
    }

    /// What to add to the word to count one more record.
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

/// A sender and the endpoint that it was denied, regardless of the addresses it used: a flood with many source addresses is
/// a single pair. The first denial of each pair gets a record even while a flood uses up the
/// [allowance](crate::limits::NEW_RECORDS_A_TICK) for other records. For guarded endpoints only, which are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PairKey {
    /// As in [`RecordKey`].
    pub subject: u64,
    /// Likewise.
    pub port: u16,
    /// Likewise.
    pub port_kind: u8,
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
    /// The pair of a record.
    #[inline(always)]
    pub const fn of(key: &RecordKey) -> Self {
        Self {
            subject: key.subject,
            port: key.port,
            port_kind: key.port_kind,
            hook: key.hook,
            reason: key.reason,
            subject_kind: key.subject_kind,
            padding: 0,
        }
    }
}

/// No ports were read.
pub const NO_PORT_KIND: u8 = 0xff;

/// What is known of all denials with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordValue {
    /// How many packets or calls. Exact.
    pub count: u64,
    /// Time of the first, in nanoseconds of `CLOCK_BOOTTIME`.
    pub first_ns: u64,
    /// Time of the last, with the resolution of a tick of the kernel's clock.
    pub last_ns: u64,
    /// The kernel's ticks (jiffies) at that time. The clock is read only when they have advanced.
    pub tick: u64,
    /// Process of the first, if the hook knows it; else 0.
    pub pid: u32,
    /// Generation of the policy that denied the first. `sender` and `target` are numbers of its tables.
    pub generation: u32,
    /// Name of that process, padded with zeros.
    pub comm: [u8; 16],
    /// The sender of the first, as its judge identified it ([`crate::tables::Party`]).
    pub sender: u16,
    /// The set of endpoints that was addressed; [`NO_TARGET`] if there is no port.
    pub target: u16,
    /// Source port of the first, in host byte order.
    pub source_port: u16,
    /// Always zero.
    pub padding: u16,
}

/// No endpoint: a packet without ports, or one that could not be parsed.
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
    /// Process that created it, or connected it last.
    pub pid: u32,
    /// Name of that process, padded with zeros.
    pub comm: [u8; 16],
    /// The verdict for what it sends: its epoch in the high half, its counter plus 1 in the low half, in one word so that
    /// both are written at once. 0 for none. Only verdicts that allow are kept.
    pub egress: u64,
    /// The same for what it receives.
    pub ingress: u64,
    /// The socket's two ends, for which the verdicts hold: local port, in host byte order.
    pub local_port: u32,
    /// Remote port, in network byte order.
    pub remote_port: u32,
    /// Local address as the socket stores it: its words for IPv6, and that for IPv4.
    pub local_addr: [u32; 5],
    /// Remote address, in the same form.
    pub remote_addr: [u32; 5],
    /// 1 if the connection did not begin with the TLS that its path requires, so that no more of it passes. Valid for the
    /// same two ends.
    pub cut: u32,
    /// 1 if the socket has sent to a server whose path requires TLS: what it sends first is checked once more where the
    /// bytes can not change any more. Valid for the same two ends.
    pub client: u32,
    /// 1 while the socket is bound to a port that the kernel chooses: it is judged once the port is known.
    pub any_port: u32,
    /// Always zero.
    pub padding: u32,
}

impl SocketState {
    /// The word that stores a counter number for an epoch.
    pub const fn kept(epoch: u32, number: u32) -> u64 {
        (epoch as u64) << 32 | (number as u64 + 1)
    }

    /// The number in such a word, if it is of that epoch.
    pub const fn number(kept: u64, epoch: u32) -> Option<u32> {
        if kept as u32 == 0 || (kept >> 32) as u32 != epoch {
            return None;
        }
        Some(kept as u32 - 1)
    }
}

/// Which network namespace a socket belongs to.
pub mod netns {
    /// Not known: the socket was created before the programs were attached.
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
        assert_eq!(
            RecordCounter::between(&a, &b),
            RecordCounter::between(&b, &a)
        );
    }

    #[test]
    fn counts_do_not_touch_each_other() {
        let counters: Vec<RecordCounter> = (0..4).map(RecordCounter).collect();
        let mut word = 0_u64;
        for (counter, count) in counters.iter().zip([1, MAX_RECORDS, 0, MAX_RECORDS]) {
            assert_eq!(counter.word(), 0);
            word += counter.one() * u64::from(count);
        }
        let counts = |word| counters.iter().map(move |counter| counter.count(word));
        assert!(counts(word).eq([1, MAX_RECORDS as u16, 0, MAX_RECORDS as u16]));
        word = word.wrapping_add(counters[0].one().wrapping_neg());
        assert!(counts(word).eq([0, MAX_RECORDS as u16, 0, MAX_RECORDS as u16]));
        assert!(RecordCounter(u32::from(u16::MAX)).word() < RecordCounter::WORDS);
    }

    #[test]
    fn neighbours_are_spread() {
        let node = Ip::v4([10, 0, 0, 1]);
        let of = |number: u32| Ip::v4((0x0a63_0000 + number * 2).to_be_bytes());
        let counters = (0..20_000).map(|number| RecordCounter::between(&of(number), &node).0);
        let distinct: std::collections::HashSet<u32> = counters.collect();
        // So many by chance: 65,536 × (1 - e^(-20,000 / 65,536)).
        assert!(
            (16_500..18_500).contains(&distinct.len()),
            "{}",
            distinct.len()
        );
    }
}
