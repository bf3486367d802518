//! Verdicts: the result of a decision, its reasons and its counters.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Why something is denied. The numbers are append-only: one that is no longer used is never assigned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// No policy is loaded, or a table entry is unset. An unset entry always denies.
    NoPolicy = 1,
    /// A declared endpoint, and no path leads there from the sender.
    NoPath = 2,
    /// The endpoint is for loopback only, and this is another address of it.
    LoopbackOnly = 3,
    /// A path exists on this node, but not for the sender's cgroup.
    WrongProcess = 4,
    /// No declared endpoint and no path, under `otherTraffic: Drop`.
    OtherTraffic = 5,
    /// The source address can not be valid at the interface or socket where the packet comes from.
    ForgedSource = 6,
    /// A loopback address on a non-loopback interface.
    LoopbackOffLo = 7,
    /// A later fragment between parties that have no path at all.
    FragmentWithoutPath = 8,
    /// A first fragment without all the bytes that decide, or a later one that would overwrite them.
    FragmentTooShort = 9,
    /// The packet ends within a header.
    TruncatedHeader = 10,
    /// A header that contradicts itself (version, length).
    BadHeader = 11,
    /// More IPv6 extension headers than are read, or one in a position where it is not allowed.
    TooManyHeaders = 12,
    /// Neither IP nor ARP, under `otherTraffic: Drop`.
    UnknownProtocol = 13,
    /// An ICMP error about a packet that was not allowed itself.
    IcmpQuotesDenied = 14,
    /// An ICMP error whose quoted packet can not be read or was never sent by the receiver.
    IcmpBadQuote = 15,
    /// A process binds a loopback-only endpoint to a non-loopback address.
    BindNotLoopback = 16,
    /// A process binds the port of a component that it does not belong to.
    BindForeignPort = 17,
    /// A path leads there, but only for a peer on the same node.
    OtherNode = 18,
    /// A declared endpoint to which no path leads: closed to everybody.
    ClosedPort = 19,
    /// The path requires TLS, and the connection does not begin with a ClientHello.
    NotTls = 20,
    /// A SYN with data through this node, on a path that requires TLS: the beginning of the stream would be ambiguous.
    FastOpenThrough = 21,
    /// A socket requested a send path that bypasses every hook, or a frame was sent by one.
    BypassesHooks = 22,
    /// A checksum offload would overwrite bytes after they were judged.
    ChecksumElsewhere = 23,
    /// The receiving socket does not belong to the component whose port it is.
    ForeignListener = 24,
    /// Multipath TCP on a path that requires TLS: its server may read data that comes by another connection.
    MultipathTls = 25,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 25] = [
        Self::NoPolicy,
        Self::NoPath,
        Self::LoopbackOnly,
        Self::WrongProcess,
        Self::OtherTraffic,
        Self::ForgedSource,
        Self::LoopbackOffLo,
        Self::FragmentWithoutPath,
        Self::FragmentTooShort,
        Self::TruncatedHeader,
        Self::BadHeader,
        Self::TooManyHeaders,
        Self::UnknownProtocol,
        Self::IcmpQuotesDenied,
        Self::IcmpBadQuote,
        Self::BindNotLoopback,
        Self::BindForeignPort,
        Self::OtherNode,
        Self::ClosedPort,
        Self::NotTls,
        Self::FastOpenThrough,
        Self::BypassesHooks,
        Self::ChecksumElsewhere,
        Self::ForeignListener,
        Self::MultipathTls,
    ];

    /// The reason with that number.
    pub const fn from_code(code: u8) -> Option<Self> {
        // No look-up in `ALL`: the kernel programs would have to read it from memory.
        Some(match code {
            1 => Self::NoPolicy,
            2 => Self::NoPath,
            3 => Self::LoopbackOnly,
            4 => Self::WrongProcess,
            5 => Self::OtherTraffic,
            6 => Self::ForgedSource,
            7 => Self::LoopbackOffLo,
            8 => Self::FragmentWithoutPath,
            9 => Self::FragmentTooShort,
            10 => Self::TruncatedHeader,
            11 => Self::BadHeader,
            12 => Self::TooManyHeaders,
            13 => Self::UnknownProtocol,
            14 => Self::IcmpQuotesDenied,
            15 => Self::IcmpBadQuote,
            16 => Self::BindNotLoopback,
            17 => Self::BindForeignPort,
            18 => Self::OtherNode,
            19 => Self::ClosedPort,
            20 => Self::NotTls,
            21 => Self::FastOpenThrough,
            22 => Self::BypassesHooks,
            23 => Self::ChecksumElsewhere,
            24 => Self::ForeignListener,
            25 => Self::MultipathTls,
            _ => return None,
        })
    }

    /// Its number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Its name in files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPolicy => "NoPolicy",
            Self::NoPath => "NoPath",
            Self::LoopbackOnly => "LoopbackOnly",
            Self::WrongProcess => "WrongProcess",
            Self::OtherTraffic => "OtherTraffic",
            Self::ForgedSource => "ForgedSource",
            Self::LoopbackOffLo => "LoopbackOffLo",
            Self::FragmentWithoutPath => "FragmentWithoutPath",
            Self::FragmentTooShort => "FragmentTooShort",
            Self::TruncatedHeader => "TruncatedHeader",
            Self::BadHeader => "BadHeader",
            Self::TooManyHeaders => "TooManyHeaders",
            Self::UnknownProtocol => "UnknownProtocol",
            Self::IcmpQuotesDenied => "IcmpQuotesDenied",
            Self::IcmpBadQuote => "IcmpBadQuote",
            Self::BindNotLoopback => "BindNotLoopback",
            Self::BindForeignPort => "BindForeignPort",
            Self::OtherNode => "OtherNode",
            Self::ClosedPort => "ClosedPort",
            Self::NotTls => "NotTls",
            Self::FastOpenThrough => "FastOpenThrough",
            Self::BypassesHooks => "BypassesHooks",
            Self::ChecksumElsewhere => "ChecksumElsewhere",
            Self::ForeignListener => "ForeignListener",
            Self::MultipathTls => "MultipathTls",
        }
    }

    /// A sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoPolicy => "no policy is loaded",
            Self::NoPath => "no path from this sender to this endpoint",
            Self::LoopbackOnly => "this endpoint is for loopback only",
            Self::WrongProcess => "a path exists, but not for this cgroup",
            Self::OtherTraffic => "no path, and all other traffic is dropped",
            Self::ForgedSource => "forged: this source address can not come from there",
            Self::LoopbackOffLo => "loopback address on a non-loopback interface",
            Self::FragmentWithoutPath => "a later fragment between parties without any path",
            Self::FragmentTooShort => "a fragment too short to decide, or one over the ports",
            Self::TruncatedHeader => "the packet ends within a header",
            Self::BadHeader => "a header contradicts itself",
            Self::TooManyHeaders => "too many, or misplaced, IPv6 extension headers",
            Self::UnknownProtocol => "neither IP nor ARP, and all other traffic is dropped",
            Self::IcmpQuotesDenied => "an ICMP error about a packet that is not allowed",
            Self::IcmpBadQuote => "an ICMP error about a packet the receiver never sent",
            Self::BindNotLoopback => "this port may be bound to a loopback address only",
            Self::BindForeignPort => "this port belongs to another component",
            Self::OtherNode => "the path is for the same node only",
            Self::ClosedPort => "closed to everybody: no path leads there",
            Self::NotTls => "the path asks for TLS, and this does not begin with a ClientHello",
            Self::BypassesHooks => "it bypasses every hook that judges what is sent",
            Self::ChecksumElsewhere => "a checksum offload would write over bytes that were judged",
            Self::ForeignListener => "the socket there is not the component's",
            Self::MultipathTls => {
                "multipath TCP on a path that asks for TLS; TCP tries again without"
            }
            Self::FastOpenThrough => {
                "data with the SYN through this node, on a path that asks for TLS; TCP tries again without"
            }
        }
    }
}

/// The direction of a packet along a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the path's sender to its endpoint.
    Forward,
    /// From the endpoint to the sender.
    Reply,
}

/// A verdict packed into a word. Bit 31: allowed; bit 30: by a path; bit 29: the packet passes (allowed, or denied in
/// dry-run); bit 28: guarded; bit 27: reply; bit 26: later fragment; bit 25: a path that requires TLS; bit 24: valid; bits
/// 13 to 0: its [counter], from which the path or the reason follows. Zero is an unset table entry and denies.
///
/// It is a word and not an enum because the tables hold it, and because a BPF function that returns an enum leaves bytes
/// of it unset, which the verifier refuses to copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
#[must_use]
pub struct Verdict(u32);

/// An unpacked verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Allowed by the path with this number.
    Path(u16, Direction),
    /// Not a declared endpoint, and allowed by `otherTraffic: Allow`.
    Other,
    /// A later fragment between parties that have a path; the first one decided.
    LaterFragment,
    /// Denied.
    Denied(Denial),
}

/// A denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// In dry-run: reported, and passed.
    pub dry_run: bool,
    /// Whether the packet opened (or could have opened) a connection, or was a reply.
    pub direction: Direction,
    /// Denied at a declared endpoint, and not just by `otherTraffic: Drop`.
    pub guarded: bool,
}

impl Verdict {
    const ALLOWED: u32 = 1 << 31;
    const PATH: u32 = 1 << 30;
    const PASSES: u32 = 1 << 29;
    const GUARDED: u32 = 1 << 28;
    const REPLY: u32 = 1 << 27;
    const FRAGMENT: u32 = 1 << 26;
    const LOCKED: u32 = 1 << 25;
    const VALID: u32 = 1 << 24;
    const COUNTER: u32 = (1 << 14) - 1;

    /// No policy, or an unset table entry: denied, also in dry-run.
    pub const UNSET: Self = Self(0);
    /// Allowed by `otherTraffic: Allow`.
    pub const OTHER: Self = Self::allowed(counter::OTHER);
    /// A later fragment that may pass.
    pub const LATER_FRAGMENT: Self =
        Self(Self::allowed(counter::LATER_FRAGMENT).0 | Self::FRAGMENT);

    const fn allowed(counter: u32) -> Self {
        Self(Self::VALID | Self::ALLOWED | Self::PASSES | counter)
    }

    /// Allowed by a path.
    pub const fn path(path: u16) -> Self {
        let counter = counter::of_path(path, Direction::Forward);
        Self(Self::allowed(counter).0 | Self::PATH)
    }

    /// The same verdict, for a path to a guarded endpoint.
    pub const fn to_guarded(self) -> Self {
        Self(self.0 | Self::GUARDED)
    }

    /// The same verdict, for a path that requires TLS.
    pub const fn with_tls(self) -> Self {
        Self(self.0 | Self::LOCKED)
    }

    /// Denied.
    pub const fn denied(reason: Reason, dry_run: bool, guarded: bool) -> Self {
        let mut word = Self::VALID;
        if dry_run {
            word |= Self::PASSES;
        }
        if guarded {
            word |= Self::GUARDED;
        }
        Self(word).because(reason)
    }

    /// The same verdict, for a reply.
    pub const fn back(self) -> Self {
        // A path's counter of replies comes right after the path's counter.
        const TO_LOWEST: u32 = Verdict::PATH.trailing_zeros();
        Self(self.0 | Self::REPLY | (self.0 & Self::PATH) >> TO_LOWEST)
    }

    /// A denial for another reason. An unset verdict stays unset.
    pub const fn because(self, reason: Reason) -> Self {
        if self.0 & Self::VALID == 0 {
            return self;
        }
        let counter = counter::of_reason(reason, self.passes());
        Self(self.0 & !Self::COUNTER | counter)
    }

    /// Whether a path allows it.
    pub const fn is_path(self) -> bool {
        self.0 & Self::PATH != 0
    }

    /// The path that allows it, if it is not a reply.
    pub const fn forward_path(self) -> Option<u16> {
        if !self.is_path() || self.0 & Self::REPLY != 0 {
            return None;
        }
        Some((counter::of(self).saturating_sub(counter::PATHS) / 2) as u16)
    }

    /// Whether a path to a guarded endpoint allows it.
    pub const fn is_guarded_path(self) -> bool {
        self.is_path() && self.0 & Self::GUARDED != 0
    }

    /// Whether a path that requires TLS allows it.
    pub const fn is_tls_path(self) -> bool {
        self.is_path() && self.0 & Self::LOCKED != 0
    }

    /// The direction of a packet with this verdict along its path.
    pub const fn direction(self) -> Direction {
        if self.0 & Self::REPLY != 0 {
            Direction::Reply
        } else {
            Direction::Forward
        }
    }

    /// Whether it is denied, in dry-run or not.
    pub const fn is_denied(self) -> bool {
        self.0 & Self::ALLOWED == 0
    }

    /// Whether it is denied at a declared endpoint, not just by `otherTraffic: Drop`.
    pub const fn is_guarded_denial(self) -> bool {
        self.is_denied() && self.0 & (Self::VALID | Self::GUARDED) != Self::VALID
    }

    /// Whether it gets a record. In dry-run a denied reply is only counted, as its connection was reported when it was
    /// opened.
    pub const fn is_recorded(self) -> bool {
        self.is_denied() && self.0 & (Self::PASSES | Self::REPLY) != Self::PASSES | Self::REPLY
    }

    /// The word.
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Unpacks it. An unset verdict or an unknown reason is [`Reason::NoPolicy`].
    pub const fn outcome(self) -> Outcome {
        let direction = self.direction();
        if self.is_path() {
            let number = counter::of(self).saturating_sub(counter::PATHS) / 2;
            return Outcome::Path(number as u16, direction);
        }
        if !self.is_denied() {
            return if self.0 & Self::FRAGMENT != 0 {
                Outcome::LaterFragment
            } else {
                Outcome::Other
            };
        }
        let reason = match counter::reason(counter::of(self)) {
            Some(reason) if self.0 & Self::VALID != 0 => reason,
            _ => Reason::NoPolicy,
        };
        Outcome::Denied(Denial {
            reason,
            dry_run: self.passes(),
            direction,
            guarded: self.is_guarded_denial(),
        })
    }

    /// Whether the packet passes: it is allowed, or denied in dry-run.
    pub const fn passes(self) -> bool {
        self.0 & (Self::VALID | Self::PASSES) == Self::VALID | Self::PASSES
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.outcome().fmt(f)
    }
}

/// Indices of the per-CPU counter array.
pub mod counter {
    use super::{Direction, Reason, Verdict};
    use crate::limits::MAX_PATHS;

    /// `0..64`: denied and dropped, by reason: its code minus one. So the denial of an unset table entry counts as
    /// [`Reason::NoPolicy`].
    pub const DENIED: u32 = 0;
    /// `64..128`: denied in dry-run, by reason.
    pub const WOULD_DENY: u32 = 64;
    /// Allowed by `otherTraffic: Allow`.
    pub const OTHER: u32 = 128;
    /// Later fragments that passed.
    pub const LATER_FRAGMENT: u32 = 129;
    /// Denials without a record, because there was no room for it.
    pub const RECORDS_LOST: u32 = 130;
    /// New records that could not wake the agent at once.
    pub const WAKES_LOST: u32 = 131;
    /// Verdicts kept on sockets.
    pub const KEPT_VERDICTS: u32 = 132;
    /// Packets of connections that were cut off. Their denial is counted once, when the connection is cut.
    pub const CUT: u32 = 133;
    /// `PATHS + 2 * path + direction`: packets on a path.
    pub const PATHS: u32 = 256;
    /// Elements of the array.
    pub const COUNT: u32 = PATHS + 2 * MAX_PATHS;

    const _: () = assert!(COUNT <= Verdict::COUNTER + 1 && PATHS.is_multiple_of(2));

    /// The counter of a verdict.
    pub const fn of(verdict: Verdict) -> u32 {
        verdict.0 & Verdict::COUNTER
    }

    /// The counter of a denial by its reason, dropped or in dry-run.
    pub const fn of_reason(reason: Reason, dry_run: bool) -> u32 {
        let base = if dry_run { WOULD_DENY } else { DENIED };
        base + reason.code() as u32 - 1
    }

    /// The reason that a counter is of.
    pub const fn reason(index: u32) -> Option<Reason> {
        if index >= OTHER {
            return None;
        }
        Reason::from_code((index % WOULD_DENY) as u8 + 1)
    }

    /// The counter of a path in one direction.
    pub const fn of_path(path: u16, direction: Direction) -> u32 {
        PATHS + 2 * path as u32 + matches!(direction, Direction::Reply) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_and_their_numbers_belong_together() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason.code()), index + 1, "{}", reason.name());
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert!(u32::from(reason.code()) < counter::WOULD_DENY);
        }
        assert_eq!(Reason::from_code(0), None);
        assert_eq!(Reason::from_code(26), None);
        let names: HashSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn a_verdict_says_what_was_put_into_it() {
        for reason in Reason::ALL {
            for (dry_run, guarded) in [(false, false), (false, true), (true, false), (true, true)] {
                let verdict = Verdict::denied(reason, dry_run, guarded);
                let direction = Direction::Reply;
                let denial = Denial {
                    reason,
                    dry_run,
                    direction,
                    guarded,
                };
                assert_eq!(verdict.back().outcome(), Outcome::Denied(denial));
                assert_eq!(verdict.passes(), dry_run);
                assert_eq!(verdict.is_guarded_denial(), guarded);
                let other = verdict.because(Reason::IcmpQuotesDenied).back().outcome();
                let reason = Reason::IcmpQuotesDenied;
                assert_eq!(other, Outcome::Denied(Denial { reason, ..denial }));
            }
        }
        let path = Verdict::path(4095);
        assert_eq!(path.outcome(), Outcome::Path(4095, Direction::Forward));
        assert_eq!(path.back().outcome(), Outcome::Path(4095, Direction::Reply));
        assert_eq!(path.to_guarded().outcome(), path.outcome());
        assert!(path.to_guarded().is_guarded_path() && !path.is_guarded_path());
        assert_eq!(Verdict::OTHER.outcome(), Outcome::Other);
        assert_eq!(
            Verdict::LATER_FRAGMENT.back().outcome(),
            Outcome::LaterFragment
        );
        assert!(path.passes() && Verdict::OTHER.passes() && Verdict::LATER_FRAGMENT.passes());
    }

    #[test]
    fn a_hole_denies() {
        for word in [0, 1, Verdict::PASSES, Verdict::VALID, Verdict::VALID | 255] {
            let verdict = Verdict(word);
            let Outcome::Denied(denial) = verdict.outcome() else {
                panic!("{word:#x} lets through");
            };
            assert_eq!(
                (denial.reason, verdict.passes()),
                (Reason::NoPolicy, false),
                "{word:#x}"
            );
        }
        assert!(Verdict::UNSET.is_guarded_denial());
        let counter = counter::of_reason(Reason::NoPolicy, false);
        assert_eq!(counter::of(Verdict::UNSET), counter);
        // The reported reason and the counted one are the same.
        let hole = Verdict::UNSET.because(Reason::IcmpQuotesDenied).back();
        assert_eq!(counter::of(hole), counter);
        assert!(hole.is_guarded_denial() && !hole.passes());
    }

    #[test]
    fn counters_do_not_overlap() {
        let denied = |dry_run| Verdict::denied(Reason::OtherNode, dry_run, true);
        assert_eq!(counter::of(denied(true)), counter::WOULD_DENY + 17);
        assert_eq!(counter::of(denied(false)), counter::DENIED + 17);
        assert_eq!(counter::of(Verdict::OTHER.back()), counter::OTHER);
        assert_eq!(counter::of(Verdict::path(4095).back()), counter::COUNT - 1);
    }
}
