//! What a received packet costs, the whole way from the driver: one that is dropped, and one of an open
//! connection. Every frame enters the stack by `BPF_PROG_TEST_RUN` of an XDP program with live frames, on
//! one core; a generator with sockets would cost more than what is measured.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use enforcer_tests::plan::{CP1, W1};
use nix::net::if_::if_nametoindex;

use crate::Effort;
use crate::bpf::{Kind, Program};
use crate::established::Established;
use crate::filter::{Empty, Filter, Site};
use crate::frames::{self, Generator};
use crate::measure::{Measures, stay_on_one_core};
use crate::policy::{Family, GUARDED, Scale};

pub const DENIED: &str = "A denied packet";
pub const PATHS: &str = "A denied packet, by paths";
pub const ACCEPTED: &str = "A packet of an open connection";
pub const UDP: &str = "UDP";
pub const TCP: &str = "TCP";
const NS: &str = "ns";
/// A batch.
const FEW: u32 = 64;

/// The row of a denied packet.
pub fn denied_row(family: Family, addresses: u32, random: bool) -> String {
    let sources = if random {
        "random sources"
    } else {
        "one source"
    };
    format!("{addresses} addresses, {sources}, {}", family.name())
}

/// The row of a denied packet, by how many paths the policy has.
pub fn paths_row(paths: u16) -> String {
    format!("{paths} paths, 1000 addresses, one source, IPv4")
}

/// The row of a packet of an open connection.
pub fn accepted_row(kind: &str, family: Family) -> String {
    format!("{kind}, {}", family.name())
}

/// Denied packets, over scales.
pub fn denied(measures: &mut Measures, effort: &Effort) -> Result<()> {
    for &family in effort.families {
        for &addresses in effort.addresses {
            let scale = Scale {
                family,
                addresses,
                paths: 30,
            };
            let sites = sites(scale, effort)?;
            for site in &sites {
                drops(site, family)?;
            }
            for round in 0..effort.packet_rounds {
                for random in [false, true] {
                    let many = if random { addresses } else { 1 };
                    let generator = from_the_many(family, many);
                    // Each round begins with another, so that none is always behind the same one.
                    for site in sites
                        .iter()
                        .cycle()
                        .skip(round % sites.len())
                        .take(sites.len())
                    {
                        let ns = cost(site, &generator, effort.frames)?;
                        let row = denied_row(family, addresses, random);
                        measures.add(DENIED, &row, site.filter.name(), NS, ns);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The same, over numbers of paths.
pub fn denied_by_paths(measures: &mut Measures, effort: &Effort) -> Result<()> {
    let family = Family::V4;
    let mut sites = Vec::new();
    for &paths in effort.paths {
        let scale = Scale {
            family,
            addresses: 1000,
            paths,
        };
        let filters = [Filter::EmptyTc, Filter::Enforcer, Filter::NftInput];
        for filter in filters {
            sites.push((paths, Site::build(filter, scale, Empty::Drops)?));
        }
    }
    let generator = from_the_many(family, 1);
    for _ in 0..effort.packet_rounds {
        for (paths, site) in &sites {
            let ns = cost(site, &generator, effort.frames)?;
            measures.add(PATHS, &paths_row(*paths), site.filter.name(), NS, ns);
        }
    }
    Ok(())
}

/// Packets of what is open in both directions. Datagrams, to a socket whose queue is full, and segments that acknowledge
/// once more: what comes after the filter costs the same for all.
pub fn accepted(measures: &mut Measures, effort: &Effort) -> Result<()> {
    for &family in effort.families {
        let scale = Scale {
            family,
            addresses: 1000,
            paths: 30,
        };
        let client = SocketAddr::new(family.of(&W1), 40_000);
        let datagrams = frames::datagrams(CP1.mac, client, 1, family.guarded());
        let mut sites = Vec::new();
        for filter in effort.filters(&[
            Filter::Nothing,
            Filter::EmptyTc,
            Filter::EmptyHooks,
            Filter::Enforcer,
            Filter::NftInput,
            Filter::Iptables,
        ]) {
            let site = Site::build(filter, scale, Empty::LetsPass)?;
            let socket = open_flow(&site, &datagrams, client)?;
            let connection = Established::open(&site, family)?;
            let segments = connection.acknowledgement()?;
            arrives(&site, &connection, &segments)?;
            sites.push((site, socket, connection, segments));
        }
        for _ in 0..effort.packet_rounds {
            for (site, _socket, _connection, segments) in &sites {
                for (kind, generator) in [(UDP, &datagrams), (TCP, segments)] {
                    let ns = cost(site, generator, effort.frames)?;
                    let row = accepted_row(kind, family);
                    measures.add(ACCEPTED, &row, site.filter.name(), NS, ns);
                }
            }
        }
    }
    Ok(())
}

/// The socket of a connection receives what is sent, all of it; and what its client may still have to acknowledge.
fn arrives(site: &Site, connection: &Established, segments: &Generator) -> Result<()> {
    let before = connection.received()?;
    send(site, segments, FEW)?;
    let received = connection.received()?.wrapping_sub(before);
    ensure!(
        received >= FEW,
        "{}: {received} of {FEW} segments of an open connection arrive",
        site.filter.name()
    );
    Ok(())
}

/// A socket on the node that has answered a client.
fn open_flow(site: &Site, generator: &Generator, client: SocketAddr) -> Result<UdpSocket> {
    let to = SocketAddr::new(client.ip(), client.port());
    let namespace = site.lab.host("cp1").namespace();
    let family = if client.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let socket = namespace.within(|| UdpSocket::bind(family.guarded()))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    send(site, generator, 1)?;
    let mut buffer = [0; 64];
    let (_, from) = socket
        .recv_from(&mut buffer)
        .with_context(|| format!("{}: what is allowed does not arrive", site.filter.name()))?;
    ensure!(from == to, "it came from {from}");
    socket.send_to(b"answer", to).context("no answer")?;
    Ok(socket)
}

fn sites(scale: Scale, effort: &Effort) -> Result<Vec<Site>> {
    let mut filters = vec![
        Filter::EmptyTc,
        Filter::OneLine,
        Filter::Enforcer,
        Filter::NftIngress,
        Filter::NftInput,
        Filter::IptablesSet,
    ];
    // Beyond that, a rule for each address only costs time.
    if scale.addresses <= 1000 {
        filters.push(Filter::Iptables);
    }
    let build = |filter| {
        Site::build(filter, scale, Empty::Drops)
            .with_context(|| format!("failed to set up {filter:?}"))
    };
    let filters = effort.filters(&filters);
    filters.into_iter().map(build).collect()
}

fn from_the_many(family: Family, many: u32) -> Generator {
    let first = SocketAddr::new(family.one_of_many(0), 40_000);
    frames::datagrams(CP1.mac, first, many, family.guarded())
}

/// Nothing of the many reaches the socket that a client reaches.
fn drops(site: &Site, family: Family) -> Result<()> {
    let namespace = site.lab.host("cp1").namespace();
    let socket = namespace.within(|| UdpSocket::bind(family.guarded()))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    send(site, &from_the_many(family, 1), FEW)?;
    let mut buffer = [0; 64];
    let heard = socket.recv_from(&mut buffer);
    ensure!(
        heard.is_err(),
        "{} lets a denied datagram through",
        site.filter.name()
    );
    if !matches!(site.filter, Filter::EmptyTc | Filter::OneLine) {
        let client = SocketAddr::new(family.of(&W1), 40_000);
        let generator = frames::datagrams(CP1.mac, client, 1, family.guarded());
        send(site, &generator, 1)?;
        socket
            .recv_from(&mut buffer)
            .with_context(|| format!("{} drops everything, to {GUARDED}", site.filter.name()))?;
    }
    Ok(())
}

/// Sends frames into the stack of the node, from one core. Nanoseconds for each frame.
pub fn send(site: &Site, generator: &Generator, frames: u32) -> Result<u32> {
    let namespace = site.lab.host("cp1").namespace();
    namespace.within(|| {
        stay_on_one_core()?;
        let program = Program::load(Kind::Xdp, &generator.program)?;
        let interface = if_nametoindex("eth0")?;
        program.receive(&generator.frame, interface, frames)
    })?
}

/// Nanoseconds for each frame, without those that find everything cold.
fn cost(site: &Site, generator: &Generator, frames: u32) -> Result<f64> {
    send(site, generator, frames / 10)?;
    send(site, generator, frames).map(f64::from)
}
