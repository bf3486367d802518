//! Dependencies point in one direction: between crates as the layers in ARCHITECTURE.md say,
//! between modules without cycles; and pure crates stay pure. Reads manifests and sources, and
//! builds nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

/// Each crate depends only on crates in lower layers, and every crate has a layer.
#[test]
fn crates_depend_on_lower_layers() {
    let layers = layers();
    let packages: BTreeMap<String, &String> = layers
        .iter()
        .flatten()
        .map(|directory| (Manifest::of(directory).name, directory))
        .collect();
    let layer = |directory: &str| layers.iter().position(|l| l.iter().any(|c| c == directory));
    let mut wrong = Vec::new();
    for directory in layers.iter().flatten() {
        for package in Manifest::of(directory).dependencies {
            let used = packages.get(&package);
            if used.is_some_and(|used| layer(used) <= layer(directory)) {
                wrong.push(format!(
                    "{directory}/Cargo.toml: {package} is not in a lower layer (ARCHITECTURE.md)"
                ));
            }
        }
    }
    let all: BTreeSet<&String> = layers.iter().flatten().collect();
    let members = members();
    for member in members.iter().filter(|member| !all.contains(member)) {
        wrong.push(format!("ARCHITECTURE.md: {member} has no layer"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// In the product's crates, sibling modules do not import each other in a cycle.
#[test]
fn sibling_modules_have_no_import_cycle() {
    let layers = layers();
    let product = layers.iter().skip_while(|l| !l.contains(&TOP.to_owned()));
    let mut wrong = Vec::new();
    for directory in product.flatten() {
        for cycle in cycles(&sources(directory)) {
            wrong.push(format!(
                "import cycle; move what both sides need into a module below them:\n{cycle}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The decision, the policy language and its compiler need no operating system and no BPF build.
#[test]
fn pure_crates_stay_pure() {
    let mut wrong = Vec::new();
    for directory in PURE {
        for package in Manifest::of(directory).dependencies {
            if SYSTEM_PACKAGES.iter().any(|of| package.starts_with(of)) {
                wrong.push(format!("{directory}/Cargo.toml: {package}"));
            }
        }
        if workspace().join(directory).join("build.rs").exists() {
            wrong.push(format!("{directory}/build.rs"));
        }
        for source in sources(directory) {
            for import in imports(&source.code, "std::") {
                let touches = match import.path[..] {
                    ["std", "net", what, ..] => what.starts_with("Tcp") || what.starts_with("Udp"),
                    ["std", module, ..] => SYSTEM_MODULES.contains(&module),
                    _ => false,
                };
                if touches {
                    wrong.push(format!("{}: {}", source.file, import.path.join("::")));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "these crates are pure, and use the system here:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn cycles_are_found() {
    let check = |files: &[(&str, &str)], expected: &[&str]| {
        let sources: Vec<Source> = files.iter().map(|(f, code)| Source::new(f, code)).collect();
        assert_eq!(cycles(&sources), expected, "{files:?}");
    };
    check(
        &[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::{C, d};\n// crate::a"),
            ("b.rs", "fn f() -> super::a::A {}"),
        ],
        &["  a.rs uses b\n  b.rs uses a"],
    );
    // Through a third module, and through a re-export in the parent.
    check(
        &[
            ("x/mod.rs", "mod a; mod b; mod c;\npub use c::{C as D, E};"),
            ("x/a.rs", "use super::{b::B, Own};"),
            ("x/b.rs", "use super::D;"),
            ("x/c.rs", "use crate::{y::Y, x::a::{self, A}};"),
            ("y.rs", ""),
        ],
        &["  x/a.rs uses b\n  x/b.rs uses c\n  x/c.rs uses a"],
    );
    // Imports of tests do not count, nor do those between a parent and its children.
    check(
        &[
            ("x.rs", "mod a; use a::A;"),
            (
                "x/a.rs",
                "use super::X;\n#[cfg(test)]\nmod tests {\n    use crate::y::Y;\n}",
            ),
            ("y.rs", "use crate::x::X;"),
            ("y/tests.rs", "use crate::z::Z;"),
            ("z.rs", "use crate::y::Y;"),
        ],
        &[],
    );
}

/// The highest of the product's crates; the others are below it.
const TOP: &str = "enforcer";
const PURE: [&str; 2] = ["enforcer-common", "enforcer-policy"];
/// Prefixes of packages that need an operating system.
const SYSTEM_PACKAGES: [&str; 7] = [
    "aya",
    "libc",
    "netlink",
    "nix",
    "rtnetlink",
    "rustix",
    "tokio",
];
const SYSTEM_MODULES: [&str; 7] = ["env", "fs", "io", "os", "process", "thread", "time"];

fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The layers in ARCHITECTURE.md, highest first: the directories of their crates.
fn layers() -> Vec<Vec<String>> {
    let text = read(&workspace().join("ARCHITECTURE.md"));
    let section = text.split("\n## Layers\n").nth(1).unwrap_or_default();
    let diagram = section.split("```").nth(1).unwrap_or_default();
    let crates = diagram.lines().filter_map(|line| line.split('│').nth(1));
    let layers: Vec<Vec<String>> = crates
        .map(|crates| crates.split_whitespace().map(str::to_owned).collect())
        .collect();
    assert!(!layers.is_empty(), "ARCHITECTURE.md shows no layers");
    layers
}

/// The directories of the workspace's crates.
fn members() -> Vec<String> {
    let text = read(&workspace().join("Cargo.toml"));
    let list = text.split("\nmembers = [").nth(1).unwrap_or_default();
    let list = list.split("\n]").next().unwrap_or_default();
    let quoted = list.lines().filter_map(|line| line.split('"').nth(1));
    quoted.map(str::to_owned).collect()
}

/// A crate's name, and its dependencies of all kinds.
struct Manifest {
    name: String,
    dependencies: BTreeSet<String>,
}

impl Manifest {
    fn of(directory: &str) -> Self {
        let mut manifest = Self {
            name: String::new(),
            dependencies: BTreeSet::new(),
        };
        let text = read(&workspace().join(directory).join("Cargo.toml"));
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.trim_end_matches(']');
            } else if section.ends_with("dependencies") {
                let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
                manifest.dependencies.insert(name.to_owned());
            } else if let ("package", Some(name)) = (section, line.strip_prefix("name = ")) {
                manifest.name = name.trim_matches('"').to_owned();
            }
        }
        manifest
    }
}

/// A source file of a crate.
struct Source {
    file: String,
    /// The path of its module.
    module: Vec<String>,
    /// Without comments, and without the test module at its end.
    code: String,
}

impl Source {
    /// A file by its path below `src`.
    fn new(file: &str, text: &str) -> Self {
        let names = file.trim_end_matches(".rs").split('/');
        let mut module: Vec<String> = names.map(str::to_owned).collect();
        let is_named_after_place =
            matches!(file, "lib.rs" | "main.rs") || file.ends_with("/mod.rs");
        if is_named_after_place {
            module.pop();
        }
        let code = text.split("#[cfg(test)]\nmod tests {").next();
        let lines = code.unwrap_or_default().lines();
        let code: Vec<&str> = lines
            .map(|line| line.split("//").next().unwrap_or_default())
            .collect();
        Self {
            file: file.to_owned(),
            module,
            code: code.join("\n"),
        }
    }

    fn is_test(&self) -> bool {
        self.module.iter().any(|name| name == "tests")
    }
}

/// The sources of a crate, without test modules; `file` is relative to the workspace.
fn sources(directory: &str) -> Vec<Source> {
    let root = workspace().join(directory).join("src");
    let mut files = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            match path.extension() {
                _ if path.is_dir() => open.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    let below = |path: &PathBuf| {
        let below = path.strip_prefix(&root).expect("a file below the root");
        below.to_string_lossy().into_owned()
    };
    let sources = files.iter().map(|path| Source {
        file: format!("{directory}/src/{}", below(path)),
        ..Source::new(&below(path), &read(path))
    });
    sources.filter(|source| !source.is_test()).collect()
}

/// An imported or used path, and its name in this file.
#[derive(Debug)]
struct Import<'a> {
    path: Vec<&'a str>,
    name: &'a str,
}

/// All paths in the code that begin with `start`, in imports and elsewhere.
fn imports<'a>(code: &'a str, start: &str) -> Vec<Import<'a>> {
    let mut imports = Vec::new();
    for (at, _) in code.match_indices(start) {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':')) {
            read_tree(&code[at..], &[], &mut imports);
        }
    }
    imports
}

/// Reads `a::{b, c::d as e}` and returns the rest.
fn read_tree<'a>(text: &'a str, prefix: &[&'a str], imports: &mut Vec<Import<'a>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut list) = text.strip_prefix('{') {
        loop {
            list = list.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            let rest = read_tree(list, prefix, imports);
            if rest.len() == list.len() {
                return list.strip_prefix('}').unwrap_or(list);
            }
            list = rest;
        }
    }
    let (name, rest) = split_name(text);
    if name.is_empty() {
        return text;
    }
    let path = match name {
        "self" if !prefix.is_empty() => prefix.to_vec(),
        name => [prefix, &[name]].concat(),
    };
    if let Some(tail) = rest.strip_prefix("::") {
        let count = imports.len();
        let rest = read_tree(tail, &path, imports);
        if imports.len() > count {
            return rest;
        }
    }
    let name = path.last().copied().unwrap_or_default();
    let (name, rest) = match rest.strip_prefix(" as ") {
        Some(renamed) => split_name(renamed),
        None => (name, rest),
    };
    imports.push(Import { path, name });
    rest
}

fn split_name(text: &str) -> (&str, &str) {
    let is_other = |c: char| !c.is_alphanumeric() && c != '_';
    text.split_at(text.find(is_other).unwrap_or(text.len()))
}

/// The modules of a crate, and what each re-exports.
struct Modules<'a> {
    exports: BTreeMap<&'a [String], BTreeMap<&'a str, Vec<&'a str>>>,
}

impl<'a> Modules<'a> {
    fn of(sources: &'a [Source]) -> Self {
        let exports = |source: &'a Source| {
            let mut imports = Vec::new();
            for (at, _) in source.code.match_indices("use ") {
                let line = source.code[..at].lines().next_back().unwrap_or_default();
                if line.trim_start().starts_with("pub") {
                    read_tree(&source.code[at + "use ".len()..], &[], &mut imports);
                }
            }
            imports.into_iter().map(|i| (i.name, i.path)).collect()
        };
        let modules = sources.iter().map(|s| (&s.module[..], exports(s)));
        Self {
            exports: modules.collect(),
        }
    }

    /// The module that a path in module `from` leads to, through re-exports.
    fn find(&self, from: &[String], path: &[&str]) -> Vec<String> {
        let mut at = from.to_vec();
        let mut path = VecDeque::from(path.to_vec());
        // Bounded, in case re-exports form a cycle.
        for _ in 0..100 {
            let Some(name) = path.pop_front() else { break };
            match name {
                "crate" => at.clear(),
                "self" => {}
                "super" => drop(at.pop()),
                name => {
                    let below = [&at[..], &[name.to_owned()]].concat();
                    let exported = self.exports.get(&at[..]).and_then(|names| names.get(name));
                    if self.exports.contains_key(&below[..]) {
                        at = below;
                    } else if let Some(exported) = exported {
                        exported.iter().rev().for_each(|n| path.push_front(n));
                    } else {
                        break;
                    }
                }
            }
        }
        at
    }
}

/// Which module uses which sibling, and in which file.
type Uses<'a> = BTreeMap<&'a str, BTreeMap<String, &'a str>>;

/// Import cycles between siblings, one line per file.
fn cycles(sources: &[Source]) -> Vec<String> {
    let modules = Modules::of(sources);
    let mut levels: BTreeMap<&[String], Uses<'_>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let module = &source.module;
        let starts = ["crate::", "self::", "super::"];
        for import in starts.iter().flat_map(|start| imports(&source.code, start)) {
            let used = modules.find(module, &import.path);
            let pairs = module.iter().zip(&used);
            let common = pairs.take_while(|(one, other)| one == other).count();
            // A parent or a child is not a sibling.
            if let (Some(one), Some(other)) = (module.get(common), used.get(common)) {
                let uses = levels.entry(&module[..common]).or_default();
                let uses = uses.entry(one).or_default();
                uses.insert(other.clone(), &source.file);
            }
        }
    }
    levels.values().filter_map(shortest_cycle).collect()
}

fn shortest_cycle(uses: &Uses<'_>) -> Option<String> {
    let back_to = |start: &str| {
        let mut ways = VecDeque::from([vec![start.to_owned()]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let nexts = way.last().and_then(|last| uses.get(last.as_str()));
            for next in nexts.into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    return Some(way);
                }
                if seen.insert(next) {
                    ways.push_back([&way[..], std::slice::from_ref(next)].concat());
                }
            }
        }
        None
    };
    let way = uses
        .keys()
        .filter_map(|start| back_to(start))
        .min_by_key(Vec::len)?;
    let nexts = way.iter().cycle().skip(1);
    let lines = way.iter().zip(nexts).map(|(one, next)| {
        let file = uses.get(one.as_str()).and_then(|uses| uses.get(next));
        format!("  {} uses {next}", file.copied().unwrap_or(one))
    });
    Some(lines.collect::<Vec<_>>().join("\n"))
}
