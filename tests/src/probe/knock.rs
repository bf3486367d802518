//! Connects to one address over and over, without waiting, to find any moment at which it is
//! reachable.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, SockaddrStorage, connect, getpeername, getsockname, sockopt};

use super::{Knock, Report, socket};

/// Attempts in a row before a pause that lets other processes run.
const IN_A_ROW: u32 = 16;
const PAUSE: Duration = Duration::from_millis(1);
/// The maximum number of attempts in progress.
const WAITING: usize = 512;

/// Ends when it is killed. Prints a line for each established connection, and one for every
/// thousand failed attempts.
pub(super) fn knock(what: &Knock) -> Report {
    let mut waiting = VecDeque::new();
    let mut tried = 0_u64;
    print_line("ready");
    loop {
        for _ in 0..IN_A_ROW {
            match begin(what.to) {
                Ok(socket) => waiting.push_back(socket),
                Err(Errno::EPERM | Errno::ECONNREFUSED) => {}
                // Out of ports or descriptors: some are released soon.
                Err(Errno::EADDRNOTAVAIL | Errno::EMFILE | Errno::EAGAIN) => {
                    waiting.pop_front();
                }
                Err(errno) => return Report::of_errno(errno, "connect"),
            }
            if waiting.len() > WAITING
                && let Some(first) = waiting.pop_front()
            {
                look(&first);
            }
            tried += 1;
            if tried.is_multiple_of(1000) {
                print_line(&format!("tried {tried}"));
            }
        }
        // An attempt this old would have been answered by now.
        if let Some(first) = waiting.pop_front() {
            look(&first);
        }
        thread::sleep(PAUSE);
    }
}

fn begin(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = socket::towards(to, SockType::Stream, 0)?;
    let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
    fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // Closes with a reset, so that no port is blocked for a minute.
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&socket, sockopt::Linger, &linger)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

fn look(socket: &OwnedFd) {
    if getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok() {
        let from = getsockname::<SockaddrStorage>(socket.as_raw_fd());
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        print_line(&format!("open from {from}"));
    }
}

fn print_line(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
