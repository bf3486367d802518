//! Arrays in memory that the agent shares with the kernel's programs (`BPF_F_MMAPABLE`, Linux 5.5):
//! writing or adding to a word takes one instruction, where system calls would read and write.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use aya::maps::MapData;
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// The distance between elements in bytes, if they are no larger than this.
const STRIDE: usize = 8;

/// The elements of an array, each of up to eight bytes.
pub(super) struct Mapped {
    at: NonNull<c_void>,
    elements: usize,
}

// SAFETY: the memory belongs to the process, and all access is atomic.
unsafe impl Send for Mapped {}
// SAFETY: likewise.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps all elements of an array.
    pub(super) fn new(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let elements = info.max_entries() as usize;
        let length = NonZeroUsize::new(elements * STRIDE).ok_or(io::ErrorKind::InvalidInput)?;
        if info.value_size() as usize > STRIDE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let read_and_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let (flags, fd) = (MapFlags::MAP_SHARED, map.fd().as_fd());
        // SAFETY: a new mapping, wherever the kernel puts it.
        let at = unsafe { mmap(None, length, read_and_write, flags, fd, 0) }?;
        Ok(Self { at, elements })
    }

    /// An element that is a `u32`; `None` after the last.
    pub(super) fn u32(&self, index: u32) -> Option<&AtomicU32> {
        let at = self.element(index)?;
        // SAFETY: within the mapping, which exists as long as `self`, and aligned, as it begins at
        // a page boundary.
        Some(unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) })
    }

    /// An element that is a `u64`; `None` after the last.
    pub(super) fn u64(&self, index: u32) -> Option<&AtomicU64> {
        let at = self.element(index)?;
        // SAFETY: as above.
        Some(unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) })
    }

    fn element(&self, index: u32) -> Option<NonNull<c_void>> {
        let index = index as usize;
        // SAFETY: within the mapping.
        (index < self.elements).then(|| unsafe { self.at.byte_add(index * STRIDE) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` created, whose borrows have ended. This cannot fail.
        let _ = unsafe { munmap(self.at, self.elements * STRIDE) };
    }
}
