//! Declared cgroups come and go; keeps the policies in the kernel up to date with them.

use std::{fs::File, io, path::Path};

use enforcer_common::tables::Party;
use enforcer_policy::{compile::CgroupRule, text};

use super::{
    faults::Kind,
    serve::Agent,
    watch::{self, Directories},
};
use crate::kernel::{KernelError, KnownCgroup, Side, cgroups};

impl Agent {
    /// A declared cgroup may appear and disappear at any time, each time with a new id. As long as
    /// the policy is unconfirmed, the policy before it is kept up to date as well, because it may
    /// come into force again at any moment.
    pub(super) fn refresh_cgroups(&mut self) {
        self.ledger.paths.retry();
        let in_force: &[CgroupRule] = &self.ready.compiled.cgroups;
        let before = self.unconfirmed.as_ref();
        let before: &[CgroupRule] = before.map_or(&[], |before| &before.compiled.cgroups);
        // A cgroup that cannot be looked up does not count as gone.
        let found = self.reserve.within(|| {
            let root = File::open(&self.cgroup_root);
            if let Err(error) = root
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            Ok(find(
                &self.cgroup_root,
                [in_force, before],
                &mut self.directories,
            ))
        });
        let [in_force, before] = match found {
            Ok(known) => known,
            Err(error) => {
                let error = text::chain(&error);
                let error = format!("failed to look for the declared cgroups: {error}");
                return self.faults.set(Kind::Cgroups, error);
            }
        };
        let result = self.update(Side::InForce, &in_force);
        let result = self.update(Side::Fallback, &before).and(result);
        let exceeds_limit = self
            .directories
            .as_ref()
            .is_some_and(Directories::exceeds_limit);
        match result {
            Err(error) => self.faults.set(Kind::Cgroups, text::chain(&error)),
            Ok(()) if exceeds_limit => self.faults.set(
                Kind::Cgroups,
                "some directories of declared cgroups are looked at every five seconds instead of at once: \
                 the kernel's limit of inotify watches is reached; more: sysctl -w \
                 fs.inotify.max_user_watches=…"
                    .to_owned(),
            ),
            Ok(()) => self.faults.clear(Kind::Cgroups),
        }
    }

    /// Brings one policy's cgroups in the kernel in line with those that exist.
    fn update(&mut self, side: Side, there: &[KnownCgroup]) -> Result<(), KernelError> {
        let Some(known) = self.kernel.cgroups(side) else {
            return Ok(());
        };
        let is_new = |cgroup: &&KnownCgroup| known.get(&cgroup.id) != Some(&cgroup.party);
        let new: Vec<(u64, Party)> = cgroups::pairs(there.iter().filter(is_new));
        let is_gone = |id: &&u64| !there.iter().any(|cgroup| cgroup.id == **id);
        let gone: Vec<u64> = known.keys().filter(is_gone).copied().collect();
        let mut result = Ok(());
        for (id, party) in new {
            result = result.and(self.kernel.learn_cgroup(side, id, party));
        }
        for id in gone {
            result = result.and(self.kernel.forget_cgroup(side, id));
        }
        result
    }

    /// How many declared cgroups the kernel knows.
    pub(super) fn known_cgroups(&self) -> u64 {
        let known = self.kernel.cgroups(Side::InForce);
        known.map_or(0, |known| known.len() as u64)
    }
}

/// The declared cgroups that exist, under two policies. Watches every directory in which one may
/// appear.
fn find(
    root: &Path,
    policies: [&[CgroupRule]; 2],
    directories: &mut Option<Directories>,
) -> [Vec<KnownCgroup>; 2] {
    if let Some(directories) = directories {
        let watched = || {
            let of = policies.map(|rules| watch::of_cgroups(root, rules));
            of.into_iter().flatten().collect()
        };
        // Looks again, to find what appeared before its parent was watched.
        while directories.only(watched()) {}
    }
    policies.map(|rules| cgroups::resolve(root, rules))
}
