//! The documented component paths, built in: `policies/catalogue.yaml`, in the language that users write.

use std::sync::LazyLock;

use super::error::{Place, PolicyErrors, Problem, Report, quote};
use super::load::SourceText;
use super::model::{Component, Path};
use super::source::{CatalogueSpec, ProfileSource, Spec};
use super::span::{Entries, Spanned};
use super::validate::components::twice;
use super::validate::{Scope, components, paths};
use super::yaml;

/// Components, paths and profiles that every policy can count on.
#[derive(Debug)]
pub struct Catalogue {
    text: String,
    roles: Vec<Role>,
    components: Vec<Component>,
    paths: Vec<Path>,
    profiles: Vec<Profile>,
}

/// What a node may be.
#[derive(Debug, Clone)]
pub struct Role {
    /// As written in a node's `roles`.
    pub name: String,
    /// What it means.
    pub description: String,
}

/// A set of paths to be picked by name.
#[derive(Debug, Clone)]
pub struct Profile {
    /// As written in `profile`.
    pub name: String,
    /// For which nodes and clusters.
    pub description: String,
    /// Names of its paths.
    pub paths: Vec<String>,
    /// What can be added to it, or taken away.
    pub options: Vec<ProfileOption>,
}

/// A variant of a profile.
#[derive(Debug, Clone)]
pub struct ProfileOption {
    /// As written in `options`.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Names of the paths it adds.
    pub paths: Vec<String>,
    /// Names of the profile's paths it takes away.
    pub disable: Vec<String>,
}

impl Catalogue {
    /// The one that is built in.
    pub fn builtin() -> &'static Self {
        static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
            // The text is part of the program and a test reads it, so this cannot fail in the field.
            Catalogue::read(TEXT).unwrap_or_else(|errors| panic!("built-in catalogue: {errors}"))
        });
        &BUILTIN
    }

    /// Its text, as YAML.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The roles that a node may have without a component of the user's own naming them.
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

    /// All profiles, in the order of the text.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The path of that name.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.paths.iter().find(|path| path.name == name)
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
        for document in yaml::documents(&sources[0], 0, &mut report) {
            yaml::check_object(&document, 0, &mut report);
            if let Spec::Catalogue(spec) = &document.spec {
                let mut scope = Scope {
                    file: 0,
                    report: &mut report,
                };
                catalogue = Some(Self::from_spec(&mut scope, text, &spec.value));
            } else {
                report.error(
                    Place {
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
        let components = components::read(scope, &spec.components, &[]);
        for (name, component) in &spec.components.0 {
            if component.value.description.is_none() {
                scope.error(name.span, || missing(&name.value, "description"));
            }
        }
        let paths = read_paths(scope, spec, &components);
        let profiles = read_profiles(scope, &spec.profiles, &paths);
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
            profiles,
        }
    }
}

impl Profile {
    /// Names of the paths with these options. Unknown options change nothing.
    pub fn paths_with(&self, options: &[&str]) -> Vec<&str> {
        let chosen = || {
            self.options
                .iter()
                .filter(|option| options.contains(&option.name.as_str()))
        };
        let taken: Vec<&String> = chosen().flat_map(|option| &option.disable).collect();
        let added = chosen().flat_map(|option| &option.paths);
        self.paths
            .iter()
            .filter(|path| !taken.contains(path))
            .chain(added)
            .map(String::as_str)
            .collect()
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

fn read_profiles(
    scope: &mut Scope<'_, '_>,
    entries: &Entries<ProfileSource>,
    paths: &[Path],
) -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (name, source) in &entries.0 {
        let ProfileSource {
            description,
            paths: own,
            options,
        } = &source.value;
        let mut names = |texts: &[Spanned<String>]| path_names(scope, texts, paths);
        let own = names(own);
        let options = options
            .0
            .iter()
            .map(|(name, option)| ProfileOption {
                name: name.value.clone(),
                description: option.value.description.value.trim().to_owned(),
                paths: names(&option.value.paths),
                disable: names(&option.value.disable),
            })
            .collect();
        profiles.push(Profile {
            name: name.value.clone(),
            description: description.value.trim().to_owned(),
            paths: own,
            options,
        });
    }
    profiles
}

fn path_names(scope: &mut Scope<'_, '_>, texts: &[Spanned<String>], paths: &[Path]) -> Vec<String> {
    components::unique(scope, texts, |name| {
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

const TEXT: &str = include_str!("../../../policies/catalogue.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_catalogue_is_valid_and_whole() {
        let catalogue = Catalogue::read(TEXT).unwrap_or_else(|errors| panic!("{errors}"));
        for path in &catalogue.paths {
            let used = catalogue.profiles.iter().any(|profile| {
                let added = profile.options.iter().flat_map(|option| &option.paths);
                profile
                    .paths
                    .iter()
                    .chain(added)
                    .any(|name| *name == path.name)
            });
            assert!(used, "no profile has path {}", path.name);
        }
        for profile in &catalogue.profiles {
            for option in &profile.options {
                for name in &option.disable {
                    assert!(
                        profile.paths.contains(name),
                        "{} disables {name}",
                        option.name
                    );
                }
            }
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
