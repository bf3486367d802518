//! Sockets that got their port before the policy could refuse it. Whoever holds one keeps it, but
//! will be refused when binding again, for example after a restart. So this is reported while there
//! is time to act.

use std::net::SocketAddr;

use enforcer_common::{
    addr::Ip,
    decide,
    tables::{AddressInfo, Party, Tables as _},
    verdict::{Outcome, Verdict},
};
use enforcer_policy::compile::{Compiled, Simulator};

use super::Listener;
use crate::kernel::{
    CgroupPaths, KernelError,
    sockets::{self, Bound, Holder},
};

/// At most this many are looked up individually.
const MOST: usize = 128;

/// Sockets of this network namespace that the policy would not allow to bind. `root` is the cgroup
/// whose processes are subject to the policy, as a path below the hierarchy's root.
///
/// # Errors
///
/// The kernel does not list the sockets.
pub(super) fn refused(
    compiled: &Compiled,
    paths: &mut CgroupPaths,
    root: &str,
) -> Result<Vec<Listener>, KernelError> {
    let tables = Simulator::new(compiled);
    // A party number, widened for the kernel's sake.
    let anybody = compiled.settings.undeclared_process as Party;
    let mut suspects: Vec<(Bound, Option<String>)> = Vec::new();
    for socket in sockets::bound()? {
        let cgroup = socket.cgroup.and_then(|id| paths.get(id));
        let party = cgroup.map_or(anybody, |path| tables.party_of_cgroup(path));
        if is_refused(&tables, party, &socket).is_some() {
            let cgroup = cgroup.map(str::to_owned);
            suspects.push((socket, cgroup));
        }
        if suspects.len() == MOST {
            break;
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let inodes: Vec<u32> = suspects.iter().map(|(socket, _)| socket.inode).collect();
    let holders = sockets::holders(&inodes);
    let listeners = suspects.into_iter().filter_map(|(socket, cgroup)| {
        let holder = holders.get(&socket.inode);
        // If the socket's own cgroup is unknown or gone, its process's cgroup counts.
        let cgroup = match (cgroup, holder) {
            (Some(cgroup), _) => cgroup,
            (None, Some(holder)) => below(&holder.cgroup, root)?.to_owned(),
            // A kernel socket, for example of a tunnel, whose creator is gone: nobody knows who
            // will create the next one.
            (None, None) => return None,
        };
        let party = tables.party_of_cgroup(&cgroup);
        let verdict = is_refused(&tables, party, &socket)?;
        listener(&tables, &socket, verdict, cgroup, holder)
    });
    Ok(listeners.collect())
}

/// What the hook on `bind` would decide, if it is a denial.
fn is_refused(tables: &Simulator<'_>, by: Party, socket: &Bound) -> Option<Verdict> {
    let address = Ip::from(socket.address);
    let verdict = decide::binding(tables, by, &address, socket.port_kind, socket.port);
    verdict.is_denied().then_some(verdict)
}

/// The path below the cgroup root whose processes are held to the policy; nothing for one beside it, who may do
/// what he likes.
pub(super) fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    if root == "/" {
        return Some(path);
    }
    match path.strip_prefix(root)? {
        "" => Some("/"),
        rest => rest.starts_with('/').then_some(rest),
    }
}

fn listener(
    tables: &Simulator<'_>,
    socket: &Bound,
    verdict: Verdict,
    cgroup: String,
    holder: Option<&Holder>,
) -> Option<Listener> {
    let Outcome::Denied(denial) = verdict.outcome() else {
        return None;
    };
    let reason = denial.reason;
    Some(Listener {
        protocol: socket.port_kind.into(),
        address: SocketAddr::new(socket.address, socket.port).to_string(),
        port: socket.port,
        endpoints: endpoints(tables, socket),
        pid: holder.map(|holder| holder.pid),
        comm: holder.map(|holder| holder.comm.clone()),
        cgroup,
        reason: reason.into(),
        sentence: reason.sentence().to_owned(),
        will_be_refused: !verdict.passes(),
    })
}

/// The declared endpoints of this port.
fn endpoints(tables: &Simulator<'_>, socket: &Bound) -> Vec<String> {
    let compiled = tables.compiled();
    let settings = &compiled.settings;
    let (address, port_kind) = (Ip::from(socket.address), socket.port_kind);
    let info = tables.address_info(&address);
    let at = if address.is_unspecified() || !(info.is(AddressInfo::OWN) || address.is_loopback()) {
        settings.own as Party
    } else {
        info.party
    };
    let target = tables
        .class(port_kind, socket.port)
        .and_then(|class| tables.target(settings, at, class));
    target
        .and_then(|target| compiled.target_names.get(usize::from(target)))
        .cloned()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_below_the_root() {
        assert_eq!(below("/system.slice/x", "/"), Some("/system.slice/x"));
        assert_eq!(
            below("/node/system.slice/x", "/node"),
            Some("/system.slice/x")
        );
        assert_eq!(below("/node", "/node"), Some("/"));
        assert_eq!(below("/nodes/x", "/node"), None);
        assert_eq!(below("/else", "/node"), None);
    }
}
