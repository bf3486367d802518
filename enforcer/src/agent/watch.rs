//! Watches directories: those where declared cgroups come and go, and those that hold the policy's
//! files.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use enforcer_policy::compile::CgroupRule;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

use crate::kernel::cgroups;

/// Reports that something happened in a watched directory.
pub struct Events(AsyncFd<Handle>);

/// The watched directories.
pub struct Directories {
    inotify: Arc<Inotify>,
    kinds: AddWatchFlags,
    watched: HashMap<PathBuf, WatchDescriptor>,
    exceeds_limit: bool,
}

/// An inotify instance as tokio wants it.
struct Handle(Arc<Inotify>);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// For directories that are created and removed.
pub fn for_directories() -> io::Result<(Events, Directories)> {
    open(
        AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR,
    )
}

/// For files that are replaced, or closed after writing. A file that is still being written causes
/// no event, so that nobody reads half of it.
pub fn for_files() -> io::Result<(Events, Directories)> {
    open(AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE)
}

fn open(kinds: AddWatchFlags) -> io::Result<(Events, Directories)> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let inotify = Arc::new(inotify);
    // SAFETY: the descriptor belongs to the shared instance in the handle, which never changes it
    // and lives as long as the registration.
    let events = unsafe { AsyncFd::register(Handle(Arc::clone(&inotify))) }?;
    let directories = Directories {
        inotify,
        kinds,
        watched: HashMap::new(),
        exceeds_limit: false,
    };
    Ok((Events(events), directories))
}

impl Directories {
    /// Watches exactly these directories. Returns whether one of them is new, so that something in
    /// it may have been missed. Those that do not exist or exceed the kernel's limit are left to
    /// the periodic check.
    pub fn only(&mut self, directories: BTreeSet<PathBuf>) -> bool {
        let inotify = &self.inotify;
        self.watched.retain(|path, watch| {
            // The kernel drops the watch of a removed directory. One with the same name is another
            // directory and needs a new watch.
            let stays = directories.contains(path) && path.is_dir();
            if !stays {
                let _ = inotify.rm_watch(*watch);
            }
            stays
        });
        let mut is_new = false;
        self.exceeds_limit = false;
        for directory in directories {
            match inotify.add_watch(&directory, self.kinds) {
                Ok(watch) => is_new |= self.watched.insert(directory, watch) != Some(watch),
                Err(error) => self.exceeds_limit |= error == Errno::ENOSPC,
            }
        }
        is_new
    }

    /// Whether some directories are not watched because of the kernel's limit on watches.
    pub fn exceeds_limit(&self) -> bool {
        self.exceeds_limit
    }
}

impl Events {
    /// Waits until something happens in one of them. Several events at once count as one.
    pub async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.0.readable_mut().await else {
                // The runtime is shutting down.
                return std::future::pending().await;
            };
            match ready.get_inner().0.read_events() {
                Ok(_) => return,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // An event that cannot be read is an event all the same.
                Err(_) => return,
            }
        }
    }
}

/// The directories in which those of declared cgroups may appear: every one on their paths.
pub fn of_cgroups(root: &Path, rules: &[CgroupRule]) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::from([root.to_owned()]);
    for rule in rules {
        let segments: Vec<&str> = rule.pattern.split('/').filter(|s| !s.is_empty()).collect();
        for end in 1..segments.len() {
            all.extend(cgroups::expand(root, &segments[..end].join("/")));
        }
    }
    all
}

/// The directories to watch for a policy's files: given directories themselves, and for a file both
/// its directory and that of its link's target.
pub fn of_files(inputs: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for input in inputs {
        if input.is_dir() {
            all.insert(input.clone());
            continue;
        }
        for path in [Some(input.clone()), std::fs::canonicalize(input).ok()] {
            let parent = path.as_deref().and_then(Path::parent).map(Path::to_owned);
            all.extend(parent.map(|parent| match parent.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => parent,
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn rule(pattern: &str) -> CgroupRule {
        CgroupRule {
            pattern: pattern.to_owned(),
            party: 1,
            components: vec![],
        }
    }

    async fn happens(events: &mut Events) -> bool {
        timeout(Duration::from_millis(300), events.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_declared_cgroup_is_noticed_when_it_comes_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let rules = [rule("/a.slice/*.scope/deep"), rule("/b.slice")];
        let all = || of_cgroups(root.path(), &rules);
        let (mut events, mut watch) = for_directories().unwrap();
        assert!(watch.only(all()), "the root is new");
        assert!(!watch.only(all()), "and then it is known");
        assert!(!happens(&mut events).await);
        fs::create_dir_all(root.path().join("a.slice/x.scope")).unwrap();
        assert!(happens(&mut events).await);
        assert!(watch.only(all()), "on the way there are new ones");
        while happens(&mut events).await {}
        fs::create_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut events).await);
        fs::remove_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut events).await);
        // A directory recreated under the same name is another directory.
        fs::remove_dir(root.path().join("a.slice/x.scope")).unwrap();
        fs::create_dir(root.path().join("a.slice/x.scope")).unwrap();
        assert!(happens(&mut events).await);
        watch.only(all());
        while happens(&mut events).await {}
        fs::create_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut events).await);
    }

    #[tokio::test]
    async fn a_file_is_noticed_once_it_is_complete() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("policy.yaml");
        fs::write(&file, "a").unwrap();
        let (mut events, mut watch) = for_files().unwrap();
        watch.only(of_files(std::slice::from_ref(&file)));
        let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, b"half").unwrap();
        assert!(!happens(&mut events).await, "half a file is told");
        drop(open);
        assert!(happens(&mut events).await);
        fs::write(root.path().join("new"), "b").unwrap();
        while happens(&mut events).await {}
        fs::rename(root.path().join("new"), &file).unwrap();
        assert!(happens(&mut events).await, "an editor's way");
    }

    #[test]
    fn a_link_and_its_target_are_watched() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().join("..data");
        fs::create_dir(&real).unwrap();
        fs::write(real.join("p.yaml"), "a").unwrap();
        let link = root.path().join("p.yaml");
        std::os::unix::fs::symlink("..data/p.yaml", &link).unwrap();
        let all = of_files(&[link, PathBuf::from("bare.yaml"), real.clone()]);
        assert!(all.contains(root.path()) && all.contains(Path::new(".")));
        assert!(all.contains(&real) || all.contains(&fs::canonicalize(&real).unwrap()));
    }
}
