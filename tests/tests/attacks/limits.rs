//! What is not defended against, demonstrated: each of these reaches its target under the policy,
//! too. If one no longer does, it has become an attack that is stopped, and the documentation must
//! say so.

use anyhow::Result;
use enforcer_tests::craft::Crafted;
use enforcer_tests::plan::{CP1, OUT, W1, port};
use enforcer_tests::probe::{Call, Connect, Inject, Udp};

use crate::attack::{Attacker, Attempt, Others};
use crate::bypass::is_possible;
use crate::packets::{INPUT, WIRE, both, from_wire, too_narrow};
use crate::sockets::on_link;
use crate::stage::{At, CP1_MAC, Stage};

use Attacker::{HostPod, Neighbour};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FROM: u16 = 43_000;

/// An attack that works.
pub struct Limit {
    pub id: &'static str,
    pub who: Attacker,
    pub what: &'static str,
    /// What the attacker gains, and what helps against it.
    pub therefore: &'static str,
    pub others: Others,
    pub attempt: fn(&Stage) -> Result<Attempt<'_>>,
}

const fn row(
    id: &'static str,
    who: Attacker,
    what: &'static str,
    therefore: &'static str,
    others: Others,
    attempt: fn(&Stage) -> Result<Attempt<'_>>,
) -> Limit {
    Limit {
        id,
        who,
        what,
        therefore,
        others,
        attempt,
    }
}

#[rustfmt::skip]
pub fn rows() -> Vec<Limit> {
    use Others::{Allow, Drop};
    vec![
        row("another-nodes-address", Neighbour, "sends from another node's address", "peers from outside are known by their address: let etcd, the apiserver and the kubelets keep requiring certificates", Allow, |stage| {
            from_wire(stage, INPUT, |mark| {
                let to = port::APISERVER;
                [(W1.at(FROM), CP1.at(to)), (W1.at6(FROM), CP1.at6(to))]
                    .map(|(from, to)| Crafted::tcp(from, to, mark, SYN, b"")).to_vec()
            })
        }),
        row("broadcast-from-host", HostPod, "broadcasts a datagram on the segment, to a guarded UDP port", "to the other nodes it is their peer's: whatever the node itself may send to their tunnels; `otherTraffic: Drop` drops it", Allow, |stage| {
            stage.send(&stage.lab.hostnet("cp1"), &stage.tunnel, Udp::to("10.77.0.255:4789".parse()?))
        }),
        row("compat-bypass-uplink", HostPod, "requests by a 32-bit system call that its packet socket's frames bypass TC (`PACKET_QDISC_BYPASS`), and sends them by the uplink", "everything that its node may do to others, unseen by the agent there: the kernel runs no cgroup program for such calls. Boot with `ia32_emulation=off`, or give no hostNetwork pod `CAP_NET_RAW`. On lo such frames are dropped where they come in", Allow, |stage| {
            if !is_possible(stage, Call::Compat)? {
                return Ok(Attempt::skipped("this kernel takes no 32-bit system calls"));
            }
            stage.inject_with(&stage.lab.hostnet("cp1"), At::Input("out"), |mark| {
                let packet = Crafted::tcp(W1.at(FROM), OUT.at(port::ECHO), mark, SYN, b"");
                let frames = [packet.frame(CP1_MAC, OUT.mac)];
                Inject { bypass: Some(Call::Compat), ..Inject::frames("eth0", &frames) }
            })
        }),
        row("link-local-of-another-node", HostPod, "connects from its node's address to the link-local address of another node", "the rights that its node's components have there, as its own agent does not know that the address is a node's; `otherTraffic: Drop` drops it", Allow, |stage| {
            let lab = &stage.lab;
            let to = on_link(lab, &lab.login("cp1"), ("w1", "eth0"))?;
            let from = Some(CP1.at6(0));
            let worked = lab.hostnet("cp1").connect_with(Connect { from, ..Connect::to(to) })?.outcome.worked();
            Ok(Attempt::new(1, Some(to), move || Ok(u64::from(worked))))
        }),
        row("icmp-redirect-allowed", Neighbour, "redirects the node's packets to itself (ICMP), under `otherTraffic: Allow`", "nothing, as long as the kernel accepts no redirects (`accept_redirects`), which is the default of a router; `otherTraffic: Drop` drops it", Allow, |stage| {
            from_wire(stage, INPUT, |mark| {
                let [about, _] = both(&CP1, FROM, port::ECHO);
                vec![Crafted::icmp(OUT.v4.into(), CP1.v4.into(), mark, (5, 1), OUT.v4.octets(), &about.packet())]
            })
        }),
        row("icmp-about-allowed", Neighbour, "reports an error about a connection that is allowed, whose ports it guessed", "smaller segments, or a connection that fails to open; the kernel checks sequence numbers", Allow, |stage| {
            from_wire(stage, INPUT, |mark| {
                let segment = Crafted::tcp(CP1.at(FROM), W1.at(port::KUBELET), 1, ACK, b"");
                vec![too_narrow(mark, &segment, 100)]
            })
        }),
        row("neighbour-discovery", Neighbour, "advertises itself as a router, or redirects, over IPv6", "an IPv6 router's place, if the kernel accepts advertisements (`accept_ra`, `accept_redirects`): the path `neighbour-discovery` is from everybody; `disable` it where no IPv6 is used", Drop, |stage| {
            from_wire(stage, INPUT, |mark| {
                [134, 137].map(|kind| Crafted::icmp(OUT.v6.into(), CP1.v6.into(), mark, (kind, 0), [0; 4], &[0; 32])).to_vec()
            })
        }),
        row("like-an-answer", Neighbour, "sends segments without SYN from a port that the node may reach there (443 of any host outside)", "nothing but the kernel's reset: there is no connection, and none is opened; give `registry` addresses to narrow it", Drop, |stage| {
            from_wire(stage, INPUT, |mark| vec![Crafted::tcp(OUT.at(port::SERVICE), CP1.at(FROM), mark, ACK, b"")])
        }),
        row("later-fragment", Neighbour, "sends a later fragment that belongs to nothing", "space in the queue of fragments: the first fragment is judged, and without it nothing is reassembled", Drop, |stage| {
            from_wire(stage, WIRE, |mark| {
                let whole = Crafted::tcp(OUT.at(FROM), CP1.at(port::ETCD_CLIENT), mark, SYN, b"0123456789ab");
                vec![whole.part(3, &whole.payload[24..], false)]
            })
        }),
    ]
}
