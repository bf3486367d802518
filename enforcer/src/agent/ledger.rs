//! Turns the kernel's records into events for people. Each denial is named once, by the policy that
//! made it, and keeps these names even when the policy, the cgroup or the interface has since
//! changed or gone.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use enforcer_common::{
    addr::Ip,
    packet::PortKind,
    record::{Hook, RecordKey, RecordValue},
    verdict::Reason,
};
use enforcer_policy::{
    advice::{Advice, Denied, Process, advise, unrecognised},
    catalogue::Catalogue,
    text,
    vocabulary::{Decision, Word},
};
use nix::time::{ClockId, clock_gettime};

use super::{
    Event, Subject, SubjectKind,
    names::{self, Names},
    start::Ready,
};
use crate::kernel::CgroupPaths;

/// All denials that have been named, and what names them.
pub(super) struct Ledger {
    /// Of interfaces and cgroups.
    pub(super) names: Names,
    /// Cgroups by their ids.
    pub(super) paths: CgroupPaths,
    entries: HashMap<RecordKey, Entry>,
    /// Shared among the entries: during a flood, many have the same sides.
    sides: HashMap<SidesKey, Arc<Sides>>,
    /// The previous generation, until everything that it denied is named.
    past: Option<(u32, Arc<Ready>)>,
}

/// A generation, and the numbers of a sender and of a target in it.
type SidesKey = (u32, u16, u16);

/// What the numbers in a record stand for.
#[derive(Debug, Default)]
struct Sides {
    senders: Vec<String>,
    endpoints: Vec<String>,
    denial: String,
}

/// The names of a denial.
struct Entry {
    /// From its record. A record with the same key and another time is another denial.
    first_ns: u64,
    subject: String,
    sides: Arc<Sides>,
    advice: Vec<Advice>,
}

/// The policy in force.
#[derive(Clone, Copy)]
pub(super) struct InForce<'a> {
    pub(super) generation: u32,
    pub(super) ready: &'a Ready,
}

impl Ledger {
    pub(super) fn new(paths: CgroupPaths) -> Self {
        Self {
            names: Names::default(),
            paths,
            entries: HashMap::new(),
            sides: HashMap::new(),
            past: None,
        }
    }

    /// A record as an event.
    pub(super) fn event(
        &mut self,
        in_force: InForce<'_>,
        key: &RecordKey,
        value: &RecordValue,
        boot: SystemTime,
    ) -> Event {
        let port_kind = PortKind::from_code(key.port_kind);
        let reason = Reason::from_code(key.reason).unwrap_or(Reason::NoPolicy);
        let kind = names::subject(key).0;
        let Entry {
            subject,
            sides,
            advice,
            ..
        } = self.entry(Some(in_force), key, value);
        let known = |ip: Ip| (ip != Ip::UNSPECIFIED).then(|| IpAddr::from(ip).to_string());
        let comm = value.comm.split(|byte| *byte == 0).next();
        let comm = text::of_bytes(comm.unwrap_or_default());
        let time = |boot_ns| rfc3339(boot + Duration::from_nanos(boot_ns));
        Event {
            verdict: Decision::of_denial(key.dry_run != 0).into(),
            reason: reason.into(),
            sentence: reason.sentence().to_owned(),
            endpoints: sides.endpoints.clone(),
            denial: sides.denial.clone(),
            advice: advice.clone(),
            hook: Hook::from_code(key.hook)
                .map_or_else(|| Word::Other("unknown".to_owned()), Word::from),
            source: known(key.src),
            source_port: (value.source_port != 0).then_some(value.source_port),
            source_components: sides.senders.clone(),
            // With a port, `::` is a destination like any other: this host.
            destination: port_kind
                .map(|_| IpAddr::from(key.dst).to_string())
                .or(known(key.dst)),
            port: port_kind.map(|_| key.port),
            protocol: port_kind.map(Word::from),
            reply: key.reply != 0,
            subject: Subject {
                kind: kind.into(),
                id: key.subject,
                name: subject.clone(),
            },
            pid: (value.pid != 0).then_some(value.pid),
            comm: (!comm.is_empty()).then_some(comm),
            count: value.count,
            first_seen: time(value.first_ns),
            last_seen: time(value.last_ns),
            generation: value.generation,
        }
    }

    /// Looks up the name of a record's subject while it still exists.
    pub(super) fn learn(&mut self, key: &RecordKey) {
        let subject = names::subject(key);
        if subject.0 == SubjectKind::Cgroup
            && let Some(path) = self.paths.get(key.subject)
        {
            self.names.learn(subject, path);
        }
    }

    /// Another policy is in force. Denials of the last policy that are not named yet are named by
    /// that policy, including those that programs still running are about to make. So it stays
    /// until [`Self::settle`].
    pub(super) fn succeed(
        &mut self,
        generation: u32,
        before: Arc<Ready>,
        records: &[(RecordKey, RecordValue)],
    ) {
        self.settle(records);
        self.past = Some((generation, before));
    }

    /// Whether a policy is waiting for [`Self::settle`].
    pub(super) const fn is_unsettled(&self) -> bool {
        self.past.is_some()
    }

    /// Names what the last policy denied, and drops that policy.
    pub(super) fn settle(&mut self, records: &[(RecordKey, RecordValue)]) {
        let Some((generation, _)) = self.past else {
            return;
        };
        for (key, value) in records {
            if value.generation == generation {
                self.entry(None, key, value);
            }
        }
        self.past = None;
        self.sides.retain(|_, sides| Arc::strong_count(sides) > 1);
    }

    /// A record was removed.
    pub(super) fn forget(&mut self, key: &RecordKey) {
        self.entries.remove(key);
    }

    /// If there are many names, forgets those that neither these records nor these other subjects
    /// need.
    pub(super) fn keep_names<'a>(
        &mut self,
        records: impl Iterator<Item = &'a RecordKey>,
        others: impl Iterator<Item = names::SubjectId>,
    ) {
        if self.names.is_full() {
            let wanted: HashSet<_> = records.map(names::subject).chain(others).collect();
            self.names.keep(&wanted);
        }
    }

    fn entry(
        &mut self,
        in_force: Option<InForce<'_>>,
        key: &RecordKey,
        value: &RecordValue,
    ) -> &Entry {
        let is_named = self.entries.get(key);
        if is_named.is_none_or(|entry| entry.first_ns != value.first_ns) {
            let entry = self.name(in_force, key, value);
            self.entries.insert(*key, entry);
        }
        &self.entries[key]
    }

    fn name(
        &mut self,
        in_force: Option<InForce<'_>>,
        key: &RecordKey,
        value: &RecordValue,
    ) -> Entry {
        self.learn(key);
        let subject = self.names.get(names::subject(key)).unwrap_or_default();
        let past = self.past.as_ref();
        let past = past.map(|(generation, ready)| InForce {
            generation: *generation,
            ready,
        });
        let mut policies = in_force.into_iter().chain(past);
        // The generation is gone if two others followed in quick succession. The numbers mean
        // nothing then.
        let policy = policies.find(|policy| policy.generation == value.generation);
        let policy = policy.map(|policy| policy.ready);
        let sides = (value.generation, value.sender, value.target);
        let sides = self.sides.entry(sides);
        let sides = sides.or_insert_with(|| {
            let sides = policy.map(|policy| Sides::of(policy, value));
            Arc::new(sides.unwrap_or_default())
        });
        let comm = String::from_utf8_lossy(&value.comm);
        let process = Process {
            name: comm.trim_end_matches('\0'),
            cgroup: match names::subject(key).0 {
                SubjectKind::Cgroup => subject,
                SubjectKind::Interface => "",
            },
            senders: &sides.senders,
        };
        let is_populated = |pattern: &str| self.paths.is_populated(pattern);
        Entry {
            first_ns: value.first_ns,
            subject: subject.to_owned(),
            sides: Arc::clone(sides),
            advice: policy
                .map(|policy| advice(policy, key, value, &process, is_populated))
                .unwrap_or_default(),
        }
    }
}

impl Sides {
    /// Looked up in the policy that denied.
    fn of(policy: &Ready, value: &RecordValue) -> Self {
        let compiled = &policy.compiled;
        let target = usize::from(value.target);
        let names = compiled.target_names.get(target);
        let denial = compiled.target_denials.get(target);
        let senders = compiled.party_names.get(usize::from(value.sender));
        Self {
            senders: senders.cloned().unwrap_or_default(),
            endpoints: names.cloned().unwrap_or_default(),
            denial: denial.cloned().unwrap_or_default(),
        }
    }
}

/// What would allow the connection. Binds get no advice: a process that needs to be told how to
/// open another component's port should not be binding it.
fn advice(
    policy: &Ready,
    key: &RecordKey,
    value: &RecordValue,
    process: &Process<'_>,
    is_populated: impl Fn(&str) -> bool,
) -> Vec<Advice> {
    let Ready {
        policy, compiled, ..
    } = policy;
    let endpoints = compiled.target_endpoints.get(usize::from(value.target));
    let (Some(port_kind), Some(endpoints)) = (PortKind::from_code(key.port_kind), endpoints) else {
        return Vec::new();
    };
    // If TLS is required, the path exists already.
    let lock = [
        Reason::NotTls,
        Reason::MultipathTls,
        Reason::FastOpenThrough,
    ]
    .map(Reason::code);
    if Hook::from_code(key.hook) == Some(Hook::Bind) || key.reply != 0 || lock.contains(&key.reason)
    {
        return Vec::new();
    }
    if let Some(advice) = unrecognised(policy, compiled, process, is_populated) {
        return vec![advice];
    }
    let denied = Denied {
        senders: process.senders,
        endpoints,
        number: (port_kind, key.port),
        destination: (!key.dst.is_unspecified()).then(|| IpAddr::from(key.dst)),
        source_port: (value.source_port != 0).then_some(value.source_port),
    };
    advise(policy, Catalogue::builtin(), &denied)
}

/// A time in the format used everywhere.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// When this machine started, by the clock of the kernel's records.
pub(super) fn boot_time() -> SystemTime {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default();
    SystemTime::now()
        .checked_sub(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use enforcer_common::tables::Tables as _;
    use enforcer_policy::{
        SourceText,
        compile::{PathNumbers, Simulator},
    };
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::agent::{AgentOptions, start};

    /// One node, with a component whose name differs between policies.
    fn ready(name: &str) -> Ready {
        let text = format!(
            "apiVersion: enforcer.dev/v1alpha1\nkind: PathPolicy\nmetadata: {{ name: test }}\n\
             spec:\n  mode: Enforce\n  otherTraffic: Allow\n  profile: control-plane-single\n---\n\
             apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata: {{ name: test }}\n\
             spec:\n  nodes:\n    cp1: {{ addresses: [10.0.0.1], roles: [control-plane, etcd] }}\n  \
             components:\n    {name}: {{ addresses: [192.0.2.7] }}\n"
        );
        let text = SourceText {
            name: "test.yaml".to_owned(),
            text,
        };
        let options = AgentOptions {
            node: Some("cp1".to_owned()),
            ..AgentOptions::new(Vec::new())
        };
        start::prepare(&options, vec![text], &PathNumbers::default()).unwrap()
    }

    fn record(ready: &Ready, generation: u32, port: u16) -> (RecordKey, RecordValue) {
        let mut key = RecordKey::new_zeroed();
        key.src = Ip::v4([192, 0, 2, 7]);
        key.dst = Ip::v4([10, 0, 0, 1]);
        (key.port, key.hook) = (port, Hook::TcIngress as u8);
        (key.subject, key.subject_kind) = (3, enforcer_common::record::subject::INTERFACE);
        key.reason = Reason::NoPath.code();
        let tables = Simulator::new(&ready.compiled);
        let class = tables.class(PortKind::Tcp, port).unwrap();
        let mut value = RecordValue::new_zeroed();
        value.sender = tables.address_info(&key.src).party;
        let at = tables.address_info(&key.dst).party;
        value.target = tables.target(&ready.compiled.settings, at, class).unwrap();
        (value.generation, value.first_ns) = (generation, u64::from(port));
        (key, value)
    }

    #[test]
    fn a_denial_is_named_by_the_policy_that_made_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(CgroupPaths::new(directory.path()));
        let (old, new) = (ready("visitor"), ready("guest"));
        let subject = (SubjectKind::Interface, 3);
        ledger.names.learn(subject, "eth0");
        let records = [record(&old, 1, 2379), record(&old, 1, 2380)];
        // A record that arrives just after the switch, and one of the next policy.
        let late = record(&old, 1, 10250);
        let next = record(&new, 2, 6443);
        ledger.succeed(1, Arc::new(old), &[]);
        assert!(ledger.is_unsettled());
        let in_force = InForce {
            generation: 2,
            ready: &new,
        };
        let boot = SystemTime::UNIX_EPOCH;
        let name = |ledger: &mut Ledger, (key, value): &(RecordKey, RecordValue)| {
            let event = ledger.event(in_force, key, value, boot);
            // The last one: those that apply everywhere come first.
            let sender = event.source_components.last().cloned();
            (
                sender.unwrap_or_default(),
                event.endpoints.join(", "),
                event.subject.name,
            )
        };
        assert_eq!(name(&mut ledger, &next).0, "guest");
        ledger.settle(&[records[0], records[1], late, next]);
        assert!(!ledger.is_unsettled());
        ledger.names.learn(subject, "renamed");
        for (record, endpoint) in records.iter().chain([&late]).zip(["client", "peer", "api"]) {
            let (senders, at, subject) = name(&mut ledger, record);
            assert_eq!(
                (senders, subject),
                ("visitor".to_owned(), "eth0".to_owned())
            );
            assert!(at.ends_with(endpoint), "{at}");
        }
        // A policy that is no longer known yields no names, and never another policy's names.
        let mut lost = late;
        (lost.0.port, lost.1.generation) = (22, 7);
        assert_eq!(name(&mut ledger, &lost).0, "");
        // A new record with the same key.
        let (key, _) = records[0];
        ledger.forget(&key);
        let again = record(&new, 2, 2379);
        assert_eq!(name(&mut ledger, &again).0, "guest");
    }
}
