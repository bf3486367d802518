//! A network namespace that a test adds to a lab, for a pod with more interfaces than its own.

use std::sync::Arc;

use anyhow::Result;

use crate::cgroup::{self, Cgroup};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::net;
use crate::plan::Party;
use crate::workload::Workload;

/// The namespace, and a pod's workload in it. Dropping it removes the namespace.
#[derive(Debug)]
pub struct Annex {
    workload: Workload,
    // Last: the workload holds the namespace open.
    _removed: Removed,
}

impl Annex {
    /// Creates an empty one on a host, with `lo` up, which forwards everything it receives. The
    /// cgroup is that of a pod on the host.
    pub fn create(lab: &Lab, host: &str, party: Party) -> Result<Self> {
        let name = lab.id().namespace(party.name);
        net::ip(None, &format!("netns add {name}\n"))?;
        let removed = Removed(name.clone());
        net::ip(Some(&name), "link set lo up\n")?;
        let namespace = Namespace::open(&name)?;
        namespace.set_sysctls(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv4/conf/all/accept_local", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/forwarding", "1"),
        ])?;
        let cgroup = lab.host(host).cgroup_root().join(cgroup::PODS);
        let cgroup = Cgroup::create(cgroup.join(party.name))?;
        let kit = Arc::clone(&lab.pod("pod-a").kit);
        Ok(Self {
            workload: Workload::on_host(party, Arc::new(namespace), kit, cgroup),
            _removed: removed,
        })
    }

    /// The pod's workload.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        self.workload.namespace().name()
    }
}

#[derive(Debug)]
struct Removed(String);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = net::delete_namespaces(std::slice::from_ref(&self.0)) {
            // A destructor cannot return an error; the next lab's sweep tries again.
            eprintln!("failed to remove {}: {error:#}", self.0);
        }
    }
}
