//! Which node this is, and which role each of its interfaces has.

use std::{collections::BTreeSet, fs, net::IpAddr};

use enforcer_common::tables::Role;
use enforcer_policy::{
    glob::{Glob, is_rather_uplink},
    model::{Node, Policy},
};
use glob::Pattern;
use nix::ifaddrs::getifaddrs;

use super::AgentError;
use crate::kernel::Link;

/// The node given by name, or else the one with this machine's addresses or host name.
pub fn choose(policy: &Policy, named: Option<&str>) -> Result<String, AgentError> {
    if let Some(name) = named {
        // The compiler reports an unknown one, and lists those of the inventory.
        return Ok(name.to_owned());
    }
    let own = own_addresses();
    let here = |node: &&Node| node.addresses.iter().any(|address| own.contains(address));
    let mut found: Vec<&Node> = policy.nodes.iter().filter(here).collect();
    if found.is_empty() {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        let short = host.split('.').next().unwrap_or_default();
        found = policy
            .nodes
            .iter()
            .filter(|n| n.name == host || n.name == short)
            .collect();
    }
    match found.as_slice() {
        [node] => Ok(node.name.clone()),
        [] => Err(unclear(
            policy,
            "no node has an address or the name of this machine".to_owned(),
        )),
        several => {
            let names: Vec<_> = several.iter().map(|node| node.name.as_str()).collect();
            Err(unclear(
                policy,
                format!("{} have addresses of this machine", names.join(" and ")),
            ))
        }
    }
}

fn unclear(policy: &Policy, why: String) -> AgentError {
    AgentError::Node {
        why,
        nodes: policy.nodes.iter().map(|node| node.name.clone()).collect(),
    }
}

/// The addresses of this machine.
pub fn own_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return BTreeSet::new();
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    };
    interfaces.filter_map(address).collect()
}

/// Which role an interface has, by its name.
#[derive(Debug, Clone)]
pub struct Selectors {
    uplinks: Vec<Pattern>,
    pods: Vec<Pattern>,
}

impl Selectors {
    /// From names and globs.
    pub fn new(uplinks: &[String], pods: &[String]) -> Result<Self, AgentError> {
        Ok(Self {
            uplinks: patterns(uplinks)?,
            pods: patterns(pods)?,
        })
    }

    /// The role of each interface. An undeclared interface gets programs as well: they deny what it
    /// sends to guarded endpoints.
    pub fn roles(&self, links: &[Link]) -> Vec<(Link, Role)> {
        let pods: BTreeSet<u32> = links
            .iter()
            .filter(|link| self.role(link) == Role::Pod)
            .filter_map(|link| link.controller)
            .collect();
        let mut roles = Vec::new();
        for link in links {
            match self.role(link) {
                // To its sockets, the host presents a pod's packets as coming from the bridge.
                Role::Undeclared if pods.contains(&link.index) => {
                    roles.push((
                        Link {
                            controls_pods: true,
                            ..link.clone()
                        },
                        Role::Pod,
                    ));
                }
                role => roles.push((link.clone(), role)),
            }
        }
        roles
    }

    /// The role by name alone. If both kinds match, the narrower pattern wins, and a tie is a
    /// pod's.
    fn role(&self, link: &Link) -> Role {
        if link.is_loopback() {
            return Role::Loopback;
        }
        let globs = |patterns: &[Pattern]| -> Vec<Glob> {
            let matching = patterns.iter().filter(|p| p.matches(&link.name));
            matching.map(|p| Glob::or_literal(p.as_str())).collect()
        };
        let (uplinks, pods) = (globs(&self.uplinks), globs(&self.pods));
        let wins = |uplink: &Glob| pods.iter().all(|pod| is_rather_uplink(uplink, pod));
        if uplinks.iter().any(wins) {
            Role::Uplink
        } else if !pods.is_empty() {
            Role::Pod
        } else {
            Role::Undeclared
        }
    }

    /// Fails if a named uplink does not exist: the node would be unprotected on that side.
    pub fn check(&self, links: &[Link]) -> Result<(), AgentError> {
        let missing = |p: &&Pattern| !is_glob(p) && !links.iter().any(|l| l.name == p.as_str());
        match self.uplinks.iter().find(missing) {
            None => Ok(()),
            Some(pattern) => Err(AgentError::NoInterface {
                name: pattern.as_str().to_owned(),
                there: links.iter().map(|link| link.name.clone()).collect(),
            }),
        }
    }

    /// Uplinks that are declared by name, whether they exist or not.
    pub fn named_uplinks(&self) -> impl Iterator<Item = String> {
        let named = self.uplinks.iter().filter(|pattern| !is_glob(pattern));
        named.map(|pattern| pattern.as_str().to_owned())
    }

    /// Selectors that match no interface.
    pub fn notes(&self, links: &[Link]) -> Vec<String> {
        let inert = |p: &&Pattern| !links.iter().any(|link| p.matches(&link.name));
        let of = |kind: &str, patterns: &[Pattern]| -> Vec<String> {
            let inert = patterns.iter().filter(inert);
            inert
                .map(|p| format!("{kind} `{p}` matches no interface"))
                .collect()
        };
        let mut notes = of("uplink", &self.uplinks);
        notes.extend(of("pod interface", &self.pods));
        if self.uplinks.is_empty() {
            notes.push("no uplinks are declared: packets from other hosts are judged only where a socket of this node receives them".to_owned());
        }
        notes
    }
}

fn is_glob(pattern: &Pattern) -> bool {
    pattern.as_str().contains(['*', '?', '['])
}

fn patterns(texts: &[String]) -> Result<Vec<Pattern>, AgentError> {
    let pattern = |text: &String| {
        Pattern::new(text).map_err(|error| AgentError::Pattern {
            pattern: text.clone(),
            why: error.to_string(),
        })
    };
    texts.iter().map(pattern).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, controller: Option<u32>) -> Link {
        let layer = if name == "lo" {
            libc::ARPHRD_LOOPBACK
        } else {
            libc::ARPHRD_ETHER
        };
        Link {
            index,
            name: name.to_owned(),
            layer,
            controller,
            is_port: controller.is_some(),
            controls_pods: false,
            peer_namespace: None,
        }
    }

    #[test]
    fn interfaces_have_roles_by_name_and_bridges_by_their_ports() {
        let links = [
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "cni0", None),
            link(4, "veth1", Some(3)),
            link(5, "docker0", None),
        ];
        let selectors =
            Selectors::new(&["eth*".into()], &["veth*".into(), "cali*".into()]).unwrap();
        let roles = selectors.roles(&links);
        let roles: Vec<_> = roles
            .iter()
            .map(|(l, r)| (l.name.as_str(), *r, l.controls_pods))
            .collect();
        assert_eq!(
            roles,
            [
                ("lo", Role::Loopback, false),
                ("eth0", Role::Uplink, false),
                ("cni0", Role::Pod, true),
                ("veth1", Role::Pod, false),
                ("docker0", Role::Undeclared, false),
            ]
        );
        assert_eq!(
            selectors.notes(&links),
            ["pod interface `cali*` matches no interface"]
        );
        assert!(selectors.check(&links).is_ok());
        // If both match, the narrower wins; a tie is a pod's.
        for (uplinks, pods, name, role) in [
            ("en*", "eni*", "eni0", Role::Pod),
            ("en*", "eni*", "ens5", Role::Uplink),
            ("eth0", "eth*", "eth0", Role::Uplink),
            ("eth0", "eth*", "eth1", Role::Pod),
            ("e*0", "eth*", "eth0", Role::Pod),
            ("?th0", "et?0", "eth0", Role::Pod),
            ("eth*", "eth*", "eth0", Role::Pod),
        ] {
            let selectors = Selectors::new(&[uplinks.into()], &[pods.into()]).unwrap();
            assert_eq!(
                selectors.role(&link(2, name, None)),
                role,
                "{uplinks} {pods}"
            );
        }
        let missing = Selectors::new(&["ens3".into()], &[]).unwrap();
        let error = missing.check(&links).unwrap_err().to_string();
        assert!(
            error.contains("`ens3`") && error.contains("eth0"),
            "{error}"
        );
    }
}
