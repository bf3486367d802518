//! What a verdict would be, and why: the kernel's own decision, run on the compiled policy.

use std::collections::HashSet;
use std::net::IpAddr;

use enforcer_common::{
    addr::Ip,
    decide,
    judge::{Judgement, judge},
    packet::{Packet, Phase, PortKind, Ports},
    record::Hook,
    tables::{Party, Role, Tables as _},
    vantage::{Entered, Origin, Vantage, View},
    verdict::{Denial, Outcome, Reason, Verdict},
};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    advice::{Advice, Denied, advise},
    cases::{At, Attempt, Case, Expect, PathCases, Sender, Target, What},
    catalogue::Catalogue,
    compile::{CgroupRule, Compiled, Simulator, cgroups},
    model::{Component, Node, Path, Policy},
    nets::Nets,
    vocabulary::{Decision, Lock, Word},
};

/// The verdict on an attempt, and the reasons for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The verdict.
    pub verdict: Word<Decision>,
    /// The path that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The reason that denies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Word<Reason>>,
    /// The same in words: why the path exists, or what the reason means.
    pub because: String,
    /// The document that names the path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub document: String,
    /// What the path requires of the connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Word<Lock>>,
    /// What users observe if that path is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub symptom: String,
    /// The declared endpoints that are addressed, as `component:port`.
    pub endpoints: Vec<String>,
    /// The node whose tables were used.
    pub node: String,
    /// The hook that judges it first.
    pub hook: Word<Hook>,
    /// The components that the sender counts as.
    pub source_components: Vec<String>,
    /// Paths that lead to the same endpoints.
    pub paths_there: Vec<PathThere>,
    /// What operators should know about a denial there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub denial: String,
    /// Documented paths that would allow it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Caveats, if the attempt is not what it seems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A path that leads to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathThere {
    /// Its name.
    pub name: String,
    /// The components that may use it.
    pub from: Vec<String>,
}

impl Explanation {
    /// Whether it passes when the policy is enforced.
    pub fn is_allowed(&self) -> bool {
        self.reason.is_none()
    }
}

/// Explains what happens when a sender attempts something, as seen from the node that the tables are for.
///
/// # Errors
///
/// The attempt makes no sense on that node: a sentence that says why.
pub fn explain(
    policy: &Policy,
    compiled: &Compiled,
    from: &Sender,
    attempt: Attempt,
    at: Option<At>,
) -> Result<Explanation, String> {
    let directory = Directory::of(policy, &compiled.node)?;
    explain_by(&directory, compiled, from, attempt, at)
}

fn explain_by(
    directory: &Directory<'_>,
    compiled: &Compiled,
    from: &Sender,
    attempt: Attempt,
    at: Option<At>,
) -> Result<Explanation, String> {
    let policy = directory.policy;
    let tables = Simulator::new(compiled);
    let mut note = note(directory, from, attempt);
    let mut at_own_socket = false;
    let (verdict, hook, sender) = match attempt {
        Attempt::Bind(at) => bind(&tables, from, at)?,
        Attempt::Send(to) => {
            let (place, judged, other) = sent(&tables, directory, from, (to, at))?;
            note.extend(other);
            let by_socket = matches!(judged.1, Hook::CgroupIngress | Hook::CgroupEgress);
            at_own_socket = place == At::ThisNode && by_socket;
            judged
        }
    };
    let target = match attempt {
        Attempt::Send(target) | Attempt::Bind(target) => target,
    };
    let target_address = target.address;
    let meant = meant(&tables, target, at_own_socket);
    let name = |names: &[Vec<String>]| {
        let found = meant.and_then(|(target, _)| names.get(usize::from(target)));
        found.cloned().unwrap_or_default()
    };
    let endpoints = name(&compiled.target_names);
    let mut explanation = describe(policy, compiled, verdict, hook, sender, endpoints);
    if let Some((target, number)) = meant
        && !explanation.is_allowed()
    {
        let denial = compiled.target_denials.get(usize::from(target));
        explanation.denial = denial.cloned().unwrap_or_default();
        // No path would let a process bind another component's port.
        if hook != Hook::Bind {
            let denied = Denied {
                senders: &explanation.source_components,
                endpoints: &name(&compiled.target_endpoints),
                number,
                destination: (!target_address.is_unspecified()).then_some(target_address),
                source_port: None,
            };
            explanation.advice = advise(policy, Catalogue::builtin(), &denied);
        }
    }
    explanation.note = (!note.is_empty()).then(|| note.join("; "));
    Ok(explanation)
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// Whether the policy gives the expected verdict.
    pub passed: bool,
    /// The expected verdict, in words.
    pub expected: String,
    /// The policy's verdict, in words.
    pub found: String,
    /// The policy's verdict; missing where the case makes no sense on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Word<Decision>>,
    /// The path that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The reason that denies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Word<Reason>>,
}

/// Runs a file's cases through the decision. `compiled` is for the file's node.
pub fn run_cases(policy: &Policy, compiled: &Compiled, cases: &PathCases) -> Vec<CaseResult> {
    let directory = Directory::of(policy, &compiled.node);
    cases
        .cases
        .iter()
        .map(|case| {
            let explained = directory.as_ref().map_err(|error| error.clone());
            let explained = explained.and_then(|directory| {
                explain_by(directory, compiled, &case.from, case.attempt, case.at)
            });
            case_result(explained, case)
        })
        .collect()
}

fn case_result(explained: Result<Explanation, String>, case: &Case) -> CaseResult {
    let passed = explained.as_ref().is_ok_and(|found| match &case.expect {
        Expect::Path(path) => found.path.as_ref() == Some(&path.value),
        Expect::OtherTraffic => found.is_allowed() && found.path.is_none(),
        Expect::Denied { reason, endpoint } => {
            let named = endpoint.as_ref().is_none_or(|endpoint| {
                let (component, port) = &endpoint.value;
                found.endpoints.contains(&format!("{component}:{port}"))
            });
            found.reason.as_ref().map(Word::as_str) == Some(reason.value.as_str()) && named
        }
    });
    let found = match &explained {
        Ok(Explanation {
            path: Some(path), ..
        }) => format!("allowed by {path}"),
        Ok(Explanation {
            reason: Some(reason),
            endpoints,
            ..
        }) => {
            format!("denied: {reason} ({})", endpoints.join(", "))
        }
        Ok(_) => "allowed as other traffic".to_owned(),
        Err(error) => error.clone(),
    };
    let (verdict, path, reason) = match explained {
        Ok(Explanation {
            verdict,
            path,
            reason,
            ..
        }) => (Some(verdict), path, reason),
        Err(_) => (None, None, None),
    };
    CaseResult {
        name: case.name.value.clone(),
        passed,
        expected: case.expect.to_string(),
        found,
        verdict,
        path,
        reason,
    }
}

/// Who has which address. It is built once for all questions about one node: an inventory may have thousands of nodes,
/// and a file thousands of cases.
struct Directory<'a> {
    policy: &'a Policy,
    node: &'a Node,
    /// Addresses of all nodes.
    nodes: HashSet<IpAddr>,
    /// The networks of pods, those of the cluster and of this node.
    pods: Nets<()>,
    /// Networks of pods, with the node whose pods they are for.
    pods_of: Nets<&'a Node>,
    /// Addresses of services.
    services: HashSet<IpAddr>,
    service_networks: Nets<()>,
    /// Addresses that components with ports have themselves, and that a node may have as well.
    shared: HashSet<IpAddr>,
    /// The cgroups of all components.
    cgroups: Vec<CgroupRule>,
    /// Those of components that may be on this node.
    cgroups_here: Vec<CgroupRule>,
}

impl<'a> Directory<'a> {
    fn of(policy: &'a Policy, node: &str) -> Result<Self, String> {
        let node = policy.node(node).ok_or("the policy has no such node")?;
        let nodes = policy.nodes.iter().flat_map(|node| &node.addresses);
        let pods = policy.pod_networks.iter().chain(&node.pod_networks);
        let mut pods_of = Nets::default();
        for node in &policy.nodes {
            for net in &node.pod_networks {
                pods_of.insert(*net, node);
            }
        }
        let with_ports = policy
            .components
            .iter()
            .filter(|component| !component.outside && !component.ports.is_empty());
        let single = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        let shared = with_ports.flat_map(|component| component.addresses.iter().filter(single));
        let is_here = |c: &Component| c.runs_on.is_empty() || c.runs_on(node);
        Ok(Self {
            policy,
            node,
            nodes: nodes.copied().collect(),
            pods: pods.copied().collect(),
            pods_of,
            services: policy.services.iter().map(|s| s.address).collect(),
            service_networks: policy.service_networks.iter().copied().collect(),
            shared: shared.map(IpNet::addr).collect(),
            cgroups: cgroups_of(policy, |_| true),
            cgroups_here: cgroups_of(policy, is_here),
        })
    }

    /// The node whose pod an address is.
    fn pods_of(&self, address: IpAddr) -> Option<&'a Node> {
        let (_, node) = self.pods_of.holding(address).next()?;
        Some(*node)
    }

    fn is_pod(&self, address: IpAddr) -> bool {
        self.pods.holding(address).next().is_some()
    }

    fn is_service(&self, address: IpAddr) -> bool {
        self.services.contains(&address) || self.service_networks.holding(address).next().is_some()
    }
}

fn cgroups_of(policy: &Policy, keep: impl Fn(&Component) -> bool) -> Vec<CgroupRule> {
    let mut rules = Vec::new();
    for component in policy.components.iter().filter(|c| keep(c)) {
        rules.extend(component.cgroups.iter().map(|pattern| CgroupRule {
            pattern: pattern.clone(),
            party: 0,
            components: vec![component.name.clone()],
        }));
    }
    rules
}

/// The verdict, the hook that gives it, and the sender.
type Judged = (Verdict, Hook, Party);

/// Finds out who has the destination, and gives the verdict. If the policy does not say who has it, the verdict of the
/// other case is returned as well: what a node's socket receives counts as the node's, whatever the address is declared
/// as.
fn sent(
    tables: &Simulator<'_>,
    directory: &Directory<'_>,
    from: &Sender,
    (to, at): (Target, Option<At>),
) -> Result<(At, Judged, Option<String>), String> {
    let node = directory.node;
    let judge = |at| send(tables, node, from, to, at);
    let assumed = match at {
        Some(at) => return Ok((at, judge(at)?, None)),
        None => assumed(directory, to.address),
    };
    let Some(assumed) = assumed else {
        return Ok((At::Elsewhere, judge(At::Elsewhere)?, None));
    };
    let (other, when) = match assumed {
        At::ThisNode => (At::Elsewhere, "is not"),
        At::Elsewhere => (At::ThisNode, "is"),
    };
    let (here, there) = (judge(assumed)?, judge(other)?);
    let note = (here.0.outcome() != there.0.outcome()).then(|| {
        let known = tables.compiled();
        let would = match there.0.outcome() {
            Outcome::Path(number, _) => match known.paths.get(&number) {
                Some(path) => format!("allowed by path {path}"),
                None => "allowed".to_owned(),
            },
            Outcome::Denied(Denial { reason, .. }) => format!("denied: {}", reason.name()),
            Outcome::Other | Outcome::LaterFragment => "allowed as other traffic".to_owned(),
        };
        format!(
            "if {} {when} an address of {} itself: {would} (set `at` to choose)",
            to.address, node.name
        )
    });
    Ok((assumed, here, note))
}

/// Where an address is assumed to be that a node may have but that the policy gives to none. An address that nodes
/// share is assumed to be here, as that is the stricter case; a service's is where the service is. None if there is no
/// doubt.
fn assumed(directory: &Directory<'_>, address: IpAddr) -> Option<At> {
    let everywhere = match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    let is_somebodys = everywhere
        || address.is_loopback()
        || address.is_unspecified()
        || directory.nodes.contains(&address)
        || directory.is_pod(address);
    if is_somebodys {
        return None;
    }
    if directory.is_service(address) {
        return Some(At::Elsewhere);
    }
    let shared = directory.shared.contains(&address);
    shared.then_some(At::ThisNode)
}

fn bind(tables: &Simulator<'_>, from: &Sender, at: Target) -> Result<Judged, String> {
    let Sender::Process { cgroup, .. } = from else {
        return Err("only a process binds: name its cgroup".to_owned());
    };
    let (port_kind, number) = match at.what {
        What::Tcp(port) => (PortKind::Tcp, port),
        What::Udp(port) => (PortKind::Udp, port),
        _ => return Err("only TCP and UDP ports are bound".to_owned()),
    };
    let party = tables.party_of_cgroup(cgroup);
    let verdict = decide::binding(tables, party, &Ip::from(at.address), port_kind, number);
    Ok((verdict, Hook::Bind, party))
}

fn send(
    tables: &Simulator<'_>,
    node: &Node,
    from: &Sender,
    to: Target,
    at: At,
) -> Result<Judged, String> {
    let own_socket = |role, first: Judged, packet: &Packet| {
        if at == At::Elsewhere || first.0.is_denied() {
            return first;
        }
        // A party number, which the kernel stores as a wider word.
        let receiver = tables.compiled().settings.local as Party;
        let vantage = Vantage::new(View::Received {
            receiver,
            role,
            judged: true,
        });
        let verdict = judge(tables, vantage, packet, || false).verdict;
        match verdict.is_denied() {
            true => (verdict, Hook::CgroupIngress, first.2),
            false => first,
        }
    };
    let address = match to.address {
        // A connection to the unspecified address reaches this host.
        any if any.is_unspecified() => Ip::from(any).this_host().into(),
        address => address,
    };
    let ports = ports(to.what);
    let packet = |source: IpAddr| {
        if source.is_ipv4() == address.is_ipv4() {
            Ok(Packet::flow(source.into(), address.into(), ports))
        } else {
            Err(format!(
                "{source} and {address} are of two address families"
            ))
        }
    };
    let settings = tables.compiled().settings;
    // The interface's index does not matter here: `judge` gets the result of the route lookup.
    let arrived = |role| Vantage::new(View::Arrived { role, interface: 0 });
    match from {
        Sender::Pod(source) => {
            // The question is about the pod that has this address, not about one that forges it.
            let packet = packet(*source)?;
            let Judgement { verdict, mark } = judge(tables, arrived(Role::Pod), &packet, || true);
            let sender = match mark.entered(Role::Pod) {
                Entered::FromKnownPod(known) => known,
                Entered::ByUplink(_) | Entered::FromPod => settings.pods as Party,
            };
            Ok(own_socket(
                Role::Pod,
                (verdict, Hook::TcIngress, sender),
                &packet,
            ))
        }
        Sender::Remote(source) => {
            let packet = packet(*source)?;
            let verdict = judge(tables, arrived(Role::Uplink), &packet, || false).verdict;
            let first = (
                verdict,
                Hook::TcIngress,
                tables.address_info(&packet.src).party,
            );
            Ok(own_socket(Role::Uplink, first, &packet))
        }
        Sender::Process {
            cgroup,
            address: own,
        } => {
            let local =
                at == At::ThisNode || address.is_loopback() || node.addresses.contains(&address);
            let source = own
                .or_else(|| source_for(node, address, local))
                .ok_or_else(|| {
                    format!(
                        "node {} has no address of the family of {address}",
                        node.name
                    )
                })?;
            let party = tables.party_of_cgroup(cgroup);
            let packet = packet(source)?;
            if let Some(refusal) = refused_at_once(tables, party, &packet) {
                return Ok((refusal, Hook::Connect, party));
            }
            let vantage = Vantage::new(View::Sent {
                sender: party,
                origin: Origin::Socket,
                on_lo: local,
            });
            let verdict = judge(tables, vantage, &packet, || false).verdict;
            Ok((verdict, Hook::CgroupEgress, party))
        }
    }
}

/// If the policy is enforced, a denied call fails at once. What the call allows, and everything in dry-run, is reported
/// for the packets.
fn refused_at_once(tables: &Simulator<'_>, by: Party, packet: &Packet) -> Option<Verdict> {
    let Ports {
        kind: port_kind,
        destination,
        ..
    } = packet.ports;
    let verdict = decide::connecting(tables, by, &packet.dst, port_kind, destination);
    decide::fails_at_once(verdict, port_kind).then_some(verdict)
}

/// Sentences for packets that a node does not normally see.
fn note(directory: &Directory<'_>, from: &Sender, attempt: Attempt) -> Vec<String> {
    let node = directory.node;
    let to = match attempt {
        Attempt::Send(target) | Attempt::Bind(target) => target.address,
    };
    let mut notes = Vec::new();
    match from {
        Sender::Pod(_) if to.is_loopback() => notes.push(
            "a pod's own loopback never leaves the pod; this is a packet that it puts onto its interface".to_owned(),
        ),
        Sender::Pod(source) => {
            let other = directory.pods_of(*source);
            if let Some(other) = other.filter(|other| other.name != node.name) {
                notes.push(format!(
                    "pods of {} have their addresses there: what such a pod sends comes to {} by an uplink \
                     (address:{source}), and never by a pod's interface",
                    other.name, node.name
                ));
            }
        }
        Sender::Remote(source) => {
            let owner = directory.pods_of(*source);
            if owner.is_some_and(|owner| owner.name == node.name) {
                notes.push(format!(
                    "pods of {} itself have their addresses there: {} sees what they send at their interfaces \
                     (pod:{source}), and from an uplink only what somebody forged",
                    node.name, node.name
                ));
            } else if directory.services.contains(source) {
                notes.push(format!("{source} is a service address: nobody sends from there"));
            }
            if !comes_by(directory, to) {
                notes.push(
                    "this node sees such a packet only if it forwards it, or has the address itself: it is neither \
                     declared as its own nor a pod's"
                        .to_owned(),
                );
            }
        }
        Sender::Process { cgroup, .. } => notes.extend(not_on_this_node(directory, cgroup)),
    }
    notes
}

fn comes_by(directory: &Directory<'_>, to: IpAddr) -> bool {
    let everywhere = match to {
        IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_multicast(),
    };
    everywhere
        || to.is_unspecified()
        || to.is_loopback()
        || directory.node.addresses.contains(&to)
        || directory.is_pod(to)
        || directory.services.contains(&to)
}

/// A cgroup that is declared only by components of other nodes.
fn not_on_this_node(directory: &Directory<'_>, cgroup: &str) -> Option<String> {
    let declared = cgroups::rule_for(&directory.cgroups, cgroup)?;
    let here = cgroups::rule_for(&directory.cgroups_here, cgroup);
    if here.is_some_and(|rule| rule.pattern == declared.pattern) {
        return None;
    }
    Some(format!(
        "this cgroup is that of {}, which does not run on {}: there it is one more cgroup",
        declared.components.join(", "),
        directory.node.name
    ))
}

/// The source address that routing selects: to loopback, the same; to the node's own addresses, the destination;
/// otherwise the node's first address of the family.
fn source_for(node: &Node, destination: IpAddr, is_local: bool) -> Option<IpAddr> {
    if is_local {
        return Some(destination);
    }
    node.addresses
        .iter()
        .copied()
        .find(|own| own.is_ipv4() == destination.is_ipv4())
}

fn ports(what: What) -> Ports {
    let (phase, port_kind, destination) = match what {
        What::Tcp(port) => (Phase::Opening, PortKind::Tcp, port),
        What::Udp(port) => (Phase::Datagram, PortKind::Udp, port),
        What::Icmp(kind) => (Phase::Opening, PortKind::Icmp, kind.into()),
        What::Icmp6(kind) => (Phase::Opening, PortKind::Icmp6, kind.into()),
        What::Protocol(number) => (Phase::Following, PortKind::Protocol, number.into()),
        What::Arp => (Phase::Following, PortKind::Arp, 0),
    };
    let source = match what {
        What::Protocol(number) => number.into(),
        _ => 0,
    };
    Ports {
        phase,
        kind: port_kind,
        source,
        destination,
    }
}

/// The number of the target that is addressed, and the port, type or protocol there.
pub(crate) fn meant(
    tables: &Simulator<'_>,
    to: Target,
    at_own_socket: bool,
) -> Option<(u16, (PortKind, u16))> {
    let Ports {
        kind: port_kind,
        destination,
        ..
    } = ports(to.what);
    let ip = Ip::from(to.address);
    let ip = if ip.is_unspecified() {
        ip.this_host()
    } else {
        ip
    };
    let settings = &tables.compiled().settings;
    let class = tables.class(port_kind, destination)?;
    let party = match at_own_socket {
        true => decide::received_at(tables, settings, &ip, port_kind, destination),
        false => tables.address_info(&ip).party,
    };
    let target = tables.target(settings, party, class)?;
    Some((target, (port_kind, destination)))
}

fn describe(
    policy: &Policy,
    compiled: &Compiled,
    verdict: Verdict,
    hook: Hook,
    sender: Party,
    endpoints: Vec<String>,
) -> Explanation {
    let ends: HashSet<(&str, &str)> = endpoints
        .iter()
        .filter_map(|end| end.split_once(':'))
        .collect();
    let leads_there = |path: &&Path| {
        let end = (path.to_component.as_str(), path.to_port.as_str());
        ends.contains(&end)
    };
    let paths_there = policy.paths.iter().filter(leads_there);
    let mut explanation = Explanation {
        verdict: Decision::Allowed.into(),
        path: None,
        reason: None,
        because: String::new(),
        document: String::new(),
        locks: Vec::new(),
        symptom: String::new(),
        denial: String::new(),
        advice: Vec::new(),
        note: None,
        node: compiled.node.clone(),
        hook: hook.into(),
        source_components: compiled
            .party_names
            .get(usize::from(sender))
            .cloned()
            .unwrap_or_default(),
        paths_there: paths_there
            .map(|path| PathThere {
                name: path.name.clone(),
                from: path.from.clone(),
            })
            .collect(),
        endpoints,
    };
    match verdict.outcome() {
        Outcome::Path(number, _) => {
            let path = policy
                .paths
                .iter()
                .find(|path| compiled.paths.get(&number) == Some(&path.name));
            explanation.path = compiled.paths.get(&number).cloned();
            explanation.because = path.map(|path| path.because.clone()).unwrap_or_default();
            explanation.document = path.map(|path| path.document.clone()).unwrap_or_default();
            if verdict.is_tls_path() {
                explanation.locks.push(Lock::Tls.into());
            }
            explanation.symptom = path.map(|path| path.symptom.clone()).unwrap_or_default();
        }
        Outcome::Other | Outcome::LaterFragment => {
            explanation.because = if hook == Hook::Bind {
                "nobody else's port".to_owned()
            } else {
                "other traffic: no guarded endpoint, and otherTraffic is Allow".to_owned()
            };
        }
        Outcome::Denied(Denial {
            reason, dry_run, ..
        }) => {
            explanation.verdict = Decision::of_denial(dry_run).into();
            explanation.reason = Some(reason.into());
            explanation.because = reason.sentence().to_owned();
        }
    }
    explanation
}

/// The names of all reasons, as cases may use them.
pub fn reason_names() -> Vec<&'static str> {
    Reason::ALL.into_iter().map(Reason::name).collect()
}

#[cfg(test)]
mod tests;
