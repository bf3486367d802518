//! A setting of an interface that has no file: ethtool(8) would have to be installed for it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};

/// Turns generic receive offload on, in this thread's network namespace.
pub fn receive_offload(interface: &str) -> Result<()> {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_SGRO: u32 = 0x2c;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: ETHTOOL_SGRO,
        data: 1,
    };
    let socket = UdpSocket::bind("0.0.0.0:0").context("no socket to ask by")?;
    ensure!(
        interface.len() < libc::IFNAMSIZ,
        "`{interface}` is no interface's name"
    );
    // SAFETY: all zeroes are an empty name and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the name ends in a zero, and what is pointed to has the layout that the command asks for
    // (`struct ethtool_value`) and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
        .with_context(|| format!("generic receive offload stays off on {interface}"))
}
