//! Confirms a policy by [`probes`](super::probes), or says which of them were silent when it is taken back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use enforcer_policy::text;

use super::{
    AgentError,
    print::{Priority, print, print_as},
    probes::{Packets, Probes},
    serve::Agent,
};
use crate::{
    api::Probing,
    kernel::{Counters, LinkEvents, apply::now},
};

/// A policy is not confirmed before this, as what is cut shows by silence only.
const AT_LEAST: Duration = Duration::from_secs(5);
/// Connections that have ended, and were not denied, are no longer waited for after this.
const ENDED: Duration = Duration::from_secs(10);
/// Before the deadline, the last look.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// So many that stayed silent are named.
const NAMED: usize = 8;

impl Agent {
    /// Remembers which paths are in use.
    pub(super) fn sample_activity(&mut self) {
        if let Ok(counters) = self.kernel.counters(self.ready.numbers.names().len()) {
            let packets = self.path_packets(&counters);
            self.activity.sample(Instant::now(), packets);
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
        Probes::before(&self.activity, &mut self.ledger.paths)?.ok_or(AgentError::NothingAlive)
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
        let is_done = probes.is_answered() && probes.elapsed() >= AT_LEAST;
        let expected = probes.expected();
        // What is silent is named when the policy is taken back.
        self.probes = Some(probes);
        if !is_done {
            return;
        }
        match self.confirm(links).await {
            Ok(()) => print(&format!(
                "confirmed by probes: all {expected} that were alive before are alive"
            )),
            Err(error) => print_as(Priority::Error, &text::chain(&error)),
        }
    }

    fn look_for(&mut self, probes: &mut Probes) -> Result<(), AgentError> {
        let counters = self.kernel.counters(self.ready.numbers.names().len())?;
        probes.see_paths(self.path_packets(&counters));
        let left = self.kernel.deadline().map_or(Duration::ZERO, |deadline| {
            Duration::from_nanos(deadline.saturating_sub(now()))
        });
        let may_have_ended = probes.elapsed() >= ENDED || left <= LAST_LOOK;
        let denied = match may_have_ended {
            true => Some(self.denied_since()?),
            false => None,
        };
        probes.see_connections(&mut self.ledger.paths, denied.as_ref())
    }

    /// Where something was denied under the policy in force: the addresses and the port of its record.
    fn denied_since(&self) -> Result<BTreeSet<(IpAddr, u16)>, AgentError> {
        let generation = self.kernel.generation();
        let records = self.kernel.records()?.into_iter();
        let of_this = records.filter(|(_, value)| value.generation == generation);
        let ends = of_this.flat_map(|(key, _)| {
            [key.dst, key.src].map(|address| (IpAddr::from(address), key.port))
        });
        Ok(ends.collect())
    }

    /// What is waited for, as far as it is silent.
    pub(super) fn silent_probes(&self) -> Option<Probing> {
        let probes = self.probes.as_ref()?;
        Some(Probing {
            expected: probes.expected() as u64,
            silent: probes.silent(|number| self.ready.numbers.name(number)),
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
