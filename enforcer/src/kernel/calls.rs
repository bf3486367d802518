//! The `bpf(2)` calls for links and pins that aya does not offer: replacing the program of a pinned
//! link in place, and detaching a link at once instead of when the kernel gets around to it.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// `enum bpf_cmd` in include/uapi/linux/bpf.h.
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;
/// `BPF_F_BEFORE` there.
const BEFORE: u32 = 1 << 3;
/// `BPF_LSM_MAC` of `enum bpf_attach_type` there.
const LSM_MAC: u32 = 27;
// `enum bpf_link_type` there.
const TYPE_CGROUP: u32 = 3;
const TYPE_TCX: u32 = 11;

/// What a link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// The cgroup with an id.
    Cgroup(u64),
    /// The interface with an index; 0 if it is gone.
    Interface(u32),
    /// Something else.
    Other,
}

/// The parts of `union bpf_attr` that these commands read, and no more: the kernel treats the rest
/// as zero.
#[repr(C)]
struct PathAndFd {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// For TCX: a link or program to go before or after, and a revision of the list. Not used.
    relative: [u64; 2],
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    at: u64,
}

/// The beginning of `struct bpf_link_info`. Every kind of target begins in the first word of the
/// union.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    union: [u64; 4],
}

/// Opens what is pinned at a path (`BPF_OBJ_GET`, Linux 4.4).
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut request = PathAndFd {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the request is as long as it says, and the path outlives the call.
    let fd = unsafe { call(OBJ_GET, &mut request) }?;
    // SAFETY: the kernel created this descriptor for this call, with close-on-exec, and nothing
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins at a path that must not exist (`BPF_OBJ_PIN`, Linux 4.4).
pub(super) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut request = PathAndFd {
        path: path.as_ptr() as u64,
        fd: object.as_fd().as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: as above.
    unsafe { call(OBJ_PIN, &mut request) }.map(drop)
}

/// Attaches a program to a cgroup (`BPF_LINK_CREATE`, Linux 5.7). Without flags, others may attach,
/// too. The attach type is a number of `enum bpf_attach_type`.
pub(super) fn attach_to_cgroup(
    program: &impl AsFd,
    cgroup: &impl AsFd,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let cgroup = cgroup.as_fd().as_raw_fd() as u32;
    create_link(program, cgroup, attach_type, 0)
}

/// Attaches a program to an interface by TCX (Linux 6.6), before all others: one that accepts would
/// end the chain.
pub(super) fn attach_to_interface(
    program: &impl AsFd,
    index: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    create_link(program, index, attach_type, BEFORE)
}

fn create_link(
    program: &impl AsFd,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut request = Create {
        program: program.as_fd().as_raw_fd() as u32,
        target,
        attach_type,
        flags,
        relative: [0; 2],
    };
    // SAFETY: the request is as long as it says, and holds no pointers.
    let fd = unsafe { call(LINK_CREATE, &mut request) }?;
    // SAFETY: the kernel created this descriptor for this call, with close-on-exec, and nothing
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to the hook of the kernel's security modules that it was loaded for. To get
/// the descriptor of a link that the library holds takes CAP_SYS_ADMIN; a link of our own does not.
pub(super) fn attach_to_lsm(program: &impl AsFd) -> io::Result<OwnedFd> {
    create_link(program, 0, LSM_MAC, 0)
}

/// Replaces a link's program in place (`BPF_LINK_UPDATE`, Linux 5.7). Fails with `ENOLINK` if the
/// link's target is gone.
pub(super) fn update_link(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut request = Update {
        link: link.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the request is as long as it says, and holds no pointers.
    unsafe { call(LINK_UPDATE, &mut request) }.map(drop)
}

/// Detaches a link's program, regardless of the link's other descriptors and pins
/// (`BPF_LINK_DETACH`, Linux 5.9).
pub(super) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let mut request = link.as_fd().as_raw_fd() as u32;
    // SAFETY: as above.
    unsafe { call(LINK_DETACH, &mut request) }.map(drop)
}

/// The id of the program that a link runs.
pub(super) fn program_of(link: &impl AsFd) -> io::Result<u32> {
    info_of(link).map(|info| info.program)
}

/// What a link is attached to (`BPF_OBJ_GET_INFO_BY_FD` for links, Linux 5.8). Fails if the object
/// is not a link.
pub(super) fn target_of(link: &impl AsFd) -> io::Result<LinkTarget> {
    let info = info_of(link)?;
    let [first, ..] = info.union;
    Ok(match info.kind {
        TYPE_CGROUP => LinkTarget::Cgroup(first),
        // The index is the first of the two halves in memory.
        TYPE_TCX => {
            let [a, b, c, d, ..] = first.to_ne_bytes();
            LinkTarget::Interface(u32::from_ne_bytes([a, b, c, d]))
        }
        _ => LinkTarget::Other,
    })
}

fn info_of(link: &impl AsFd) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut request = Info {
        fd: link.as_fd().as_raw_fd() as u32,
        length: size_of::<LinkInfo>() as u32,
        at: (&raw mut info) as u64,
    };
    // SAFETY: the request is as long as it says; the kernel writes at most `length` bytes to
    // `info`, which is that long and outlives the call.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut request) }?;
    Ok(info)
}

/// # Safety
///
/// The request must be the beginning of what the command reads, and what it points to must outlive the call.
unsafe fn call<T>(command: libc::c_long, request: &mut T) -> io::Result<i32> {
    // SAFETY: the pointer is to that many bytes, which outlive the call; the rest is up to the
    // caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(request),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or 0.
    Ok(result as i32)
}
