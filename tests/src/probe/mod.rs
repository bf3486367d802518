//! The actions of `lab-probe` and their outcomes: one definition for the program, which parses its
//! command line into these types, and for the lab, which makes command lines from them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Subcommand;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

mod client;
mod compat;
mod dns;
mod express;
mod flip;
mod knock;
mod listen;
mod options;
mod raw;
mod ring;
mod sniff;
mod socket;
mod talk;
mod tap;
mod tunnel;
mod uring;

pub use listen::Heard;
pub use options::{
    Bind, Call, Connect, Dns, FlipFrame, FlipPage, Hold, Inject, Knock, Ping, Raw, Ring, Serve,
    Sniff, Take, Talk, Tap, Transfer, TunnelAgent, TunnelServer, Udp, ZeroCopy,
};
pub use sniff::Frame;

/// How long `lab-probe` waits at most by default, in milliseconds: on a single machine, everything
/// that works takes less than one.
pub const TIMEOUT_MS: u64 = 700;

/// The line that a server prints once it can be reached.
pub const READY: &str = "ready";

/// One thing to try.
#[derive(Debug, Clone, Subcommand, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// Opens a TCP connection, and sends and receives something if asked to
    Connect(Connect),
    /// Sends a lot of data over a TCP connection to an echo server, and reads all of it back
    Transfer(Transfer),
    /// Keeps a TCP connection open and sends something over it again and again
    Hold(Hold),
    /// Connects over and over, and reports each established connection
    Knock(Knock),
    /// Sends UDP datagrams and waits for the answer to the last
    Udp(Udp),
    /// Binds an address, and listens on it
    Bind(Bind),
    /// Sends an ICMP echo request through a raw socket
    Ping(Ping),
    /// Sends given frames through a packet socket
    Inject(Inject),
    /// Sends given IP packets through a raw socket
    Raw(Raw),
    /// Answers on TCP and UDP addresses and reports its clients
    Serve(Serve),
    /// Reports the frames that pass an interface
    Sniff(Sniff),
    /// Asks a DNS server for a name
    Dns(Dns),
    /// Waits for konnectivity agents, and forwards clients through their connections
    TunnelServer(TunnelServer),
    /// Connects to a tunnel server, and on request to a target
    TunnelAgent(TunnelAgent),
    /// Asks for a ring to send by an AF_XDP socket
    Ring(Ring),
    /// Sends given frames out of a tap device of its own
    Tap(Tap),
    /// Sends a frame that changes while it is sent
    FlipFrame(FlipFrame),
    /// Sends data over TCP that changes while it is sent
    FlipPage(FlipPage),
    /// Speaks TCP segment by segment, by a packet socket
    Talk(Talk),
    /// Builds a lab without servers, prints its id and keeps it until killed
    KeepLab,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The connection is established.
    Connected,
    /// The other side answered.
    Answered,
    /// The answer was longer than the client's buffer.
    Truncated,
    /// It was sent, and no answer was expected.
    Sent,
    /// The address is bound.
    Bound,
    /// No listener (`ECONNREFUSED`).
    Refused,
    /// The kernel, or a program in it, forbids it (`EPERM`).
    Eperm,
    /// The process lacks a needed privilege (`EACCES`).
    Eacces,
    /// There was no answer.
    Timeout,
    /// No route (`EHOSTUNREACH`, `ENETUNREACH`).
    Unreachable,
    /// The other side reset the connection (`ECONNRESET`, `EPIPE`).
    Reset,
    /// The other side closed it.
    Closed,
    /// The address is in use (`EADDRINUSE`).
    AddrInUse,
    /// This host has no such address (`EADDRNOTAVAIL`).
    AddrNotAvailable,
    /// Something else: see `os_error`.
    Other,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

impl Outcome {
    /// Whether traffic got through, or at least may have.
    pub fn worked(self) -> bool {
        matches!(
            self,
            Self::Connected | Self::Answered | Self::Truncated | Self::Sent | Self::Bound
        )
    }

    fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::ECONNREFUSED => Self::Refused,
            Errno::EPERM => Self::Eperm,
            Errno::EACCES => Self::Eacces,
            // A blocking call that reaches its socket's time limit fails with one of the first
            // three.
            Errno::EINPROGRESS | Errno::EAGAIN | Errno::EALREADY | Errno::ETIMEDOUT => {
                Self::Timeout
            }
            Errno::EHOSTUNREACH | Errno::ENETUNREACH => Self::Unreachable,
            Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED => Self::Reset,
            Errno::EADDRINUSE => Self::AddrInUse,
            Errno::EADDRNOTAVAIL => Self::AddrNotAvailable,
            _ => Self::Other,
        }
    }
}

/// What `lab-probe` prints at the end, as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The step that it reached.
    pub step: String,
    /// The text of the kernel's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_error: Option<String>,
    /// The local address and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// What the other side answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// How many answers came, or how many packets were sent.
    pub count: u64,
    /// How long it took.
    pub took_ms: u64,
}

/// The kernel's error, and the step that failed.
type Failure = (Errno, &'static str);

impl Report {
    fn new(outcome: Outcome, step: &str) -> Self {
        let step = step.to_owned();
        Self {
            outcome,
            step,
            os_error: None,
            local: None,
            answer: None,
            count: 0,
            took_ms: 0,
        }
    }

    fn of_errno(errno: Errno, step: &str) -> Self {
        let os_error = Some(errno.to_string());
        Self {
            os_error,
            ..Self::new(Outcome::of_errno(errno), step)
        }
    }

    fn of_error(error: &io::Error, step: &str) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::of_errno(Errno::from_raw(number), step),
            None => {
                let os_error = Some(error.to_string());
                Self {
                    os_error,
                    ..Self::new(Outcome::Other, step)
                }
            }
        }
    }
}

impl Probe {
    /// Performs the action. Servers print their reports and return when they are done.
    pub fn perform(&self) -> Report {
        match self {
            Self::Connect(what) => client::connect(what),
            Self::Transfer(what) => client::transfer(what),
            Self::Hold(what) => client::hold(what),
            Self::Knock(what) => knock::knock(what),
            Self::Udp(what) => client::udp(what),
            Self::Bind(what) => listen::bind(what),
            Self::Ping(what) => raw::ping(what),
            Self::Inject(what) => raw::inject(what),
            Self::Raw(what) => raw::send(what),
            Self::Serve(what) => listen::serve(what),
            Self::Sniff(what) => sniff::sniff(what),
            Self::Dns(what) => dns::ask(what),
            Self::TunnelServer(what) => tunnel::server(what),
            Self::TunnelAgent(what) => tunnel::agent(what),
            Self::Ring(what) => raw::ring(what),
            Self::Tap(what) => tap::send(what),
            Self::FlipFrame(what) => flip::frame(what),
            Self::FlipPage(what) => flip::page(what),
            Self::Talk(what) => talk::talk(what),
            Self::KeepLab => listen::keep_lab(),
        }
    }

    /// The command line that stands for this action.
    pub fn arguments(&self) -> Vec<String> {
        // Plain data with string keys, which cannot fail.
        let value = serde_json::to_value(self).unwrap_or_default();
        match &value {
            serde_json::Value::Object(fields) => fields.iter().flat_map(subcommand).collect(),
            serde_json::Value::String(name) => vec![name.clone()],
            _ => Vec::new(),
        }
    }
}

fn subcommand((name, fields): (&String, &serde_json::Value)) -> Vec<String> {
    let fields = fields.as_object().into_iter().flatten();
    let arguments = fields.flat_map(|(field, value)| argument(&field.replace('_', "-"), value));
    [name.clone()].into_iter().chain(arguments).collect()
}

fn argument(name: &str, value: &serde_json::Value) -> Vec<String> {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(false) | Value::Object(_) => Vec::new(),
        Value::Bool(true) => vec![format!("--{name}")],
        Value::Number(number) => vec![format!("--{name}={number}")],
        Value::String(text) => vec![format!("--{name}={text}")],
        Value::Array(items) => items.iter().flat_map(|item| argument(name, item)).collect(),
    }
}

/// Prints one line for the process that started this program.
fn print_line(line: &str) {
    use std::io::Write;
    let mut out = io::stdout().lock();
    // If the reader is gone, nobody needs the line.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(subcommand)]
        probe: Probe,
    }

    /// What the lab writes, the program must parse to the same value.
    #[test]
    fn arguments_are_understood() -> Result<(), Box<dyn std::error::Error>> {
        let to: SocketAddr = "[::1]:8080".parse()?;
        let send = Some("-x --to\n".to_owned());
        let probes = [
            Probe::Connect(Connect {
                send,
                fast_open: true,
                mapped: true,
                multipath: true,
                transparent: true,
                from: Some(to),
                device: Some("lo".to_owned()),
                first: Some(to),
                ..Connect::to(to)
            }),
            Probe::Connect(Connect {
                piece: vec!["00".into()],
                urgent: vec!["01".into(), "02".into()],
                first: Some(to),
                first_piece: Some("03".into()),
                first_count: 9,
                compat: true,
                ..Connect::to(to)
            }),
            Probe::Transfer(Transfer {
                to,
                bytes: 7,
                timeout_ms: 5,
            }),
            Probe::Hold(Hold::http(to)),
            Probe::Udp(Udp {
                from: Some(to),
                but_connect: Some(to),
                ..Udp::to(to)
            }),
            Probe::Bind(Bind {
                udp: true,
                reuse_port: true,
                mapped: true,
                multipath: true,
                take: Take::Unbound,
                compat: true,
                ..Bind::at(to)
            }),
            Probe::Ping(Ping {
                to: to.ip(),
                timeout_ms: 5,
            }),
            Probe::Inject(Inject {
                cooked: true,
                bypass: Some(Call::UringCompat),
                offload: Some("00".into()),
                ring: true,
                protocol: Some(7),
                ..Inject::frames("lo", &[vec![0], vec![1]])
            }),
            Probe::Raw(Raw {
                packet: vec!["4500".into()],
                tcp: true,
                connected: true,
            }),
            Probe::Serve(Serve {
                tcp: vec![to, to],
                udp: vec![to],
                say: Some(String::new()),
                greet: Some("hi".into()),
                after: 3,
                multipath: true,
                take: Take::Range,
                mapped: true,
            }),
            Probe::Sniff(Sniff {
                interface: "lo".into(),
                port: Some(1),
                ..Sniff::default()
            }),
            Probe::Dns(Dns {
                tcp: true,
                ..Dns::name(to, "a.b")
            }),
            Probe::TunnelServer(TunnelServer {
                frontend: vec![to],
                agents: vec![to, to],
                health: vec![],
            }),
            Probe::TunnelAgent(TunnelAgent {
                server: to,
                target: to,
            }),
            Probe::Ring(Ring { call: Call::Compat }),
            Probe::Tap(Tap {
                device: "tap0".into(),
                frame: vec!["00".into()],
                offload: "0000".into(),
            }),
            Probe::FlipFrame(FlipFrame {
                interface: "lo".into(),
                frame: "00".into(),
                at: 3,
                to: 4,
                count: 5,
            }),
            Probe::FlipPage(FlipPage {
                connect: to,
                page: "16".into(),
                to: 0x47,
                count: 5,
                method: ZeroCopy::Pipe,
            }),
            Probe::Talk(Talk::to(to, to, "lo", [[0; 6]; 2]).segment(0x18, 1, 0, b"x")),
            Probe::KeepLab,
        ];
        for probe in probes {
            let arguments = ["lab-probe".to_owned()]
                .into_iter()
                .chain(probe.arguments());
            let matches = Program::command().try_get_matches_from(arguments)?;
            let read = Program::from_arg_matches(&matches)?.probe;
            assert_eq!(format!("{read:?}"), format!("{probe:?}"));
        }
        Ok(())
    }

    #[test]
    fn an_outcome_has_one_name_for_people_and_programs() -> Result<(), serde_json::Error> {
        assert_eq!(Outcome::AddrInUse.to_string(), "addr-in-use");
        assert_eq!(
            serde_json::to_string(&Outcome::AddrInUse)?,
            "\"addr-in-use\""
        );
        Ok(())
    }
}
