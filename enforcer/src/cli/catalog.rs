//! `enforcer catalog`.

use std::fmt::Write as _;

use anyhow::anyhow;
use clap::Args;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, TableStyle};
use serde::Serialize;

use super::{Failure, Outcome, Style, say, say_json};
use crate::policy::{
    catalogue::{Catalogue, Group, Profile, ProfileOption, Role},
    error::nearest,
    model::{Component, Path, Port},
    written,
};

/// Lists and explains the documented component paths that are built in.
///
/// Without a name: all paths, profiles, options, groups, components and roles. With one: everything
/// about it, and how it is turned on or off. With -o yaml: the same as a policy, written out, which
/// `enforcer check -p -` accepts as it is.
///
/// Examples: enforcer catalog; enforcer catalog etcd:client; enforcer catalog worker -o yaml
#[derive(Debug, Args)]
pub struct Arguments {
    /// A path, profile, option, group, component, COMPONENT:PORT or role
    name: Option<String>,
}

/// What a name may mean.
#[derive(Clone, Copy)]
enum Item<'a> {
    Path(&'a Path),
    Profile(&'a Profile),
    Option(&'a ProfileOption),
    Group(&'a Group),
    Component(&'a Component),
    Port(&'a Component, &'a Port),
    Role(&'a Role),
}

pub fn run(arguments: &Arguments, format: Style) -> Outcome {
    let catalogue = Catalogue::builtin();
    let items = match &arguments.name {
        None => Vec::new(),
        Some(name) => find(catalogue, name)?,
    };
    match format {
        Style::Yaml => {
            let text = yaml(catalogue, arguments.name.as_deref(), &items)?;
            say(text.trim_end())
        }
        Style::Json => say_json(&listing(catalogue, &items)),
        Style::Text if items.is_empty() => say(overview(catalogue).trim_end()),
        Style::Text => {
            let texts: Vec<String> = items.iter().map(|i| describe(catalogue, *i)).collect();
            say(texts.join("\n").trim_end())
        }
    }
}

/// Everything of that name: `etcd` is a component, a role and a profile.
fn find<'a>(catalogue: &'a Catalogue, name: &str) -> Result<Vec<Item<'a>>, Failure> {
    let mut found = Vec::new();
    found.extend(catalogue.path(name).map(Item::Path));
    found.extend(catalogue.profile(name).map(Item::Profile));
    let option = catalogue.options().iter().find(|o| o.name == name);
    found.extend(option.map(Item::Option));
    let group = catalogue.groups().iter().find(|g| g.name == name);
    found.extend(group.map(Item::Group));
    let component = |name: &str| catalogue.components().iter().find(|c| c.name == name);
    found.extend(component(name).map(Item::Component));
    if let Some((owner, port)) = name.split_once(':')
        && let Some(owner) = component(owner)
        && let Some(port) = owner.port(port)
    {
        found.push(Item::Port(owner, port));
    }
    let role = catalogue.roles().iter().find(|r| r.name == name);
    found.extend(role.map(Item::Role));
    if !found.is_empty() {
        return Ok(found);
    }
    let names = names(catalogue);
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let help = match nearest(name, &known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`enforcer catalog` lists all there is".to_owned(),
    };
    Err(anyhow!("the catalogue has nothing called `{name}`; {help}").into())
}

/// Every name that the catalogue knows.
fn names(catalogue: &Catalogue) -> Vec<String> {
    let mut names: Vec<String> = catalogue.paths().iter().map(|p| p.name.clone()).collect();
    names.extend(catalogue.profiles().iter().map(|p| p.name.clone()));
    names.extend(catalogue.options().iter().map(|o| o.name.clone()));
    names.extend(catalogue.groups().iter().map(|g| g.name.clone()));
    names.extend(catalogue.roles().iter().map(|r| r.name.clone()));
    for component in catalogue.components() {
        names.push(component.name.clone());
        let ports = component.ports.iter();
        names.extend(ports.map(|port| format!("{}:{}", component.name, port.name)));
    }
    names
}

fn yaml(catalogue: &Catalogue, name: Option<&str>, items: &[Item<'_>]) -> Result<String, Failure> {
    let (components, paths): (Vec<&Component>, Vec<&Path>) = if items.is_empty() {
        (
            catalogue.components().iter().collect(),
            catalogue.paths().iter().collect(),
        )
    } else {
        let all = catalogue.components().iter();
        let components = all.filter(|c| items.iter().any(|i| is_about(*i, c)));
        let paths = catalogue.paths().iter();
        let paths = paths.filter(|p| items.iter().any(|i| has(catalogue, *i, p)));
        (components.collect(), paths.collect())
    };
    written::policy_yaml(name.unwrap_or("catalogue"), components, paths)
        .map_err(|error| Failure::Cannot(error.into()))
}

/// Whether a component is what an item is about.
fn is_about(item: Item<'_>, component: &Component) -> bool {
    match item {
        Item::Component(own) | Item::Port(own, _) => own.name == component.name,
        Item::Role(role) => component.runs_on.contains(&role.name),
        _ => false,
    }
}

/// Whether a path belongs to an item.
fn has(catalogue: &Catalogue, item: Item<'_>, path: &Path) -> bool {
    let concerns = |component: &Component| {
        path.to_component == component.name || path.from.contains(&component.name)
    };
    match item {
        Item::Path(own) => own.name == path.name,
        Item::Profile(profile) => profile.paths.contains(&path.name),
        Item::Option(option) => option.enable.contains(&path.name),
        Item::Group(group) => group.paths.contains(&path.name),
        Item::Component(component) => concerns(component),
        Item::Port(component, port) => {
            path.to_component == component.name && path.to_port == port.name
        }
        Item::Role(role) => {
            let mut there = catalogue.components().iter();
            there.any(|c| c.runs_on.contains(&role.name) && concerns(c))
        }
    }
}

/// What the catalogue says of a path beyond the path itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PathListing<'a> {
    name: &'a str,
    from: &'a [String],
    to: String,
    ports: Vec<String>,
    locks: Vec<&'static str>,
    /// Profiles that have it from the start.
    profiles: Vec<&'a str>,
    /// Options that turn it on.
    enabled_by: Vec<&'a str>,
    /// Options that turn it off.
    disabled_by: Vec<&'a str>,
    because: &'a str,
    document: &'a str,
    symptom: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    since: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    until: &'a str,
}

impl<'a> PathListing<'a> {
    fn of(catalogue: &'a Catalogue, path: &'a Path) -> Self {
        let port = catalogue
            .components()
            .iter()
            .find(|component| component.name == path.to_component)
            .and_then(|component| component.port(&path.to_port));
        let mut locks = Vec::new();
        if path.loopback || port.is_some_and(|port| port.loopback_only) {
            locks.push("loopback");
        } else if path.locality == crate::policy::model::Locality::SameNode {
            locks.push("same node");
        }
        let with = |names: fn(&ProfileOption) -> &Vec<String>| {
            let options = catalogue.options().iter();
            options
                .filter(|option| names(option).contains(&path.name))
                .map(|option| option.name.as_str())
                .collect()
        };
        let profiles = catalogue.profiles().iter();
        Self {
            name: &path.name,
            from: &path.from,
            to: format!("{}:{}", path.to_component, path.to_port),
            ports: port
                .map(|port| port.matches.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            locks,
            profiles: profiles
                .filter(|profile| profile.paths.contains(&path.name))
                .map(|profile| profile.name.as_str())
                .collect(),
            enabled_by: with(|option| &option.enable),
            disabled_by: with(|option| &option.disable),
            because: &path.because,
            document: &path.document,
            symptom: &path.symptom,
            since: &path.since,
            until: &path.until,
        }
    }

    /// When it is on, in a few words.
    fn default(&self, catalogue: &Catalogue) -> String {
        let mut parts = Vec::new();
        if self.profiles.len() == catalogue.profiles().len() {
            parts.push("on".to_owned());
        } else if !self.profiles.is_empty() {
            parts.push(format!("on in {}", self.profiles.join(", ")));
        }
        if !self.enabled_by.is_empty() {
            parts.push(format!("option {}", self.enabled_by.join(", ")));
        }
        if parts.is_empty() {
            parts.push("off".to_owned());
        }
        if !self.disabled_by.is_empty() {
            parts.push(format!("not with {}", self.disabled_by.join(", ")));
        }
        parts.join("; ")
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Named<'a> {
    name: &'a str,
    description: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    paths: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OptionListing<'a> {
    name: &'a str,
    description: &'a str,
    profiles: Vec<&'a str>,
    enable: &'a [String],
    disable: &'a [String],
    guard: &'a [String],
    requires: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileListing<'a> {
    name: &'a str,
    description: &'a str,
    groups: &'a [String],
    paths: &'a [String],
    options: Vec<&'a str>,
    requires: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortListing<'a> {
    name: &'a str,
    matches: Vec<String>,
    loopback_only: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    denial: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ComponentListing<'a> {
    name: &'a str,
    description: &'a str,
    r#where: String,
    guard: bool,
    ports: Vec<PortListing<'a>>,
}

/// The catalogue, or what of it a name means, for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listing<'a> {
    paths: Vec<PathListing<'a>>,
    profiles: Vec<ProfileListing<'a>>,
    options: Vec<OptionListing<'a>>,
    groups: Vec<Named<'a>>,
    components: Vec<ComponentListing<'a>>,
    roles: Vec<Named<'a>>,
}

fn listing<'a>(catalogue: &'a Catalogue, items: &[Item<'a>]) -> Listing<'a> {
    let all = items.is_empty();
    let wanted = |is: &dyn Fn(&Item<'a>) -> bool| all || items.iter().any(is);
    Listing {
        paths: catalogue
            .paths()
            .iter()
            .filter(|p| wanted(&|i| has(catalogue, *i, p)))
            .map(|path| PathListing::of(catalogue, path))
            .collect(),
        profiles: catalogue
            .profiles()
            .iter()
            .filter(|p| wanted(&|i| matches!(i, Item::Profile(own) if own.name == p.name)))
            .map(|profile| ProfileListing {
                name: &profile.name,
                description: &profile.description,
                groups: &profile.groups,
                paths: &profile.paths,
                options: option_names(profile),
                requires: &profile.requires,
            })
            .collect(),
        options: catalogue
            .options()
            .iter()
            .filter(|o| wanted(&|i| matches!(i, Item::Option(own) if own.name == o.name)))
            .map(|option| OptionListing {
                name: &option.name,
                description: &option.description,
                profiles: profiles_with(catalogue, option),
                enable: &option.enable,
                disable: &option.disable,
                guard: &option.guard,
                requires: &option.requires,
            })
            .collect(),
        groups: catalogue
            .groups()
            .iter()
            .filter(|g| wanted(&|i| matches!(i, Item::Group(own) if own.name == g.name)))
            .map(|group| Named {
                name: &group.name,
                description: &group.description,
                paths: &group.paths,
            })
            .collect(),
        components: catalogue
            .components()
            .iter()
            .filter(|c| wanted(&|i| is_about(*i, c)))
            .map(component_listing)
            .collect(),
        roles: catalogue
            .roles()
            .iter()
            .filter(|r| wanted(&|i| matches!(i, Item::Role(own) if own.name == r.name)))
            .map(|role| Named {
                name: &role.name,
                description: &role.description,
                paths: &[],
            })
            .collect(),
    }
}

fn component_listing(component: &Component) -> ComponentListing<'_> {
    ComponentListing {
        name: &component.name,
        description: &component.description,
        r#where: whereabouts(component),
        guard: component.guard,
        ports: component
            .ports
            .iter()
            .map(|port| PortListing {
                name: &port.name,
                matches: port.matches.iter().map(ToString::to_string).collect(),
                loopback_only: port.loopback_only,
                denial: &port.denial,
            })
            .collect(),
    }
}

fn option_names(profile: &Profile) -> Vec<&str> {
    profile.options.iter().map(|o| o.name.as_str()).collect()
}

fn profiles_with<'a>(catalogue: &'a Catalogue, option: &ProfileOption) -> Vec<&'a str> {
    let profiles = catalogue.profiles().iter();
    profiles
        .filter(|profile| profile.options.iter().any(|o| o.name == option.name))
        .map(|profile| profile.name.as_str())
        .collect()
}

/// Where a component is before an Inventory says so.
fn whereabouts(component: &Component) -> String {
    if component.runs_on.iter().any(|role| role == "*") {
        "every node".to_owned()
    } else if !component.runs_on.is_empty() {
        format!("nodes of role {}", component.runs_on.join(", "))
    } else if component.in_pod_networks {
        "the pod networks".to_owned()
    } else if component.is_elsewhere() {
        "anywhere outside of the cluster, until the Inventory says where".to_owned()
    } else if component.addresses.is_empty() {
        "where the Inventory says".to_owned()
    } else {
        let addresses = component.addresses.iter().map(|net| {
            let alone = net.prefix_len() == net.max_prefix_len();
            if alone {
                net.addr().to_string()
            } else {
                net.to_string()
            }
        });
        addresses.collect::<Vec<_>>().join(", ")
    }
}

fn overview(catalogue: &Catalogue) -> String {
    let mut paths = table(&["PATH", "FROM", "TO", "LOCKS", "DEFAULT"]);
    for path in catalogue.paths() {
        let listing = PathListing::of(catalogue, path);
        paths.add_row([
            path.name.clone(),
            path.from.join(", "),
            format!("{} {}", listing.to, listing.ports.join(", ")),
            listing.locks.join(", "),
            short_default(catalogue, &listing),
        ]);
    }
    let mut text = format!("Paths\n{}\n", paths.trim_fmt());
    let mut section = |title: &str, rows: Vec<(&str, String)>| {
        let mut table = table(&["NAME", "WHAT IT IS"]);
        for (name, what) in rows {
            table.add_row([name.to_owned(), what]);
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{title}\n{}\n", table.trim_fmt());
    };
    section(
        "Profiles (spec.profile)",
        catalogue
            .profiles()
            .iter()
            .map(|profile| {
                let options = option_names(profile).join(", ");
                let what = format!("{} Options: {options}.", profile.description);
                (profile.name.as_str(), what)
            })
            .collect(),
    );
    section(
        "Options (spec.options)",
        catalogue
            .options()
            .iter()
            .map(|option| (option.name.as_str(), option.description.clone()))
            .collect(),
    );
    section(
        "Groups of paths, of which profiles are made",
        catalogue
            .groups()
            .iter()
            .map(|group| (group.name.as_str(), group.description.clone()))
            .collect(),
    );
    section(
        "Components",
        catalogue
            .components()
            .iter()
            .map(|c| {
                let what = format!("{}: {}", c.description, whereabouts(c));
                (c.name.as_str(), what)
            })
            .collect(),
    );
    section(
        "Roles of nodes (spec.nodes.NAME.roles)",
        catalogue
            .roles()
            .iter()
            .map(|role| (role.name.as_str(), role.description.clone()))
            .collect(),
    );
    text
}

/// The default in a table's cell: profiles are counted where they are many.
fn short_default(catalogue: &Catalogue, listing: &PathListing<'_>) -> String {
    let profiles = listing.profiles.len();
    let mut text = match profiles {
        0 => String::new(),
        all if all == catalogue.profiles().len() => "on".to_owned(),
        1 | 2 => format!("on in {}", listing.profiles.join(", ")),
        some => format!("on in {some} profiles"),
    };
    for option in &listing.enabled_by {
        if !text.is_empty() {
            text.push_str("; ");
        }
        let _ = write!(text, "option {option}");
    }
    if text.is_empty() {
        text.push_str("off");
    }
    text
}

fn describe(catalogue: &Catalogue, item: Item<'_>) -> String {
    let mut text = String::new();
    match item {
        Item::Path(path) => describe_path(catalogue, path, &mut text),
        Item::Profile(profile) => {
            let facts = [
                ("options", option_names(profile).join(", ")),
                ("groups", profile.groups.join(", ")),
                ("needs", profile.requires.join(", ")),
                ("choose it", format!("`profile: {}`", profile.name)),
            ];
            head(
                &mut text,
                "profile",
                &profile.name,
                &profile.description,
                &facts,
            );
        }
        Item::Option(option) => {
            let facts = [
                ("of profiles", profiles_with(catalogue, option).join(", ")),
                ("turns off", option.disable.join(", ")),
                ("guards", option.guard.join(", ")),
                ("needs", option.requires.join(", ")),
                ("choose it", format!("`options: [{}]`", option.name)),
            ];
            head(
                &mut text,
                "option",
                &option.name,
                &option.description,
                &facts,
            );
        }
        Item::Group(group) => head(&mut text, "group", &group.name, &group.description, &[]),
        Item::Component(component) => {
            let facts = [
                ("where", whereabouts(component)),
                ("part of", component.part_of.join(", ")),
                ("guarded", guarded(catalogue, component)),
            ];
            head(
                &mut text,
                "component",
                &component.name,
                &component.description,
                &facts,
            );
            for port in &component.ports {
                describe_port(port, &mut text);
            }
        }
        Item::Port(component, port) => {
            let facts = [("guarded", guarded(catalogue, component))];
            let name = format!("{}:{}", component.name, port.name);
            head(&mut text, "port", &name, &component.description, &facts);
            describe_port(port, &mut text);
        }
        Item::Role(role) => head(&mut text, "role", &role.name, &role.description, &[]),
    }
    if matches!(item, Item::Path(_)) {
        return text;
    }
    let paths: Vec<&Path> = catalogue
        .paths()
        .iter()
        .filter(|path| has(catalogue, item, path))
        .collect();
    if paths.is_empty() {
        text.push_str("  no path leads there, and it has none\n");
        return text;
    }
    let mut table = table(&["PATH", "FROM", "TO", "WHY"]);
    for path in paths {
        let to = format!("{}:{}", path.to_component, path.to_port);
        table.add_row([
            path.name.clone(),
            path.from.join(", "),
            to,
            path.because.clone(),
        ]);
    }
    let _ = writeln!(text, "{}", table.trim_fmt());
    text
}

fn guarded(catalogue: &Catalogue, component: &Component) -> String {
    let options: Vec<&str> = catalogue
        .options()
        .iter()
        .filter(|option| option.guard.contains(&component.name))
        .map(|option| option.name.as_str())
        .collect();
    match (component.guard, options.is_empty()) {
        (true, _) => {
            "yes: who is on no path to it is denied, whatever `otherTraffic` says".to_owned()
        }
        (false, false) => format!("with option {}", options.join(", ")),
        (false, true) => "no: `otherTraffic` decides where no path leads".to_owned(),
    }
}

fn head(text: &mut String, kind: &str, name: &str, description: &str, facts: &[(&str, String)]) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name} ({kind})\n  {description}");
    for (what, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
        let _ = writeln!(text, "  {what:<12} {fact}");
    }
}

fn describe_port(port: &Port, text: &mut String) {
    let matches: Vec<String> = port.matches.iter().map(ToString::to_string).collect();
    let lock = if port.loopback_only {
        ", loopback only"
    } else {
        ""
    };
    let _ = writeln!(text, "  port {:<7} {}{lock}", port.name, matches.join(", "));
    if !port.denial.is_empty() {
        let _ = writeln!(text, "               {}", port.denial);
    }
}

fn describe_path(catalogue: &Catalogue, path: &Path, text: &mut String) {
    let listing = PathListing::of(catalogue, path);
    let versions = match (listing.since, listing.until) {
        ("", "") => String::new(),
        (since, "") => format!("since Kubernetes {since}"),
        ("", until) => format!("until Kubernetes {until}"),
        (since, until) => format!("from Kubernetes {since} until {until}"),
    };
    let switch = if listing.profiles.is_empty() {
        let option = listing.enabled_by.first();
        let option = option.map(|option| format!(", or `options: [{option}]`"));
        format!("`enable: [{}]`{}", path.name, option.unwrap_or_default())
    } else {
        format!("off with `disable: [{}]`", path.name)
    };
    let facts = [
        ("from", listing.from.join(", ")),
        (
            "to",
            format!("{} ({})", listing.to, listing.ports.join(", ")),
        ),
        ("locks", listing.locks.join(", ")),
        ("default", listing.default(catalogue)),
        ("switch", switch),
        ("versions", versions),
        ("document", listing.document.to_owned()),
        ("without it", listing.symptom.to_owned()),
    ];
    head(text, "path", &path.name, &path.because, &facts);
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header.iter().copied());
    // Names are looked for, so they are never broken.
    if let Some(names) = table.column_mut(0) {
        names.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// The same in a file and on a screen.
const WIDTH: u16 = 120;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::{Policy, SourceText, from_texts};

    fn policy(text: &str) -> Policy {
        let source = SourceText {
            name: "catalog.yaml".to_owned(),
            text: text.to_owned(),
        };
        from_texts(&[source]).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    fn found(name: &str) -> Vec<Item<'static>> {
        let Ok(items) = find(Catalogue::builtin(), name) else {
            panic!("nothing is called {name}");
        };
        items
    }

    #[test]
    fn whatever_is_printed_as_yaml_is_a_policy_that_means_the_same() {
        let catalogue = Catalogue::builtin();
        for name in names(catalogue).iter().map(Some).chain([None]) {
            let items = name.map(|name| found(name)).unwrap_or_default();
            let Ok(text) = yaml(catalogue, name.map(String::as_str), &items) else {
                panic!("no YAML of {name:?}");
            };
            let wanted =
                |path: &&Path| name.is_none() || items.iter().any(|i| has(catalogue, *i, path));
            let expected: Vec<&Path> = catalogue.paths().iter().filter(wanted).collect();
            if expected.is_empty() {
                assert!(text.contains("paths: []"), "{text}");
                continue;
            }
            let read = policy(&text);
            let names = |paths: &[&Path]| -> BTreeSet<String> {
                paths
                    .iter()
                    .map(|p| format!("{} {:?} {} {}", p.name, p.from, p.to_port, p.because))
                    .collect()
            };
            let got: Vec<&Path> = read.paths.iter().collect();
            assert_eq!(names(&got), names(&expected), "{name:?}");
            for component in &read.components {
                let known = catalogue
                    .components()
                    .iter()
                    .find(|c| c.name == component.name);
                let known = known.unwrap_or_else(|| panic!("{} is new", component.name));
                assert_eq!(format!("{component:?}"), format!("{known:?}"));
            }
        }
    }

    #[test]
    fn everything_is_told_of_a_path() {
        let text = describe(Catalogue::builtin(), found("insecure-port")[0]);
        for part in [
            "controller-manager, scheduler",
            "8080/tcp",
            "loopback",
            "until Kubernetes 1.20",
            "`enable: [insecure-port]`, or `options: [insecure-port]`",
            "--master=http://127.0.0.1:8080",
            "KubeCon",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn one_name_may_mean_several_things() {
        assert_eq!(found("etcd").len(), 3, "a profile, a component and a role");
        assert!(find(Catalogue::builtin(), "etdc").is_err());
        let text = overview(Catalogue::builtin());
        for name in names(Catalogue::builtin())
            .iter()
            .filter(|n| !n.contains(':'))
        {
            assert!(text.contains(name.as_str()), "no {name} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120));
    }
}
