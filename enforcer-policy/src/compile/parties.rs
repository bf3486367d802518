//! The distinct sets of components that occur at addresses, in cgroups and behind interfaces.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use enforcer_common::{
    limits,
    tables::{AddressInfo, NOBODY, Party},
};

use super::{
    ground::{Declared, Ground, Here, Set},
    tables::{CgroupRule, CompileError, PrefixEntry},
};
use crate::model::Component;

/// Where a party is, as far as the tables of one node depend on it.
///
/// The tables do not distinguish the other nodes: all that are alike are one party, so the tables do not grow with
/// their number. Nothing is lost by that. Only paths on the same node depend on it, and a packet that this node sees
/// has left every other node: see `is_local_enough` in `verdicts`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Whereabouts {
    /// Unknown: outside, or a pod if nodes have no `podNetworks`.
    #[default]
    Unknown,
    /// On this node.
    Here,
    /// On another node.
    OtherNode,
}

/// One party: a distinct set of components, as senders and as receivers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PartyInfo {
    /// Components that a sender there counts as.
    pub senders: Set,
    /// Components whose endpoints are there.
    pub occupants: Set,
    /// Services whose virtual address it is.
    pub services: Set,
    /// Addresses of the loopback interface.
    pub loopback: bool,
    /// Processes of this node.
    pub process: bool,
    /// The node's own init: it holds ports for the units that it starts.
    pub init: bool,
    /// Where it is.
    pub whereabouts: Whereabouts,
    /// A virtual address: the node behind it is not known before packets are translated.
    pub is_virtual: bool,
}

/// All parties of a node's tables.
pub struct Parties {
    infos: Vec<PartyInfo>,
    numbers: HashMap<PartyInfo, Party>,
    /// What is at which prefix, in the order of networks and lengths.
    pub prefixes: Arc<[PrefixEntry]>,
    /// All lengths of prefixes, longest first.
    pub prefix_lengths: Vec<u32>,
    /// The rules of declared cgroups.
    pub cgroups: Vec<CgroupRule>,
    /// Processes in no declared cgroup.
    pub undeclared: Party,
    /// Everything that may run on this node.
    pub local: Party,
    /// This node's own addresses.
    pub own: Party,
    /// What sends from a pod's interface.
    pub pods: Party,
}

/// The input for parties.
struct Cluster<'a> {
    ground: &'a Ground<'a>,
    here: &'a Here<'a>,
}

impl Parties {
    /// The parties of a policy on one of its nodes.
    pub fn of(ground: &Ground<'_>, here: &Here<'_>) -> Result<Self, CompileError> {
        let cluster = Cluster { ground, here };
        let mut parties = Self {
            infos: Vec::new(),
            numbers: HashMap::new(),
            prefixes: Arc::default(),
            prefix_lengths: ground.lengths.clone(),
            cgroups: Vec::new(),
            undeclared: NOBODY,
            local: NOBODY,
            own: NOBODY,
            pods: NOBODY,
        };
        // The first one is NOBODY, which only counts as what everybody is.
        let nobody = PartyInfo {
            senders: ground.crowd.everyone.clone(),
            ..PartyInfo::default()
        };
        parties.intern(nobody)?;
        parties.add_prefixes(&cluster)?;
        parties.add_cgroups(&cluster)?;
        parties.undeclared = parties.intern(cluster.process(&cluster.undeclared()))?;
        parties.pods = parties.intern(cluster.behind_pod_interface())?;
        parties.local = parties.intern(cluster.anybody_here())?;
        Ok(parties)
    }

    /// All of them, in the order of their numbers.
    pub fn infos(&self) -> &[PartyInfo] {
        &self.infos
    }

    fn intern(&mut self, info: PartyInfo) -> Result<Party, CompileError> {
        if let Some(party) = self.numbers.get(&info) {
            return Ok(*party);
        }
        let number = self.infos.len();
        if number >= limits::MAX_PARTIES as usize {
            let (what, max) = ("distinct sets of components", limits::MAX_PARTIES);
            return Err(CompileError::sets(what, max));
        }
        self.infos.push(info.clone());
        // The number is below MAX_PARTIES.
        self.numbers.insert(info, number as Party);
        Ok(number as Party)
    }

    fn add_prefixes(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        let ground = cluster.ground;
        if ground.spots.len() > limits::MAX_PREFIXES as usize {
            return Err(CompileError::TooMany {
                what: "address prefixes",
                max: limits::MAX_PREFIXES,
                help: "write networks in place of the addresses in them",
            });
        }
        let mut prefixes = Vec::with_capacity(ground.spots.len());
        // There may be thousands of prefixes, but few declarations.
        let mut known: Vec<[Option<AddressInfo>; 3]> = vec![[None; 3]; ground.declarations.len()];
        for spot in &ground.spots {
            let whereabouts = match spot.owner {
                None => Whereabouts::Unknown,
                Some(owner) if owner == cluster.here.index => Whereabouts::Here,
                Some(_) => Whereabouts::OtherNode,
            };
            let info = match known[spot.declaration][whereabouts as usize] {
                Some(info) => info,
                None => {
                    let info = self.address_info(
                        cluster,
                        &ground.declarations[spot.declaration],
                        whereabouts,
                    )?;
                    known[spot.declaration][whereabouts as usize] = Some(info);
                    info
                }
            };
            prefixes.push(PrefixEntry {
                network: spot.network,
                length: spot.length,
                info,
            });
        }
        // IPv4 came first, and belongs into the middle of IPv6.
        prefixes.sort_by_key(|entry| (entry.network, entry.length));
        self.prefixes = prefixes.into();
        Ok(())
    }

    fn address_info(
        &mut self,
        cluster: &Cluster<'_>,
        declared: &Declared,
        whereabouts: Whereabouts,
    ) -> Result<AddressInfo, CompileError> {
        let party = self.intern(cluster.at(declared, whereabouts))?;
        let mut flags = 0;
        if !declared.kinds.is_empty() {
            let here = whereabouts == Whereabouts::Here;
            flags |= if here {
                AddressInfo::OWN
            } else {
                AddressInfo::OTHER_NODE
            };
            if here && self.own == NOBODY {
                self.own = party;
            }
        }
        if declared.pods {
            flags |= AddressInfo::POD;
            let mut components = declared.components.iter();
            if components.any(|c| !cluster.ground.crowd.everyone.contains(c)) {
                flags |= AddressInfo::NAMED;
            }
        }
        Ok(AddressInfo { party, flags })
    }

    fn add_cgroups(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        let components = &cluster.ground.policy.components;
        let mut declared: BTreeMap<&str, Set> = BTreeMap::new();
        for (index, component) in components.iter().enumerate() {
            if cluster.may_run_here(index, component) {
                for pattern in &component.cgroups {
                    declared.entry(pattern).or_default().insert(index);
                }
            }
        }
        for (pattern, set) in declared {
            let party = self.intern(cluster.process(&set))?;
            self.cgroups.push(CgroupRule {
                pattern: pattern.to_owned(),
                party,
                components: set.iter().map(|i| components[*i].name.clone()).collect(),
            });
        }
        self.add_init(cluster)
    }

    /// systemd itself binds sockets for units that it will start later (`ssh.socket`). Whichever unit they are for,
    /// only root can create one there.
    fn add_init(&mut self, cluster: &Cluster<'_>) -> Result<(), CompileError> {
        if self.cgroups.iter().any(|rule| rule.pattern == INIT) {
            return Ok(());
        }
        let party = self.intern(PartyInfo {
            init: true,
            ..cluster.process(&cluster.undeclared())
        })?;
        self.cgroups.push(CgroupRule {
            pattern: INIT.to_owned(),
            party,
            components: Vec::new(),
        });
        Ok(())
    }
}

/// The cgroup where systemd keeps process 1.
const INIT: &str = "/init.scope";

impl Cluster<'_> {
    fn at(&self, declared: &Declared, whereabouts: Whereabouts) -> PartyInfo {
        let crowd = &self.ground.crowd;
        let loopback = declared.loopback;
        let mut occupants = declared.components.clone();
        let mut senders = Set::new();
        if declared.pods {
            occupants.extend(&crowd.in_pods);
        }
        if loopback {
            occupants.extend(&self.here.located);
            senders.extend(&crowd.on_any_node);
        }
        for kind in &declared.kinds {
            occupants.extend(self.ground.kind(*kind));
            senders.extend(&crowd.on_any_node);
        }
        senders.extend(&occupants);
        if crowd.is_outside(declared) {
            occupants.extend(&crowd.elsewhere);
            senders.extend(&crowd.senders_elsewhere);
        }
        // Traffic to a service goes to pods; nothing sends from there.
        if declared.service_network {
            occupants.extend(&crowd.in_pods);
        }
        PartyInfo {
            senders: crowd.closed(&senders),
            occupants,
            services: declared.services.clone(),
            loopback,
            process: false,
            init: false,
            whereabouts: match loopback {
                true => Whereabouts::Here,
                false => whereabouts,
            },
            is_virtual: declared.service_network || !declared.services.is_empty(),
        }
    }

    fn may_run_here(&self, index: usize, component: &Component) -> bool {
        component.runs_on.is_empty() || self.here.runs.contains(&index)
    }

    /// What a process in no declared cgroup counts as: the components of this node that declare none and need none.
    fn undeclared(&self) -> Set {
        let mut here = self.here.located.clone();
        here.retain(|i| self.ground.policy.components[*i].counts_undeclared());
        here
    }

    fn process(&self, components: &Set) -> PartyInfo {
        PartyInfo {
            senders: self.ground.crowd.closed(components),
            process: true,
            whereabouts: Whereabouts::Here,
            ..PartyInfo::default()
        }
    }

    fn behind_pod_interface(&self) -> PartyInfo {
        let crowd = &self.ground.crowd;
        PartyInfo {
            senders: crowd.closed(&crowd.in_pods),
            whereabouts: Whereabouts::Here,
            ..PartyInfo::default()
        }
    }

    fn anybody_here(&self) -> PartyInfo {
        let mut senders = self.here.located.clone();
        let components = self.ground.policy.components.iter().enumerate();
        senders.extend(
            components
                .filter(|(index, c)| !c.cgroups.is_empty() && self.may_run_here(*index, c))
                .map(|(index, _)| index),
        );
        PartyInfo {
            senders: self.ground.crowd.closed(&senders),
            whereabouts: Whereabouts::Here,
            ..PartyInfo::default()
        }
    }
}
