//! What a workload can attempt with `lab-probe`, and the outcomes.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::packet::{Forged, to_hex};
use crate::patience::patient;
use crate::probe::{
    Bind, Connect, Dns, Frame, Heard, Hold, Inject, Knock, Outcome, Ping, Probe, READY, Raw,
    Report, Serve, Sniff, TIMEOUT_MS, Transfer, TunnelAgent, TunnelServer, Udp,
};
use crate::process::{Ran, Running};
use crate::tools::Tool;
use crate::workload::{Action, Workload};

/// How long a server may take to become reachable.
const READY_WITHIN: Duration = Duration::from_secs(5);

impl Workload {
    /// Tries something and returns the whole report.
    pub fn probe(&self, probe: &Probe) -> Result<Report> {
        report(&self.probe_command(probe)?.run()?)
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: SocketAddr) -> Result<Outcome> {
        self.connect_with(Connect::to(to))
            .map(|report| report.outcome)
    }

    /// Opens a TCP connection in a special way.
    pub fn connect_with(&self, connect: Connect) -> Result<Report> {
        self.probe(&Probe::Connect(connect))
    }

    /// Opens a TCP connection, sends a text and returns the outcome: the answer identifies the server.
    pub fn ask(&self, to: SocketAddr, text: &str) -> Result<Report> {
        self.connect_with(Connect {
            send: Some(text.to_owned()),
            ..Connect::to(to)
        })
    }

    /// Sends that many bytes to an echo server and receives them again; `count` says how many came
    /// back.
    pub fn transfer(&self, to: SocketAddr, bytes: usize) -> Result<Report> {
        let timeout_ms = TIMEOUT_MS;
        self.probe(&Probe::Transfer(Transfer {
            to,
            bytes,
            timeout_ms,
        }))
    }

    /// Sends a datagram from an unconnected socket and waits for the answer.
    pub fn udp(&self, to: SocketAddr) -> Result<Outcome> {
        self.udp_with(Udp::to(to)).map(|report| report.outcome)
    }

    /// Sends datagrams in a special way.
    pub fn udp_with(&self, udp: Udp) -> Result<Report> {
        self.probe(&Probe::Udp(udp))
    }

    /// Binds a TCP address and listens there for a moment.
    pub fn bind(&self, at: SocketAddr) -> Result<Outcome> {
        self.bind_with(Bind::at(at)).map(|report| report.outcome)
    }

    /// Binds an address in a special way.
    pub fn bind_with(&self, bind: Bind) -> Result<Report> {
        self.probe(&Probe::Bind(bind))
    }

    /// Binds a UDP address for a moment.
    pub fn bind_udp(&self, at: SocketAddr) -> Result<Outcome> {
        let bind = Bind {
            udp: true,
            ..Bind::at(at)
        };
        self.bind_with(bind).map(|report| report.outcome)
    }

    /// Asks a DNS server.
    pub fn dns(&self, dns: Dns) -> Result<Outcome> {
        self.probe(&Probe::Dns(dns)).map(|report| report.outcome)
    }

    /// Sends an echo request through a raw socket.
    pub fn ping(&self, to: IpAddr) -> Result<Outcome> {
        let ping = Ping {
            to,
            timeout_ms: crate::probe::TIMEOUT_MS,
        };
        self.probe(&Probe::Ping(ping)).map(|report| report.outcome)
    }

    /// Sends a forged packet by a packet socket, as a frame for the next hop: on `lo` if it goes to
    /// loopback, otherwise on `eth0`.
    pub fn forge(&self, packet: &Forged) -> Result<Report> {
        let destination = packet.destination.ip();
        if destination.is_loopback() {
            self.inject("lo", &[packet.frame([0; 6], [0; 6])?])
        } else {
            self.forge_to(self.next_hop(destination), packet)
        }
    }

    /// Sends a forged packet on `eth0` to a hardware address of choice, whatever its destination:
    /// how a neighbour sends 127.0.0.1 over the wire.
    pub fn forge_to(&self, hop: [u8; 6], packet: &Forged) -> Result<Report> {
        self.inject("eth0", &[packet.frame(self.party().mac, hop)?])
    }

    /// Sends any frames by a packet socket.
    pub fn inject(&self, interface: &str, frames: &[Vec<u8>]) -> Result<Report> {
        self.inject_with(Inject::frames(interface, frames))
    }

    /// Sends frames by a packet socket in a special way.
    pub fn inject_with(&self, inject: Inject) -> Result<Report> {
        self.probe(&Probe::Inject(inject))
    }

    /// Sends a forged packet by a raw IP socket: the kernel routes it, and local hooks see it.
    pub fn raw(&self, packet: &Forged) -> Result<Report> {
        self.raw_bytes(&[packet.packet()?])
    }

    /// Sends any IP packets by a raw IP socket.
    pub fn raw_bytes(&self, packets: &[Vec<u8>]) -> Result<Report> {
        let packet = packets.iter().map(|packet| to_hex(packet)).collect();
        self.probe(&Probe::Raw(Raw {
            packet,
            ..Raw::default()
        }))
    }

    /// Sends a segment by a raw TCP socket, connected or not.
    pub fn raw_tcp(&self, packet: &Forged, connected: bool) -> Result<Report> {
        self.probe(&Probe::Raw(Raw {
            packet: vec![to_hex(&packet.packet()?)],
            tcp: true,
            connected,
        }))
    }

    /// Starts a client that connects over and over.
    pub fn knock(&self, to: SocketAddr) -> Result<Knocker> {
        let running = self.start_listener(&Probe::Knock(Knock { to }))?;
        Ok(Knocker { running })
    }

    /// Opens a connection and keeps it busy. Returns once the first answer has arrived.
    pub fn hold(&self, hold: Hold) -> Result<Held> {
        let running = self.probe_command(&Probe::Hold(hold))?.spawn()?;
        let held = Held { running };
        held.running
            .wait_for_line(|line| line == "answer 1", patient(READY_WITHIN))?;
        Ok(held)
    }

    /// Starts an echo server. Returns once it is reachable.
    pub fn serve(&self, serve: Serve) -> Result<Server> {
        Ok(Server {
            running: self.start_listener(&Probe::Serve(serve))?,
        })
    }

    /// Starts a konnectivity server.
    pub fn tunnel_server(&self, server: TunnelServer) -> Result<Server> {
        Ok(Server {
            running: self.start_listener(&Probe::TunnelServer(server))?,
        })
    }

    /// Starts a konnectivity agent, which connects in the background.
    pub fn tunnel_agent(&self, agent: TunnelAgent) -> Result<Server> {
        Ok(Server {
            running: self.start_listener(&Probe::TunnelAgent(agent))?,
        })
    }

    /// Starts to capture on an interface. Returns once no frame can be missed.
    pub fn sniff(&self, sniff: Sniff) -> Result<Sniffer> {
        Ok(Sniffer {
            running: self.start_listener(&Probe::Sniff(sniff))?,
        })
    }

    fn start_listener(&self, probe: &Probe) -> Result<Running> {
        let running = self.probe_command(probe)?.spawn()?;
        running.wait_for_line(|line| line == READY, patient(READY_WITHIN))?;
        Ok(running)
    }

    fn probe_command(&self, probe: &Probe) -> Result<Action> {
        let program = Tool {
            path: self.kit.probe.clone(),
            libraries: Vec::new(),
        };
        Ok(self.command_of(&program)?.args(probe.arguments()))
    }
}

/// A client that connects over and over.
#[derive(Debug)]
pub struct Knocker {
    running: Running,
}

impl Knocker {
    /// How many attempts it has made so far, in thousands.
    pub fn tried(&self) -> u64 {
        let text = self.running.stdout();
        let tried = text
            .lines()
            .filter_map(|line| line.strip_prefix("tried ")?.parse().ok());
        tried.max().unwrap_or(0)
    }

    /// The connections that were established.
    pub fn opened(&self) -> Vec<String> {
        let text = self.running.stdout();
        let opened = text.lines().filter(|line| line.starts_with("open "));
        opened.map(str::to_owned).collect()
    }

    /// Waits until it has made another thousand attempts.
    pub fn tries_more(&self, at_most: Duration) -> Result<()> {
        let before = self.tried();
        let deadline = Instant::now() + at_most;
        while self.tried() <= before {
            let (out, err) = (self.running.stdout(), self.running.stderr());
            ensure!(
                Instant::now() < deadline,
                "he does not try any more: {out}{err}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// A connection that is kept open and busy.
#[derive(Debug)]
pub struct Held {
    running: Running,
}

impl Held {
    /// How many answers came so far.
    pub fn answers(&self) -> usize {
        self.running
            .stdout()
            .lines()
            .filter(|line| line.starts_with("answer "))
            .count()
    }

    /// Whether two more answers arrive: the first may have been on its way already.
    pub fn is_alive(&self) -> bool {
        let wanted = format!("answer {}", self.answers() + 2);
        self.running
            .wait_for_line(|line| line == wanted, Duration::from_secs(1))
            .is_ok()
    }

    /// Waits until no more answers arrive, and returns how it ended.
    pub fn wait_for_end(self, at_most: Duration) -> Result<Report> {
        report(&self.running.finish(at_most)?)
    }
}

/// An echo server that reports what it received.
#[derive(Debug)]
pub struct Server {
    running: Running,
}

impl Server {
    /// Its process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Everything that it received so far.
    pub fn heard(&self) -> Vec<Heard> {
        parsed(&self.running)
    }

    /// Waits until it has received something that matches; `None` if it does not.
    pub fn wait_for(&self, wanted: impl Fn(&Heard) -> bool, at_most: Duration) -> Option<Heard> {
        let matches = |line: &str| serde_json::from_str(line).is_ok_and(|heard| wanted(&heard));
        let line = self.running.wait_for_line(matches, at_most).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Whether a datagram or segment with this text arrives.
    pub fn hears(&self, text: &str, at_most: Duration) -> bool {
        self.wait_for(|heard| heard.data.as_deref() == Some(text), at_most)
            .is_some()
    }
}

/// A capture on an interface.
#[derive(Debug)]
pub struct Sniffer {
    running: Running,
}

impl Sniffer {
    /// All frames so far.
    pub fn frames(&self) -> Vec<Frame> {
        parsed(&self.running)
    }

    /// Waits for a frame that matches; `None` if there is none.
    pub fn wait_for(&self, wanted: impl Fn(&Frame) -> bool, at_most: Duration) -> Option<Frame> {
        let matches = |line: &str| serde_json::from_str(line).is_ok_and(|frame| wanted(&frame));
        let line = self.running.wait_for_line(matches, at_most).ok()?;
        serde_json::from_str(&line).ok()
    }
}

fn parsed<T: DeserializeOwned>(running: &Running) -> Vec<T> {
    running
        .stdout()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn report(ran: &Ran) -> Result<Report> {
    let line = ran.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("lab-probe did not report: {ran}"))
}
