//! What would allow a denied connection, and what breaks without it: for an operator who has to find out whether a
//! denial is an attack or a forgotten path.

use std::{collections::HashSet, net::IpAddr};

use enforcer_common::packet::PortKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    catalogue::Catalogue,
    compile::{Compiled, cgroups},
    model::{Locality, Path, Policy, Port, PortMatch},
};

/// A documented path that would allow the connection, or something else that is probably missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// Its name. Empty if it is not a path that is missing.
    pub path: String,
    /// What users observe without it.
    pub symptom: String,
    /// What to write, and where.
    pub remedy: String,
    /// The path would open much more than this connection, so the remedy is a narrower one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wide: bool,
}

impl Advice {
    /// One line for people.
    pub fn sentence(&self) -> String {
        let Self {
            path,
            symptom,
            remedy,
            wide,
        } = self;
        match (path.is_empty(), wide) {
            (true, _) => remedy.clone(),
            (false, false) => format!("path {path} would allow it; without it {symptom}. {remedy}"),
            (false, true) => format!(
                "path {path} covers this (without it {symptom}) but opens far more. {remedy}"
            ),
        }
    }
}

/// A denial, in names.
#[derive(Debug, Clone, Copy)]
pub struct Denied<'a> {
    /// Components that the sender counts as.
    pub senders: &'a [String],
    /// Endpoints at the destination, as `component:port`.
    pub endpoints: &'a [String],
    /// The kind of port, and its number.
    pub number: (PortKind, u16),
    /// The destination, if it is known.
    pub destination: Option<IpAddr>,
    /// The source port, if it is known.
    pub source_port: Option<u16>,
}

/// At most two documented paths, the narrowest first. None of them opens more than the denied connection needs.
pub fn advise(policy: &Policy, catalogue: &Catalogue, denied: &Denied<'_>) -> Vec<Advice> {
    if let Some(unlisted) = unlisted_node(policy, denied) {
        return vec![unlisted];
    }
    let on: HashSet<&str> = policy.paths.iter().map(|path| path.name.as_str()).collect();
    let mut found: Vec<(u32, bool, Advice)> = Vec::new();
    for path in catalogue.paths() {
        let Some(port) = port_of(policy, path) else {
            continue;
        };
        let was_there = was_there(policy, catalogue, path);
        let is_on = on.contains(path.name.as_str());
        let is_wide = port.matches.contains(&PortMatch::Any) && !was_there && !is_on;
        let remedy = if is_on {
            missing_place(policy, path, port, denied)
        } else if !is_from(catalogue, path, denied) || !leads_there(path, denied) {
            None
        } else if is_wide {
            own_path(policy, path, denied)
        } else {
            Some(switch(policy, catalogue, path))
        };
        if let Some(remedy) = remedy {
            let advice = Advice {
                path: path.name.clone(),
                symptom: path.symptom.clone(),
                remedy,
                wide: is_wide,
            };
            // A path that the policy itself disabled comes before one that was never enabled.
            found.push((port.width(), !was_there, advice));
        }
    }
    found.sort_by_key(|(width, new, _)| (*width, *new));
    // If there is narrow advice, wide advice is dropped.
    if found.iter().any(|(.., advice)| !advice.wide) {
        found.retain(|(.., advice)| !advice.wide);
    }
    found
        .into_iter()
        .take(2)
        .map(|(.., advice)| advice)
        .collect()
}

/// What a denied process calls itself, and where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Process<'a> {
    /// The name of the process as the kernel has it: 15 characters, chosen by the process.
    pub name: &'a str,
    /// Its cgroup, below the node's cgroup root.
    pub cgroup: &'a str,
    /// Components that it counts as.
    pub senders: &'a [String],
}

/// A process that looks like a component of this node whose declared cgroup has no process: a static pod with another
/// hash, an undeclared unit. A process chooses its name itself, so this is for a person to check.
pub fn unrecognised(
    policy: &Policy,
    compiled: &Compiled,
    process: &Process<'_>,
    is_populated: impl Fn(&str) -> bool,
) -> Option<Advice> {
    let node = policy.node(&compiled.node)?;
    let is_called = |program: &String| {
        let short = program.as_bytes().get(..COMM).unwrap_or(program.as_bytes());
        short == process.name.as_bytes()
    };
    let component = policy.components.iter().find(|component| {
        component.programs.iter().any(is_called)
            && (component.runs_on(node) || component.runs_on.is_empty())
            && !process.senders.contains(&component.name)
    })?;
    let declared = component.cgroups.as_slice();
    if process.cgroup.is_empty() || declared.iter().any(|pattern| is_populated(pattern)) {
        return None;
    }
    // At the depth of the declared cgroup: a container's scope below a pod's slice changes at every restart.
    let depth = |path: &str| cgroups::segments(path).len();
    let depth = declared.first().map_or(usize::MAX, |first| depth(first));
    let segments = cgroups::segments(process.cgroup);
    let cgroup = format!("/{}", segments[..depth.min(segments.len())].join("/"));
    let in_pod = process.senders.iter().any(|name| {
        policy
            .component(name)
            .is_some_and(|component| component.in_pod_networks)
    });
    let (name, what) = (
        &component.name,
        if in_pod {
            "an undeclared static pod"
        } else {
            "undeclared"
        },
    );
    let why = match declared {
        [] => format!("no cgroup of `{name}` is declared"),
        [one] => format!("the declared cgroup of `{name}`, {one}, does not exist or is empty"),
        _ => format!("the declared cgroups of `{name}` do not exist or are empty"),
    };
    Some(Advice {
        path: String::new(),
        symptom: String::new(),
        remedy: format!(
            "A process named {} runs in {} ({what}), and {why}: if it is this node's {name}, add {cgroup} \
             to its `cgroups` in the Inventory.",
            process.name, process.cgroup
        ),
        wide: false,
    })
}

/// The peer would be allowed if it were a node, so it may be one that the Inventory does not list.
fn unlisted_node(policy: &Policy, denied: &Denied<'_>) -> Option<Advice> {
    let destination = denied.destination?;
    if !denied.endpoints.iter().any(|end| end == "outside:any") {
        return None;
    }
    let path = policy.paths.iter().find(|path| {
        let on_nodes = policy
            .component(&path.to_component)
            .is_some_and(|to| !to.runs_on.is_empty());
        let port = port_of(policy, path);
        on_nodes
            && path.locality == Locality::Any
            && path.from.iter().any(|from| denied.senders.contains(from))
            && port
                .is_some_and(|port| port.width() <= MAX_NODE_PORTS && covers(port, denied.number))
    })?;
    Some(Advice {
        path: path.name.clone(),
        symptom: path.symptom.clone(),
        remedy: format!(
            "It is on, and {destination} is no node of the Inventory: if it is one, write it under `nodes`."
        ),
        wide: false,
    })
}

/// A path to everything somewhere is too wide for one connection: what to write for that connection alone.
fn own_path(policy: &Policy, path: &Path, denied: &Denied<'_>) -> Option<String> {
    let destination = denied.destination?;
    let (port_kind, number) = denied.number;
    let what = match port_kind {
        // From a server's port to a client's: a reply, which needs no path of its own.
        PortKind::Tcp | PortKind::Udp if is_like_answer(denied) => return None,
        PortKind::Tcp => format!("{number}/tcp"),
        PortKind::Udp => format!("{number}/udp"),
        PortKind::Protocol => format!("{number}/ip"),
        PortKind::Icmp | PortKind::Icmp6 | PortKind::Arp => return None,
    };
    let from: Vec<&str> = path
        .from
        .iter()
        .filter(|from| denied.senders.contains(from))
        .map(String::as_str)
        .collect();
    let is_pods = policy
        .component(&path.to_component)
        .is_some_and(|to| to.in_pod_networks);
    let place = match is_pods {
        true => "inPodNetworks: true".to_owned(),
        false => format!("addresses: [\"{destination}\"]"),
    };
    Some(format!(
        "For this alone: component `NAME: {{ {place}, guard: false, ports: {{ port: {what} }} }}` in the Inventory, and a \
         path of your own `from: [{}], to: \"NAME:port\"`.",
        from.join(", ")
    ))
}

fn is_like_answer(denied: &Denied<'_>) -> bool {
    let (_, number) = denied.number;
    number >= EPHEMERAL
        && denied
            .source_port
            .is_some_and(|port| port != 0 && port < EPHEMERAL)
}

/// Whether the profile itself has the path.
fn was_there(policy: &Policy, catalogue: &Catalogue, path: &Path) -> bool {
    let profile = policy.profile.as_deref().and_then(|p| catalogue.profile(p));
    profile.is_some_and(|profile| profile.paths.contains(&path.name))
}

fn port_of<'a>(policy: &'a Policy, path: &Path) -> Option<&'a Port> {
    policy.component(&path.to_component)?.port(&path.to_port)
}

/// Whether the sender is on the path, or would be with the option that places strangers there.
fn is_from(catalogue: &Catalogue, path: &Path, denied: &Denied<'_>) -> bool {
    let is_stranger = denied.senders.iter().any(|sender| sender == "outside");
    let placed = |name: &String| {
        let mut options = catalogue.options().iter();
        is_stranger
            && options
                .any(|option| option.enable.contains(&path.name) && option.outside.contains(name))
    };
    path.from
        .iter()
        .any(|from| denied.senders.contains(from) || placed(from))
}

fn leads_there(path: &Path, denied: &Denied<'_>) -> bool {
    let end = format!("{}:{}", path.to_component, path.to_port);
    denied.endpoints.contains(&end)
}

/// A path in force leads to this number or comes from it, but the Inventory does not say where its other end is.
fn missing_place(policy: &Policy, path: &Path, port: &Port, denied: &Denied<'_>) -> Option<String> {
    let nowhere = |name: &str| {
        let component = policy.component(name)?;
        let is_placed = !component.addresses.is_empty()
            || component.outside
            || component.in_pod_networks
            || !component.cgroups.is_empty()
            || !component.runs_on.is_empty()
            || policy.services.iter().any(|s| s.component == name);
        (!is_placed).then(|| name.to_owned())
    };
    let is_on_it = path.from.iter().any(|from| denied.senders.contains(from));
    let missing = if is_on_it && covers(port, denied.number) {
        nowhere(&path.to_component)
    } else if leads_there(path, denied) && could_be_another(policy, port, denied) {
        // If one of several senders is placed, the path is in use, and the others are not missing.
        match path.from.as_slice() {
            [only] => nowhere(only),
            _ => None,
        }
    } else {
        None
    };
    missing.map(|name| {
        format!(
            "It is on, but component `{name}` is nowhere: give it `addresses` or `cgroups` in the Inventory."
        )
    })
}

/// Whether the sender may be a component that the Inventory does not place yet: it counts as nothing in particular, and
/// could reach the port at all.
fn could_be_another(policy: &Policy, port: &Port, denied: &Denied<'_>) -> bool {
    let is_general = |name: &String| {
        policy.component(name).is_none_or(|component| {
            component.is_everyone()
                || component.is_elsewhere()
                || component.in_pod_networks
                || (!component.runs_on.is_empty() && component.counts_undeclared())
        })
    };
    let is_process = denied.senders.iter().any(|sender| sender == "node");
    denied.senders.iter().all(is_general) && (!port.loopback_only || is_process)
}

/// How a path is turned on, in one line of the policy.
fn switch(policy: &Policy, catalogue: &Catalogue, path: &Path) -> String {
    let name = &path.name;
    if policy.disabled.contains(name) {
        return format!("It is off by `disable: [{name}]`.");
    }
    let chosen = |option: &&str| policy.options.iter().any(|known| known == option);
    let options = catalogue.options().iter();
    let closes = options
        .clone()
        .filter(|option| option.disable.contains(name))
        .map(|option| option.name.as_str())
        .find(chosen);
    if let Some(option) = closes {
        return format!("Option {option} closes it; `enable: [{name}]` opens it all the same.");
    }
    let has = |option: &str| {
        let profile = policy.profile.as_deref().and_then(|p| catalogue.profile(p));
        profile.is_some_and(|p| p.options.iter().any(|known| known.name == option))
    };
    let opens = options
        .filter(|option| option.enable.contains(name) && has(&option.name))
        .map(|option| option.name.as_str())
        .next();
    match opens {
        Some(option) => format!("It is off: `options: [{option}]`, or `enable: [{name}]` alone."),
        None => format!("It is off: `enable: [{name}]`."),
    }
}

fn covers(port: &Port, (port_kind, number): (PortKind, u16)) -> bool {
    port.matches.iter().any(|found| match (found, port_kind) {
        (PortMatch::Tcp(first, last), PortKind::Tcp)
        | (PortMatch::Udp(first, last), PortKind::Udp) => (*first..=*last).contains(&number),
        (PortMatch::Icmp(first, last), PortKind::Icmp)
        | (PortMatch::Icmp6(first, last), PortKind::Icmp6) => {
            (u16::from(*first)..=u16::from(*last)).contains(&number)
        }
        (PortMatch::Protocol(known), PortKind::Protocol) => u16::from(*known) == number,
        (PortMatch::Arp, PortKind::Arp) => true,
        _ => false,
    })
}

/// TASK_COMM_LEN without its terminating zero.
const COMM: usize = 15;
/// Where the port range of clients begins on Linux.
const EPHEMERAL: u16 = 32_768;
/// A component of nodes with more ports than this stands for the node itself, not for one service.
const MAX_NODE_PORTS: u32 = 64;

#[cfg(test)]
mod tests;
