//! Servers: wait for clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use nix::errno::Errno;
use nix::sys::socket::{Backlog, SockType, listen};
use serde::{Deserialize, Serialize};

use super::{Bind, Outcome, READY, Report, Serve, Take, compat, print_line, socket};
use crate::Lab;

/// What a server reports about a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The client's address.
    pub from: SocketAddr,
    /// The server's own address.
    pub at: SocketAddr,
    /// What it sent; `None` for a connection that was only opened.
    pub data: Option<String>,
}

pub(super) fn bind(what: &Bind) -> Report {
    let kind = if what.udp {
        SockType::Datagram
    } else {
        SockType::Stream
    };
    let at = socket::mapped(what.at, what.mapped);
    let bound = if what.compat {
        socket::towards(at, kind, 0).and_then(|socket| compat::bind(&socket, at).map(|()| socket))
    } else {
        socket::bound(at, kind, what.take, [what.reuse_port, what.multipath])
    };
    let bound = match bound {
        Ok(bound) => bound,
        Err(errno) => return Report::of_errno(errno, "bind"),
    };
    if !what.udp
        && let Err(errno) = listen(&bound, Backlog::MAXCONN)
    {
        return Report::of_errno(errno, "listen");
    }
    Report::new(Outcome::Bound, if what.udp { "bind" } else { "listen" })
}

pub(super) fn serve(what: &Serve) -> Report {
    let (tcp, udp) = match (
        open_all(&what.tcp, |at| tcp(at, what)),
        open_all(&what.udp, |at| udp(at, what.take)),
    ) {
        (Ok(tcp), Ok(udp)) => (tcp, udp),
        (Err(errno), _) | (_, Err(errno)) => return Report::of_errno(errno, "bind"),
    };
    print_line(READY);
    thread::scope(|scope| {
        for listener in &tcp {
            scope.spawn(|| accept(listener, what));
        }
        for socket in &udp {
            scope.spawn(|| answer_datagrams(socket, what.say.as_deref()));
        }
    });
    Report::new(Outcome::Closed, "serve")
}

pub(super) fn keep_lab() -> Report {
    match Lab::builder().build() {
        Ok(lab) => {
            print_line(&lab.id().to_string());
            loop {
                thread::park();
            }
        }
        Err(error) => {
            let os_error = Some(format!("{error:#}"));
            Report {
                os_error,
                ..Report::new(Outcome::Other, "build")
            }
        }
    }
}

fn open_all<T>(
    addresses: &[SocketAddr],
    open: impl Fn(SocketAddr) -> Result<T, Errno>,
) -> Result<Vec<T>, Errno> {
    addresses.iter().map(|address| open(*address)).collect()
}

fn tcp(at: SocketAddr, what: &Serve) -> Result<TcpListener, Errno> {
    let at = socket::mapped(at, what.mapped);
    let socket = socket::bound(at, SockType::Stream, what.take, [false, what.multipath])?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket.into())
}

fn udp(at: SocketAddr, take: Take) -> Result<UdpSocket, Errno> {
    Ok(socket::bound(at, SockType::Datagram, take, [false; 2])?.into())
}

fn accept(listener: &TcpListener, what: &Serve) {
    thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            scope.spawn(move || converse(stream, what));
        }
    });
}

fn converse(mut stream: TcpStream, what: &Serve) {
    let (Ok(from), Ok(at)) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    hear(&Heard {
        from,
        at,
        data: None,
    });
    let say = what.say.as_deref();
    let greeting = what.greet.as_deref().unwrap_or_default();
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let mut came = 0;
    let mut buffer = vec![0; 65536];
    while let Ok(length) = stream.read(&mut buffer) {
        let data = buffer.get(..length).unwrap_or_default();
        if data.is_empty() {
            return;
        }
        hear(&Heard {
            from,
            at,
            data: Some(String::from_utf8_lossy(data).into_owned()),
        });
        came += length;
        if came >= what.after && stream.write_all(say.map_or(data, str::as_bytes)).is_err() {
            return;
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, say: Option<&str>) {
    let Ok(at) = socket.local_addr() else { return };
    let mut buffer = vec![0; 65536];
    loop {
        // An error here is an ICMP message about an earlier answer.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let data = buffer.get(..length).unwrap_or_default();
        hear(&Heard {
            from,
            at,
            data: Some(String::from_utf8_lossy(data).into_owned()),
        });
        // If the answer does not arrive, the client will notice.
        let _ = socket.send_to(say.map_or(data, str::as_bytes), from);
    }
}

fn hear(heard: &Heard) {
    if let Ok(line) = serde_json::to_string(heard) {
        print_line(&line);
    }
}
