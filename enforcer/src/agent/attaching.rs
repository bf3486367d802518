//! Keeps the programs attached where they should be: interfaces come and go, the cgroup root may be
//! recreated, and what the kernel refused is retried.

use std::{fs, fs::File, mem, os::unix::fs::MetadataExt as _};

use enforcer_policy::text;

use super::{
    SubjectKind,
    faults::Kind,
    interfaces::list,
    print::{Priority, print, print_as},
    serve::Agent,
};
use crate::kernel::{KernelError, LinkEvents, filters};

/// Enough names for a person to see what the message is about.
const NAMED: usize = 8;

impl Agent {
    pub(super) async fn refresh_links(&mut self, events: &LinkEvents) {
        match list(events).await {
            Ok(links) => {
                self.faults.clear(Kind::Links);
                if self.kernel.has_filters()
                    && let Ok(found) = filters::leftovers().await
                {
                    self.kernel.set_filters(&found);
                }
                if links != self.links || self.kernel.has_lost_links() {
                    self.links = links;
                    self.attach_interfaces(events).await;
                }
            }
            Err(error) => self.faults.set(Kind::Links, text::chain(&error)),
        }
    }

    /// Attaches whatever is not attached yet. An interface that disappears meanwhile is no fault.
    pub(super) async fn attach_interfaces(&mut self, events: &LinkEvents) {
        let mut result = self.try_attach();
        if result.is_err()
            && let Ok(links) = list(events).await
        {
            self.links = links;
            result = self.try_attach();
        }
        match result {
            Ok(()) => self.faults.clear(Kind::Interfaces),
            Err(error) => self.faults.set(Kind::Interfaces, error),
        }
    }

    fn try_attach(&mut self) -> Result<(), String> {
        let roles = self.ready.selectors.roles(&self.links);
        self.set_fallback_roles();
        for link in &self.links {
            let subject = (SubjectKind::Interface, link.index.into());
            self.ledger.names.learn(subject, &link.name);
        }
        let error = match self.kernel.attach_interfaces(&roles, self.options.tc_mode) {
            Ok(changes) => {
                changes.iter().for_each(|change| print(change));
                return Ok(());
            }
            Err(error) => {
                let error = text::chain(&error);
                let why = out_of_files(&error);
                format!("{error}{why}")
            }
        };
        let missing: Vec<&str> = roles
            .iter()
            .filter(|(link, role)| self.kernel.role(link.index) != *role)
            .map(|(link, _)| link.name.as_str())
            .collect();
        if missing.len() < 2 {
            return Err(error);
        }
        let named = missing.iter().take(NAMED).copied().collect::<Vec<_>>();
        let more = match missing.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = named.join(", ");
        Err(format!("{error}; without their programs: {named}{more}"))
    }

    /// Makes our programs run first again: others attach programs to the same interfaces, possibly
    /// before ours.
    pub(super) fn move_to_front(&mut self) {
        match self.kernel.move_to_front() {
            Ok(changes) => changes.iter().for_each(|change| print(change)),
            Err(error) => print(&text::chain(&error)),
        }
    }

    /// Removes what earlier agents left behind, once everything is attached that should be.
    pub(super) fn retire_others(&mut self) {
        let is_whole = [Kind::Interfaces, Kind::CgroupRoot]
            .into_iter()
            .all(|kind| self.faults.get(kind).is_none());
        if !is_whole || mem::replace(&mut self.has_retired_others, true) {
            return;
        }
        if let Err(error) = self.kernel.retire_others() {
            print_as(Priority::Error, &text::chain(&error));
        }
    }

    /// Attaches the programs that judge processes, unless that is done. The cgroup root may be
    /// removed and recreated as a different cgroup.
    pub(super) fn attach_root(&mut self) {
        let there = match fs::metadata(&self.cgroup_root) {
            Ok(metadata) => metadata.ino(),
            Err(source) => {
                let path = self.cgroup_root.clone();
                let error = text::chain(&KernelError::CgroupRoot { path, source });
                let error = format!("no process is held to the policy: {error}");
                return self.faults.set(Kind::CgroupRoot, error);
            }
        };
        if self.attached_root != Some(there) {
            if self.attached_root.is_some() {
                // Programs attached to a removed cgroup judge no one.
                self.kernel.detach_cgroup();
            }
            self.attached_root = Some(there);
        }
        match self.kernel.attach_cgroup(&self.cgroup_root) {
            Ok(()) => self.faults.clear(Kind::CgroupRoot),
            Err(error) => {
                let error = text::chain(&error);
                let error = format!("not all that processes do is held to the policy: {error}");
                self.faults.set(Kind::CgroupRoot, error);
            }
        }
    }
}

/// When no file can be opened, other errors are only a consequence of that.
fn out_of_files(error: &str) -> String {
    match File::open("/dev/null") {
        Err(why) => {
            let why = why.to_string();
            let why = match error.contains(&why) {
                true => String::new(),
                false => format!(" ({why})"),
            };
            format!("; no file can be opened{why}: raise the limit (LimitNOFILE=, ulimit -n)")
        }
        Ok(_) => String::new(),
    }
}
