//! What would allow a denied connection, and what its absence breaks: for whoever wonders whether a
//! denial is an attack or a path that was forgotten.

use std::collections::HashSet;

use enforcer_common::packet::Space;
use serde::{Deserialize, Serialize};

use crate::policy::{
    Policy,
    catalogue::Catalogue,
    model::{Path, Port, PortMatch},
};

/// A documented path that would allow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// Its name.
    pub path: String,
    /// What people see without it.
    pub symptom: String,
    /// What to write where.
    pub remedy: String,
}

impl Advice {
    /// One line for people.
    pub fn sentence(&self) -> String {
        format!(
            "path {} would allow it; without it {}. {}",
            self.path, self.symptom, self.remedy
        )
    }
}

/// What was denied, in names.
#[derive(Debug, Clone, Copy)]
pub struct Denied<'a> {
    /// Components that the sender counts as.
    pub senders: &'a [String],
    /// Endpoints at the destination, as `component:port`.
    pub endpoints: &'a [String],
    /// The kind of number, and the number.
    pub number: (Space, u16),
}

/// At most two documented paths, the narrowest first.
pub fn advise(policy: &Policy, catalogue: &Catalogue, denied: &Denied<'_>) -> Vec<Advice> {
    let on: HashSet<&str> = policy.paths.iter().map(|path| path.name.as_str()).collect();
    let mut found: Vec<(u32, bool, &Path, String)> = Vec::new();
    for path in catalogue.paths() {
        let Some(port) = port_of(policy, path) else {
            continue;
        };
        let remedy = if on.contains(path.name.as_str()) {
            missing_place(policy, path, port, denied)
        } else if is_from(path, denied) && leads_there(path, denied) {
            Some(switch(policy, catalogue, path))
        } else {
            None
        };
        if let Some(remedy) = remedy {
            // What the policy's own words took out comes before what nobody asked for.
            found.push((
                port.width(),
                !was_there(policy, catalogue, path),
                path,
                remedy,
            ));
        }
    }
    found.sort_by_key(|(width, new, ..)| (*width, *new));
    found
        .into_iter()
        .take(2)
        .map(|(.., path, remedy)| Advice {
            path: path.name.clone(),
            symptom: path.symptom.clone(),
            remedy,
        })
        .collect()
}

/// Whether the profile has the path by itself.
fn was_there(policy: &Policy, catalogue: &Catalogue, path: &Path) -> bool {
    let profile = policy.profile.as_deref().and_then(|p| catalogue.profile(p));
    profile.is_some_and(|profile| profile.paths.contains(&path.name))
}

fn port_of<'a>(policy: &'a Policy, path: &Path) -> Option<&'a Port> {
    policy.component(&path.to_component)?.port(&path.to_port)
}

fn is_from(path: &Path, denied: &Denied<'_>) -> bool {
    path.from.iter().any(|from| denied.senders.contains(from))
}

fn leads_there(path: &Path, denied: &Denied<'_>) -> bool {
    let end = format!("{}:{}", path.to_component, path.to_port);
    denied.endpoints.contains(&end)
}

/// A path that is on leads to this number, or comes from there, but nobody knows where its other end
/// is.
fn missing_place(policy: &Policy, path: &Path, port: &Port, denied: &Denied<'_>) -> Option<String> {
    let nowhere = |name: &str| {
        let component = policy.component(name)?;
        let is_placed = !component.addresses.is_empty()
            || component.outside
            || component.in_pod_networks
            || !component.cgroups.is_empty()
            || !component.runs_on.is_empty()
            || policy.services.iter().any(|s| s.component == name);
        (!is_placed).then(|| name.to_owned())
    };
    let missing = if is_from(path, denied) && covers(port, denied.number) {
        nowhere(&path.to_component)
    } else if leads_there(path, denied) {
        path.from.iter().find_map(|from| nowhere(from))
    } else {
        None
    };
    missing.map(|name| {
        format!(
            "It is on, but component `{name}` is nowhere: give it `addresses` or `cgroups` in the Inventory."
        )
    })
}

/// How a path is turned on, in one line of the policy.
fn switch(policy: &Policy, catalogue: &Catalogue, path: &Path) -> String {
    let name = &path.name;
    if policy.disabled.contains(name) {
        return format!("It is off by `disable: [{name}]`.");
    }
    let chosen = |option: &&str| policy.options.iter().any(|known| known == option);
    let options = catalogue.options().iter();
    let closes = options
        .clone()
        .filter(|option| option.disable.contains(name))
        .map(|option| option.name.as_str())
        .find(chosen);
    if let Some(option) = closes {
        return format!("Option {option} closes it; `enable: [{name}]` opens it all the same.");
    }
    let has = |option: &str| {
        let profile = policy.profile.as_deref().and_then(|p| catalogue.profile(p));
        profile.is_some_and(|p| p.options.iter().any(|known| known.name == option))
    };
    let opens = options
        .filter(|option| option.enable.contains(name) && has(&option.name))
        .map(|option| option.name.as_str())
        .next();
    match opens {
        Some(option) => format!("It is off: `options: [{option}]`, or `enable: [{name}]` alone."),
        None => format!("It is off: `enable: [{name}]`."),
    }
}

fn covers(port: &Port, (space, number): (Space, u16)) -> bool {
    port.matches.iter().any(|found| match (found, space) {
        (PortMatch::Tcp(first, last), Space::Tcp) | (PortMatch::Udp(first, last), Space::Udp) => {
            (*first..=*last).contains(&number)
        }
        (PortMatch::Icmp(first, last), Space::Icmp)
        | (PortMatch::Icmp6(first, last), Space::Icmp6) => {
            (u16::from(*first)..=u16::from(*last)).contains(&number)
        }
        (PortMatch::Protocol(known), Space::Protocol) => u16::from(*known) == number,
        (PortMatch::Arp, Space::Arp) => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use enforcer_common::tables::Tables as _;

    use super::*;
    use crate::{
        compile::{PathNumbers, Simulator, compile},
        policy::{SourceText, from_texts},
    };

    const POLICY: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11], roles: [control-plane, etcd] }
    w1: { addresses: [10.0.0.21], roles: [worker] }
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/16]
  services:
    apiserver:secure: ['10.96.0.1:443']
  components:
    pods: { cgroups: [/kubepods.slice] }
    konnectivity-agent: { cgroups: [/agent] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: test }
spec:
  profile: control-plane-stacked-etcd
  options: []
  disable: []
  mode: Enforce
  otherTraffic: Drop
";

    /// Advice for a packet that arrives on cp1 from an address.
    fn advice(text: &str, from: &str, to: &str, number: (Space, u16)) -> Vec<Advice> {
        let source = SourceText {
            name: "p.yaml".to_owned(),
            text: text.to_owned(),
        };
        let policy = from_texts(&[source]).unwrap_or_else(|errors| panic!("{errors}"));
        let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
        let tables = Simulator::new(&compiled);
        let place = |text: &str| {
            let address: std::net::IpAddr = text.parse().unwrap();
            tables.place(&address.into()).party
        };
        let (space, port) = number;
        let target = tables
            .class(space, port)
            .and_then(|class| tables.target(&compiled.settings, place(to), class))
            .unwrap();
        advise(
            &policy,
            Catalogue::builtin(),
            &Denied {
                senders: &compiled.party_names[usize::from(place(from))],
                endpoints: &compiled.target_endpoints[usize::from(target)],
                number,
            },
        )
    }

    /// What is commonly missed, told by what it breaks.
    #[test]
    fn a_denial_says_what_it_breaks() {
        let (tcp, udp, ip) = (Space::Tcp, Space::Udp, Space::Protocol);
        for (line, from, to, number, path, symptom) in [
            (
                "",
                "203.0.113.9",
                "10.0.0.11",
                (tcp, 6443),
                "kubelet-bootstrap",
                "kubeadm join hangs",
            ),
            (
                "",
                "203.0.113.9",
                "10.0.0.11",
                (tcp, 9345),
                "node-join",
                "join of a node hangs",
            ),
            (
                "disable: [apiserver-to-kubelet]",
                "10.0.0.11",
                "10.0.0.21",
                (tcp, 10250),
                "apiserver-to-kubelet",
                "logs and exec fail",
            ),
            (
                "disable: [etcd-to-etcd]",
                "10.0.0.11",
                "10.0.0.11",
                (tcp, 2380),
                "etcd-to-etcd",
                "can not join",
            ),
            (
                "disable: [apiserver-to-webhook]",
                "10.0.0.11",
                "10.244.0.9",
                (tcp, 8443),
                "apiserver-to-webhook",
                "context deadline exceeded",
            ),
            (
                "options: [konnectivity]",
                "10.0.0.11",
                "10.0.0.21",
                (tcp, 10250),
                "apiserver-to-kubelet",
                "logs and exec fail",
            ),
            (
                "disable: [kubelet-probes]",
                "10.0.0.21",
                "10.244.0.9",
                (tcp, 9),
                "kubelet-probes",
                "never become ready",
            ),
            (
                "disable: [node-to-node]",
                "10.0.0.21",
                "10.0.0.11",
                (udp, 4789),
                "node-to-node",
                "pods on different nodes",
            ),
            (
                "disable: [node-to-node]",
                "10.0.0.21",
                "10.0.0.11",
                (ip, 4),
                "node-to-node",
                "pods on different nodes",
            ),
            (
                "disable: [cni-to-cni]",
                "10.0.0.21",
                "10.0.0.11",
                (ip, 50),
                "cni-to-cni",
                "nothing gets through",
            ),
            (
                "",
                "10.0.0.21",
                "224.0.0.18",
                (ip, 112),
                "vrrp",
                "two nodes claim",
            ),
            (
                "disable: [dhcp-answer]",
                "203.0.113.9",
                "10.0.0.11",
                (udp, 68),
                "dhcp-answer",
                "loses its address",
            ),
            (
                "disable: [ntp]",
                "10.0.0.11",
                "203.0.113.9",
                (udp, 123),
                "ntp",
                "become invalid",
            ),
            (
                "disable: [node-to-registry]",
                "10.0.0.11",
                "203.0.113.9",
                (tcp, 5000),
                "node-to-registry",
                "ImagePullBackOff",
            ),
            (
                "disable: [node-to-cloud-metadata]",
                "10.0.0.11",
                "169.254.169.254",
                (tcp, 80),
                "node-to-cloud-metadata",
                "volumes",
            ),
            (
                "",
                "203.0.113.9",
                "10.0.0.11",
                (udp, 30_080),
                "node-ports",
                "not reachable from outside",
            ),
            (
                "disable: [arp]",
                "203.0.113.9",
                "10.0.0.11",
                (Space::Arp, 0),
                "arp",
                "silent on IPv4",
            ),
            (
                "disable: [neighbour-discovery]",
                "203.0.113.9",
                "10.0.0.11",
                (Space::Icmp6, 135),
                "neighbour-discovery",
                "silent on IPv6",
            ),
            (
                "",
                "10.244.0.5",
                "203.0.113.9",
                (tcp, 443),
                "pod-to-outside",
                "nothing outside",
            ),
            // DNS that nobody placed.
            (
                "",
                "10.244.0.5",
                "10.9.9.9",
                (tcp, 53),
                "dns",
                "long answers fail",
            ),
        ] {
            let field = line.split(':').next().unwrap_or_default();
            let text = match field {
                "" => POLICY.to_owned(),
                field => POLICY.replace(&format!("{field}: []"), line),
            };
            let found = advice(&text, from, to, number);
            let named = found.iter().find(|advice| advice.path == path);
            let Some(named) = named else {
                panic!("{from} to {to} {number:?}: no {path}, but {found:?}");
            };
            assert!(named.symptom.contains(symptom), "{named:?}");
        }
    }

    #[test]
    fn the_remedy_is_one_line() {
        let closed = POLICY.replace("options: []", "options: [konnectivity]");
        let found = advice(&closed, "10.0.0.11", "10.0.0.21", (Space::Tcp, 10250));
        assert!(
            found[0].remedy.contains("Option konnectivity closes it"),
            "{found:?}"
        );
        let off = POLICY.replace("disable: []", "disable: [ntp]");
        let found = advice(&off, "10.0.0.11", "203.0.113.9", (Space::Udp, 123));
        assert!(
            found[0].remedy.contains("off by `disable: [ntp]`"),
            "{found:?}"
        );
        let found = advice(POLICY, "203.0.113.9", "10.0.0.11", (Space::Tcp, 6443));
        let join = found
            .iter()
            .find(|advice| advice.path == "kubelet-bootstrap");
        let remedy = join.map_or("", |advice| &advice.remedy);
        assert!(remedy.contains("`options: [joining-nodes]`"), "{found:?}");
        let found = advice(POLICY, "203.0.113.9", "10.0.0.11", (Space::Tcp, 22));
        assert!(found[0].remedy.contains("`admin` is nowhere"), "{found:?}");
    }

    /// Nobody is told how to open the core of a cluster.
    #[test]
    fn what_must_stay_closed_gets_no_advice() {
        for from in ["10.244.0.5", "203.0.113.9"] {
            for port in [
                2379, 2380, 2381, 8080, 10250, 10255, 4194, 10257, 10259, 10251, 10252,
            ] {
                let found = advice(POLICY, from, "10.0.0.11", (Space::Tcp, port));
                assert_eq!(found, [], "{from} to {port}");
            }
        }
    }
}
