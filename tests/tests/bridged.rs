//! A bridge on a node, with an uplink as one of its ports: what it forwards from its other ports
//! passes no interface's ingress hook, and is judged where it leaves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::craft::{Crafted, ethernet, fix_ipv4_checksum};
use enforcer_tests::offload::{Offload, source_port_for};
use enforcer_tests::packet::to_hex;
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{W1, port};
use enforcer_tests::probe::Inject;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Workload, net};

/// A virtual machine on the bridge.
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 177);
const MACHINE_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 0xb1];
const INSIDE: &str = "vm0";
/// An unguarded port.
const OTHER: u16 = 9_999;
/// Where a frame has its IP header, the length in it, and the ports after it.
const LINK: usize = 14;
const LENGTH: usize = LINK + 2;
const SOURCE_PORT: usize = LINK + 20;
const PORT: usize = SOURCE_PORT + 2;
/// LLDP, which is not IP.
const LLDP: u16 = 0x88cc;
const SYN: u8 = 0x02;

/// The lab, with cp1's uplink on a bridge, and pod-a's namespace for the machine.
struct Bridged {
    lab: Lab,
}

impl Bridged {
    fn build() -> Result<Self> {
        let lab = Lab::builder().build()?;
        let node = lab.host("cp1").namespace();
        let inside = lab.pod("pod-a").namespace().name();
        let own = MACHINE_MAC.map(|byte| format!("{byte:02x}")).join(":");
        net::ip(
            Some(node.name()),
            &format!(
                "link add br-vm type bridge\nlink set br-vm up\n\
                 link set eth0 master br-vm\n\
                 link add vm type veth peer name {INSIDE} address {own} netns {inside}\n\
                 link set vm master br-vm up\n"
            ),
        )?;
        net::ip(Some(inside), &format!("link set {INSIDE} up\n"))?;
        // So that a checksum that is left to a device is written after the frame has passed every
        // program.
        net::complete_checksums(node, "eth0")?;
        Ok(Self { lab })
    }

    fn machine(&self) -> &Workload {
        self.lab.pod("pod-a")
    }

    /// Sends one frame to w1, where an nftables expression counts it.
    fn send(&self, name: &str, counted: &str, inject: Inject) -> Result<Arrivals> {
        let at = self.lab.login("w1");
        let arrivals = Arrivals::on_device(&at, "eth0", name, counted)?;
        let report = self.machine().inject_with(inject)?;
        ensure!(report.outcome.worked(), "{report:?}");
        Ok(arrivals)
    }

    /// A SYN to w1 whose bytes show one port, which its checksum overwrites with another.
    fn disguised(&self, name: &str, mark: u16) -> Result<Arrivals> {
        let to = W1.at(port::KUBELET);
        let source = source_port_for(MACHINE.into(), to.ip(), 20, OTHER);
        let from = SocketAddr::new(IpAddr::V4(MACHINE), source);
        let mut frame = Crafted::tcp(from, to, mark, SYN, b"").frame(MACHINE_MAC, W1.mac);
        frame[PORT..PORT + 2].copy_from_slice(&OTHER.to_be_bytes());
        let offload = Offload {
            checksum: Some((PORT as u16, 0)),
            ..Offload::default()
        };
        let inject = Inject {
            offload: Some(to_hex(&offload.bytes())),
            ..Inject::frames(INSIDE, &[frame])
        };
        let counted = format!("ip id {mark} tcp dport {}", port::KUBELET);
        self.send(name, &counted, inject)
    }

    /// An ordinary SYN.
    fn plain(&self, name: &str, mark: u16, number: u16) -> Result<Arrivals> {
        let from = SocketAddr::new(IpAddr::V4(MACHINE), 40_000);
        let packet = Crafted::tcp(from, W1.at(number), mark, SYN, b"");
        let frame = packet.frame(MACHINE_MAC, W1.mac);
        let counted = format!("ip id {mark} tcp dport {number}");
        self.send(name, &counted, Inject::frames(INSIDE, &[frame]))
    }

    /// A frame that is not IP.
    fn lldp(&self, name: &str) -> Result<Arrivals> {
        let frame = ethernet(MACHINE_MAC, W1.mac, LLDP, &[0; 46]);
        let counted = format!("ether type {LLDP:#06x}");
        self.send(name, &counted, Inject::frames(INSIDE, &[frame]))
    }

    /// A segment that ends within its header.
    fn truncated(&self, name: &str, mark: u16) -> Result<Arrivals> {
        let from = SocketAddr::new(IpAddr::V4(MACHINE), 40_000);
        let packet = Crafted::tcp(from, W1.at(OTHER), mark, SYN, b"");
        let mut frame = packet.frame(MACHINE_MAC, W1.mac);
        frame.truncate(PORT + 2);
        // Bridges forward no inconsistent IP packet if netfilter looks at bridged packets.
        let length = (PORT + 2 - LINK) as u16;
        frame[LENGTH..LENGTH + 2].copy_from_slice(&length.to_be_bytes());
        fix_ipv4_checksum(&mut frame[LINK..SOURCE_PORT]);
        let counted = format!("ip id {mark}");
        self.send(name, &counted, Inject::frames(INSIDE, &[frame]))
    }
}

fn has_come(arrivals: &Arrivals) -> Result<bool> {
    let deadline = Instant::now() + patient(Duration::from_secs(2));
    while arrivals.so_far()? == 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

#[test]
fn a_checksum_over_a_port_is_seen_where_a_bridge_forwards_it() -> Result<()> {
    let bridged = Bridged::build()?;
    let twin = bridged.disguised("twin-disguised", 301)?;
    ensure!(has_come(&twin)?, "twin, disguised");
    let twin = bridged.plain("twin-kubelet", 302, port::KUBELET)?;
    ensure!(has_come(&twin)?, "twin, plain");
    let agent = Agent::start(&bridged.lab, "cp1", &PolicyText::default())?;
    let disguised = bridged.disguised("disguised", 303)?;
    agent.event(|event| event.reason == "ChecksumElsewhere" && event.hook == "tc/egress")?;
    let plain = bridged.plain("kubelet", 304, port::KUBELET)?;
    agent.event(|event| event.reason == "NoPath" && event.port == Some(port::KUBELET))?;
    // When the last one has arrived, all have.
    let other = bridged.plain("other", 305, OTHER)?;
    ensure!(has_come(&other)?, "what nobody guards did not arrive");
    ensure!(disguised.so_far()? == 0, "a disguised SYN has arrived");
    ensure!(plain.so_far()? == 0, "a plain SYN has arrived");
    Ok(())
}

#[test]
fn unreadable_frames_on_a_bridge_are_reported_or_left_alone() -> Result<()> {
    let bridged = Bridged::build()?;
    ensure!(has_come(&bridged.lldp("twin-lldp")?)?, "twin, LLDP");
    let twin = bridged.truncated("twin-truncated", 311)?;
    ensure!(has_come(&twin)?, "twin, truncated");
    let drop = PolicyText {
        other_traffic: "Drop",
        ..PolicyText::dry_run()
    };
    let agent = Agent::start(&bridged.lab, "cp1", &drop)?;
    let lldp = bridged.lldp("dry-lldp")?;
    ensure!(has_come(&lldp)?, "dry-run has dropped LLDP");
    let truncated = bridged.truncated("dry-truncated", 312)?;
    ensure!(has_come(&truncated)?, "dry-run has dropped a segment");
    let reported =
        agent.event(|event| event.hook == "tc/egress" && event.reason == "TruncatedHeader")?;
    ensure!(reported.verdict == "wouldDeny", "{reported:?}");
    let enforced = PolicyText {
        mode: "Enforce",
        ..drop
    };
    agent.replace_policy(&bridged.lab, &enforced)?;
    let truncated = bridged.truncated("truncated", 313)?;
    agent.event(|event| event.hook == "tc/egress" && event.verdict == "denied")?;
    // It still has its socket attached, whose cgroup is known.
    let lldp = bridged.lldp("lldp")?;
    agent.event(|event| event.verdict == "denied" && event.reason == "UnknownProtocol")?;
    ensure!(lldp.so_far()? == 0, "LLDP has arrived");
    ensure!(truncated.so_far()? == 0, "a cut segment has arrived");
    Ok(())
}
