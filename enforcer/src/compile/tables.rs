//! What the compiler puts out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use enforcer_common::{
    addr::Ip,
    limits,
    tables::{Party, Place, Settings},
    verdict::Verdict,
};

use super::{ground::Ground, parties::Parties, ports::PortClasses, verdicts};
use crate::policy::{
    error::list,
    model::{Mode, Policy},
};

/// An address prefix and who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixEntry {
    /// The network, IPv4 in its mapped form.
    pub network: Ip,
    /// Length of the prefix in bits, of 128.
    pub length: u32,
    /// Who is there.
    pub place: Place,
}

/// A declared cgroup and the party of its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRule {
    /// Below the node's cgroup root; segments may be globs.
    pub pattern: String,
    /// The party of its processes.
    pub party: Party,
    /// The components that declare it.
    pub components: Vec<String>,
}

/// Numbers of paths. A name keeps its number over policy swaps, so that its counters go on.
#[derive(Debug, Clone, Default)]
pub struct PathNumbers {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl PathNumbers {
    /// The number of a name, a new one if it has none yet.
    fn number(&mut self, name: &str) -> Result<u16, CompileError> {
        if let Some(known) = self.numbers.get(name) {
            return Ok(*known);
        }
        let number = self.names.len();
        if number >= limits::MAX_PATHS as usize {
            return Err(CompileError::TooMany {
                what: "path names since the agent started",
                max: limits::MAX_PATHS,
                help: "each keeps its number for its counters; start the agent again, or have fewer paths",
            });
        }
        // MAX_PATHS fits.
        let number = number as u16;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    /// The name with a number.
    pub fn name(&self, number: u16) -> Option<&str> {
        self.names.get(usize::from(number)).map(String::as_str)
    }

    /// All names, in the order of their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Why a valid policy can not become tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// No such node.
    #[error("node `{name}` is not in the inventory; it has {}", list(known))]
    UnknownNode {
        /// What was asked for.
        name: String,
        /// The nodes there are.
        known: Vec<String>,
    },
    /// It does not fit the maps.
    #[error("the policy has more than {max} {what}, which is the limit: {help}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u32,
        /// What to write instead.
        help: &'static str,
    },
}

impl CompileError {
    /// Too many sets of components, or what comes of their number. Nodes that are alike are one, so it is never these.
    pub(super) const fn sets(what: &'static str, max: u32) -> Self {
        Self::TooMany {
            what,
            max,
            help: "each component with addresses or cgroups of its own makes more of them, and each set of roles: declare \
                   one component for parties that may do the same, and `partOf` for what they have in common",
        }
    }
}

/// One generation of a policy, as one node must hold it.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The node that it is for.
    pub node: String,
    /// Mode, row lengths and parties by role. The loader sets the generation.
    pub settings: Settings,
    /// Who is where, in the order of networks and lengths. Shared, as there may be a hundred thousand.
    pub prefixes: Arc<[PrefixEntry]>,
    /// All lengths of these prefixes, longest first.
    pub prefix_lengths: Vec<u32>,
    /// Port classes, `CLASS_BLOCKS` blocks of `CLASSES_PER_BLOCK`, see
    /// [`enforcer_common::tables::class_block`].
    pub classes: Vec<u16>,
    /// Targets, by party at the address and port class, some with [`enforcer_common::tables::DECLARED_PORT`].
    pub targets: Vec<u32>,
    /// Verdicts for packets and for binds, by party of the sender and target.
    pub entries: Vec<[Verdict; 2]>,
    /// 1 where two parties may exchange anything, by both.
    pub related: Vec<u32>,
    /// The declared cgroups of this node.
    pub cgroups: Vec<CgroupRule>,
    /// Names of the components in each party, as senders.
    pub party_names: Vec<Vec<String>>,
    /// `component:port` of the endpoints that are meant by each target; empty for target 0.
    pub target_names: Vec<Vec<String>>,
    /// All endpoints of each target that a path could lead to, the wide ones included.
    pub target_endpoints: Vec<Vec<String>>,
    /// What a person should know who was denied from each target; empty where there is nothing.
    pub target_denials: Vec<String>,
    /// Path numbers in force and their names.
    pub paths: BTreeMap<u16, String>,
}

/// A policy on its way to the tables of any of its nodes: what is the same on all of them is found once.
pub struct Compiler<'a> {
    ground: Ground<'a>,
    ports: PortClasses,
}

impl<'a> Compiler<'a> {
    /// Takes a policy to be compiled.
    ///
    /// # Errors
    ///
    /// It has more ports than the [limits] allow.
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
    /// An unknown node, or a policy that exceeds the [limits].
    pub fn compile(
        &self,
        node: &str,
        mode: Option<Mode>,
        numbers: &mut PathNumbers,
    ) -> Result<Compiled, CompileError> {
        let policy = self.ground.policy;
        let index = policy.nodes.iter().position(|known| known.name == node);
        let index = index.ok_or_else(|| unknown(policy, node))?;
        // Numbers are taken only by a policy that compiles: a failed one must leave no trace.
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

    /// For each node of the policy, by its index, the first one that has the same tables but for which addresses lead to
    /// them: what holds for that node of sizes and limits, and of what concerns it, holds for all that are alike.
    pub fn alike(&self) -> Vec<usize> {
        self.ground.alike()
    }
}

/// Compiles a policy for a node. `mode` overrides the policy's.
///
/// # Errors
///
/// An unknown node, or a policy that exceeds the [limits].
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
