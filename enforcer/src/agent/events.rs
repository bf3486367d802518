//! Records of the kernel to events for people.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use enforcer_common::{
    addr::Ip,
    decide,
    packet::Space,
    record::{Hook, RecordKey, RecordValue},
    tables::{NOBODY, Party, Role, Tables as _},
    verdict::Reason,
};
use enforcer_policy::{
    Policy,
    advice::{Advice, Denied, Process, advise, unrecognised},
    catalogue::Catalogue,
    compile::{Compiled, Simulator},
    text,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    names::{self, Names},
    report::{Event, EventVerdict, Subject, SubjectKind},
    start::Ready,
};
use crate::kernel::{CgroupPaths, Kernel};

/// What turns records into events: names of everything. Made for a batch of records.
pub struct Teller<'a> {
    policy: &'a Policy,
    compiled: &'a Compiled,
    simulator: Simulator<'a>,
    kernel: &'a Kernel,
    paths: &'a mut CgroupPaths,
    names: &'a mut Names,
    boot: SystemTime,
}

impl<'a> Teller<'a> {
    /// By the policy in force.
    pub fn new(
        ready: &'a Ready,
        kernel: &'a Kernel,
        paths: &'a mut CgroupPaths,
        names: &'a mut Names,
    ) -> Self {
        let Ready {
            policy, compiled, ..
        } = ready;
        let simulator = Simulator::new(compiled);
        Self {
            policy,
            compiled,
            simulator,
            kernel,
            paths,
            names,
            boot: boot_time(),
        }
    }

    /// A record as an event.
    pub fn event(&mut self, key: &RecordKey, value: &RecordValue) -> Event {
        let space = Space::from_code(key.space);
        let reason = Reason::from_code(key.reason).unwrap_or(Reason::NoPolicy);
        let subject = self.subject(key);
        let senders = self.senders(key, &subject);
        let target = self.target(key, space, value.ifindex);
        let known = |ip: Ip| (ip != Ip::UNSPECIFIED).then(|| IpAddr::from(ip).to_string());
        let comm = value.comm.split(|byte| *byte == 0).next();
        let comm = text::of_bytes(comm.unwrap_or_default());
        let verdict = if key.dry_run == 0 {
            EventVerdict::Denied
        } else {
            EventVerdict::WouldDeny
        };
        Event {
            verdict,
            reason: reason.name().to_owned(),
            sentence: reason.sentence().to_owned(),
            endpoint: target
                .and_then(|target| self.compiled.target_names.get(target))
                .map(|names| names.join(", "))
                .unwrap_or_default(),
            denial: target
                .and_then(|target| self.compiled.target_denials.get(target))
                .cloned()
                .unwrap_or_default(),
            advice: self.advice(key, value, target, (&subject, &senders)),
            hook: Hook::from_code(key.hook)
                .map_or("unknown", Hook::name)
                .to_owned(),
            source: known(key.src),
            source_port: (value.source_port != 0).then_some(value.source_port),
            source_components: senders,
            // With a port, `::` is a destination like any other: this host.
            destination: space
                .map(|_| IpAddr::from(key.dst).to_string())
                .or(known(key.dst)),
            port: space.map(|_| key.port),
            protocol: space.map_or("", Space::name).to_owned(),
            reply: key.reply != 0,
            subject,
            pid: (value.pid != 0).then_some(value.pid),
            comm: (!comm.is_empty()).then_some(comm),
            count: value.count,
            first_seen: self.time(value.first_ns),
            last_seen: self.time(value.last_ns),
            generation: value.generation,
        }
    }

    /// Learns who a record is about, while he is there.
    pub fn learn(&mut self, key: &RecordKey) {
        let who = names::who(key);
        if who.0 == SubjectKind::Cgroup
            && let Some(path) = self.paths.get(key.subject)
        {
            self.names.learn(who, path, Role::Undeclared);
        }
    }

    fn subject(&mut self, key: &RecordKey) -> Subject {
        self.learn(key);
        let who = names::who(key);
        Subject {
            kind: who.0,
            id: key.subject,
            name: self.names.get(who).unwrap_or_default().to_owned(),
        }
    }

    fn senders(&self, key: &RecordKey, subject: &Subject) -> Vec<String> {
        let party = match subject.kind {
            SubjectKind::Cgroup if subject.name.is_empty() => NOBODY,
            SubjectKind::Cgroup => self.simulator.party_of_cgroup(&subject.name),
            SubjectKind::Interface => match self.names.role(subject.id) {
                // A party number, widened for the kernel's sake.
                Role::Pod => self.compiled.settings.pods as Party,
                _ => self.simulator.place(&key.src).party,
            },
        };
        self.compiled
            .party_names
            .get(usize::from(party))
            .cloned()
            .unwrap_or_default()
    }

    /// The number of the target that was meant.
    fn target(&self, key: &RecordKey, space: Option<Space>, ifindex: u32) -> Option<usize> {
        let dst = if key.dst.is_unspecified() {
            key.dst.this_host()
        } else {
            key.dst
        };
        let space = space?;
        let class = self.simulator.class(space, key.port)?;
        let settings = &self.compiled.settings;
        let is_received_here = match Hook::from_code(key.hook) {
            Some(Hook::CgroupIngress) => true,
            Some(Hook::CgroupEgress | Hook::TcEgress) => {
                self.kernel.role(ifindex) == Role::Loopback
            }
            _ => false,
        };
        let party = if is_received_here {
            decide::received_at(&self.simulator, settings, &dst, space, key.port)
        } else {
            self.simulator.place(&dst).party
        };
        let target = self.simulator.target(settings, party, class)?;
        Some(target.into())
    }

    /// What would allow it. Whoever has to be told how to open a port of another has no business there,
    /// so binds get none.
    fn advice(
        &self,
        key: &RecordKey,
        value: &RecordValue,
        target: Option<usize>,
        (subject, senders): (&Subject, &[String]),
    ) -> Vec<Advice> {
        let (Some(space), Some(target)) = (Space::from_code(key.space), target) else {
            return Vec::new();
        };
        // Where TLS is asked for, the path is there already.
        let lock = [
            Reason::NotTls,
            Reason::MultipathTls,
            Reason::FastOpenThrough,
        ]
        .map(Reason::code);
        if Hook::from_code(key.hook) == Some(Hook::Bind)
            || key.reply != 0
            || lock.contains(&key.reason)
        {
            return Vec::new();
        }
        let endpoints = self.compiled.target_endpoints.get(target);
        let comm = String::from_utf8_lossy(&value.comm);
        let process = Process {
            name: comm.trim_end_matches('\0'),
            cgroup: match subject.kind {
                SubjectKind::Cgroup => &subject.name,
                SubjectKind::Interface => "",
            },
            senders,
        };
        let is_populated = |pattern: &str| self.paths.is_populated(pattern);
        if let Some(advice) = unrecognised(self.policy, self.compiled, &process, is_populated) {
            return vec![advice];
        }
        let denied = Denied {
            senders,
            endpoints: endpoints.map_or(&[], Vec::as_slice),
            number: (space, key.port),
            destination: (!key.dst.is_unspecified()).then(|| IpAddr::from(key.dst)),
            source_port: (value.source_port != 0).then_some(value.source_port),
        };
        advise(self.policy, Catalogue::builtin(), &denied)
    }

    fn time(&self, boot_ns: u64) -> String {
        rfc3339(self.boot + Duration::from_nanos(boot_ns))
    }
}

/// A time as it is told everywhere.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// When this machine started, by the clock of the kernel's records.
fn boot_time() -> SystemTime {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default();
    SystemTime::now()
        .checked_sub(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
