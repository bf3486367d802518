//! The names and addresses in every lab. Labs run in parallel with the same addresses, because each
//! has its own namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A host or a pod: a name, its two addresses and its hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// Its name, unique in the lab.
    pub name: &'static str,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The hardware address of its `eth0`.
    pub mac: [u8; 6],
}

impl Party {
    /// Its IPv4 address with a port.
    pub const fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), port)
    }

    /// Its IPv6 address with a port.
    pub const fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(self.v6), port)
    }

    /// Both addresses with a port, IPv4 first.
    pub const fn both(&self, port: u16) -> [SocketAddr; 2] {
        [self.at(port), self.at6(port)]
    }

    /// Its address of the same family as the other, so that a test can be written once for both.
    pub const fn like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => IpAddr::V4(self.v4),
            IpAddr::V6(_) => IpAddr::V6(self.v6),
        }
    }
}

/// A pod and its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodPlan {
    /// The pod itself.
    pub party: Party,
    /// The name of its host.
    pub host: &'static str,
}

impl PodPlan {
    /// The host's end of the pod's interface.
    pub fn host_interface(&self) -> String {
        format!("cali-{}", self.party.name)
    }
}

/// The control-plane host, with etcd.
pub const CP1: Party = host("cp1", 0x11);
/// A further control-plane host of a cluster, with etcd.
pub const CP2: Party = host("cp2", 0x12);
/// A further control-plane host of a cluster, with etcd.
pub const CP3: Party = host("cp3", 0x13);
/// The worker node.
pub const W1: Party = host("w1", 0x21);
/// A further worker of a cluster.
pub const W2: Party = host("w2", 0x22);
/// The load balancer of a cluster, which is not a member.
pub const LB: Party = host("lb", 0x05);
/// What a cluster needs from outside: names, time, images, DHCP, the cloud's metadata.
pub const INFRA: Party = host("infra", 0x50);
/// A collector of metrics on a separate machine.
pub const METRICS: Party = host("metrics", 0x70);
/// The administrators' machine.
pub const ADMIN: Party = host("admin", 0x60);
/// A neighbour on the same segment that is not a member of the cluster.
pub const OUT: Party = host("out", 0x99);

/// The pod on the control-plane host.
pub const POD_A: PodPlan = pod("pod-a", "cp1", 1, 0x10);
/// The pod on the worker.
pub const POD_B: PodPlan = pod("pod-b", "w1", 2, 0x10);
/// The pod on the second worker of a cluster.
pub const POD_C: PodPlan = pod("pod-c", "w2", 5, 0x10);
/// The cluster's DNS server, on the first worker.
pub const DNS: PodPlan = pod("dns", "w1", 2, 0x53);
/// An admission webhook and aggregated API server, on the second worker.
pub const WEBHOOK: PodPlan = pod("webhook", "w2", 5, 0x20);
/// A konnectivity agent that is a pod, on the second worker.
pub const AGENT: PodPlan = pod("agent", "w2", 5, 0x30);
/// A collector of metrics in a pod, on the first worker.
pub const MONITOR: PodPlan = pod("monitor", "w1", 2, 0x40);

/// The machines and pods of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The machines on the segment.
    pub hosts: &'static [Party],
    /// Those of them that are members of the cluster.
    pub nodes: &'static [Party],
    /// Those of them that run the control plane and etcd.
    pub control_plane: &'static [Party],
    /// All pods with a network of their own.
    pub pods: &'static [PodPlan],
    /// Whether packets between pods of different nodes go through a VXLAN tunnel.
    pub vxlan: bool,
}

impl Topology {
    /// A control-plane node, a worker and a neighbour.
    pub const SMALL: Self = Self {
        hosts: &[CP1, W1, OUT],
        nodes: &[CP1, W1],
        control_plane: &[CP1],
        pods: &[POD_A, POD_B],
        vxlan: false,
    };
    /// Three control-plane nodes, two workers, a load balancer, what a cluster needs from outside,
    /// its operators, and a neighbour.
    pub const CLUSTER: Self = Self {
        hosts: &[LB, CP1, CP2, CP3, W1, W2, INFRA, ADMIN, METRICS, OUT],
        nodes: &[CP1, CP2, CP3, W1, W2],
        control_plane: &[CP1, CP2, CP3],
        pods: &[POD_A, POD_B, POD_C, DNS, WEBHOOK, AGENT, MONITOR],
        vxlan: false,
    };
    /// The same, with a tunnel between the nodes.
    pub const CLUSTER_VXLAN: Self = Self {
        vxlan: true,
        ..Self::CLUSTER
    };

    /// Whether a host is a member of the cluster.
    pub fn is_node(&self, host: &Party) -> bool {
        self.nodes.contains(host)
    }
}

/// The third number of the addresses of a node's pods.
pub fn pod_net(node: &str) -> u8 {
    match node {
        "cp1" => 1,
        "w1" => 2,
        "cp2" => 3,
        "cp3" => 4,
        _ => 5,
    }
}

/// The tunnel's device on every node.
pub const VXLAN_DEVICE: &str = "vxlan.lab";

/// A node's own end of the tunnel, with an address in its pod network.
pub fn tunnel_end(node: &Party) -> Party {
    let net = pod_net(node.name);
    Party {
        name: node.name,
        v4: Ipv4Addr::new(10, 78, net, 1),
        v6: Ipv6Addr::new(0xfd78, net as u16, 0, 0, 0, 0, 0, 1),
        mac: [0x02, 0x79, 0, 0, net, 0x01],
    }
}

/// The address that the apiservers share; it belongs to whichever host claims it.
pub const VIP: Party = Party {
    name: "vip",
    v4: Ipv4Addr::new(10, 77, 0, 100),
    v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100),
    mac: [0; 6],
};

/// The segment's router, which leads nowhere. It is the hosts' default route, since real nodes have
/// one.
pub const ROUTER: Party = Party {
    name: "router",
    v4: Ipv4Addr::new(10, 77, 0, 1),
    v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1),
    mac: [0x02, 0x77, 0, 0, 0, 0x01],
};

/// The apiserver's service address, port 443.
pub const SERVICE: Party = Party {
    name: "kubernetes",
    v4: Ipv4Addr::new(10, 96, 0, 1),
    v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1),
    mac: [0; 6],
};

/// The DNS servers' service address, port 53.
pub const DNS_SERVICE: Party = Party {
    name: "kube-dns",
    v4: Ipv4Addr::new(10, 96, 0, 10),
    v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10),
    mac: [0; 6],
};

/// The webhook's service address, port 443.
pub const WEBHOOK_SERVICE: Party = Party {
    name: "webhook",
    v4: Ipv4Addr::new(10, 96, 0, 20),
    v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x20),
    mac: [0; 6],
};

/// Networks of the services.
pub const SERVICE_NETWORKS: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];

/// The cloud's metadata service, served by [`INFRA`].
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Loopback, of any host.
pub const LOOPBACK: Party = Party {
    name: "loopback",
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
    mac: [0; 6],
};

/// The address of node-local DNS: every node has it, on a separate device.
pub const NODE_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// The gateway of every pod, as with Calico: an address of no host, answered by proxy ARP.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The hardware address of the host's end of every pod's interface, as with Calico.
pub const POD_GATEWAY_MAC: [u8; 6] = [0xee; 6];
/// The link-local address that follows from [`POD_GATEWAY_MAC`].
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// The networks of the pods' addresses.
pub const POD_NETWORKS: [&str; 4] = ["10.78.1.0/24", "10.78.2.0/24", "fd78:1::/64", "fd78:2::/64"];

/// Port numbers.
pub mod port {
    /// etcd's clients.
    pub const ETCD_CLIENT: u16 = 2379;
    /// etcd's peers.
    pub const ETCD_PEER: u16 = 2380;
    /// The apiserver.
    pub const APISERVER: u16 = 6443;
    /// The apiserver's insecure port, which many other programs use as well.
    pub const INSECURE: u16 = 8080;
    /// The kubelet.
    pub const KUBELET: u16 = 10250;
    /// etcd's metrics and health, on loopback.
    pub const ETCD_METRICS: u16 = 2381;
    /// The controller manager, on loopback.
    pub const CONTROLLER_MANAGER: u16 = 10257;
    /// The scheduler, on loopback.
    pub const SCHEDULER: u16 = 10259;
    /// The kubelet's health, on loopback.
    pub const KUBELET_HEALTH: u16 = 10248;
    /// The kubelet's port without authentication.
    pub const KUBELET_READ_ONLY: u16 = 10255;
    /// kube-proxy's health.
    pub const KUBE_PROXY: u16 = 10256;
    /// kube-proxy's metrics, on loopback.
    pub const KUBE_PROXY_METRICS: u16 = 10249;
    /// Where the container runtime streams to the kubelet, on loopback.
    pub const STREAMING: u16 = 35555;
    /// DNS.
    pub const DNS: u16 = 53;
    /// Metrics of DNS servers.
    pub const DNS_METRICS: u16 = 9153;
    /// SSH.
    pub const SSH: u16 = 22;
    /// Konnectivity's front end for the apiserver.
    pub const KONNECTIVITY: u16 = 8131;
    /// Konnectivity's port for its agents.
    pub const KONNECTIVITY_AGENTS: u16 = 8132;
    /// Konnectivity's metrics, on loopback.
    pub const KONNECTIVITY_ADMIN: u16 = 8133;
    /// Konnectivity's health, on loopback.
    pub const KONNECTIVITY_HEALTH: u16 = 8134;
    /// A webhook.
    pub const WEBHOOK: u16 = 8443;
    /// An aggregated API server.
    pub const AGGREGATED: u16 = 4443;
    /// A node port.
    pub const NODE_PORT: u16 = 30080;
    /// NTP.
    pub const NTP: u16 = 123;
    /// HTTP.
    pub const HTTP: u16 = 80;
    /// Where DHCP servers listen.
    pub const DHCP_SERVER: u16 = 67;
    /// Where DHCP clients listen.
    pub const DHCP_CLIENT: u16 = 68;
    /// BGP.
    pub const BGP: u16 = 179;
    /// The cloud controller manager, on loopback.
    pub const CLOUD_CONTROLLER_MANAGER: u16 = 10258;
    /// Where nodes of RKE2 join.
    pub const JOIN: u16 = 9345;
    /// A konnectivity agent's health.
    pub const KONNECTIVITY_AGENT_HEALTH: u16 = 8093;
    /// The apiserver behind its service address.
    pub const SERVICE: u16 = 443;
    /// An echo service over TCP and UDP on every host and pod, which no component declares.
    pub const ECHO: u16 = 7777;
}

const fn host(name: &'static str, last: u8) -> Party {
    // The IPv6 address reads like the IPv4 one (`10.77.0.11`, `fd77::11`), so its digits are
    // hexadecimal where the other's are decimal.
    let v4_last = (last >> 4) * 10 + (last & 0xf);
    Party {
        name,
        v4: Ipv4Addr::new(10, 77, 0, v4_last),
        v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last as u16),
        mac: [0x02, 0x77, 0, 0, 0, last],
    }
}

const fn pod(name: &'static str, host: &'static str, net: u8, last: u8) -> PodPlan {
    let v4_last = (last >> 4) * 10 + (last & 0xf);
    PodPlan {
        party: Party {
            name,
            v4: Ipv4Addr::new(10, 78, net, v4_last),
            v6: Ipv6Addr::new(0xfd78, net as u16, 0, 0, 0, 0, 0, last as u16),
            mac: [0x02, 0x78, 0, 0, net, last],
        },
        host,
    }
}
