//! An attack, and what defends against it.

use std::fmt;
use std::net::SocketAddr;

use anyhow::Result;

use crate::stage::Stage;

/// The attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attacker {
    /// A pod that may forge packets, which is what container runtimes give by default.
    Pod,
    /// A pod in the node's network namespace.
    HostPod,
    /// A process without any privilege in the node's network namespace.
    User,
    /// A machine on the segment that is no node.
    Neighbour,
    /// A node that does not run `enforcer`, or that an attacker has taken over.
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

/// Under which policy an attack is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// `otherTraffic: Allow`.
    Allow,
    /// `otherTraffic: Drop`.
    Drop,
}

/// One row: tried without a policy, where it must reach its target, and with one, where it must not, and must be
/// reported with the expected reason.
pub struct Attack {
    /// Its name.
    pub id: &'static str,
    pub who: Attacker,
    /// What he does, for the documentation.
    pub what: &'static str,
    pub others: Others,
    /// The node whose agent reports it.
    pub judge: &'static str,
    /// The hook that stops it.
    pub hook: &'static str,
    pub reason: &'static str,
    pub attempt: fn(&Stage) -> Result<Attempt<'_>>,
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
    /// How much reaches its aim if nothing stops it.
    pub aimed: u64,
    /// How much is denied, at least, if something does.
    pub denials: u64,
    /// The destination that must be reported; a port of 0 is any, and no address is one that could not be parsed.
    pub told: Option<SocketAddr>,
    /// How much has reached its aim so far.
    pub arrived: Box<dyn Fn() -> Result<u64> + 'a>,
    /// Why it was not made: what this kernel has not got.
    pub skipped: Option<&'static str>,
}

impl<'a> Attempt<'a> {
    /// So many things that arrive, each denied once or more.
    pub fn new(
        aimed: u64,
        told: Option<SocketAddr>,
        arrived: impl Fn() -> Result<u64> + 'a,
    ) -> Self {
        Self {
            aimed,
            denials: aimed,
            told,
            arrived: Box::new(arrived),
            skipped: None,
        }
    }

    /// An attack that can not be made on this kernel.
    pub fn skipped(why: &'static str) -> Self {
        Self {
            skipped: Some(why),
            ..Self::new(0, None, || Ok(0))
        }
    }

    /// There are more denials than arrivals without a policy: parts of a packet, for example.
    pub fn denied(self, denials: u64) -> Self {
        Self { denials, ..self }
    }
}
