//! `enforcer explain`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use enforcer_policy::{
    cases::{At, Attempt, Sender, Target, What, target},
    compile::{Compiled, PathNumbers, compile},
    error::some,
    explain::{Explanation, explain},
    model::{Component, Node, Policy, Port, PortMatch},
    text,
    vocabulary::Decision,
};

use super::{AgentArguments, Failure, Format, Outcome, policy_of, print_json, print_result};
use crate::{
    agent::own_addresses,
    api::{Document, ErrorCode},
};

/// Say what would happen to a connection, and why
///
/// Says what would happen to a connection, by which path or for which reason, using the same
/// function that the kernel programs run.
///
/// Without -p it asks about the policy that the agent has in force. Exit status 1 means denied.
///
/// Examples:
///   enforcer explain -p lab.yaml --node cp1 --from pod:10.244.1.5 --to 10.0.0.11:2379
///   enforcer explain --from cgroup:/kubepods.slice/x --to etcd:client
///   enforcer explain --from cgroup:/system.slice/x --to 0.0.0.0:8080 --bind
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Arguments {
    /// A file or directory of the policy; the agent's policy if not given
    #[arg(short, long = "policy", value_name = "FILE|DIR")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    agent: AgentArguments,
    /// The node that judges; needed with -p unless the inventory has one only
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Who: `pod:IP` (through a pod's interface), `address:IP` or IP (through an uplink),
    /// `cgroup:/PATH` or /PATH (a process of the node), or a component's name
    #[arg(long, value_name = "WHO")]
    from: String,
    /// To what: ADDRESS:PORT[/tcp|/udp], `ADDRESS echo`, or COMPONENT:PORTNAME
    #[arg(long, value_name = "WHAT")]
    to: String,
    /// It binds that address and port instead of sending there
    #[arg(long)]
    bind: bool,
    /// Whether this node has the destination itself, if the policy does not say: a service address,
    /// or one that nodes share. Not needed on the node itself, whose addresses are looked up
    #[arg(long, value_name = "WHERE", value_enum)]
    at: Option<Where>,
}

/// Which machine has an address.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Where {
    /// The node that judges
    ThisNode,
    /// Another machine, or nobody
    Elsewhere,
}

/// What is known about the machine that has the destination.
fn location(arguments: &Arguments, to: Target) -> Option<At> {
    match arguments.at {
        Some(Where::ThisNode) => Some(At::ThisNode),
        Some(Where::Elsewhere) => Some(At::Elsewhere),
        // A question about the agent's policy is about the agent's node.
        None if arguments.policy.is_empty() && arguments.node.is_none() => {
            let here = own_addresses().contains(&to.address);
            Some(if here { At::ThisNode } else { At::Elsewhere })
        }
        None => None,
    }
}

pub fn run(arguments: &Arguments, format: Format) -> Outcome {
    let (policy, agents_node, mode) = policy_of(&arguments.policy, &arguments.agent)?;
    let node = match (
        arguments.node.clone().or(agents_node),
        policy.nodes.as_slice(),
    ) {
        (Some(node), _) => node,
        (None, [only]) => only.name.clone(),
        (None, nodes) => {
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            let message = format!(
                "say which node judges: --node NAME, one of {}",
                some(&names)
            );
            return Err(Failure::cannot(ErrorCode::UnknownNode, message));
        }
    };
    let compiled = compile(&policy, &node, mode, &mut PathNumbers::default()).map_err(|error| {
        let message = format!("the policy cannot be compiled: {error}");
        Failure::cannot(ErrorCode::from(&error), message)
    })?;
    let (explanation, from, to) = answer(&policy, &compiled, arguments).map_err(|error| {
        let message = text::chain(error.as_ref());
        Failure::cannot(ErrorCode::BadQuestion, message)
    })?;
    match format {
        Format::Json => print_json(&Document::new(&explanation))?,
        Format::Text => print_explanation(&explanation, &from.to_string(), &to.to_string())?,
    }
    if explanation.is_allowed() {
        Ok(())
    } else {
        Err(Failure::No)
    }
}

/// The question and its answer.
fn answer(
    policy: &Policy,
    compiled: &Compiled,
    arguments: &Arguments,
) -> anyhow::Result<(Explanation, Sender, Target)> {
    let here = policy.node(&compiled.node);
    let here = here.context("the policy has no such node")?;
    let to = attempted(
        policy,
        here,
        &arguments.to,
        written_address(&arguments.from),
    )?;
    let from = sender(policy, here, &arguments.from, to.address)?;
    let attempt = if arguments.bind {
        Attempt::Bind(to)
    } else {
        Attempt::Send(to)
    };
    let explanation = explain(policy, compiled, &from, attempt, location(arguments, to))
        .map_err(|error| anyhow!(error))?;
    Ok((explanation, from, to))
}

fn print_explanation(explanation: &Explanation, from: &str, to: &str) -> Outcome {
    let verdict = &explanation.verdict;
    let what = match (&explanation.path, &explanation.reason) {
        (Some(path), _) => format!("{verdict} by path {path}"),
        (None, Some(reason)) if *verdict == Decision::WouldDeny => {
            format!("{verdict} (dry-run): {reason}")
        }
        (None, Some(reason)) => format!("{verdict}: {reason}"),
        (None, None) => verdict.to_string(),
    };
    print_result(&format!("{from} to {to}: {what}"))?;
    print_result(&format!("  because   {}", explanation.because))?;
    for lock in &explanation.locks {
        print_result(&format!("  lock      {lock}: {}", lock.meaning()))?;
    }
    if !explanation.document.is_empty() {
        print_result(&format!("  document  {}", explanation.document))?;
    }
    if !explanation.symptom.is_empty() {
        print_result(&format!("  without   {}", explanation.symptom))?;
    }
    let list = |items: &[String]| {
        if items.is_empty() {
            "none declared".to_owned()
        } else {
            items.join(", ")
        }
    };
    print_result(&format!("  endpoint  {}", list(&explanation.endpoints)))?;
    print_result(&format!(
        "  sender    {}",
        list(&explanation.source_components)
    ))?;
    print_result(&format!(
        "  judged    on {} at {}",
        explanation.node, explanation.hook
    ))?;
    if !explanation.is_allowed() && !explanation.paths_there.is_empty() {
        let paths = explanation.paths_there.iter();
        let paths = paths.map(|path| format!("{} from {}", path.name, path.from.join(", ")));
        let paths: Vec<String> = paths.collect();
        print_result(&format!("  paths     {}", paths.join("; ")))?;
    }
    if !explanation.denial.is_empty() {
        print_result(&format!("  there     {}", explanation.denial))?;
    }
    for advice in &explanation.advice {
        print_result(&format!("  hint      {}", advice.sentence()))?;
    }
    if let Some(note) = &explanation.note {
        print_result(&format!("  note      {note}"))?;
    }
    Ok(())
}

/// The address in `--from`, if there is one. If `--to` is a name, its address must be of the same
/// family.
fn written_address(from: &str) -> Option<IpAddr> {
    let address = from
        .strip_prefix("pod:")
        .or_else(|| from.strip_prefix("address:"))
        .unwrap_or(from);
    address.parse().ok()
}

/// What `--to` refers to: an address with a port, or a declared endpoint by its name.
fn attempted(
    policy: &Policy,
    here: &Node,
    text: &str,
    like: Option<IpAddr>,
) -> anyhow::Result<Target> {
    if let Some((name, port)) = text.split_once(':')
        && let Some(component) = policy.component(name)
    {
        let port = component.port(port).with_context(|| {
            let known: Vec<_> = component
                .ports
                .iter()
                .map(|port| port.name.as_str())
                .collect();
            format!(
                "component `{name}` has no port `{port}`; it has {}",
                known.join(", ")
            )
        })?;
        return endpoint(policy, here, component, port, like);
    }
    // `10.0.0.11:2379` is TCP unless it says otherwise.
    let has_kind = text.contains('/') || text.contains(' ');
    let full = if has_kind {
        text.to_owned()
    } else {
        format!("{text}/tcp")
    };
    target(&full).map_err(|problem| {
        let help = problem
            .help
            .map(|help| format!("; {help}"))
            .unwrap_or_default();
        anyhow!("--to {text}: {}{help}", problem.message)
    })
}

/// The address of an endpoint: one of its component, or else a service address.
fn endpoint(
    policy: &Policy,
    here: &Node,
    component: &Component,
    port: &Port,
    like: Option<IpAddr>,
) -> anyhow::Result<Target> {
    let name = format!("{}:{}", component.name, port.name);
    let fits = |address: &IpAddr| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4());
    let what = |first: Option<&PortMatch>| match first {
        Some(PortMatch::Tcp(first, _)) => Ok(What::Tcp(*first)),
        Some(PortMatch::Udp(first, _)) => Ok(What::Udp(*first)),
        Some(PortMatch::Icmp(first, _)) => Ok(What::Icmp(*first)),
        Some(PortMatch::Icmp6(first, _)) => Ok(What::Icmp6(*first)),
        Some(PortMatch::Protocol(number)) => Ok(What::Protocol(*number)),
        Some(PortMatch::Arp) => Ok(What::Arp),
        Some(PortMatch::Any) | None => {
            bail!("`{name}` is every port: name one, as ADDRESS:PORT")
        }
    };
    if let Some(address) = addresses_of(policy, component, here, port.loopback_only).find(fits) {
        let what = what(port.matches.first())?;
        return Ok(Target { address, what });
    }
    let service = policy.services.iter().find(|service| {
        service.component == component.name && service.port == port.name && fits(&service.address)
    });
    let service =
        service.with_context(|| format!("`{name}` has no such address in this inventory"))?;
    Ok(Target {
        address: service.address,
        what: what(Some(&service.at))?,
    })
}

/// A component's addresses, nearest first.
fn addresses_of<'a>(
    policy: &'a Policy,
    component: &'a Component,
    here: &'a Node,
    loopback_only: bool,
) -> impl Iterator<Item = IpAddr> + 'a {
    let over_loopback = loopback_only && component.runs_on(here);
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let on_nodes = std::iter::once(here)
        .chain(&policy.nodes)
        .filter(|node| component.runs_on(node))
        .flat_map(|node| node.addresses.iter().copied());
    let own = component.addresses.iter().map(|net| net.addr());
    let pods = policy.pod_networks.iter();
    let pods = pods.filter_map(|net| component.in_pod_networks.then(|| net.hosts().next())?);
    loopback
        .into_iter()
        .filter(move |_| over_loopback)
        .chain(on_nodes)
        .chain(own)
        .chain(pods)
}

/// What `--from` refers to.
fn sender(policy: &Policy, here: &Node, text: &str, to: IpAddr) -> anyhow::Result<Sender> {
    let address = |text: &str| {
        text.parse::<IpAddr>()
            .with_context(|| format!("--from: `{text}` is no IP address"))
    };
    if let Some(text) = text.strip_prefix("pod:") {
        return Ok(Sender::Pod(address(text)?));
    }
    if let Some(text) = text.strip_prefix("address:") {
        return Ok(Sender::Remote(address(text)?));
    }
    let process = |cgroup: &str| Sender::Process {
        cgroup: cgroup.to_owned(),
        address: None,
    };
    if let Some(path) = text.strip_prefix("cgroup:") {
        if !path.starts_with('/') {
            bail!("--from: the cgroup `{path}` does not begin with `/`; write cgroup:/{path}");
        }
        return Ok(process(path));
    }
    if text.starts_with('/') {
        return Ok(process(text));
    }
    if let Ok(address) = text.parse() {
        return Ok(Sender::Remote(address));
    }
    let component = policy.component(text).with_context(|| {
        let known: Vec<_> = policy.components.iter().map(|c| c.name.as_str()).collect();
        format!(
            "--from: `{text}` is no address, cgroup or component; components are {}",
            known.join(", ")
        )
    })?;
    let is_here = component.runs_on.is_empty() || component.runs_on(here);
    if is_here && let Some(cgroup) = component.cgroups.first() {
        // A glob stands for some name; any name that it matches will do.
        return Ok(process(&cgroup.replace(['*', '?'], "x")));
    }
    if component.runs_on(here) {
        return Ok(process("/"));
    }
    let remote = policy
        .nodes
        .iter()
        .filter(|node| component.runs_on(node))
        .flat_map(|node| node.addresses.iter().copied())
        .chain(component.addresses.iter().map(|net| net.addr()))
        .find(|address| address.is_ipv4() == to.is_ipv4());
    let remote = remote
        .with_context(|| format!("component `{text}` has neither a cgroup here nor an address"))?;
    Ok(Sender::Remote(remote))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enforcer_policy::{SourceText, from_texts};

    const POLICY: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11, fd00::11], roles: [control-plane, etcd] }
    w1: { addresses: [10.0.0.21, fd00::21], roles: [worker] }
  podNetworks: [10.244.0.0/16, 'fd01::/56']
  services: { 'dns:dns': ['10.96.0.10:53', '[fd10::a]:53'] }
  components:
    kubelet: { cgroups: [/system.slice/kubelet.service] }
    pods: { cgroups: ['/kubepods*'] }
    admin: { addresses: [192.0.2.0/24] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: test }
spec: { profile: control-plane-stacked-etcd, mode: Enforce, otherTraffic: Allow }
";

    fn policy() -> Policy {
        let text = POLICY.to_owned();
        let name = "p.yaml".to_owned();
        from_texts(&[SourceText { name, text }]).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// `--from` and `--to` on cp1, and what they refer to, or the error.
    #[test]
    fn from_and_to_are_understood() {
        let policy = policy();
        let here = policy.node("cp1").unwrap();
        let read = |from: &str, to: &str| -> anyhow::Result<String> {
            let to = attempted(&policy, here, to, written_address(from))?;
            let from = sender(&policy, here, from, to.address)?;
            Ok(format!("{from} -> {to}"))
        };
        for (from, to, expected) in [
            (
                "pod:10.244.1.5",
                "10.0.0.11:2379",
                "pod 10.244.1.5 -> 10.0.0.11:2379/tcp",
            ),
            (
                "address:10.0.0.21",
                "10.0.0.11:53/udp",
                "address 10.0.0.21 -> 10.0.0.11:53/udp",
            ),
            (
                "fd00::21",
                "[fd00::11]:2379",
                "address fd00::21 -> [fd00::11]:2379/tcp",
            ),
            (
                "/a.slice",
                "10.0.0.11 echo",
                "cgroup /a.slice -> 10.0.0.11 echo",
            ),
            (
                "cgroup:/a.slice",
                "etcd:client",
                "cgroup /a.slice -> 10.0.0.11:2379/tcp",
            ),
            // A name refers to an address of the sender's family.
            (
                "pod:fd01::5",
                "etcd:client",
                "pod fd01::5 -> [fd00::11]:2379/tcp",
            ),
            (
                "10.0.0.21",
                "etcd:client",
                "address 10.0.0.21 -> 10.0.0.11:2379/tcp",
            ),
            // An endpoint on loopback only, and one at a service address only.
            (
                "kubelet",
                "scheduler:secure",
                "cgroup /system.slice/kubelet.service -> 127.0.0.1:10259/tcp",
            ),
            ("pod:fd01::5", "dns:dns", "pod fd01::5 -> [fd10::a]:53/tcp"),
            // Components: in a cgroup here, undeclared here, elsewhere.
            (
                "pods",
                "etcd:client",
                "cgroup /kubepodsx -> 10.0.0.11:2379/tcp",
            ),
            ("etcd", "etcd:client", "cgroup / -> 10.0.0.11:2379/tcp"),
            (
                "admin",
                "10.0.0.11:22",
                "address 192.0.2.0 -> 10.0.0.11:22/tcp",
            ),
        ] {
            let found = read(from, to).unwrap_or_else(|error| panic!("{from} {to}: {error:#}"));
            // `53/udp` comes first in the catalogue; either one belongs to the service.
            assert_eq!(
                found.replace("[fd10::a]:53/udp", "[fd10::a]:53/tcp"),
                expected
            );
        }
        for (from, to, expected) in [
            ("cgroup:a.slice", "etcd:client", "write cgroup:/a.slice"),
            (
                "nobody",
                "etcd:client",
                "components are world, outside, node",
            ),
            ("pod:10.244.1", "etcd:client", "is no IP address"),
            ("pod:10.244.1.5", "etcd:cleint", "it has client, peer"),
            ("pod:10.244.1.5", "pods:any", "is every port"),
            ("pod:10.244.1.5", "10.0.0.11", "write `10.0.0.11:2379/tcp`"),
            ("fd00::21", "admin:x", "has no port `x`"),
        ] {
            let error = read(from, to).expect_err(&format!("{from} {to}"));
            assert!(
                format!("{error:#}").contains(expected),
                "{from} {to}: {error:#}"
            );
        }
    }
}
