//! What `enforcer events` lists, and the agent prints.

use std::fmt;

use enforcer_common::{packet::PortKind, record::Hook, verdict::Reason};
use enforcer_policy::{
    advice::Advice,
    text::{name, shown},
    vocabulary::{Decision, Vocabulary, Word},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Kind;

/// Who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// What kind of thing it is.
    pub kind: Word<SubjectKind>,
    /// The id of the cgroup or the index of the interface.
    pub id: u64,
    /// The path of the cgroup below the root, or the name of the interface, also if it is gone. Empty if it was gone
    /// before the agent could look.
    pub name: String,
}

/// All denials of one sender, source, destination, port, protocol, reason and hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// What happened to it: `denied` or `wouldDeny`.
    pub verdict: Word<Decision>,
    /// Why.
    pub reason: Word<Reason>,
    /// Why, for people.
    pub sentence: String,
    /// The declared endpoints at the destination, `component:port`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// What a person should know who is denied there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub denial: String,
    /// Documented paths that would allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Where it was decided.
    pub hook: Word<Hook>,
    /// Address that opened the connection, or would have; missing where a call was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Source port of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Components that the sender counts as.
    #[serde(default)]
    pub source_components: Vec<String>,
    /// Destination address. Missing where the packet could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Port, message type or protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What the port is a number of. Missing where the packet could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Word<PortKind>>,
    /// It was a reply that was denied; source and destination are those of its connection.
    #[serde(default)]
    pub reply: bool,
    /// Who sent it.
    pub subject: Subject,
    /// Process that sent the first, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// How many packets or calls.
    pub count: u64,
    /// When the first was (RFC 3339, UTC).
    pub first_seen: String,
    /// When the last was (RFC 3339, UTC).
    pub last_seen: String,
    /// Generation of the policy that denied the first.
    pub generation: u32,
}

impl Kind for Event {
    const KIND: &'static str = "Event";
}

/// What kind of thing a subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectKind {
    /// Processes of this node.
    Cgroup,
    /// Whoever is behind an interface.
    Interface,
}

impl Vocabulary for SubjectKind {
    const TITLE: &'static str = "SubjectKind";
    const ABOUT: &'static str = "What a sender is known by.";
    const WORDS: &'static [Self] = &[Self::Cgroup, Self::Interface];

    fn word(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Interface => "interface",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Cgroup => "a process of this node, by its cgroup",
            Self::Interface => "whoever is behind an interface",
        }
    }
}

impl Event {
    /// Whether it was denied, and not only in dry-run.
    pub fn is_denied(&self) -> bool {
        self.verdict == Decision::Denied
    }

    /// The destination with port and protocol.
    pub fn target(&self) -> String {
        let Some(destination) = &self.destination else {
            let asked = self.hook == Hook::Setsockopt;
            let what = if asked {
                "an option that bypasses hooks"
            } else {
                "an unreadable packet"
            };
            return what.to_owned();
        };
        let (Some(port), Some(protocol)) = (self.port, &self.protocol) else {
            return shown(destination).into_owned();
        };
        let destination = shown(destination);
        if *protocol == PortKind::Arp {
            return format!("{destination} arp");
        }
        if *protocol != PortKind::Tcp && *protocol != PortKind::Udp {
            return format!("{destination} {port}/{protocol}");
        }
        match destination.contains(':') {
            true => format!("[{destination}]:{port}/{protocol}"),
            false => format!("{destination}:{port}/{protocol}"),
        }
    }

    /// Who sent it, in words.
    pub fn sender(&self) -> String {
        let subject = name(&self.subject.name);
        let Subject { kind, id, .. } = &self.subject;
        let mut who = match subject.is_empty() {
            true if *kind == SubjectKind::Cgroup => format!("a cgroup that is gone ({id})"),
            true => format!("{kind} {id}"),
            false if *kind == SubjectKind::Cgroup => subject.into_owned(),
            false => format!("{kind} {subject}"),
        };
        if let Some(comm) = &self.comm {
            let pid = self
                .pid
                .map(|pid| format!(", pid {pid}"))
                .unwrap_or_default();
            who = format!("{} (in {who}{pid})", name(comm));
        }
        match &self.source {
            Some(source) => format!("{}, {who}", shown(source)),
            None => who,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.verdict;
        let reply = if self.reply { " a reply to" } else { "" };
        write!(f, "{verdict}{reply} {} → {}", self.sender(), self.target())?;
        if !self.endpoints.is_empty() {
            write!(f, " ({})", shown(&self.endpoints.join(", ")))?;
        }
        write!(f, ": {}", shown(&self.sentence))?;
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
mod tests {
    use super::*;
    use crate::api::tests::event;

    #[test]
    fn an_event_is_one_readable_line() {
        let first = event();
        assert_eq!(
            first.to_string(),
            "denied curl (in /kubepods.slice/a, pid 42) → 127.0.0.1:2379/tcp (etcd:client): no path \
             from this sender to this endpoint [NoPath, cgroup/connect]"
        );
        let second = Event {
            verdict: Decision::WouldDeny.into(),
            subject: Subject {
                kind: SubjectKind::Interface.into(),
                id: 3,
                name: "eth0".to_owned(),
            },
            comm: None,
            source: Some("fd00::9".to_owned()),
            destination: Some("fd00::1".to_owned()),
            endpoints: Vec::new(),
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
    fn json_goes_there_and_back() {
        let json = serde_json::to_string(&event()).unwrap();
        assert!(json.contains("\"sourceComponents\":[\"pods\"]"), "{json}");
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event());
    }
}
