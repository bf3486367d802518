//! What must be alive again before a policy is confirmed: paths that packets used before the switch, and connections of this
//! node over which data arrived. Only what was alive before counts; what failed before is not held against the new policy.
//!
//! No probe packets are sent. A path is alive if its counters grow. A TCP connection in the node's own network namespace is
//! alive if data arrives, which the kernel reports for each socket; the packets of an open connection whose verdict is kept
//! are not counted on its path. So the apiserver answers if its clients on this node receive data from it, and the kubelet
//! renews its lease over such a connection.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use enforcer_common::packet::PortKind;
use enforcer_policy::text;

use super::{AgentError, preflight::Openers};
use crate::kernel::{CgroupPaths, sockets};

/// How long before the switch something counts as alive.
const RECENT: Duration = Duration::from_secs(60);
/// In how many sampling intervals a path's counters must grow within [`RECENT`].
const OFTEN: usize = 2;
/// What arrived before the switch may be reported a little later.
const MARGIN: Duration = Duration::from_secs(1);

/// Packets of a path, forward and back.
pub(super) type Packets = (u64, u64);

/// Samples of the path counters over the last minute.
#[derive(Debug, Default)]
pub(super) struct Activity(VecDeque<(Instant, BTreeMap<u16, Packets>)>);

impl Activity {
    /// Adds a sample.
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

/// What must come back.
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
    /// From what is alive now; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// The kernel does not list connections.
    pub(super) fn before(
        activity: &Activity,
        paths: &mut CgroupPaths,
    ) -> Result<Option<Self>, AgentError> {
        let recent = connections(paths)?.into_iter();
        let recent = recent.filter(|(_, ago)| *ago <= RECENT);
        let connections: BTreeSet<Group> = recent.map(|(group, _)| group).collect();
        let paths = activity.alive();
        let expected = paths.len() + connections.len();
        let probes = Self {
            begun: Instant::now(),
            paths_then: None,
            paths,
            connections,
            expected,
        };
        Ok((expected > 0).then_some(probes))
    }

    /// The same, counted from now: the policy has been switched.
    pub(super) fn restarted(self) -> Self {
        Self {
            begun: Instant::now(),
            ..self
        }
    }

    /// How many were alive.
    pub(super) const fn expected(&self) -> usize {
        self.expected
    }

    /// Since the switch.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Whether all that were alive are alive again.
    pub(super) fn is_answered(&self) -> bool {
        self.paths.is_empty() && self.connections.is_empty()
    }

    /// Looks at the counters of paths.
    pub(super) fn see_paths(&mut self, packets: BTreeMap<u16, Packets>) {
        let Some(then) = &self.paths_then else {
            self.paths_then = Some(packets);
            return;
        };
        self.paths.retain(|number, (forward, reply)| {
            let of =
                |packets: &BTreeMap<u16, Packets>| packets.get(number).copied().unwrap_or_default();
            let (then, now) = (of(then), of(&packets));
            *forward &= now.0 <= then.0;
            *reply &= now.1 <= then.1;
            *forward || *reply
        });
    }

    /// Looks at the connections. One that has ended is waited for no longer if `ended`, unless something was denied at its
    /// endpoint.
    ///
    /// # Errors
    ///
    /// The kernel does not list them.
    pub(super) fn see_connections(
        &mut self,
        paths: &mut CgroupPaths,
        ended: Option<&BTreeSet<(IpAddr, u16)>>,
    ) -> Result<(), AgentError> {
        let elapsed = self.elapsed();
        let there = connections(paths)?;
        self.connections.retain(|group| match there.get(group) {
            Some(ago) => *ago + MARGIN > elapsed,
            None => ended.is_none_or(|denied| denied.contains(&(group.remote, group.port))),
        });
        Ok(())
    }

    /// What is silent, in words. `name` returns the name of a path.
    pub(super) fn silent<'a>(&self, name: impl Fn(u16) -> Option<&'a str>) -> Vec<String> {
        let paths = self.paths.iter().map(|(number, (_, reply))| {
            let what = if *reply { "replies on" } else { "packets on" };
            format!("{what} path {}", name(*number).unwrap_or("(unknown)"))
        });
        let connections = self.connections.iter().map(Group::describe);
        paths.chain(connections).collect()
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
