//! Writes components and paths as documents of a valid policy.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{Component, Locality, Mode, Path, Port};
use crate::read::source::{API_VERSION, TLS};

/// A policy of these components and paths on an example cluster: an `Inventory` and a `PathPolicy` that a user can take
/// parts from. The addresses are those reserved for documentation (RFC 5737, RFC 3849).
///
/// # Errors
///
/// Those of the YAML library.
pub fn policy_yaml<'a>(
    name: &str,
    components: impl IntoIterator<Item = &'a Component>,
    paths: impl IntoIterator<Item = &'a Path>,
) -> Result<String, serde_saphyr::ser::Error> {
    let inventory = Document {
        api_version: API_VERSION,
        kind: "Inventory",
        metadata: Metadata { name: "example" },
        spec: Inventory {
            nodes: example_nodes(),
            pod_networks: vec!["10.244.0.0/16", "fd01::/56"],
            service_networks: vec!["10.96.0.0/16", "fd10::/112"],
            components: components
                .into_iter()
                .map(|component| (component.name.as_str(), WrittenComponent::of(component)))
                .collect(),
        },
    };
    let policy = Document {
        api_version: API_VERSION,
        kind: "PathPolicy",
        metadata: Metadata { name },
        spec: PathPolicy {
            mode: Mode::DryRun.to_string(),
            other_traffic: "Allow",
            paths: paths.into_iter().map(WrittenPath::of).collect(),
        },
    };
    Ok(format!(
        "{}---\n{}",
        serde_saphyr::to_string(&inventory)?,
        serde_saphyr::to_string(&policy)?
    ))
}

/// A node of each role.
fn example_nodes() -> BTreeMap<&'static str, WrittenNode> {
    let node = |last: &str, roles: &[&'static str]| WrittenNode {
        addresses: vec![format!("192.0.2.{last}"), format!("2001:db8::{last}")],
        roles: roles.to_vec(),
        uplinks: ["eth0"],
        pod_interfaces: ["cali*"],
    };
    BTreeMap::from([
        ("cp1", node("11", &["control-plane", "etcd"])),
        ("w1", node("21", &["worker"])),
    ])
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: S,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Inventory<'a> {
    nodes: BTreeMap<&'static str, WrittenNode>,
    pod_networks: Vec<&'static str>,
    service_networks: Vec<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    components: BTreeMap<&'a str, WrittenComponent<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenNode {
    addresses: Vec<String>,
    roles: Vec<&'static str>,
    uplinks: [&'static str; 1],
    pod_interfaces: [&'static str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenComponent<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    runs_on: &'a [String],
    #[serde(skip_serializing_if = "is_false")]
    in_pod_networks: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    outside: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cgroups: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    part_of: &'a [String],
    #[serde(skip_serializing_if = "is_false")]
    needs_cgroup: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    programs: &'a [String],
    guard: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<&'a str, WrittenPort<'a>>,
}

impl<'a> WrittenComponent<'a> {
    fn of(component: &'a Component) -> Self {
        Self {
            description: &component.description,
            runs_on: &component.runs_on,
            in_pod_networks: component.in_pod_networks,
            addresses: component
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            outside: component.outside,
            cgroups: &component.cgroups,
            part_of: &component.part_of,
            needs_cgroup: component.needs_cgroup,
            programs: &component.programs,
            guard: component.guard,
            ports: component
                .ports
                .iter()
                .map(|port| (port.name.as_str(), WrittenPort::of(port)))
                .collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPort<'a> {
    r#match: Vec<String>,
    #[serde(skip_serializing_if = "is_false")]
    loopback_only: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    denial: &'a str,
}

impl<'a> WrittenPort<'a> {
    fn of(port: &'a Port) -> Self {
        Self {
            r#match: port.matches.iter().map(ToString::to_string).collect(),
            loopback_only: port.loopback_only,
            denial: &port.denial,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PathPolicy<'a> {
    mode: String,
    other_traffic: &'static str,
    paths: Vec<WrittenPath<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPath<'a> {
    name: &'a str,
    from: &'a [String],
    to: String,
    #[serde(skip_serializing_if = "is_false")]
    loopback: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<&'static str>,
    because: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    document: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    symptom: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    since: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    until: &'a str,
}

impl<'a> WrittenPath<'a> {
    fn of(path: &'a Path) -> Self {
        let locality = path.locality != Locality::Any;
        Self {
            name: &path.name,
            from: &path.from,
            to: format!("{}:{}", path.to_component, path.to_port),
            loopback: path.loopback,
            locality: locality.then(|| path.locality.to_string()),
            tls: path.tls.then_some(TLS[1]),
            because: &path.because,
            document: &path.document,
            symptom: &path.symptom,
            since: &path.since,
            until: &path.until,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}
