//! The third judge: the loaded kernel programs, on the same packets (`BPF_PROG_TEST_RUN`).

use std::collections::HashSet;
use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use enforcer::kernel::{Kernel, TcMode, apply::NewPolicy, cgroups, trial::Trial};
use enforcer_common::packet::{Packet, Phase, Shape};
use enforcer_common::parse::{Start, parse};
use enforcer_common::tables::{FlowKey, Role};
use enforcer_common::verdict::{Direction, Reason, Verdict, counter};
use enforcer_common::{decide, tls};
use enforcer_policy::compile::{Compiled, PathNumbers};
use enforcer_tests::cgroup::OwnTree;
use enforcer_tests::sandbox::{ip, link};
use nix::sched::{CloneFlags, setns, unshare};

use crate::plainly::{Entry, ReceivedVia};
use crate::random::CGROUPS;

/// A network namespace and a cgroup for this test alone, with the programs loaded.
pub struct Judge {
    kernel: Kernel,
    root: OwnTree,
    uplink: u32,
    /// The interface through which pods are reached.
    home: u32,
    /// An interface to which no pod's route leads.
    other: u32,
    lo: u32,
    /// An undeclared interface.
    undeclared: u32,
    here: File,
    /// Another network namespace, where an interface has the uplink's index.
    elsewhere: File,
    /// Datagrams that a path allowed.
    asked: HashSet<FlowKey>,
}

/// What the programs must do with a frame.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub verdict: Verdict,
    /// Whether the denial is counted there.
    pub reported: bool,
}

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Arrives(Entry),
    /// Sent by a socket of the process; `true` over lo.
    Sent(bool),
    /// Sent by a socket of the process in another network namespace, through an interface on top of
    /// the uplink.
    Elsewhere,
    /// To be received by a socket of the process.
    Received(ReceivedVia),
}

impl Judge {
    pub fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
        for line in [
            "link set lo up",
            "link add eth0 type veth peer name peer0",
            "link add cali0 type veth peer name peer1",
            "link add cali1 type veth peer name peer2",
            "link add eth9 type veth peer name peer9",
        ] {
            ip(line)?;
        }
        // Otherwise it would report its multicast groups to `cali0`, which would be counted along
        // with the trials.
        fs::write("/proc/sys/net/ipv6/conf/peer1/disable_ipv6", "1")
            .context("failed to silence")?;
        for line in [
            "link set peer1 up",
            "link set cali0 up",
            "route add 10.244.0.0/16 dev cali0",
            "route add fd01::/56 dev cali0",
        ] {
            ip(line)?;
        }
        // A node forwards for its pods.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to forward")?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").context("failed to forward")?;
        let root = OwnTree::create("oracle")?;
        for cgroup in CGROUPS.iter().chain(&crate::MORE_CGROUPS) {
            root.make(cgroup)?;
        }
        let mut kernel = Kernel::load(None, false)?;
        let links = [
            (link("lo", nix::libc::ARPHRD_LOOPBACK)?, Role::Loopback),
            (link("eth0", nix::libc::ARPHRD_ETHER)?, Role::Uplink),
            (link("cali0", nix::libc::ARPHRD_ETHER)?, Role::Pod),
            (link("cali1", nix::libc::ARPHRD_ETHER)?, Role::Pod),
            (link("eth9", nix::libc::ARPHRD_ETHER)?, Role::Undeclared),
        ];
        kernel.attach_interfaces(&links, TcMode::Auto)?;
        let [lo, uplink, home, other, undeclared] = links.map(|(link, _)| link.index);
        let here = own_namespace()?;
        unshare(CloneFlags::CLONE_NEWNET).context("a second network namespace")?;
        ip(&format!(
            "link add eth0 index {uplink} type veth peer name peer0"
        ))?;
        let elsewhere = own_namespace()?;
        setns(&here, CloneFlags::CLONE_NEWNET)?;
        Ok(Self {
            kernel,
            root,
            asked: HashSet::new(),
            uplink,
            home,
            other,
            lo,
            undeclared,
            here,
            elsewhere,
        })
    }

    /// Puts a policy in force and moves this process to a cgroup.
    pub fn apply(&mut self, compiled: &Compiled, cgroup: &str) -> Result<()> {
        let known = cgroups::resolve(self.root.directory(), &compiled.cgroups);
        let ids: Vec<_> = known.iter().map(|known| (known.id, known.party)).collect();
        let new = NewPolicy {
            compiled,
            numbers: &PathNumbers::default(),
            name: "oracle",
            roles: &[],
        };
        self.kernel.apply(new, &ids, None)?;
        self.root.enter(cgroup)
    }

    /// The programs treat a frame as the verdict says, and count it accordingly; and they do so
    /// again right away, from the verdict cache.
    pub fn agrees(&mut self, at: At, frame: &[u8], expected: Expected) -> Result<()> {
        let Expected { verdict, reported } = expected;
        let (trial, interface) = match at {
            At::Arrives(Entry::Uplink) => (Trial::Arrives, self.uplink),
            At::Arrives(Entry::Pod(true)) => (Trial::Arrives, self.home),
            At::Arrives(Entry::Pod(false)) => (Trial::Arrives, self.other),
            At::Sent(true) => (Trial::Sent, self.lo),
            At::Sent(false) => (Trial::Sent, self.uplink),
            At::Elsewhere => (Trial::Leaves, self.uplink),
            At::Received(ReceivedVia::Lo) => (Trial::Received, self.lo),
            At::Received(ReceivedVia::Uplink) => (Trial::Received, self.uplink),
            At::Received(ReceivedVia::Pod) => (Trial::Received, self.home),
            At::Received(ReceivedVia::Undeclared) => (Trial::Received, self.undeclared),
        };
        if self.answers(frame, verdict) {
            return Ok(());
        }
        let index = counter::of(verdict);
        for time in ["", " the second time"] {
            let before = self.kernel.counter(index)?;
            // The socket of a trial belongs to the network namespace of the thread that runs it.
            if at == At::Elsewhere {
                setns(&self.elsewhere, CloneFlags::CLONE_NEWNET)?;
            }
            let passed = self.kernel.try_frame(trial, frame, interface);
            if at == At::Elsewhere {
                setns(&self.here, CloneFlags::CLONE_NEWNET)?;
            }
            let passed = passed?;
            let after = self.kernel.counter(index)?;
            ensure!(
                passed == verdict.passes() && after == before + u64::from(reported),
                "the kernel {} it{time}, and counted {} of {verdict:?}",
                if passed { "passes" } else { "drops" },
                after - before
            );
        }
        Ok(())
    }
}

impl Judge {
    /// Whether a datagram answers one that a path allowed before: the kernel remembers those, and
    /// the evaluator does not.
    fn answers(&mut self, frame: &[u8], verdict: Verdict) -> bool {
        let Ok(packet) = parse(frame, Start::Ethernet) else {
            return false;
        };
        if !matches!(
            (packet.shape, packet.ports.phase),
            (Shape::Flow, Phase::Datagram)
        ) {
            return false;
        }
        let flow = decide::flow_of(&packet, Direction::Forward);
        if verdict.is_path() {
            self.asked.insert(flow);
        }
        self.asked.contains(&flow.back())
    }
}

/// The verdict in the kernel if the path requires TLS. A trial has no open connection: an incoming
/// packet is checked only if it has data with a SYN, and the sending socket in a trial is not TCP.
pub fn with_lock<T: enforcer_common::tables::Tables>(
    tables: &T,
    at: At,
    frame: &[u8],
    packet: &Packet,
    allowed: Verdict,
) -> Verdict {
    let segment = &packet.segment;
    if !allowed.is_tls_path() || packet.ports.kind as u8 != 0 {
        return allowed;
    }
    let forward = allowed.direction() == Direction::Forward;
    let is_looked_at = matches!(at, At::Arrives(_)) && forward && segment.is_syn();
    if is_looked_at && tls::is_multipath(frame, packet) {
        return decide::not_tls(tables, allowed, Reason::MultipathTls);
    }
    let holds = match at {
        At::Sent(_) | At::Elsewhere => segment.is_empty(),
        // The receiver is no TCP socket: a raw one gets a copy.
        At::Received(_) => true,
        At::Arrives(_) => !is_looked_at || tls::may_follow(frame, segment, segment.start()),
    };
    if holds {
        allowed
    } else {
        decide::not_tls(tables, allowed, Reason::NotTls)
    }
}

/// Whether the kernel runs a frame at all: it requires a whole IP header if the link header
/// announces one.
pub fn takes(frame: &[u8]) -> bool {
    let least = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        Some(_) => 15,
        None => return false,
    };
    frame.len() >= least
}

/// Whether it is a packet directly after the link header, as sockets send it.
pub fn is_plain_ip(frame: &[u8]) -> bool {
    matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]))
}

fn own_namespace() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("failed to open the network namespace")
}
