//! What `enforcer preflight` says, and what `run` and `apply` check before they put a policy in force.

use std::{fmt, net::SocketAddr};

use enforcer_common::{packet::PortKind, record::Hook, verdict::Reason};
use enforcer_policy::{
    advice::Advice,
    preflight::Effect,
    text::{name, shown},
    vocabulary::Word,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kind, status::Listener};

/// What a policy, enforced, would do to the connections that are open now, and to the sockets that have a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// Name of the policy.
    pub policy: String,
    /// The node of the inventory that this is.
    pub node: String,
    /// How many connections were held against it.
    pub connections: u64,
    /// How many other network namespaces were looked into, those that an interface of this one leads to.
    pub namespaces: u64,
    /// What could not be looked at, and why.
    #[serde(default)]
    pub unseen: Vec<String>,
    /// Connections that would be cut or could not be opened again, those of the own session first. Those that differ in a port
    /// that the kernel chose are counted as one.
    pub findings: Vec<OpenConnection>,
    /// Sockets that hold a port which the policy would not let them bind.
    pub listeners: Vec<Listener>,
}

impl Kind for Preflight {
    const KIND: &'static str = "Preflight";
}

/// Connections that are open and that the policy denies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OpenConnection {
    /// What would become of them.
    pub effect: Word<Effect>,
    /// TCP or UDP.
    pub protocol: Word<PortKind>,
    /// The address that opened them.
    pub source: String,
    /// The port that it was opened from, of the first.
    pub source_port: u16,
    /// The address that they lead to.
    pub destination: String,
    /// The port that they lead to.
    pub port: u16,
    /// Whether the process below opened them; else it is the one that accepted them. Not known for UDP, where it is true.
    pub opened_by_process: bool,
    /// A process that holds one of them, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Path of its cgroup below the root; missing where it is not known or not below the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The inode of the network namespace that the process is in, if it is not the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_namespace: Option<u64>,
    /// How many connections they are.
    pub count: u64,
    /// Components that whoever opened them counts as.
    #[serde(default)]
    pub source_components: Vec<String>,
    /// The declared endpoints at the destination, `component:port`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Why.
    pub reason: Word<Reason>,
    /// Why, for people.
    pub sentence: String,
    /// Where they would be denied.
    pub hook: Word<Hook>,
    /// Documented paths that would allow them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Whether the policy is applied over one of these connections.
    #[serde(default)]
    pub session: bool,
}

/// The two ends of a connection, as this node's socket has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ends {
    /// This node's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Preflight {
    /// Whether nothing would be cut or refused.
    pub const fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.listeners.is_empty()
    }

    /// The connection of the own session, if it would be cut.
    pub fn session(&self) -> Option<&OpenConnection> {
        let cut = |found: &&OpenConnection| found.session && found.effect == Effect::Cut;
        self.findings.iter().find(cut)
    }

    /// A line for each finding, at most so many, and one that counts the rest.
    pub fn lines(&self, most: usize) -> Vec<String> {
        let findings = self.findings.iter().map(OpenConnection::to_string);
        let mut lines: Vec<String> = findings
            .chain(self.listeners.iter().map(Listener::to_string))
            .collect();
        if lines.len() > most {
            let more = lines.len() - most;
            lines.truncate(most);
            lines.push(format!("and {more} more: `enforcer preflight` lists all"));
        }
        lines
    }

    /// One sentence that says how it came out.
    pub fn summary(&self) -> String {
        let of = |effect| {
            let found = self.findings.iter().filter(|found| found.effect == effect);
            found.map(|found| found.count).sum::<u64>()
        };
        let parts = [
            (of(Effect::Cut), "open connection", "would be cut"),
            (
                of(Effect::NotReopened),
                "open connection",
                "could not be opened again",
            ),
            (
                self.listeners.len() as u64,
                "socket",
                "would not get its port again",
            ),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, what, effect)| format!("{} {effect}", plural(count, what)))
            .collect();
        match parts.as_slice() {
            [] => "nothing that is open now would be cut".to_owned(),
            parts => parts.join(", "),
        }
    }
}

fn plural(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}

impl fmt::Display for OpenConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: &str, port: Option<u16>| match (address.contains(':'), port) {
            (true, Some(port)) => format!("[{}]:{port}", shown(address)),
            (false, Some(port)) => format!("{}:{port}", shown(address)),
            (_, None) => shown(address).into_owned(),
        };
        let single = (self.count == 1).then_some(self.source_port);
        write!(
            f,
            "{} → {}/{}",
            end(&self.source, single),
            end(&self.destination, Some(self.port)),
            self.protocol
        )?;
        if !self.endpoints.is_empty() {
            let endpoints: Vec<_> = self.endpoints.iter().map(|end| name(end)).collect();
            write!(f, " ({})", endpoints.join(", "))?;
        }
        let by = if self.opened_by_process {
            "opened"
        } else {
            "accepted"
        };
        match (&self.comm, self.pid) {
            (Some(comm), Some(pid)) => write!(f, ", {by} by {} (pid {pid})", name(comm))?,
            _ => write!(f, ", {by} by an unknown process")?,
        }
        if let Some(cgroup) = &self.cgroup {
            write!(f, " in cgroup {}", name(cgroup))?;
        }
        if let Some(namespace) = self.network_namespace {
            write!(f, " in network namespace {namespace}")?;
        }
        if self.count > 1 {
            write!(f, ", {} connections", self.count)?;
        }
        write!(f, ": {}", self.effect)?;
        if self.session {
            f.write_str(" (this session)")?;
        }
        write!(f, ": {} ({})", shown(&self.sentence), self.reason)?;
        if let Some(advice) = self.advice.first() {
            write!(f, "; {}", shown(&advice.sentence()))?;
        }
        Ok(())
    }
}
