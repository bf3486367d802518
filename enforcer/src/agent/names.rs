//! Names of interfaces and cgroups for the records of denials. They are kept after the interface or
//! cgroup is gone.

use std::collections::{HashMap, HashSet};

use enforcer_common::record::{RecordKey, subject};

use super::SubjectKind;

/// The subject that a record names.
pub(super) type SubjectId = (SubjectKind, u64);

/// The subject of a record.
pub(super) fn subject(key: &RecordKey) -> SubjectId {
    let kind = match key.subject_kind {
        subject::INTERFACE => SubjectKind::Interface,
        _ => SubjectKind::Cgroup,
    };
    (kind, key.subject)
}

/// Above this number, only names that are needed are kept.
const FULL: usize = 1 << 15;

#[derive(Debug, Default)]
pub(super) struct Names(HashMap<SubjectId, String>);

impl Names {
    /// Records the current name. A new interface that reuses an index takes over its entry.
    pub fn learn(&mut self, subject: SubjectId, name: &str) {
        match self.0.get(&subject) {
            Some(known) if known == name => {}
            _ => drop(self.0.insert(subject, name.to_owned())),
        }
    }

    /// The current or the last name.
    pub fn get(&self, subject: SubjectId) -> Option<&str> {
        self.0.get(&subject).map(String::as_str)
    }

    /// Whether it is time to call [`Self::keep`].
    pub fn is_full(&self) -> bool {
        self.0.len() > FULL
    }

    /// Keeps only these.
    pub fn keep(&mut self, wanted: &HashSet<SubjectId>) {
        self.0.retain(|subject, _| wanted.contains(subject));
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_as_long_as_it_is_needed() {
        let mut names = Names::default();
        let [pod, cgroup] = [(SubjectKind::Interface, 7), (SubjectKind::Cgroup, 7)];
        names.learn(pod, "veth1");
        names.learn(cgroup, "/a");
        names.learn(pod, "cali1");
        assert_eq!(
            (names.get(pod), names.get(cgroup)),
            (Some("cali1"), Some("/a"))
        );
        assert!(!names.is_full());
        names.keep(&HashSet::from([pod]));
        assert_eq!((names.get(pod), names.get(cgroup)), (Some("cali1"), None));
    }
}
