//! A tap device: a frame that is written to it arrives through an interface, preceded by an offload
//! header.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockType};

use super::{Failure, Outcome, Report, TIMEOUT_MS, Tap, socket};
use crate::packet::from_hex;

// include/uapi/linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

pub(super) fn send(what: &Tap) -> Report {
    match write_all(what) {
        Ok(count) => Report {
            count,
            ..Report::new(Outcome::Sent, "send")
        },
        Err((errno, step)) => Report::of_errno(errno, step),
    }
}

fn write_all(what: &Tap) -> Result<u64, Failure> {
    let hex = |text: &str| from_hex(text).map_err(|_reason| (Errno::EINVAL, "hex"));
    let header = hex(&what.offload)?;
    let (mut device, mac) = if what.device.contains('/') {
        (open_file(&what.device)?, None)
    } else {
        let (device, mac) = open(&what.device)?;
        (device, Some(mac))
    };
    let mut count = 0;
    for frame in &what.frame {
        let mut frame = hex(frame)?;
        if let (Some(to), Some(mac)) = (frame.first_chunk_mut::<6>(), mac) {
            *to = mac;
        }
        let written = device.write_all(&[&header[..], &frame].concat());
        written.map_err(|error| {
            let number = error.raw_os_error().unwrap_or(libc::EIO);
            (Errno::from_raw(number), "send")
        })?;
        count += 1;
    }
    Ok(count)
}

/// Creates the device and brings it up; it is removed with the file.
fn open(name: &str) -> Result<(File, [u8; 6]), Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let device = open_file("/dev/net/tun")?;
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    ioctl(device.as_raw_fd(), TUNSETIFF, &mut request).map_err(at("device"))?;
    let socket: OwnedFd = socket::open(AddressFamily::Inet, SockType::Datagram, None, TIMEOUT_MS)
        .map_err(at("socket"))?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request).map_err(at("up"))?;
    let mut request = named(name)?;
    ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request).map_err(at("address"))?;
    // SAFETY: the kernel has written this variant.
    let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok((device, [a, b, c, d, e, f].map(|byte| byte.cast_unsigned())))
}

fn open_file(path: &str) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| {
        let number = error.raw_os_error().unwrap_or(libc::ENODEV);
        (Errno::from_raw(number), "device")
    })
}

fn named(name: &str) -> Result<libc::ifreq, Failure> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err((Errno::ENAMETOOLONG, "device"));
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed();
    }
    Ok(request)
}

fn ioctl(file: i32, number: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
    // SAFETY: the pointer is to a whole request, which the kernel reads and writes.
    Errno::result(unsafe { libc::ioctl(file, number, request) }).map(drop)
}
