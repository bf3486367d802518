//! The lab in the policy's own words: the `Inventory` that a user would write for it.

use crate::cgroup::{self, static_pod_slice};
use crate::plan::{NODES, POD_NETWORKS, Party, SERVICE, port};
use crate::sweep::LabId;

/// The static pods of a control plane.
pub const STATIC_PODS: [&str; 3] = ["apiserver", "controller-manager", "scheduler"];

/// The document.
pub fn inventory_yaml(id: &LabId) -> String {
    let nodes: String = NODES.iter().map(|node| node_yaml(node, id)).collect();
    let pods: String = STATIC_PODS
        .iter()
        .map(|name| component(name, &slice(name)))
        .collect();
    let networks: Vec<_> = POD_NETWORKS
        .iter()
        .map(|network| format!("\"{network}\""))
        .collect();
    format!(
        "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata:
  name: lab
spec:
  nodes:
{nodes}  podNetworks: [{networks}]
  services:
    \"apiserver:secure\": [\"{service4}\", \"{service6}\"]
  components:
{etcd}{kubelet}{pods}{all_pods}",
        networks = networks.join(", "),
        service4 = SERVICE.at(port::SERVICE),
        service6 = SERVICE.at6(port::SERVICE),
        etcd = component("etcd", &format!("/{}/etcd.service", cgroup::SYSTEM)),
        kubelet = component("kubelet", &format!("/{}/kubelet.service", cgroup::SYSTEM)),
        all_pods = component("pods", &format!("/{}", cgroup::PODS)),
    )
}

fn node_yaml(node: &Party, id: &LabId) -> String {
    let roles = if node.name == "cp1" {
        "control-plane, etcd"
    } else {
        "worker"
    };
    format!(
        "    {name}:
      addresses: [\"{v4}\", \"{v6}\"]
      roles: [{roles}]
      uplinks: [eth0]
      podInterfaces: [\"cali*\"]
      cgroupRoot: \"/{lab}/{name}\"
",
        name = node.name,
        v4 = node.v4,
        v6 = node.v6,
        lab = id.lab_name(),
    )
}

fn component(name: &str, cgroup: &str) -> String {
    format!("    {name}:\n      cgroups: [\"{cgroup}\"]\n")
}

/// The slice of the pod and not the container's scope: that one changes at every restart.
fn slice(name: &str) -> String {
    format!("/{}", static_pod_slice(name))
}
