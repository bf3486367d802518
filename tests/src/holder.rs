//! A program that holds a cgroup hook exclusively, like programs that are attached without the flag
//! that permits several.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;

/// Holds IPv4 `connect` at a cgroup until it is dropped. Its program allows everything.
#[derive(Debug)]
pub struct Holder {
    cgroup: File,
    program: OwnedFd,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The same for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`. Without flags, no other program may attach.
#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

impl Holder {
    /// Occupies the hook.
    pub fn take(cgroup: &Path) -> Result<Self> {
        let cgroup = File::open(cgroup).context("failed to open the cgroup")?;
        // r0 = 1; exit
        let program: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let license = c"GPL";
        let load = Load {
            prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            insn_cnt: 2,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            expected_attach_type: BPF_CGROUP_INET4_CONNECT,
            ..Load::default()
        };
        let descriptor = bpf(BPF_PROG_LOAD, load).context("failed to load the program")?;
        // SAFETY: the kernel has just created it for us, and nothing else owns it.
        let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let holder = Self { cgroup, program };
        bpf(BPF_PROG_ATTACH, holder.attach()).context("failed to attach the program")?;
        Ok(holder)
    }

    fn attach(&self) -> Attach {
        Attach {
            // Descriptors are not negative.
            target_fd: self.cgroup.as_raw_fd() as u32,
            attach_bpf_fd: self.program.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_INET4_CONNECT,
            attach_flags: 0,
            replace_bpf_fd: 0,
        }
    }
}

/// A foreign program at an interface that accepts everything, and so ends the chain. Dropping it
/// detaches the program.
#[derive(Debug)]
pub struct Accepter {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_CREATE` with TCX.
#[repr(C)]
#[derive(Default)]
struct CreateLink {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: [u64; 2],
}

impl Accepter {
    /// Attaches one before all others, at ingress of an interface of the calling thread's network
    /// namespace (TCX, Linux 6.6).
    pub fn first_at_ingress(index: u32) -> Result<Self> {
        const BPF_LINK_CREATE: libc::c_int = 28;
        const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
        const BPF_TCX_INGRESS: u32 = 46;
        const BPF_F_BEFORE: u32 = 1 << 3;
        // r0 = TC_ACT_OK; exit
        let program: [u64; 2] = [0xb7, 0x95];
        let license = c"GPL";
        let mut prog_name = [0; 16];
        prog_name[..8].copy_from_slice(b"accepter");
        let load = Load {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            insn_cnt: 2,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            prog_name,
            ..Load::default()
        };
        let descriptor = bpf(BPF_PROG_LOAD, load).context("failed to load the program")?;
        // SAFETY: the kernel has just created it for us, and nothing else owns it.
        let program = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let create = CreateLink {
            // Descriptors are not negative.
            prog_fd: program.as_raw_fd() as u32,
            target_ifindex: index,
            attach_type: BPF_TCX_INGRESS,
            flags: BPF_F_BEFORE,
            ..CreateLink::default()
        };
        let descriptor = bpf(BPF_LINK_CREATE, create).context("failed to attach the program")?;
        // SAFETY: as above.
        let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self {
            _program: program,
            _link: link,
        })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = bpf(BPF_PROG_DETACH, self.attach());
    }
}

fn bpf<T>(command: libc::c_int, mut attributes: T) -> io::Result<libc::c_int> {
    // SAFETY: the pointer is to a structure of the length that is passed, and outlives the call.
    // What it points to is kept alive by the callers, and the kernel only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or zero.
    Ok(result as libc::c_int)
}
