//! Debugging output of the programs, off unless the agent is started with `--kernel-log`.

use core::ptr;

use aya_ebpf::EbpfContext;

/// 1 to log what each program returns. Set before loading: where it is 0, the verifier takes the
/// code out, and it costs nothing.
#[unsafe(no_mangle)]
static LOG: u32 = 0;

/// Logs what a program is about to return, and hands it on.
#[inline(always)]
pub fn returned<C: EbpfContext>(ctx: &C, program: &str, code: i32) -> i32 {
    // SAFETY: a plain read of a constant that the loader has set.
    if unsafe { ptr::read_volatile(&raw const LOG) } != 0 {
        log(ctx, program, code);
    }
    code
}

// On a stack frame of its own, as programs need theirs.
#[inline(never)]
fn log<C: EbpfContext>(ctx: &C, program: &str, code: i32) {
    aya_log_ebpf::debug!(ctx, "{} returns {}", program, code);
}
