//! The compiler's output.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use enforcer_common::{
    addr::Ip,
    limits,
    tables::{AddressInfo, Party, Settings},
    verdict::Verdict,
};

use crate::error::list;

/// An address prefix and what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixEntry {
    /// The network, IPv4 in its mapped form.
    pub network: Ip,
    /// Length of the prefix in bits, of 128.
    pub length: u32,
    /// What is there.
    pub info: AddressInfo,
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

/// Numbers of paths. A path keeps its number over policy swaps, so that its counters continue.
#[derive(Debug, Clone, Default)]
pub struct PathNumbers {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl PathNumbers {
    /// As they were, by their names in the order of their numbers.
    pub fn from_names(names: impl IntoIterator<Item = String>) -> Self {
        let names: Vec<String> = names.into_iter().take(limits::MAX_PATHS as usize).collect();
        // MAX_PATHS fits.
        let numbered = names.iter().enumerate();
        let numbers = numbered
            .map(|(number, name)| (name.clone(), number as u16))
            .collect();
        Self { names, numbers }
    }

    /// The number of a path; a new one if it has none yet.
    pub(super) fn number(&mut self, name: &str) -> Result<u16, CompileError> {
        if let Some(known) = self.numbers.get(name) {
            return Ok(*known);
        }
        let number = self.names.len();
        if number >= limits::MAX_PATHS as usize {
            return Err(CompileError::TooMany {
                what: "path names since enforcement began",
                max: limits::MAX_PATHS,
                help: "each keeps its number for its counters; `enforcer detach` and start again, or have fewer paths",
            });
        }
        // The number is below MAX_PATHS.
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

/// Why a valid policy can not be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// No such node.
    #[error("node `{name}` is not in the inventory; it has {}", list(known))]
    UnknownNode {
        /// The name that was given.
        name: String,
        /// The nodes of the inventory.
        known: Vec<String>,
    },
    /// It does not fit the maps.
    #[error("the policy has more than {max} {what}, which is the limit: {help}")]
    TooMany {
        /// What exceeds it.
        what: &'static str,
        /// The limit.
        max: u32,
        /// What to write instead.
        help: &'static str,
    },
}

impl CompileError {
    /// Too many sets of components, or too many of what grows with them. The number of nodes is never the reason, as
    /// nodes that are alike count once.
    pub(super) const fn sets(what: &'static str, max: u32) -> Self {
        Self::TooMany {
            what,
            max,
            help: "each component with addresses or cgroups of its own makes more of them, and each set of roles: declare \
                   one component for parties that may do the same, and `partOf` for what they have in common",
        }
    }
}

/// One generation of a policy, as one node holds it.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The node that it is for.
    pub node: String,
    /// Mode, row lengths and parties by role. The loader sets the generation.
    pub settings: Settings,
    /// What is at which prefix, in the order of networks and lengths. Shared, as there may be a hundred thousand.
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
    /// 1 if two parties may exchange anything, by both.
    pub related: Vec<u32>,
    /// The declared cgroups of this node.
    pub cgroups: Vec<CgroupRule>,
    /// Names of the components in each party, as senders.
    pub party_names: Vec<Vec<String>>,
    /// `component:port` of the endpoints of each target; empty for target 0.
    pub target_names: Vec<Vec<String>>,
    /// All endpoints of each target that a path could lead to, including the wide ones.
    pub target_endpoints: Vec<Vec<String>>,
    /// What operators should know about a denial at each target; empty if there is nothing.
    pub target_denials: Vec<String>,
    /// Path numbers in force and their names.
    pub paths: BTreeMap<u16, String>,
}
