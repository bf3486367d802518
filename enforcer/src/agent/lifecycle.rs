//! Policies in sequence: put in force, confirmed, rolled back.

use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use enforcer_policy::text;

use super::{
    AgentError, Preflight,
    control::{Answer, ToApply},
    ledger::rfc3339,
    memory,
    print::{Priority, print, print_as},
    probes::Probes,
    reader::{Baseline, Trigger},
    serve::Agent,
    start::{self, Ready},
};
use crate::{
    api::Applied,
    kernel::{KernelError, LinkEvents, Side, apply::now, cgroups},
};

impl Agent {
    /// Puts a policy in force, either for good or until a deadline by which it must be confirmed.
    pub(super) async fn put_in_force(
        &mut self,
        ready: Ready,
        within: Option<Duration>,
        links: &LinkEvents,
    ) -> Result<(), AgentError> {
        if !self.options.allows_missing_uplinks {
            ready.selectors.check(&self.links)?;
        }
        if self.is_unconfirmed() {
            // Before anything is written about the new policy, while the old one is still the
            // unconfirmed one.
            let generation = self.kernel.generation();
            return Err(KernelError::Unconfirmed { generation }.into());
        }
        // The programs stay attached where they are: the root itself cannot change.
        let resolve = || cgroups::resolve(&self.cgroup_root, &ready.compiled.cgroups);
        let known = self.reserve.within(resolve);
        if within.is_some() {
            // If the machine restarts, this policy is not put in force.
            self.history.begin(&self.ready.texts, &ready.texts)?;
        }
        let generation = self.kernel.generation();
        let roles = ready.selectors.roles(&self.links);
        let new = ready.as_new(&roles);
        if let Err(error) = self.kernel.apply(new, &cgroups::pairs(&known), within) {
            if within.is_some() {
                self.history.cancel()?;
            }
            return Err(error.into());
        }
        self.totals.applied += 1;
        let before = mem::replace(&mut self.ready, Arc::new(ready));
        if within.is_some() {
            self.unconfirmed = Some(Arc::clone(&before));
        } else {
            self.remember();
        }
        // Without the records, denials that are not named yet keep only their addresses.
        let records = self.kernel.records().unwrap_or_default();
        self.ledger.succeed(generation, before, &records);
        self.attach_interfaces(links).await;
        memory::give_back();
        Ok(())
    }

    /// Makes the policy in force the one that comes back after a reboot.
    pub(super) fn remember(&mut self) {
        if let Err(error) = self.history.confirm(&self.ready.texts) {
            let error = text::chain(&error);
            print_as(
                Priority::Error,
                &format!(
                    "{error}\nthe policy is in force, but after a restart of this machine it may be another"
                ),
            );
        }
    }

    /// Whether the policy in force must still be confirmed.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.is_some()
    }

    /// Keeps the policy in force for good.
    pub(super) async fn confirm(&mut self, links: &LinkEvents) -> Result<(), AgentError> {
        self.settle(links).await;
        self.kernel.confirm()?;
        self.totals.confirmed += 1;
        self.probes = None;
        self.unconfirmed = None;
        self.remember();
        let generation = self.kernel.generation();
        print(&format!("generation {generation} is confirmed"));
        // From now on interfaces have a single role.
        self.attach_interfaces(links).await;
        self.refresh_cgroups();
        Ok(())
    }

    /// Goes back to the previous policy: the one before the deadline was set, or else the one
    /// confirmed before the last.
    pub(super) async fn roll_back(&mut self, links: &LinkEvents) -> Result<(), AgentError> {
        if self.is_unconfirmed() {
            self.fall_back("by request", links).await;
            self.totals.rolled_back_by_request += 1;
            return Ok(());
        }
        let texts = self.history.previous().ok_or(AgentError::NothingBefore)?;
        let given_up = Arc::clone(&self.ready);
        let ready = start::prepare(&self.options, texts, &given_up.numbers)?;
        self.put_in_force(ready, None, links).await?;
        self.totals.rolled_back_by_request += 1;
        // The files keep their contents, which are put in force only on request.
        self.history.begin(&self.ready.texts, &given_up.texts)?;
        self.refresh_cgroups();
        Ok(())
    }

    /// Checks whether the deadline passed without confirmation. In that case the programs already
    /// apply the previous policy.
    pub(super) async fn settle(&mut self, links: &LinkEvents) {
        let deadline = self.kernel.deadline();
        if deadline.is_some_and(|deadline| now() >= deadline) {
            let why = self.why_unconfirmed();
            self.fall_back(&why, links).await;
            self.totals.rolled_back_unconfirmed += 1;
        }
    }

    async fn fall_back(&mut self, why: &str, links: &LinkEvents) {
        self.probes = None;
        let generation = self.kernel.generation();
        if let Err(error) = self.kernel.fall_back() {
            print_as(Priority::Error, &text::chain(&error));
        }
        let Some(before) = self.unconfirmed.take() else {
            return;
        };
        let given_up = mem::replace(&mut self.ready, before);
        let records = self.kernel.records().unwrap_or_default();
        self.ledger.succeed(generation, given_up, &records);
        let now = self.kernel.generation();
        let what = format!(
            "generation {generation} was taken back {why}; generation {now} is in force again"
        );
        self.policy_fault.set(format!(
            "{what}: what the files hold is not in force until `enforcer apply`"
        ));
        self.rolled_back = Some(what);
        self.attach_interfaces(links).await;
        self.refresh_cgroups();
    }

    /// Sets the roles of interfaces under the policy that the programs may fall back to.
    pub(super) fn set_fallback_roles(&mut self) {
        let roles = match (&self.unconfirmed, self.kernel.cgroups(Side::Fallback)) {
            (Some(before), Some(_)) => before.selectors.roles(&self.links),
            _ => Vec::new(),
        };
        self.kernel.set_fallback_roles(&roles);
    }

    /// What the reader compares the files with.
    pub(super) fn baseline(&self) -> Baseline<'_> {
        Baseline {
            ready: &self.ready,
            waiting: self
                .history
                .unconfirmed()
                .into_iter()
                .chain(self.waiting.as_deref())
                .collect(),
        }
    }

    /// Puts in force what the files hold now.
    pub(super) async fn follow(
        &mut self,
        ready: Ready,
        trigger: &Trigger,
        links: &LinkEvents,
    ) -> Result<(), AgentError> {
        let within = match trigger {
            Trigger::Apply(to_apply) => to_apply.within,
            Trigger::Signal | Trigger::Check => self.options.confirm_within,
        };
        let by_probes = matches!(trigger, Trigger::Apply(to_apply) if to_apply.by_probes);
        let probes = match by_probes {
            true => Some(self.alive_before()?),
            false => None,
        };
        self.put_in_force(ready, within, links).await?;
        // What is alive counts from here on.
        self.probes = probes.map(Probes::restarted);
        self.refresh_cgroups();
        self.policy_fault.clear();
        let (name, generation) = (&self.ready.policy.name, self.kernel.generation());
        print(&format!(
            "policy `{name}` is in force, generation {generation}"
        ));
        if let Some(within) = within {
            print(&format!(
                "it has to be confirmed within {}: `enforcer confirm`",
                humantime::format_duration(within)
            ));
        }
        self.print_warnings();
        Ok(())
    }

    /// Answers those who wanted the files to be put in force.
    pub(super) fn answer_applied(
        &mut self,
        trigger: &Trigger,
        applied: Result<Option<Preflight>, AgentError>,
    ) {
        let Trigger::Apply(ToApply { within, .. }) = trigger else {
            return;
        };
        let answer = applied.and_then(|preflight| {
            // Once more the same: it has as much time again.
            if let (true, Some(within)) = (self.is_unconfirmed(), *within) {
                self.kernel.extend(within)?;
            }
            Ok(Applied {
                preflight,
                ..self.applied()
            })
        });
        let answer = answer.map_err(|error| Box::new(error.document()));
        for waiting in self.applying.drain(..) {
            drop(waiting.send(answer.clone()));
        }
    }

    /// Answers the client that trigger to confirm or roll back.
    pub(super) fn reply_applied(&self, reply: Answer<Applied>, done: Result<(), AgentError>) {
        let answer = done.map(|()| self.applied());
        // The client may be gone.
        drop(reply.send(answer.map_err(|error| Box::new(error.document()))));
    }

    /// What is in force, and until when.
    pub(super) fn applied(&self) -> Applied {
        Applied {
            policy: self.ready.policy.name.clone(),
            generation: self.kernel.generation(),
            confirm_by: self.confirm_by(),
            preflight: None,
        }
    }

    /// When the policy in force must be confirmed.
    pub(super) fn confirm_by(&self) -> Option<String> {
        let left = self.kernel.deadline()?.saturating_sub(now());
        Some(rfc3339(SystemTime::now() + Duration::from_nanos(left)))
    }
}
