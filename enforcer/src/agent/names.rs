//! Names of interfaces and cgroups for the records of denials, kept when what they name has gone.

use std::collections::{HashMap, HashSet};

use enforcer_common::{
    record::{RecordKey, subject},
    tables::Role,
};

use super::SubjectKind;

/// Who a record names.
pub(super) type Who = (SubjectKind, u64);

/// Who a record is about.
pub(super) fn who(key: &RecordKey) -> Who {
    let kind = match key.subject_kind {
        subject::INTERFACE => SubjectKind::Interface,
        _ => SubjectKind::Cgroup,
    };
    (kind, key.subject)
}

/// More names than this are not kept without need.
const FULL: usize = 1 << 15;

#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Who, Name>);

/// What was known of it last.
#[derive(Debug)]
struct Name {
    name: String,
    /// What an interface was for.
    role: Role,
}

impl Names {
    /// What is there has this name. A new interface with an old index takes its name.
    pub fn learn(&mut self, who: Who, name: &str, role: Role) {
        match self.0.get_mut(&who) {
            Some(known) if known.name == name => known.role = role,
            _ => drop(self.0.insert(
                who,
                Name {
                    name: name.to_owned(),
                    role,
                },
            )),
        }
    }

    /// The name that it has, or had.
    pub fn get(&self, who: Who) -> Option<&str> {
        self.0.get(&who).map(|known| known.name.as_str())
    }

    /// What an interface is, or was, for.
    pub fn role(&self, index: u64) -> Role {
        self.0
            .get(&(SubjectKind::Interface, index))
            .map_or(Role::Undeclared, |known| known.role)
    }

    /// Whether it is time for [`Self::keep`].
    pub fn is_full(&self) -> bool {
        self.0.len() > FULL
    }

    /// Keeps these alone.
    pub fn keep(&mut self, wanted: &HashSet<Who>) {
        self.0.retain(|who, _| wanted.contains(who));
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_until_nothing_needs_it() {
        let mut names = Names::default();
        let [pod, cgroup] = [(SubjectKind::Interface, 7), (SubjectKind::Cgroup, 7)];
        names.learn(pod, "veth1", Role::Undeclared);
        names.learn(cgroup, "/a", Role::Undeclared);
        names.learn(pod, "cali1", Role::Pod);
        assert_eq!(
            (names.get(pod), names.get(cgroup)),
            (Some("cali1"), Some("/a"))
        );
        assert_eq!(
            (names.role(7), names.role(8)),
            (Role::Pod, Role::Undeclared)
        );
        assert!(!names.is_full());
        names.keep(&HashSet::from([pod]));
        assert_eq!((names.get(pod), names.get(cgroup)), (Some("cali1"), None));
    }
}
