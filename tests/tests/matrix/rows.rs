//! One row for each documented path: a connection that it allows, and the nearest one that it does
//! not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use enforcer_tests::cluster::KNOWN_NAME;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::plan::{
    ADMIN, AGENT, CP1, CP2, DNS, DNS_SERVICE, INFRA, LB, LOOPBACK, METADATA, METRICS, MONITOR,
    NODE_LOCAL_DNS, OUT, POD_A, POD_B, POD_C, Party, PodPlan, SERVICE, VIP, W1, W2,
    WEBHOOK_SERVICE, port,
};
use enforcer_tests::probe::{Dns, Outcome};
use enforcer_tests::{Lab, Workload};

/// The sender.
#[derive(Debug, Clone, Copy)]
pub enum Who {
    /// A static pod on a node, by its cgroup.
    Static(&'static str, &'static str),
    /// A daemon on a node.
    Daemon(&'static str, &'static str),
    /// A pod with hostNetwork on a node.
    Hostnet(&'static str),
    /// A user who is logged in on a node.
    Session(&'static str),
    /// A pod behind its interface.
    Pod(PodPlan),
    /// A machine that is not a node.
    Host(Party),
    /// The apiserver of a node, as another node sees it.
    Apiserver(Party),
}

/// The target.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// A TCP connection.
    Tcp(SocketAddr),
    /// A datagram, which is answered.
    Udp(SocketAddr),
    /// A query to a DNS server over UDP, which asks its upstream.
    Name(SocketAddr),
    /// An echo request.
    Ping(Ipv4Addr),
    /// A packet of another protocol, which is not answered.
    Protocol(Ipv4Addr, u8),
    /// An ICMPv6 message, which is not answered.
    Message(Ipv6Addr, u8),
}

/// A path, what it allows and what it does not.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub path: &'static str,
    pub allowed: (Who, What),
    pub forbidden: (Who, What),
    pub reason: &'static str,
}

use Who::{Daemon, Host, Hostnet, Pod, Session, Static};

const fn tcp(to: Party, port: u16) -> What {
    What::Tcp(to.at(port))
}

const fn udp(to: Party, port: u16) -> What {
    What::Udp(to.at(port))
}

const fn local_dns(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(NODE_LOCAL_DNS), port)
}

const fn row(
    path: &'static str,
    allowed: (Who, What),
    forbidden: (Who, What),
    reason: &'static str,
) -> Row {
    Row {
        path,
        allowed,
        forbidden,
        reason,
    }
}

/// Rows of the profiles themselves and of the options that only add paths. `etcd` is a node whose
/// etcd the apiserver of `cp1` uses, `member` another one.
#[rustfmt::skip]
pub fn rows(etcd: Party, member: Party) -> Vec<Row> {
    let api = Static("cp1", "apiserver");
    let manager = Static("cp1", "controller-manager");
    let clouds = Static("cp1", "cloud-controller-manager");
    let kubelet = Daemon("w1", "kubelet");
    let kubelet_cp = Daemon("cp1", "kubelet");
    let service = tcp(SERVICE, port::SERVICE);
    vec![
        row("kubelet-to-apiserver", (kubelet, tcp(CP1, port::APISERVER)), (Host(OUT), tcp(CP1, port::APISERVER)), "NoPath"),
        row("kube-proxy-to-apiserver", (Daemon("w1", "kube-proxy"), tcp(CP1, port::APISERVER)), (Daemon("w1", "chrony"), tcp(CP1, port::APISERVER)), "WrongProcess"),
        row("pod-to-apiserver", (Pod(POD_B), service), (Pod(POD_B), tcp(CP1, port::KUBELET)), "NoPath"),
        row("controller-manager-to-apiserver", (manager, tcp(CP1, port::APISERVER)), (manager, service), "OtherNode"),
        row("scheduler-to-apiserver", (Static("cp1", "scheduler"), What::Tcp(LOOPBACK.at6(port::APISERVER))), (Static("cp1", "scheduler"), service), "OtherNode"),
        row("cloud-controller-manager-to-apiserver", (clouds, tcp(CP1, port::APISERVER)), (clouds, tcp(CP1, port::KUBELET)), "WrongProcess"),
        row("insecure-port", (manager, tcp(LOOPBACK, port::INSECURE)), (Hostnet("cp1"), tcp(LOOPBACK, port::INSECURE)), "WrongProcess"),
        row("apiserver-loopback", (api, What::Tcp(LOOPBACK.at6(port::APISERVER))), (Daemon("cp1", "chrony"), What::Tcp(LOOPBACK.at6(port::APISERVER))), "WrongProcess"),
        row("admin-to-apiserver", (Host(ADMIN), tcp(CP1, port::APISERVER)), (Host(ADMIN), tcp(CP1, port::KUBELET)), "NoPath"),
        row("client-to-load-balancer", (kubelet, tcp(LB, port::APISERVER)), (manager, tcp(LB, port::APISERVER)), "WrongProcess"),
        row("load-balancer-to-apiserver", (Host(LB), tcp(CP1, port::APISERVER)), (Host(LB), tcp(CP1, port::KUBELET)), "NoPath"),
        row("keepalived-to-apiserver", (Daemon("cp1", "keepalived"), tcp(CP1, port::APISERVER)), (Daemon("cp1", "keepalived"), tcp(CP1, port::KUBELET)), "WrongProcess"),
        row("keepalived-to-load-balancer", (Daemon("cp1", "keepalived"), tcp(LB, port::APISERVER)), (Daemon("cp1", "chrony"), tcp(LB, port::APISERVER)), "WrongProcess"),
        row("vrrp", (Daemon("cp1", "keepalived"), What::Protocol(Ipv4Addr::new(224, 0, 0, 18), 112)), (Host(OUT), What::Protocol(Ipv4Addr::new(224, 0, 0, 18), 112)), "OtherTraffic"),
        row("apiserver-to-etcd", (api, tcp(etcd, port::ETCD_CLIENT)), (kubelet_cp, tcp(etcd, port::ETCD_CLIENT)), "WrongProcess"),
        row("etcd-to-etcd", (Daemon(etcd.name, "etcd"), tcp(member, port::ETCD_PEER)), (Daemon(etcd.name, "kubelet"), tcp(member, port::ETCD_PEER)), "WrongProcess"),
        row("etcd-to-itself", (Daemon(etcd.name, "etcd"), tcp(etcd, port::ETCD_CLIENT)), (Session(etcd.name), tcp(etcd, port::ETCD_CLIENT)), "WrongProcess"),
        row("etcd-metrics", (Daemon(etcd.name, "kubelet"), tcp(LOOPBACK, port::ETCD_METRICS)), (Hostnet(etcd.name), tcp(LOOPBACK, port::ETCD_METRICS)), "WrongProcess"),
        row("apiserver-to-kubelet", (api, tcp(W1, port::KUBELET)), (Pod(POD_A), tcp(W1, port::KUBELET)), "NoPath"),
        row("apiserver-to-webhook", (api, tcp(WEBHOOK_SERVICE, port::SERVICE)), (api, tcp(POD_C.party, port::ECHO)), "OtherTraffic"),
        row("controller-manager-serving", (kubelet_cp, tcp(LOOPBACK, port::CONTROLLER_MANAGER)), (Hostnet("cp1"), tcp(LOOPBACK, port::CONTROLLER_MANAGER)), "WrongProcess"),
        row("scheduler-serving", (kubelet_cp, tcp(LOOPBACK, port::SCHEDULER)), (Session("cp1"), tcp(LOOPBACK, port::SCHEDULER)), "WrongProcess"),
        row("cloud-controller-manager-serving", (kubelet_cp, tcp(LOOPBACK, port::CLOUD_CONTROLLER_MANAGER)), (Hostnet("cp1"), tcp(LOOPBACK, port::CLOUD_CONTROLLER_MANAGER)), "WrongProcess"),
        row("kubelet-local", (kubelet, tcp(LOOPBACK, port::KUBELET_HEALTH)), (Hostnet("w1"), tcp(LOOPBACK, port::KUBELET_HEALTH)), "WrongProcess"),
        row("kubelet-streaming", (kubelet, tcp(LOOPBACK, port::STREAMING)), (Hostnet("w1"), tcp(LOOPBACK, port::STREAMING)), "OtherTraffic"),
        row("kubelet-probes", (kubelet, tcp(POD_B.party, port::INSECURE)), (kubelet, tcp(POD_C.party, port::INSECURE)), "OtherNode"),
        row("kubelet-probes-host-network", (kubelet, tcp(W1, port::ECHO)), (kubelet, tcp(W2, port::ECHO)), "OtherNode"),
        row("kube-proxy-health", (Host(LB), tcp(W1, port::KUBE_PROXY)), (Host(OUT), tcp(W1, port::KUBE_PROXY)), "OtherTraffic"),
        row("kube-proxy-metrics", (kubelet, tcp(LOOPBACK, port::KUBE_PROXY_METRICS)), (Hostnet("w1"), tcp(LOOPBACK, port::KUBE_PROXY_METRICS)), "OtherTraffic"),
        row("admin-to-node", (Host(ADMIN), tcp(W1, port::SSH)), (Host(OUT), tcp(W1, port::SSH)), "OtherTraffic"),
        row("monitoring-to-kubelet", (Pod(MONITOR), tcp(W1, port::KUBELET)), (Pod(POD_B), tcp(W1, port::KUBELET)), "NoPath"),
        row("monitoring-to-apiserver", (Host(METRICS), tcp(CP1, port::APISERVER)), (Host(METRICS), tcp(CP1, port::ECHO)), "OtherTraffic"),
        row("monitoring-to-dns", (Host(METRICS), tcp(DNS.party, port::DNS_METRICS)), (Host(OUT), tcp(DNS.party, port::DNS_METRICS)), "OtherTraffic"),
        row("node-to-node", (Daemon("w2", "tunnel"), What::Protocol(W1.v4, 4)), (Host(OUT), What::Protocol(W1.v4, 4)), "NoPath"),
        row("cni-to-cni", (Daemon("w2", "bird"), tcp(W1, port::BGP)), (Pod(POD_C), tcp(W1, port::BGP)), "OtherTraffic"),
        row("pod-to-pod", (Pod(POD_B), tcp(POD_C.party, port::ECHO)), (Pod(POD_B), tcp(W2, port::ECHO)), "OtherTraffic"),
        row("dns", (Pod(POD_C), What::Name(DNS_SERVICE.at(port::DNS))), (Host(OUT), What::Name(DNS.party.at(port::DNS))), "OtherTraffic"),
        row("dns-upstream", (Pod(DNS), What::Name(INFRA.at(port::DNS))), (Pod(POD_B), What::Name(INFRA.at(port::DNS))), "OtherTraffic"),
        row("node-local-dns", (Pod(POD_C), What::Name(local_dns(port::DNS))), (Pod(POD_C), What::Tcp(local_dns(port::INSECURE))), "OtherTraffic"),
        row("node-local-dns-upstream", (Static("w2", "node-local-dns"), What::Name(DNS_SERVICE.at(port::DNS))), (Static("w2", "node-local-dns"), tcp(CP1, port::APISERVER)), "WrongProcess"),
        row("node-local-dns-health", (Daemon("w2", "kubelet"), What::Tcp(local_dns(port::INSECURE))), (Session("w2"), What::Tcp(local_dns(port::INSECURE))), "OtherTraffic"),
        row("node-loopback", (Daemon("w1", "chrony"), tcp(LOOPBACK, port::STREAMING)), (Daemon("w1", "chrony"), tcp(LOOPBACK, port::KUBELET)), "NoPath"),
        row("dhcp", (Daemon("w1", "dhclient"), udp(INFRA, port::DHCP_SERVER)), (Pod(POD_B), udp(INFRA, port::DHCP_SERVER)), "OtherTraffic"),
        row("dhcp-answer", (Host(OUT), udp(W1, port::DHCP_CLIENT)), (Pod(POD_B), udp(W1, port::DHCP_CLIENT)), "OtherTraffic"),
        row("ntp", (Daemon("w1", "chrony"), udp(INFRA, port::NTP)), (Pod(POD_B), udp(INFRA, port::NTP)), "OtherTraffic"),
        row("node-to-registry", (Daemon("w1", "containerd"), tcp(INFRA, port::SERVICE)), (Pod(POD_B), tcp(INFRA, port::SERVICE)), "OtherTraffic"),
        row("node-to-cloud-metadata", (kubelet, What::Tcp(SocketAddr::new(IpAddr::V4(METADATA), port::HTTP))), (Pod(POD_B), What::Tcp(SocketAddr::new(IpAddr::V4(METADATA), port::HTTP))), "OtherTraffic"),
        row("neighbour-discovery", (Host(OUT), What::Message(W1.v6, 135)), (Host(OUT), What::Message(W1.v6, 139)), "OtherTraffic"),
        row("multicast-membership", (Daemon("w1", "chrony"), What::Protocol(Ipv4Addr::new(224, 0, 0, 22), 2)), (Daemon("w1", "chrony"), What::Protocol(Ipv4Addr::new(224, 0, 0, 22), 3)), "OtherTraffic"),
        row("echo-from-node", (Session("w1"), What::Ping(INFRA.v4)), (Pod(POD_B), What::Ping(INFRA.v4)), "OtherTraffic"),
        row("echo-to-node", (Host(ADMIN), What::Ping(W1.v4)), (Host(OUT), What::Ping(W1.v4)), "OtherTraffic"),
    ]
}

/// With option `konnectivity`: the direct paths are closed.
#[rustfmt::skip]
pub fn konnectivity() -> Vec<Row> {
    let api = Static("cp1", "apiserver");
    let agent = Static("w1", "konnectivity-agent");
    let kubelet = Daemon("cp1", "kubelet");
    vec![
        row("konnectivity-agent-to-server", (agent, tcp(CP1, port::KONNECTIVITY_AGENTS)), (Pod(POD_B), tcp(CP1, port::KONNECTIVITY_AGENTS)), "NoPath"),
        row("apiserver-to-konnectivity-server", (api, tcp(LOOPBACK, port::KONNECTIVITY)), (Hostnet("cp1"), tcp(LOOPBACK, port::KONNECTIVITY)), "WrongProcess"),
        row("konnectivity-agent-to-target", (agent, tcp(W1, port::KUBELET)), (api, tcp(W1, port::KUBELET)), "NoPath"),
        row("konnectivity-agent-to-pods", (agent, tcp(POD_C.party, port::ECHO)), (api, tcp(WEBHOOK_SERVICE, port::SERVICE)), "OtherTraffic"),
        row("konnectivity-server-health", (kubelet, tcp(LOOPBACK, port::KONNECTIVITY_HEALTH)), (Hostnet("cp1"), tcp(LOOPBACK, port::KONNECTIVITY_HEALTH)), "WrongProcess"),
        row("konnectivity-server-admin", (kubelet, tcp(LOOPBACK, port::KONNECTIVITY_ADMIN)), (Session("cp1"), tcp(LOOPBACK, port::KONNECTIVITY_ADMIN)), "WrongProcess"),
        row("konnectivity-agent-health", (Daemon("w2", "kubelet"), tcp(AGENT.party, port::KONNECTIVITY_AGENT_HEALTH)), (Host(OUT), tcp(AGENT.party, port::KONNECTIVITY_AGENT_HEALTH)), "OtherTraffic"),
    ]
}

/// With option `ssh-tunnels`.
#[rustfmt::skip]
pub fn ssh_tunnels() -> Vec<Row> {
    let api = Static("cp1", "apiserver");
    let ssh = Daemon("w1", "ssh");
    vec![
        row("apiserver-ssh-tunnel", (api, tcp(W1, port::SSH)), (Hostnet("cp1"), tcp(W1, port::SSH)), "OtherTraffic"),
        row("ssh-tunnel-to-target", (ssh, tcp(W1, port::KUBELET)), (ssh, tcp(W2, port::KUBELET)), "OtherNode"),
        row("ssh-tunnel-to-pods", (ssh, tcp(POD_C.party, port::ECHO)), (api, tcp(WEBHOOK_SERVICE, port::SERVICE)), "OtherTraffic"),
    ]
}

/// Paths that are off by default and affect no others.
#[rustfmt::skip]
pub fn narrow() -> Vec<Row> {
    let api = Static("cp1", "apiserver");
    vec![
        row("kubelet-bootstrap", (Host(OUT), tcp(CP1, port::APISERVER)), (Host(OUT), tcp(CP1, port::KUBELET)), "NoPath"),
        row("kubelet-bootstrap-load-balancer", (Host(OUT), tcp(VIP, port::APISERVER)), (Host(OUT), tcp(VIP, port::KUBELET)), "OtherTraffic"),
        row("node-join", (Host(OUT), tcp(CP1, port::JOIN)), (Pod(POD_A), tcp(CP1, port::JOIN)), "OtherTraffic"),
        row("apiserver-to-etcd-plain", (api, tcp(LOOPBACK, port::HTTP)), (Hostnet("cp1"), tcp(LOOPBACK, port::HTTP)), "WrongProcess"),
        row("etcd-to-apiserver", (Daemon("cp1", "etcd"), tcp(CP1, port::APISERVER)), (Daemon("cp1", "etcd"), tcp(CP1, port::KUBELET)), "WrongProcess"),
        row("apiserver-to-webhook-url", (api, tcp(OUT, port::WEBHOOK)), (api, tcp(OUT, port::ECHO)), "OtherTraffic"),
        row("apiserver-to-identity-provider", (api, tcp(OUT, port::SERVICE)), (Daemon("cp1", "kubelet"), tcp(OUT, port::SERVICE)), "OtherTraffic"),
        row("metrics-server-to-kubelet", (Pod(MONITOR), tcp(W1, port::KUBELET)), (Pod(POD_B), tcp(W1, port::KUBELET)), "NoPath"),
        row("kubeadm-to-etcd", (Session("cp1"), tcp(CP2, port::ETCD_CLIENT)), (Hostnet("cp1"), tcp(CP2, port::ETCD_CLIENT)), "WrongProcess"),
        row("kubeadm-to-controller-manager", (Session("cp1"), tcp(LOOPBACK, port::CONTROLLER_MANAGER)), (Hostnet("cp1"), tcp(LOOPBACK, port::CONTROLLER_MANAGER)), "WrongProcess"),
        row("kubeadm-to-scheduler", (Session("cp1"), tcp(LOOPBACK, port::SCHEDULER)), (Hostnet("cp1"), tcp(LOOPBACK, port::SCHEDULER)), "WrongProcess"),
        row("controllers-to-apiserver", (Static("cp1", "controller-manager"), tcp(CP2, port::APISERVER)), (Static("cp1", "controller-manager"), tcp(CP2, port::KUBELET)), "WrongProcess"),
        row("controllers-to-load-balancer", (Static("cp1", "scheduler"), tcp(LB, port::APISERVER)), (Daemon("cp1", "etcd"), tcp(LB, port::APISERVER)), "OtherTraffic"),
        row("node-ports", (Host(OUT), tcp(W1, port::NODE_PORT)), (Host(OUT), tcp(W1, port::ECHO)), "OtherTraffic"),
        row("service-forwarding", (Daemon("w2", "chrony"), tcp(POD_B.party, port::ECHO)), (Host(OUT), tcp(POD_B.party, port::ECHO)), "OtherTraffic"),
    ]
}

/// Paths that are off by default and wide.
#[rustfmt::skip]
pub fn wide() -> Vec<Row> {
    let api = Static("cp1", "apiserver");
    vec![
        row("apiserver-proxy", (api, tcp(POD_C.party, port::ECHO)), (Daemon("cp1", "chrony"), tcp(POD_C.party, port::ECHO)), "OtherTraffic"),
        row("apiserver-proxy-to-nodes", (api, tcp(W1, port::ECHO)), (Daemon("cp1", "kubelet"), tcp(W1, port::ECHO)), "OtherNode"),
        row("node-to-key-service", (Daemon("w1", "kms"), tcp(OUT, port::SERVICE)), (Pod(POD_B), tcp(INFRA, port::SERVICE)), "OtherTraffic"),
        row("pod-to-outside", (Pod(POD_B), tcp(OUT, port::ECHO)), (Pod(POD_B), What::Tcp(SocketAddr::new(IpAddr::V4(METADATA), port::HTTP))), "OtherTraffic"),
        row("node-to-outside", (Daemon("w1", "chrony"), tcp(OUT, port::ECHO)), (Host(OUT), tcp(W1, port::ECHO)), "OtherTraffic"),
    ]
}

impl Who {
    /// The sender's workload in the lab.
    pub fn workload(self, lab: &Lab) -> Workload {
        match self {
            Self::Static(node, name) => lab.static_pod(node, name),
            Self::Daemon(node, name) => lab.daemon(node, name),
            Self::Hostnet(node) => lab.hostnet(node),
            Self::Session(node) => lab.session(node),
            Self::Pod(pod) => lab.pod(pod.party.name).clone(),
            Self::Host(host) => lab.login(host.name),
            Self::Apiserver(node) => lab.static_pod(node.name, "apiserver"),
        }
    }

    /// The sender as an argument of `explain --from`.
    pub fn from(self, lab: &Lab, v6: bool) -> String {
        let address = |party: &Party| match v6 {
            true => party.v6.to_string(),
            false => party.v4.to_string(),
        };
        match self {
            Self::Pod(pod) => format!("pod:{}", address(&pod.party)),
            Self::Host(host) | Self::Apiserver(host) => format!("address:{}", address(&host)),
            Self::Static(node, _)
            | Self::Daemon(node, _)
            | Self::Hostnet(node)
            | Self::Session(node) => {
                let root = lab.host(node).cgroup_root().to_owned();
                let workload = self.workload(lab);
                let below = workload.cgroup().directory().strip_prefix(root);
                format!(
                    "cgroup:/{}",
                    below.map(|p| p.display().to_string()).unwrap_or_default()
                )
            }
        }
    }

    /// The sender in the words of the documentation.
    pub fn words(self) -> String {
        match self {
            Self::Static(node, name) | Self::Daemon(node, name) => format!("{name} on {node}"),
            Self::Hostnet(node) => format!("hostNetwork pod on {node}"),
            Self::Session(node) => format!("a person on {node}"),
            Self::Pod(pod) => format!("pod {} on {}", pod.party.name, pod.host),
            Self::Host(host) => format!("host {}", host.name),
            Self::Apiserver(node) => format!("apiserver of {}", node.name),
        }
    }

    /// The node whose agent judges it first.
    pub fn judge(self, what: What) -> &'static str {
        match self {
            Self::Static(node, _)
            | Self::Daemon(node, _)
            | Self::Hostnet(node)
            | Self::Session(node) => node,
            Self::Pod(pod) => pod.host,
            Self::Host(_) | Self::Apiserver(_) => what.node(),
        }
    }
}

impl What {
    /// The address.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Tcp(at) | Self::Udp(at) | Self::Name(at) => at.ip(),
            Self::Ping(ip) | Self::Protocol(ip, _) => ip.into(),
            Self::Message(ip, _) => ip.into(),
        }
    }

    /// What an event reports as its port.
    pub fn number(self) -> u16 {
        match self {
            Self::Tcp(at) | Self::Udp(at) | Self::Name(at) => at.port(),
            Self::Ping(_) => 8,
            Self::Protocol(_, number) | Self::Message(_, number) => number.into(),
        }
    }

    /// The node that it reaches from outside.
    fn node(self) -> &'static str {
        let ip = self.ip();
        let all = enforcer_tests::plan::Topology::CLUSTER;
        let at = |party: &Party| party.like(ip) == ip;
        if let Some(node) = all.nodes.iter().find(|node| at(node)) {
            return node.name;
        }
        let pod = all.pods.iter().find(|pod| at(&pod.party));
        pod.map_or("cp1", |pod| pod.host)
    }

    /// The target as an argument of `explain --to`.
    pub fn to(self) -> String {
        match self {
            Self::Tcp(at) => format!("{at}/tcp"),
            Self::Udp(at) | Self::Name(at) => format!("{at}/udp"),
            Self::Ping(ip) => format!("{ip} echo"),
            Self::Protocol(ip, number) => format!("{ip} {number}/ip"),
            Self::Message(ip, number) => format!("{ip} {number}/icmpv6"),
        }
    }

    /// Attempts it. `None` if there is no answer to expect.
    pub fn attempt(self, from: &Workload) -> anyhow::Result<Option<Outcome>> {
        let own = |ip: IpAddr| SocketAddr::new(from.party().like(ip), 0);
        let outcome = match self {
            Self::Tcp(at) => from.connect(at)?,
            Self::Udp(at) => from.udp(at)?,
            Self::Name(at) => match from.dns(Dns::name(at, KNOWN_NAME))? {
                // A server that answers that it does not know has answered.
                Outcome::Other => Outcome::Answered,
                outcome => outcome,
            },
            Self::Ping(ip) => from.ping(ip.into())?,
            Self::Protocol(ip, number) => {
                let packet = Forged {
                    source: own(ip.into()),
                    destination: SocketAddr::new(ip.into(), 0),
                    content: Content::Protocol(number),
                };
                if ip.is_multicast() {
                    let [_, _, high, low] = ip.octets();
                    from.forge_to([0x01, 0, 0x5e, 0, high & 0x7f, low], &packet)?;
                } else {
                    from.raw(&packet)?;
                }
                return Ok(None);
            }
            Self::Message(ip, number) => {
                from.raw(&Forged {
                    source: own(ip.into()),
                    destination: SocketAddr::new(ip.into(), 0),
                    content: Content::Message(number),
                })?;
                return Ok(None);
            }
        };
        Ok(Some(outcome))
    }
}
