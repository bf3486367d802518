//! Clients: open connections and send datagrams.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{BindToDevice, Broadcast, IpTransparent, ReuseAddr};
use nix::sys::socket::{
    MsgFlags, SockType, SockaddrStorage, bind, connect as connect_to, recv, send, sendto,
    setsockopt,
};

use crate::packet::{CLIENT_HELLO, from_hex};

use super::{
    Connect, Failure, Hold, Outcome, Report, Transfer, Udp, compat, milliseconds, print_line,
    socket,
};

pub(super) fn connect(what: &Connect) -> Report {
    let started = Instant::now();
    let mut stream = match open_stream(what) {
        Ok(stream) => stream,
        Err((errno, step)) => return timed(Report::of_errno(errno, step), started),
    };
    let local = stream.local_addr().ok();
    let report = match &what.send {
        None if !what.piece.is_empty() => send_pieces(&mut stream, what),
        None => Report::new(Outcome::Connected, "connect"),
        Some(_) if what.fast_open => receive(&mut stream),
        Some(text) => match stream.write_all(text.as_bytes()) {
            Ok(()) => receive(&mut stream),
            Err(error) => Report::of_error(&error, "send"),
        },
    };
    timed(Report { local, ..report }, started)
}

/// With TCP Fast Open, the first piece was already sent with the SYN.
fn send_pieces(stream: &mut TcpStream, what: &Connect) -> Report {
    // Each piece is a separate segment.
    if let Err(error) = stream.set_nodelay(true) {
        return Report::of_error(&error, "nodelay");
    }
    for piece in &what.urgent {
        let Ok(bytes) = from_hex(piece) else {
            return Report::new(Outcome::Other, "hex");
        };
        if let Err(errno) = send(stream.as_raw_fd(), &bytes, MsgFlags::MSG_OOB) {
            return Report::of_errno(errno, "urgent");
        }
        thread::sleep(milliseconds(what.pause_ms));
    }
    for piece in what.piece.iter().skip(usize::from(what.fast_open)) {
        let Ok(bytes) = from_hex(piece) else {
            return Report::new(Outcome::Other, "hex");
        };
        if let Err(error) = stream.write_all(&bytes) {
            return Report::of_error(&error, "send");
        }
        thread::sleep(milliseconds(what.pause_ms));
    }
    receive(stream)
}

pub(super) fn transfer(what: &Transfer) -> Report {
    let started = Instant::now();
    let connect = Connect {
        timeout_ms: what.timeout_ms,
        ..Connect::to(what.to)
    };
    let stream = match open_stream(&connect) {
        Ok(stream) => stream,
        Err((errno, step)) => return timed(Report::of_errno(errno, step), started),
    };
    let local = stream.local_addr().ok();
    let report = thread::scope(|scope| {
        // Both directions at the same time: an echo server whose answers are not read stops
        // reading. The path may require TLS.
        let mut bytes = vec![b'x'; what.bytes];
        let hello = CLIENT_HELLO.len().min(bytes.len());
        bytes[..hello].copy_from_slice(&CLIENT_HELLO[..hello]);
        let stream = &stream;
        scope.spawn(move || { stream }.write_all(&bytes));
        let report = take_back(stream, what.bytes);
        // If the sender is stuck, no one receives any more.
        let _ = stream.shutdown(Shutdown::Both);
        report
    });
    timed(Report { local, ..report }, started)
}

fn take_back(mut stream: &TcpStream, bytes: usize) -> Report {
    let (mut buffer, mut came) = (vec![0; 65536], 0);
    let report = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Report::new(Outcome::Closed, "receive"),
            Ok(length) => came += length,
            Err(error) => break Report::of_error(&error, "receive"),
        }
        if came >= bytes {
            break Report::new(Outcome::Answered, "receive");
        }
    };
    let count = u64::try_from(came).unwrap_or(u64::MAX);
    Report { count, ..report }
}

pub(super) fn hold(what: &Hold) -> Report {
    let started = Instant::now();
    let connect = Connect {
        timeout_ms: what.timeout_ms,
        ..Connect::to(what.to)
    };
    let mut stream = match open_stream(&connect) {
        Ok(stream) => stream,
        Err((errno, step)) => return timed(Report::of_errno(errno, step), started),
    };
    let local = stream.local_addr().ok();
    for count in 0.. {
        let report = match stream.write_all(what.send.as_bytes()) {
            Ok(()) => receive(&mut stream),
            Err(error) => Report::of_error(&error, "send"),
        };
        if report.outcome != Outcome::Answered {
            return timed(
                Report {
                    local,
                    count,
                    ..report
                },
                started,
            );
        }
        print_line(&format!("answer {}", count + 1));
        thread::sleep(milliseconds(what.every_ms));
    }
    Report::new(Outcome::Closed, "end of numbers")
}

pub(super) fn udp(what: &Udp) -> Report {
    let started = Instant::now();
    let report = match send_datagrams(what) {
        Ok(socket) if what.no_answer => Report {
            local: socket.local_addr().ok(),
            ..Report::new(Outcome::Sent, "send")
        },
        Ok(socket) => answer_to_datagram(&socket),
        Err((errno, step)) => Report::of_errno(errno, step),
    };
    let count = if report.step == "socket" {
        0
    } else {
        what.count.into()
    };
    timed(Report { count, ..report }, started)
}

fn open_stream(what: &Connect) -> Result<TcpStream, Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let to = socket::mapped(what.to, what.mapped);
    let socket = if what.multipath {
        socket::multipath(to, what.timeout_ms)
    } else {
        socket::towards(to, SockType::Stream, what.timeout_ms)
    };
    let socket = socket.map_err(at("socket"))?;
    if let Some(device) = &what.device {
        setsockopt(&socket, BindToDevice, &device.into()).map_err(at("device"))?;
    }
    // Also takes a port that an earlier connection still holds in TIME_WAIT.
    setsockopt(&socket, ReuseAddr, &what.from.is_some()).map_err(at("reuse"))?;
    setsockopt(&socket, IpTransparent, &what.transparent).map_err(at("transparent"))?;
    bind_to(&socket, what.from, what.mapped).map_err(at("bind"))?;
    if let Some(first) = what.first {
        connect_to(socket.as_raw_fd(), &SockaddrStorage::from(first)).map_err(at("first"))?;
        if let Some(piece) = &what.first_piece {
            let bytes = from_hex(piece).map_err(|_reason| (Errno::EINVAL, "hex"))?;
            let mut answer = vec![0; 65536];
            for _ in 0..what.first_count {
                send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(at("first-send"))?;
                recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())
                    .map_err(at("first-receive"))?;
            }
        }
        socket::disconnect(&socket).map_err(at("disconnect"))?;
    }
    let address = SockaddrStorage::from(to);
    let first = match (&what.send, what.piece.first()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(piece)) => from_hex(piece).unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    let connected = if what.fast_open && !first.is_empty() {
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        sendto(socket.as_raw_fd(), &first, &address, flags).map(drop)
    } else if what.compat {
        compat::connect(&socket, to)
    } else {
        connect_to(socket.as_raw_fd(), &address)
    };
    connected.map_err(at("connect"))?;
    Ok(TcpStream::from(socket))
}

fn receive(stream: &mut TcpStream) -> Report {
    let mut buffer = vec![0; 65536];
    match stream.read(&mut buffer) {
        Ok(0) => Report::new(Outcome::Closed, "receive"),
        Ok(length) => answered(buffer.get(..length).unwrap_or_default()),
        Err(error) => Report::of_error(&error, "receive"),
    }
}

fn send_datagrams(what: &Udp) -> Result<UdpSocket, Failure> {
    let at = |step: &'static str| move |errno| (errno, step);
    let to = socket::mapped(what.to, what.mapped);
    let socket = socket::towards(to, SockType::Datagram, what.timeout_ms).map_err(at("socket"))?;
    // Needs no privilege.
    setsockopt(&socket, Broadcast, &true).map_err(at("broadcast"))?;
    bind_to(&socket, what.from, what.mapped).map_err(at("bind"))?;
    let peer = what.but_connect.or(what.connected.then_some(what.to));
    if let Some(peer) = peer {
        let peer = SockaddrStorage::from(socket::mapped(peer, what.mapped));
        connect_to(socket.as_raw_fd(), &peer).map_err(at("connect"))?;
    }
    let socket = UdpSocket::from(socket);
    for _ in 0..what.count {
        let plainly = what.connected && what.but_connect.is_none();
        let sent = if plainly {
            socket.send(what.send.as_bytes())
        } else {
            socket.send_to(what.send.as_bytes(), to)
        };
        sent.map_err(|error| (Errno::from_raw(error.raw_os_error().unwrap_or(0)), "send"))?;
    }
    Ok(socket)
}

fn answer_to_datagram(socket: &UdpSocket) -> Report {
    let mut buffer = vec![0; 65536];
    let report = match socket.recv_from(&mut buffer) {
        Ok((length, _peer)) => answered(buffer.get(..length).unwrap_or_default()),
        Err(error) => Report::of_error(&error, "receive"),
    };
    Report {
        local: socket.local_addr().ok(),
        ..report
    }
}

fn bind_to(socket: &OwnedFd, from: Option<SocketAddr>, mapped: bool) -> Result<(), Errno> {
    let Some(from) = from else { return Ok(()) };
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(socket::mapped(from, mapped)),
    )
}

fn answered(bytes: &[u8]) -> Report {
    Report {
        answer: Some(String::from_utf8_lossy(bytes).into_owned()),
        count: 1,
        ..Report::new(Outcome::Answered, "receive")
    }
}

fn timed(report: Report, started: Instant) -> Report {
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report { took_ms, ..report }
}
