//! What the compiler puts out.

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

/// An address prefix and who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixEntry {
    /// The network, IPv4 in its mapped form.
    pub network: Ip,
    /// Length of the prefix in bits, of 128.
    pub length: u32,
    /// Who is there.
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

/// Numbers of paths. A name keeps its number over policy swaps, so that its counters go on.
#[derive(Debug, Clone, Default)]
pub struct PathNumbers {
    names: Vec<String>,
    numbers: HashMap<String, u16>,
}

impl PathNumbers {
    /// The number of a name, a new one if it has none yet.
    pub(super) fn number(&mut self, name: &str) -> Result<u16, CompileError> {
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
