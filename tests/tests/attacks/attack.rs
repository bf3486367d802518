//! An attack, and what defends against it.

use std::fmt;
use std::net::SocketAddr;

use anyhow::Result;

use crate::stage::Stage;

/// The attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attacker {
    /// A pod that may forge packets, which container runtimes permit by default.
    Pod,
    /// A pod in the node's network namespace.
    HostPod,
    /// An unprivileged process in the node's network namespace.
    User,
    /// A machine on the segment that is not a node.
    Neighbour,
    /// A node that does not run `enforcer`, or that an attacker controls.
    OtherNode,
    /// Any host, from anywhere.
    World,
}

impl Attacker {
    pub const ALL: [Self; 6] = [
        Self::Pod,
        Self::HostPod,
        Self::User,
        Self::Neighbour,
        Self::OtherNode,
        Self::World,
    ];

    /// As in the documentation's table.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::HostPod => "hostNetwork pod",
            Self::User => "local process",
            Self::Neighbour => "neighbour",
            Self::OtherNode => "another node",
            Self::World => "world",
        }
    }
}

impl fmt::Display for Attacker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.words())
    }
}

/// The policy under which an attack is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// `otherTraffic: Allow`.
    Allow,
    /// `otherTraffic: Drop`.
    Drop,
}

/// One row: tried without a policy, where it must reach its target, and with one, where it must
/// not, and must be reported with the expected reason.
pub struct Attack {
    /// Its name.
    pub id: &'static str,
    pub who: Attacker,
    /// What the attacker does, for the documentation.
    pub what: &'static str,
    pub others: Others,
    /// The node whose agent reports it.
    pub judge: &'static str,
    /// The hook that stops it.
    pub hook: &'static str,
    pub reason: &'static str,
    pub attempt: fn(&Stage) -> Result<Attempt<'_>>,
}

/// An attack under `otherTraffic: Allow`.
pub const fn row(
    id: &'static str,
    who: Attacker,
    what: &'static str,
    judge: &'static str,
    (hook, reason): (&'static str, &'static str),
    attempt: fn(&Stage) -> Result<Attempt<'_>>,
) -> Attack {
    Attack {
        id,
        who,
        what,
        others: Others::Allow,
        judge,
        hook,
        reason,
        attempt,
    }
}

/// The same, reported by cp1's agent.
pub const fn row_on_cp1(
    id: &'static str,
    who: Attacker,
    what: &'static str,
    denial: (&'static str, &'static str),
    attempt: fn(&Stage) -> Result<Attempt<'_>>,
) -> Attack {
    row(id, who, what, "cp1", denial, attempt)
}

/// The same, of a hostNetwork pod.
pub const fn row_of_host_pod(
    id: &'static str,
    what: &'static str,
    denial: (&'static str, &'static str),
    attempt: fn(&Stage) -> Result<Attempt<'_>>,
) -> Attack {
    row_on_cp1(id, Attacker::HostPod, what, denial, attempt)
}

impl Attack {
    /// The same, reported by w1's agent.
    pub const fn judged_on_w1(self) -> Self {
        Self {
            judge: "w1",
            ..self
        }
    }
}

/// An attack that was made.
pub struct Attempt<'a> {
    /// How many packets or calls reach the target if nothing stops them.
    pub aimed: u64,
    /// How many are denied, at least, if something does.
    pub denials: u64,
    /// The destination that must be reported. Port 0 stands for any port; `None` for a packet that
    /// could not be parsed.
    pub reported: Option<SocketAddr>,
    /// How many have reached the target so far.
    pub arrived: Box<dyn Fn() -> Result<u64> + 'a>,
    /// Why the attack was not made: a feature that this kernel lacks.
    pub skipped: Option<&'static str>,
}

impl<'a> Attempt<'a> {
    /// A number of arrivals, each denied at least once.
    pub fn new(
        aimed: u64,
        reported: Option<SocketAddr>,
        arrived: impl Fn() -> Result<u64> + 'a,
    ) -> Self {
        Self {
            aimed,
            denials: aimed,
            reported,
            arrived: Box::new(arrived),
            skipped: None,
        }
    }

    /// An attack that cannot be made on this kernel.
    pub fn skipped(why: &'static str) -> Self {
        Self {
            skipped: Some(why),
            ..Self::new(0, None, || Ok(0))
        }
    }

    /// There are more denials than there are arrivals without a policy, for example one for each
    /// fragment.
    pub fn denied(self, denials: u64) -> Self {
        Self { denials, ..self }
    }
}
