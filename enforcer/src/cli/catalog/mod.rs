//! `enforcer catalog`.

mod listing;
mod text;

use clap::Args;
use enforcer_policy::{
    catalogue::{Catalogue, Group, Profile, ProfileOption, Role},
    error::nearest,
    model::{Component, Path, Port},
    written,
};

use super::{Failure, Outcome, Style, print_json, print_result};
use crate::api::{Document, ErrorCode};
use listing::listing;
use text::{describe, overview};

/// List and explain the documented paths that are built in
///
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

/// What a name may refer to.
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
            print_result(text.trim_end())
        }
        Style::Json => print_json(&Document::new(listing(catalogue, &items))),
        Style::Text if items.is_empty() => print_result(overview(catalogue).trim_end()),
        Style::Text => {
            let texts: Vec<String> = items.iter().map(|i| describe(catalogue, *i)).collect();
            print_result(texts.join("\n").trim_end())
        }
    }
}

/// Everything with that name: `etcd` is a component, a role and a profile.
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
    let message = format!("the catalogue has nothing called `{name}`; {help}");
    Err(Failure::cannot(ErrorCode::UnknownName, message))
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
        .map_err(|error| anyhow::Error::from(error).into())
}

/// Whether an item concerns a component.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use enforcer_policy::{Policy, SourceText, from_texts};

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
    fn yaml_output_is_an_equivalent_policy() {
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
    fn a_path_is_described_completely() {
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
