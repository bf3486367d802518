//! The words that stay: verdicts, hooks, reasons and the like, under one name in policies, JSON, text and documents.
//!
//! [`Word`] holds such a word. One that a newer version has added is read, compared, written and printed as it came, so
//! that an older program can still pass it on.

use std::{borrow::Cow, fmt};

use enforcer_common::{packet::PortKind, record::Hook, tables::Role, verdict::Reason};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    model::{Locality, Mode, OtherTraffic},
    text,
};

/// A set of words. Words are added to it, and never renamed or removed.
pub trait Vocabulary: Copy + PartialEq + 'static {
    /// What the set is called.
    const TITLE: &'static str;
    /// What its words are about, in one sentence.
    const ABOUT: &'static str;
    /// All of them.
    const WORDS: &'static [Self];

    /// The word.
    fn word(self) -> &'static str;

    /// What it means, for people.
    fn meaning(self) -> &'static str;

    /// The word as it stands in a sentence.
    fn spoken(self) -> &'static str {
        self.word()
    }

    /// The one with that name.
    fn find(word: &str) -> Option<Self> {
        Self::WORDS
            .iter()
            .copied()
            .find(|known| known.word() == word)
    }
}

/// A word of a vocabulary, or one that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Word<T> {
    /// One of [`Vocabulary::WORDS`].
    Known(T),
    /// Another, of a newer version.
    Other(String),
}

impl<T: Vocabulary> Word<T> {
    /// The word as it is written in JSON.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.word(),
            Self::Other(word) => word,
        }
    }

    /// What it means; nothing where this version does not know.
    pub fn meaning(&self) -> &'static str {
        match self {
            Self::Known(known) => known.meaning(),
            Self::Other(_) => "",
        }
    }
}

impl<T> From<T> for Word<T> {
    fn from(known: T) -> Self {
        Self::Known(known)
    }
}

impl<T: Vocabulary> PartialEq<T> for Word<T> {
    fn eq(&self, known: &T) -> bool {
        matches!(self, Self::Known(own) if own == known)
    }
}

impl<T: Vocabulary> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(known) => f.pad(known.spoken()),
            Self::Other(word) => f.pad(&text::name(word)),
        }
    }
}

impl<T: Vocabulary> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Vocabulary> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        Ok(match T::find(&word) {
            Some(known) => Self::Known(known),
            None => Self::Other(word),
        })
    }
}

impl<T: Vocabulary> JsonSchema for Word<T> {
    fn schema_name() -> Cow<'static, str> {
        T::TITLE.into()
    }

    /// The known words, and any other string: a newer version may have more.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let known = T::WORDS
            .iter()
            .map(|known| json_schema!({ "const": known.word(), "description": known.meaning() }));
        let any: Vec<Schema> = known.chain([json_schema!({ "type": "string" })]).collect();
        json_schema!({ "description": T::ABOUT, "anyOf": any })
    }
}

/// The verdict on an attempt, in the words of events and of `explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// It passes.
    Allowed,
    /// It is dropped, or the call refused.
    Denied,
    /// It would be denied, but dry-run lets it pass.
    WouldDeny,
}

impl Decision {
    /// A denial, in dry-run or not.
    pub const fn of_denial(dry_run: bool) -> Self {
        match dry_run {
            true => Self::WouldDeny,
            false => Self::Denied,
        }
    }
}

impl Vocabulary for Decision {
    const TITLE: &'static str = "Verdict";
    const ABOUT: &'static str = "What happens to a packet or a call.";
    const WORDS: &'static [Self] = &[Self::Allowed, Self::Denied, Self::WouldDeny];

    fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "wouldDeny",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Allowed => "it passes",
            Self::Denied => "the packet is dropped, or the call refused",
            Self::WouldDeny => "it would be denied, but dry-run lets it pass",
        }
    }

    fn spoken(self) -> &'static str {
        match self {
            Self::WouldDeny => "would deny",
            other => other.word(),
        }
    }
}

impl Vocabulary for Reason {
    const TITLE: &'static str = "Reason";
    const ABOUT: &'static str = "Why something is denied.";
    const WORDS: &'static [Self] = &Self::ALL;

    fn word(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        self.sentence()
    }
}

impl Vocabulary for Hook {
    const TITLE: &'static str = "Hook";
    const ABOUT: &'static str = "Where a program is attached and gives its verdict.";
    const WORDS: &'static [Self] = &Self::ALL;

    fn word(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::TcIngress => "packets that enter by an interface",
            Self::TcEgress => {
                "frames of packet sockets, and forwarded packets after address translation"
            }
            Self::CgroupEgress => "packets that a local socket sends",
            Self::CgroupIngress => "packets that a local socket is about to receive",
            Self::Connect => "calls of connect",
            Self::Sendmsg => "calls of sendto and sendmsg with an address",
            Self::Bind => "calls of bind, and ports that the kernel chooses for a socket",
            Self::Setsockopt => "socket options that would bypass the hooks",
            Self::SockCreate => "new sockets; nothing is denied there",
        }
    }
}

impl Vocabulary for PortKind {
    const TITLE: &'static str = "Protocol";
    const ABOUT: &'static str = "What the number beside an address is.";
    const WORDS: &'static [Self] = &Self::ALL;

    fn word(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Tcp => "a TCP port",
            Self::Udp => "a UDP port",
            Self::Icmp => "a message type of ICMP",
            Self::Icmp6 => "a message type of ICMPv6",
            Self::Protocol => "the number of another IP protocol",
            Self::Arp => "address resolution, which has no number",
        }
    }
}

impl Vocabulary for Role {
    const TITLE: &'static str = "Role";
    const ABOUT: &'static str = "What an interface is for.";
    const WORDS: &'static [Self] = &[Self::Undeclared, Self::Loopback, Self::Uplink, Self::Pod];

    fn word(self) -> &'static str {
        match self {
            Self::Undeclared => "undeclared",
            Self::Loopback => "loopback",
            Self::Uplink => "uplink",
            Self::Pod => "pod",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Undeclared => "the Inventory does not name it",
            Self::Loopback => "lo",
            Self::Uplink => "it leads to other hosts",
            Self::Pod => "the host's end of a pod's interface",
        }
    }
}

impl Vocabulary for Mode {
    const TITLE: &'static str = "Mode";
    const ABOUT: &'static str = "What happens to what is denied.";
    const WORDS: &'static [Self] = &[Self::DryRun, Self::Enforce];

    fn word(self) -> &'static str {
        match self {
            Self::DryRun => "DryRun",
            Self::Enforce => "Enforce",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::DryRun => "it is reported, and nothing is dropped",
            Self::Enforce => "it is dropped",
        }
    }
}

impl Vocabulary for OtherTraffic {
    const TITLE: &'static str = "OtherTraffic";
    const ABOUT: &'static str = "What happens to traffic that leads to no guarded endpoint.";
    const WORDS: &'static [Self] = &[Self::Allow, Self::Drop];

    fn word(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Drop => "Drop",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Allow => "it passes",
            Self::Drop => "it is denied unless a path allows it",
        }
    }
}

impl Vocabulary for Locality {
    const TITLE: &'static str = "Locality";
    const ABOUT: &'static str = "Where the two ends of a path may be.";
    const WORDS: &'static [Self] = &[Self::Any, Self::SameNode];

    fn word(self) -> &'static str {
        match self {
            Self::Any => "Any",
            Self::SameNode => "SameNode",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Any => "anywhere",
            Self::SameNode => "both on the node that judges",
        }
    }
}

/// What a path requires of a connection beyond its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It runs over lo.
    Loopback,
    /// Both ends are on the node that judges.
    SameNode,
    /// It begins with a TLS ClientHello.
    Tls,
}

impl Vocabulary for Lock {
    const TITLE: &'static str = "Lock";
    const ABOUT: &'static str = "What a path requires of a connection beyond its two ends.";
    const WORDS: &'static [Self] = &[Self::Loopback, Self::SameNode, Self::Tls];

    fn word(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::SameNode => "sameNode",
            Self::Tls => "tls",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Loopback => "it must run over loopback",
            Self::SameNode => "both ends must be on this node",
            Self::Tls => "it must begin with a ClientHello, or it is cut off (NotTls)",
        }
    }

    fn spoken(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::SameNode => "same node",
            Self::Tls => "TLS",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds<T: Vocabulary + fmt::Debug>() {
        for known in T::WORDS {
            let json = serde_json::to_string(&Word::from(*known)).unwrap();
            let read: Word<T> = serde_json::from_str(&json).unwrap();
            assert_eq!(read, *known, "two words are one");
            assert!(!known.meaning().is_empty(), "{known:?}");
        }
    }

    #[test]
    fn every_word_is_read_as_itself() {
        holds::<Decision>();
        holds::<Reason>();
        holds::<Hook>();
        holds::<PortKind>();
        holds::<Role>();
        holds::<Mode>();
        holds::<OtherTraffic>();
        holds::<Locality>();
        holds::<Lock>();
    }

    #[test]
    fn a_word_of_a_newer_version_is_passed_on_and_forges_nothing() {
        let json = "\"Teleported\\u001b[31m\"";
        let read: Word<Reason> = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert_eq!(read.to_string(), "Teleported\\u{1b}[31m");
        assert_ne!(read, Reason::NoPath);
        assert!(serde_json::from_str::<Word<Reason>>("7").is_err());
    }
}
