//! The lab in the policy language: the `Inventory` that a user would write for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::cgroup::{self, static_pod_slice};
use crate::plan::{
    self, DNS_SERVICE, POD_NETWORKS, Party, SERVICE, SERVICE_NETWORKS, Topology, VXLAN_DEVICE,
    pod_net, port, tunnel_end,
};
use crate::sweep::LabId;

/// The static pods of a control plane.
pub const STATIC_PODS: [&str; 3] = ["apiserver", "controller-manager", "scheduler"];

/// An inventory, to be written as it is or changed first.
#[derive(Debug, Clone)]
pub struct Inventory {
    topology: Topology,
    lab: String,
    roles: BTreeMap<&'static str, &'static str>,
    left_out: Vec<&'static str>,
    components: Vec<(&'static str, String)>,
}

impl Inventory {
    /// A complete and correct description of a lab.
    pub fn of(topology: Topology, id: &LabId) -> Self {
        let mut components: Vec<(&'static str, String)> =
            vec![("etcd", daemon("etcd")), ("kubelet", daemon("kubelet"))];
        for name in STATIC_PODS {
            components.push((name, pod_slice(name)));
        }
        components.push(("pods", format!("cgroups: [\"/{}\"]", cgroup::PODS)));
        if topology != Topology::SMALL {
            components.extend(cluster_components());
        }
        let roles = topology.nodes.iter().map(|node| {
            let control_plane = topology.control_plane.contains(node);
            let roles = if control_plane {
                "control-plane, etcd"
            } else {
                "worker"
            };
            (node.name, roles)
        });
        Self {
            topology,
            lab: id.lab_name(),
            roles: roles.collect(),
            left_out: Vec::new(),
            components,
        }
    }

    /// A node with other roles; without roles, the node is left out.
    pub fn with_roles(mut self, node: &'static str, roles: &'static str) -> Self {
        if roles.is_empty() {
            self.roles.remove(node);
        } else {
            self.roles.insert(node, roles);
        }
        self
    }

    /// Leaves this component out.
    pub fn without(mut self, component: &'static str) -> Self {
        self.left_out.push(component);
        self
    }

    /// A component as written here, instead of as the lab has it.
    pub fn with(mut self, component: &'static str, fields: &str) -> Self {
        self.components.retain(|(name, _)| *name != component);
        self.components.push((component, fields.to_owned()));
        self
    }

    /// The document.
    pub fn yaml(&self) -> String {
        let nodes: String = self
            .topology
            .nodes
            .iter()
            .filter_map(|node| Some(self.node_yaml(node, self.roles.get(node.name)?)))
            .collect();
        let mut text = format!(
            "apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata:\n  name: lab\nspec:\n  nodes:\n{nodes}"
        );
        self.networks(&mut text);
        text.push_str("  components:\n");
        for (name, fields) in &self.components {
            if !self.left_out.contains(name) {
                line(&mut text, format_args!("    {name}: {{ {fields} }}"));
            }
        }
        text
    }

    fn networks(&self, text: &mut String) {
        let quoted = |networks: &[String]| {
            let quoted: Vec<String> = networks.iter().map(|net| format!("\"{net}\"")).collect();
            quoted.join(", ")
        };
        let small = self.topology == Topology::SMALL;
        let pods: Vec<String> = if small {
            POD_NETWORKS.map(str::to_owned).to_vec()
        } else {
            self.topology.nodes.iter().flat_map(pod_networks).collect()
        };
        line(text, format_args!("  podNetworks: [{}]", quoted(&pods)));
        if !small {
            let services = SERVICE_NETWORKS.map(str::to_owned);
            line(
                text,
                format_args!("  serviceNetworks: [{}]", quoted(&services)),
            );
        }
        let mut services = vec![("apiserver:secure", SERVICE, port::SERVICE)];
        if !small && !self.left_out.contains(&"dns") {
            services.push(("dns:dns", DNS_SERVICE, port::DNS));
        }
        text.push_str("  services:\n");
        for (endpoint, service, port) in services {
            let [v4, v6] = service.both(port);
            line(
                text,
                format_args!("    \"{endpoint}\": [\"{v4}\", \"{v6}\"]"),
            );
        }
    }

    fn node_yaml(&self, node: &Party, roles: &str) -> String {
        let mut addresses = vec![node.v4.to_string(), node.v6.to_string()];
        let mut uplinks = "eth0".to_owned();
        if self.topology.vxlan {
            let end = tunnel_end(node);
            addresses.extend([end.v4.to_string(), end.v6.to_string()]);
            uplinks = format!("eth0, {VXLAN_DEVICE}");
        }
        let mut text = format!(
            "    {name}:\n      addresses: [\"{addresses}\"]\n      roles: [{roles}]\n      uplinks: [{uplinks}]\n      \
             podInterfaces: [\"cali*\"]\n      cgroupRoot: \"/{lab}/{name}\"\n",
            addresses = addresses.join("\", \""),
            name = node.name,
            lab = self.lab,
        );
        if self.topology != Topology::SMALL {
            let [v4, v6] = pod_networks(node);
            line(
                &mut text,
                format_args!("      podNetworks: [\"{v4}\", \"{v6}\"]"),
            );
        }
        text
    }
}

/// The networks of a node's pods.
fn pod_networks(node: &Party) -> [String; 2] {
    let net = pod_net(node.name);
    [format!("10.78.{net}.0/24"), format!("fd78:{net}::/64")]
}

fn cluster_components() -> Vec<(&'static str, String)> {
    let both = |parties: &[Party]| {
        let texts: Vec<String> = parties
            .iter()
            .flat_map(|party| [format!("\"{}\"", party.v4), format!("\"{}\"", party.v6)])
            .collect();
        format!("addresses: [{}]", texts.join(", "))
    };
    vec![
        ("ssh-server", daemon("ssh")),
        ("kube-proxy", daemon("kube-proxy")),
        ("container-runtime", daemon("containerd")),
        (
            "cloud-controller-manager",
            pod_slice("cloud-controller-manager"),
        ),
        ("konnectivity-server", pod_slice("konnectivity-server")),
        (
            "konnectivity-agent",
            format!(
                "{}, {}",
                pod_slice("konnectivity-agent"),
                both(&[plan::AGENT.party])
            ),
        ),
        ("node-local-dns", pod_slice("node-local-dns")),
        ("load-balancer", both(&[plan::LB, plan::VIP])),
        ("keepalived", daemon("keepalived")),
        ("dns", both(&[plan::DNS.party])),
        ("monitoring", both(&[plan::MONITOR.party, plan::METRICS])),
        ("metrics-server", both(&[plan::MONITOR.party])),
        ("admin", both(&[plan::ADMIN])),
        ("session", "cgroups: [/user.slice]".to_owned()),
        ("resolver", both(&[plan::INFRA])),
        ("ntp-server", both(&[plan::INFRA])),
        ("registry", both(&[plan::INFRA])),
    ]
}

fn daemon(name: &str) -> String {
    format!("cgroups: [\"/{}/{name}.service\"]", cgroup::SYSTEM)
}

/// The slice of the pod and not the container's scope, which changes at every restart.
fn pod_slice(name: &str) -> String {
    format!("cgroups: [\"/{}\"]", static_pod_slice(name))
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what}");
}
