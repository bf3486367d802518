//! Programs to their hooks.

use std::{collections::BTreeMap, fs::File, path::Path};

use aya::{
    Ebpf,
    programs::{
        CgroupSkbAttachType, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType,
        links::CgroupAttachMode,
        tc::{
            NlOptions, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact,
            qdisc_detach_program,
        },
    },
    sys::SyscallError,
};
use enforcer_common::tables::Role;
use enforcer_policy::vocabulary::Vocabulary as _;

use super::{
    KernelError, Link,
    programs::{self, CGROUP, LSM, SETSOCKOPT, TC},
    roles::Roles,
    state::{CgroupHook, CgroupLink, Classifier, How, Interface, Kernel},
};
use crate::api::{AttachMethod, Attachment};

/// How programs are attached to interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX (Linux 6.6).
    Tcx,
    /// Filters at the clsact qdisc.
    Clsact,
}

impl Interface {
    /// Whether the programs that are attached are those that an interface is to have.
    fn is_as_wanted(&self, link: &Link, role: Role) -> bool {
        self.link.name == link.name
            && self.role == role
            && directions(&self.link, role) == directions(link, role)
    }
}

/// Ours among the filters of an interface. One priority and handle, so that no two are ever there.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x0e_f0);

impl Kernel {
    /// Attaches the programs for processes to a cgroup directory, all but those that are attached to it
    /// already: after an error it can be called again.
    ///
    /// # Errors
    ///
    /// The directory can not be opened, or the kernel refuses, for instance because another holds
    /// a hook for itself: the first that it refused. The others are attached all the same.
    pub fn attach_cgroup(&mut self, root: &Path) -> Result<(), KernelError> {
        if self.attached.cgroups.is_empty() && !self.sees_all_options() {
            self.attach_lsm();
        }
        let missing = self.missing_cgroup_hooks();
        if missing.is_empty() {
            return Ok(());
        }
        let directory = File::open(root).map_err(|source| KernelError::CgroupRoot {
            path: root.to_owned(),
            source,
        })?;
        let place = root.display().to_string();
        let mut result = Ok(());
        for name in missing {
            let program = self
                .bpf
                .program_mut(name)
                .ok_or(KernelError::Missing(name))?;
            match attach_to_cgroup(name, program, &directory) {
                Ok(link) => self.attached.cgroups.push(CgroupHook {
                    name,
                    place: place.clone(),
                    link,
                }),
                Err(source) => result = result.and(Err(failed(name, &place, source))),
            }
        }
        result
    }

    fn missing_cgroup_hooks(&self) -> Vec<&'static str> {
        // The other one would tell the same calls a second time.
        let is_wanted = |name: &str| !(self.sees_all_options() && name == SETSOCKOPT);
        let is_there = |name: &str| self.attached.cgroups.iter().any(|hook| hook.name == name);
        let names = CGROUP.into_iter();
        names
            .filter(|name| is_wanted(name) && !is_there(name))
            .collect()
    }

    /// Detaches the programs for processes from the cgroup that they are attached to, which may be gone.
    pub fn detach_cgroup(&mut self) {
        for CgroupHook { name, link, .. } in self.attached.cgroups.drain(..) {
            // A link whose cgroup is gone has nothing left to detach; it is closed all the same.
            let _ = match (self.bpf.program_mut(name), link) {
                (Some(Program::CgroupSkb(program)), CgroupLink::Skb(id)) => program.detach(id),
                (Some(Program::CgroupSock(program)), CgroupLink::Sock(id)) => program.detach(id),
                (Some(Program::CgroupSockAddr(program)), CgroupLink::SockAddr(id)) => {
                    program.detach(id)
                }
                (Some(Program::CgroupSockopt(program)), CgroupLink::Sockopt(id)) => {
                    program.detach(id)
                }
                _ => Ok(()),
            };
        }
    }

    /// Makes the roles and attachments of interfaces what they are to be, given all interfaces that
    /// there are and the role of each that has one. Says what was attached or went.
    ///
    /// # Errors
    ///
    /// The first of them that the kernel refused. The others are attached all the same.
    pub fn attach_interfaces(
        &mut self,
        links: &[(Link, Role)],
        mode: TcMode,
    ) -> Result<Vec<String>, KernelError> {
        let mut said = self.forget_interfaces(links);
        let mut result = Ok(());
        for (link, role) in links {
            let done = match self.attached.interfaces.get(&link.index) {
                // Attached a second time, the programs would be refused or, with clsact, be taken away.
                Some(known) if known.link == *link => continue,
                Some(_) => self.know_anew(link, *role),
                None => self
                    .attach_interface(link, *role, mode)
                    .map(|()| said.push(format!("{} is {}", link.name, role.word()))),
            };
            result = result.and(done);
        }
        result.map(|()| said)
    }

    fn forget_interfaces(&mut self, links: &[(Link, Role)]) -> Vec<String> {
        let wanted: BTreeMap<u32, &(Link, Role)> = links
            .iter()
            .map(|wanted| (wanted.0.index, wanted))
            .collect();
        let gone = |i: &Interface| {
            wanted
                .get(&i.link.index)
                .is_none_or(|(link, role)| !i.is_as_wanted(link, *role))
        };
        let gone: Vec<u32> = self
            .attached
            .interfaces
            .values()
            .filter(|i| gone(i))
            .map(|i| i.link.index)
            .collect();
        let mut said = Vec::new();
        for index in gone {
            let Some(interface) = self.attached.interfaces.remove(&index) else {
                continue;
            };
            if let Some(roles) = &mut self.attached.roles {
                let _ = roles.remove(index);
            }
            self.detach_classifiers(&interface.link, interface.links);
            said.push(format!(
                "{} is no longer {}",
                interface.link.name,
                interface.role.word()
            ));
        }
        said
    }

    /// Writes the role of an interface, as programs look it up.
    fn set_role(&mut self, link: &Link, role: Role) -> Result<(), KernelError> {
        let mut word = role as u32;
        if !link.has_ethernet_header() {
            word |= Role::NO_LINK_HEADER;
        }
        if self.attached.roles.is_none() {
            self.attached.roles = Some(Roles::take(&mut self.bpf)?);
        }
        match &mut self.attached.roles {
            Some(roles) => roles.set(link.index, word),
            None => Ok(()),
        }
    }

    /// Something about an interface has changed that its programs need not be attached anew for, such as the bridge that
    /// it is a port of.
    fn know_anew(&mut self, link: &Link, role: Role) -> Result<(), KernelError> {
        self.set_role(link, role)?;
        if let Some(known) = self.attached.interfaces.get_mut(&link.index) {
            known.link = link.clone();
        }
        Ok(())
    }

    fn attach_interface(
        &mut self,
        link: &Link,
        role: Role,
        mode: TcMode,
    ) -> Result<(), KernelError> {
        // The role must be there when the first packet comes.
        self.set_role(link, role)?;
        let links = match self.attach_classifiers(link, role, mode) {
            Ok(links) => links,
            Err(error) => {
                // It may have gone meanwhile, and nothing would take its role away later.
                if let Some(roles) = &mut self.attached.roles {
                    let _ = roles.remove(link.index);
                }
                return Err(error);
            }
        };
        let interface = Interface {
            link: link.clone(),
            role,
            links,
        };
        self.attached.interfaces.insert(link.index, interface);
        Ok(())
    }

    /// Attaches the programs for traffic to an interface, or none of them.
    fn attach_classifiers(
        &mut self,
        link: &Link,
        role: Role,
        mode: TcMode,
    ) -> Result<Vec<Classifier>, KernelError> {
        let mut links = Vec::new();
        for direction in directions(link, role) {
            let attached =
                classifier(&mut self.bpf, link, *direction).and_then(|(name, program)| {
                    let _ = remove_leftover(&link.name, *direction, name);
                    attach(program, &link.name, *direction, mode)
                        .map_err(|source| failed(name, &link.name, source))
                });
            match attached {
                Ok((how, id)) => links.push((*direction, how, id)),
                Err(error) => {
                    self.detach_classifiers(link, links);
                    return Err(error);
                }
            }
        }
        Ok(links)
    }

    /// Those of an interface that is gone went with it.
    fn detach_classifiers(&mut self, link: &Link, links: Vec<Classifier>) {
        for (direction, _, id) in links.into_iter().rev() {
            let _ =
                classifier(&mut self.bpf, link, direction).map(|(_, program)| program.detach(id));
        }
    }

    /// All attachments.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut all = Vec::new();
        if self.sees_all_options() {
            all.push(Attachment {
                hook: programs::hook(LSM).into(),
                program: LSM.to_owned(),
                place: "security modules".to_owned(),
                how: AttachMethod::Lsm.into(),
                role: None,
            });
        }
        all.extend(self.attached.cgroups.iter().map(|hook| Attachment {
            hook: programs::hook(hook.name).into(),
            program: hook.name.to_owned(),
            place: hook.place.clone(),
            how: AttachMethod::CgroupLink.into(),
            role: None,
        }));
        for Interface { link, role, links } in self.attached.interfaces.values() {
            for (direction, how, _) in links {
                let program = program_name(link, *direction);
                let how = match how {
                    How::Tcx => AttachMethod::Tcx,
                    How::Clsact => AttachMethod::Clsact,
                };
                all.push(Attachment {
                    hook: programs::hook(program).into(),
                    program: program.to_owned(),
                    place: link.name.clone(),
                    how: how.into(),
                    role: Some((*role).into()),
                });
            }
        }
        all
    }

    /// The role of an interface that has one.
    pub fn role(&self, index: u32) -> Role {
        self.attached
            .interfaces
            .get(&index)
            .map_or(Role::Undeclared, |i| i.role)
    }

    /// The name of an interface that has a role.
    pub fn interface_name(&self, index: u32) -> Option<&str> {
        self.attached
            .interfaces
            .get(&index)
            .map(|i| i.link.name.as_str())
    }
}

fn attach_to_cgroup(
    name: &'static str,
    program: &mut Program,
    directory: &File,
) -> Result<CgroupLink, ProgramError> {
    // With a link, `Single` sends no flags at all, and the kernel lets others attach, too.
    let mode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSkb(program) => {
            let direction = match name {
                "enforcer_skb_in" => CgroupSkbAttachType::Ingress,
                _ => CgroupSkbAttachType::Egress,
            };
            let link = program.attach(directory, direction, mode);
            link.map(CgroupLink::Skb)
        }
        Program::CgroupSock(program) => program.attach(directory, mode).map(CgroupLink::Sock),
        Program::CgroupSockAddr(program) => {
            program.attach(directory, mode).map(CgroupLink::SockAddr)
        }
        Program::CgroupSockopt(program) => program.attach(directory, mode).map(CgroupLink::Sockopt),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Removes the filters that an agent left which did not end by itself. Unlike links, filters stay
/// when the process goes. Says how many there were.
pub fn remove_leftovers(links: &[Link]) -> usize {
    let mut removed = 0;
    for link in links {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let name = program_name(link, direction);
            removed += usize::from(remove_leftover(&link.name, direction, name));
        }
    }
    removed
}

/// Whether there was one and it is gone.
fn remove_leftover(interface: &str, direction: TcAttachType, name: &str) -> bool {
    // Most often there is none, and that is an error, too.
    qdisc_detach_program(interface, direction, name).is_ok()
}

/// Where a packet enters or leaves this host: at every interface, as whoever may send by a packet socket may choose one.
fn directions(link: &Link, role: Role) -> &'static [TcAttachType] {
    match role {
        // A bridge that holds pods' ports has a role and nothing to attach: its ports have it all.
        Role::Pod if link.controls_pods => &[],
        // What comes in by a port of a bridge or a bond comes in by that, and is judged there, or is for others.
        Role::Undeclared if link.is_port => &[TcAttachType::Egress],
        // What leaves by lo is marked before anything asks for the mark where it comes in.
        Role::Loopback => &[TcAttachType::Egress, TcAttachType::Ingress],
        Role::Undeclared | Role::Uplink | Role::Pod => {
            &[TcAttachType::Ingress, TcAttachType::Egress]
        }
    }
}

/// The program for a direction at an interface.
fn program_name(link: &Link, direction: TcAttachType) -> &'static str {
    let [incoming, outgoing, looped] = TC;
    match direction {
        TcAttachType::Ingress if link.is_loopback() => looped,
        TcAttachType::Ingress => incoming,
        _ => outgoing,
    }
}

fn classifier<'a>(
    bpf: &'a mut Ebpf,
    link: &Link,
    direction: TcAttachType,
) -> Result<(&'static str, &'a mut SchedClassifier), KernelError> {
    let name = program_name(link, direction);
    match bpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok((name, program)),
        _ => Err(KernelError::Missing(name)),
    }
}

fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    direction: TcAttachType,
    mode: TcMode,
) -> Result<(How, SchedClassifierLinkId), ProgramError> {
    if mode != TcMode::Clsact {
        // Before all others, as one that says "accept" would end the chain.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, direction, options) {
            Err(error) if mode == TcMode::Auto && lacks_tcx(&error) => {}
            result => return result.map(|id| (How::Tcx, id)),
        }
    }
    // It may be there already, for others' filters; what matters is whether ours can be added.
    let _ = qdisc_add_clsact(interface);
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        classid: None,
    };
    let options = TcAttachOptions::Netlink(options);
    program
        .attach_with_options(interface, direction, options)
        .map(|id| (How::Clsact, id))
}

/// A kernel without TCX does not know the attach type.
fn lacks_tcx(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(SyscallError { io_error, .. }) = error else {
        return false;
    };
    matches!(
        io_error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP)
    )
}

fn failed(program: &'static str, place: &str, source: ProgramError) -> KernelError {
    KernelError::Attach {
        program,
        place: place.to_owned(),
        source: Box::new(source),
    }
}
