//! The agent's state as metrics. It is collected on each request, so it has to be cheap: it
//! iterates over no table, opens no file and looks for no process.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use enforcer_common::verdict::{Reason, counter};
use enforcer_policy::vocabulary::Vocabulary as _;

use super::{
    faults::Kind,
    metrics::{PolicyInForce, Snapshot},
    serve::Agent,
};
use crate::kernel::{KernelError, apply::now, layout_digest};

impl Agent {
    /// Everything that is exported.
    pub(super) fn metrics(&self) -> Result<Snapshot, KernelError> {
        let counters = self.kernel.counters(self.ready.numbers.names().len())?;
        let paths = self.ready.compiled.paths.iter().map(|(number, name)| {
            let (forward, reply) = counters.path(*number);
            (name.clone(), forward, reply)
        });
        let reasons = Reason::ALL.into_iter().map(|reason| {
            let (denied, would_deny) = counters.reason(reason);
            (reason, denied, would_deny)
        });
        let mut attachments = BTreeMap::new();
        for attachment in self.kernel.attachments() {
            let at = (
                attachment.hook.as_str().to_owned(),
                attachment.how.as_str().to_owned(),
            );
            *attachments.entry(at).or_default() += 1;
        }
        let roles = self.ready.selectors.roles(&self.links);
        let lacks = roles.iter().filter(|(link, role)| {
            let is_known = self.kernel.interface_name(link.index).is_some();
            !is_known || self.kernel.role(link.index) != *role
        });
        let interfaces_unattached = lacks.count() as u64;
        let works = |kind| self.faults.get(kind).is_none();
        let judges = [Kind::Interfaces, Kind::Links, Kind::CgroupRoot];
        Ok(Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            layout: layout_digest(),
            totals: self.totals.clone(),
            policy: self.policy_in_force(),
            paths: paths.collect(),
            reasons: reasons.collect(),
            other_traffic: counters.get(counter::OTHER),
            later_fragments: counters.get(counter::LATER_FRAGMENT),
            cut: counters.get(counter::CUT),
            kept_verdicts: counters.get(counter::KEPT_VERDICTS),
            // Without those still pending in the verdict cache: these come and go, and a counter
            // only grows.
            records_lost: counters.get(counter::RECORDS_LOST),
            records_evicted: self.kernel.kept().evicted,
            wakes_lost: counters.get(counter::WAKES_LOST),
            events_suppressed: self.budget.left_out_in_total(),
            is_attached: interfaces_unattached == 0 && judges.into_iter().all(works),
            attachments,
            interfaces: roles.len() as u64,
            interfaces_unattached,
            problems: Kind::ALL.map(|kind| (kind.name(), !works(kind))).to_vec(),
            tables: self.tables(),
        })
    }

    fn policy_in_force(&self) -> PolicyInForce {
        let left = |deadline: u64| Duration::from_nanos(deadline.saturating_sub(now()));
        let deadline = self.kernel.deadline();
        PolicyInForce {
            name: self.ready.policy.name.clone(),
            digest: self.ready.policy.digest.clone(),
            dry_run: self.ready.compiled.settings.dry_run != 0,
            other_traffic: self.ready.policy.other_traffic.word(),
            generation: self.kernel.generation(),
            since: self.kernel.kept().in_force.since(),
            confirm_by: deadline.map(|deadline| SystemTime::now() + left(deadline)),
            is_of_files: self.policy_fault.error().is_none(),
        }
    }
}
