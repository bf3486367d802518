//! Who has which name and address in every lab. Labs run side by side with the same addresses,
//! because each has namespaces of its own.

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

    /// The address of the other's family, so that a test can be written once for both.
    pub const fn like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => IpAddr::V4(self.v4),
            IpAddr::V6(_) => IpAddr::V6(self.v6),
        }
    }
}

/// A pod and the host it runs on.
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
/// The worker node.
pub const W1: Party = host("w1", 0x21);
/// The neighbour on the same segment that is no member of the cluster.
pub const OUT: Party = host("out", 0x99);
/// The machines on the segment.
pub const HOSTS: [Party; 3] = [CP1, W1, OUT];
/// The machines that are members of the cluster.
pub const NODES: [Party; 2] = [CP1, W1];

/// The pod on the control-plane host.
pub const POD_A: PodPlan = pod("pod-a", "cp1", 1);
/// The pod on the worker.
pub const POD_B: PodPlan = pod("pod-b", "w1", 2);
/// All pods with a network of their own.
pub const PODS: [PodPlan; 2] = [POD_A, POD_B];

/// The segment's router, which leads nowhere: the hosts' default route, as real nodes have one.
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

/// Loopback, of whoever uses it.
pub const LOOPBACK: Party = Party {
    name: "loopback",
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
    mac: [0; 6],
};

/// Where node-local DNS listens: an address on every node's `lo` that is no loopback address.
pub const NODE_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// The gateway that every pod sees, as with Calico: nobody's address, answered by proxy ARP.
pub const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The hardware address of the host's end of every pod's interface, as with Calico.
pub const POD_GATEWAY_MAC: [u8; 6] = [0xee; 6];
/// The link-local address that follows from [`POD_GATEWAY_MAC`].
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// The networks that pods have their addresses from.
pub const POD_NETWORKS: [&str; 4] = ["10.78.1.0/24", "10.78.2.0/24", "fd78:1::/64", "fd78:2::/64"];

/// Port numbers.
pub mod port {
    /// etcd's clients.
    pub const ETCD_CLIENT: u16 = 2379;
    /// etcd's peers.
    pub const ETCD_PEER: u16 = 2380;
    /// The apiserver.
    pub const APISERVER: u16 = 6443;
    /// The apiserver's insecure port, and everybody else's favourite port.
    pub const INSECURE: u16 = 8080;
    /// The kubelet.
    pub const KUBELET: u16 = 10250;
    /// The apiserver behind its service address.
    pub const SERVICE: u16 = 443;
    /// An echo service over TCP and UDP on every host and pod, which no component declares.
    pub const ECHO: u16 = 7777;
}

const fn host(name: &'static str, last: u8) -> Party {
    // The IPv6 address reads like the IPv4 one (`10.77.0.11`, `fd77::11`); hence its digits are
    // hexadecimal where the other's are decimal.
    let v4_last = (last >> 4) * 10 + (last & 0xf);
    Party {
        name,
        v4: Ipv4Addr::new(10, 77, 0, v4_last),
        v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last as u16),
        mac: [0x02, 0x77, 0, 0, 0, last],
    }
}

const fn pod(name: &'static str, host: &'static str, net: u8) -> PodPlan {
    PodPlan {
        party: Party {
            name,
            v4: Ipv4Addr::new(10, 78, net, 10),
            v6: Ipv6Addr::new(0xfd78, net as u16, 0, 0, 0, 0, 0, 0x10),
            mac: [0x02, 0x78, 0, 0, net, 0x10],
        },
        host,
    }
}
