//! What does not work at present and is retried until it does. Each fault is reported once when it
//! begins and once when it ends, and appears in the status meanwhile. None of them ends the agent.

use std::{collections::BTreeMap, time::SystemTime};

use super::{
    Problem, Repaired,
    ledger::rfc3339,
    print::{Priority, print, print_as},
};

/// What a fault is about. At most one fault of each kind is known at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// An interface lacks its programs.
    Interfaces,
    /// The interfaces cannot be listed.
    Links,
    /// Processes are not judged.
    CgroupRoot,
    /// A declared cgroup cannot be added to the kernel's map, or cannot be looked for.
    Cgroups,
    /// Cgroups are not watched.
    CgroupWatch,
    /// The policy's files are not watched.
    FileWatch,
    /// New denials are not announced.
    Records,
    /// Sockets that already have a port cannot be listed.
    Sockets,
    /// The metrics are not available.
    Metrics,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Interfaces,
        Self::Links,
        Self::CgroupRoot,
        Self::Cgroups,
        Self::CgroupWatch,
        Self::FileWatch,
        Self::Records,
        Self::Sockets,
        Self::Metrics,
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces",
            Self::Links => "interface_list",
            Self::CgroupRoot => "cgroup_root",
            Self::Cgroups => "cgroups",
            Self::CgroupWatch => "cgroup_watch",
            Self::FileWatch => "file_watch",
            Self::Records => "records",
            Self::Sockets => "sockets",
            Self::Metrics => "metrics",
        }
    }
}

/// Everything that does not work at present.
#[derive(Debug, Default)]
pub(super) struct Faults(BTreeMap<Kind, (SystemTime, String)>);

impl Faults {
    /// Records that something does not work.
    pub fn set(&mut self, kind: Kind, what: String) {
        let known = self.0.get(&kind);
        if known.is_some_and(|(_, known)| *known == what) {
            return;
        }
        print_as(
            Priority::Error,
            &format!("{what}\ntried again until it works"),
        );
        let since = known.map_or_else(SystemTime::now, |(since, _)| *since);
        self.0.insert(kind, (since, what));
    }

    /// Records that it works again.
    pub fn clear(&mut self, kind: Kind) {
        if let Some((since, what)) = self.0.remove(&kind) {
            let what = what.lines().next().unwrap_or_default();
            print(&format!(
                "works again, after it had failed since {}: {what}",
                rfc3339(since)
            ));
        }
    }

    /// How many things do not work.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The current fault of a kind.
    pub fn get(&self, kind: Kind) -> Option<&str> {
        self.0.get(&kind).map(|(_, what)| what.as_str())
    }

    /// All but those about interfaces, which have their own field in the status.
    pub fn problems(&self) -> Vec<Problem> {
        let others = self.0.iter().filter(|(kind, _)| **kind != Kind::Interfaces);
        others
            .map(|(_, (since, what))| Problem {
                since: rfc3339(*since),
                what: what.clone(),
            })
            .collect()
    }
}

/// Whether the newest policy that was read could be put in force.
#[derive(Debug, Default)]
pub(super) struct PolicyFault {
    /// Since when it has been broken, and why.
    broken: Option<(SystemTime, String)>,
    /// The last repair.
    repaired: Option<Repaired>,
}

impl PolicyFault {
    /// The policy cannot be put in force. Returns whether that is news.
    pub fn set(&mut self, error: String) -> bool {
        let known = self.broken.as_ref();
        if known.is_some_and(|(_, known)| *known == error) {
            return false;
        }
        print_as(
            Priority::Error,
            &format!("{error}\nwhat was in force stays in force"),
        );
        let since = known.map_or_else(SystemTime::now, |(since, _)| *since);
        self.broken = Some((since, error));
        true
    }

    /// What the files hold is in force.
    pub fn clear(&mut self) {
        let Some((since, error)) = self.broken.take() else {
            return;
        };
        let repaired = Repaired {
            broken_since: rfc3339(since),
            repaired_at: rfc3339(SystemTime::now()),
            error: error.lines().next().unwrap_or_default().to_owned(),
        };
        let since = &repaired.broken_since;
        print(&format!(
            "the policy is repaired, and what its files say is in force; it had been broken since {since}"
        ));
        self.repaired = Some(repaired);
    }

    /// Why the newest policy is not in force.
    pub fn error(&self) -> Option<&str> {
        self.broken.as_ref().map(|(_, error)| error.as_str())
    }

    /// Since when.
    pub fn since(&self) -> Option<SystemTime> {
        self.broken.as_ref().map(|(since, _)| *since)
    }

    /// The last time a broken policy was repaired.
    pub fn repaired(&self) -> Option<&Repaired> {
        self.repaired.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_listed_until_it_is_over() {
        let mut faults = Faults::default();
        faults.set(Kind::Cgroups, "a".to_owned());
        faults.set(Kind::Cgroups, "b".to_owned());
        faults.set(Kind::Interfaces, "c".to_owned());
        assert_eq!(faults.get(Kind::Cgroups), Some("b"));
        assert_eq!(faults.problems().len(), 1, "interfaces are told elsewhere");
        faults.clear(Kind::Cgroups);
        faults.clear(Kind::Cgroups);
        assert_eq!(faults.get(Kind::Cgroups), None);
        assert!(faults.problems().is_empty());
    }

    #[test]
    fn a_repaired_policy_says_since_when_it_was_broken() {
        let mut fault = PolicyFault::default();
        fault.clear();
        assert!(fault.repaired().is_none());
        fault.set("first\nsecond".to_owned());
        let since = fault.since().unwrap();
        fault.set("another".to_owned());
        assert_eq!(
            (fault.error(), fault.since()),
            (Some("another"), Some(since))
        );
        fault.clear();
        assert_eq!(fault.error(), None);
        let repaired = fault.repaired().unwrap();
        assert_eq!(repaired.broken_since, rfc3339(since));
        assert_eq!(repaired.error, "another");
    }
}
