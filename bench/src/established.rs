//! A TCP connection that is open, and a segment of it that can be received any number of times.

use std::io::{Read as _, Write as _};
use std::mem::size_of_val;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::plan::CP1;
use etherparse::PacketBuilder;

use crate::filter::Site;
use crate::frames::{self, Generator};
use crate::policy::Family;

/// A connection from a client on another node, which has been made use of.
#[derive(Debug)]
pub struct Established {
    client: TcpStream,
    server: TcpStream,
}

impl Established {
    /// Opens one to the guarded port, and sends some data in both directions: enough for whatever a filter does once it
    /// treats the connection as established.
    pub fn open(site: &Site, family: Family) -> Result<Self> {
        let lab = &site.lab;
        // With time stamps, a segment that comes again would be too old.
        let node = lab.host("cp1").namespace();
        node.set_sysctls(&[("ipv4/tcp_timestamps", "0")])?;
        let listener = node.within(|| TcpListener::bind(family.guarded()))??;
        let connect = || TcpStream::connect(family.guarded());
        let mut client = lab.host("w1").namespace().within(connect)??;
        let (mut server, _) = listener.accept().context("no connection")?;
        let mut byte = [0];
        for _ in 0..2_000 {
            client.write_all(&byte)?;
            server.read_exact(&mut byte)?;
            server.write_all(&byte)?;
            client.read_exact(&mut byte)?;
        }
        Ok(Self { client, server })
    }

    /// A segment that acknowledges again what the client has received: the node takes it and has nothing to
    /// answer.
    pub fn acknowledgement(&self) -> Result<Generator> {
        let (from, to) = (self.client.local_addr()?, self.client.peer_addr()?);
        let [sequence, acknowledged] = numbers(&self.server)?;
        let ethernet = PacketBuilder::ethernet2(frames::SENDER, CP1.mac);
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => bail!("one family for both"),
        };
        let mut frame = Vec::new();
        ip.tcp(from.port(), to.port(), sequence, 512)
            .ack(acknowledged)
            .write(&mut frame, &[])
            .context("no segment")?;
        Ok(Generator {
            frame,
            program: frames::answer(frames::XDP_PASS).to_vec(),
        })
    }

    /// How many segments the node's end has received.
    pub fn received(&self) -> Result<u32> {
        // Of `struct tcp_info` in include/uapi/linux/tcp.h as far as `tcpi_segs_in` (4.2), in words.
        let mut info = [0_u32; 36];
        option(&self.server, libc::TCP_INFO, &mut info)?;
        Ok(info[35])
    }
}

/// The number of the next byte that a socket expects, and of the next that it sends.
fn numbers(socket: &TcpStream) -> Result<[u32; 2]> {
    // include/uapi/linux/tcp.h: the two queues, and the end of repair that sends nothing (4.19).
    const RECEIVED: libc::c_int = 1;
    const SENT: libc::c_int = 2;
    const END_QUIETLY: libc::c_int = -1;
    set_option(socket, libc::TCP_REPAIR, 1)?;
    let mut numbers = [0; 2];
    for (number, queue) in numbers.iter_mut().zip([RECEIVED, SENT]) {
        set_option(socket, libc::TCP_REPAIR_QUEUE, queue)?;
        let mut value = [0_u32];
        option(socket, libc::TCP_QUEUE_SEQ, &mut value)?;
        [*number] = value;
    }
    set_option(socket, libc::TCP_REPAIR, END_QUIETLY)?;
    Ok(numbers)
}

fn option<const N: usize>(
    socket: &TcpStream,
    name: libc::c_int,
    value: &mut [u32; N],
) -> Result<()> {
    let size = size_of_val(value);
    let mut length = size as libc::socklen_t;
    // SAFETY: the kernel writes no more than the length, which is that of the words.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(
        result == 0 && length as usize == size,
        "the kernel does not tell option {name} of TCP: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn set_option(socket: &TcpStream, name: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: the kernel reads one number.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    ensure!(
        result == 0,
        "the kernel does not take option {name} of TCP: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
