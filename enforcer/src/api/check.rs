//! What `enforcer check` says.

use enforcer_policy::{explain::CaseResult, render::Summary};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Kind, error::PolicyProblem};

/// What was understood of a policy, or what is wrong with it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// Whether the policy and its cases can be read and mean something.
    pub valid: bool,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<PolicyProblem>,
    /// What was understood; missing where it is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Summary>,
    /// What it comes to on each node.
    pub nodes: Vec<NodeReport>,
    /// How its cases came out.
    pub cases: Vec<CaseResult>,
}

impl Kind for CheckResult {
    const KIND: &'static str = "CheckResult";
}

/// What a policy comes to on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// Address prefixes in its tables.
    pub prefixes: usize,
    /// Distinct sets of components.
    pub parties: u32,
    /// Distinct classes of ports.
    pub port_classes: u32,
    /// Distinct sets of endpoints.
    pub targets: u32,
    /// What has no meaning there.
    pub notes: Vec<String>,
}
