//! Finds open connections and bound sockets on this node that a policy would deny.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use enforcer_common::{packet::PortKind, tables::Role};
use enforcer_policy::{
    preflight::{Connection, Effect, End, Refusal, Seat, refusal},
    text,
};

use super::{
    AgentError,
    control::Conditions,
    listeners::{self, below},
    print::{Priority, print_as},
    start::Ready,
};
use crate::{
    api::{Ends, OpenConnection, Preflight},
    kernel::{
        CgroupPaths, KernelError, Link, LinkEvents, cgroups, netns,
        routes::Routes,
        sockets::{self, Bound, Connected, Holder},
    },
};

/// Checks what is open now against a policy that is about to be put in force. `None` in dry-run, which cuts nothing.
///
/// # Errors
///
/// The policy would cut what these conditions forbid it to cut, or that cannot be determined.
pub(super) fn before(
    ready: &Ready,
    conditions: &Conditions,
) -> Result<Option<Preflight>, AgentError> {
    if ready.compiled.settings.dry_run != 0 {
        return Ok(None);
    }
    let preflight = match look(ready, &conditions.session) {
        Ok(preflight) => Box::new(preflight),
        Err(error) if conditions.requires_clean => return Err(error),
        Err(error) => {
            let error = text::chain(&error);
            let what = format!("open connections were not checked against the policy: {error}");
            print_as(Priority::Warning, &what);
            return Ok(None);
        }
    };
    if preflight.session().is_some() && !conditions.allows_session_cut {
        return Err(AgentError::WouldCutSession(preflight));
    }
    if !preflight.is_clean() && conditions.requires_clean {
        return Err(AgentError::NotClean(preflight));
    }
    Ok(Some(*preflight))
}

/// Prints what a policy cuts that is put in force.
pub(super) fn report(preflight: &Preflight) {
    if !preflight.is_clean() {
        let lines = preflight.lines(SHOWN).join("\n  ");
        print_as(
            Priority::Warning,
            &format!("{}:\n  {lines}", preflight.summary()),
        );
    }
}

/// How many findings the log has.
const SHOWN: usize = 10;

/// Checks what is open now against a policy as if it were enforced. `session` holds the connections over which the policy is
/// applied. Lists all sockets, which takes too long for the event loop.
///
/// # Errors
///
/// The kernel does not list sockets or interfaces, or there is no such cgroup root.
pub(super) fn look(ready: &Ready, session: &[Ends]) -> Result<Preflight, AgentError> {
    // On its own thread, because the caller may already be inside a runtime.
    let looked = std::thread::scope(|scope| {
        let looking = scope.spawn(|| super::runtime()?.block_on(look_at(ready, session)));
        looking.join()
    });
    match looked {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A connection, as seen from one end.
struct Seen {
    socket: Connected,
    opener: End,
    /// The role of the interface that leads to the other end, or, in another namespace, from this node to this end.
    role: Role,
    /// The inode of the other network namespace.
    namespace: Option<u64>,
}

impl Seen {
    /// The end that opened it, and the other one.
    const fn in_order(&self) -> (SocketAddr, SocketAddr) {
        let Connected { local, remote, .. } = self.socket;
        match self.opener {
            End::Local => (local, remote),
            End::Remote => (remote, local),
        }
    }
}

async fn look_at(ready: &Ready, session: &[Ends]) -> Result<Preflight, AgentError> {
    let cgroup_root = cgroups::root(&ready.cgroup_root)?;
    let mut paths = CgroupPaths::new(&cgroup_root);
    let root = cgroups::below_mount(&cgroup_root);
    let links = LinkEvents::open()?.list().await?;
    let roles = ready.selectors.roles(&links);
    let mut unseen = Vec::new();
    let mut seen = here(&roles).await?;
    let (elsewhere, namespaces) = elsewhere(&roles, &mut unseen).await?;
    seen.extend(elsewhere);
    let connections = seen.len() as u64;
    let findings = findings(ready, &seen, &mut paths, &root, session);
    Ok(Preflight {
        policy: ready.policy.name.clone(),
        node: ready.compiled.node.clone(),
        connections,
        namespaces,
        unseen,
        findings,
        listeners: listeners::refused(&ready.compiled, &mut paths, &root)?,
    })
}

/// The connections of the node's own network namespace.
async fn here(roles: &[(Link, Role)]) -> Result<Vec<Seen>, AgentError> {
    let (connected, bound) = (sockets::connected()?, sockets::bound()?);
    let openers = Openers::of(&bound);
    let mut routes = Routes::open()?;
    let mut seen = Vec::new();
    for socket in connected {
        let to = routes.interface_to(socket.remote.ip()).await;
        let leads = roles.iter().find(|(link, _)| Some(link.index) == to);
        seen.push(Seen {
            opener: openers.of_connection(&socket),
            role: leads.map_or(Role::Undeclared, |(_, role)| *role),
            namespace: None,
            socket,
        });
    }
    Ok(seen)
}

/// Connections in other network namespaces that an interface of this one leads to, and the number of those namespaces.
async fn elsewhere(
    roles: &[(Link, Role)],
    unseen: &mut Vec<String>,
) -> Result<(Vec<Seen>, u64), AgentError> {
    let mut behind = namespaces_behind(roles);
    let routes = Routes::open()?;
    let (mut seen, mut looked_into, mut why) = (Vec::new(), 0, None);
    for namespace in netns::others() {
        // No interface of this namespace leads to one without a number.
        let Some(number) = routes.number_of(&namespace).await else {
            continue;
        };
        let Some(role) = behind.get(&number).copied() else {
            continue;
        };
        let both = || Ok::<_, KernelError>((sockets::connected()?, sockets::bound()?));
        let listed = namespace
            .within(both)
            .map_err(AgentError::system("enter it"));
        let (connected, bound) = match listed.and_then(|listed| Ok(listed?)) {
            Ok(listed) => listed,
            Err(error) => {
                why.get_or_insert(text::chain(&error));
                continue;
            }
        };
        behind.remove(&number);
        looked_into += 1;
        let own: HashSet<_> = connected.iter().map(|socket| socket.local.ip()).collect();
        let openers = Openers::of(&bound);
        seen.extend(
            connected
                .into_iter()
                // Connections within the namespace never reach this node.
                .filter(|socket| {
                    let to = socket.remote.ip();
                    !to.is_loopback() && !own.contains(&to)
                })
                .map(|socket| Seen {
                    opener: openers.of_connection(&socket),
                    role,
                    namespace: Some(namespace.inode),
                    socket,
                }),
        );
    }
    if !behind.is_empty() {
        let why = why.unwrap_or_else(|| "this process sees nobody in them".to_owned());
        unseen.push(format!(
            "{} network namespaces behind this node's interfaces ({why}): run `enforcer preflight` as root",
            behind.len()
        ));
    }
    Ok((seen, looked_into))
}

/// The network namespaces that interfaces lead to, by the numbers that this one has for them, and in which role what comes
/// from there is judged. Behind an uplink is another machine, or a namespace that stands for one: that is left out.
fn namespaces_behind(roles: &[(Link, Role)]) -> BTreeMap<i32, Role> {
    let mut behind = BTreeMap::new();
    for (link, role) in roles {
        // What comes in by a port is judged as coming in by its bridge.
        let by_controller = roles
            .iter()
            .find(|(other, _)| link.is_port && link.controller == Some(other.index));
        let role = by_controller.map_or(*role, |(_, role)| *role);
        let Some(number) = link.peer_namespace.filter(|_| role != Role::Uplink) else {
            continue;
        };
        let known = behind.entry(number).or_insert(role);
        if role == Role::Pod {
            *known = role;
        }
    }
    behind
}

/// Ports with a listener: a connection from such a port was accepted.
pub(super) struct Openers(HashSet<u16>);

impl Openers {
    pub(super) fn of(bound: &[Bound]) -> Self {
        let tcp = bound
            .iter()
            .filter(|socket| socket.port_kind == PortKind::Tcp);
        Self(tcp.map(|socket| socket.port).collect())
    }

    fn of_connection(&self, socket: &Connected) -> End {
        match self.is_opened_here(socket) {
            true => End::Local,
            false => End::Remote,
        }
    }

    /// Whether this end opened it. For UDP that is unknown, and assumed.
    pub(super) fn is_opened_here(&self, socket: &Connected) -> bool {
        socket.port_kind != PortKind::Tcp || !self.0.contains(&socket.local.port())
    }
}

/// What connections that are reported as one have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    /// Those of the own session come first, then those that would be cut.
    is_other: bool,
    effect: Effect,
    opened_by_process: bool,
    source: String,
    destination: String,
    port: u16,
    port_kind: u8,
    cgroup: Option<String>,
    comm: Option<String>,
    namespace: Option<u64>,
}

fn findings(
    ready: &Ready,
    seen: &[Seen],
    paths: &mut CgroupPaths,
    root: &str,
    session: &[Ends],
) -> Vec<OpenConnection> {
    let judged = |seen: &Seen, cgroup: &str| {
        let seat = match seen.namespace {
            Some(_) => Seat::Behind(seen.role),
            None => Seat::Node {
                cgroup,
                toward: seen.role,
            },
        };
        let connection = Connection {
            port_kind: seen.socket.port_kind,
            local: seen.socket.local,
            remote: seen.socket.remote,
            opener: seen.opener,
            seat,
        };
        refusal(&ready.policy, &ready.compiled, &connection)
    };
    // Finding the holder of a socket takes a walk through all processes, so only suspects are looked up.
    let mut suspects = Vec::new();
    for seen in seen {
        let cgroup = seen.socket.cgroup.and_then(|id| paths.get(id));
        let cgroup = cgroup.map(str::to_owned);
        if let Some(refusal) = judged(seen, cgroup.as_deref().unwrap_or(ANY_CGROUP)) {
            suspects.push((seen, cgroup, refusal));
        }
    }
    let suspects = by_connection(suspects);
    let inodes: Vec<u32> = suspects
        .iter()
        .map(|(seen, ..)| seen.socket.inode)
        .collect();
    let holders = if inodes.is_empty() {
        HashMap::new()
    } else {
        sockets::holders(&inodes)
    };
    let mut groups: BTreeMap<Group, OpenConnection> = BTreeMap::new();
    for (seen, cgroup, refusal) in suspects {
        let holder = holders.get(&seen.socket.inode);
        let of_holder = || below(&holder?.cgroup, root).map(str::to_owned);
        let (cgroup, refusal) = match (cgroup, seen.namespace) {
            (Some(cgroup), _) => (Some(cgroup), refusal),
            (None, Some(_)) => (of_holder(), refusal),
            // If the socket's own cgroup is unknown or gone, its process's cgroup counts.
            (None, None) => match of_holder() {
                Some(cgroup) => match judged(seen, &cgroup) {
                    Some(refusal) => (Some(cgroup), refusal),
                    None => continue,
                },
                // Outside the cgroup root, where sockets are not judged.
                None if holder.is_some() => continue,
                None => (None, refusal),
            },
        };
        let found = finding(seen, cgroup, holder, refusal, session);
        let group = group(&found, seen);
        groups
            .entry(group)
            .and_modify(|all| all.count += 1)
            .or_insert(found);
    }
    groups.into_values().collect()
}

/// A connection that is denied: with the cgroup of its socket, where that is known.
type Suspect<'a> = (&'a Seen, Option<String>, Refusal);

/// Both ends of a connection may be visible here, and be denied at different hooks. The one that opened it is reported, with
/// the worse of both effects.
fn by_connection(suspects: Vec<Suspect<'_>>) -> Vec<Suspect<'_>> {
    let (mut opened, accepted): (Vec<_>, Vec<_>) = suspects
        .into_iter()
        .partition(|(seen, ..)| seen.opener == End::Local);
    let mut ends: HashMap<_, usize> = HashMap::new();
    for (index, (seen, ..)) in opened.iter().enumerate() {
        ends.insert((seen.socket.port_kind, seen.in_order()), index);
    }
    let mut alone = Vec::new();
    for suspect in accepted {
        let (seen, _, refusal) = &suspect;
        let other = ends.get(&(seen.socket.port_kind, seen.in_order()));
        match other.and_then(|index| opened.get_mut(*index)) {
            Some((.., reported)) if refusal.effect == Effect::Cut => reported.clone_from(refusal),
            Some(_) => {}
            None => alone.push(suspect),
        }
    }
    opened.extend(alone);
    opened
}

/// A cgroup that no component declares.
const ANY_CGROUP: &str = "/";

fn finding(
    seen: &Seen,
    cgroup: Option<String>,
    holder: Option<&Holder>,
    refusal: Refusal,
    session: &[Ends],
) -> OpenConnection {
    let Connected { local, remote, .. } = seen.socket;
    let (source, destination) = seen.in_order();
    OpenConnection {
        effect: refusal.effect,
        protocol: seen.socket.port_kind.into(),
        source: source.ip().to_string(),
        source_port: source.port(),
        destination: destination.ip().to_string(),
        port: destination.port(),
        opened_by_process: seen.opener == End::Local,
        pid: holder.map(|holder| holder.pid),
        comm: holder.map(|holder| holder.comm.clone()),
        cgroup,
        network_namespace: seen.namespace,
        count: 1,
        source_components: refusal.senders,
        endpoints: refusal.endpoints,
        reason: refusal.reason.into(),
        sentence: refusal.reason.sentence().to_owned(),
        hook: refusal.hook.into(),
        advice: refusal.advice,
        // The end that is reported may be the other one.
        session: session.iter().any(|ends| {
            [(ends.local, ends.remote), (ends.remote, ends.local)].contains(&(local, remote))
        }),
    }
}

fn group(found: &OpenConnection, seen: &Seen) -> Group {
    Group {
        is_other: !found.session,
        effect: match found.effect == Effect::Cut {
            true => Effect::Cut,
            false => Effect::NotReopened,
        },
        opened_by_process: found.opened_by_process,
        source: found.source.clone(),
        destination: found.destination.clone(),
        port: found.port,
        port_kind: seen.socket.port_kind as u8,
        cgroup: found.cgroup.clone(),
        comm: found.comm.clone(),
        namespace: found.network_namespace,
    }
}

/// The connections over which a person controls this process: those of its ancestors, such as the SSH server. The first
/// process is left out, as it is an ancestor of every process.
pub fn session() -> Vec<Ends> {
    let mut ends: Vec<Ends> = std::env::var("SSH_CONNECTION")
        .ok()
        .and_then(|text| ssh_connection(&text))
        .into_iter()
        .collect();
    let Ok(connected) = sockets::connected() else {
        return ends;
    };
    let mut pid = parent(std::process::id());
    // Bounded, because process numbers may be reused during the walk.
    for _ in 0..64 {
        let Some(ancestor) = pid.filter(|pid| *pid > 1) else {
            break;
        };
        let inodes: HashSet<u32> = sockets::of_process(ancestor).into_iter().collect();
        let of_it = connected
            .iter()
            .filter(|socket| socket.port_kind == PortKind::Tcp && inodes.contains(&socket.inode));
        ends.extend(of_it.map(|socket| Ends {
            local: socket.local,
            remote: socket.remote,
        }));
        pid = parent(ancestor);
    }
    ends.sort_by_key(|ends| (ends.local, ends.remote));
    ends.dedup();
    ends
}

/// The client's address and port, and the server's: sshd(8).
fn ssh_connection(text: &str) -> Option<Ends> {
    let mut words = text.split_whitespace();
    let mut end = || {
        let (address, port) = (words.next()?, words.next()?);
        let address: IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), port.parse().ok()?))
    };
    let (remote, local) = (end()?, end()?);
    Some(Ends { local, remote })
}

fn parent(pid: u32) -> Option<u32> {
    let status =
        fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_behind_a_bridge_has_the_role_of_the_bridge() {
        let link = |index, controller: Option<u32>, peer_namespace| Link {
            index,
            name: format!("if{index}"),
            layer: libc::ARPHRD_ETHER,
            controller,
            is_port: controller.is_some(),
            controls_pods: false,
            peer_namespace,
        };
        let behind = namespaces_behind(&[
            (link(1, None, None), Role::Pod),
            (link(2, Some(1), Some(7)), Role::Undeclared),
            (link(3, None, Some(8)), Role::Undeclared),
            (link(4, None, Some(8)), Role::Pod),
            (link(5, None, Some(9)), Role::Uplink),
        ]);
        assert_eq!(behind, BTreeMap::from([(7, Role::Pod), (8, Role::Pod)]));
    }

    #[test]
    fn the_variable_of_ssh_names_both_ends() {
        let ends = ssh_connection("192.0.2.9 50022 10.0.0.11 22").unwrap();
        assert_eq!(ends.local, "10.0.0.11:22".parse().unwrap());
        assert_eq!(ends.remote, "192.0.2.9:50022".parse().unwrap());
        assert!(ssh_connection("fd00::9 50022 fd00::11 22").is_some());
        for broken in [
            "",
            "192.0.2.9 50022",
            "a b c d",
            "192.0.2.9 70000 10.0.0.11 22",
        ] {
            assert_eq!(ssh_connection(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_process_has_a_parent() {
        assert_eq!(
            parent(std::process::id()),
            Some(std::os::unix::process::parent_id())
        );
        assert_eq!(parent(u32::MAX), None);
    }
}
