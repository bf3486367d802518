//! What a restarted agent needs to know beyond what the programs' maps contain. It is in a separate
//! map that is pinned with them, so it lives exactly as long as they do. A file could get lost, or
//! be left over.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, MapData};
use enforcer_common::limits;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use serde::{Deserialize, Serialize};

use super::{KernelError, batch};

/// The map's name among the pins.
pub(super) const NAME: &str = "STATE";
/// Enough for the names of the maximum number of paths.
const BYTES: usize = 1 << 20;
const _: () = assert!(BYTES > limits::MAX_PATHS as usize * 128);
/// With this flag, an array's elements begin at a page boundary and can be mapped (Linux 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The saved state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Kept {
    /// The version of the agent that wrote this.
    pub version: String,
    /// Cookie of the network namespace in which the policy is enforced.
    pub netns: u64,
    /// Names of paths, in the order of their numbers.
    pub names: Vec<String>,
    /// The policy in force, or the one that the agent was about to put in force when it died: its
    /// generation tells which.
    pub in_force: KeptPolicy,
    /// The previous policy, while the one in force is unconfirmed.
    pub before: Option<KeptPolicy>,
    /// The deadline, in nanoseconds of the kernel's monotonic clock.
    pub deadline: u64,
    /// The last generation that was put in force, even if it was rolled back.
    pub last: u32,
    /// Denials in records that were removed to make room.
    pub evicted: u64,
}

/// What is saved about a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KeptPolicy {
    /// Its generation; 0 for none.
    pub generation: u32,
    /// Tells one compiled policy from another.
    pub fingerprint: u64,
    /// The policy's name.
    pub policy: String,
    /// The node that it was compiled for.
    pub node: String,
    /// Whether it drops nothing.
    pub dry_run: bool,
    /// When it was put in force, in milliseconds since 1970.
    pub since: u64,
}

impl KeptPolicy {
    /// When it was put in force.
    pub fn since(&self) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_millis(self.since)
    }

    /// Sets the time when it was put in force.
    pub fn set_since(&mut self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since = since.as_millis().try_into().unwrap_or(u64::MAX);
    }
}

/// The map.
pub(super) struct Store(MapData);

type Element = [u8; BYTES];

impl Store {
    /// Creates the map and pins it.
    pub(super) fn create(path: &Path) -> Result<Self, KernelError> {
        let map = Array::<MapData, Element>::create(1, BPF_F_MMAPABLE)
            .map_err(KernelError::map("create the map of the agent's state"))?;
        map.pin(path).map_err(|error| pin_failed(path, error))?;
        Self::open(path)
    }

    /// Opens a pinned map.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        MapData::from_pin(path)
            .map(Self)
            .map_err(KernelError::map("open the map of the agent's state"))
    }

    /// Its contents; `None` if they are not ours, or were never written.
    pub(super) fn read(&self) -> Option<Kept> {
        let info = self.0.info().ok()?;
        if info.value_size() as usize != BYTES || info.max_entries() != 1 {
            return None;
        }
        let bytes = self.bytes()?;
        let (length, rest) = bytes.split_first_chunk()?;
        let length = u32::from_ne_bytes(*length) as usize;
        serde_json::from_slice(rest.get(..length)?).ok()
    }

    /// A copy of all its bytes.
    fn bytes(&self) -> Option<Vec<u8>> {
        let length = std::num::NonZeroUsize::new(BYTES)?;
        let fd = std::os::fd::AsFd::as_fd(self.0.fd());
        // SAFETY: a new mapping, wherever the kernel puts it.
        let at = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }
        .ok()?;
        // SAFETY: that many bytes are mapped, and nobody writes them: this agent holds the lock.
        let bytes = unsafe { std::slice::from_raw_parts(at.cast::<u8>().as_ptr(), BYTES) }.to_vec();
        // SAFETY: the mapping from above, to which no reference is left.
        let _ = unsafe { munmap(at, BYTES) };
        Some(bytes)
    }

    /// Writes the contents in one call: an agent that is killed meanwhile has written all or
    /// nothing.
    pub(super) fn write(&self, kept: &Kept) -> Result<(), KernelError> {
        let failed = |source| KernelError::System {
            action: "write the agent's state",
            source,
        };
        let json = serde_json::to_vec(kept).map_err(|error| failed(error.into()))?;
        let mut bytes = (json.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(json);
        if bytes.len() > BYTES {
            return Err(failed(std::io::ErrorKind::InvalidInput.into()));
        }
        bytes.resize(BYTES, 0);
        batch::fill(&self.0, &bytes).map_err(failed)
    }
}

fn pin_failed(path: &Path, error: aya::pin::PinError) -> KernelError {
    let source = match error {
        aya::pin::PinError::SyscallError(error) => error.io_error,
        error => std::io::Error::other(error),
    };
    KernelError::Pins {
        action: "pin",
        path: path.to_owned(),
        source,
    }
}
