//! The agent's state as a [`Status`].

use enforcer_common::verdict::{Reason, counter};
use enforcer_policy::{model::Mode, vocabulary::Word};

use super::{
    PathCount, ReasonCount, Source, Sources, Status, faults::Kind, ledger::rfc3339, serve::Agent,
    warnings,
};
use crate::kernel::KernelError;

impl Agent {
    pub(super) fn status(&mut self) -> Result<Status, KernelError> {
        let listeners = self.refused_listeners();
        let counters = self.kernel.counters(self.ready.numbers.names().len())?;
        let elsewhere =
            enforcer_policy::paths_elsewhere(&self.ready.policy, &self.ready.compiled.node);
        let paths = self.ready.compiled.paths.iter().map(|(number, name)| {
            let (forward, reply) = counters.path(*number);
            PathCount {
                name: name.clone(),
                forward,
                reply,
                elsewhere: elsewhere.contains(&name.as_str()),
            }
        });
        let reasons = Reason::ALL.into_iter().filter_map(|reason| {
            let (denied, would_deny) = counters.reason(reason);
            (denied + would_deny > 0).then_some(ReasonCount {
                reason: reason.into(),
                denied,
                would_deny,
            })
        });
        let dry_run = self.ready.compiled.settings.dry_run != 0;
        Ok(Status {
            node: self.ready.compiled.node.clone(),
            mode: if dry_run { Mode::DryRun } else { Mode::Enforce }.into(),
            other_traffic: self.ready.policy.other_traffic.into(),
            policy: self.ready.policy.name.clone(),
            digest: self.ready.policy.digest.clone(),
            generation: self.kernel.generation(),
            since: rfc3339(self.kernel.kept().in_force.since()),
            pid: std::process::id(),
            confirm_by: self.confirm_by(),
            probing: self.silent_probes(),
            rolled_back: self.rolled_back.clone(),
            pinned_at: self
                .kernel
                .pinned_at()
                .map(|path| path.display().to_string()),
            attachments: self.kernel.attachments(),
            cgroups: self.known_cgroups(),
            notes: self.notes(),
            warnings: self.warnings(),
            listeners,
            problems: self.faults.problems(),
            paths: paths.collect(),
            reasons: reasons.collect(),
            other_traffic_packets: counters.get(counter::OTHER),
            later_fragments: counters.get(counter::LATER_FRAGMENT),
            kept_verdicts: counters.get(counter::KEPT_VERDICTS),
            cut_packets: counters.get(counter::CUT),
            records_lost: counters.get(counter::RECORDS_LOST)
                + self.kernel.pending_without_record()?,
            records_evicted: self.kernel.kept().evicted,
            tables: self.tables(),
            last_error: self.policy_fault.error().map(str::to_owned),
            last_error_since: self.policy_fault.since().map(rfc3339),
            repaired: self.policy_fault.repaired().cloned(),
            not_attached: self.faults.get(Kind::Interfaces).map(str::to_owned),
            kernel: self.kernel.features(),
        })
    }

    /// What about this node and its kernel weakens the policy. Belongs here: what the kernel module
    /// knows.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = warnings::of_node(&self.ready.compiled, self.kernel.sees_all_options());
        warnings.extend(self.kernel.overtaken());
        warnings
    }

    pub(super) fn sources(&self) -> Sources {
        let texts = self.ready.texts.iter();
        let source = |t: &enforcer_policy::SourceText| Source {
            name: t.name.clone(),
            text: t.text.clone(),
        };
        Sources {
            node: self.ready.compiled.node.clone(),
            mode_override: self.options.dry_run.then_some(Mode::DryRun.into()),
            sources: texts.map(source).collect(),
        }
    }

    /// One line: `generation 3, Enforce, 42 attachments`.
    pub(super) fn status_line(&self) -> String {
        let is_dry_run = self.ready.compiled.settings.dry_run != 0;
        let mode: Word<Mode> = if is_dry_run {
            Mode::DryRun
        } else {
            Mode::Enforce
        }
        .into();
        let generation = self.kernel.generation();
        let attachments = self.kernel.count_attachments();
        let mut line = format!("generation {generation}, {mode}, {attachments} attachments");
        if self.is_unconfirmed() {
            line.push_str(", waits for `enforcer confirm`");
        }
        let problems = self.faults.count() + usize::from(self.policy_fault.error().is_some());
        match problems {
            0 => {}
            1 => line.push_str(", 1 problem: see `enforcer status`"),
            many => line.push_str(&format!(", {many} problems: see `enforcer status`")),
        }
        line
    }

    /// Reports the agent's status to the service manager.
    pub(super) fn report_alive(&mut self) {
        let status = self.status_line();
        self.reserve.within(|| self.manager.alive(status));
    }

    /// Reports to the service manager that a reload is done.
    pub(super) fn report_reloaded(&mut self) {
        let status = self.status_line();
        self.reserve.within(|| self.manager.reloaded(status));
    }
}
