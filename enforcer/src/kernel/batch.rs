//! Many elements of an array in one system call (`BPF_MAP_UPDATE_BATCH`, Linux 5.6), which aya does not offer.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapData;
use nix::libc;

/// From `enum bpf_cmd` in include/uapi/linux/bpf.h.
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// The part of `union bpf_attr` in include/uapi/linux/bpf.h that the request reads.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes consecutive elements of an array, starting with the first. The array must be large
/// enough.
pub(super) fn fill(map: &MapData, elements: &[u8]) -> io::Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let info = map.info().map_err(io::Error::other)?;
    let length = info.value_size() as usize;
    let count = elements.len().checked_div(length).unwrap_or(0);
    // All or nothing: an element that is not written would be a hole in a table.
    if count * length != elements.len() || count > info.max_entries() as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The map has at least as many elements, so the count fits.
    let keys: Vec<u32> = (0..count as u32).collect();
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: elements.as_ptr() as u64,
        count: count as u32,
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the structure has the length that is passed. `keys` and `elements` hold `count` keys
    // and values of the map's own sizes, and outlive the call; the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_BATCH,
            &raw mut batch,
            size_of::<Batch>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
