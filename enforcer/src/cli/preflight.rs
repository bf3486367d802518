//! `enforcer preflight`.

use std::path::PathBuf;

use clap::Args;
use enforcer_policy::text;

use super::{AgentArguments, Failure, Format, NodeArguments, Outcome, print_json, print_result};
use crate::{
    agent::session,
    api::{Document, Preflight},
};

/// Say which open connections a policy would cut
///
/// Checks the connections that are open on this node, and the sockets that hold a port, against a policy as if it were
/// enforced. Changes nothing. Lists what would be cut, what could not be opened again, and which sockets would not get their
/// port again. The connection over which you run this command comes first.
///
/// As root, it also looks into the network namespaces behind the node's interfaces. It sees only what is open now; dry-run
/// reports the rest. A connection whose addresses are translated is judged by the addresses of its own socket, and whether
/// an open connection began with TLS cannot be determined.
///
/// Example: enforcer preflight -p policies/control-plane-stacked-etcd.yaml --require-clean
#[derive(Debug, Args)]
pub struct Arguments {
    /// A file or directory of the policy; the agent's policy if not given
    #[arg(short, long = "policy", value_name = "FILE|DIR")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    agent: AgentArguments,
    #[command(flatten)]
    node: NodeArguments,
    /// Exit with status 1 if anything would be cut or refused
    #[arg(long)]
    require_clean: bool,
}

pub fn run(arguments: Arguments, format: Format) -> Outcome {
    let Arguments {
        policy,
        agent,
        node,
        require_clean,
    } = arguments;
    let options = node.options(policy, agent);
    let found = crate::agent::preflight(&options, &session())?;
    match format {
        Format::Json => print_json(&Document::new(&found))?,
        Format::Text => print_findings(&found)?,
    }
    if require_clean && !found.is_clean() {
        return Err(Failure::No);
    }
    Ok(())
}

fn print_findings(found: &Preflight) -> Outcome {
    let Preflight {
        policy,
        node,
        connections,
        namespaces,
        unseen,
        ..
    } = found;
    print_result(&format!(
        "policy `{}` on {}: {connections} connections looked at, in this network namespace and {namespaces} behind it: {}",
        text::shown(policy),
        text::shown(node),
        found.summary()
    ))?;
    for line in found.lines(usize::MAX) {
        print_result(&format!("  {line}"))?;
    }
    for what in unseen {
        print_result(&format!("not looked at: {}", text::shown(what)))?;
    }
    if found.session().is_some() {
        print_result(
            "your own connection would be cut: allow it by a path before you enforce this policy",
        )?;
    }
    Ok(())
}
