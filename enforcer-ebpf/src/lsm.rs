//! The LSM hook on `setsockopt`, for kernels that load BPF as a security module (`CONFIG_BPF_LSM`, and `bpf` in the boot
//! parameter `lsm=`).
//!
//! The cgroup hook sees native calls only: `do_sock_setsockopt` in net/socket.c skips it for 32-bit ones. This one sees all
//! calls, including those of `io_uring`.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, programs::LsmContext};

use crate::sockopt;

const PASS: i32 = 0;

// Offsets of fields in the kernel's structs, in bytes. Set before loading, from the kernel's type information.
/// `struct socket`: `sk`.
#[unsafe(no_mangle)]
static SOCKET_SK: u64 = 0;
/// `struct sock`: its network namespace.
#[unsafe(no_mangle)]
static SOCK_NET: u64 = 0;
/// `struct net`: its cookie.
#[unsafe(no_mangle)]
static NET_COOKIE: u64 = 0;

/// `setsockopt`, before any other hook on it.
#[inline(always)]
pub fn setting(ctx: &LsmContext) -> i32 {
    if is_refused(ctx) { refusal() } else { PASS }
}

/// `-EPERM`, as a constant for the verifier: since 6.12 it checks the range of the returned value, which it does not know if
/// the compiler computes the value from a boolean.
#[inline(always)]
fn refusal() -> i32 {
    let code: i64;
    // SAFETY: a number.
    unsafe { asm!("{} = -1", out(reg) code, options(nomem, nostack)) };
    code as i32
}

#[inline(never)]
fn is_refused(ctx: &LsmContext) -> bool {
    // Arguments of `socket_setsockopt` in include/linux/lsm_hook_defs.h.
    let socket: *const c_void = ctx.arg(0);
    let level: i32 = ctx.arg(1);
    let option: i32 = ctx.arg(2);
    let before: i32 = ctx.arg(3);
    // Another program has refused it, or the agent probes whether this hook is called.
    if before != 0 || (level, option) == (sockopt::SOL_PACKET, sockopt::PROBE) {
        return true;
    }
    sockopt::is_around(level, option) && is_host(socket) && sockopt::refuses_around(ptr::null_mut())
}

/// Whether a socket belongs to the network namespace that the agent enforces in. One that can not be read counts as such.
fn is_host(socket: *const c_void) -> bool {
    // SAFETY: plain reads of constants that the loader has set.
    let (sk, net, cookie) = unsafe {
        (
            ptr::read_volatile(&raw const SOCKET_SK),
            ptr::read_volatile(&raw const SOCK_NET),
            ptr::read_volatile(&raw const NET_COOKIE),
        )
    };
    let found = word(socket as u64, sk)
        .and_then(|sk| word(sk, net))
        .and_then(|net| word(net, cookie));
    found.is_none_or(|cookie| cookie == crate::socket::host())
}

/// A word of the kernel's memory.
fn word(base: u64, offset: u64) -> Option<u64> {
    let mut value = MaybeUninit::<u64>::uninit();
    let address = base.wrapping_add(offset) as *const c_void;
    // SAFETY: there is room for as many bytes; the helper reads any address of the kernel's, and fills all or fails.
    let failed = unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), 8, address) };
    if failed != 0 {
        return None;
    }
    // SAFETY: filled.
    Some(unsafe { value.assume_init() })
}
