//! Room among the file descriptors, so that the agent can be asked and told to end when there are no others.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Descriptors that are kept for the control socket, for looking at cgroups and for who reads metrics.
const RESERVED: rlim_t = 24 + SCRAPES as rlim_t;
/// How many connections to the control socket there may be at a time.
pub(super) const CONNECTIONS: usize = 16;
/// How many connections there may be for metrics.
pub(super) const SCRAPES: usize = 8;

/// The limits: one for everything, and a higher one for what must always work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    most: rlim_t,
    others: rlim_t,
}

impl Room {
    /// Takes all descriptors that this process may have, and keeps some of them for [`Self::within`].
    pub fn reserve() -> Self {
        // Both calls can not fail with these arguments; if they did, nothing would be reserved.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let room = Self {
            most,
            others: most.saturating_sub(RESERVED).max(most / 2),
        };
        room.limit(room.others);
        room
    }

    /// Does something that may use the reserved descriptors.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        self.limit(self.most);
        let result = work();
        self.limit(self.others);
        result
    }

    /// Descriptors that are open already stay so.
    fn limit(self, soft: rlim_t) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, self.most);
    }
}
