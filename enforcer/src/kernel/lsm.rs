//! The LSM program for `setsockopt`. Not every kernel loads it, and not every kernel that does
//! calls it.

use std::{io, os::fd::AsRawFd as _};

use aya::{
    Btf, Ebpf,
    programs::{Lsm, Program},
};
use enforcer_policy::text;

use super::{
    KernelError, calls,
    programs::LSM,
    state::{Hold, Kernel},
};

impl Kernel {
    /// Attaches the program for `setsockopt` to the kernel's security modules, if BPF is one of
    /// them. It sees calls that the cgroup hook does not. Returns whether that works, by trying it.
    pub(super) fn attach_lsm(&mut self) -> bool {
        self.lsm = self.try_lsm();
        self.lsm.is_ok()
    }

    fn try_lsm(&mut self) -> Result<(), String> {
        self.lsm_loaded.clone()?;
        let program = program(&mut self.bpf)?;
        let program = program.fd().map_err(|error| text::chain(&error))?;
        let link = calls::attach_to_lsm(program)
            .map_err(|error| format!("failed to attach `{LSM}`: {}", text::chain(&error)))?;
        // It may be attached and yet never called. Otherwise it is detached with its handle.
        if is_called() {
            let pin = self.pinned.as_ref().map(|pinned| pinned.instance.lsm());
            let hold = Hold::of(link, pin).map_err(|error| text::chain(&error))?;
            self.attached.lsm = Some(hold);
            return Ok(());
        }
        Err("`bpf` is not in the kernel's list of security modules (lsm=)".to_owned())
    }

    /// Whether every call of `setsockopt` is seen.
    pub fn sees_all_options(&self) -> bool {
        self.lsm.is_ok()
    }
}

/// Loads the program for security modules, which many kernels refuse.
pub(super) fn load(bpf: &mut Ebpf) -> Result<(), String> {
    let btf = Btf::from_sys_fs().map_err(|error| text::chain(&error))?;
    program(bpf)?
        .load("socket_setsockopt", &btf)
        .map_err(|error| summary(&text::chain(&error)))
}

fn program(bpf: &mut Ebpf) -> Result<&mut Lsm, String> {
    match bpf.program_mut(LSM) {
        Some(Program::Lsm(program)) => Ok(program),
        _ => Err(KernelError::Missing(LSM).to_string()),
    }
}

/// The essential part of an error: of the verifier's log, the last line before its statistics.
fn summary(text: &str) -> String {
    let is_account = |line: &&str| {
        [
            "verification time",
            "stack depth",
            "processed",
            ":",
            "mark_",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    let mut lines = text.lines().filter(|line| !is_account(line));
    let first = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(last) => format!("{first} … {last}"),
        None => first.to_owned(),
    }
}

/// Whether the program for security modules is called: it answers `EPERM` to a probe option that
/// does not exist.
fn is_called() -> bool {
    const PROBE: libc::c_int = 0x656e_6672;
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") else {
        return false;
    };
    let value: libc::c_int = 0;
    // SAFETY: the pointer is to a value of that length, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PROBE,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}
