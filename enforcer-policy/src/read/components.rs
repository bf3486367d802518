//! Components and their ports, from the catalogue and from the inventory alike.

use std::collections::{HashMap, HashSet};

use super::limits::MAX_COMPONENTS;
use super::scalar;
use super::scope::{Scope, twice, unique};
use super::source::{ComponentSource, PortSource};
use crate::error::{Problem, quote};
use crate::model::{Component, Path, Port, PortMatch};
use crate::span::{Entries, Spanned};

/// The components that entries may change, and the paths that lead to them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Base<'a> {
    pub components: &'a [Component],
    pub paths: &'a [Path],
}

/// Reads components over a base: an entry with a known name changes it field by field, any other entry is new.
pub(crate) fn read(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ComponentSource>,
    base: Base<'_>,
) -> Vec<Component> {
    let known = base.components.len();
    let mut components = base.components.to_vec();
    let mut index: HashMap<String, usize> = components
        .iter()
        .enumerate()
        .map(|(i, component)| (component.name.clone(), i))
        .collect();
    for (name, source) in &entries.0 {
        scope.ok(name.span, scalar::name(&name.value, "component"));
        let i = *index.entry(name.value.clone()).or_insert_with(|| {
            components.push(blank(&name.value));
            components.len() - 1
        });
        if i < known {
            yield_closed_ports(&mut components[i], &source.value, base.paths);
        }
        apply(scope, &mut components[i], &source.value);
        if i < known {
            check_everybody(scope, &name.value, &source.value);
        }
    }
    if components.len() > MAX_COMPONENTS {
        let span = entries
            .0
            .last()
            .map(|(name, _)| name.span)
            .unwrap_or_default();
        scope.error(span, || {
            Problem::new(
                format!(
                    "an Inventory of {} components, with those of the catalogue; {MAX_COMPONENTS} is the most",
                    components.len()
                ),
                "declare one component for parties that may do the same",
            )
        });
        components.truncate(MAX_COMPONENTS);
    }
    check_part_of(scope, entries, &components);
    components
}

/// A port of the base to which no path leads is only kept closed: the inventory may use its number otherwise.
fn yield_closed_ports(component: &mut Component, source: &ComponentSource, paths: &[Path]) {
    let written = |name: &str| source.ports.0.iter().any(|(known, _)| known.value == name);
    let texts = source
        .ports
        .0
        .iter()
        .flat_map(|(_, port)| &port.value.matches);
    let wanted: HashSet<PortMatch> = texts
        .filter_map(|text| scalar::port(&text.value).ok())
        .flatten()
        .collect();
    let name = &component.name;
    component.ports.retain_mut(|port| {
        let leads = |path: &Path| path.to_component == *name && path.to_port == port.name;
        if written(&port.name) || paths.iter().any(leads) {
            return true;
        }
        port.matches.retain(|found| !wanted.contains(found));
        !port.matches.is_empty()
    });
}

/// A network of all addresses is only for `world`. As an apiserver, everybody would reach every kubelet.
fn check_everybody(scope: &mut Scope<'_, '_>, name: &str, source: &ComponentSource) {
    for text in source.addresses.iter().flatten() {
        let everybody =
            scalar::component_network(&text.value).is_ok_and(|net| net.prefix_len() == 0);
        if everybody && name != "world" {
            scope.error(text.span, || {
                Problem::new(
                    format!("{} would make everybody `{name}`", quote(&text.value)),
                    format!(
                        "write the networks that it is in; to let everybody in somewhere, write a path of your own \
                         `from: [world]`. Where nobody knows its addresses, `{name}: {{ outside: true }}` lets it be \
                         reached, and is nobody's right to be it"
                    ),
                )
            });
        }
    }
}

fn blank(name: &str) -> Component {
    Component {
        name: name.to_owned(),
        description: String::new(),
        runs_on: Vec::new(),
        in_pod_networks: false,
        addresses: Vec::new(),
        outside: false,
        cgroups: Vec::new(),
        part_of: Vec::new(),
        needs_cgroup: false,
        programs: Vec::new(),
        only_receives_outside: false,
        ports: Vec::new(),
        guard: true,
    }
}

fn apply(scope: &mut Scope<'_, '_>, component: &mut Component, source: &ComponentSource) {
    let ComponentSource {
        description,
        runs_on,
        in_pod_networks,
        addresses,
        outside,
        cgroups,
        part_of,
        needs_cgroup,
        programs,
        guard,
        ports,
    } = source;
    if let Some(description) = description {
        component.description = description.value.trim().to_owned();
    }
    if let Some(roles) = runs_on {
        component.runs_on = unique(scope, roles, |role| match role {
            "*" => Ok(role.to_owned()),
            _ => scalar::name(role, "role").map(|()| role.to_owned()),
        });
    }
    if let Some(networks) = addresses {
        component.addresses = unique(scope, networks, scalar::component_network);
    }
    if let Some(paths) = cgroups {
        component.cgroups = unique(scope, paths, |path| {
            scalar::cgroup_pattern(path).map(|()| path.to_owned())
        });
    }
    if let Some(names) = part_of {
        component.part_of = unique(scope, names, |name| Ok(name.to_owned()));
    }
    if let Some(names) = programs {
        component.programs = unique(scope, names, |name| Ok(name.to_owned()));
    }
    component.needs_cgroup = needs_cgroup.unwrap_or(component.needs_cgroup);
    component.in_pod_networks = in_pod_networks.unwrap_or(component.in_pod_networks);
    component.outside = outside.unwrap_or(component.outside);
    component.guard = guard.unwrap_or(component.guard);
    let mut owners = Owners::of(component);
    for (name, port) in ports.0.iter().take(MAX_PORTS) {
        set_port(scope, component, &mut owners, name, port);
    }
    if let Some((name, _)) = ports.0.get(MAX_PORTS) {
        scope.error(name.span, || too_many("ports of one component"));
    }
}

/// Which port of a component has which match.
struct Owners(HashMap<PortMatch, String>);

impl Owners {
    fn of(component: &Component) -> Self {
        let mut owners = HashMap::new();
        for port in &component.ports {
            for found in &port.matches {
                owners.entry(*found).or_insert_with(|| port.name.clone());
            }
        }
        Self(owners)
    }

    /// Frees what a port matched until now.
    fn leave(&mut self, port: &Port) {
        for found in &port.matches {
            if self.0.get(found) == Some(&port.name) {
                self.0.remove(found);
            }
        }
    }
}

fn set_port(
    scope: &mut Scope<'_, '_>,
    component: &mut Component,
    owners: &mut Owners,
    name: &Spanned<String>,
    source: &Spanned<PortSource>,
) {
    scope.ok(name.span, scalar::name(&name.value, "port"));
    if source.value.off {
        let known = component
            .ports
            .iter()
            .position(|port| port.name == name.value);
        match known {
            // If something else has it on this cluster, the component does not.
            Some(at) => owners.leave(&component.ports.remove(at)),
            None => scope.error(name.span, || unknown_port(&name.value, component)),
        }
        return;
    }
    let before = component
        .ports
        .iter()
        .position(|port| port.name == name.value);
    if let Some(at) = before {
        owners.leave(&component.ports[at]);
    }
    let matches = read_matches(scope, &component.name, owners, &name.value, source);
    let loopback_only = source.value.loopback_only;
    let denial = source
        .value
        .denial
        .as_ref()
        .map(|text| text.value.trim().to_owned());
    match before {
        Some(at) => {
            let port = &mut component.ports[at];
            port.matches = matches;
            port.loopback_only = loopback_only;
            // What is known about the port stays true if its number changes.
            port.denial = denial.unwrap_or(std::mem::take(&mut port.denial));
        }
        None => component.ports.push(Port {
            name: name.value.clone(),
            matches,
            loopback_only,
            denial: denial.unwrap_or_default(),
        }),
    }
}

fn read_matches(
    scope: &mut Scope<'_, '_>,
    component: &str,
    owners: &mut Owners,
    name: &str,
    source: &Spanned<PortSource>,
) -> Vec<PortMatch> {
    let texts = &source.value.matches;
    if texts.is_empty() {
        scope.error(source.span, || {
            Problem::new(
                format!("port {} matches nothing", quote(name)),
                "write at least one port: `2379/tcp`; `null` switches a port of the catalogue off",
            )
        });
    }
    if let Some(text) = texts.get(MAX_PORTS) {
        scope.error(text.span.or(source.span), || {
            too_many("matches of one port")
        });
    }
    let mut matches = Vec::new();
    for text in texts.iter().take(MAX_PORTS) {
        let span = text.span.or(source.span);
        for found in scope
            .ok(span, scalar::port(&text.value))
            .unwrap_or_default()
        {
            match owners.0.get(&found) {
                Some(port) if port == name => scope.error(span, || twice(&text.value)),
                Some(port) => scope.error(span, || {
                    Problem::new(
                        format!("{found} is port `{port}` of `{component}` already"),
                        "one port has one name: use that one, or give that one another port",
                    )
                }),
                None => drop(owners.0.insert(found, name.to_owned())),
            }
            matches.push(found);
        }
    }
    matches
}

fn check_part_of(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ComponentSource>,
    components: &[Component],
) {
    let known: HashSet<&str> = components
        .iter()
        .map(|component| component.name.as_str())
        .collect();
    let circular = circular(components);
    for (name, source) in &entries.0 {
        for whole in source.value.part_of.iter().flatten() {
            if !known.contains(whole.value.as_str()) {
                scope.error(whole.span, || unknown(&whole.value, components));
            } else if circular.contains(name.value.as_str())
                && circular.contains(whole.value.as_str())
            {
                scope.error(whole.span, || {
                    Problem::new(
                        format!("{} would be part of itself", quote(&name.value)),
                        "leave this entry out: `partOf` goes from the smaller to the larger",
                    )
                });
            }
        }
    }
}

/// Components on a cycle of `partOf`, or between two cycles: those that are left after removing, repeatedly, all that
/// lead nowhere or that nothing leads to.
fn circular(components: &[Component]) -> HashSet<&str> {
    let indices: HashMap<&str, usize> = components
        .iter()
        .enumerate()
        .map(|(index, component)| (component.name.as_str(), index))
        .collect();
    let mut wholes: Vec<Vec<usize>> = Vec::with_capacity(components.len());
    let mut parts: Vec<Vec<usize>> = vec![Vec::new(); components.len()];
    for (index, component) in components.iter().enumerate() {
        let known = component.part_of.iter();
        let known = known.filter_map(|name| indices.get(name.as_str()).copied());
        let of_this: Vec<usize> = known.collect();
        for whole in &of_this {
            parts[*whole].push(index);
        }
        wholes.push(of_this);
    }
    let mut left = vec![true; components.len()];
    for (ahead, behind) in [(&wholes, &parts), (&parts, &wholes)] {
        // Each is removed once, and each of its steps is visited once.
        let mut steps: Vec<usize> = ahead.iter().map(Vec::len).collect();
        let ends = (0..components.len()).filter(|index| steps[*index] == 0);
        let mut open: Vec<usize> = ends.collect();
        while let Some(index) = open.pop() {
            left[index] = false;
            for before in &behind[index] {
                steps[*before] -= 1;
                if steps[*before] == 0 {
                    open.push(*before);
                }
            }
        }
    }
    let is_left = |(index, _): &(usize, &Component)| left[*index];
    let all = components.iter().enumerate();
    all.filter(is_left)
        .map(|(_, component)| component.name.as_str())
        .collect()
}

/// The problem of an undeclared component.
pub(crate) fn unknown(written: &str, components: &[Component]) -> Problem {
    let message = format!("no component is called {}", quote(written));
    let known = components.iter().map(|component| component.name.as_str());
    let mut problem = Problem::unknown(message, written, known);
    if let Some(help) = &mut problem.help
        && !help.starts_with("did you mean")
    {
        help.push_str("; or declare it in the Inventory under `components`");
    }
    problem
}

/// The problem of a port that its component does not have.
pub(crate) fn unknown_port(written: &str, component: &Component) -> Problem {
    Problem::unknown(
        format!(
            "component `{}` has no port {}",
            component.name,
            quote(written)
        ),
        written,
        component.ports.iter().map(|port| port.name.as_str()),
    )
}

fn too_many(what: &str) -> Problem {
    Problem::new(
        format!("more than {MAX_PORTS} {what}"),
        "write ranges: `30000-32767/tcp`",
    )
}

const MAX_PORTS: usize = 1024;
