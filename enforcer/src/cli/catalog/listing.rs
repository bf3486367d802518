//! The catalogue, or the part of it that a name refers to, for programs.

use enforcer_policy::{
    catalogue::{Catalogue, Profile, ProfileOption},
    model::{Component, Locality, Path},
};

use super::{Item, has, is_about};
use crate::api::{
    Catalog, ComponentListing, GroupListing, Lock, OptionListing, PathListing, PortListing,
    ProfileListing, RoleListing,
};

/// What the catalogue says about a path.
pub(super) fn path_listing<'a>(catalogue: &'a Catalogue, path: &'a Path) -> PathListing<'a> {
    let port = catalogue
        .components()
        .iter()
        .find(|component| component.name == path.to_component)
        .and_then(|component| component.port(&path.to_port));
    let mut locks = Vec::new();
    if path.loopback || port.is_some_and(|port| port.loopback_only) {
        locks.push(Lock::Loopback.into());
    } else if path.locality == Locality::SameNode {
        locks.push(Lock::SameNode.into());
    }
    if path.tls {
        locks.push(Lock::Tls.into());
    }
    let with = |names: fn(&ProfileOption) -> &Vec<String>| {
        let options = catalogue.options().iter();
        options
            .filter(|option| names(option).contains(&path.name))
            .map(|option| option.name.as_str())
            .collect()
    };
    let profiles = catalogue.profiles().iter();
    PathListing {
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

/// When a path is on, in a few words.
pub(super) fn default(path: &PathListing<'_>, catalogue: &Catalogue) -> String {
    let mut parts = Vec::new();
    if path.profiles.len() == catalogue.profiles().len() {
        parts.push("on".to_owned());
    } else if !path.profiles.is_empty() {
        parts.push(format!("on in {}", path.profiles.join(", ")));
    }
    if !path.enabled_by.is_empty() {
        parts.push(format!("option {}", path.enabled_by.join(", ")));
    }
    if parts.is_empty() {
        parts.push("off".to_owned());
    }
    if !path.disabled_by.is_empty() {
        parts.push(format!("not with {}", path.disabled_by.join(", ")));
    }
    parts.join("; ")
}

pub(super) fn listing<'a>(catalogue: &'a Catalogue, items: &[Item<'a>]) -> Catalog<'a> {
    let all = items.is_empty();
    let wanted = |is: &dyn Fn(&Item<'a>) -> bool| all || items.iter().any(is);
    Catalog {
        paths: catalogue
            .paths()
            .iter()
            .filter(|p| wanted(&|i| has(catalogue, *i, p)))
            .map(|path| path_listing(catalogue, path))
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
                outside: &option.outside,
                requires: &option.requires,
            })
            .collect(),
        groups: catalogue
            .groups()
            .iter()
            .filter(|g| wanted(&|i| matches!(i, Item::Group(own) if own.name == g.name)))
            .map(|group| GroupListing {
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
            .map(|role| RoleListing {
                name: &role.name,
                description: &role.description,
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
        needs_cgroup: component.needs_cgroup,
        programs: &component.programs,
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

pub(super) fn option_names(profile: &Profile) -> Vec<&str> {
    profile.options.iter().map(|o| o.name.as_str()).collect()
}

pub(super) fn profiles_with<'a>(catalogue: &'a Catalogue, option: &ProfileOption) -> Vec<&'a str> {
    let profiles = catalogue.profiles().iter();
    profiles
        .filter(|profile| profile.options.iter().any(|o| o.name == option.name))
        .map(|profile| profile.name.as_str())
        .collect()
}

/// Where a component is unless an Inventory says otherwise.
pub(super) fn whereabouts(component: &Component) -> String {
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
