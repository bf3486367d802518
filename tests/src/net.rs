//! The lab's network: one switch, the hosts on it, pods behind the nodes, service addresses.

use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use crate::namespace::Namespace;
use crate::plan::{
    self, POD_GATEWAY_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6, Party, PodPlan, ROUTER, SERVICE,
    Topology, VXLAN_DEVICE, pod_net, port, tunnel_end,
};
use crate::process::run_tool;
use crate::sweep::LabId;
use crate::tools;

/// Where `ip netns` keeps the names.
pub const NAMESPACES: &str = "/run/netns";

/// The name of the namespace that holds the bridge.
pub const SWITCH: &str = "switch";

/// Settings of every namespace before its first interface, so that addresses are usable at once.
const EVERYWHERE: [(&str, &str); 3] = [
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// A node forwards for its pods and accepts everything: none of the kernel's own checks may be the
/// reason for a dropped packet.
const NODE: [(&str, &str); 7] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // Without it a packet with a source address of the node itself would be a martian.
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/default/accept_local", "1"),
];

/// Creates all namespaces of a lab.
pub fn add_namespaces(id: &LabId, topology: &Topology) -> Result<()> {
    let batch: String = all_names(topology)
        .map(|name| format!("netns add {}\n", id.namespace(name)))
        .collect();
    ip(None, &batch)
}

/// Removes namespaces by their full names.
pub fn delete_namespaces(names: &[String]) -> Result<()> {
    for name in names {
        // If it is gone already, another sweep has removed it.
        if std::path::Path::new(NAMESPACES).join(name).exists() {
            let deleted = ip(None, &format!("netns del {name}\n"));
            if deleted.is_err() && std::path::Path::new(NAMESPACES).join(name).exists() {
                return deleted;
            }
        }
    }
    Ok(())
}

/// The names of all namespaces of a lab.
pub fn all_names(topology: &Topology) -> impl Iterator<Item = &'static str> {
    let hosts = topology.hosts.iter().map(|host| host.name);
    let pods = topology.pods.iter().map(|pod| pod.party.name);
    [SWITCH].into_iter().chain(hosts).chain(pods)
}

/// Connects everything and assigns addresses and routes.
pub fn connect(id: &LabId, topology: &Topology) -> Result<()> {
    for name in all_names(topology) {
        Namespace::open(&id.namespace(name))?.set_sysctls(&EVERYWHERE)?;
    }
    for node in topology.nodes {
        Namespace::open(&id.namespace(node.name))?.set_sysctls(&NODE)?;
    }
    let switch = id.namespace(SWITCH);
    ip(Some(&switch), &switch_batch(id, topology))?;
    for host in topology.hosts {
        let batch = host_batch(host, id, topology);
        ip(Some(&id.namespace(host.name)), &batch)?;
    }
    if topology.vxlan {
        for node in topology.nodes {
            connect_tunnel(node, id, topology)?;
        }
    }
    for pod in topology.pods {
        set_up_pod(pod, id)?;
    }
    for (index, node) in topology.nodes.iter().enumerate() {
        let rules = services(topology, index);
        nft(&id.namespace(node.name), &rules)?;
    }
    Ok(())
}

/// Gives a node its end of the tunnel and the routes to the others, as Flannel does: the peers are
/// configured, not discovered.
fn connect_tunnel(node: &Party, id: &LabId, topology: &Topology) -> Result<()> {
    let (own, device) = (tunnel_end(node), VXLAN_DEVICE);
    let mut batch = String::new();
    push(
        &mut batch,
        format_args!(
            "link add {device} address {} type vxlan id 77 dstport 4789 local {} dev eth0 nolearning",
            mac(own.mac),
            node.v4
        ),
    );
    push(&mut batch, format_args!("link set {device} up"));
    push(
        &mut batch,
        format_args!("addr add {}/32 dev {device}", own.v4),
    );
    push(
        &mut batch,
        format_args!("addr add {}/128 dev {device} nodad", own.v6),
    );
    let mut forwarding = String::new();
    for peer in topology.nodes.iter().filter(|peer| peer.name != node.name) {
        let (end, net) = (tunnel_end(peer), pod_net(peer.name));
        let address = mac(end.mac);
        for at in [end.v4.to_string(), end.v6.to_string()] {
            push(
                &mut batch,
                format_args!("neigh add {at} lladdr {address} dev {device}"),
            );
        }
        push(
            &mut batch,
            format_args!(
                "route add 10.78.{net}.0/24 via {} dev {device} onlink",
                end.v4
            ),
        );
        push(
            &mut batch,
            format_args!(
                "route add fd78:{net}::/64 via {} dev {device} onlink",
                end.v6
            ),
        );
        push(
            &mut forwarding,
            format_args!("fdb add {address} dev {device} dst {}", peer.v4),
        );
    }
    let namespace = id.namespace(node.name);
    ip(Some(&namespace), &batch)?;
    let mut command = command("bridge")?;
    command.args(["-n", &namespace, "-batch", "-"]);
    run_tool(command, &forwarding).map(drop)
}

/// Limits the packet size of a pod's interface at both ends: the pod's host must report it to a
/// sender of larger packets. The pod still advertises segments that fill an Ethernet frame;
/// otherwise TCP would not send larger ones.
pub fn shrink(id: &LabId, pod: &PodPlan, mtu: u32) -> Result<()> {
    let batch = format!(
        "link set eth0 mtu {mtu}\n\
         route change default via {POD_GATEWAY_V4} dev eth0 advmss 1460\n\
         route change ::/0 via {POD_GATEWAY_V6} dev eth0 advmss 1440\n"
    );
    ip(Some(&id.namespace(pod.party.name)), &batch)?;
    let batch = format!("link set {} mtu {mtu}\n", pod.host_interface());
    ip(Some(&id.namespace(pod.host)), &batch)
}

/// Clears a host's neighbour tables.
pub fn forget_neighbours(id: &LabId, host: &str) -> Result<()> {
    ip(Some(&id.namespace(host)), "neigh flush dev eth0\n")
}

/// Gives a host another address on the segment.
pub fn claim(id: &LabId, host: &Party, address: &Party) -> Result<()> {
    let batch = format!(
        "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\n",
        address.v4, address.v6
    );
    ip(Some(&id.namespace(host.name)), &batch)
}

/// Lets the kernel of `victim` accept packets to 127.0.0.0/8 from the wire, as kube-proxy does with
/// `route_localnet`, and routes all loopback traffic of `attacker` to it.
pub fn expose_loopback(attacker: &Namespace, victim: &Namespace, address: &Party) -> Result<()> {
    for host in [attacker, victim] {
        host.set_sysctls(&[
            ("ipv4/conf/all/route_localnet", "1"),
            ("ipv4/conf/eth0/route_localnet", "1"),
        ])?;
    }
    // The attacker's own loopback address would take precedence, and make every answer a martian,
    // so it is removed.
    let batch = format!(
        "addr del 127.0.0.1/8 dev lo\nroute add 127.0.0.0/8 via {} dev eth0\n",
        address.v4
    );
    ip(Some(attacker.name()), &batch)
}

/// Hides pods behind their node's address when they connect to anything but a pod, like the "NAT
/// outgoing" of a network plug-in.
pub fn masquerade_pods(node: &Namespace) -> Result<()> {
    nft(
        node.name(),
        "table inet lab-masquerade { chain out { type nat hook postrouting priority 100;
           ip saddr 10.78.0.0/16 ip daddr != 10.78.0.0/16 oifname eth0 masquerade
           ip6 saddr fd78::/16 ip6 daddr != fd78::/16 oifname eth0 masquerade
         }\n}\n",
    )
}

/// Runs a batch of `ip` commands, in a namespace if one is named.
pub fn ip(namespace: Option<&str>, batch: &str) -> Result<()> {
    let mut command = command("ip")?;
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]);
    run_tool(command, batch).map(drop)
}

/// Runs a batch of `tc` commands in a namespace.
pub fn tc(namespace: &str, batch: &str) -> Result<()> {
    let mut command = command("tc")?;
    command.args(["-n", namespace, "-batch", "-"]);
    run_tool(command, batch).map(drop)
}

/// Feeds a rule set to nftables in a namespace and returns its output.
pub fn nft(namespace: &str, rules: &str) -> Result<()> {
    let mut command = command("nft")?;
    command.args(["-f", "-"]);
    Namespace::open(namespace)?.within(|| run_tool(command, rules).map(drop))?
}

/// Makes the kernel compute checksums itself where an interface would do it, as for hardware that
/// does not support every kind.
pub fn complete_checksums(namespace: &Namespace, device: &str) -> Result<()> {
    let device = device.to_owned();
    let done = namespace.within(move || without_checksums(&device))?;
    done.context("failed to switch off checksums")
}

fn without_checksums(device: &str) -> nix::Result<()> {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let socket = nix::sys::socket::socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(device.bytes().take(15)) {
        *to = byte.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the pointers are to a whole request and to the value that it is about.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(result).map(drop)
}

/// A command of a tool, outside the lab.
pub(crate) fn command(name: &str) -> Result<Command> {
    let tool = tools::find(name)?;
    let mut command = Command::new(tool.path);
    if let Ok(libraries) = std::env::join_paths(&tool.libraries)
        && !tool.libraries.is_empty()
    {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    Ok(command)
}

fn switch_batch(id: &LabId, topology: &Topology) -> String {
    let mut batch = "link set lo up\nlink add br0 type bridge\n".to_owned();
    push(
        &mut batch,
        format_args!("link set br0 address {} up", mac(ROUTER.mac)),
    );
    push(
        &mut batch,
        format_args!("addr add {}/24 dev br0", ROUTER.v4),
    );
    push(
        &mut batch,
        format_args!("addr add {}/64 dev br0 nodad", ROUTER.v6),
    );
    for host in topology.hosts {
        let (name, namespace) = (host.name, id.namespace(host.name));
        let own = mac(host.mac);
        push(
            &mut batch,
            format_args!(
                "link add to-{name} type veth peer name eth0 address {own} netns {namespace}"
            ),
        );
        push(&mut batch, format_args!("link set to-{name} master br0 up"));
    }
    batch
}

fn host_batch(host: &Party, id: &LabId, topology: &Topology) -> String {
    let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
    push(&mut batch, format_args!("addr add {}/24 dev eth0", host.v4));
    push(
        &mut batch,
        format_args!("addr add {}/64 dev eth0 nodad", host.v6),
    );
    push(
        &mut batch,
        format_args!("route add default via {} dev eth0", ROUTER.v4),
    );
    push(
        &mut batch,
        format_args!("route add ::/0 via {} dev eth0", ROUTER.v6),
    );
    if topology.is_node(host) {
        // On a separate device, as on real nodes: on lo, it would be used as a source address
        // everywhere.
        push(
            &mut batch,
            format_args!(
                "link add nodelocaldns type bridge\nlink set nodelocaldns up\naddr add {}/32 dev nodelocaldns",
                plan::NODE_LOCAL_DNS
            ),
        );
    }
    let is_cluster = topology.hosts != Topology::SMALL.hosts;
    if *host == plan::INFRA {
        push(
            &mut batch,
            format_args!("addr add {}/32 dev eth0", plan::METADATA),
        );
    } else if is_cluster {
        push(
            &mut batch,
            format_args!("route add {}/32 via {}", plan::METADATA, plan::INFRA.v4),
        );
    }
    for pod in topology.pods {
        let PodPlan { party, host: home } = pod;
        if *home == host.name {
            let (interface, namespace) = (pod.host_interface(), id.namespace(party.name));
            push(
                &mut batch,
                format_args!(
                    "link add {interface} address {} type veth peer name eth0 address {} netns {namespace}",
                    mac(POD_GATEWAY_MAC),
                    mac(party.mac)
                ),
            );
            push(&mut batch, format_args!("link set {interface} up"));
            push(
                &mut batch,
                format_args!("route add {}/32 dev {interface}", party.v4),
            );
            push(
                &mut batch,
                format_args!("route add {}/128 dev {interface}", party.v6),
            );
        } else if topology.vxlan && topology.is_node(host) {
            // The tunnel provides this route.
        } else if let Some(node) = topology.nodes.iter().find(|node| node.name == *home) {
            push(
                &mut batch,
                format_args!("route add {}/32 via {}", party.v4, node.v4),
            );
            push(
                &mut batch,
                format_args!("route add {}/128 via {}", party.v6, node.v6),
            );
        }
    }
    batch
}

/// Routed as with Calico: the pod's gateway is an address of no host, for which the host answers.
fn set_up_pod(pod: &PodPlan, id: &LabId) -> Result<()> {
    let (party, interface) = (&pod.party, pod.host_interface());
    Namespace::open(&id.namespace(pod.host))?.set_sysctls(&[
        (&format!("ipv4/conf/{interface}/proxy_arp"), "1"),
        // By default, the kernel delays a proxy answer for up to 0.8 seconds.
        (&format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
    ])?;
    let batch = format!(
        "link set lo up\n\
         link set eth0 up\n\
         addr add {}/32 dev eth0\n\
         addr add {}/128 dev eth0 nodad\n\
         route add {POD_GATEWAY_V4} dev eth0 scope link\n\
         route add default via {POD_GATEWAY_V4} dev eth0\n\
         route add ::/0 via {POD_GATEWAY_V6} dev eth0\n",
        party.v4, party.v6
    );
    ip(Some(&id.namespace(party.name)), &batch)
}

/// The service addresses, translated as with kube-proxy. Each node prefers a different apiserver.
fn services(topology: &Topology, node: usize) -> String {
    let is_cluster = topology.hosts != Topology::SMALL.hosts;
    let favourite = topology.control_plane[node % topology.control_plane.len()];
    let mut targets = vec![("tcp", SERVICE, port::SERVICE, favourite, port::APISERVER)];
    if topology.pods.contains(&plan::DNS) {
        let dns = plan::DNS.party;
        targets.push(("tcp", plan::DNS_SERVICE, port::DNS, dns, port::DNS));
        targets.push(("udp", plan::DNS_SERVICE, port::DNS, dns, port::DNS));
    }
    if topology.pods.contains(&plan::WEBHOOK) {
        let (service, webhook) = (plan::WEBHOOK_SERVICE, plan::WEBHOOK.party);
        targets.push(("tcp", service, port::SERVICE, webhook, port::WEBHOOK));
    }
    let mut rules = "table inet lab-services {\n".to_owned();
    for (chain, hook) in [("pods", "prerouting"), ("own", "output")] {
        push(
            &mut rules,
            format_args!("chain {chain} {{ type nat hook {hook} priority -100;"),
        );
        for (protocol, service, at, to, port) in &targets {
            push(
                &mut rules,
                format_args!(
                    "ip daddr {} {protocol} dport {at} dnat ip to {}\n\
                     ip6 daddr {} {protocol} dport {at} dnat ip6 to {}",
                    service.v4,
                    to.at(*port),
                    service.v6,
                    to.at6(*port),
                ),
            );
        }
        if topology.pods.contains(&plan::POD_B) && is_cluster && hook == "prerouting" {
            let (at, pod) = (port::NODE_PORT, plan::POD_B.party);
            push(
                &mut rules,
                format_args!(
                    "fib daddr type local meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport {at} meta mark set 0x4000 dnat ip to {}\n\
                     fib daddr type local meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport {at} meta mark set 0x4000 dnat ip6 to {}",
                    pod.at(port::ECHO),
                    pod.at6(port::ECHO),
                ),
            );
        }
        rules.push_str("}\n");
    }
    if is_cluster {
        // Replies must take the same route.
        push(
            &mut rules,
            format_args!(
                "chain back {{ type nat hook postrouting priority 100;
\
                 meta mark 0x4000 masquerade
}}"
            ),
        );
    }
    rules + "}\n"
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn push(batch: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(batch, "{line}");
}
