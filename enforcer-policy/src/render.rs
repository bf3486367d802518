//! Prints a policy as it was understood: as text, and as JSON.

use std::collections::HashMap;
use std::fmt::Write;

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle};
use schemars::JsonSchema;
use serde::Serialize;

use crate::model::{
    Component, Locality, Mode, Node, OtherTraffic, Path, Policy, Port, Service, WideSender,
};
use crate::validate::warnings::Located;
use crate::vocabulary::{Lock, Vocabulary as _, Word};

/// A policy as `enforcer check -o json` prints it. Field names are stable; new ones may be added.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// `metadata.name` of the `PathPolicy`.
    pub name: String,
    /// SHA-256 over the sources and the catalogue.
    pub digest: String,
    /// What happens to what is denied.
    pub mode: Word<Mode>,
    /// What happens to traffic that leads to no guarded endpoint.
    pub other_traffic: Word<OtherTraffic>,
    /// What happens to plaintext on a path that requires TLS.
    pub tls_lock: Word<Mode>,
    /// The nodes.
    pub nodes: Vec<NodeSummary>,
    /// Networks of pods, CIDR.
    pub pod_networks: Vec<String>,
    /// Networks of services, CIDR.
    pub service_networks: Vec<String>,
    /// The components.
    pub components: Vec<ComponentSummary>,
    /// The paths in force.
    pub paths: Vec<PathSummary>,
    /// Senders that reach guarded endpoints and are broader than they look.
    pub wide_senders: Vec<WideSenderSummary>,
    /// What a reader should know although it is not an error.
    pub notes: Vec<String>,
}

/// A component that many senders may count as, with the guarded endpoints that it reaches.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WideSenderSummary {
    /// Its name.
    pub component: String,
    /// Who may count as it.
    pub who: String,
    /// The guarded endpoints that it reaches, `component:port`.
    pub endpoints: Vec<String>,
    /// What would narrow it.
    pub remedy: &'static str,
}

/// A node.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// Interfaces towards other hosts.
    pub uplinks: Vec<String>,
    /// Host ends of pods' interfaces.
    pub pod_interfaces: Vec<String>,
    /// Its part of the pod networks, CIDR.
    pub pod_networks: Vec<String>,
    /// Where its cgroups start.
    pub cgroup_root: String,
    /// Components that run on it by its roles.
    pub components: Vec<String>,
    /// Those of them that a process in no declared cgroup counts as.
    pub processes_without_cgroup: Vec<String>,
}

/// A component.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentSummary {
    /// Its name.
    pub name: String,
    /// One sentence that describes it.
    pub description: String,
    /// Roles of the nodes it runs on; `*` is every node.
    pub runs_on: Vec<String>,
    /// Whether it lives in the pod networks.
    pub in_pod_networks: bool,
    /// Whether it is at every address that nothing else has.
    pub outside: bool,
    /// Further addresses, CIDR.
    pub addresses: Vec<String>,
    /// cgroups of its processes.
    pub cgroups: Vec<String>,
    /// Components that it also counts as when it sends.
    pub part_of: Vec<String>,
    /// Whether its ports are guarded under `otherTraffic: Allow`.
    pub guard: bool,
    /// Nothing on this cluster is recognised as this component.
    pub inert: bool,
    /// Its ports.
    pub ports: Vec<PortSummary>,
}

/// A component's named port.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortSummary {
    /// Its name.
    pub name: String,
    /// What it matches, as in a policy.
    pub matches: Vec<String>,
    /// Reached and bound on a loopback address only.
    pub loopback_only: bool,
    /// What operators should know about a denial here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub denial: String,
    /// Virtual addresses that lead to it, with protocol.
    pub services: Vec<String>,
}

/// A path.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathSummary {
    /// Its name.
    pub name: String,
    /// The components that may open it.
    pub from: Vec<String>,
    /// Where it leads: `component:port`.
    pub to: String,
    /// What that port matches.
    pub ports: Vec<String>,
    /// Over loopback only.
    pub loopback: bool,
    /// Where its two ends may be.
    pub locality: Word<Locality>,
    /// Its clients must begin with a TLS ClientHello.
    pub tls: bool,
    /// The path's own mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Word<Mode>>,
    /// Why it exists.
    pub because: String,
    /// The document that names it; empty for a user's own path.
    pub document: String,
    /// What users observe if it is missing.
    pub symptom: String,
    /// The first Kubernetes version that has it; empty for all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// The first Kubernetes version that no longer has it; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub until: String,
    /// `catalogue`, or `FILE:LINE`.
    pub origin: String,
}

/// The summary of a policy.
pub fn summary(policy: &Policy) -> Summary {
    let located = Located::of(policy);
    let mut services: Services<'_> = HashMap::new();
    for service in &policy.services {
        let end = (service.component.as_str(), service.port.as_str());
        services.entry(end).or_default().push(service);
    }
    let by_name: HashMap<&str, &Component> = policy
        .components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    Summary {
        name: policy.name.clone(),
        digest: policy.digest.clone(),
        mode: policy.mode.into(),
        other_traffic: policy.other_traffic.into(),
        tls_lock: policy.tls_lock.into(),
        nodes: policy
            .nodes
            .iter()
            .map(|node| node_summary(policy, node))
            .collect(),
        pod_networks: texts(&policy.pod_networks),
        service_networks: texts(&policy.service_networks),
        components: policy
            .components
            .iter()
            .map(|component| component_summary(&services, &located, component))
            .collect(),
        paths: policy
            .paths
            .iter()
            .map(|path| path_summary(by_name.get(path.to_component.as_str()).copied(), path))
            .collect(),
        wide_senders: policy.wide_senders.iter().map(wide_sender).collect(),
        notes: policy.warnings.clone(),
    }
}

fn wide_sender(wide: &WideSender) -> WideSenderSummary {
    WideSenderSummary {
        component: wide.component.clone(),
        who: wide.who.clone(),
        endpoints: wide.endpoints.clone(),
        remedy: wide.remedy,
    }
}

/// A summary that fits on a screen: the policy, its broad senders, and its warnings.
pub fn brief(policy: &Policy) -> String {
    let mut text = head(policy);
    // In the order of the policy.
    let mut by_roles: Vec<Vec<&Node>> = Vec::new();
    let mut indices: HashMap<&[String], usize> = HashMap::new();
    for node in &policy.nodes {
        let index = *indices.entry(&node.roles).or_insert_with(|| {
            by_roles.push(Vec::new());
            by_roles.len() - 1
        });
        by_roles[index].push(node);
    }
    for nodes in by_roles {
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let roles = match nodes.first().map(|node| node.roles.as_slice()) {
            None | Some([]) => "no roles".to_owned(),
            Some(roles) => roles.join(", "),
        };
        let _ = writeln!(text, "  nodes with {roles}: {}", some(&names));
    }
    let own: Vec<&str> = policy
        .paths
        .iter()
        .filter(|path| path.origin != "catalogue")
        .map(|path| path.name.as_str())
        .collect();
    let from = match (&policy.profile, policy.options.as_slice()) {
        (None, _) => "no profile".to_owned(),
        (Some(profile), []) => format!("profile {profile}"),
        (Some(profile), options) => format!("profile {profile} with {}", options.join(", ")),
    };
    let _ = write!(text, "  {} paths: {from}", policy.paths.len());
    if !own.is_empty() {
        let _ = write!(text, "; your own: {}", some(&own));
    }
    text.push('\n');
    warnings(policy, &mut text);
    text
}

/// As many names as fit on a line.
fn some(names: &[&str]) -> String {
    match names.get(..SHOWN) {
        Some(shown) if names.len() > SHOWN + 1 => {
            format!("{} and {} more", shown.join(", "), names.len() - SHOWN)
        }
        _ => names.join(", "),
    }
}

fn warnings(policy: &Policy, text: &mut String) {
    if !policy.wide_senders.is_empty() {
        let _ = writeln!(text, "\nBroad senders to guarded endpoints");
    }
    for WideSender {
        component,
        who,
        endpoints,
        remedy,
    } in &policy.wide_senders
    {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "  - {who} counts as `{component}` and can reach {}; {remedy}",
            some(&endpoints)
        );
    }
    if !policy.warnings.is_empty() {
        let _ = writeln!(text, "\nNotes");
    }
    for note in &policy.warnings {
        let _ = writeln!(text, "  - {note}");
    }
}

/// The policy as it was understood, as text; ends with a newline.
pub fn describe(policy: &Policy) -> String {
    let summary = summary(policy);
    let mut text = head(policy);
    for (title, table) in [
        ("Nodes", nodes_table(&summary.nodes)),
        ("Components", components_table(&summary.components)),
        ("Paths", paths_table(&summary.paths)),
    ] {
        let _ = writeln!(text, "\n{title}\n{}", table.trim_fmt());
    }
    warnings(policy, &mut text);
    text
}

fn head(policy: &Policy) -> String {
    let mut text = String::new();
    // Writing to a `String` does not fail.
    let _ = writeln!(text, "Policy {}, digest {:.12}", policy.name, policy.digest);
    let _ = writeln!(
        text,
        "  mode {}: {}",
        policy.mode,
        mode_in_words(policy.mode)
    );
    let _ = writeln!(
        text,
        "  other traffic {}: {}",
        policy.other_traffic,
        other_traffic_in_words(policy.other_traffic)
    );
    if policy.tls_lock == Mode::DryRun && policy.mode == Mode::Enforce {
        let _ = writeln!(
            text,
            "  TLS lock DryRun: report only, plaintext on a path that requires TLS is not dropped"
        );
    }
    for (what, networks) in [
        ("pods", &policy.pod_networks),
        ("services", &policy.service_networks),
    ] {
        if !networks.is_empty() {
            let _ = writeln!(
                text,
                "  {what} have addresses in {}",
                texts(networks).join(", ")
            );
        }
    }
    text
}

fn mode_in_words(mode: Mode) -> &'static str {
    match mode {
        Mode::DryRun => "what would be denied is told, and nothing is dropped",
        Mode::Enforce => "what is denied is dropped",
    }
}

fn other_traffic_in_words(other: OtherTraffic) -> &'static str {
    match other {
        OtherTraffic::Allow => "what leads to no guarded port passes",
        OtherTraffic::Drop => "what is on no path is denied, wherever it leads",
    }
}

fn node_summary(policy: &Policy, node: &Node) -> NodeSummary {
    let here = || {
        policy
            .components
            .iter()
            .filter(|component| component.runs_on(node))
    };
    NodeSummary {
        name: node.name.clone(),
        addresses: texts(&node.addresses),
        roles: node.roles.clone(),
        uplinks: node.uplinks.clone(),
        pod_interfaces: node.pod_interfaces.clone(),
        pod_networks: texts(&node.pod_networks),
        cgroup_root: node.cgroup_root.clone(),
        components: here().map(|component| component.name.clone()).collect(),
        processes_without_cgroup: here()
            .filter(|component| component.counts_undeclared())
            .map(|component| component.name.clone())
            .collect(),
    }
}

/// Services by the component and the port behind them.
type Services<'a> = HashMap<(&'a str, &'a str), Vec<&'a Service>>;

fn component_summary(
    services: &Services<'_>,
    located: &Located<'_>,
    component: &Component,
) -> ComponentSummary {
    ComponentSummary {
        name: component.name.clone(),
        description: component.description.clone(),
        runs_on: component.runs_on.clone(),
        in_pod_networks: component.in_pod_networks,
        outside: component.is_elsewhere(),
        addresses: texts(&component.addresses),
        cgroups: component.cgroups.clone(),
        part_of: component.part_of.clone(),
        guard: component.guard,
        inert: located.is_inert(component),
        ports: component
            .ports
            .iter()
            .map(|port| port_summary(services, component, port))
            .collect(),
    }
}

fn port_summary(services: &Services<'_>, component: &Component, port: &Port) -> PortSummary {
    let services = services
        .get(&(component.name.as_str(), port.name.as_str()))
        .into_iter()
        .flatten()
        .map(|service| match service.address {
            std::net::IpAddr::V4(v4) => format!("{v4}:{}", service.at),
            std::net::IpAddr::V6(v6) => format!("[{v6}]:{}", service.at),
        })
        .collect();
    PortSummary {
        name: port.name.clone(),
        matches: texts(&port.matches),
        loopback_only: port.loopback_only,
        denial: port.denial.clone(),
        services,
    }
}

fn path_summary(to: Option<&Component>, path: &Path) -> PathSummary {
    let port = to.and_then(|to| to.port(&path.to_port));
    PathSummary {
        name: path.name.clone(),
        from: path.from.clone(),
        to: format!("{}:{}", path.to_component, path.to_port),
        ports: port.map(|port| texts(&port.matches)).unwrap_or_default(),
        loopback: path.loopback,
        tls: path.tls,
        locality: path.locality.into(),
        mode: path.mode.map(Word::from),
        because: path.because.clone(),
        document: path.document.clone(),
        symptom: path.symptom.clone(),
        since: path.since.clone(),
        until: path.until.clone(),
        origin: path.origin.clone(),
    }
}

fn nodes_table(nodes: &[NodeSummary]) -> Table {
    let mut table = table(&[
        "name",
        "addresses",
        "roles",
        "interfaces",
        "a process in no declared cgroup is",
    ]);
    for node in nodes {
        let mut interfaces = Vec::new();
        if !node.uplinks.is_empty() {
            interfaces.push(format!("uplinks {}", node.uplinks.join(", ")));
        }
        if !node.pod_interfaces.is_empty() {
            interfaces.push(format!("pods {}", node.pod_interfaces.join(", ")));
        }
        if !node.pod_networks.is_empty() {
            interfaces.push(format!("pods in {}", node.pod_networks.join(", ")));
        }
        if node.cgroup_root != "/" {
            interfaces.push(format!("cgroups below {}", node.cgroup_root));
        }
        table.add_row([
            node.name.clone(),
            node.addresses.join("\n"),
            node.roles.join(", "),
            interfaces.join("\n"),
            node.processes_without_cgroup.join(", "),
        ]);
    }
    table
}

fn components_table(components: &[ComponentSummary]) -> Table {
    let mut table = table(&["name", "where", "ports", "guarded"]);
    for component in components {
        table.add_row([
            component.name.clone(),
            whereabouts(component),
            ports_in_words(&component.ports),
            if component.guard { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

fn whereabouts(component: &ComponentSummary) -> String {
    let mut lines = Vec::new();
    if component.runs_on.iter().any(|role| role == "*") {
        lines.push("every node".to_owned());
    } else if !component.runs_on.is_empty() {
        lines.push(format!("nodes of role {}", component.runs_on.join(", ")));
    }
    if component.in_pod_networks {
        lines.push("pod networks".to_owned());
    }
    if !component.addresses.is_empty() {
        lines.push(component.addresses.join(", "));
    }
    if component.outside {
        lines.push("anywhere outside of the cluster".to_owned());
    }
    if !component.cgroups.is_empty() {
        lines.push(format!("cgroups {}", component.cgroups.join(", ")));
    }
    if !component.part_of.is_empty() {
        lines.push(format!("part of {}", component.part_of.join(", ")));
    }
    if component.inert {
        lines.push("nowhere on this cluster".to_owned());
    }
    lines.join("\n")
}

fn ports_in_words(ports: &[PortSummary]) -> String {
    let lines: Vec<String> = ports
        .iter()
        .map(|port| {
            let matches = port.matches.join(", ");
            let mut line = match port.name == matches {
                true => matches,
                false => format!("{} {matches}", port.name),
            };
            if port.loopback_only {
                line.push_str(", loopback only");
            }
            if !port.services.is_empty() {
                let _ = write!(line, ", also {}", port.services.join(", "));
            }
            line
        })
        .collect();
    lines.join("\n")
}

fn paths_table(paths: &[PathSummary]) -> Table {
    let mut table = table(&["path", "from", "to", "locks", "why"]);
    for path in paths {
        let mut why = path.because.clone();
        // The catalogue has a listing of its documents; a user's path is identified by its line.
        if path.document.is_empty() {
            let _ = write!(why, " ({})", path.origin);
        }
        table.add_row([
            path.name.clone(),
            path.from.join(", "),
            format!("{}\n{}", path.to, path.ports.join(", ")),
            locks(path),
            why,
        ]);
    }
    table
}

fn locks(path: &PathSummary) -> String {
    let mut locks = Vec::new();
    if path.loopback {
        locks.push(Lock::Loopback.spoken().to_owned());
    } else if path.locality == Locality::SameNode {
        locks.push(Lock::SameNode.spoken().to_owned());
    }
    if path.tls {
        locks.push(Lock::Tls.spoken().to_owned());
    }
    locks.extend(path.mode.as_ref().map(|mode| format!("mode {mode}")));
    locks.join(", ")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // Independent of the terminal: the text is the same in a file and on a screen.
    table
        .load_style(STYLE)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_WIDTH)
        .set_header(header.iter().copied());
    // Names are never broken, so that they can be searched for.
    if let Some(names) = table.column_mut(0) {
        names.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// A line only below the header: rows of several lines are distinguished by their first column.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
const TABLE_WIDTH: u16 = 140;
/// Names in one line.
const SHOWN: usize = 6;
