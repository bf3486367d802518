//! An `AF_XDP` socket that sends: its frames go straight to the driver, past every queueing
//! discipline.

use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::sys::socket::{MsgFlags, send};

use super::{Call, Failure, milliseconds, socket};

const CHUNK: usize = 4096;
const CHUNKS: usize = 8;
const RING: u32 = 64;
// include/uapi/linux/if_xdp.h
const TX_RING_OFFSET: i64 = 0x8000_0000;

/// An `AF_XDP` socket.
pub(super) fn open() -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let socket = Errno::result(socket)?;
    // SAFETY: just created, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Sets up a ring for sending to a driver's queue.
pub(super) fn ask_for_ring(socket: &OwnedFd, call: Call) -> Result<(), Errno> {
    let option = (libc::SOL_XDP, libc::XDP_TX_RING);
    socket::set_option(socket, option, &RING.to_ne_bytes(), call)
}

/// Sends frames on an interface.
pub(super) fn send_all(interface: &str, frames: &[Vec<u8>], call: Call) -> Result<(), Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let socket = open().map_err(at("socket"))?;
    ask_for_ring(&socket, call).map_err(at("ring"))?;
    let memory = share(&socket).map_err(at("memory"))?;
    let index = nix::net::if_::if_nametoindex(interface).map_err(at("interface"))?;
    let sender = Sender::bind(&socket, index).map_err(at("bind"))?;
    for (frame, number) in frames.iter().zip(0..CHUNKS) {
        if frame.len() > CHUNK {
            return Err((Errno::EMSGSIZE, "send"));
        }
        // SAFETY: a chunk is that long, and nothing else writes to it.
        unsafe {
            let chunk = memory.byte_add(number * CHUNK).cast::<u8>();
            chunk.copy_from(NonNull::from(&frame[..]).cast(), frame.len());
        }
        sender.put(number, frame.len());
        send(socket.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT).map_err(at("send"))?;
    }
    Ok(())
}

/// Memory for frames, which lives as long as this program.
fn share(socket: &OwnedFd) -> Result<NonNull<libc::c_void>, Errno> {
    let length = NonZeroUsize::new(CHUNK * CHUNKS).ok_or(Errno::EINVAL)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, which nothing else refers to.
    let memory = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
    // `struct xdp_umem_reg`
    let region = [
        &(memory.as_ptr().addr() as u64).to_ne_bytes()[..],
        &(length.get() as u64).to_ne_bytes(),
        &(CHUNK as u32).to_ne_bytes(),
        &[0; 12],
    ]
    .concat();
    let set = |option, value: &[u8]| {
        socket::set_option(socket, (libc::SOL_XDP, option), value, Call::Native)
    };
    set(libc::XDP_UMEM_REG, &region)?;
    set(libc::XDP_UMEM_FILL_RING, &RING.to_ne_bytes())?;
    set(libc::XDP_UMEM_COMPLETION_RING, &RING.to_ne_bytes())?;
    Ok(memory)
}

struct Sender {
    ring: NonNull<libc::c_void>,
    producer: usize,
    descriptors: usize,
}

impl Sender {
    fn bind(socket: &OwnedFd, index: u32) -> Result<Self, Errno> {
        // `struct xdp_mmap_offsets`: producer, consumer, descriptors and flags of four rings.
        let mut offsets = [[0u64; 4]; 4];
        let mut length = size_of_val(&offsets) as libc::socklen_t;
        let option = libc::XDP_MMAP_OFFSETS;
        let to = offsets.as_mut_ptr().cast();
        // SAFETY: the pointers are to memory of this length.
        let got = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_XDP,
                option,
                to,
                &raw mut length,
            )
        };
        Errno::result(got)?;
        let [producer, _, descriptors, _] = offsets[1].map(|offset| offset as usize);
        let size = NonZeroUsize::new(descriptors + RING as usize * 16).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping of the socket's own memory.
        let ring = unsafe {
            mmap(
                None,
                size,
                access,
                MapFlags::MAP_SHARED,
                socket,
                TX_RING_OFFSET,
            )
        }?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: index,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        let length = size_of_val(&address) as libc::socklen_t;
        let address = (&raw const address).cast();
        // The kernel takes time to release a queue that another socket had.
        for tries in 0.. {
            // SAFETY: the pointer is to a valid address of this length.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), address, length) };
            match Errno::result(bound) {
                Err(Errno::EBUSY) if tries < 500 => thread::sleep(milliseconds(2)),
                Err(errno) => return Err(errno),
                Ok(_) => break,
            }
        }
        Ok(Self {
            ring,
            producer,
            descriptors,
        })
    }

    /// Puts a chunk into the ring; each number is used once and in order.
    fn put(&self, number: usize, length: usize) {
        let descriptor = [(number * CHUNK) as u64, length as u64];
        // SAFETY: there are more descriptors than chunks, and this program owns the producer's end.
        unsafe {
            self.ring
                .byte_add(self.descriptors + number * 16)
                .cast::<[u64; 2]>()
                .write(descriptor);
            self.ring
                .byte_add(self.producer)
                .cast::<u32>()
                .write_volatile(number as u32 + 1);
        }
    }
}
