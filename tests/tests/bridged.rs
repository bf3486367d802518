//! A bridge on a node, with an uplink for one of its ports: what it passes on from its other ports comes by no interface's
//! ingress, and is judged where it leaves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::craft::{Crafted, ethernet};
use enforcer_tests::offload::{Offload, source_port_for};
use enforcer_tests::packet::to_hex;
use enforcer_tests::plan::{W1, port};
use enforcer_tests::probe::Inject;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Place, net};

/// A virtual machine on the bridge.
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 177);
const MACHINE_MAC: [u8; 6] = [2, 0x77, 0, 0, 0, 0xb1];
const INSIDE: &str = "vm0";
/// A port that nobody guards.
const OTHER: u16 = 9_999;
/// Where a frame has its destination port.
const PORT: usize = 36;
/// LLDP, which is no IP.
const LLDP: u16 = 0x88cc;
const IPV4: u16 = 0x0800;
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
        // So that a checksum that is left to a device is written when the frame has passed every program.
        net::complete_checksums(node, "eth0")?;
        Ok(Self { lab })
    }

    fn machine(&self) -> &Place {
        self.lab.pod("pod-a")
    }

    /// Whether one frame arrives at w1, where an expression of nftables counts it.
    fn arrives(&self, name: &str, counted: &str, inject: Inject) -> Result<bool> {
        let at = self.lab.login("w1");
        let arrivals = Arrivals::on_device(&at, "eth0", name, counted)?;
        self.machine().inject_with(inject)?;
        Ok(arrivals.so_far()? > 0)
    }

    /// A SYN to w1, whose bytes say a port and whose checksum makes it another.
    fn disguised(&self, name: &str, mark: u16) -> Result<bool> {
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
        self.arrives(name, &counted, inject)
    }

    /// A SYN as it is.
    fn plain(&self, name: &str, mark: u16, number: u16) -> Result<bool> {
        let from = SocketAddr::new(IpAddr::V4(MACHINE), 40_000);
        let packet = Crafted::tcp(from, W1.at(number), mark, SYN, b"");
        let frame = packet.frame(MACHINE_MAC, W1.mac);
        let counted = format!("ip id {mark} tcp dport {number}");
        self.arrives(name, &counted, Inject::frames(INSIDE, &[frame]))
    }

    /// What is no IP.
    fn lldp(&self, name: &str) -> Result<bool> {
        let frame = ethernet(MACHINE_MAC, W1.mac, LLDP, &[0; 46]);
        let counted = format!("ether type {LLDP:#06x}");
        self.arrives(name, &counted, Inject::frames(INSIDE, &[frame]))
    }

    /// An IPv4 header that says it is longer than its packet.
    fn truncated(&self, name: &str) -> Result<bool> {
        let mut payload = [0; 46];
        payload[0] = 0x4f;
        let frame = ethernet(MACHINE_MAC, W1.mac, IPV4, &payload[..20]);
        let counted = "ether type ip @nh,0,8 0x4f".to_owned();
        self.arrives(name, &counted, Inject::frames(INSIDE, &[frame]))
    }
}

#[test]
fn a_checksum_over_a_port_is_seen_where_a_bridge_passes_it_on() -> Result<()> {
    let bridged = Bridged::build()?;
    ensure!(bridged.disguised("twin-disguised", 301)?, "twin, disguised");
    ensure!(
        bridged.plain("twin-kubelet", 302, port::KUBELET)?,
        "twin, plain"
    );
    let agent = Agent::start(&bridged.lab, "cp1", &PolicyText::default())?;
    ensure!(
        !bridged.disguised("disguised", 303)?,
        "a SYN to the kubelet has arrived"
    );
    agent.event(|event| event.reason == "ChecksumElsewhere" && event.hook == "tc/egress")?;
    ensure!(
        !bridged.plain("kubelet", 304, port::KUBELET)?,
        "a plain SYN to the kubelet has arrived"
    );
    agent.event(|event| event.reason == "NoPath" && event.port == Some(port::KUBELET))?;
    ensure!(
        bridged.plain("other", 305, OTHER)?,
        "what nobody guards did not arrive"
    );
    Ok(())
}

#[test]
fn what_a_bridge_passes_on_and_nobody_can_read_is_told_or_left_alone() -> Result<()> {
    let bridged = Bridged::build()?;
    ensure!(bridged.lldp("twin-lldp")?, "twin, LLDP");
    ensure!(bridged.truncated("twin-truncated")?, "twin, truncated");
    let drop = PolicyText {
        other_traffic: "Drop",
        ..PolicyText::dry_run()
    };
    let agent = Agent::start(&bridged.lab, "cp1", &drop)?;
    ensure!(bridged.lldp("dry-lldp")?, "dry-run has dropped LLDP");
    ensure!(bridged.truncated("dry-truncated")?, "dry-run has dropped");
    let told = agent.event(|event| {
        event.hook == "tc/egress" && matches!(&*event.reason, "TruncatedHeader" | "BadHeader")
    })?;
    ensure!(told.verdict == "wouldDrop", "{told:?}");
    let enforced = PolicyText {
        mode: "Enforce",
        ..drop
    };
    agent.replace_policy(&bridged.lab, &enforced)?;
    ensure!(!bridged.truncated("truncated")?, "a cut header has arrived");
    agent.event(|event| event.hook == "tc/egress" && event.verdict == "dropped")?;
    // No guarded endpoint hears it, and the bridge is somebody else's.
    ensure!(bridged.lldp("lldp")?, "LLDP was dropped");
    Ok(())
}
