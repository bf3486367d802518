//! The machines of a lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cgroup::{self, Cgroup};
use crate::namespace::Namespace;
use crate::plan::{Party, PodPlan};
use crate::sweep::LabId;
use crate::workload::{Kit, Workload};

/// A host: its network namespace, and as many cgroups as a test needs.
#[derive(Debug, Clone)]
pub struct Host {
    party: Party,
    namespace: Arc<Namespace>,
    kit: Arc<Kit>,
    cgroups: PathBuf,
}

impl Host {
    /// Its name and addresses.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The directory of its topmost cgroup, which corresponds to `/sys/fs/cgroup` of a real node.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroups
    }

    /// A workload on the host, in a cgroup given relative to the host's topmost one and created if
    /// it does not exist.
    pub fn cgroup(&self, name: &str) -> Result<Workload> {
        let cgroup = Cgroup::create(self.cgroups.join(name.trim_start_matches('/')))?;
        let (namespace, kit) = (Arc::clone(&self.namespace), Arc::clone(&self.kit));
        Ok(Workload::on_host(self.party, namespace, kit, cgroup))
    }
}

/// Opens a host's namespace, gives it its own mounts and creates its topmost cgroup.
pub(crate) fn make_host(
    party: &Party,
    id: &LabId,
    directory: &Path,
    cgroups: &Path,
    kit: &Arc<Kit>,
) -> Result<Host> {
    let scratch = directory.join(format!("{}-sys", party.name));
    fs::create_dir(&scratch).with_context(|| format!("failed to make {}", scratch.display()))?;
    let namespace = Namespace::open_with_mounts(&id.namespace(party.name), &scratch)?;
    let root = Cgroup::create(cgroups.join(party.name))?;
    Ok(Host {
        party: *party,
        namespace: Arc::new(namespace),
        kit: Arc::clone(kit),
        cgroups: root.directory().to_owned(),
    })
}

/// Opens a pod's namespace and creates its cgroup on its host.
pub(crate) fn make_pod(
    pod: &PodPlan,
    id: &LabId,
    cgroups: &Path,
    kit: &Arc<Kit>,
) -> Result<Workload> {
    let directory = cgroups
        .join(pod.host)
        .join(cgroup::PODS)
        .join(pod.party.name);
    let namespace = Arc::new(Namespace::open(&id.namespace(pod.party.name))?);
    Ok(Workload::in_pod(
        pod.party,
        namespace,
        Arc::clone(kit),
        Cgroup::create(directory)?,
    ))
}
