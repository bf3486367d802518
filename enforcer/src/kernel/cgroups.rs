//! Directories of cgroups: where they are, which of them are declared, and which cgroup has an id.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use enforcer_common::{limits, tables::Party};
use enforcer_policy::{
    compile::{
        CgroupRule,
        cgroups::{rule_at, segments},
    },
    glob::Glob,
    text,
};

use super::KernelError;

/// A declared cgroup that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its id: the inode of the directory.
    pub id: u64,
    /// The party of its processes.
    pub party: Party,
}

/// The directory of the cgroup root that a node declares, below the cgroup v2 mount.
///
/// # Errors
///
/// There is no such mount, or no such directory in it.
pub fn root(below: &str) -> Result<PathBuf, KernelError> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(|source| KernelError::System {
            action: "read /proc/self/mountinfo",
            source,
        })?;
    let mount = mounts
        .lines()
        .find_map(cgroup2_mount)
        .ok_or(KernelError::NoCgroup2)?;
    let named = Path::new(below);
    let within = named.starts_with(&mount);
    let path = if within {
        named.to_owned()
    } else {
        mount.join(below.trim_start_matches('/'))
    };
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err(KernelError::CgroupRoot {
            path,
            source: io::ErrorKind::NotADirectory.into(),
        }),
        Err(source) => Err(KernelError::CgroupRoot { path, source }),
    }
}

/// The path of a cgroup's directory below the mount, as in /proc/PID/cgroup; `/` for the mount
/// itself.
pub fn below_mount(directory: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find_map(cgroup2_mount);
    let below = mount.and_then(|mount| directory.strip_prefix(mount).ok());
    format!("/{}", below.unwrap_or(Path::new("")).display())
}

/// The mount point, if a line of mountinfo is about the whole cgroup v2 hierarchy. The number of
/// fields before the separator depends on the optional ones, see proc_pid_mountinfo(5).
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next()? != "cgroup2" {
        return None;
    }
    mount
        .split(' ')
        .nth(4)
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
}

/// All existing cgroups that the rules declare. If several rules match one directory, the narrowest
/// applies, as in [`rule_at`].
pub fn resolve(root: &Path, rules: &[CgroupRule]) -> Vec<KnownCgroup> {
    let mut found: Vec<KnownCgroup> = Vec::new();
    let mut seen = HashSet::new();
    for rule in rules {
        for path in expand(root, &rule.pattern) {
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if seen.insert(metadata.ino()) {
                found.push(KnownCgroup {
                    id: metadata.ino(),
                    party: narrowest(root, rules, &path).unwrap_or(rule).party,
                    path,
                });
            }
        }
    }
    found
}

fn narrowest<'r>(root: &Path, rules: &'r [CgroupRule], path: &Path) -> Option<&'r CgroupRule> {
    let below = path.strip_prefix(root).ok()?.to_string_lossy();
    rule_at(rules, &segments(&below))
}

/// The directories that a pattern matches.
pub fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut level = vec![root.to_owned()];
    for segment in pattern.split('/').filter(|segment| !segment.is_empty()) {
        let glob = Glob::or_literal(segment);
        level = match glob.name() {
            None => level.iter().flat_map(|dir| matching(dir, &glob)).collect(),
            Some(name) => {
                let named = level.iter().map(|dir| dir.join(&name));
                named.filter(|dir| dir.is_dir()).collect()
            }
        };
    }
    level
}

fn matching(directory: &Path, glob: &Glob) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = children(directory)
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| glob.matches(&n.to_string_lossy()))
        })
        .collect();
    paths.sort();
    paths
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    // A removed directory has none.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Cgroups in the form that the kernel module takes.
pub fn pairs<'a>(known: impl IntoIterator<Item = &'a KnownCgroup>) -> Vec<(u64, Party)> {
    let known = known.into_iter();
    known.map(|cgroup| (cgroup.id, cgroup.party)).collect()
}

/// Paths of cgroups by their ids, for people. Cached, and read again when an id is unknown.
#[derive(Debug)]
pub struct CgroupPaths {
    mount: PathBuf,
    paths: HashMap<u64, String>,
    missed: HashMap<u64, ()>,
}

impl CgroupPaths {
    /// The cgroups below a directory.
    pub fn new(root: &Path) -> Self {
        Self {
            mount: root.to_owned(),
            paths: HashMap::new(),
            missed: HashMap::new(),
        }
    }

    /// The path below the root, `/` for the root itself. `None` if the cgroup is gone or elsewhere.
    pub fn get(&mut self, id: u64) -> Option<&str> {
        if !self.paths.contains_key(&id) && self.missed.insert(id, ()).is_none() {
            self.refresh();
        }
        self.paths.get(&id).map(String::as_str)
    }

    /// Whether there is a process in or below a cgroup that a pattern matches. If that cannot be
    /// determined, the cgroup counts as populated.
    pub fn is_populated(&self, pattern: &str) -> bool {
        let is_empty = |path: &PathBuf| {
            let events = fs::read_to_string(path.join("cgroup.events"));
            events.is_ok_and(|text| text.lines().any(|line| line == "populated 0"))
        };
        expand(&self.mount, pattern)
            .iter()
            .any(|path| !is_empty(path))
    }

    /// Forgets which ids were looked up in vain, as their cgroups may exist by now.
    pub fn retry(&mut self) {
        self.missed.clear();
    }

    fn refresh(&mut self) {
        // Somebody keeps creating and removing cgroups.
        if self.paths.len() > MAX_KEPT {
            self.paths.clear();
        }
        let mut open = vec![(self.mount.clone(), String::new())];
        // Paths of removed cgroups stay: their records may still have to be reported.
        while let Some((directory, name)) = open.pop() {
            if let Ok(metadata) = fs::metadata(&directory) {
                let shown = if name.is_empty() {
                    "/".to_owned()
                } else {
                    name.clone()
                };
                self.paths.insert(metadata.ino(), shown);
            }
            if name.matches('/').count() < 4 * limits::CGROUP_LEVELS as usize {
                for child in children(&directory) {
                    let last = child.file_name().unwrap_or_default();
                    let last = text::of_bytes(last.as_encoded_bytes());
                    open.push((child, format!("{name}/{last}")));
                }
            }
        }
    }
}

/// Above this number, paths of removed cgroups are dropped.
const MAX_KEPT: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "system.slice/etcd.service",
            "pods/a-pod1/c",
            "pods/b-pod2",
            "pods/other",
        ] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(root.path().join("pods/x-pod3"), "a file").unwrap();
        root
    }

    #[test]
    fn globs_expand_segment_by_segment() {
        let root = tree();
        for (pattern, expected) in [
            ("/", vec![""]),
            (
                "/system.slice/etcd.service",
                vec!["system.slice/etcd.service"],
            ),
            ("/pods/*-pod?", vec!["pods/a-pod1", "pods/b-pod2"]),
            ("/pods/*/c", vec!["pods/a-pod1/c"]),
            ("/*/etcd.service", vec!["system.slice/etcd.service"]),
            ("/absent", vec![]),
            ("/absent/*", vec![]),
        ] {
            let expected: Vec<PathBuf> = expected
                .into_iter()
                .map(|p| {
                    if p.is_empty() {
                        root.path().to_owned()
                    } else {
                        root.path().join(p)
                    }
                })
                .collect();
            assert_eq!(expand(root.path(), pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn an_id_leads_back_to_its_path() {
        let root = tree();
        let rule = CgroupRule {
            pattern: "/pods/a-*".to_owned(),
            party: 7,
            components: vec![],
        };
        let wider = CgroupRule {
            pattern: "/pods/*-pod1".to_owned(),
            party: 8,
            components: vec![],
        };
        let exact = CgroupRule {
            pattern: "/pods/a-pod1".to_owned(),
            party: 9,
            components: vec![],
        };
        let known = resolve(root.path(), &[wider, rule, exact]);
        assert_eq!(known.len(), 1, "one directory is one cgroup");
        assert_eq!(known[0].party, 9, "the narrowest has it");
        let mut paths = CgroupPaths::new(root.path());
        assert_eq!(paths.get(known[0].id), Some("/pods/a-pod1"));
        assert_eq!(paths.get(1), None);
        fs::create_dir(root.path().join("late")).unwrap();
        let late = fs::metadata(root.path().join("late")).unwrap().ino();
        assert_eq!(paths.get(late), Some("/late"));
    }

    #[test]
    fn the_mount_is_found_among_others() {
        let v1 = "30 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu";
        let v2 = "42 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(v1), None);
        assert_eq!(
            cgroup2_mount(v2),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
    }
}
