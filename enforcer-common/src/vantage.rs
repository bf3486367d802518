//! Where a packet is judged, and what is known there besides its bytes.
//!
//! A [`Vantage`] is the only input of a judgement besides the packet and the tables ([`crate::judge`]), and it is part of the
//! key of the verdict cache ([`crate::cache`]). If a fact that a verdict depends on were missing from it, one packet could get
//! another's verdict. So it is packed here and nowhere else, from a [`View`] whose every field is matched.

use crate::{
    record::Hook,
    tables::{Party, Role},
};

/// Where a packet is judged, packed into a word that serves as a cache key and as an argument of BPF functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vantage(u64);

/// An unpacked vantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum View {
    /// TC ingress of any interface but lo: the packet has just arrived.
    Arrived {
        /// What the interface is for.
        role: Role,
        /// Its index. Routes differ by interface, and so may the verdict on a pod's packet.
        interface: u32,
    },
    /// TC egress: the packet was forwarded and leaves, perhaps with translated addresses.
    Left {
        /// How it came in.
        entered: Entered,
        /// Whether it leaves by a pod's interface.
        to_pod: bool,
    },
    /// A process of this node sends it: seen at `cgroup_skb` egress, or at TC egress if that hook is bypassed.
    Sent {
        /// The party of the sender's cgroup.
        sender: Party,
        /// What created the packet.
        origin: Origin,
        /// Whether it leaves by lo.
        on_lo: bool,
    },
    /// `cgroup_skb` ingress: a socket of this node is about to receive it.
    Received {
        /// The party of the receiver's cgroup.
        receiver: Party,
        /// The role of the interface by which it came in.
        role: Role,
        /// Whether it was judged at ingress.
        judged: bool,
    },
}

/// The kinds of [`View`]. Each has the number of the hook where it usually occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`View::Arrived`].
    Arrived = Hook::TcIngress as u8,
    /// [`View::Left`].
    Left = Hook::TcEgress as u8,
    /// [`View::Sent`].
    Sent = Hook::CgroupEgress as u8,
    /// [`View::Received`].
    Received = Hook::CgroupIngress as u8,
}

/// How a packet that leaves this node came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entered {
    /// By an uplink, and on this path if one allowed it there.
    ByUplink(Option<u16>),
    /// From a pod that is known by its address.
    FromKnownPod(Party),
    /// In any other way: from a pod, by an undeclared interface, by lo, or from another network namespace. It counts as a
    /// pod's, whatever its source address is, as that is the strictest case.
    FromPod,
}

/// What created a packet that is sent on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Origin {
    /// A socket of this network namespace, or a packet that may open something, whatever made it.
    Socket = 0,
    /// The kernel's own TCP socket, which answers for sockets that have closed. It belongs to no process, so what it sends
    /// counts as sent by the party at its address.
    KernelSocket = 1,
    /// No full socket: the kernel answers for one in TIME_WAIT or half open.
    NoSocket = 2,
    /// A packet socket, or another sender of whole frames.
    Frames = 3,
    /// A socket of another network namespace, whose interface is on top of one of this namespace (macvlan, ipvlan, VLAN).
    OtherNamespace = 4,
}

impl Origin {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Socket,
            1 => Self::KernelSocket,
            2 => Self::NoSocket,
            3 => Self::Frames,
            _ => Self::OtherNamespace,
        }
    }

    /// Whether `cgroup_skb` does not see it, so that TC egress judges it.
    pub const fn is_judged_by_tc(self) -> bool {
        matches!(self, Self::Frames | Self::OtherNamespace)
    }
}

/// Bits of the word: the number below, then four bits of facts, then four of the kind.
const FACTS: u32 = 32;
const KIND: u32 = FACTS + 4;

const UPLINK: u8 = 0;
const UPLINK_PATH: u8 = 1;
const KNOWN_POD: u8 = 2;
const POD: u8 = 3;

impl Vantage {
    /// Packs a view.
    #[inline(always)]
    pub const fn new(view: View) -> Self {
        let (kind, facts, number) = match view {
            View::Arrived { role, interface } => (Kind::Arrived, role as u8, interface),
            View::Left { entered, to_pod } => {
                let (how, number) = match entered {
                    Entered::ByUplink(None) => (UPLINK, 0),
                    Entered::ByUplink(Some(path)) => (UPLINK_PATH, path),
                    Entered::FromKnownPod(party) => (KNOWN_POD, party),
                    Entered::FromPod => (POD, 0),
                };
                (Kind::Left, how | (to_pod as u8) << 2, number as u32)
            }
            View::Sent {
                sender,
                origin,
                on_lo,
            } => (Kind::Sent, origin as u8 | (on_lo as u8) << 3, sender as u32),
            View::Received {
                receiver,
                role,
                judged,
            } => (
                Kind::Received,
                role as u8 | (judged as u8) << 2,
                receiver as u32,
            ),
        };
        Self((kind as u64) << KIND | (facts as u64) << FACTS | number as u64)
    }

    /// Unpacks it.
    #[inline(always)]
    pub const fn view(self) -> View {
        let (facts, number) = ((self.0 >> FACTS) as u8 & 0xf, self.0 as u32);
        match (self.0 >> KIND) as u8 & 0xf {
            kind if kind == Kind::Arrived as u8 => View::Arrived {
                role: Role::from_word(facts as u32),
                interface: number,
            },
            kind if kind == Kind::Left as u8 => View::Left {
                entered: match facts & 3 {
                    UPLINK => Entered::ByUplink(None),
                    UPLINK_PATH => Entered::ByUplink(Some(number as u16)),
                    KNOWN_POD => Entered::FromKnownPod(number as Party),
                    _ => Entered::FromPod,
                },
                to_pod: facts & 4 != 0,
            },
            kind if kind == Kind::Sent as u8 => View::Sent {
                sender: number as Party,
                origin: Origin::from_bits(facts & 7),
                on_lo: facts & 8 != 0,
            },
            _ => View::Received {
                receiver: number as Party,
                role: Role::from_word(facts as u32),
                judged: facts & 4 != 0,
            },
        }
    }

    /// The vantage of a call, by the party of the process's cgroup.
    #[inline(always)]
    pub const fn of_call(caller: Party) -> Self {
        Self::new(View::Sent {
            sender: caller,
            origin: Origin::Socket,
            on_lo: false,
        })
    }

    /// The word, for BPF functions, which take numbers.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// From the word, at a hook that has one kind only, so that the compiler drops the code for the others.
    #[inline(always)]
    pub const fn from_word(kind: Kind, word: u64) -> Self {
        Self(word & ((1 << KIND) - 1) | (kind as u64) << KIND)
    }

    /// From the word, of whatever kind.
    #[inline(always)]
    pub const fn from_any_word(word: u64) -> Self {
        Self(word)
    }

    /// Kind and facts, in eight bits that are never all zero.
    #[inline(always)]
    pub const fn head(self) -> u8 {
        (self.0 >> FACTS) as u8
    }

    /// The number that goes with them: an interface, a party or a path.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// Whether it is of a kind.
    #[inline(always)]
    pub const fn is(self, kind: Kind) -> bool {
        self.head() >> 4 == kind as u8
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const ROLES: [Role; 4] = [Role::Undeclared, Role::Loopback, Role::Uplink, Role::Pod];
    const ORIGINS: [Origin; 5] = [
        Origin::Socket,
        Origin::KernelSocket,
        Origin::NoSocket,
        Origin::Frames,
        Origin::OtherNamespace,
    ];

    fn views() -> Vec<View> {
        let mut views = Vec::new();
        for number in [0, 1, 4094, 4095] {
            for role in ROLES {
                let interface = u32::from(number) << 16 | u32::from(number);
                views.push(View::Arrived { role, interface });
                for judged in [false, true] {
                    views.push(View::Received {
                        receiver: number,
                        role,
                        judged,
                    });
                }
            }
            for flag in [false, true] {
                for origin in ORIGINS {
                    views.push(View::Sent {
                        sender: number,
                        origin,
                        on_lo: flag,
                    });
                }
                for entered in [
                    Entered::ByUplink(Some(number)),
                    Entered::FromKnownPod(number),
                ] {
                    let to_pod = flag;
                    views.push(View::Left { entered, to_pod });
                }
            }
        }
        for to_pod in [false, true] {
            for entered in [Entered::ByUplink(None), Entered::FromPod] {
                views.push(View::Left { entered, to_pod });
            }
        }
        views
    }

    /// If packing lost a fact, packets that differ in it would share cached verdicts.
    #[test]
    fn a_vantage_is_its_view_and_no_other() {
        let mut known = HashMap::new();
        for view in views() {
            let vantage = Vantage::new(view);
            assert_eq!(vantage.view(), view);
            assert_eq!(Vantage::from_any_word(vantage.word()), vantage);
            assert_ne!(vantage.head(), 0);
            let key = (vantage.head(), vantage.number());
            if let Some(other) = known.insert(key, view) {
                panic!("{view:?} and {other:?} have one key");
            }
        }
    }

    #[test]
    fn a_word_is_read_as_the_kind_that_is_met() {
        for view in views() {
            let vantage = Vantage::new(view);
            let kind = match view {
                View::Arrived { .. } => Kind::Arrived,
                View::Left { .. } => Kind::Left,
                View::Sent { .. } => Kind::Sent,
                View::Received { .. } => Kind::Received,
            };
            assert_eq!(Vantage::from_word(kind, vantage.word()), vantage);
            assert!(vantage.is(kind));
        }
    }
}
