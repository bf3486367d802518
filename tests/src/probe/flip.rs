//! Bytes that change after they were passed to the kernel and before it is done with them: a
//! verdict is safe only if they are read once, and if the value that was read is the one that is
//! sent.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice, vmsplice};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{AddressFamily, MsgFlags, SockType, bind, send};
use nix::unistd::{ftruncate, pipe};

use super::ring::TxRing;
use super::{Call, Failure, FlipFrame, FlipPage, Outcome, Report, TIMEOUT_MS, ZeroCopy, socket};
use crate::packet::from_hex;

const PAGE: usize = 4096;
const SO_ZEROCOPY: libc::c_int = 60;
const MSG_ZEROCOPY: libc::c_int = 0x400_0000;

pub(super) fn frame(what: &FlipFrame) -> Report {
    reported(send_frames(what), what.count)
}

pub(super) fn page(what: &FlipPage) -> Report {
    reported(send_pages(what), what.count)
}

fn reported(done: Result<(), Failure>, count: u32) -> Report {
    match done {
        Ok(()) => Report {
            count: count.into(),
            ..Report::new(Outcome::Sent, "send")
        },
        Err((errno, step)) => Report::of_errno(errno, step),
    }
}

/// Runs something many times while a byte alternates between two values. Each run begins with the
/// other value, so that both occur even on a single processor.
fn while_it_flips(
    byte: &AtomicU8,
    other: u8,
    count: u32,
    each: impl Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let one = byte.load(Ordering::Relaxed);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                byte.store(other, Ordering::Relaxed);
                pause();
                byte.store(one, Ordering::Relaxed);
                pause();
            }
        });
        let result = (0..count).try_for_each(|number| {
            let value = if number % 2 == 0 { one } else { other };
            byte.store(value, Ordering::Relaxed);
            each()
        });
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn pause() {
    for _ in 0..50 {
        std::hint::spin_loop();
    }
}

fn send_frames(what: &FlipFrame) -> Result<(), Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let frame = from_hex(&what.frame).map_err(|_reason| (Errno::EINVAL, "hex"))?;
    let socket = socket::open(AddressFamily::Packet, SockType::Raw, None, TIMEOUT_MS)
        .map_err(at("socket"))?;
    let address = socket::destination(&what.interface, 0, [0; 6]).map_err(at("interface"))?;
    bind(socket.as_raw_fd(), &address).map_err(at("bind"))?;
    let mut ring = TxRing::of(socket).map_err(at("ring"))?;
    ring.fill(&frame).map_err(at("ring"))?;
    let byte = ring.byte(what.at).map_err(at("ring"))?;
    while_it_flips(byte, what.to, what.count, || match ring.send() {
        // The sender gets one of these errors for a packet that is dropped at egress.
        Ok(()) | Err(Errno::ENOBUFS | Errno::EPERM | Errno::ENOMEM) => Ok(()),
        Err(errno) => Err((errno, "send")),
    })
}

/// A page of a file that is mapped into memory.
struct Page {
    file: File,
    memory: NonNull<libc::c_void>,
    length: usize,
}

impl Page {
    fn with(bytes: &[u8]) -> Result<Self, Errno> {
        let file = memfd_create("page", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, PAGE as i64)?;
        let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of a file that only this process has.
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?;
        if bytes.len() > PAGE {
            return Err(Errno::E2BIG);
        }
        // SAFETY: the page is that long, and nothing else writes to it yet.
        unsafe {
            memory
                .cast::<u8>()
                .copy_from(NonNull::from(bytes).cast(), bytes.len())
        };
        Ok(Self {
            file: file.into(),
            memory,
            length: bytes.len(),
        })
    }

    fn first(&self) -> &AtomicU8 {
        // SAFETY: mapped as long as this program lives, and read and written by atomic operations.
        unsafe { self.memory.cast::<AtomicU8>().as_ref() }
    }

    /// Its bytes, for calls that pass their address on.
    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as this program lives. One byte changes meanwhile, but nothing
        // here reads it.
        unsafe { std::slice::from_raw_parts(self.memory.cast().as_ptr(), self.length) }
    }

    fn go(&self, stream: &TcpStream, method: ZeroCopy) -> Result<(), Errno> {
        match method {
            ZeroCopy::File => {
                let mut offset = 0;
                sendfile(stream, &self.file, Some(&mut offset), self.length).map(drop)
            }
            ZeroCopy::Pipe => {
                let (reader, writer) = pipe()?;
                vmsplice(
                    &writer,
                    &[IoSlice::new(self.bytes())],
                    SpliceFFlags::empty(),
                )?;
                let flags = SpliceFFlags::SPLICE_F_MOVE;
                splice(&reader, None, stream, None, self.length, flags).map(drop)
            }
            ZeroCopy::Memory => {
                let flags = MsgFlags::from_bits_retain(MSG_ZEROCOPY);
                send(stream.as_raw_fd(), self.bytes(), flags).map(drop)
            }
        }
    }
}

fn send_pages(what: &FlipPage) -> Result<(), Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let bytes = from_hex(&what.page).map_err(|_reason| (Errno::EINVAL, "hex"))?;
    let page = Page::with(&bytes).map_err(at("page"))?;
    while_it_flips(page.first(), what.to, what.count, || {
        let stream = TcpStream::connect_timeout(&what.connect, super::milliseconds(TIMEOUT_MS))
            .map_err(|error| (raw(&error), "connect"))?;
        if what.method == ZeroCopy::Memory {
            let option = (libc::SOL_SOCKET, SO_ZEROCOPY);
            let on = 1i32.to_ne_bytes();
            let socket: OwnedFd = stream
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| (raw(&error), "dup"))?;
            socket::set_option(&socket, option, &on, Call::Native).map_err(at("zerocopy"))?;
        }
        page.go(&stream, what.method).map_err(at("send"))?;
        stream
            .shutdown(Shutdown::Write)
            .map_err(|error| (raw(&error), "shutdown"))
    })
}

fn raw(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::ETIMEDOUT))
}
