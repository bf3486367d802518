//! What a verdict would be, and why: the kernel's own decision, run on the compiled policy.

use std::net::IpAddr;

use enforcer_common::{
    addr::Ip,
    decide,
    packet::{Packet, Phase, Ports, Space},
    record::Hook,
    tables::{Party, Role, Tables as _},
    verdict::{Denial, Outcome, Reason, Verdict},
};
use serde::Serialize;

use crate::{
    advice::{Advice, Denied, advise},
    compile::{Compiled, Simulator},
    policy::{
        cases::{Attempt, Case, Expect, PathCases, Sender, Target, What},
        catalogue::Catalogue,
        model::{Node, Path, Policy},
    },
};

/// What happens to an attempt, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `allowed`, `denied`, or `wouldDeny` in dry-run.
    pub verdict: &'static str,
    /// The path that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The reason that denies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The same in words: why the path is there, or what the reason means.
    pub because: String,
    /// The document that names the path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub document: String,
    /// What the connection has to do besides: the locks of the path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// What people see where that path is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub symptom: String,
    /// The declared endpoints that are meant, as `component:port`.
    pub endpoints: Vec<String>,
    /// The node whose tables say so.
    pub node: String,
    /// The hook that judges it first.
    pub hook: &'static str,
    /// What the sender counts as.
    pub sender: Vec<String>,
    /// Paths that lead to the same endpoints, as `NAME from COMPONENTS`.
    pub paths_there: Vec<String>,
    /// What a person should know who is denied there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub denial: String,
    /// Documented paths that would allow it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Advice>,
    /// Where the question is another one than it seems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

impl Explanation {
    /// Whether it gets through when the policy is enforced.
    pub fn is_allowed(&self) -> bool {
        self.reason.is_none()
    }
}

/// Says what happens when a sender attempts something, seen from the node that the tables are for.
///
/// # Errors
///
/// The question makes no sense there: a sentence that says why.
pub fn explain(
    policy: &Policy,
    compiled: &Compiled,
    from: &Sender,
    attempt: Attempt,
) -> Result<Explanation, String> {
    let node = policy
        .node(&compiled.node)
        .ok_or("the policy has no such node")?;
    let tables = Simulator::new(compiled);
    let (verdict, hook, sender) = match attempt {
        Attempt::Bind(at) => bind(&tables, from, at)?,
        Attempt::Send(to) => send(&tables, node, from, to)?,
    };
    let target = match attempt {
        Attempt::Send(target) | Attempt::Bind(target) => target,
    };
    let meant = meant(&tables, target);
    let name = |names: &[Vec<String>]| {
        let found = meant.and_then(|(target, _)| names.get(usize::from(target)));
        found.cloned().unwrap_or_default()
    };
    let endpoints = name(&compiled.target_names);
    let mut explanation = describe(policy, compiled, verdict, hook, sender, endpoints);
    if let Some((target, number)) = meant
        && !explanation.is_allowed()
        && hook != Hook::Bind
    {
        let denial = compiled.target_denials.get(usize::from(target));
        explanation.denial = denial.cloned().unwrap_or_default();
        explanation.advice = advise(
            policy,
            Catalogue::builtin(),
            &Denied {
                senders: &explanation.sender,
                endpoints: &name(&compiled.target_endpoints),
                number,
            },
        );
    }
    explanation.note = note(policy, node, from, target.address);
    Ok(explanation)
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// Whether the policy says what the case expects.
    pub passed: bool,
    /// What it expects.
    pub expected: String,
    /// What the policy says.
    pub found: String,
}

/// Runs a file's cases through the decision. `compiled` is for the file's node.
pub fn run_cases(policy: &Policy, compiled: &Compiled, cases: &PathCases) -> Vec<CaseResult> {
    cases
        .cases
        .iter()
        .map(|case| run_case(policy, compiled, case))
        .collect()
}

fn run_case(policy: &Policy, compiled: &Compiled, case: &Case) -> CaseResult {
    let explained = explain(policy, compiled, &case.from, case.attempt);
    let passed = explained.as_ref().is_ok_and(|found| match &case.expect {
        Expect::Path(path) => found.path.as_ref() == Some(&path.value),
        Expect::OtherTraffic => found.is_allowed() && found.path.is_none(),
        Expect::Denied { reason, endpoint } => {
            let named = endpoint.as_ref().is_none_or(|endpoint| {
                let (component, port) = &endpoint.value;
                found.endpoints.contains(&format!("{component}:{port}"))
            });
            found.reason == Some(reason.value.as_str()) && named
        }
    });
    let found = match explained {
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
        Err(error) => error,
    };
    CaseResult {
        name: case.name.value.clone(),
        passed,
        expected: case.expect.to_string(),
        found,
    }
}

type Judged = (Verdict, Hook, Party);

fn bind(tables: &Simulator<'_>, from: &Sender, at: Target) -> Result<Judged, String> {
    let Sender::Process { cgroup, .. } = from else {
        return Err("only a process binds: name its cgroup".to_owned());
    };
    let (space, number) = match at.what {
        What::Tcp(port) => (Space::Tcp, port),
        What::Udp(port) => (Space::Udp, port),
        _ => return Err("only TCP and UDP ports are bound".to_owned()),
    };
    let party = tables.party_of_cgroup(cgroup);
    let verdict = decide::binding(tables, party, &Ip::from(at.address), space, number);
    Ok((verdict, Hook::Bind, party))
}

fn send(tables: &Simulator<'_>, node: &Node, from: &Sender, to: Target) -> Result<Judged, String> {
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
    match from {
        Sender::Pod(source) => {
            // It is asked about the pod that has this address, not about one that forges it.
            let mut sender = settings.pods as Party;
            let verdict = decide::arrived_on_wire(tables, Role::Pod, &packet(*source)?, |known| {
                sender = known;
                true
            });
            Ok((verdict, Hook::TcIngress, sender))
        }
        Sender::Remote(source) => {
            let packet = packet(*source)?;
            let verdict = decide::arrived_on_wire(tables, Role::Uplink, &packet, |_| false);
            Ok((verdict, Hook::TcIngress, tables.place(&packet.src).party))
        }
        Sender::Process {
            cgroup,
            address: own,
        } => {
            let local = address.is_loopback() || node.addresses.contains(&address);
            let source = own.or_else(|| source_for(node, address)).ok_or_else(|| {
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
            let verdict = decide::sent_by_process(tables, party, local, &packet);
            Ok((verdict, Hook::CgroupEgress, party))
        }
    }
}

/// Enforced, a denial is an error of the call. What the call lets pass, and all of dry-run, is told
/// by the packets.
fn refused_at_once(tables: &Simulator<'_>, by: Party, packet: &Packet) -> Option<Verdict> {
    let Ports {
        space, destination, ..
    } = packet.ports;
    let verdict = decide::connecting(tables, by, &packet.dst, space, destination);
    let refused = match space {
        Space::Tcp => verdict.is_denied(),
        Space::Udp => verdict.is_guarded_denial(),
        _ => false,
    };
    (refused && !verdict.passes()).then_some(verdict)
}

/// A sentence where a packet from there to there is not what the node would see every day.
fn note(policy: &Policy, node: &Node, from: &Sender, to: IpAddr) -> Option<&'static str> {
    let comes_by = || {
        let everywhere = match to {
            IpAddr::V4(to) => to.is_multicast() || to.is_broadcast(),
            IpAddr::V6(to) => to.is_multicast(),
        };
        everywhere
            || to.is_unspecified()
            || to.is_loopback()
            || node.addresses.contains(&to)
            || policy.pod_networks.iter().any(|net| net.contains(&to))
            || policy.services.iter().any(|service| service.address == to)
    };
    match from {
        Sender::Pod(_) if to.is_loopback() => Some(
            "a pod's own loopback never leaves the pod; this is a packet that it puts onto its interface",
        ),
        Sender::Remote(_) if !comes_by() => Some(
            "this node sees such a packet only if it forwards it: the destination is neither its own nor a pod's",
        ),
        _ => None,
    }
}

/// The source address that routing would give: to loopback, the same; to its own addresses, the
/// destination; otherwise the node's first of the family.
fn source_for(node: &Node, destination: IpAddr) -> Option<IpAddr> {
    if destination.is_loopback() || node.addresses.contains(&destination) {
        return Some(destination);
    }
    node.addresses
        .iter()
        .copied()
        .find(|own| own.is_ipv4() == destination.is_ipv4())
}

fn ports(what: What) -> Ports {
    let (phase, space, destination) = match what {
        What::Tcp(port) => (Phase::Opening, Space::Tcp, port),
        What::Udp(port) => (Phase::Datagram, Space::Udp, port),
        What::Icmp(kind) => (Phase::Opening, Space::Icmp, kind.into()),
        What::Icmp6(kind) => (Phase::Opening, Space::Icmp6, kind.into()),
        What::Protocol(number) => (Phase::Following, Space::Protocol, number.into()),
        What::Arp => (Phase::Following, Space::Arp, 0),
    };
    let source = match what {
        What::Protocol(number) => number.into(),
        _ => 0,
    };
    Ports {
        phase,
        space,
        source,
        destination,
    }
}

/// The number of the target that is meant, and the port, type or protocol there.
fn meant(tables: &Simulator<'_>, to: Target) -> Option<(u16, (Space, u16))> {
    let Ports {
        space, destination, ..
    } = ports(to.what);
    let ip = Ip::from(to.address);
    let ip = if ip.is_unspecified() {
        ip.this_host()
    } else {
        ip
    };
    let settings = &tables.compiled().settings;
    let class = tables.class(space, destination)?;
    let target = tables.target(settings, tables.place(&ip).party, class)?;
    Some((target, (space, destination)))
}

fn describe(
    policy: &Policy,
    compiled: &Compiled,
    verdict: Verdict,
    hook: Hook,
    sender: Party,
    endpoints: Vec<String>,
) -> Explanation {
    let leads_there =
        |path: &&Path| endpoints.contains(&format!("{}:{}", path.to_component, path.to_port));
    let paths_there = policy.paths.iter().filter(leads_there);
    let mut explanation = Explanation {
        verdict: "allowed",
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
        hook: hook.name(),
        sender: compiled
            .party_names
            .get(usize::from(sender))
            .cloned()
            .unwrap_or_default(),
        paths_there: paths_there
            .map(|path| format!("{} from {}", path.name, path.from.join(", ")))
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
                let lock = "TLS: it must begin with a ClientHello, or it is cut off (NotTls)";
                explanation.locks.push(lock.to_owned());
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
            explanation.verdict = if dry_run { "wouldDeny" } else { "denied" };
            explanation.reason = Some(reason.name());
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
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        compile::{PathNumbers, compile},
        policy::{self, cases},
    };

    /// There is a policy for each profile, and it says what the cases beside it expect; those of
    /// `NAME.drop.cases.yaml` with all other traffic dropped.
    #[test]
    fn shipped_policies_hold_their_cases() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let names = policy::catalogue::Catalogue::builtin().profiles().iter();
        for (name, drop) in names.flat_map(|p| [(&p.name, false), (&p.name, true)]) {
            let mut texts =
                policy::read_sources(&[directory.join(format!("{name}.yaml"))]).unwrap();
            let mut cases = "cases";
            if drop {
                let text = &mut texts[0].text;
                assert!(text.contains("otherTraffic: Allow"), "{name}");
                *text = text.replace("otherTraffic: Allow", "otherTraffic: Drop");
                cases = "drop.cases";
            }
            let policy = policy::from_texts(&texts).unwrap();
            let files = cases::load(&[directory.join(format!("{name}.{cases}.yaml"))]).unwrap();
            for file in files {
                file.check(&policy, &reason_names()).unwrap();
                let node = &file.node.value;
                let compiled = compile(&policy, node, None, &mut PathNumbers::default()).unwrap();
                let results = run_cases(&policy, &compiled, &file);
                assert!(results.len() >= 8, "{name} has few cases");
                for result in results {
                    assert!(result.passed, "{result:?}");
                }
            }
        }
    }

    /// A case that expects something else fails: the test above can fail.
    #[test]
    fn a_wrong_expectation_is_found() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let policy = policy::load(&[directory.join("control-plane-stacked-etcd.yaml")]).unwrap();
        let text = "apiVersion: enforcer.dev/v1alpha1\nkind: PathCases\nmetadata: { name: x }\nspec:\n  \
                    node: cp1\n  cases:\n    - name: wrong\n      from: { pod: 10.244.1.5 }\n      \
                    to: 10.0.0.11:2379/tcp\n      expect: { allowed: pod-to-apiserver }\n";
        let source = policy::SourceText {
            name: "x".to_owned(),
            text: text.to_owned(),
        };
        let files = cases::from_texts(&[source]).unwrap();
        let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
        let results = run_cases(&policy, &compiled, &files[0]);
        assert!(!results[0].passed, "{results:?}");
    }
}
