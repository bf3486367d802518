//! Sets socket options through io_uring, which is a system call of another name.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::compat;

// include/uapi/linux/io_uring.h
const SETUP: libc::c_long = libc::SYS_io_uring_setup;
const ENTER: libc::c_long = libc::SYS_io_uring_enter;
const OP_URING_CMD: u8 = 46;
const SOCKET_SETSOCKOPT: u32 = 3;
const GETEVENTS: libc::c_uint = 1;
const ENTRIES_OFFSET: i64 = 0x1000_0000;
const PAGE: usize = 4096;
/// `struct io_uring_params`, in words.
const PARAMETERS: usize = 30;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQ_ENTRIES: usize = 25;

/// Sets an option; with `compat`, the ring is created by a 32-bit system call.
pub(super) fn set_option(
    socket: &OwnedFd,
    (level, option): (libc::c_int, libc::c_int),
    value: &[u8],
    compat: bool,
) -> Result<(), Errno> {
    let (ring, parameters) = set_up(compat)?;
    let at = |index: usize| parameters.get(index).map_or(0, |word| *word as usize);
    let queue = map(&ring, 0)?;
    let entries = map(&ring, ENTRIES_OFFSET)?;
    let mut entry = [0u8; 64];
    entry[0] = OP_URING_CMD;
    entry[4..8].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
    entry[8..12].copy_from_slice(&SOCKET_SETSOCKOPT.to_ne_bytes());
    entry[16..20].copy_from_slice(&level.to_ne_bytes());
    entry[20..24].copy_from_slice(&option.to_ne_bytes());
    entry[44..48].copy_from_slice(&(value.len() as u32).to_ne_bytes());
    entry[48..56].copy_from_slice(&(value.as_ptr().addr() as u64).to_ne_bytes());
    // SAFETY: both are pages that the kernel shares only with this process; the offsets are the
    // kernel's, and it accesses them only during the call.
    let result = unsafe {
        entries.cast::<[u8; 64]>().write(entry);
        queue.byte_add(at(SQ_ARRAY)).cast::<u32>().write(0);
        queue.byte_add(at(SQ_TAIL)).cast::<u32>().write_volatile(1);
        let nothing = std::ptr::null::<libc::c_void>();
        let entered = libc::syscall(ENTER, ring.as_raw_fd(), 1, 1, GETEVENTS, nothing, 0);
        Errno::result(entered)?;
        queue
            .byte_add(at(CQ_ENTRIES) + 8)
            .cast::<i32>()
            .read_volatile()
    };
    if result < 0 {
        return Err(Errno::from_raw(-result));
    }
    Ok(())
}

fn set_up(compat: bool) -> Result<(OwnedFd, [u32; PARAMETERS]), Errno> {
    let mut parameters = [0u32; PARAMETERS];
    let ring = if compat {
        let page = compat::LowPage::with(&[0; PARAMETERS * 4])?;
        let ring = compat::call(compat::IO_URING_SETUP, [1, page.address()?, 0, 0, 0])?;
        for (word, bytes) in parameters.iter_mut().zip(page.bytes().as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        i32::try_from(ring).map_err(|_beyond| Errno::EBADF)?
    } else {
        // SAFETY: the kernel writes to the parameters, which are as long as it expects.
        let ring = unsafe { libc::syscall(SETUP, 1, parameters.as_mut_ptr()) };
        i32::try_from(Errno::result(ring)?).map_err(|_beyond| Errno::EBADF)?
    };
    // SAFETY: just created, and nothing else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(ring) }, parameters))
}

/// A page of the ring. It stays mapped as long as this program lives.
fn map(ring: &OwnedFd, offset: i64) -> Result<NonNull<libc::c_void>, Errno> {
    let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping of the kernel's own pages.
    unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, ring, offset) }
}
