//! What `enforcer status` says.

use std::fmt;

use enforcer_common::{packet::PortKind, record::Hook, tables::Role, verdict::Reason};
use enforcer_policy::{
    model::{Mode, OtherTraffic},
    text::{name, shown},
    vocabulary::{Vocabulary, Word},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Kind;

/// What is in force, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node of the inventory that this is.
    pub node: String,
    /// What happens to what is denied.
    pub mode: Word<Mode>,
    /// What happens to traffic that leads to no guarded endpoint.
    pub other_traffic: Word<OtherTraffic>,
    /// Name of the policy.
    pub policy: String,
    /// SHA-256 over the policy's sources.
    pub digest: String,
    /// How many policies have been in force, this one included.
    pub generation: u32,
    /// Since when this policy is in force (RFC 3339, UTC).
    pub since: String,
    /// Process of the agent.
    pub pid: u32,
    /// When the policy before is in force again unless `enforcer confirm` comes (RFC 3339, UTC); missing if that need not
    /// come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<String>,
    /// What is waited for, where the policy is confirmed by what was alive before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probing: Option<Probing>,
    /// What was taken back last, since the agent started: by request, or as nobody confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<String>,
    /// The directory where all this is pinned, so that it outlives the agent; missing where enforcement ends with the
    /// agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_at: Option<String>,
    /// What is attached where.
    pub attachments: Vec<Attachment>,
    /// Declared cgroups that exist.
    #[serde(default)]
    pub cgroups: u64,
    /// Declared, and of no effect at present.
    pub notes: Vec<String>,
    /// What weakens the policy on this node and its kernel, and what to do about it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Sockets that already hold a port which the policy would not let them bind.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// What does not work at present, except interfaces, and is retried.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Packets by path.
    pub paths: Vec<PathCount>,
    /// Denials by reason; those that never happened are left out.
    pub reasons: Vec<ReasonCount>,
    /// Packets that `otherTraffic: Allow` let pass.
    pub other_traffic_packets: u64,
    /// Later fragments that passed.
    pub later_fragments: u64,
    /// Verdicts kept on the sockets of open connections, whose packets are not judged one by one.
    pub kept_verdicts: u64,
    /// Packets of connections that a TLS lock has cut off, beyond the one that counts as the denial.
    #[serde(default)]
    pub cut_packets: u64,
    /// Denials without a record, for lack of room. The counters have them.
    pub records_lost: u64,
    /// Denials in records that were removed to make room.
    pub records_evicted: u64,
    /// The tables of limited size.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// Why a newer policy is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Since when a newer policy cannot be put in force (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_since: Option<String>,
    /// The last broken policy that was repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
    /// Why an interface is without its programs, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_attached: Option<String>,
    /// Features of this kernel that are in use.
    pub kernel: Vec<String>,
}

impl Kind for Status {
    const KIND: &'static str = "Status";
}

/// One program at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The hook.
    pub hook: Word<Hook>,
    /// The program's name, as the kernel has it.
    pub program: String,
    /// The interface or the cgroup's directory.
    #[serde(rename = "where")]
    pub place: String,
    /// How it is attached.
    pub how: Word<AttachMethod>,
    /// What the interface is for; missing at a cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Word<Role>>,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMethod {
    /// TCX.
    Tcx,
    /// A filter at clsact.
    Clsact,
    /// A link to a cgroup.
    CgroupLink,
    /// A security module's hook.
    Lsm,
}

impl Vocabulary for AttachMethod {
    const TITLE: &'static str = "AttachMethod";
    const ABOUT: &'static str = "How a program is attached.";
    const WORDS: &'static [Self] = &[Self::Tcx, Self::Clsact, Self::CgroupLink, Self::Lsm];

    fn word(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::CgroupLink => "cgroupLink",
            Self::Lsm => "lsm",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Tcx => "to an interface, by a TCX link",
            Self::Clsact => "to an interface, as a filter of the clsact qdisc",
            Self::CgroupLink => "to a cgroup, by a link",
            Self::Lsm => "to a hook of the security modules",
        }
    }

    fn spoken(self) -> &'static str {
        match self {
            Self::CgroupLink => "cgroup link",
            other => other.word(),
        }
    }
}

/// Something that does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// What, and why.
    pub what: String,
}

/// A policy that was broken, and is no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// Since when it was broken (RFC 3339, UTC).
    pub broken_since: String,
    /// When what its files say was in force again.
    pub repaired_at: String,
    /// What was wrong, in a line.
    pub error: String,
}

/// A socket that holds a port which the policy would not let it bind: it was bound before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its protocol.
    pub protocol: Word<PortKind>,
    /// Its address and port.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// The declared endpoints that the port is, `component:port`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// The process that holds it, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Path of its cgroup below the root.
    pub cgroup: String,
    /// Why it would be refused.
    pub reason: Word<Reason>,
    /// Why, for people.
    pub sentence: String,
    /// Whether its next bind will be refused; in dry-run it is only reported.
    pub will_be_refused: bool,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroup = name(&self.cgroup);
        match (&self.comm, self.pid) {
            (Some(comm), Some(pid)) => write!(f, "{} (pid {pid}, cgroup {cgroup})", name(comm))?,
            _ => write!(f, "the kernel, for a process of cgroup {cgroup},")?,
        }
        let holds = if self.protocol == PortKind::Tcp {
            "listens on"
        } else {
            "is bound to"
        };
        write!(f, " {holds} {}/{}", self.address, self.protocol)?;
        if !self.endpoints.is_empty() {
            write!(f, " ({})", shown(&self.endpoints.join(", ")))?;
        }
        let next = if self.will_be_refused {
            "will be refused"
        } else {
            "would be refused if the policy were enforced"
        };
        write!(
            f,
            ": {}; bound already, the next bind {next} ({})",
            shown(&self.sentence),
            self.reason
        )
    }
}

/// What confirms a policy: that what was alive before it is alive again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probing {
    /// How many paths and kinds of connections were alive before.
    pub expected: u64,
    /// Those of them that have been silent since.
    pub silent: Vec<String>,
}

/// A table of limited size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Its name; `docs/limits.md` says what it holds.
    pub name: String,
    /// How many entries it has; missing for a table that forgets its oldest entry when it is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// How many it has room for.
    pub capacity: u64,
    /// What happens to one more.
    pub when_full: String,
}

impl Table {
    /// Whether nine tenths of it are in use.
    pub const fn is_nearly_full(&self) -> bool {
        match self.entries {
            Some(entries) => entries.saturating_mul(10) >= self.capacity.saturating_mul(9),
            None => false,
        }
    }
}

/// Packets on a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathCount {
    /// Its name.
    pub name: String,
    /// From its sender to its endpoint.
    pub forward: u64,
    /// Back.
    pub reply: u64,
    /// It does not concern this node, so that no packets are expected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

/// Denials for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// The reason.
    pub reason: Word<Reason>,
    /// Packets and calls that were denied, and so dropped or refused.
    pub denied: u64,
    /// Those that dry-run let pass.
    pub would_deny: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_one_readable_line() {
        let listener = Listener {
            protocol: PortKind::Tcp.into(),
            address: "0.0.0.0:10257".to_owned(),
            port: 10257,
            endpoints: vec!["controller-manager:secure".to_owned()],
            pid: Some(7),
            comm: Some("kube-\ncontroller".to_owned()),
            cgroup: "/a".to_owned(),
            reason: Reason::BindNotLoopback.into(),
            sentence: "this port may be bound to a loopback address only".to_owned(),
            will_be_refused: true,
        };
        assert_eq!(
            listener.to_string(),
            "kube-\\ncontroller (pid 7, cgroup /a) listens on 0.0.0.0:10257/tcp \
             (controller-manager:secure): this port may be bound to a loopback address only; bound already, \
             the next bind will be refused (BindNotLoopback)"
        );
        let dry_run = Listener {
            protocol: PortKind::Udp.into(),
            endpoints: Vec::new(),
            pid: None,
            comm: None,
            will_be_refused: false,
            ..listener
        };
        assert_eq!(
            dry_run.to_string(),
            "the kernel, for a process of cgroup /a, is bound to 0.0.0.0:10257/udp: this port may be bound to a \
             loopback address only; bound already, the next bind would be refused if the policy were enforced \
             (BindNotLoopback)"
        );
    }
}
