//! What the agent tells: stable names, one JSON object each.

use std::fmt;

use enforcer_common::record::Hook;
use enforcer_policy::{
    advice::Advice,
    text::{name, shown},
};
use serde::{Deserialize, Serialize};

use crate::kernel::Attachment;

/// What is in force, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node of the inventory that this is.
    pub node: String,
    /// `DryRun` or `Enforce`.
    pub mode: String,
    /// `Allow` or `Drop`.
    pub other_traffic: String,
    /// Name of the policy.
    pub policy: String,
    /// SHA-256 over the policy's sources.
    pub digest: String,
    /// How many policies have been in force, this one included.
    pub generation: u32,
    /// Since when this one is (RFC 3339, UTC).
    pub since: String,
    /// Process of the agent.
    pub pid: u32,
    /// What is attached where.
    pub attachments: Vec<Attachment>,
    /// Declared cgroups that exist.
    #[serde(default)]
    pub cgroups: u64,
    /// Declared, and of no effect at present.
    pub notes: Vec<String>,
    /// What about this node and its kernel weakens what the policy says, and what to do.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Sockets that have a port already which the policy would not let them bind.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// What does not work at present, beside interfaces, and is tried again.
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
    /// Verdicts kept on sockets of connections that go on, so that their packets are not judged one by one.
    pub kept_verdicts: u64,
    /// Packets of connections that a TLS lock has cut off, beyond the one that was counted and told as the denial.
    #[serde(default)]
    pub cut_packets: u64,
    /// Denials that found no room among the records. They are in the counters all the same.
    pub records_lost: u64,
    /// Denials in records that were removed to make room.
    pub records_evicted: u64,
    /// Why a newer policy is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Since when a newer policy can not be put in force (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_since: Option<String>,
    /// The last time that a broken policy was repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
    /// Why an interface with a role is without its programs, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_attached: Option<String>,
    /// What this kernel offers and is made use of.
    pub kernel: Vec<String>,
}

/// Something that does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// What, and why.
    pub what: String,
}

/// A policy that was broken, and is no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// Since when it was broken (RFC 3339, UTC).
    pub broken_since: String,
    /// When what its files say was in force again.
    pub repaired_at: String,
    /// What was wrong, in a line.
    pub error: String,
}

/// A socket that has a port which the policy would not let it bind: it had it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its address and port.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// The declared endpoint that the port is.
    pub endpoint: String,
    /// The process that holds it, where it can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Path of its cgroup below the root.
    pub cgroup: String,
    /// Why it would be refused, as a name that never changes.
    pub reason: String,
    /// Why, for people.
    pub sentence: String,
    /// Whether its next bind will be refused; in dry-run it is only told.
    pub will_be_refused: bool,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroup = name(&self.cgroup);
        match (&self.comm, self.pid) {
            (Some(comm), Some(pid)) => write!(f, "{} (pid {pid}, cgroup {cgroup})", name(comm))?,
            _ => write!(f, "the kernel, for a process of cgroup {cgroup},")?,
        }
        let holds = if self.protocol == "tcp" {
            "listens on"
        } else {
            "is bound to"
        };
        write!(f, " {holds} {}/{}", self.address, self.protocol)?;
        if !self.endpoint.is_empty() {
            write!(f, " ({})", shown(&self.endpoint))?;
        }
        let next = if self.will_be_refused {
            "will be refused"
        } else {
            "would be refused if the policy were enforced"
        };
        write!(
            f,
            ": {}; bound already, the next bind {next} ({})",
            self.sentence, self.reason
        )
    }
}

/// Packets on a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathCount {
    /// Its name.
    pub name: String,
    /// From its sender to its endpoint.
    pub forward: u64,
    /// Back.
    pub reply: u64,
    /// It can not be used on this node, so that it is no news that it was not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub elsewhere: bool,
}

/// Denials for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// Its name.
    pub reason: String,
    /// Packets and calls that were denied, and so dropped or refused.
    pub denied: u64,
    /// Those that dry-run let pass.
    pub would_deny: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventVerdict {
    /// The packet was dropped, or the call refused.
    Denied,
    /// It would have been, but dry-run let it pass.
    WouldDeny,
}

/// What kind of thing a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectKind {
    /// Processes of this node.
    Cgroup,
    /// Whoever is behind an interface.
    Interface,
}

/// Who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// What kind of thing it is.
    pub kind: SubjectKind,
    /// The id of the cgroup or the index of the interface.
    pub id: u64,
    /// The path of the cgroup below the root, or the name of the interface, also if it has gone since.
    /// Empty if it went before anybody knew it.
    pub name: String,
}

/// All denials of one subject, source, destination, port, protocol, reason and hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// What became of it.
    pub verdict: EventVerdict,
    /// Why, as a name that never changes.
    pub reason: String,
    /// Why, for people.
    pub sentence: String,
    /// The declared endpoints at the destination (`etcd:client`); empty if there are none.
    pub endpoint: String,
    /// What a person should know who is denied there; empty where there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub denial: String,
    /// Documented paths that would allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Where it was decided.
    pub hook: String,
    /// Who opened, or would have; not known when a call is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Source port of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Components that the sender counts as.
    pub source_components: Vec<String>,
    /// What it was for. None where the packet could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Port, message type or protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `ip` or `arp`; empty where it could not be read.
    pub protocol: String,
    /// It was a reply that was denied; source and destination are those of its connection.
    pub reply: bool,
    /// Who sent it.
    pub subject: Subject,
    /// Process of the first, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// How many packets or calls.
    pub count: u64,
    /// When the first was (RFC 3339, UTC).
    pub first_seen: String,
    /// When the last was.
    pub last_seen: String,
    /// Generation of the policy that denied the first.
    pub generation: u32,
}

/// What is in force after a policy was applied, confirmed or taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Name of the policy in force.
    pub policy: String,
    /// Its generation.
    pub generation: u32,
    /// Until when it has to be confirmed (RFC 3339, UTC); missing if it need not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<String>,
}

/// What a running agent was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    /// The node that this is.
    pub node: String,
    /// `DryRun` where the agent was told to drop nothing, whatever the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_override: Option<String>,
    /// The policy in force.
    pub sources: Vec<Source>,
}

/// A file of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it held when it was read.
    pub text: String,
}

impl Event {
    /// Whether it was denied, and not only in dry-run.
    pub fn is_denied(&self) -> bool {
        self.verdict == EventVerdict::Denied
    }

    /// The destination with port and protocol.
    pub fn target(&self) -> String {
        let Some(destination) = &self.destination else {
            let asked = self.hook == Hook::Setsockopt.name();
            let what = if asked {
                "an option that bypasses hooks"
            } else {
                "an unreadable packet"
            };
            return what.to_owned();
        };
        let protocol = &self.protocol;
        match self.port {
            Some(port) if protocol == "tcp" || protocol == "udp" => {
                let brackets = if destination.contains(':') {
                    ["[", "]"]
                } else {
                    ["", ""]
                };
                let [open, close] = brackets;
                format!("{open}{destination}{close}:{port}/{protocol}")
            }
            Some(_) if protocol == "arp" => format!("{destination} arp"),
            Some(port) => format!("{destination} {port}/{protocol}"),
            None => destination.clone(),
        }
    }

    /// Who sent it, in words.
    pub fn sender(&self) -> String {
        let subject = name(&self.subject.name);
        let mut who = match (self.subject.kind, subject.is_empty()) {
            (SubjectKind::Cgroup, true) => format!("a cgroup that is gone ({})", self.subject.id),
            (SubjectKind::Cgroup, false) => subject.into_owned(),
            (SubjectKind::Interface, true) => format!("interface {}", self.subject.id),
            (SubjectKind::Interface, false) => format!("interface {subject}"),
        };
        if let Some(comm) = &self.comm {
            let pid = self
                .pid
                .map(|pid| format!(", pid {pid}"))
                .unwrap_or_default();
            who = format!("{} (in {who}{pid})", name(comm));
        }
        match &self.source {
            Some(source) => format!("{source}, {who}"),
            None => who,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            EventVerdict::Denied => "denied",
            EventVerdict::WouldDeny => "would deny",
        };
        let reply = if self.reply { " a reply to" } else { "" };
        write!(f, "{verdict}{reply} {} → {}", self.sender(), self.target())?;
        if !self.endpoint.is_empty() {
            write!(f, " ({})", shown(&self.endpoint))?;
        }
        write!(f, ": {}", self.sentence)?;
        if !self.denial.is_empty() {
            write!(f, "; {}", shown(&self.denial))?;
        }
        write!(f, " [{}, {}]", self.reason, self.hook)?;
        if self.count > 1 {
            write!(f, " × {}", self.count)?;
        }
        for advice in &self.advice {
            write!(f, "\n    hint: {}", shown(&advice.sentence()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn event() -> Event {
        Event {
            verdict: EventVerdict::Denied,
            reason: "NoPath".to_owned(),
            sentence: "no path from this sender to this endpoint".to_owned(),
            endpoint: "etcd:client".to_owned(),
            denial: String::new(),
            advice: Vec::new(),
            hook: "cgroup/connect".to_owned(),
            source: None,
            source_port: None,
            source_components: vec!["pods".to_owned()],
            destination: Some("127.0.0.1".to_owned()),
            port: Some(2379),
            protocol: "tcp".to_owned(),
            reply: false,
            subject: Subject {
                kind: SubjectKind::Cgroup,
                id: 7,
                name: "/kubepods.slice/a".to_owned(),
            },
            pid: Some(42),
            comm: Some("curl".to_owned()),
            count: 1,
            first_seen: "2026-01-01T00:00:00.000Z".to_owned(),
            last_seen: "2026-01-01T00:00:00.000Z".to_owned(),
            generation: 1,
        }
    }

    #[test]
    fn an_event_is_one_readable_line() {
        let first = event();
        assert_eq!(
            first.to_string(),
            "denied curl (in /kubepods.slice/a, pid 42) → 127.0.0.1:2379/tcp (etcd:client): no path \
             from this sender to this endpoint [NoPath, cgroup/connect]"
        );
        let second = Event {
            verdict: EventVerdict::WouldDeny,
            subject: Subject {
                kind: SubjectKind::Interface,
                id: 3,
                name: "eth0".to_owned(),
            },
            comm: None,
            source: Some("fd00::9".to_owned()),
            destination: Some("fd00::1".to_owned()),
            endpoint: String::new(),
            denial: "not for you".to_owned(),
            advice: vec![Advice {
                path: "dns".to_owned(),
                symptom: "names do not resolve".to_owned(),
                remedy: "It is off: `enable: [dns]`.".to_owned(),
                wide: false,
            }],
            count: 3,
            ..event()
        };
        assert_eq!(
            second.to_string(),
            "would deny fd00::9, interface eth0 → [fd00::1]:2379/tcp: no path from this sender to this \
             endpoint; not for you [NoPath, cgroup/connect] × 3\n    hint: path dns would allow it; without \
             it names do not resolve. It is off: `enable: [dns]`."
        );
    }

    #[test]
    fn names_that_others_chose_forge_no_line() {
        let forged = Event {
            comm: Some("a\nallowed: x\u{1b}[31m".to_owned()),
            subject: Subject {
                name: "/x\u{1b}[2J\rFAKE\u{202e}\u{2028}next".to_owned(),
                ..event().subject
            },
            denial: "because\u{85}of that".to_owned(),
            ..event()
        };
        assert_eq!(
            forged.to_string(),
            "denied \"a\\nallowed: x\\u{1b}[31m\" (in /x\\u{1b}[2J\\rFAKE\\u{202e}\\u{2028}next, pid 42) → \
             127.0.0.1:2379/tcp (etcd:client): no path from this sender to this endpoint; \
             because\\u{85}of that [NoPath, cgroup/connect]"
        );
    }

    #[test]
    fn a_listener_is_one_readable_line() {
        let listener = Listener {
            protocol: "tcp".to_owned(),
            address: "0.0.0.0:10257".to_owned(),
            port: 10257,
            endpoint: "controller-manager:secure".to_owned(),
            pid: Some(7),
            comm: Some("kube-\ncontroller".to_owned()),
            cgroup: "/a".to_owned(),
            reason: "BindNotLoopback".to_owned(),
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
            protocol: "udp".to_owned(),
            endpoint: String::new(),
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

    #[test]
    fn json_goes_there_and_back() {
        let json = serde_json::to_string(&event()).unwrap();
        assert!(json.contains("\"sourceComponents\":[\"pods\"]"), "{json}");
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event());
    }
}
