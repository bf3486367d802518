//! Compiles a valid policy into the tables of one node: pure, deterministic, no I/O.
//!
//! `tables` is the result; `ground` computes what is the same on every node; `parties` interns the sets of components
//! that occur at addresses, cgroups and interfaces; `ports` reduces ports to classes; `verdicts` fills the dense
//! tables; `simulate` lets the decision run on them in userspace.

pub mod cgroups;
mod ground;
mod parties;
mod ports;
mod simulate;
mod tables;
mod verdicts;

#[cfg(test)]
mod tests;

pub use simulate::Simulator;
pub use tables::{CgroupRule, CompileError, Compiled, PathNumbers, PrefixEntry};

use crate::model::{Mode, Policy};
use ground::Ground;
use parties::Parties;
use ports::PortClasses;

/// Compiles a policy for any of its nodes. What is the same on all of them is computed once.
pub struct Compiler<'a> {
    ground: Ground<'a>,
    ports: PortClasses,
}

impl<'a> Compiler<'a> {
    /// Prepares a policy for compilation.
    ///
    /// # Errors
    ///
    /// It has more ports than the [limits](enforcer_common::limits) allow.
    pub fn new(policy: &'a Policy) -> Result<Self, CompileError> {
        Ok(Self {
            ground: Ground::of(policy),
            ports: PortClasses::of(policy)?,
        })
    }

    /// Compiles for a node. `mode` overrides the policy's.
    ///
    /// # Errors
    ///
    /// An unknown node, or a policy that exceeds the [limits](enforcer_common::limits).
    pub fn compile(
        &self,
        node: &str,
        mode: Option<Mode>,
        numbers: &mut PathNumbers,
    ) -> Result<Compiled, CompileError> {
        let policy = self.ground.policy;
        let index = policy.nodes.iter().position(|known| known.name == node);
        let index = index.ok_or_else(|| unknown(policy, node))?;
        // Path numbers are assigned only if the policy compiles: a failed one must leave no trace.
        let mut taken = numbers.clone();
        let paths = policy.paths.iter();
        let path_numbers: Vec<u16> = paths
            .map(|path| taken.number(&path.name))
            .collect::<Result<_, _>>()?;
        let here = self.ground.here(index);
        let parties = Parties::of(&self.ground, &here)?;
        let compiled = verdicts::fill(
            policy,
            &here,
            mode.unwrap_or(policy.mode),
            &parties,
            &self.ports,
            &path_numbers,
        )?;
        *numbers = taken;
        Ok(compiled)
    }

    /// For each node of the policy, by its index, the first one whose tables differ only in the addresses. Sizes,
    /// limits and warnings of that node hold for all that are alike.
    pub fn alike(&self) -> Vec<usize> {
        self.ground.alike()
    }
}

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
    if policy.node(node).is_none() {
        return Err(unknown(policy, node));
    }
    Compiler::new(policy)?.compile(node, mode, numbers)
}

fn unknown(policy: &Policy, node: &str) -> CompileError {
    CompileError::UnknownNode {
        name: node.to_owned(),
        known: policy.nodes.iter().map(|node| node.name.clone()).collect(),
    }
}
