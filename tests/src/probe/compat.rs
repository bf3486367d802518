//! System calls in the way of a 32-bit program. Any program can make them, and the kernel runs no
//! cgroup program for options that are set this way.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

// arch/x86/entry/syscalls/syscall_32.tbl
const GETPID: u32 = 20;
const BIND: u32 = 361;
const CONNECT: u32 = 362;
pub(super) const SETSOCKOPT: u32 = 366;
pub(super) const IO_URING_SETUP: u32 = 425;

const PAGE: usize = 4096;

/// A page that 32-bit addresses can reach.
pub(super) struct LowPage(NonNull<libc::c_void>);

impl LowPage {
    pub(super) fn with(bytes: &[u8]) -> Result<Self, Errno> {
        let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | low();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which nothing else refers to.
        let page = Self(unsafe { mmap_anonymous(None, length, access, flags) }?);
        if bytes.len() > PAGE {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the page is that long, and nothing else writes to it.
        unsafe {
            page.0
                .cast::<u8>()
                .copy_from(NonNull::from(bytes).cast(), bytes.len())
        };
        Ok(page)
    }

    pub(super) fn address(&self) -> Result<u32, Errno> {
        u32::try_from(self.0.as_ptr().addr()).map_err(|_beyond| Errno::EFAULT)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as this value lives, and written only by system calls.
        unsafe { std::slice::from_raw_parts(self.0.cast().as_ptr(), PAGE) }
    }
}

impl Drop for LowPage {
    fn drop(&mut self) {
        // SAFETY: mapped only by this type; no references are left.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}

#[cfg(target_arch = "x86_64")]
fn low() -> MapFlags {
    MapFlags::MAP_32BIT
}

#[cfg(not(target_arch = "x86_64"))]
fn low() -> MapFlags {
    MapFlags::empty()
}

/// Makes a 32-bit system call; `ENOSYS` if this kernel or processor does not support them.
pub(super) fn call(number: u32, arguments: [u32; 5]) -> Result<u32, Errno> {
    if !is_there() {
        return Err(Errno::ENOSYS);
    }
    let result = interrupt(number, arguments);
    if result < 0 {
        return Err(Errno::from_raw(-result));
    }
    Ok(result.cast_unsigned())
}

/// The 32-bit `bind`.
pub(super) fn bind(socket: &OwnedFd, at: SocketAddr) -> Result<(), Errno> {
    with_address(BIND, socket, at)
}

/// The 32-bit `connect`.
pub(super) fn connect(socket: &OwnedFd, to: SocketAddr) -> Result<(), Errno> {
    with_address(CONNECT, socket, to)
}

fn with_address(number: u32, socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    let storage = SockaddrStorage::from(address);
    let length = storage.len();
    // SAFETY: an address is as long as it says.
    let bytes =
        unsafe { std::slice::from_raw_parts(storage.as_ptr().cast::<u8>(), length as usize) };
    let page = LowPage::with(bytes)?;
    let file = socket.as_raw_fd().cast_unsigned();
    call(number, [file, page.address()?, length, 0, 0]).map(drop)
}

/// Whether a child survives a 32-bit call.
fn is_there() -> bool {
    // SAFETY: this program has only one thread at this point, and the child only makes system
    // calls.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let pid = interrupt(GETPID, [0; 5]);
            // SAFETY: ends the child without running anything that belongs to its parent.
            unsafe { libc::_exit(i32::from(pid <= 0)) }
        }
        Ok(ForkResult::Parent { child }) => {
            matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0)))
        }
        Err(_) => false,
    }
}

#[cfg(target_arch = "x86_64")]
fn interrupt(number: u32, [a, b, c, d, e]: [u32; 5]) -> i32 {
    let result: u32;
    // SAFETY: the calls made here read and write memory that their callers own. The first
    // argument's register is reserved by the compiler, so it is restored.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {a:e}",
            "int 0x80",
            "pop rbx",
            a = in(reg) a,
            inlateout("eax") number => result,
            in("ecx") b,
            in("edx") c,
            in("esi") d,
            in("edi") e,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    result.cast_signed()
}

#[cfg(not(target_arch = "x86_64"))]
fn interrupt(_number: u32, _arguments: [u32; 5]) -> i32 {
    -libc::ENOSYS
}
