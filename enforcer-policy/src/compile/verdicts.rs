//! The dense tables: the verdicts for each sender and target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use enforcer_common::{
    limits,
    tables::{DECLARED_PORT, Settings},
    verdict::{Reason, Verdict},
};

use super::{
    ground::{Here, Set},
    parties::{Parties, PartyInfo, Whereabouts},
    ports::{Class, Endpoint, PortClasses},
    tables::{CompileError, Compiled},
};
use crate::catalogue::Catalogue;
use crate::model::{Component, Locality, Mode, OtherTraffic, Path, Policy, Port, PortMatch};

/// A distinct set of endpoints at a kind of address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Target {
    endpoints: Vec<Endpoint>,
    loopback: bool,
    whereabouts: Whereabouts,
    is_virtual: bool,
}

/// What is known about a target independently of the sender.
struct ResolvedTarget<'a> {
    target: &'a Target,
    /// The endpoints that are addressed: a path must lead to one of them.
    endpoints: Vec<Endpoint>,
    /// Whether those are guarded.
    guarded: bool,
    /// The paths that lead to one of them, the narrowest endpoint first.
    routes: Vec<&'a Route<'a>>,
}

/// A path with its names resolved.
struct Route<'a> {
    number: u16,
    path: &'a Path,
    from: Vec<usize>,
    to: Endpoint,
}

struct Filler<'a> {
    policy: &'a Policy,
    here: &'a Here<'a>,
    mode: Mode,
    /// For each component and port, the mode of the paths to it, if they have their own.
    endpoint_modes: HashMap<Endpoint, Mode>,
    routes: Vec<Route<'a>>,
    /// Which of them lead to an endpoint.
    by_endpoint: HashMap<Endpoint, Vec<usize>>,
    /// The endpoint behind each service.
    behind: Vec<Option<Endpoint>>,
}

/// Fills all tables.
pub fn fill(
    policy: &Policy,
    here: &Here<'_>,
    mode: Mode,
    parties: &Parties,
    ports: &PortClasses,
    numbers: &[u16],
) -> Result<Compiled, CompileError> {
    let filler = Filler::new(policy, here, mode, numbers);
    let infos = parties.infos();
    let (targets, table) = filler.targets(infos, &ports.classes)?;
    check_cells(
        "combinations of sets of components and endpoints",
        infos.len() * targets.len(),
    )?;
    let meant: Vec<ResolvedTarget<'_>> = targets.iter().map(|t| filler.resolve(t)).collect();
    let mut entries = Vec::with_capacity(infos.len() * targets.len());
    for sender in infos {
        entries.extend(
            meant
                .iter()
                .map(|m| [filler.verdict(sender, m), filler.bind(sender, m.target)]),
        );
    }
    let names = |info: &PartyInfo| {
        info.senders
            .iter()
            .map(|i| policy.components[*i].name.clone())
            .collect()
    };
    let target_names = meant.iter().map(|m| filler.names(m));
    let target_endpoints = meant.iter().map(|m| {
        let reached = m
            .endpoints
            .iter()
            .filter(|e| filler.is_reached(**e, m.target));
        reached.map(|e| filler.endpoint_name(*e)).collect()
    });
    let target_denials = meant.iter().map(|m| filler.denial(m));
    Ok(Compiled {
        node: here.node.name.clone(),
        settings: Settings {
            generation: 0,
            dry_run: u32::from(mode == Mode::DryRun),
            tls_dry_run: u32::from(policy.tls_lock == Mode::DryRun),
            // All three are within their limits.
            classes: ports.classes.len() as u32,
            targets: targets.len() as u32,
            parties: infos.len() as u32,
            undeclared_process: parties.undeclared.into(),
            local: parties.local.into(),
            own: parties.own.into(),
            pods: parties.pods.into(),
            v4_buckets: 0,
            v6_buckets: 0,
            networks: 0,
            other: filler.other(false),
        },
        prefixes: Arc::clone(&parties.prefixes),
        prefix_lengths: parties.prefix_lengths.clone(),
        classes: ports.table.clone(),
        targets: table,
        entries,
        related: filler.related(infos)?,
        cgroups: parties.cgroups.clone(),
        party_names: infos.iter().map(names).collect(),
        target_names: target_names.collect(),
        target_endpoints: target_endpoints.collect(),
        target_denials: target_denials.collect(),
        paths: filler
            .routes
            .iter()
            .map(|r| (r.number, r.path.name.clone()))
            .collect(),
    })
}

fn check_cells(what: &'static str, cells: usize) -> Result<(), CompileError> {
    let max = limits::MAX_CELLS;
    if cells > max as usize {
        Err(CompileError::sets(what, max))
    } else {
        Ok(())
    }
}

impl<'a> Filler<'a> {
    fn new(policy: &'a Policy, here: &'a Here<'a>, mode: Mode, numbers: &[u16]) -> Self {
        let by_name: HashMap<&str, usize> = policy
            .components
            .iter()
            .enumerate()
            .map(|(index, component)| (component.name.as_str(), index))
            .collect();
        let ports = policy
            .components
            .iter()
            .enumerate()
            .flat_map(|(c, component)| {
                let ports = component.ports.iter().enumerate();
                ports.map(move |(p, port)| ((c, port.name.as_str()), (c, p)))
            });
        let ends: HashMap<(usize, &str), Endpoint> = ports.collect();
        // In a valid policy all names resolve.
        let endpoint = |component: &str, port: &str| {
            let component = *by_name.get(component)?;
            ends.get(&(component, port)).copied()
        };
        let mut endpoint_modes = HashMap::new();
        let mut routes = Vec::new();
        let mut by_endpoint: HashMap<Endpoint, Vec<usize>> = HashMap::new();
        for (path, number) in policy.paths.iter().zip(numbers) {
            let Some(to) = endpoint(&path.to_component, &path.to_port) else {
                continue;
            };
            let from = path
                .from
                .iter()
                .filter_map(|name| by_name.get(name.as_str()));
            by_endpoint.entry(to).or_default().push(routes.len());
            routes.push(Route {
                number: *number,
                path,
                from: from.copied().collect(),
                to,
            });
            if let Some(own) = path.mode {
                endpoint_modes.insert(to, own);
            }
        }
        // Dry-run of the whole policy guarantees that nothing is dropped.
        if mode == Mode::DryRun {
            endpoint_modes.clear();
        }
        let services = policy.services.iter();
        Self {
            policy,
            here,
            mode,
            endpoint_modes,
            routes,
            by_endpoint,
            behind: services
                .map(|service| endpoint(&service.component, &service.port))
                .collect(),
        }
    }

    /// The distinct targets, and the target for each party at the address and each port class.
    fn targets(
        &self,
        infos: &[PartyInfo],
        classes: &[Class],
    ) -> Result<(Vec<Target>, Vec<u32>), CompileError> {
        check_cells(
            "combinations of places and ports",
            infos.len() * classes.len(),
        )?;
        let mut targets = vec![Target::default()];
        let mut numbers = HashMap::from([(Target::default(), 0)]);
        let mut table = Vec::with_capacity(infos.len() * classes.len());
        for info in infos {
            for class in classes {
                let target = self.target(info, class);
                let names_port = |end: &Endpoint| {
                    !self.component(*end).is_elsewhere()
                        && !self.port(*end).matches.contains(&PortMatch::Any)
                };
                // A node may have the addresses of services (IPVS). Only a service that is declared at this very port
                // is there; what may be behind other ports is not a socket of the node.
                let declared = if info.is_virtual {
                    !class.services.is_disjoint(&info.services)
                } else {
                    target.endpoints.iter().any(names_port)
                };
                let number = *numbers.entry(target).or_insert_with_key(|target| {
                    targets.push(target.clone());
                    targets.len() as u32 - 1
                });
                table.push(if declared {
                    number | DECLARED_PORT
                } else {
                    number
                });
            }
            if targets.len() > limits::MAX_TARGETS as usize {
                let (what, max) = ("distinct sets of endpoints", limits::MAX_TARGETS);
                return Err(CompileError::sets(what, max));
            }
        }
        Ok((targets, table))
    }

    fn target(&self, info: &PartyInfo, class: &Class) -> Target {
        let at = class
            .endpoints
            .iter()
            .filter(|(c, _)| info.occupants.contains(c))
            .copied();
        let behind = class.services.intersection(&info.services);
        let behind = behind.filter_map(|service| self.behind[*service]);
        let mut endpoints: Vec<Endpoint> = at.chain(behind).collect();
        if endpoints.is_empty() {
            return Target::default();
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        Target {
            endpoints,
            loopback: info.loopback,
            whereabouts: info.whereabouts,
            is_virtual: info.is_virtual,
        }
    }

    fn component(&self, (c, _): Endpoint) -> &Component {
        &self.policy.components[c]
    }

    fn port(&self, (c, p): Endpoint) -> &Port {
        &self.policy.components[c].ports[p]
    }

    fn endpoint_name(&self, endpoint: Endpoint) -> String {
        format!(
            "{}:{}",
            self.component(endpoint).name,
            self.port(endpoint).name
        )
    }

    /// The names of a target's endpoints. Wide ports are named only if there is nothing narrower.
    fn names(&self, meant: &ResolvedTarget<'_>) -> Vec<String> {
        let width = |e: &Endpoint| self.port(*e).width();
        let candidates: Vec<&Endpoint> = meant
            .endpoints
            .iter()
            .filter(|e| meant.guarded || self.is_reached(**e, meant.target))
            .collect();
        let narrowest = candidates.iter().map(|e| width(e)).min();
        candidates
            .iter()
            .filter(|e| Some(width(e)) == narrowest)
            .map(|e| self.endpoint_name(**e))
            .collect()
    }

    /// A loopback-only endpoint is reached at loopback addresses only.
    fn is_reached(&self, endpoint: Endpoint, target: &Target) -> bool {
        target.loopback || !self.port(endpoint).loopback_only
    }

    /// What operators are told about a denial there.
    fn denial(&self, meant: &ResolvedTarget<'_>) -> String {
        if !meant.guarded {
            return String::new();
        }
        let texts = meant.endpoints.iter().map(|e| &self.port(*e).denial);
        let mut said: Vec<String> = texts
            .filter(|text| !text.is_empty())
            .take(1)
            .cloned()
            .collect();
        said.extend(
            meant
                .endpoints
                .first()
                .and_then(|e| self.switch_off(*e, meant)),
        );
        said.join("; ")
    }

    /// How to switch off a port of the catalogue that no path leads to, if something else uses it.
    fn switch_off(&self, endpoint: Endpoint, meant: &ResolvedTarget<'_>) -> Option<String> {
        let (component, port) = (self.component(endpoint), self.port(endpoint));
        let documented = Catalogue::builtin().components().iter();
        let mut documented = documented.filter(|known| known.name == component.name);
        let is_documented = documented.any(|known| known.port(&port.name).is_some());
        (meant.routes.is_empty() && is_documented).then(|| {
            format!(
                "if another program uses this port here, set `{}: {{ ports: {{ {}: null }} }}` in the Inventory",
                component.name, port.name
            )
        })
    }

    /// Of several endpoints at one port, the guarded ones are addressed, and of those the narrowest: a path to every
    /// port of a node, or to the world, leads to no guarded endpoint.
    fn resolve<'s>(&'s self, target: &'s Target) -> ResolvedTarget<'s> {
        let mut endpoints: Vec<Endpoint> = target.endpoints.clone();
        let guarded = endpoints.iter().any(|e| self.component(*e).guard);
        if guarded {
            endpoints.retain(|e| self.component(*e).guard);
            let narrowest = endpoints.iter().map(|e| self.port(*e).width()).min();
            endpoints.retain(|e| Some(self.port(*e).width()) == narrowest);
        }
        let mut routes: Vec<&Route<'_>> = endpoints
            .iter()
            .filter_map(|e| self.by_endpoint.get(e))
            .flatten()
            .map(|r| &self.routes[*r])
            .collect();
        routes.sort_by_key(|r| (self.port(r.to).width(), r.number));
        ResolvedTarget {
            target,
            endpoints,
            guarded,
            routes,
        }
    }

    fn verdict(&self, sender: &PartyInfo, meant: &ResolvedTarget<'_>) -> Verdict {
        if let Some(route) = self.allowing(sender, meant) {
            let mut verdict = Verdict::path(route.number);
            if route.path.tls {
                verdict = verdict.with_tls();
            }
            return if meant.guarded {
                verdict.to_guarded()
            } else {
                verdict
            };
        }
        if !meant.guarded {
            return self.other(self.is_elsewhere_only(sender, meant));
        }
        let dry_run = meant
            .endpoints
            .iter()
            .any(|e| *self.endpoint_modes.get(e).unwrap_or(&self.mode) == Mode::DryRun);
        Verdict::denied(self.reason(sender, meant), dry_run, true)
    }

    /// The path that allows a sender: to the narrowest endpoint, and of several paths one that does not require TLS, as
    /// a path grants a permission and takes none away.
    fn allowing<'m>(
        &self,
        sender: &PartyInfo,
        meant: &'m ResolvedTarget<'_>,
    ) -> Option<&'m Route<'m>> {
        let target = meant.target;
        let mut allowed = meant.routes.iter().copied().filter(|r| {
            r.is_from(sender) && self.reaches(r, target) && is_local_enough(r, sender, target)
        });
        let first = allowed.next()?;
        let width = |r: &Route<'_>| self.port(r.to).width();
        let mut as_narrow = allowed.take_while(|r| width(r) == width(first));
        if first.path.tls {
            as_narrow.find(|r| !r.path.tls).or(Some(first))
        } else {
            Some(first)
        }
    }

    fn reason(&self, sender: &PartyInfo, meant: &ResolvedTarget<'_>) -> Reason {
        let target = meant.target;
        if !target.loopback && meant.endpoints.iter().all(|e| self.port(*e).loopback_only) {
            return Reason::LoopbackOnly;
        }
        if meant.routes.is_empty() {
            return Reason::ClosedPort;
        }
        let reaching = || meant.routes.iter().filter(|r| self.reaches(r, target));
        if reaching().any(|r| r.is_from(sender)) {
            return Reason::OtherNode;
        }
        let from_here = |r: &&Route<'_>| {
            r.from.iter().any(|c| {
                let component = &self.policy.components[*c];
                self.here.runs.contains(c) && !component.counts_undeclared()
            })
        };
        if sender.process && reaching().any(from_here) {
            return Reason::WrongProcess;
        }
        Reason::NoPath
    }

    /// Whether a path leads from this sender to this port, but only on the sender's own node.
    fn is_elsewhere_only(&self, sender: &PartyInfo, meant: &ResolvedTarget<'_>) -> bool {
        meant
            .routes
            .iter()
            .any(|r| r.is_from(sender) && self.reaches(r, meant.target))
    }

    fn reaches(&self, route: &Route<'_>, target: &Target) -> bool {
        target.loopback || !(route.path.loopback || self.port(route.to).loopback_only)
    }

    fn bind(&self, by: &PartyInfo, target: &Target) -> Verdict {
        let mut refused = None;
        for endpoint in &target.endpoints {
            let (component, port) = (self.component(*endpoint), self.port(*endpoint));
            // A port of an unguarded component, and every port, may be bound by anybody.
            if !component.guard || port.matches.contains(&PortMatch::Any) {
                continue;
            }
            let foreign =
                !component.cgroups.is_empty() && !by.init && !by.senders.contains(&endpoint.0);
            let reason = if port.loopback_only && !target.loopback {
                Reason::BindNotLoopback
            } else if foreign {
                Reason::BindForeignPort
            } else {
                return Verdict::OTHER;
            };
            let mode = *self.endpoint_modes.get(endpoint).unwrap_or(&self.mode);
            refused.get_or_insert(Verdict::denied(reason, mode == Mode::DryRun, true));
        }
        refused.unwrap_or(Verdict::OTHER)
    }

    /// The verdict if no guarded endpoint is concerned. `elsewhere` says that a path on the same node would allow it.
    fn other(&self, elsewhere: bool) -> Verdict {
        let reason = if elsewhere {
            Reason::OtherNode
        } else {
            Reason::OtherTraffic
        };
        match self.policy.other_traffic {
            OtherTraffic::Allow => Verdict::OTHER,
            OtherTraffic::Drop => Verdict::denied(reason, self.mode == Mode::DryRun, false),
        }
    }

    /// Later fragments pass between two parties that have a path. If other traffic is allowed, that is any two parties.
    fn related(&self, infos: &[PartyInfo]) -> Result<Vec<u32>, CompileError> {
        check_cells("pairs of sets of components", infos.len() * infos.len())?;
        if self.policy.other_traffic == OtherTraffic::Allow {
            return Ok(vec![1; infos.len() * infos.len()]);
        }
        let senders_to: Vec<Set> = infos.iter().map(|info| self.senders_to(info)).collect();
        let related = |from: &PartyInfo, to: &Set| !from.senders.is_disjoint(to);
        Ok(infos
            .iter()
            .flat_map(|from| senders_to.iter().map(move |to| (from, to)))
            .map(|(from, to)| u32::from(related(from, to)))
            .collect())
    }

    /// The components from which a path leads to anything at the address of a party.
    fn senders_to(&self, info: &PartyInfo) -> Set {
        let behind: HashSet<Endpoint> = info
            .services
            .iter()
            .filter_map(|service| self.behind[*service])
            .collect();
        let leads = |r: &&Route<'_>| info.occupants.contains(&r.to.0) || behind.contains(&r.to);
        self.routes
            .iter()
            .filter(leads)
            .flat_map(|route| &route.from)
            .copied()
            .collect()
    }
}

impl Route<'_> {
    fn is_from(&self, sender: &PartyInfo) -> bool {
        self.from.iter().any(|c| sender.senders.contains(c))
    }
}

/// "On one node" means this node. A packet that this node sees and whose end is on another node has left that node or
/// is about to reach it, so whatever its other end is, the network is between the two. A packet that claims to go from
/// another node to that same node is denied, as is one between two other nodes: no node sends to itself through this
/// one, and a forged packet must not open what the real one, on its own node, never needed here.
///
/// An end that is not known to be on any node gets the benefit of the doubt, but not a service, which may lead to any
/// node.
fn is_local_enough(route: &Route<'_>, sender: &PartyInfo, target: &Target) -> bool {
    use Whereabouts::{Here, OtherNode, Unknown};
    match (route.path.locality, sender.whereabouts, target.whereabouts) {
        (Locality::Any, ..) | (Locality::SameNode, Here, Here) => true,
        (Locality::SameNode, Here | OtherNode, Here | OtherNode) => false,
        (Locality::SameNode, Unknown, _) | (Locality::SameNode, _, Unknown) => !target.is_virtual,
    }
}
