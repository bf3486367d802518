//! Confirms a policy by what it leaves alive: paths that packets used before the switch, and connections of this node that
//! received data. Only what was alive before is asked for after; what failed before is not held against the new policy.
//!
//! Nothing is sent. A path is alive if its counters grow. A connection of this node's own network namespace is alive if it
//! receives data, which the kernel tells of every TCP socket: an open connection whose verdict is kept is not counted on its
//! path. So the apiserver answers if its clients on this node hear from it, and the kubelet's lease is renewed over such a
//! connection.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use enforcer_common::packet::PortKind;
use enforcer_policy::text;

use super::{
    AgentError,
    preflight::Openers,
    print::{Priority, print_as},
    serve::Agent,
};
use crate::{
    api::Probing,
    kernel::{CgroupPaths, Counters, LinkEvents, apply::now, sockets},
};

/// How long before the switch something counts as alive.
const RECENT: Duration = Duration::from_secs(60);
/// How often path counters are looked at, at most; so often do they have to grow in [`RECENT`].
const OFTEN: usize = 2;
/// A policy is not confirmed before this, as what is cut shows by silence only.
const AT_LEAST: Duration = Duration::from_secs(5);
/// Connections that have ended, and were not denied, are no longer waited for after this.
const ENDED: Duration = Duration::from_secs(10);
/// Before the deadline, the last look.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// What arrived before the switch may be told a little later.
const MARGIN: Duration = Duration::from_secs(1);
/// So many that stayed silent are named.
const NAMED: usize = 8;

/// Packets of a path, forward and back.
type Packets = (u64, u64);

/// What path counters were in the last minute.
#[derive(Debug, Default)]
pub(super) struct Activity(VecDeque<(Instant, BTreeMap<u16, Packets>)>);

impl Activity {
    /// Remembers what they are now.
    pub(super) fn sample(&mut self, at: Instant, paths: BTreeMap<u16, Packets>) {
        while self
            .0
            .front()
            .is_some_and(|(first, _)| at.duration_since(*first) > RECENT)
        {
            self.0.pop_front();
        }
        self.0.push_back((at, paths));
    }

    /// Paths that were used more than once, and in which directions.
    fn alive(&self) -> BTreeMap<u16, (bool, bool)> {
        let mut grew: BTreeMap<u16, (usize, usize)> = BTreeMap::new();
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        for ((_, before), (_, after)) in pairs {
            for (number, now) in after {
                let then = before.get(number).copied().unwrap_or_default();
                let grew = grew.entry(*number).or_default();
                grew.0 += usize::from(now.0 > then.0);
                grew.1 += usize::from(now.1 > then.1);
            }
        }
        let often = |count: usize| count >= OFTEN;
        let alive = grew
            .into_iter()
            .map(|(number, (forward, reply))| (number, (often(forward), often(reply))));
        alive
            .filter(|(_, (forward, reply))| *forward || *reply)
            .collect()
    }
}

/// Connections of one kind: between the same cgroup and the same endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    cgroup: String,
    /// Whether a process of that cgroup opened them; else it accepted them.
    opened: bool,
    remote: IpAddr,
    /// The port that they lead to.
    port: u16,
}

impl Group {
    fn describe(&self) -> String {
        let Self {
            cgroup,
            opened,
            remote,
            port,
        } = self;
        let cgroup = text::name(cgroup);
        match opened {
            true => format!("connections of cgroup {cgroup} to {remote} port {port}"),
            false => format!("connections from {remote} to port {port} of cgroup {cgroup}"),
        }
    }
}

/// For each kind of connection, when one of them received data last.
type Connections = BTreeMap<Group, Duration>;

/// The connections of this network namespace over which data came.
fn connections(paths: &mut CgroupPaths) -> Result<Connections, AgentError> {
    let openers = Openers::of(&sockets::bound()?);
    let mut found = Connections::new();
    for socket in sockets::connected()? {
        let Some(ago) = socket
            .received_ago
            .filter(|_| socket.port_kind == PortKind::Tcp)
        else {
            continue;
        };
        let opened = openers.is_opened_here(&socket);
        let cgroup = socket.cgroup.and_then(|id| paths.get(id));
        let group = Group {
            cgroup: cgroup.unwrap_or("(unknown)").to_owned(),
            opened,
            remote: socket.remote.ip(),
            port: match opened {
                true => socket.remote.port(),
                false => socket.local.port(),
            },
        };
        let last = found.entry(group).or_insert(ago);
        *last = ago.min(*last);
    }
    Ok(found)
}

/// What is waited for.
#[derive(Debug)]
pub(super) struct Probes {
    begun: Instant,
    /// Counters right after the switch.
    paths_then: Option<BTreeMap<u16, Packets>>,
    paths: BTreeMap<u16, (bool, bool)>,
    connections: BTreeSet<Group>,
    expected: usize,
}

impl Probes {
    fn remaining(&self) -> usize {
        self.paths.len() + self.connections.len()
    }
}

impl Agent {
    /// Remembers which paths are in use.
    pub(super) fn sample_activity(&mut self) {
        if let Ok(counters) = self.kernel.counters(self.ready.numbers.names().len()) {
            self.activity
                .sample(Instant::now(), self.path_packets(&counters));
        }
    }

    fn path_packets(&self, counters: &Counters) -> BTreeMap<u16, Packets> {
        // Numbers of paths are below MAX_PATHS.
        let numbers = 0..self.ready.numbers.names().len() as u16;
        let used = numbers.map(|number| (number, counters.path(number)));
        used.filter(|(_, packets)| *packets != (0, 0)).collect()
    }

    /// What is alive before a switch.
    ///
    /// # Errors
    ///
    /// Nothing is, so nothing could confirm the policy; or the kernel does not list connections.
    pub(super) fn alive_before(&mut self) -> Result<Probes, AgentError> {
        self.sample_activity();
        let paths = self.activity.alive();
        let connections = connections(&mut self.ledger.paths)?
            .into_iter()
            .filter(|(_, ago)| *ago <= RECENT)
            .map(|(group, _)| group);
        let connections: BTreeSet<Group> = connections.collect();
        let expected = paths.len() + connections.len();
        if expected == 0 {
            return Err(AgentError::NothingAlive);
        }
        Ok(Probes {
            begun: Instant::now(),
            paths_then: None,
            paths,
            connections,
            expected,
        })
    }

    /// Looks at what has come back since the switch; confirms the policy once all of it has.
    pub(super) async fn probe(&mut self, links: &LinkEvents) {
        let Some(mut probes) = self.probes.take() else {
            return;
        };
        if !self.is_unconfirmed() {
            return;
        }
        if let Err(error) = self.look_for(&mut probes) {
            print_as(Priority::Warning, &text::chain(&error));
        }
        let is_done = probes.remaining() == 0 && probes.begun.elapsed() >= AT_LEAST;
        let expected = probes.expected;
        // What is silent is named when the policy is taken back.
        self.probes = Some(probes);
        if !is_done {
            return;
        }
        match self.confirm(links).await {
            Ok(()) => super::print::print(&format!(
                "confirmed by probes: all {expected} that were alive before are alive"
            )),
            Err(error) => print_as(Priority::Error, &text::chain(&error)),
        }
    }

    fn look_for(&mut self, probes: &mut Probes) -> Result<(), AgentError> {
        let counters = self.kernel.counters(self.ready.numbers.names().len())?;
        let packets = self.path_packets(&counters);
        match &probes.paths_then {
            None => probes.paths_then = Some(packets),
            Some(then) => probes.paths.retain(|number, (forward, reply)| {
                let of = |packets: &BTreeMap<u16, Packets>| {
                    packets.get(number).copied().unwrap_or_default()
                };
                let (then, now) = (of(then), of(&packets));
                *forward &= now.0 <= then.0;
                *reply &= now.1 <= then.1;
                *forward || *reply
            }),
        }
        let elapsed = probes.begun.elapsed();
        let there = connections(&mut self.ledger.paths)?;
        let left = self.kernel.deadline().map_or(Duration::ZERO, |deadline| {
            Duration::from_nanos(deadline.saturating_sub(now()))
        });
        let may_have_ended = elapsed >= ENDED || left <= LAST_LOOK;
        let denied = match may_have_ended {
            true => self.denied_since()?,
            false => BTreeSet::new(),
        };
        probes.connections.retain(|group| match there.get(group) {
            Some(ago) => *ago + MARGIN > elapsed,
            None => !may_have_ended || denied.contains(&group.endpoint()),
        });
        Ok(())
    }

    /// Where something was denied under the policy in force, as remote address and port of the endpoint.
    fn denied_since(&mut self) -> Result<BTreeSet<(IpAddr, u16)>, AgentError> {
        let generation = self.kernel.generation();
        let records = self.kernel.records()?;
        let of_this = records
            .into_iter()
            .filter(|(_, value)| value.generation == generation);
        let ends = of_this.flat_map(|(key, _)| {
            [
                (IpAddr::from(key.dst), key.port),
                (IpAddr::from(key.src), key.port),
            ]
        });
        Ok(ends.collect())
    }

    /// What is waited for, as far as it is silent.
    pub(super) fn silent_probes(&self) -> Option<Probing> {
        let probes = self.probes.as_ref()?;
        let paths = probes.paths.iter().map(|(number, (_, reply))| {
            let name = self.ready.numbers.name(*number).unwrap_or("(unknown)");
            let what = if *reply { "replies on" } else { "packets on" };
            format!("{what} path {name}")
        });
        let connections = probes.connections.iter().map(Group::describe);
        Some(Probing {
            expected: probes.expected as u64,
            silent: paths.chain(connections).collect(),
        })
    }

    /// Why a policy was taken back that nobody confirmed.
    pub(super) fn why_unconfirmed(&self) -> String {
        match self.silent_probes() {
            Some(Probing { expected, silent }) if !silent.is_empty() => {
                let mut named: Vec<String> = silent.iter().take(NAMED).cloned().collect();
                if silent.len() > NAMED {
                    named.push(format!("{} more", silent.len() - NAMED));
                }
                format!(
                    "as {} of {expected} that were alive before were not after: {}",
                    silent.len(),
                    named.join("; ")
                )
            }
            _ => "as nobody confirmed it in time".to_owned(),
        }
    }
}

impl Group {
    /// The end by which a denial would be known.
    const fn endpoint(&self) -> (IpAddr, u16) {
        (self.remote, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_was_used_more_than_once_in_the_last_minute_is_alive() {
        let mut activity = Activity::default();
        let start = Instant::now();
        for second in 0_u64..=24 {
            let paths = BTreeMap::from([
                // Used all the time, answered until the minute before.
                (1, (10 * second, 10 * second.min(11))),
                // Once.
                (2, (u64::from(second >= 20), 0)),
                // Never in this time.
                (3, (7, 7)),
                // A path that comes with the policy, and is used at once.
                (4, (second.saturating_sub(20), second.saturating_sub(20))),
            ]);
            activity.sample(start + Duration::from_secs(5 * second), paths);
        }
        let alive = activity.alive();
        assert_eq!(alive.get(&1), Some(&(true, false)));
        assert_eq!(alive.get(&2), None);
        assert_eq!(alive.get(&3), None);
        assert_eq!(alive.get(&4), Some(&(true, true)));
        assert!(activity.0.len() <= 14);
    }
}
