//! What an agent needs before it touches the kernel: the lock, a policy, and this node's part of
//! it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
};

use enforcer_common::tables::Role;
use enforcer_policy::{
    Policy, SourceText,
    compile::{Compiled, PathNumbers, compile},
    model::Mode,
    text,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    AgentError, AgentOptions,
    history::History,
    node::{self, Selectors},
};
use crate::{
    files,
    kernel::{
        Kept, Link,
        apply::{NewPolicy, now},
    },
};

/// Held as long as the agent runs; the kernel releases it with the process.
pub struct Lock(#[expect(dead_code, reason = "held, never looked at")] Flock<File>);

/// Takes the lock of a run directory, which is created if it does not exist.
pub fn lock(run_dir: &Path) -> Result<Lock, AgentError> {
    let shown = text::path(run_dir);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(AgentError::system(format!("create {shown}")))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(run_dir.join("lock"))
        .map_err(AgentError::system(format!("open {shown}/lock")))?;
    let mut pid = String::new();
    let _ = (&mut file).take(32).read_to_string(&mut pid);
    let written = AgentError::system(format!("write {shown}/lock"));
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => {
            return Err(AgentError::Running {
                pid: pid.trim().to_owned(),
            });
        }
        Err((_, errno)) => {
            return Err(AgentError::system(format!("lock {shown}/lock"))(
                errno.into(),
            ));
        }
    };
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0)
        .and_then(|()| std::io::Seek::rewind(&mut *lock))
        .and_then(|()| lock.write_all(pid.as_bytes()))
        .map_err(written)?;
    Ok(Lock(lock))
}

/// A policy, ready to be applied to this node.
pub struct Ready {
    /// Its source texts. Shared with the reader, which checks whether they have changed.
    pub texts: Arc<[SourceText]>,
    /// The valid policy.
    pub policy: Policy,
    /// Compiled for this node.
    pub compiled: Compiled,
    /// Which interfaces have which role.
    pub selectors: Selectors,
    /// This node's cgroup root, below the mount.
    pub cgroup_root: String,
    /// Numbers of paths, including those that are new in this policy.
    pub numbers: PathNumbers,
}

impl Ready {
    /// As the kernel module takes it.
    pub fn as_new<'a>(&'a self, roles: &'a [(Link, Role)]) -> NewPolicy<'a> {
        NewPolicy {
            compiled: &self.compiled,
            numbers: &self.numbers,
            name: &self.policy.name,
            roles,
        }
    }
}

/// What an agent starts with.
pub struct InitialPolicy {
    /// The policy to put in force.
    pub ready: Ready,
    /// If that policy is unconfirmed: the one that comes back into force unless it is confirmed.
    pub unconfirmed: Option<Ready>,
    /// Why it is not what the files hold.
    pub why: Option<String>,
}

/// Why the files' contents are not put in force.
pub const UNCONFIRMED: &str = "the policy's files hold what was not confirmed, or was taken back; the last policy that was \
                               confirmed is in force: `enforcer apply` puts the files' in force again";

/// The same, if changes are put in force only on request.
pub const CHANGED: &str = "the policy's files hold another policy than the one in force: `enforcer apply` puts it in force";

/// Chooses what an agent starts with, after a previous agent or a reboot: what its files hold,
/// unless that was not confirmed, or is not valid and there is a confirmed policy.
pub fn initial_policy(
    options: &AgentOptions,
    history: &History,
    kept: Option<&Kept>,
) -> Result<InitialPolicy, AgentError> {
    // Paths keep the numbers that they have in what is pinned.
    let names = kept.map(|kept| kept.names.clone()).unwrap_or_default();
    let numbers = PathNumbers::from_names(names);
    let confirmed = |numbers| {
        let texts = history.confirmed()?;
        prepare(options, texts, numbers).ok()
    };
    let texts = files::read_repeatable(&options.inputs).map_err(AgentError::from);
    let is_unconfirmed = texts
        .as_ref()
        .is_ok_and(|texts| history.is_unconfirmed(texts));
    let files = texts.and_then(|texts| prepare(options, texts, &numbers));
    let waits = kept.is_some_and(|kept| kept.before.is_some() && now() < kept.deadline);
    match files {
        Ok(ready) if is_unconfirmed => match confirmed(&ready.numbers) {
            Some(before) if waits => Ok(InitialPolicy {
                ready,
                unconfirmed: Some(before),
                why: None,
            }),
            Some(confirmed) => Ok(InitialPolicy {
                ready: confirmed,
                unconfirmed: None,
                why: Some(UNCONFIRMED.to_owned()),
            }),
            None => Ok(InitialPolicy {
                ready,
                unconfirmed: None,
                why: None,
            }),
        },
        Ok(ready) => {
            let confirmed = confirmed(&ready.numbers).filter(|_| options.manual);
            let other = confirmed.filter(|confirmed| confirmed.texts != ready.texts);
            let why = other.is_some().then(|| CHANGED.to_owned());
            Ok(InitialPolicy {
                ready: other.unwrap_or(ready),
                unconfirmed: None,
                why,
            })
        }
        Err(error) => match confirmed(&numbers) {
            Some(ready) => Ok(InitialPolicy {
                ready,
                unconfirmed: None,
                why: Some(text::chain(&error)),
            }),
            None => Err(error),
        },
    }
}

/// Checks and compiles a policy's texts. `numbers` are those of the previous policies.
pub fn prepare(
    options: &AgentOptions,
    texts: Vec<SourceText>,
    numbers: &PathNumbers,
) -> Result<Ready, AgentError> {
    let mode = options.dry_run.then_some(Mode::DryRun);
    prepare_for(options, texts, numbers, mode)
}

/// The same, for a mode that may be another than the policy's own.
pub fn prepare_for(
    options: &AgentOptions,
    texts: Vec<SourceText>,
    numbers: &PathNumbers,
    mode: Option<Mode>,
) -> Result<Ready, AgentError> {
    let policy = enforcer_policy::from_texts(&texts)?;
    let name = node::choose(&policy, options.node.as_deref())?;
    let mut numbers = numbers.clone();
    let compiled = compile(&policy, &name, mode, &mut numbers)?;
    let (mut uplinks, mut pods, mut cgroup_root) = (Vec::new(), Vec::new(), "/".to_owned());
    if let Some(node) = policy.node(&name) {
        uplinks.clone_from(&node.uplinks);
        pods.clone_from(&node.pod_interfaces);
        cgroup_root.clone_from(&node.cgroup_root);
    }
    let uplinks = options.uplinks.as_ref().unwrap_or(&uplinks);
    let pods = options.pod_interfaces.as_ref().unwrap_or(&pods);
    let selectors = Selectors::new(uplinks, pods)?;
    if let Some(root) = &options.cgroup_root {
        cgroup_root = root.to_string_lossy().into_owned();
    }
    Ok(Ready {
        texts: texts.into(),
        policy,
        compiled,
        selectors,
        cgroup_root,
        numbers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_exclusive() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let held = lock(&run_dir).unwrap();
        let Err(AgentError::Running { pid }) = lock(&run_dir) else {
            panic!("two locks")
        };
        assert_eq!(pid, std::process::id().to_string());
        drop(held);
        assert!(lock(&run_dir).is_ok());
    }
}
