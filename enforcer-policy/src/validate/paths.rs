//! Which paths are in force: those of the profile and its options, without the disabled ones, and the user's own.

use std::collections::{HashMap, HashSet};

use super::documents::Found;
use crate::catalogue::{Catalogue, Profile, ProfileOption};
use crate::error::{Problem, list, quote};
use crate::model::{Component, Locality, Mode, OtherTraffic, Path, PortMatch};
use crate::read::paths::{Index, read_path};
use crate::read::scalar;
use crate::read::scope::{Scope, choice, twice};
use crate::read::source::{MODES, OTHER_TRAFFIC, PathPolicySpec};
use crate::span::{Span, Spanned};

/// A path policy that has been read.
pub(crate) struct Chosen {
    pub mode: Option<Mode>,
    pub other_traffic: Option<OtherTraffic>,
    pub tls_lock: Mode,
    pub paths: Vec<Path>,
    /// Components that the chosen options guard.
    pub guard: Vec<String>,
    /// Components that the selected options place anywhere outside.
    pub outside: Vec<String>,
    /// Components that the profile or an option requires.
    pub requires: Vec<Required>,
}

/// A component that must be placed somewhere.
pub(crate) struct Required {
    /// Its name.
    pub component: String,
    /// What requires it: `profile `worker``.
    pub by: String,
    /// The location of that.
    pub span: Span,
}

pub(crate) fn read(
    scope: &mut Scope<'_, '_>,
    file_name: &str,
    found: &Found<PathPolicySpec>,
    catalogue: &Catalogue,
    components: &[Component],
) -> Chosen {
    let spec = &found.spec.value;
    let mode = required(
        scope,
        found.spec_span,
        "mode",
        spec.mode.as_ref(),
        MODES,
        scalar::mode,
    );
    let other_traffic = required(
        scope,
        found.spec_span,
        "otherTraffic",
        spec.other_traffic.as_ref(),
        OTHER_TRAFFIC,
        scalar::other_traffic,
    );
    let tls_lock = spec
        .tls_lock
        .as_ref()
        .and_then(|text| choice(scope, "tlsLock", text, MODES, scalar::mode))
        .unwrap_or(Mode::Enforce);
    let picked = Picked::of(scope, spec, catalogue);
    let mut paths = documented_paths(scope, spec, catalogue, &picked);
    let index = Index::of(components);
    switched_off(scope, spec, &mut paths, &picked, &index);
    let mut places: HashMap<String, Span> = HashMap::new();
    let mut names: HashSet<String> = paths.iter().map(|path| path.name.clone()).collect();
    let from_profile = names.clone();
    for source in &spec.paths {
        let name = &source.value.name;
        if !names.insert(name.value.clone()) {
            let documented = from_profile.contains(&name.value);
            scope.error(name.span, || duplicate(&name.value, documented));
        }
        let origin = format!("{file_name}:{}", name.span.line);
        places.insert(name.value.clone(), name.span);
        paths.extend(read_path(scope, source, &index, origin));
    }
    if paths.is_empty() && spec.paths.is_empty() {
        scope.error(found.spec_span, || {
            Problem::new(
                "a policy without any path",
                "choose a `profile`, `enable` documented paths, or write `paths`: without one, nobody would reach anything guarded",
            )
        });
    }
    // Entries of the Inventory may have changed the ports of documented paths.
    for path in &paths {
        let span = places.get(&path.name).copied().unwrap_or(found.spec_span);
        check_possible(scope, span, path, &index);
        check_tls(scope, span, path, &index);
    }
    check_modes(scope, &paths, &places, found.spec_span);
    close_to_loopback(&mut paths, &index);
    Chosen {
        mode,
        other_traffic,
        tls_lock,
        paths,
        guard: picked.guard(),
        outside: picked.outside(),
        requires: picked.requires(spec),
    }
}

/// Removes paths to a port that the Inventory switches off. If nothing is left of what the policy enables, that is
/// reported.
fn switched_off(
    scope: &mut Scope<'_, '_>,
    spec: &PathPolicySpec,
    paths: &mut Vec<Path>,
    picked: &Picked<'_>,
    index: &Index<'_>,
) {
    let is_there = |path: &Path| {
        let to = index.get(&path.to_component);
        to.is_some_and(|to| to.port(&path.to_port).is_some())
    };
    let off: HashMap<String, String> = paths
        .iter()
        .filter(|path| !is_there(path))
        .map(|path| {
            (
                path.name.clone(),
                format!("{}:{}", path.to_component, path.to_port),
            )
        })
        .collect();
    paths.retain(is_there);
    let problem = |what: String, end: &str| {
        Problem::new(
            format!("{what} leads to `{end}`, which the Inventory switches off"),
            "leave one of them out",
        )
    };
    for text in &spec.enable {
        if let Some(end) = off.get(&text.value) {
            scope.error(text.span, || {
                problem(format!("path {}", quote(&text.value)), end)
            });
        }
    }
    for option in &picked.options {
        let first = option.enable.first().and_then(|name| off.get(name));
        let written = spec.options.iter().find(|text| text.value == option.name);
        if let (Some(end), Some(written)) = (first, written)
            && option.enable.iter().all(|name| off.contains_key(name))
        {
            scope.error(written.span, || {
                problem(format!("option `{}`", option.name), end)
            });
        }
    }
}

fn required<T>(
    scope: &mut Scope<'_, '_>,
    spec: Span,
    field: &str,
    text: Option<&Spanned<String>>,
    known: [&'static str; 2],
    read: fn(&str) -> Option<T>,
) -> Option<T> {
    match text {
        Some(text) => choice(scope, field, text, known, read),
        None => {
            scope.error(spec, || {
                let help = format!("write `{field}: {}` or `{field}: {}`", known[0], known[1]);
                Problem::new(format!("{field} is missing"), help)
            });
            None
        }
    }
}

/// The selected profile and options.
struct Picked<'a> {
    profile: Option<&'a Profile>,
    options: Vec<&'a ProfileOption>,
}

impl<'a> Picked<'a> {
    fn of(scope: &mut Scope<'_, '_>, spec: &PathPolicySpec, catalogue: &'a Catalogue) -> Self {
        let Some(written) = &spec.profile else {
            for name in &spec.options {
                scope.error(name.span, || {
                    Problem::new(
                        format!(
                            "{} belongs to a profile, and there is none",
                            quote(&name.value)
                        ),
                        "choose a `profile`, or leave this out",
                    )
                });
            }
            return Self {
                profile: None,
                options: Vec::new(),
            };
        };
        let profile = catalogue.profile(&written.value);
        if profile.is_none() {
            scope.error(written.span, || {
                let known = catalogue.profiles().iter();
                Problem::unknown(
                    format!("no profile is called {}", quote(&written.value)),
                    &written.value,
                    known.map(|profile| profile.name.as_str()),
                )
            });
        }
        let options = profile
            .map(|profile| read_options(scope, &spec.options, profile, catalogue))
            .unwrap_or_default();
        Self { profile, options }
    }

    /// Names of the paths, before the user's own `enable` and `disable`.
    fn paths(&self) -> Vec<&'a str> {
        let options: Vec<&str> = self.options.iter().map(|o| o.name.as_str()).collect();
        self.profile
            .map(|profile| profile.paths_with(&options))
            .unwrap_or_default()
    }

    fn guard(&self) -> Vec<String> {
        let guarded = self.options.iter().flat_map(|option| &option.guard);
        guarded.cloned().collect()
    }

    fn outside(&self) -> Vec<String> {
        let outside = self.options.iter().flat_map(|option| &option.outside);
        outside.cloned().collect()
    }

    fn requires(&self, spec: &PathPolicySpec) -> Vec<Required> {
        let mut all = Vec::new();
        if let (Some(profile), Some(written)) = (self.profile, &spec.profile) {
            all.extend(profile.requires.iter().map(|component| Required {
                component: component.clone(),
                by: format!("profile `{}`", profile.name),
                span: written.span,
            }));
        }
        for option in &self.options {
            let written = spec.options.iter().find(|text| text.value == option.name);
            let span = written.map(|text| text.span).unwrap_or_default();
            all.extend(option.requires.iter().map(|component| Required {
                component: component.clone(),
                by: format!("option `{}`", option.name),
                span,
            }));
        }
        all
    }
}

fn documented_paths(
    scope: &mut Scope<'_, '_>,
    spec: &PathPolicySpec,
    catalogue: &Catalogue,
    picked: &Picked<'_>,
) -> Vec<Path> {
    let mut names: HashSet<&str> = picked.paths().into_iter().collect();
    disable(scope, spec, &mut names, catalogue, picked);
    enable(scope, spec, &mut names, catalogue);
    catalogue
        .paths()
        .iter()
        .filter(|path| names.contains(path.name.as_str()))
        .cloned()
        .collect()
}

fn read_options<'a>(
    scope: &mut Scope<'_, '_>,
    written: &[Spanned<String>],
    profile: &'a Profile,
    catalogue: &Catalogue,
) -> Vec<&'a ProfileOption> {
    let mut options: Vec<&ProfileOption> = Vec::new();
    for text in written {
        let Some(option) = profile.options.iter().find(|o| o.name == text.value) else {
            scope.error(text.span, || {
                unknown_option(&text.value, profile, catalogue)
            });
            continue;
        };
        if options.iter().any(|known| known.name == option.name) {
            scope.error(text.span, || twice(&text.value));
        } else {
            options.push(option);
        }
    }
    options
}

fn unknown_option(written: &str, profile: &Profile, catalogue: &Catalogue) -> Problem {
    let message = format!(
        "profile `{}` has no option {}",
        profile.name,
        quote(written)
    );
    let has = |other: &&Profile| other.options.iter().any(|option| option.name == written);
    let others: Vec<String> = catalogue
        .profiles()
        .iter()
        .filter(has)
        .map(|other| format!("`{}`", other.name))
        .collect();
    let known = profile.options.iter().map(|known| known.name.as_str());
    if others.is_empty() {
        return Problem::unknown(message, written, known);
    }
    let known: Vec<&str> = known.collect();
    Problem::new(
        message,
        format!(
            "it has {}; {} {} `{written}`",
            list(&known),
            others.join(", "),
            if others.len() == 1 { "has" } else { "have" }
        ),
    )
}

fn disable(
    scope: &mut Scope<'_, '_>,
    spec: &PathPolicySpec,
    names: &mut HashSet<&str>,
    catalogue: &Catalogue,
    picked: &Picked<'_>,
) {
    let before: Vec<&str> = picked.paths();
    for text in &spec.disable {
        let name = text.value.as_str();
        if names.remove(name) {
            continue;
        }
        if before.contains(&name) {
            scope.error(text.span, || twice(name));
            continue;
        }
        scope.error(text.span, || match (picked.profile, catalogue.path(name)) {
            (None, Some(_)) => Problem::new(
                format!("{} belongs to a profile, and there is none", quote(name)),
                "choose a `profile`, or leave this out",
            ),
            (Some(profile), Some(_)) => Problem::new(
                format!("path {} is not in profile `{}`", quote(name), profile.name),
                "it is off already: leave this out",
            ),
            _ => Problem::unknown(
                format!("no path is called {}", quote(name)),
                name,
                before.iter().copied(),
            ),
        });
    }
}

fn enable<'a>(
    scope: &mut Scope<'_, '_>,
    spec: &PathPolicySpec,
    names: &mut HashSet<&'a str>,
    catalogue: &'a Catalogue,
) {
    let disabled: HashSet<&str> = spec
        .disable
        .iter()
        .map(|text| text.value.as_str())
        .collect();
    for text in &spec.enable {
        let name = text.value.as_str();
        let Some(path) = catalogue.path(name) else {
            let known = catalogue.paths().iter().map(|path| path.name.as_str());
            scope.error(text.span, || {
                Problem::unknown(
                    format!("the catalogue has no path {}", quote(name)),
                    name,
                    known,
                )
            });
            continue;
        };
        if disabled.contains(name) {
            scope.error(text.span, || {
                Problem::new(
                    format!("path {} is enabled and disabled", quote(name)),
                    "leave one of them out",
                )
            });
        } else if !names.insert(&path.name) {
            scope.error(text.span, || {
                Problem::new(
                    format!("path {} is on already", quote(name)),
                    "write each once, and only what profile and options do not have",
                )
            });
        }
    }
}

fn duplicate(name: &str, documented: bool) -> Problem {
    if documented {
        Problem::new(
            format!("path {} is in the profile already", quote(name)),
            format!("choose another name, or replace the documented one with `disable: [{name}]`"),
        )
    } else {
        Problem::new(
            format!("a second path is called {}", quote(name)),
            "choose another name",
        )
    }
}

/// A path over loopback, or to a loopback-only port, needs two ends that can be on one node.
fn check_possible(scope: &mut Scope<'_, '_>, span: Span, path: &Path, index: &Index<'_>) {
    let Some(target) = index.get(&path.to_component) else {
        return;
    };
    let locked = target
        .port(&path.to_port)
        .is_some_and(|port| port.loopback_only);
    if !path.loopback && !locked {
        return;
    }
    let here = |c: &Component| !c.runs_on.is_empty() || !c.cgroups.is_empty() || c.needs_cgroup;
    let senders = || path.from.iter().filter_map(|name| index.get(name));
    if target.runs_on.is_empty() {
        scope.error(span, || {
            Problem::new(
                format!(
                    "path {} goes over loopback, and `{}` runs on no node",
                    quote(&path.name),
                    target.name
                ),
                format!(
                    "write `{}: {{ runsOn: [ROLE] }}` in the Inventory",
                    target.name
                ),
            )
        });
    } else if !path.from.is_empty() && !senders().any(here) {
        scope.error(span, || {
            Problem::new(
                format!(
                    "path {} can never be used: `{}:{}` is reached over loopback only, and {} is no process of a node",
                    quote(&path.name),
                    path.to_component,
                    path.to_port,
                    path.from.join(", ")
                ),
                format!(
                    "give the sender `runsOn` or `cgroups`, or open the port with `{}: {{ ports: {{ {}: … }} }}`",
                    path.to_component, path.to_port
                ),
            )
        });
    }
}

/// Only TCP endpoints can require TLS.
fn check_tls(scope: &mut Scope<'_, '_>, span: Span, path: &Path, index: &Index<'_>) {
    let to = index.get(&path.to_component);
    let Some(port) = to.and_then(|to| to.port(&path.to_port)) else {
        return;
    };
    let other = port
        .matches
        .iter()
        .find(|found| !matches!(found, PortMatch::Tcp(..)));
    let (true, Some(other)) = (path.tls, other) else {
        return;
    };
    scope.error(span, || {
        Problem::new(
            format!(
                "path {} asks for TLS, and `{}:{}` is {other}, too",
                quote(&path.name),
                path.to_component,
                path.to_port
            ),
            format!(
                "lead it to a port of TCP alone: `{}: {{ ports: {{ https: 443/tcp }} }}` under `components` in the Inventory",
                path.to_component
            ),
        )
    });
}

/// A path's mode is about the endpoint, so the paths to one endpoint must agree.
fn check_modes(
    scope: &mut Scope<'_, '_>,
    paths: &[Path],
    places: &HashMap<String, Span>,
    spec: Span,
) {
    let mut modes: HashMap<(&str, &str), (Mode, &str)> = HashMap::new();
    for path in paths {
        let Some(mode) = path.mode else { continue };
        let end = (path.to_component.as_str(), path.to_port.as_str());
        let (first, first_path) = *modes.entry(end).or_insert((mode, &path.name));
        if first != mode {
            scope.error(places.get(&path.name).copied().unwrap_or(spec), || {
                Problem::new(
                    format!(
                        "{mode} for `{}:{}`, and path `{first_path}` says {first} for it",
                        end.0, end.1
                    ),
                    "a path's mode is about its endpoint: write the same, or write it once",
                )
            });
        }
    }
}

/// Completes paths: a loopback-only endpoint is reached over loopback, and loopback implies one node.
fn close_to_loopback(paths: &mut [Path], index: &Index<'_>) {
    for path in paths {
        let port = index
            .get(&path.to_component)
            .and_then(|to| to.port(&path.to_port));
        path.loopback |= port.is_some_and(|port| port.loopback_only);
        if path.loopback {
            path.locality = Locality::SameNode;
        }
    }
}
