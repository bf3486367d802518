//! Directories under watch: where declared cgroups come and go, and where the policy's files are.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::io::unix::AsyncFd;

use crate::{compile::CgroupRule, kernel::cgroups};

/// Directories in which something of a kind may happen.
pub struct Watch {
    inotify: AsyncFd<Handle>,
    kinds: AddWatchFlags,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

/// inotify as tokio wants it.
struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// For directories that are made and removed.
    pub fn for_directories() -> io::Result<Self> {
        Self::open(
            AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_ONLYDIR,
        )
    }

    /// For files that are replaced or written to their end. One that is just being written is not
    /// told, so that nobody reads half of it.
    pub fn for_files() -> io::Result<Self> {
        Self::open(
            AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE,
        )
    }

    fn open(kinds: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the descriptor belongs to the handle, which never changes it and lives as long as the
        // registration.
        let inotify = unsafe { AsyncFd::register(Handle(inotify)) }?;
        Ok(Self {
            inotify,
            kinds,
            watched: HashMap::new(),
        })
    }

    /// Watches these and no others. Says whether one of them is new, so that something in it may have
    /// been missed. What is not there, or is one too many for the kernel's limit, is left to the look
    /// that comes by the clock.
    pub fn only(&mut self, directories: BTreeSet<PathBuf>) -> bool {
        let inotify = &self.inotify.get_ref().0;
        self.watched.retain(|path, watch| {
            // The kernel forgets the watch of a directory that is gone by itself; one with the same
            // name is another directory and is watched anew.
            let stays = directories.contains(path) && path.is_dir();
            if !stays {
                let _ = inotify.rm_watch(*watch);
            }
            stays
        });
        let mut is_new = false;
        for directory in directories {
            if let Ok(watch) = inotify.add_watch(&directory, self.kinds) {
                let before = self.watched.insert(directory, watch);
                is_new |= before != Some(watch);
            }
        }
        is_new
    }

    /// Waits until something happened in one of them; what happened at once counts once.
    pub async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.inotify.readable_mut().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            match ready.get_inner().0.read_events() {
                Ok(_) => return,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // An event that can not be read is one all the same.
                Err(_) => return,
            }
        }
    }
}

/// Where the directories of declared cgroups may come to be: all on their way.
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

/// Where the policy's files are: directories as they are named, and those that hold a file or what its
/// link leads to.
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

    async fn happens(watch: &mut Watch) -> bool {
        timeout(Duration::from_millis(300), watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_declared_cgroup_is_noticed_when_it_comes_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let rules = [rule("/a.slice/*.scope/deep"), rule("/b.slice")];
        let all = || of_cgroups(root.path(), &rules);
        let mut watch = Watch::for_directories().unwrap();
        assert!(watch.only(all()), "the root is new");
        assert!(!watch.only(all()), "and then it is known");
        assert!(!happens(&mut watch).await);
        fs::create_dir_all(root.path().join("a.slice/x.scope")).unwrap();
        assert!(happens(&mut watch).await);
        assert!(watch.only(all()), "on the way there are new ones");
        while happens(&mut watch).await {}
        fs::create_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut watch).await);
        fs::remove_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut watch).await);
        // Made again under the same name, it is another directory.
        fs::remove_dir(root.path().join("a.slice/x.scope")).unwrap();
        fs::create_dir(root.path().join("a.slice/x.scope")).unwrap();
        assert!(happens(&mut watch).await);
        watch.only(all());
        while happens(&mut watch).await {}
        fs::create_dir(root.path().join("a.slice/x.scope/deep")).unwrap();
        assert!(happens(&mut watch).await);
    }

    #[tokio::test]
    async fn a_file_is_noticed_when_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("policy.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = Watch::for_files().unwrap();
        watch.only(of_files(std::slice::from_ref(&file)));
        let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, b"half").unwrap();
        assert!(!happens(&mut watch).await, "half a file is told");
        drop(open);
        assert!(happens(&mut watch).await);
        fs::write(root.path().join("new"), "b").unwrap();
        while happens(&mut watch).await {}
        fs::rename(root.path().join("new"), &file).unwrap();
        assert!(happens(&mut watch).await, "an editor's way");
    }

    #[test]
    fn a_link_is_watched_at_both_ends() {
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
