//! A valid policy to the tables of one node: pure, deterministic, no I/O.
//!
//! `tables` is the result; `parties` interns the sets of components that occur at addresses,
//! cgroups and interfaces; `ports` reduces ports to classes; `verdicts` fills the dense tables;
//! `simulate` lets the decision run on them in userspace.

pub mod cgroups;
mod parties;
mod ports;
mod simulate;
mod tables;
mod verdicts;

pub use simulate::Simulator;
pub use tables::{CgroupRule, CompileError, Compiled, PathNumbers, PrefixEntry};

use crate::model::{Mode, Policy};
use parties::Parties;
use ports::PortClasses;

/// Compiles a policy for a node. `mode` overrides the policy's.
///
/// # Errors
///
/// An unknown node, or a policy that exceeds the [limits](enforcer_common::limits).
pub fn compile(
    policy: &Policy,
    node: &str,
    mode: Option<Mode>,
    numbers: &mut PathNumbers,
) -> Result<Compiled, CompileError> {
    let Some(node) = policy.node(node) else {
        return Err(CompileError::UnknownNode {
            name: node.to_owned(),
            known: policy.nodes.iter().map(|node| node.name.clone()).collect(),
        });
    };
    // Numbers are taken only by a policy that compiles: a failed one must leave no trace.
    let mut taken = numbers.clone();
    let mut path_numbers = Vec::with_capacity(policy.paths.len());
    for path in &policy.paths {
        path_numbers.push(taken.number(&path.name)?);
    }
    let parties = Parties::of(policy, node)?;
    let ports = PortClasses::of(policy)?;
    let compiled = verdicts::fill(
        policy,
        node,
        mode.unwrap_or(policy.mode),
        &parties,
        &ports,
        &path_numbers,
    )?;
    *numbers = taken;
    Ok(compiled)
}
