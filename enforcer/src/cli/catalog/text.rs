//! The catalogue for people.

use std::fmt::Write as _;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, TableStyle};
use enforcer_policy::{
    catalogue::Catalogue,
    model::{Component, Path, Port},
};

use super::{
    Item, has,
    listing::{default, option_names, path_listing, profiles_with, whereabouts},
};
use crate::api::PathListing;

pub(super) fn overview(catalogue: &Catalogue) -> String {
    let mut paths = table(&["PATH", "FROM", "TO", "LOCKS", "DEFAULT"]);
    for path in catalogue.paths() {
        let listing = path_listing(catalogue, path);
        paths.add_row([
            path.name.clone(),
            path.from.join(", "),
            format!("{} {}", listing.to, listing.ports.join(", ")),
            locks(&listing),
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

fn locks(listing: &PathListing<'_>) -> String {
    let locks: Vec<String> = listing.locks.iter().map(ToString::to_string).collect();
    locks.join(", ")
}

/// The default, for a table cell: several profiles are only counted.
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

pub(super) fn describe(catalogue: &Catalogue, item: Item<'_>) -> String {
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
                ("anywhere", option.outside.join(", ")),
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
                ("processes", processes(component)),
                ("programs", component.programs.join(", ")),
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
            "yes: a sender on no path to it is denied, whatever `otherTraffic` says".to_owned()
        }
        (false, false) => format!("with option {}", options.join(", ")),
        (false, true) => "no: `otherTraffic` decides where no path leads".to_owned(),
    }
}

/// Which processes of a node belong to it.
fn processes(component: &Component) -> String {
    if component.needs_cgroup {
        "those in its `cgroups`, and none before the Inventory has some".to_owned()
    } else if component.runs_on.is_empty() {
        String::new()
    } else {
        "those in its `cgroups`; without any, all that are in no declared cgroup".to_owned()
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
    let listing = path_listing(catalogue, path);
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
        ("locks", locks(&listing)),
        ("default", default(&listing, catalogue)),
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
    // People search for names, so they are never broken across lines.
    if let Some(names) = table.column_mut(0) {
        names.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// The same in a file and on a screen.
const WIDTH: u16 = 120;
