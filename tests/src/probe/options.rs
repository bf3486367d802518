//! The command line of `lab-probe`, subcommand by subcommand.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::TIMEOUT_MS;
use crate::packet::to_hex;

/// `lab-probe connect`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Connect {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// The local address and port to bind first
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Use an IPv6 socket and the IPv4-mapped form of the destination
    #[arg(long)]
    pub mapped: bool,
    /// What to send; its answer is reported
    #[arg(long)]
    pub send: Option<String>,
    /// What to send, in hexadecimal, each piece separately; the first answer is reported
    #[arg(long, conflicts_with = "send")]
    pub piece: Vec<String>,
    /// Pieces to send before those, as urgent data (MSG_OOB)
    #[arg(long, requires = "piece")]
    pub urgent: Vec<String>,
    /// How long to wait after each piece
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Send the text, or the first piece, in the SYN (TCP Fast Open)
    #[arg(long)]
    pub fast_open: bool,
    /// Speak multipath TCP
    #[arg(long)]
    pub multipath: bool,
    /// Bind an address even if this host does not have it (IP_TRANSPARENT)
    #[arg(long, requires = "from")]
    pub transparent: bool,
    /// Bind the socket to this interface (SO_BINDTODEVICE)
    #[arg(long)]
    pub device: Option<String>,
    /// Connect by the system call for 32-bit programs
    #[arg(long)]
    pub compat: bool,
    /// Connect to this address first, and then to the other with the same socket
    #[arg(long)]
    pub first: Option<SocketAddr>,
    /// What to send there, in hexadecimal, --first-count times, reading each answer
    #[arg(long, requires = "first")]
    pub first_piece: Option<String>,
    /// How often to send it
    #[arg(long, default_value_t = 1)]
    pub first_count: u32,
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
            urgent: Vec::new(),
            pause_ms: 0,
            fast_open: false,
            multipath: false,
            transparent: false,
            device: None,
            compat: false,
            first: None,
            first_piece: None,
            first_count: 1,
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
    /// How long there may be no progress
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

/// `lab-probe hold`: prints a line for each answer, and a report once there are no more.
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

/// Options of [`Probe::Knock`](super::Probe::Knock).
#[derive(Debug, Clone, Args, Serialize)]
pub struct Knock {
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
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
    /// The local address and port to bind first
    #[arg(long)]
    pub from: Option<SocketAddr>,
    /// Connect the socket, to the destination or, with --but-connect, elsewhere
    #[arg(long)]
    pub connected: bool,
    /// Connect the socket to this address, but send to the destination anyway
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
    /// How to take the address
    #[arg(long, value_enum, default_value_t)]
    pub take: Take,
    /// Bind by the system call for 32-bit programs
    #[arg(long)]
    pub compat: bool,
}

/// How a socket gets its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Take {
    /// It is bound to it.
    #[default]
    Bind,
    /// It is bound to an address that this host may not have (IP_FREEBIND).
    Free,
    /// It is bound to port 0, with a port range that contains only this one (IP_LOCAL_PORT_RANGE).
    Range,
    /// It is never bound, and has such a range: `listen` or the first datagram gets the port.
    Unbound,
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
            take: Take::Bind,
            compat: false,
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
    /// Bypass the queueing discipline (PACKET_QDISC_BYPASS), and ask for it by this call
    #[arg(long, value_enum)]
    pub bypass: Option<Call>,
    /// A header with offloads in hexadecimal that goes before each frame (PACKET_VNET_HDR)
    #[arg(long)]
    pub offload: Option<String>,
    /// Send from memory shared with the kernel (PACKET_TX_RING)
    #[arg(long)]
    pub ring: bool,
    /// Declare this protocol for the frames, whatever their contents
    #[arg(long)]
    pub protocol: Option<u16>,
    /// Use the kind of socket that preceded packet sockets (SOCK_PACKET)
    #[arg(long, conflicts_with_all = ["cooked", "offload", "ring"])]
    pub old: bool,
    /// Send by an AF_XDP socket instead, and ask for its ring by this call
    #[arg(long, value_enum, conflicts_with_all = ["cooked", "bypass", "offload", "ring"])]
    pub express: Option<Call>,
}

/// How a process sets a socket option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// By the system call.
    #[default]
    Native,
    /// By the system call for 32-bit programs.
    Compat,
    /// By io_uring.
    Uring,
    /// By io_uring, set up by the system call for 32-bit programs.
    UringCompat,
}

impl Inject {
    /// Frames through a packet socket with the usual settings.
    pub fn frames(interface: &str, frames: &[Vec<u8>]) -> Self {
        Self {
            interface: interface.to_owned(),
            frame: frames.iter().map(|frame| to_hex(frame)).collect(),
            cooked: false,
            bypass: None,
            offload: None,
            ring: false,
            protocol: None,
            old: false,
            express: None,
        }
    }
}

/// `lab-probe ring`.
#[derive(Debug, Clone, Copy, Default, Args, Serialize)]
pub struct Ring {
    /// The call to use
    #[arg(long, value_enum, default_value_t)]
    pub call: Call,
}

/// `lab-probe tap`: sends frames out of its own tap device.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Tap {
    /// The device's name; or, with a slash in it, the file of a macvtap device
    #[arg(long)]
    pub device: String,
    /// The frames in hexadecimal; the tap device's own hardware address replaces their destination
    #[arg(long = "frame", required = true)]
    pub frame: Vec<String>,
    /// A header with offloads in hexadecimal that goes before each frame (IFF_VNET_HDR)
    #[arg(long)]
    pub offload: String,
}

/// `lab-probe flip-frame`: sends one frame repeatedly from memory shared with the kernel, while one
/// of its bytes keeps changing.
#[derive(Debug, Clone, Args, Serialize)]
pub struct FlipFrame {
    /// The interface to send on
    #[arg(long)]
    pub interface: String,
    /// The frame in hexadecimal
    #[arg(long)]
    pub frame: String,
    /// Which byte changes
    #[arg(long)]
    pub at: usize,
    /// The value that it changes to and back
    #[arg(long)]
    pub to: u8,
    /// How often to send it
    #[arg(long)]
    pub count: u32,
}

/// How bytes get into a TCP connection without being copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroCopy {
    /// From a file (`sendfile`).
    File,
    /// From memory, through a pipe (`vmsplice`).
    Pipe,
    /// From memory (`MSG_ZEROCOPY`).
    Memory,
}

/// `lab-probe flip-page`: opens connections repeatedly, and sends a page whose first byte keeps
/// changing.
#[derive(Debug, Clone, Args, Serialize)]
pub struct FlipPage {
    /// Where to
    #[arg(long)]
    pub connect: SocketAddr,
    /// The page's contents, in hexadecimal
    #[arg(long)]
    pub page: String,
    /// The value that it changes to and back
    #[arg(long)]
    pub to: u8,
    /// How many connections
    #[arg(long)]
    pub count: u32,
    /// How the page is sent
    #[arg(long, value_enum)]
    pub method: ZeroCopy,
}

/// `lab-probe talk`: implements a TCP client on a packet socket.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Talk {
    /// The interface to send on
    #[arg(long)]
    pub interface: String,
    /// The local hardware address and that of the next hop, in hexadecimal
    #[arg(long)]
    pub macs: String,
    /// The local address and port
    #[arg(long)]
    pub from: SocketAddr,
    /// Where to
    #[arg(long)]
    pub to: SocketAddr,
    /// Segments to send once the connection is open, each as FLAGS:URGENT:AT:DATA:ODD: the flags and the data
    /// in hexadecimal, the urgent pointer, how far from the first byte of the connection the data is, and what is
    /// wrong with it (checksum, acknowledgement, hops or nothing)
    #[arg(long = "segment")]
    pub segment: Vec<String>,
    /// How long to wait after each segment
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// Bypass the queueing discipline (PACKET_QDISC_BYPASS), and ask for it by this call
    #[arg(long, value_enum)]
    pub bypass: Option<Call>,
    /// How long to wait for an answer
    #[arg(long, default_value_t = TIMEOUT_MS)]
    pub timeout_ms: u64,
}

impl Talk {
    /// A connection without data yet.
    pub fn to(to: SocketAddr, from: SocketAddr, interface: &str, macs: [[u8; 6]; 2]) -> Self {
        Self {
            interface: interface.to_owned(),
            macs: to_hex(&macs.concat()),
            from,
            to,
            segment: Vec::new(),
            pause_ms: 0,
            bypass: None,
            timeout_ms: TIMEOUT_MS,
        }
    }

    /// Adds a segment.
    pub fn segment(self, flags: u8, urgent: u16, at: i32, data: &[u8]) -> Self {
        self.odd_segment(flags, urgent, at, data, "nothing")
    }

    /// Adds a segment with a flaw: `checksum`, `acknowledgement` or `hops`.
    pub fn odd_segment(mut self, flags: u8, urgent: u16, at: i32, data: &[u8], odd: &str) -> Self {
        let data = to_hex(data);
        self.segment
            .push(format!("{flags:02x}:{urgent}:{at}:{data}:{odd}"));
        self
    }
}

/// `lab-probe raw`.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct Raw {
    /// The packets in hexadecimal, from the IP header on
    #[arg(long = "packet", required = true)]
    pub packet: Vec<String>,
    /// Use TCP's own raw socket: the kernel writes the IP header itself
    #[arg(long)]
    pub tcp: bool,
    /// Connect the socket to the destination
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
    /// Answer with this instead of echoing
    #[arg(long)]
    pub say: Option<String>,
    /// Send this first to every client
    #[arg(long)]
    pub greet: Option<String>,
    /// Answer only once this many bytes have arrived over a connection
    #[arg(long, default_value_t = 0)]
    pub after: usize,
    /// Speak multipath TCP
    #[arg(long)]
    pub multipath: bool,
    /// How to take the addresses
    #[arg(long, value_enum, default_value_t)]
    pub take: Take,
    /// Use IPv6 sockets and the IPv4-mapped form of TCP addresses
    #[arg(long)]
    pub mapped: bool,
}

/// `lab-probe sniff`: prints [`READY`](super::READY), then a [`Frame`](super::Frame) per frame that
/// matches.
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
    /// How long to capture; unlimited unless given
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
    /// Ask for TXT records instead of addresses
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
    /// Asks for a name's address, over UDP.
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
    /// Where clients connect
    #[arg(long = "frontend")]
    pub frontend: Vec<SocketAddr>,
    /// Where agents connect
    #[arg(long = "agents")]
    pub agents: Vec<SocketAddr>,
    /// Where health checks connect
    #[arg(long = "health")]
    pub health: Vec<SocketAddr>,
}

/// `lab-probe tunnel-agent`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct TunnelAgent {
    /// The server to dial
    #[arg(long)]
    pub server: SocketAddr,
    /// Where to connect the clients to
    #[arg(long)]
    pub target: SocketAddr,
}
