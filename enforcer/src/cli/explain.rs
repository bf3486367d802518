//! `enforcer explain`.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use super::{AgentArguments, Failure, Format, Outcome, policy_of, say, say_json};
use crate::{
    compile::{PathNumbers, compile},
    explain::{Explanation, explain},
    policy::{
        cases::{Attempt, Sender, Target, What, target},
        model::{Component, Node, Policy, PortMatch},
    },
};

/// Says what would happen to a connection, by which path or for which reason, with the very function
/// that the kernel programs run.
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
            return Err(anyhow!("say which node judges: --node {}", names.join("|")).into());
        }
    };
    let compiled = compile(&policy, &node, mode, &mut PathNumbers::default())
        .context("the policy can not be compiled")?;
    let here = policy.node(&node).context("the policy has no such node")?;
    let to = attempted(&policy, here, &arguments.to)?;
    let from = sender(&policy, here, &arguments.from, to.address)?;
    let attempt = if arguments.bind {
        Attempt::Bind(to)
    } else {
        Attempt::Send(to)
    };
    let explanation =
        explain(&policy, &compiled, &from, attempt).map_err(|error| anyhow!(error))?;
    match format {
        Format::Json => say_json(&explanation)?,
        Format::Text => tell(&explanation, &from.to_string(), &to.to_string())?,
    }
    if explanation.is_allowed() {
        Ok(())
    } else {
        Err(Failure::No)
    }
}

fn tell(explanation: &Explanation, from: &str, to: &str) -> Outcome {
    let what = match (&explanation.path, explanation.reason) {
        (Some(path), _) => format!("allowed by path {path}"),
        (None, Some(reason)) if explanation.verdict == "wouldDeny" => {
            format!("would be denied (dry-run): {reason}")
        }
        (None, Some(reason)) => format!("denied: {reason}"),
        (None, None) => "allowed".to_owned(),
    };
    say(&format!("{from} to {to}: {what}"))?;
    say(&format!("  because   {}", explanation.because))?;
    if !explanation.document.is_empty() {
        say(&format!("  document  {}", explanation.document))?;
    }
    let list = |items: &[String]| {
        if items.is_empty() {
            "none declared".to_owned()
        } else {
            items.join(", ")
        }
    };
    say(&format!("  endpoint  {}", list(&explanation.endpoints)))?;
    say(&format!("  sender    {}", list(&explanation.sender)))?;
    say(&format!(
        "  judged    on {} at {}",
        explanation.node, explanation.hook
    ))?;
    if !explanation.is_allowed() && !explanation.paths_there.is_empty() {
        say(&format!(
            "  paths     {}",
            explanation.paths_there.join("; ")
        ))?;
    }
    Ok(())
}

/// What `--to` means: an address with a port, or a declared endpoint by its name.
fn attempted(policy: &Policy, here: &Node, text: &str) -> anyhow::Result<Target> {
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
        let address = address_of(policy, component, here, port.loopback_only)
            .with_context(|| format!("component `{name}` has no address in this inventory"))?;
        let what = match port.matches.first() {
            Some(PortMatch::Tcp(first, _)) => What::Tcp(*first),
            Some(PortMatch::Udp(first, _)) => What::Udp(*first),
            Some(PortMatch::Icmp(first, _)) => What::Icmp(*first),
            Some(PortMatch::Icmp6(first, _)) => What::Icmp6(*first),
            Some(PortMatch::Protocol(number)) => What::Protocol(*number),
            Some(PortMatch::Arp) => What::Arp,
            Some(PortMatch::Any) | None => {
                bail!("`{text}` is every port: name one, as ADDRESS:PORT")
            }
        };
        return Ok(Target { address, what });
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

fn address_of(
    policy: &Policy,
    component: &Component,
    here: &Node,
    loopback: bool,
) -> Option<IpAddr> {
    if loopback && component.runs_on(here) {
        return Some(IpAddr::from([127, 0, 0, 1]));
    }
    let on_node = std::iter::once(here)
        .chain(&policy.nodes)
        .find(|node| component.runs_on(node))
        .and_then(|node| node.addresses.first().copied());
    let own = || component.addresses.first().map(|net| net.addr());
    let pod = || {
        let first = policy.pod_networks.first()?;
        component.in_pod_networks.then(|| first.hosts().next())?
    };
    on_node.or_else(own).or_else(pod)
}

/// What `--from` means.
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
        // A glob stands for some name; any that it matches will do.
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
