//! A reserve of file descriptors, so that the agent still answers and can be stopped when there are no others.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Descriptors kept for the control socket, for looking at cgroups and for readers of metrics.
const RESERVED: rlim_t = 24 + SCRAPES as rlim_t;
/// The maximum number of connections to the control socket at a time.
pub(super) const CONNECTIONS: usize = 16;
/// The maximum number of connections for metrics.
pub(super) const SCRAPES: usize = 8;

/// Two limits on descriptors: the usual one, and a higher one for what must always work.
#[derive(Debug, Clone, Copy)]
pub(super) struct DescriptorReserve {
    hard: rlim_t,
    usual: rlim_t,
}

impl DescriptorReserve {
    /// Raises the limit to what this process may have, less a reserve for [`Self::within`].
    pub fn set_aside() -> Self {
        // Neither call can fail with these arguments; if one did, nothing would be reserved.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let reserve = Self {
            hard,
            usual: hard.saturating_sub(RESERVED).max(hard / 2),
        };
        reserve.limit(reserve.usual);
        reserve
    }

    /// Does something that may use the reserved descriptors.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        self.limit(self.hard);
        let result = work();
        self.limit(self.usual);
        result
    }

    /// Sets the soft limit. Descriptors that are already open stay open.
    fn limit(self, soft: rlim_t) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, self.hard);
    }
}
