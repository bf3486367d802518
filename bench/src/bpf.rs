//! The requests of bpf(2) that the benchmark needs and aya has not: a program from plain instructions and a table for
//! it, frames sent into the stack at full speed, and a bare program attached by TCX.
//!
//! Structures are parts of `union bpf_attr` in include/uapi/linux/bpf.h; the kernel takes a shorter one
//! and reads the rest as zero.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

/// A BPF instruction, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// An instruction: code, destination, source, offset, immediate.
pub const fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

/// What a program is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TC classifier, for TCX at ingress.
    TcIngress,
    /// The same at egress.
    TcEgress,
    /// What sockets of a cgroup receive.
    CgroupIngress,
    /// What they send.
    CgroupEgress,
    /// XDP.
    Xdp,
}

impl Kind {
    /// The type of the program, and of its attachment: `bpf_prog_type` and `bpf_attach_type` in
    /// include/uapi/linux/bpf.h.
    const fn types(self) -> (u32, u32) {
        match self {
            Self::TcIngress => (3, 46),
            Self::TcEgress => (3, 47),
            Self::CgroupIngress => (8, 0),
            Self::CgroupEgress => (8, 1),
            Self::Xdp => (6, 0),
        }
    }
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;

/// Sends one request.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the pointer is to a structure of the length that is told, and outlives the call. What it
    // points to in turn is kept alive by the callers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // A descriptor or zero.
    Ok(result as libc::c_int)
}

fn owned(descriptor: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made it for us, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// An array of the kernel's whose elements are as long as a line of the processor's caches.
#[derive(Debug)]
pub struct Lines(OwnedFd);

impl Lines {
    /// So many, all zero.
    pub fn create(count: u32) -> Result<Self> {
        #[repr(C)]
        struct MapCreate {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            map_flags: u32,
        }
        const BPF_MAP_TYPE_ARRAY: u32 = 2;
        // Elements then begin with a page, and each is within a line (5.5).
        const BPF_F_MMAPABLE: u32 = 1 << 10;
        let mut attributes = MapCreate {
            map_type: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 64,
            max_entries: count,
            map_flags: BPF_F_MMAPABLE,
        };
        let descriptor = bpf(BPF_MAP_CREATE, &mut attributes)
            .context("the kernel refuses a table of the benchmark")?;
        Ok(Self(owned(descriptor)))
    }

    /// Its descriptor, for programs.
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd, Kind);

impl Program {
    /// Loads one.
    pub fn load(kind: Kind, instructions: &[Insn]) -> Result<Self> {
        #[repr(C)]
        struct Load {
            prog_type: u32,
            insn_cnt: u32,
            insns: u64,
            license: u64,
            log: [u64; 2],
            kern_version: u32,
            prog_flags: u32,
            prog_name: [u8; 16],
            prog_ifindex: u32,
            expected_attach_type: u32,
        }
        let (prog_type, expected_attach_type) = kind.types();
        let mut attributes = Load {
            prog_type,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 2],
            kern_version: 0,
            prog_flags: 0,
            prog_name: [0; 16],
            prog_ifindex: 0,
            expected_attach_type,
        };
        let descriptor = bpf(BPF_PROG_LOAD, &mut attributes)
            .with_context(|| format!("the kernel refuses a program of the benchmark ({kind:?})"))?;
        Ok(Self(owned(descriptor), kind))
    }

    /// Attaches it to an interface, by its index, or to a cgroup, by a descriptor of its directory. It is gone with what is
    /// returned.
    pub fn attach(&self, target: u32) -> Result<OwnedFd> {
        #[repr(C)]
        struct LinkCreate {
            prog_fd: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
            relative: [u64; 2],
        }
        let mut attributes = LinkCreate {
            prog_fd: self.0.as_raw_fd() as u32,
            target,
            attach_type: self.1.types().1,
            flags: 0,
            relative: [0; 2],
        };
        let descriptor = bpf(BPF_LINK_CREATE, &mut attributes)
            .context("no program is attached by a link (TCX: Linux 6.6)")?;
        Ok(owned(descriptor))
    }

    /// An XDP program lets frames pass into the stack as if an interface of this network namespace had
    /// received them, so often. Tells how many nanoseconds the kernel spent on each, without what it takes
    /// to begin and to end: that waits for other processors, and is longer than thousands of frames.
    pub fn receive(&self, frame: &[u8], interface: u32, times: u32) -> Result<u32> {
        #[repr(C)]
        struct XdpMd {
            data: u32,
            data_end: u32,
            data_meta: u32,
            ingress_ifindex: u32,
            rx_queue_index: u32,
            egress_ifindex: u32,
        }
        #[repr(C)]
        struct TestRun {
            prog_fd: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            padding: u32,
        }
        let context = XdpMd {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex: interface,
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let mut attributes = TestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            retval: 0,
            data_size_in: frame.len() as u32,
            data_size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: times,
            duration: 0,
            ctx_size_in: size_of::<XdpMd>() as u32,
            ctx_size_out: 0,
            ctx_in: (&raw const context) as u64,
            ctx_out: 0,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            cpu: 0,
            batch_size: 64,
            padding: 0,
        };
        bpf(BPF_PROG_TEST_RUN, &mut attributes)
            .context("no frames are sent into the stack (BPF_F_TEST_XDP_LIVE_FRAMES, 5.18)")?;
        Ok(attributes.duration)
    }
}
