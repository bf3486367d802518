//! The documented component paths, built in: `policies/catalogue.yaml`, in the language that users write.

use std::sync::LazyLock;

use crate::error::{Location, PolicyErrors, Problem, Report, quote};
use crate::model::{Component, Path};
use crate::read::components::{self, Base};
use crate::read::limits::LIMITS;
use crate::read::scope::{Scope, twice, unique};
use crate::read::source::{CatalogueSpec, GroupSource, OptionSource, ProfileSource, Spec};
use crate::read::{paths, yaml};
use crate::span::{Entries, SourceText, Spanned};

/// The components, paths and profiles that are built in.
#[derive(Debug)]
pub struct Catalogue {
    text: String,
    roles: Vec<Role>,
    components: Vec<Component>,
    paths: Vec<Path>,
    groups: Vec<Group>,
    options: Vec<ProfileOption>,
    profiles: Vec<Profile>,
}

/// A set of paths that profiles share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name, as in profiles.
    pub name: String,
    /// What its paths are for.
    pub description: String,
    /// Names of its paths.
    pub paths: Vec<String>,
}

/// A role that a node may have.
#[derive(Debug, Clone)]
pub struct Role {
    /// As written in a node's `roles`.
    pub name: String,
    /// What it means.
    pub description: String,
}

/// A set of paths that a policy selects by name.
#[derive(Debug, Clone)]
pub struct Profile {
    /// As written in `profile`.
    pub name: String,
    /// For which nodes and clusters.
    pub description: String,
    /// Names of the groups that it is made of.
    pub groups: Vec<String>,
    /// Names of all its paths, those of its groups included.
    pub paths: Vec<String>,
    /// What can be added to it, or taken away.
    pub options: Vec<ProfileOption>,
    /// Components that the Inventory must place.
    pub requires: Vec<String>,
}

/// An option of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileOption {
    /// As written in `options`.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Names of the paths it adds.
    pub enable: Vec<String>,
    /// Names of the paths it takes away.
    pub disable: Vec<String>,
    /// Components that it guards.
    pub guard: Vec<String>,
    /// Components that are anywhere outside with this option, unless the Inventory says where.
    pub outside: Vec<String>,
    /// Components that the Inventory must place.
    pub requires: Vec<String>,
}

impl Catalogue {
    /// The built-in catalogue.
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
            // The text is part of the program and read by a test, so this cannot fail in the field.
            Catalogue::read(TEXT).unwrap_or_else(|errors| panic!("built-in catalogue: {errors}"))
        });
        &BUILTIN
    }

    /// Its text, as YAML.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The roles that a node may have besides those that the user's own components name.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// All components, in the order of the text.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// All paths, in the order of the text.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// All groups, in the order of the text.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// All options, in the order of the text.
    pub fn options(&self) -> &[ProfileOption] {
        &self.options
    }

    /// All profiles, in the order of the text.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The path of that name.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.paths.iter().find(|path| path.name == name)
    }

    /// Whether a sender anywhere outside may count as this component: it is meant for strangers.
    pub fn is_for_strangers(&self, component: &str) -> bool {
        let outside = |known: &Component| known.name == component && known.outside;
        self.components.iter().any(outside)
            || self
                .options
                .iter()
                .any(|option| option.outside.iter().any(|name| name == component))
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|profile| profile.name == name)
    }

    /// Reads a catalogue with the same strictness as a user's files.
    fn read(text: &str) -> Result<Self, PolicyErrors> {
        let sources = [SourceText {
            name: "policies/catalogue.yaml".to_owned(),
            text: text.to_owned(),
        }];
        let mut report = Report::new(&sources);
        let mut catalogue = None;
        for document in yaml::documents(&sources[0], 0, &LIMITS, &mut report) {
            yaml::check_object(&document, 0, &mut report);
            if let Spec::Catalogue(spec) = &document.spec {
                let mut scope = Scope {
                    file: 0,
                    report: &mut report,
                };
                catalogue = Some(Self::from_spec(&mut scope, text, &spec.value));
            } else {
                report.error(
                    Location {
                        file: 0,
                        span: document.spec_span,
                    },
                    || Problem::new("not a catalogue", "write `kind: Catalogue`"),
                );
            }
        }
        report.finish(catalogue)
    }

    fn from_spec(scope: &mut Scope<'_, '_>, text: &str, spec: &CatalogueSpec) -> Self {
        let components = components::read(scope, &spec.components, Base::default());
        for (name, component) in &spec.components.0 {
            if component.value.description.is_none() {
                scope.error(name.span, || missing(&name.value, "description"));
            }
        }
        let paths = read_paths(scope, spec, &components);
        let groups = read_groups(scope, &spec.groups, &paths);
        let options = read_options(scope, &spec.options, &paths, &components);
        let known = Known {
            paths: &paths,
            components: &components,
            groups: &groups,
            options: &options,
        };
        let profiles = read_profiles(scope, &spec.profiles, &known);
        let role = |(name, text): &(Spanned<String>, Spanned<Spanned<String>>)| Role {
            name: name.value.clone(),
            description: text.value.value.clone(),
        };
        let roles = spec.roles.0.iter().map(role).collect();
        Self {
            text: text.to_owned(),
            roles,
            components,
            paths,
            groups,
            options,
            profiles,
        }
    }
}

impl Profile {
    /// Names of the paths with these options. Unknown options change nothing. A path that one option removes is not
    /// added back by another.
    pub fn paths_with(&self, options: &[&str]) -> Vec<&str> {
        let chosen = || {
            self.options
                .iter()
                .filter(|option| options.contains(&option.name.as_str()))
        };
        let taken: Vec<&String> = chosen().flat_map(|option| &option.disable).collect();
        let mut names: Vec<&str> = Vec::new();
        for name in self
            .paths
            .iter()
            .chain(chosen().flat_map(|option| &option.enable))
        {
            if !taken.contains(&name) && !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

fn read_paths(
    scope: &mut Scope<'_, '_>,
    spec: &CatalogueSpec,
    components: &[Component],
) -> Vec<Path> {
    let index = paths::Index::of(components);
    let mut found: Vec<Path> = Vec::new();
    for source in &spec.paths {
        let name = &source.value.name;
        let Some(path) = paths::read_path(scope, source, &index, "catalogue".to_owned()) else {
            continue;
        };
        if path.document.is_empty() {
            scope.error(name.span, || missing(&name.value, "document"));
        }
        if path.symptom.is_empty() {
            scope.error(name.span, || missing(&name.value, "symptom"));
        }
        if found.iter().any(|other| other.name == path.name) {
            scope.error(name.span, || twice(&name.value));
        }
        found.push(path);
    }
    found
}

/// The names that profiles may use.
struct Known<'a> {
    paths: &'a [Path],
    components: &'a [Component],
    groups: &'a [Group],
    options: &'a [ProfileOption],
}

fn read_groups(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<GroupSource>,
    paths: &[Path],
) -> Vec<Group> {
    let mut groups = Vec::new();
    for (name, source) in &entries.0 {
        groups.push(Group {
            name: name.value.clone(),
            description: source.value.description.value.trim().to_owned(),
            paths: path_names(scope, &source.value.paths, paths),
        });
    }
    groups
}

fn read_options(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<OptionSource>,
    paths: &[Path],
    components: &[Component],
) -> Vec<ProfileOption> {
    let mut options = Vec::new();
    for (name, source) in &entries.0 {
        let OptionSource {
            description,
            enable,
            disable,
            guard,
            outside,
            requires,
        } = &source.value;
        options.push(ProfileOption {
            name: name.value.clone(),
            description: description.value.trim().to_owned(),
            enable: path_names(scope, enable, paths),
            disable: path_names(scope, disable, paths),
            guard: component_names(scope, guard, components),
            outside: component_names(scope, outside, components),
            requires: component_names(scope, requires, components),
        });
    }
    options
}

fn read_profiles(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ProfileSource>,
    known: &Known<'_>,
) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (name, source) in &entries.0 {
        let ProfileSource {
            description,
            groups,
            paths: own,
            options,
            requires,
        } = &source.value;
        let groups: Vec<&Group> = unique(scope, groups, |name| {
            let found = known.groups.iter().find(|group| group.name == name);
            found.ok_or_else(|| {
                let names = known.groups.iter().map(|group| group.name.as_str());
                Problem::unknown(format!("no group is called {}", quote(name)), name, names)
            })
        });
        let options = unique(scope, options, |name| {
            let found = known.options.iter().find(|option| option.name == name);
            found.cloned().ok_or_else(|| {
                let names = known.options.iter().map(|option| option.name.as_str());
                Problem::unknown(format!("no option is called {}", quote(name)), name, names)
            })
        });
        let mut paths: Vec<String> = groups
            .iter()
            .flat_map(|group| group.paths.clone())
            .collect();
        paths.extend(path_names(scope, own, known.paths));
        profiles.push(Profile {
            name: name.value.clone(),
            description: description.value.trim().to_owned(),
            groups: groups.iter().map(|group| group.name.clone()).collect(),
            paths,
            options,
            requires: component_names(scope, requires, known.components),
        });
    }
    profiles
}

fn component_names(
    scope: &mut Scope<'_, '_>,
    texts: &[Spanned<String>],
    components: &[Component],
) -> Vec<String> {
    unique(scope, texts, |name| {
        if components.iter().any(|component| component.name == name) {
            return Ok(name.to_owned());
        }
        Err(components::unknown(name, components))
    })
}

fn path_names(scope: &mut Scope<'_, '_>, texts: &[Spanned<String>], paths: &[Path]) -> Vec<String> {
    unique(scope, texts, |name| {
        if paths.iter().any(|path| path.name == name) {
            return Ok(name.to_owned());
        }
        let known = paths.iter().map(|path| path.name.as_str());
        Err(Problem::unknown(
            format!("no path is called {}", quote(name)),
            name,
            known,
        ))
    })
}

fn missing(name: &str, field: &str) -> Problem {
    Problem::new(
        format!("{} has no {field}", quote(name)),
        format!("write `{field}:`"),
    )
}

const TEXT: &str = include_str!("../../policies/catalogue.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_catalogue_is_valid_and_whole() {
        let catalogue = Catalogue::read(TEXT).unwrap_or_else(|errors| panic!("{errors}"));
        for profile in &catalogue.profiles {
            for name in &profile.paths {
                let times = profile.paths.iter().filter(|other| *other == name).count();
                assert_eq!(times, 1, "{} has {name} more than once", profile.name);
            }
        }
        for option in &catalogue.options {
            let chosen = |profile: &Profile| profile.options.iter().any(|o| o.name == option.name);
            let with: Vec<&Profile> = catalogue.profiles.iter().filter(|p| chosen(p)).collect();
            assert!(!with.is_empty(), "no profile has option {}", option.name);
            for name in &option.enable {
                let free = with.iter().any(|profile| !profile.paths.contains(name));
                assert!(
                    free,
                    "{} enables {name}, which all its profiles have",
                    option.name
                );
            }
            assert!(!option.enable.is_empty(), "{} enables nothing", option.name);
        }
        for group in &catalogue.groups {
            let used = |profile: &Profile| profile.groups.contains(&group.name);
            assert!(
                catalogue.profiles.iter().any(used),
                "no profile has group {}",
                group.name
            );
        }
    }

    #[test]
    fn errors_in_a_catalogue_are_found() {
        let text = TEXT.replacen("profiles:", "profiels:", 1);
        let errors = Catalogue::read(&text)
            .expect_err("a field with a typing error")
            .to_string();
        assert!(errors.contains("did you mean `profiles`?"), "{errors}");
    }
}
