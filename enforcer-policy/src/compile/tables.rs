//! What the compiler puts out.

use std::{collections::BTreeMap, sync::Arc};

use enforcer_common::{
    addr::Ip,
    limits,
    tables::{Party, Place, Settings},
    verdict::Verdict,
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
}

impl PathNumbers {
    /// The number of a name, a new one if it has none yet.
    pub(super) fn number(&mut self, name: &str) -> Result<u16, CompileError> {
        let index = match self.names.iter().position(|known| known == name) {
            Some(index) => index,
            None => {
                self.names.push(name.to_owned());
                self.names.len() - 1
            }
        };
        if index >= limits::MAX_PATHS as usize {
            let max = limits::MAX_PATHS;
            return Err(CompileError::TooMany {
                what: "path names since the agent started",
                max,
            });
        }
        // MAX_PATHS fits.
        Ok(index as u16)
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
    #[error("node `{name}` is not in the inventory; it has {}", known.join(", "))]
    UnknownNode {
        /// What was asked for.
        name: String,
        /// The nodes there are.
        known: Vec<String>,
    },
    /// It does not fit the maps.
    #[error("the policy has more than {max} {what}: split it or use wider networks")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u32,
    },
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
