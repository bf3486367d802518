//! The metrics that the agent exports to Prometheus: their names, help texts and text formats.
//! `docs/metrics.md` is made from the same table.
//!
//! No label holds an address, a process, a cgroup or an interface: anything that a sender can
//! choose would create one series for each value.

use std::{
    collections::BTreeMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use enforcer_common::{
    record::{Hook, RecordKey},
    verdict::Reason,
};
use enforcer_policy::vocabulary::Vocabulary as _;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use crate::api::Table;

/// What the agent counts itself, since it started.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    /// When it started.
    pub started: SystemTime,
    /// Policies put in force.
    pub applied: u64,
    /// Policies that could not be put in force.
    pub failed: u64,
    /// Policies confirmed.
    pub confirmed: u64,
    /// Policies rolled back on request.
    pub rolled_back_by_request: u64,
    /// Policies rolled back because nobody confirmed them in time.
    pub rolled_back_unconfirmed: u64,
    /// New denials that the kernel announced, dropped or not, by the hook's number.
    new_denials: [[u64; 2]; HOOKS],
}

/// The hooks' numbers are below this.
const HOOKS: usize = 16;

impl Totals {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Self {
            started: SystemTime::now(),
            applied: 0,
            failed: 0,
            confirmed: 0,
            rolled_back_by_request: 0,
            rolled_back_unconfirmed: 0,
            new_denials: Default::default(),
        }
    }

    /// The kernel announced a new denial.
    pub fn count_new_denial(&mut self, key: &RecordKey) {
        let of_hook = self.new_denials.get_mut(usize::from(key.hook));
        if let Some([dropped, reported]) = of_hook {
            *(if key.dry_run == 0 { dropped } else { reported }) += 1;
        }
    }

    fn new_denials(&self, hook: Hook) -> [u64; 2] {
        let of_hook = self.new_denials.get(hook as usize);
        of_hook.copied().unwrap_or_default()
    }
}

/// Everything that is exported, at one point in time.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Version of this agent.
    pub version: &'static str,
    /// Digest of the layout of the kernel's maps.
    pub layout: u64,
    /// What the agent has counted.
    pub totals: Totals,
    /// The policy in force.
    pub policy: PolicyInForce,
    /// Packets by path: its name, forward, reply.
    pub paths: Vec<(String, u64, u64)>,
    /// Denials by reason: dropped, and reported only.
    pub reasons: Vec<(Reason, u64, u64)>,
    /// Packets that `otherTraffic: Allow` let pass.
    pub other_traffic: u64,
    /// Later fragments that passed.
    pub later_fragments: u64,
    /// Packets that follow a connection's failed TLS check.
    pub cut: u64,
    /// Verdicts kept on sockets.
    pub kept_verdicts: u64,
    /// Denials without a record.
    pub records_lost: u64,
    /// Denials whose record was removed.
    pub records_evicted: u64,
    /// New records that could not be announced.
    pub wakes_lost: u64,
    /// New denials that were left out of the log.
    pub events_suppressed: u64,
    /// Whether every program is attached wherever it should be.
    pub is_attached: bool,
    /// Attached programs, by hook and method.
    pub attachments: BTreeMap<(String, String), u64>,
    /// Interfaces that should have programs.
    pub interfaces: u64,
    /// Those that do not have them.
    pub interfaces_unattached: u64,
    /// Kinds of problems, and whether each is present.
    pub problems: Vec<(&'static str, bool)>,
    /// The tables.
    pub tables: Vec<Table>,
}

/// The policy in force.
#[derive(Debug, Clone)]
pub(super) struct PolicyInForce {
    /// Its name.
    pub name: String,
    /// Digest of its files.
    pub digest: String,
    /// Whether it only reports.
    pub dry_run: bool,
    /// `Allow` or `Drop`.
    pub other_traffic: &'static str,
    /// Its generation.
    pub generation: u32,
    /// When it was put in force.
    pub since: SystemTime,
    /// When it must be confirmed.
    pub confirm_by: Option<SystemTime>,
    /// Whether it is what the files hold.
    pub is_of_files: bool,
}

/// A format of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextFormat {
    /// Prometheus' own format.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// The format that a client wants, by its `Accept` header.
    pub fn of(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its value for the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// A snapshot in this format.
    pub fn encode(self, snapshot: Snapshot) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(snapshot));
        let mut body = String::new();
        match self {
            Self::Prometheus => prometheus_text::encode(&mut body, &registry)?,
            Self::OpenMetrics => text::encode(&mut body, &registry)?,
        }
        Ok(body)
    }
}

/// A metric.
struct Family {
    /// Its name, without the suffix that follows from its type and unit.
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Snapshot) -> Vec<Sample>,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    /// A gauge of seconds since 1970.
    Timestamp,
    /// A gauge that is always 1, with its information in labels.
    Info,
}

impl Kind {
    fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge | Self::Timestamp => MetricType::Gauge,
            Self::Info => MetricType::Info,
        }
    }

    fn unit(self) -> Option<Unit> {
        (self == Self::Timestamp).then_some(Unit::Seconds)
    }
}

/// One value of a metric, with the values of its labels.
struct Sample {
    labels: Vec<String>,
    value: Value,
}

enum Value {
    Whole(u64),
    Time(SystemTime),
}

/// A sample without labels.
fn one(value: u64) -> Vec<Sample> {
    vec![sample([], value)]
}

fn flag(value: bool) -> Vec<Sample> {
    one(value.into())
}

fn time(value: Option<SystemTime>) -> Vec<Sample> {
    let sample = |value| Sample {
        labels: Vec::new(),
        value: Value::Time(value),
    };
    value.into_iter().map(sample).collect()
}

fn sample<const N: usize>(labels: [&str; N], value: u64) -> Sample {
    Sample {
        labels: labels.map(str::to_owned).to_vec(),
        value: Value::Whole(value),
    }
}

/// A pair of numbers: denied, and what dry-run would have denied.
fn by_mode(label: &str, [denied, would_deny]: [u64; 2]) -> [Sample; 2] {
    [
        sample([label, "denied"], denied),
        sample([label, "would_deny"], would_deny),
    ]
}

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    samples: fn(&Snapshot) -> Vec<Sample>,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
        samples,
    }
}

/// All metrics, in the order of export.
static FAMILIES: [Family; 30] = [
    family(
        "enforcer_build",
        Kind::Info,
        &["version", "layout"],
        "The agent's version, and the layout of its tables in the kernel: agents of one layout continue each other's counters",
        |s| {
            vec![Sample {
                labels: vec![s.version.to_owned(), format!("{:016x}", s.layout)],
                value: Value::Whole(1),
            }]
        },
    ),
    family(
        "enforcer_start_timestamp",
        Kind::Timestamp,
        &[],
        "When the agent started",
        |s| time(Some(s.totals.started)),
    ),
    family(
        "enforcer_enforced",
        Kind::Gauge,
        &[],
        "1 if the policy's mode is Enforce and every program is attached wherever it is to be; 0 in dry-run, or if not",
        |s| flag(s.is_attached && !s.policy.dry_run),
    ),
    family(
        "enforcer_dry_run",
        Kind::Gauge,
        &[],
        "1 if the policy in force only reports and drops nothing",
        |s| flag(s.policy.dry_run),
    ),
    family(
        "enforcer_policy",
        Kind::Info,
        &["policy", "digest", "other_traffic"],
        "The policy in force: its name, the digest of its files, and what happens to other traffic",
        |s| {
            vec![sample(
                [&s.policy.name, &s.policy.digest, s.policy.other_traffic],
                1,
            )]
        },
    ),
    family(
        "enforcer_policy_generation",
        Kind::Gauge,
        &[],
        "Number of the policy in force. It grows with each policy, and goes back when one is taken back before it was confirmed",
        |s| one(s.policy.generation.into()),
    ),
    family(
        "enforcer_policy_applied_timestamp",
        Kind::Timestamp,
        &[],
        "When the policy in force was put in force",
        |s| time(Some(s.policy.since)),
    ),
    family(
        "enforcer_policy_pending_confirmation",
        Kind::Gauge,
        &[],
        "1 while the policy in force has to be confirmed, or the one before is in force again",
        |s| flag(s.policy.confirm_by.is_some()),
    ),
    family(
        "enforcer_policy_confirmation_deadline_timestamp",
        Kind::Timestamp,
        &[],
        "When the policy before is in force again unless this one is confirmed; missing if it need not be",
        |s| time(s.policy.confirm_by),
    ),
    family(
        "enforcer_policy_from_files",
        Kind::Gauge,
        &[],
        "1 if what the policy's files hold is in force; 0 if they are broken, wait to be applied, or were taken back",
        |s| flag(s.policy.is_of_files),
    ),
    family(
        "enforcer_policy_swaps",
        Kind::Counter,
        &["result"],
        "Policies that this agent put in force (applied), or could not (failed): then the one before stays in force",
        |s| {
            vec![
                sample(["applied"], s.totals.applied),
                sample(["failed"], s.totals.failed),
            ]
        },
    ),
    family(
        "enforcer_policy_confirmations",
        Kind::Counter,
        &[],
        "Policies that were confirmed in time",
        |s| one(s.totals.confirmed),
    ),
    family(
        "enforcer_policy_rollbacks",
        Kind::Counter,
        &["cause"],
        "Policies that were taken back: by request, or because nobody confirmed them in time",
        |s| {
            vec![
                sample(["request"], s.totals.rolled_back_by_request),
                sample(["unconfirmed"], s.totals.rolled_back_unconfirmed),
            ]
        },
    ),
    family(
        "enforcer_path_packets",
        Kind::Counter,
        &["path", "direction"],
        "Packets that a path allowed, by their direction along the path",
        |s| {
            let both = |(path, forward, reply): &(String, u64, u64)| {
                [
                    sample([path, "forward"], *forward),
                    sample([path, "reply"], *reply),
                ]
            };
            s.paths.iter().flat_map(both).collect()
        },
    ),
    family(
        "enforcer_denials",
        Kind::Counter,
        &["reason", "mode"],
        "Packets and calls that were denied, by reason: dropped (denied), or only reported in dry-run (would_deny)",
        |s| {
            let both = |(reason, denied, would_deny): &(Reason, u64, u64)| {
                by_mode(reason.name(), [*denied, *would_deny])
            };
            s.reasons.iter().flat_map(both).collect()
        },
    ),
    family(
        "enforcer_new_denials",
        Kind::Counter,
        &["hook", "mode"],
        "Denials that the agent saw for the first time, by hook: a sender, destination, port and reason count once. \
         The kernel counts packets by reason and not by hook",
        |s| {
            let hooks = Hook::ALL.into_iter();
            let hooks = hooks.filter(|hook| *hook != Hook::SockCreate);
            let both = |hook: Hook| by_mode(hook.word(), s.totals.new_denials(hook));
            hooks.flat_map(both).collect()
        },
    ),
    family(
        "enforcer_other_traffic_packets",
        Kind::Counter,
        &[],
        "Packets that lead to no guarded endpoint and that `otherTraffic: Allow` let pass",
        |s| one(s.other_traffic),
    ),
    family(
        "enforcer_later_fragments",
        Kind::Counter,
        &[],
        "Later fragments that passed",
        |s| one(s.later_fragments),
    ),
    family(
        "enforcer_cut_packets",
        Kind::Counter,
        &[],
        "Packets of connections that the TLS check had cut off, beyond the one that counts as the denial",
        |s| one(s.cut),
    ),
    family(
        "enforcer_kept_verdicts",
        Kind::Counter,
        &[],
        "Verdicts kept on the sockets of open connections",
        |s| one(s.kept_verdicts),
    ),
    family(
        "enforcer_records_lost",
        Kind::Counter,
        &[],
        "Denials without a record, for lack of room: `enforcer events` does not list them",
        |s| one(s.records_lost),
    ),
    family(
        "enforcer_records_evicted",
        Kind::Counter,
        &[],
        "Denials in records that were removed to make room for others",
        |s| one(s.records_evicted),
    ),
    family(
        "enforcer_record_wakeups_lost",
        Kind::Counter,
        &[],
        "New records that the kernel could not announce to the agent: `enforcer events` lists them, the log does not",
        |s| one(s.wakes_lost),
    ),
    family(
        "enforcer_events_suppressed",
        Kind::Counter,
        &[],
        "New denials that were left out of the agent's log because there were too many in a second",
        |s| one(s.events_suppressed),
    ),
    family(
        "enforcer_attachments",
        Kind::Gauge,
        &["hook", "method"],
        "Attached programs, by hook and by how they are attached",
        |s| {
            let all = s.attachments.iter();
            all.map(|((hook, method), count)| sample([hook, method], *count))
                .collect()
        },
    ),
    family(
        "enforcer_interfaces",
        Kind::Gauge,
        &[],
        "Interfaces of the node's network namespace",
        |s| one(s.interfaces),
    ),
    family(
        "enforcer_interfaces_unattached",
        Kind::Gauge,
        &[],
        "Interfaces that lack their programs or have those of another role",
        |s| one(s.interfaces_unattached),
    ),
    family(
        "enforcer_problem",
        Kind::Gauge,
        &["kind"],
        "1 if something of this kind does not work at present; `enforcer status` says what",
        |s| {
            let all = s.problems.iter();
            all.map(|(kind, is_there)| sample([kind], (*is_there).into()))
                .collect()
        },
    ),
    family(
        "enforcer_table_entries",
        Kind::Gauge,
        &["table"],
        "Entries of a table. Tables that evict their oldest entry when they are full are left out: to count them takes a \
         walk through all of them, and they fill up as a matter of course",
        |s| {
            let known = |table: &Table| Some(sample([table.name.as_str()], table.entries?));
            s.tables.iter().filter_map(known).collect()
        },
    ),
    family(
        "enforcer_table_capacity",
        Kind::Gauge,
        &["table"],
        "How many entries a table has room for",
        |s| {
            let all = s.tables.iter();
            all.map(|table| sample([table.name.as_str()], table.capacity))
                .collect()
        },
    ),
];

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &FAMILIES {
            let (kind, unit) = (family.kind.metric_type(), family.kind.unit());
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
            for Sample { labels, value } in (family.samples)(self) {
                let values = labels.iter().map(String::as_str);
                let labels: Vec<(&str, &str)> = family.labels.iter().copied().zip(values).collect();
                match kind {
                    MetricType::Info => metric.encode_info(&labels)?,
                    _ if labels.is_empty() => write(&mut metric, kind, &value)?,
                    _ => write(&mut metric.encode_family(&labels)?, kind, &value)?,
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: MetricType, value: &Value) -> fmt::Result {
    match (kind, value) {
        (MetricType::Counter, Value::Whole(value)) => {
            metric.encode_counter::<NoLabelSet, u64, u64>(value, None)
        }
        (_, Value::Whole(value)) => metric.encode_gauge(value),
        (_, Value::Time(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            // The time is known to the millisecond; more digits would only look precise.
            metric.encode_gauge(&(since.as_millis() as f64 / 1000.0))
        }
    }
}

#[cfg(test)]
mod tests;
