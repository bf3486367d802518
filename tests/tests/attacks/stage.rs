//! The attacked lab: victims that report what they receive, everything open that an operator might
//! leave open, and ways to count what arrives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Result;
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::craft::Crafted;
use enforcer_tests::plan::{CP1, LOOPBACK, POD_A, VIP, W1, port};
use enforcer_tests::probe::{Connect, Inject, Serve, Udp};
use enforcer_tests::{Lab, Server, Workload, net};

use crate::attack::Attempt;

/// The port of VXLAN packets.
pub const TUNNEL: u16 = 4789;
/// A port of cp1 that an operator has redirected to etcd by address translation.
pub const TRANSLATED: u16 = 9998;
/// One that is redirected to the insecure port on loopback.
pub const TRANSLATED_LOOPBACK: u16 = 9997;
/// A service address that leads to etcd.
pub const DETOUR: &str = "10.96.0.99:80";
/// The hardware address of cp1's end of the tunnel.
pub const TUNNEL_MAC: [u8; 6] = [2, 0x99, 0, 0, 0, 1];
/// The tunnel's number.
pub const TUNNEL_ID: u8 = 99;

/// An interface of cp1 and of the neighbour that the inventory does not mention, with a link
/// between them.
pub const UNDECLARED: &str = "eth1";
/// The hardware address of cp1's end.
pub const UNDECLARED_MAC: [u8; 6] = [2, 0x98, 0, 0, 0, 1];

/// An address to which cp1 forwards through that interface.
pub const BEHIND_UNDECLARED: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 9);

/// Everything that an operator might leave open: packets to 127.0.0.1 and source routes are
/// accepted from the wire, and data with a SYN from any host.
const OPEN: [(&str, &str); 7] = [
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv4/conf/eth0/route_localnet", "1"),
    ("ipv4/conf/all/accept_source_route", "1"),
    ("ipv4/conf/eth0/accept_source_route", "1"),
    ("ipv4/tcp_fastopen", "1543"),
    ("ipv6/conf/all/seg6_enabled", "1"),
    ("ipv6/conf/eth0/seg6_enabled", "1"),
];

/// Where an arrival is counted.
#[derive(Debug, Clone, Copy)]
pub enum At {
    /// At a host's input hook, after TC and the kernel's own checks.
    Input(&'static str),
    /// After TC ingress of an interface: for packets that the kernel itself discards later.
    Device(&'static str, &'static str),
}

/// The lab, its victims and a number for each attempt.
pub struct Stage {
    pub lab: Lab,
    pub etcd: Server,
    pub insecure: Server,
    pub kubelet: Server,
    _other_kubelet: Server,
    pub tunnel: Server,
    pub tunnel_here: Server,
    _echo: Server,
    marks: AtomicU16,
}

impl Stage {
    pub fn build() -> Result<Self> {
        let lab = Lab::builder().build()?;
        for node in ["cp1", "w1"] {
            lab.host(node).namespace().set_sysctls(&OPEN)?;
        }
        let pod = format!("ipv4/conf/{}/route_localnet", POD_A.host_interface());
        let host = lab.host("cp1").namespace();
        host.set_sysctls(&[(&pod, "1")])?;
        lab.neighbour().namespace().set_sysctls(&OPEN[4..5])?;
        // An address that the inventory of this small lab does not mention.
        lab.claim(&CP1, &VIP)?;
        translate(&lab)?;
        create_tunnel(&lab)?;
        add_second_link(&lab)?;
        for (node, device) in [("cp1", "eth0"), ("cp1", UNDECLARED), ("w1", "eth0")] {
            net::complete_checksums(lab.host(node).namespace(), device)?;
        }
        Ok(Self {
            etcd: listen(&lab.etcd(), port::ETCD_CLIENT)?,
            insecure: listen(&lab.apiserver(), port::INSECURE)?,
            kubelet: listen(&lab.kubelet("cp1"), port::KUBELET)?,
            _other_kubelet: listen(&lab.kubelet("w1"), port::KUBELET)?,
            _echo: listen(&lab.daemon("cp1", "echo"), port::ECHO)?,
            tunnel_here: lab.daemon("cp1", "overlay").serve(Serve {
                udp: vec![everywhere(8472)],
                ..Serve::default()
            })?,
            tunnel: lab.daemon("w1", "overlay").serve(Serve {
                udp: vec![everywhere(TUNNEL)],
                ..Serve::default()
            })?,
            lab,
            marks: AtomicU16::new(1000),
        })
    }

    /// A number that no other attempt has.
    pub fn unique_number(&self) -> u16 {
        self.marks.fetch_add(1, Ordering::Relaxed)
    }

    /// Injects frames through a packet socket, and counts the packets with their mark at their
    /// destination.
    pub fn inject(
        &self,
        from: &Workload,
        interface: &str,
        at: At,
        make: impl FnOnce(u16) -> Vec<Vec<u8>>,
    ) -> Result<Attempt<'_>> {
        let mark = self.unique_number();
        let frames = make(mark);
        let count = frames.len() as u64;
        let arrivals = self.marked(at, mark)?;
        // Each is sent separately, and errors of the socket are ignored: dropping at egress is an
        // error there, and must not prevent the next attempt.
        for frame in frames {
            from.inject(interface, &[frame])?;
        }
        Ok(Attempt::new(count, None, move || total(&arrivals)))
    }

    /// Sends one frame in a special way, and counts what an nftables expression matches in addition
    /// to the mark.
    pub fn inject_one(
        &self,
        from: &Workload,
        (at, counted): (At, &str),
        make: impl FnOnce(u16) -> Result<Inject>,
    ) -> Result<Attempt<'_>> {
        let mark = self.unique_number();
        let inject = make(mark)?;
        let arrivals = [
            self.counted(at, &format!("ip id {mark} {counted}"))?,
            self.counted(at, &format!("ip6 flowlabel {mark} {counted}"))?,
        ];
        from.inject_with(inject)?;
        Ok(Attempt::new(1, None, move || total(&arrivals)))
    }

    /// Sends crafted packets on `eth0` to a hardware address, and counts those with their mark.
    pub fn craft(
        &self,
        from: &Workload,
        hop: [u8; 6],
        at: At,
        make: impl FnOnce(u16) -> Vec<Crafted>,
    ) -> Result<Attempt<'_>> {
        self.inject(from, "eth0", at, |mark| {
            let packets = make(mark);
            let own = from.party().mac;
            packets
                .iter()
                .map(|packet| packet.frame(own, hop))
                .collect()
        })
    }

    /// Sends crafted packets through a raw socket.
    pub fn raw(
        &self,
        from: &Workload,
        at: At,
        make: impl FnOnce(u16) -> Vec<Crafted>,
    ) -> Result<Attempt<'_>> {
        let mark = self.unique_number();
        let packets: Vec<Vec<u8>> = make(mark).iter().map(Crafted::packet).collect();
        let arrivals = self.marked(at, mark)?;
        // Each separately: the first that is refused must not prevent the others.
        for packet in &packets {
            from.raw_bytes(std::slice::from_ref(packet))?;
        }
        Ok(Attempt::new(packets.len() as u64, None, move || {
            total(&arrivals)
        }))
    }

    /// Sends crafted packets through a packet socket in a special way.
    pub fn inject_with(
        &self,
        from: &Workload,
        at: At,
        make: impl FnOnce(u16) -> Inject,
    ) -> Result<Attempt<'_>> {
        let mark = self.unique_number();
        let all = make(mark);
        let count = all.frame.len() as u64;
        let arrivals = self.marked(at, mark)?;
        for frame in &all.frame {
            let frame = vec![frame.clone()];
            from.inject_with(Inject {
                frame,
                ..all.clone()
            })?;
        }
        Ok(Attempt::new(count, None, move || total(&arrivals)))
    }

    /// Counts by an nftables expression instead of the mark.
    pub fn counted(&self, at: At, expression: &str) -> Result<Arrivals> {
        let name = self.unique_number().to_string();
        match at {
            At::Input(host) => Arrivals::matching(&self.lab.login(host), &name, expression),
            At::Device(host, device) => {
                Arrivals::on_device(&self.lab.login(host), device, &name, expression)
            }
        }
    }

    fn marked(&self, at: At, mark: u16) -> Result<[Arrivals; 2]> {
        Ok([
            self.counted(at, &format!("ip id {mark}"))?,
            self.counted(at, &format!("ip6 flowlabel {mark}"))?,
        ])
    }

    /// A connection with a unique payload, opened in a special way; the victim counts what arrived.
    pub fn send_tcp<'a>(
        &'a self,
        from: &Workload,
        victim: &'a Server,
        connect: Connect,
    ) -> Result<Attempt<'a>> {
        let word = format!("word-{}", self.unique_number());
        let reported = Some(connect.to);
        let timeout_ms = 400;
        from.connect_with(Connect {
            send: Some(word.clone()),
            timeout_ms,
            ..connect
        })?;
        Ok(Attempt::new(1, reported, move || Ok(heard(victim, &word))))
    }

    /// The same with a datagram.
    pub fn send<'a>(
        &'a self,
        from: &Workload,
        victim: &'a Server,
        udp: Udp,
    ) -> Result<Attempt<'a>> {
        let word = format!("word-{}", self.unique_number());
        let reported = Some(udp.to);
        from.udp_with(Udp {
            send: word.clone(),
            no_answer: true,
            ..udp
        })?;
        Ok(Attempt::new(1, reported, move || Ok(heard(victim, &word))))
    }

    /// Frames with a unique payload for a victim's socket.
    pub fn send_frames<'a>(
        &'a self,
        from: &Workload,
        victim: &'a Server,
        make: impl FnOnce(&[u8]) -> Vec<Vec<u8>>,
    ) -> Result<Attempt<'a>> {
        let word = format!("word-{}", self.unique_number());
        let frames = make(word.as_bytes());
        let count = frames.len() as u64;
        from.inject("eth0", &frames)?;
        Ok(Attempt::new(count, None, move || Ok(heard(victim, &word))))
    }
}

impl Attempt<'_> {
    /// Sets the destination that must be reported.
    pub fn reported(self, ip: IpAddr, port: u16) -> Self {
        Self {
            reported: Some(SocketAddr::new(ip, port)),
            ..self
        }
    }

    /// Sets how many arrive if that is fewer than are sent, for example when fragments are
    /// reassembled.
    pub fn aimed(self, aimed: u64) -> Self {
        Self { aimed, ..self }
    }
}

fn total(arrivals: &[Arrivals]) -> Result<u64> {
    arrivals.iter().map(Arrivals::so_far).sum()
}

pub fn heard(victim: &Server, word: &str) -> u64 {
    let all = victim.heard();
    let same = all
        .iter()
        .filter(|heard| heard.data.as_deref() == Some(word));
    same.count() as u64
}

/// Every address of a host, of both families.
fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)
}

fn listen(workload: &Workload, port: u16) -> Result<Server> {
    workload.serve(Serve {
        tcp: vec![everywhere(port)],
        ..Serve::default()
    })
}

/// Address translations that lead to guarded endpoints.
fn translate(lab: &Lab) -> Result<()> {
    let (etcd, insecure) = (port::ETCD_CLIENT, port::INSECURE);
    net::nft(
        lab.host("cp1").namespace().name(),
        &format!(
            "table ip detour {{ chain pre {{ type nat hook prerouting priority -101;
               tcp dport {TRANSLATED} redirect to :{etcd}
               tcp dport {TRANSLATED_LOOPBACK} dnat to 127.0.0.1:{insecure}\n}}\n}}"
        ),
    )?;
    net::nft(
        lab.host("w1").namespace().name(),
        &format!(
            "table ip detour {{ chain own {{ type nat hook output priority -101;
               ip daddr 10.96.0.99 tcp dport 80 dnat to {}\n}}\n}}",
            CP1.at(etcd)
        ),
    )
}

/// A tunnel end on cp1 that the inventory does not mention.
fn create_tunnel(lab: &Lab) -> Result<()> {
    let mac = TUNNEL_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let host = lab.host("cp1").namespace();
    net::ip(
        Some(host.name()),
        &format!(
            "link add overlay address {mac} type vxlan id {TUNNEL_ID} dstport {TUNNEL} local {} dev eth0 nolearning\n\
             link set overlay up\n",
            CP1.v4
        ),
    )?;
    host.set_sysctls(&[("ipv4/conf/overlay/rp_filter", "0")])
}

/// A second, undeclared link between the neighbour and cp1.
fn add_second_link(lab: &Lab) -> Result<()> {
    let [out, host] = ["out", "cp1"].map(|name| lab.host(name).namespace().name());
    net::ip(
        Some(host),
        &format!(
            "link add {UNDECLARED} address {} type veth peer name {UNDECLARED} netns {out}\n\
             link set {UNDECLARED} up\n\
             neigh replace {BEHIND_UNDECLARED} lladdr 02:98:00:00:00:02 dev {UNDECLARED}\n\
             route add {BEHIND_UNDECLARED}/32 dev {UNDECLARED}\n",
            UNDECLARED_MAC.map(|byte| format!("{byte:02x}")).join(":")
        ),
    )?;
    net::ip(Some(out), &format!("link set {UNDECLARED} up\n"))?;
    let reverse = format!("ipv4/conf/{UNDECLARED}/rp_filter");
    let host = lab.host("cp1").namespace();
    host.set_sysctls(&[(&reverse, "0")])
}

/// The hardware address under which a pod, or the segment, reaches cp1.
pub const CP1_MAC: [u8; 6] = CP1.mac;
/// The same for w1.
pub const W1_MAC: [u8; 6] = W1.mac;

/// SYNs to the insecure port on loopback, of both families.
pub fn to_insecure_on_lo(from: u16, mark: u16) -> [Crafted; 2] {
    let to = port::INSECURE;
    [
        Crafted::tcp(LOOPBACK.at(from), LOOPBACK.at(to), mark, SYN, b""),
        Crafted::tcp(LOOPBACK.at6(from), LOOPBACK.at6(to), mark, SYN, b""),
    ]
}

/// SYNs from w1 to cp1's etcd, of both families.
pub fn to_etcd_from_w1(from: u16, mark: u16) -> [Crafted; 2] {
    let to = port::ETCD_CLIENT;
    [
        Crafted::tcp(W1.at(from), CP1.at(to), mark, SYN, b""),
        Crafted::tcp(W1.at6(from), CP1.at6(to), mark, SYN, b""),
    ]
}

const SYN: u8 = 0x02;
