//! The command line of `lab-probe`, subcommand by subcommand.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde::Serialize;

use super::TIMEOUT_MS;
use crate::packet::to_hex;

/// `lab-probe connect`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Connect {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// The own address and port to bind first
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Use an IPv6 socket and the IPv4-mapped form of the destination
    #[arg(long)]
    pub mapped: bool,
    /// What to send; its answer is reported
    #[arg(long)]
    pub send: Option<String>,
    /// What to send, in hexadecimal, each piece by itself; the answer to the first that is answered is
    /// reported
    #[arg(long, conflicts_with = "send")]
    pub piece: Vec<String>,
    /// How long to wait after each piece
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Send the text, or the first piece, in the SYN (TCP Fast Open)
    #[arg(long)]
    pub fast_open: bool,
    /// Speak multipath TCP
    #[arg(long)]
    pub multipath: bool,
    /// Take the address to bind though this host does not have it (IP_TRANSPARENT)
    #[arg(long, requires = "from")]
    pub transparent: bool,
    /// Bind the socket to this interface (SO_BINDTODEVICE)
    #[arg(long)]
    pub device: Option<String>,
    /// Connect to this address first, and then with the same socket to the other
    #[arg(long)]
    pub first: Option<SocketAddr>,
    /// How long each step may take
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

impl Connect {
    /// A plain connection.
    pub fn to(to: SocketAddr) -> Self {
        let timeout_ms = TIMEOUT_MS;
        Self {
            to,
            from: None,
            mapped: false,
            send: None,
            piece: Vec::new(),
            pause_ms: 0,
            fast_open: false,
            multipath: false,
            transparent: false,
            device: None,
            first: None,
            timeout_ms,
        }
    }
}

/// `lab-probe transfer`: reports how many bytes came back.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Transfer {
    /// An echo server
    #[arg(long)]
    pub to: SocketAddr,
    /// How many bytes to send, and to wait for
    #[arg(long)]
    pub bytes: usize,
    /// How long it may stand still
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

/// `lab-probe hold`: prints a line for each answer, and a report when there is none any more.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Hold {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// What to send each time
    #[arg(long, default_value = "ping\n")]
    pub send: String,
    /// How long to wait in between
    #[arg(long, default_value_t = 50)]
    pub every_ms: u64,
    /// How long to wait for the connection and for an answer
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

impl Hold {
    /// A connection to an echo server.
    pub fn to(to: SocketAddr) -> Self {
        Self {
            to,
            send: "ping\n".to_owned(),
            every_ms: 50,
            timeout_ms: TIMEOUT_MS,
        }
    }

    /// The same with an HTTP server, over one connection that is kept alive.
    pub fn http(to: SocketAddr) -> Self {
        Self {
            send: format!("GET / HTTP/1.1\r\nHost: {to}\r\n\r\n"),
            ..Self::to(to)
        }
    }
}

/// `lab-probe udp`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Udp {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// The own address and port to bind first
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Connect the socket, to the destination or, with --but-connect, elsewhere
    #[arg(long)]
    pub connected: bool,
    /// Connect the socket to this address, and send to the destination all the same
    #[arg(long)]
    pub but_connect: Option<SocketAddr>,
    /// Use an IPv6 socket and the IPv4-mapped form of the destination
    #[arg(long)]
    pub mapped: bool,
    /// What to send
    #[arg(long, default_value = "ping")]
    pub send: String,
    /// How often to send it
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// Wait for no answer
    #[arg(long)]
    pub no_answer: bool,
    /// How long to wait for an answer
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

impl Udp {
    /// One datagram from an unconnected socket, and its answer.
    pub fn to(to: SocketAddr) -> Self {
        Self {
            to,
            from: None,
            connected: false,
            but_connect: None,
            mapped: false,
            send: "ping".to_owned(),
            count: 1,
            no_answer: false,
            timeout_ms: TIMEOUT_MS,
        }
    }
}

/// `lab-probe bind`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Bind {
    /// The address
    #[arg(long)]
    pub at: SocketAddr,
    /// UDP instead of TCP
    #[arg(long)]
    pub udp: bool,
    /// Let two sockets have one port (SO_REUSEPORT)
    #[arg(long)]
    pub reuse_port: bool,
    /// Use an IPv6 socket and the IPv4-mapped form of the address
    #[arg(long)]
    pub mapped: bool,
    /// Speak multipath TCP
    #[arg(long)]
    pub multipath: bool,
}

impl Bind {
    /// A plain TCP listener.
    pub fn at(at: SocketAddr) -> Self {
        Self {
            at,
            udp: false,
            reuse_port: false,
            mapped: false,
            multipath: false,
        }
    }
}

/// `lab-probe ping`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Ping {
    /// Where to
    #[arg(long)]
    pub to: IpAddr,
    /// How long to wait for the reply
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

/// `lab-probe inject`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Inject {
    /// The interface to send on
    #[arg(long)]
    pub interface: String,
    /// The frames in hexadecimal, from the hardware addresses on
    #[arg(long = "frame", required = true)]
    pub frame: Vec<String>,
    /// Let the kernel write the hardware addresses (a packet socket of type SOCK_DGRAM)
    #[arg(long)]
    pub cooked: bool,
    /// Go around the queueing discipline (PACKET_QDISC_BYPASS)
    #[arg(long)]
    pub bypass: bool,
}

impl Inject {
    /// Frames by a packet socket as most have it.
    pub fn frames(interface: &str, frames: &[Vec<u8>]) -> Self {
        Self {
            interface: interface.to_owned(),
            frame: frames.iter().map(|frame| to_hex(frame)).collect(),
            cooked: false,
            bypass: false,
        }
    }
}

/// `lab-probe raw`.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct Raw {
    /// The packets in hexadecimal, from the IP header on
    #[arg(long = "packet", required = true)]
    pub packet: Vec<String>,
    /// By a socket of TCP's own: the kernel writes the IP header anew
    #[arg(long)]
    pub tcp: bool,
    /// Connected to where they go
    #[arg(long)]
    pub connected: bool,
}

/// `lab-probe serve`: prints [`READY`](super::READY), then a [`Heard`](super::Heard) per event.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct Serve {
    /// TCP addresses to listen on
    #[arg(long = "tcp")]
    pub tcp: Vec<SocketAddr>,
    /// UDP addresses to listen on
    #[arg(long = "udp")]
    pub udp: Vec<SocketAddr>,
    /// Answer with this instead of what came
    #[arg(long)]
    pub say: Option<String>,
    /// Say this first to whoever opens a connection
    #[arg(long)]
    pub greet: Option<String>,
    /// Answer only when so many bytes have come over a connection
    #[arg(long, default_value_t = 0)]
    pub after: usize,
    /// Speak multipath TCP
    #[arg(long)]
    pub multipath: bool,
}

/// `lab-probe sniff`: prints [`READY`](super::READY), then a [`Frame`](super::Frame) per frame that matches.
///
/// A packet socket sees incoming frames *before* a TC program judges them, and outgoing ones after.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct Sniff {
    /// The interface
    #[arg(long)]
    pub interface: String,
    /// Only frames from or to this port
    #[arg(long)]
    pub port: Option<u16>,
    /// Only frames from or to this address
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// How long to look; for ever unless given
    #[arg(long)]
    pub for_ms: Option<u64>,
}

/// `lab-probe dns`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Dns {
    /// The server
    #[arg(long)]
    pub server: SocketAddr,
    /// The name
    #[arg(long)]
    pub name: String,
    /// Ask for texts instead of addresses
    #[arg(long)]
    pub text: bool,
    /// Ask over TCP
    #[arg(long)]
    pub tcp: bool,
    /// How long to wait for the answer
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

impl Dns {
    /// For a name's address, over UDP.
    pub fn name(server: SocketAddr, name: &str) -> Self {
        Self {
            server,
            name: name.to_owned(),
            text: false,
            tcp: false,
            timeout_ms: TIMEOUT_MS,
        }
    }
}

/// `lab-probe tunnel-server`.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct TunnelServer {
    /// Where clients come
    #[arg(long = "frontend")]
    pub frontend: Vec<SocketAddr>,
    /// Where agents come
    #[arg(long = "agents")]
    pub agents: Vec<SocketAddr>,
    /// Where others ask whether it is there
    #[arg(long = "health")]
    pub health: Vec<SocketAddr>,
}

/// `lab-probe tunnel-agent`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TunnelAgent {
    /// The server to dial
    #[arg(long)]
    pub server: SocketAddr,
    /// Where its clients are led
    #[arg(long)]
    pub target: SocketAddr,
}
