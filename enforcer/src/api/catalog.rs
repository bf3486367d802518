//! What `enforcer catalog` lists.

use enforcer_policy::vocabulary::{Lock, Word};
use schemars::JsonSchema;
use serde::Serialize;

use super::Kind;

/// The catalogue, or what of it a name means.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Catalog<'a> {
    /// Documented paths.
    pub paths: Vec<PathListing<'a>>,
    /// Profiles.
    pub profiles: Vec<ProfileListing<'a>>,
    /// Options of profiles.
    pub options: Vec<OptionListing<'a>>,
    /// Groups of paths, of which profiles are made.
    pub groups: Vec<GroupListing<'a>>,
    /// Components.
    pub components: Vec<ComponentListing<'a>>,
    /// Roles of nodes.
    pub roles: Vec<RoleListing<'a>>,
}

impl Kind for Catalog<'_> {
    const KIND: &'static str = "Catalog";
}

/// A documented path.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// Components that may use it.
    pub from: &'a [String],
    /// Where it leads: `component:port`.
    pub to: String,
    /// What that port matches, as in a policy.
    pub ports: Vec<String>,
    /// What it requires of a connection.
    pub locks: Vec<Word<Lock>>,
    /// Profiles that have it from the start.
    pub profiles: Vec<&'a str>,
    /// Options that turn it on.
    pub enabled_by: Vec<&'a str>,
    /// Options that turn it off.
    pub disabled_by: Vec<&'a str>,
    /// Why it is there.
    pub because: &'a str,
    /// The document that names it.
    pub document: &'a str,
    /// What people see without it.
    pub symptom: &'a str,
    /// The first Kubernetes version that has it; missing for all.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub since: &'a str,
    /// The first Kubernetes version that has it no more; missing for none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub until: &'a str,
}

/// A profile.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProfileListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// Groups of paths that it is made of.
    pub groups: &'a [String],
    /// Paths that it has from the start.
    pub paths: &'a [String],
    /// Options that it has.
    pub options: Vec<&'a str>,
    /// Components that must be declared.
    pub requires: &'a [String],
}

/// An option of profiles.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptionListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// Profiles that have it.
    pub profiles: Vec<&'a str>,
    /// Paths that it turns on.
    pub enable: &'a [String],
    /// Paths that it turns off.
    pub disable: &'a [String],
    /// Components whose ports it guards.
    pub guard: &'a [String],
    /// Components that are anywhere outside with it, until the Inventory says where.
    pub outside: &'a [String],
    /// Components that must be declared.
    pub requires: &'a [String],
}

/// A group of paths.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is for.
    pub description: &'a str,
    /// Its paths.
    pub paths: &'a [String],
}

/// A component.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub description: &'a str,
    /// Where it is before an Inventory says so, in words.
    pub r#where: String,
    /// Whether its ports are guarded under `otherTraffic: Allow`.
    pub guard: bool,
    /// No process counts as it before its cgroup is declared.
    pub needs_cgroup: bool,
    /// Names of its processes.
    pub programs: &'a [String],
    /// Its ports.
    pub ports: Vec<PortListing<'a>>,
}

/// A component's port.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it matches, as in a policy.
    pub matches: Vec<String>,
    /// Reached and bound on a loopback address only.
    pub loopback_only: bool,
    /// What a person should know who is denied there; missing where there is nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub denial: &'a str,
}

/// A role of nodes.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleListing<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it means.
    pub description: &'a str,
}
