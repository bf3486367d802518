//! A packet socket that sends from memory shared with the kernel (`PACKET_TX_RING`): frames are not
//! copied, so they can change until they are read for the last time.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{MsgFlags, send};

use super::{Call, socket};

// include/uapi/linux/if_packet.h
const PACKET_VERSION: libc::c_int = 10;
const PACKET_TX_RING: libc::c_int = 13;
const TPACKET_V2: libc::c_int = 1;
const AVAILABLE: u32 = 0;
const SEND_REQUEST: u32 = 1;
const WRONG_FORMAT: u32 = 4;
/// Where the frame begins, after its header (`struct tpacket2_hdr`).
const DATA: usize = 32;
/// Length of the ring's single frame.
const FRAME: usize = 4096;

/// A ring of one frame.
pub(super) struct TxRing {
    socket: OwnedFd,
    frame: NonNull<libc::c_void>,
}

// SAFETY: the memory stays mapped as long as the program lives, and it is read and written by
// atomic operations, except for `fill`, which takes exclusive access.
unsafe impl Sync for TxRing {}

impl TxRing {
    /// Creates one from a socket that is bound to its interface.
    pub(super) fn of(socket: OwnedFd) -> Result<Self, Errno> {
        let set = |option, value: &[u8]| {
            socket::set_option(&socket, (libc::SOL_PACKET, option), value, Call::Native)
        };
        set(PACKET_VERSION, &TPACKET_V2.to_ne_bytes())?;
        let size = (FRAME as u32).to_ne_bytes();
        let one = 1u32.to_ne_bytes();
        set(PACKET_TX_RING, &[size, one, size, one].concat())?;
        let length = NonZeroUsize::new(FRAME).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of the socket's own memory.
        let frame = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &socket, 0) }?;
        Ok(Self { socket, frame })
    }

    /// Writes the frame.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > FRAME - DATA {
            return Err(Errno::EMSGSIZE);
        }
        // SAFETY: the frame is that long, and nothing else writes to it.
        unsafe {
            let data = self.frame.byte_add(DATA).cast::<u8>();
            data.copy_from(NonNull::from(bytes).cast(), bytes.len());
        }
        self.word(1).store(bytes.len() as u32, Ordering::Relaxed);
        Ok(())
    }

    /// One byte of the frame, which can be changed while it is sent.
    pub(super) fn byte(&self, at: usize) -> Result<&AtomicU8, Errno> {
        if at >= FRAME - DATA {
            return Err(Errno::EMSGSIZE);
        }
        // SAFETY: within the mapping, which lives as long as the program.
        Ok(unsafe { self.frame.byte_add(DATA + at).cast::<AtomicU8>().as_ref() })
    }

    /// Sends it, and waits until the kernel has released it.
    pub(super) fn send(&self) -> Result<(), Errno> {
        let status = self.word(0);
        status.store(SEND_REQUEST, Ordering::Release);
        let sent = send(self.socket.as_raw_fd(), &[], MsgFlags::empty());
        loop {
            match status.load(Ordering::Acquire) {
                AVAILABLE => return sent.map(drop),
                WRONG_FORMAT => {
                    status.store(AVAILABLE, Ordering::Release);
                    return Err(Errno::EINVAL);
                }
                // A frame that was refused is not sent again.
                SEND_REQUEST if sent.is_err() => {
                    status.store(AVAILABLE, Ordering::Release);
                    return sent.map(drop);
                }
                _ => std::thread::yield_now(),
            }
        }
    }

    /// A word of its header: 0 is the status, 1 the length.
    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: aligned, within the mapping, which lives as long as the program.
        unsafe { self.frame.byte_add(at * 4).cast::<AtomicU32>().as_ref() }
    }
}
