//! What a restarted agent needs to know beside what stands in the maps of the programs, in a map of its own that is
//! pinned with them: it lives exactly as long as they do. A file could be lost, or left over.

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
/// Enough for the names of all paths that there may be.
const BYTES: usize = 1 << 20;
const _: () = assert!(BYTES > limits::MAX_PATHS as usize * 128);
/// An array's elements begin with a page, and can be mapped (Linux 5.5).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Kept {
    /// The version of the agent that wrote this.
    pub version: String,
    /// Cookie of the network namespace that is enforced in.
    pub netns: u64,
    /// Names of paths, in the order of their numbers.
    pub names: Vec<String>,
    /// The generation that the rest is about. The one in force is another if the agent died as it put one in force.
    pub generation: u32,
    /// Tells one compiled policy from another.
    pub fingerprint: u64,
    /// Name of the policy.
    pub policy: String,
    /// The node that it was compiled for.
    pub node: String,
    /// Whether it drops nothing.
    pub dry_run: bool,
    /// When it was put in force, in milliseconds since 1970.
    pub since: u64,
    /// Denials of records that were removed to make room.
    pub evicted: u64,
}

impl Kept {
    /// When it was put in force.
    pub fn since(&self) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_millis(self.since)
    }

    /// Sets that.
    pub fn set_since(&mut self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since = since.as_millis().try_into().unwrap_or(u64::MAX);
    }
}

/// The map.
pub(super) struct Store(MapData);

type Element = [u8; BYTES];

impl Store {
    /// Makes one and pins it.
    pub(super) fn create(path: &Path) -> Result<Self, KernelError> {
        let map = Array::<MapData, Element>::create(1, BPF_F_MMAPABLE)
            .map_err(KernelError::map("create the map of the agent's state"))?;
        map.pin(path).map_err(|error| pin_failed(path, error))?;
        Self::open(path)
    }

    /// Opens one that is pinned.
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        MapData::from_pin(path)
            .map(Self)
            .map_err(KernelError::map("open the map of the agent's state"))
    }

    /// What is in it; nothing if that is not ours, or was never written.
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

    /// All of it, copied.
    fn bytes(&self) -> Option<Vec<u8>> {
        let length = std::num::NonZeroUsize::new(BYTES)?;
        let fd = std::os::fd::AsFd::as_fd(self.0.fd());
        // SAFETY: a mapping of its own, wherever the kernel puts it.
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
        // SAFETY: so many bytes are mapped, and nobody writes them: the agent that holds the lock is this one.
        let bytes = unsafe { std::slice::from_raw_parts(at.cast::<u8>().as_ptr(), BYTES) }.to_vec();
        // SAFETY: the mapping from above, to which there is no reference any more.
        let _ = unsafe { munmap(at, BYTES) };
        Some(bytes)
    }

    /// Writes it, in one call: an agent that is killed meanwhile has written all or nothing.
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
