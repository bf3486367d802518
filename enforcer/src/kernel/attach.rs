//! Attaches programs to their hooks. Where a previous agent has attached one already, the program
//! is replaced in place, so that enforcement has no gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use aya::{
    programs::{Program, ProgramError, SchedClassifier, TcAttachType},
    sys::SyscallError,
};
use enforcer_common::{record::Hook, tables::Role};
use enforcer_policy::vocabulary::Vocabulary as _;

use super::{
    KernelError, Link,
    calls::{self, LinkTarget},
    hold::{attach_filter, attach_tcx, first_by_tcx, link_refused, remove_leftover, runs_before},
    pins,
    programs::{self, CGROUP, LSM, SETSOCKOPT, TC, attach_type},
    state::{CgroupHook, Classifier, Hold, Interface, Kernel, Pinned},
};
use crate::api::{AttachMethod, Attachment, Leftover};

/// How programs are attached to interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcMode {
    /// TCX if the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX (Linux 6.6).
    Tcx,
    /// Filters at the clsact qdisc.
    Clsact,
}

impl Interface {
    /// Whether the attached programs are those that the interface should have.
    fn is_as_wanted(&self, role: Role, wanted: &[TcAttachType]) -> bool {
        let has = |direction| self.links.iter().any(|(there, _)| *there == direction);
        self.role == role
            && self.links.len() == wanted.len()
            && wanted.iter().all(|direction| has(*direction))
    }

    /// Whether everything is still attached: an interface may have been recreated with the name and
    /// the index of the one that programs were attached to. `filters` are the existing filters.
    fn is_alive(&self, filters: &BTreeSet<(u32, bool)>) -> bool {
        self.links.iter().all(|(direction, hold)| match hold {
            Hold::Filter => filters.contains(&key(&self.link, *direction)),
            hold => hold.is_alive(self.link.index),
        })
    }
}

impl Kernel {
    /// Attaches the programs for processes to a cgroup directory, except those that are attached to
    /// it already: after an error, it can be called again.
    ///
    /// # Errors
    ///
    /// The directory cannot be opened, or the kernel refuses, for example because another program
    /// holds a hook exclusively. Returns the first error; the other programs are attached all the
    /// same.
    pub fn attach_cgroup(&mut self, root: &Path) -> Result<(), KernelError> {
        if self.attached.cgroups.is_empty() && !self.sees_all_options() {
            self.attach_lsm();
        }
        let missing = self.missing_cgroup_hooks();
        if missing.is_empty() {
            return Ok(());
        }
        let unreadable = |source| KernelError::CgroupRoot {
            path: root.to_owned(),
            source,
        };
        let directory = File::open(root).map_err(unreadable)?;
        let id = directory.metadata().map_err(unreadable)?.ino();
        let place = root.display().to_string();
        let mut result = Ok(());
        for name in missing {
            let program = self
                .bpf
                .program_mut(name)
                .ok_or(KernelError::Missing(name))?;
            let pinned = self.pinned.as_ref();
            match attach_to_cgroup(name, program, (&directory, id), pinned) {
                Ok(hold) => self.attached.cgroups.push(CgroupHook {
                    name,
                    place: place.clone(),
                    hold,
                }),
                Err(source) => result = result.and(Err(failed(name, &place, source))),
            }
        }
        result
    }

    fn missing_cgroup_hooks(&self) -> Vec<&'static str> {
        // Both programs would report the same calls.
        let is_wanted = |name: &str| !(self.sees_all_options() && name == SETSOCKOPT);
        let is_there = |name: &str| self.attached.cgroups.iter().any(|hook| hook.name == name);
        let names = CGROUP.into_iter();
        names
            .filter(|name| is_wanted(name) && !is_there(name))
            .collect()
    }

    /// Detaches the programs for processes from their cgroup, which may be gone.
    pub fn detach_cgroup(&mut self) {
        for CgroupHook { hold, .. } in self.attached.cgroups.drain(..) {
            match hold {
                Hold::Open(link) => drop(calls::detach_link(&link)),
                Hold::Pinned(path) => drop(pins::remove_link(&path)),
                Hold::Filter => {}
            }
        }
    }

    /// Detaches everything, and removes the pins.
    ///
    /// # Errors
    ///
    /// The first pin that could not be removed. Everything else is removed all the same.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        self.detach_cgroup();
        self.attached.lsm = None;
        for (_, interface) in std::mem::take(&mut self.attached.interfaces) {
            detach_classifiers(&interface.link, interface.links);
        }
        let Some(Pinned {
            instance, others, ..
        }) = self.pinned.take()
        else {
            return Ok(());
        };
        let mut result = instance.remove();
        for other in others {
            result = result.and(other.remove());
        }
        if let Some(root) = instance.path().parent() {
            let _ = std::fs::remove_dir(root);
        }
        result
    }

    /// Removes what previous agents left, once everything is attached that should be: links that
    /// were not taken over, and the maps of other layouts.
    ///
    /// # Errors
    ///
    /// The first pin that could not be removed.
    pub fn retire_others(&mut self) -> Result<(), KernelError> {
        let Some(Pinned {
            instance, others, ..
        }) = &mut self.pinned
        else {
            return Ok(());
        };
        let mut result = Ok(());
        for other in std::mem::take(others) {
            result = result.and(other.remove());
        }
        for index in instance.interfaces() {
            if self.attached.interfaces.contains_key(&index) {
                continue;
            }
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                result = result.and(pins::remove_link(&instance.interface(index, direction)));
            }
        }
        for name in CGROUP {
            if !self.attached.cgroups.iter().any(|hook| hook.name == name) {
                result = result.and(pins::remove_link(&instance.cgroup(name)));
            }
        }
        result
    }

    /// Whether anything is attached by a filter at the clsact qdisc, which no link event reports.
    pub fn has_filters(&self) -> bool {
        let mut links = self.attached.interfaces.values().flat_map(|i| &i.links);
        links.any(|(_, hold)| matches!(hold, Hold::Filter))
    }

    /// Sets which of our filters exist at clsact qdiscs. They are replaced in place.
    pub fn set_filters(&mut self, filters: &[Leftover]) {
        let of = |filter: &Leftover| (filter.index, filter.hook == Hook::TcIngress);
        self.attached.filters = filters.iter().map(of).collect();
    }

    /// Brings the roles and attachments of interfaces up to date, given all existing interfaces,
    /// each with its role. Returns messages about what was attached or has disappeared.
    ///
    /// # Errors
    ///
    /// The first one that the kernel refused. The others are attached all the same.
    pub fn attach_interfaces(
        &mut self,
        links: &[(Link, Role)],
        mode: TcMode,
    ) -> Result<Vec<String>, KernelError> {
        let mut messages = self.forget_interfaces(links);
        let mut result = Ok(());
        for (link, role) in links {
            let known = self.attached.interfaces.get(&link.index);
            let wanted = self.directions(link, *role);
            let known = known.map(|known| (known.role, known.is_as_wanted(*role, &wanted)));
            let done = match known {
                Some((_, true)) => self.update_link(link, *role),
                _ => self.attach_interface(link, *role, mode).map(|()| {
                    messages.extend(change(link, known.map(|(before, _)| before), *role))
                }),
            };
            result = result.and(done);
        }
        result.map(|()| messages)
    }

    /// Moves our programs to the front where other programs were attached before them: ours would
    /// never see what those accept. (At the cgroup hooks all programs run, whatever one of them
    /// returns, and clsact filters have a priority.) Returns messages about what was found.
    ///
    /// # Errors
    ///
    /// The first program that could not be attached anew. It stays where it was.
    pub fn move_to_front(&mut self) -> Result<Vec<String>, KernelError> {
        let mut late = Vec::new();
        for interface in self.attached.interfaces.values() {
            let link = &interface.link;
            for (direction, hold) in &interface.links {
                if let Some(own) = hold.program()
                    && let Some(other) = runs_before(own, link, *direction)
                {
                    late.push((link.clone(), *direction, other));
                }
            }
        }
        if late.is_empty() {
            return Ok(Vec::new());
        }
        // The kernel attaches a program only once to each place, but accepts a second program with
        // the same code.
        if self.pinned.is_some() {
            self.load_again()?;
        }
        let mut messages = Vec::new();
        let mut result = Ok(());
        for (link, direction, other) in late {
            match self.attach_first(&link, direction) {
                Ok(()) => messages.push(format!(
                    "{other} was attached before ours at {} ({}), which would not have seen what that accepts; ours is \
                     first again",
                    link.name,
                    programs::hook(program_name(&link, direction)).name()
                )),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| messages)
    }

    /// Programs of others that run before ours, and stay there: our filters at clsact come after every TCX program.
    pub fn overtaken(&self) -> Vec<String> {
        let mut found = Vec::new();
        for Interface { link, links, .. } in self.attached.interfaces.values() {
            let filters = links
                .iter()
                .filter(|(_, hold)| matches!(hold, Hold::Filter));
            for (direction, _) in filters {
                let Some(other) = first_by_tcx(link, *direction) else {
                    continue;
                };
                found.push(format!(
                    "{other} is attached to {} ({}) by TCX, which the kernel runs before filters at clsact: what it accepts \
                     is not seen by ours. Attach ours by TCX, too (without --tc clsact), where they come first",
                    enforcer_policy::text::shown(&link.name),
                    programs::hook(program_name(link, *direction)).name()
                ));
            }
        }
        found
    }

    /// Attaches a program a second time, before all others, and removes the link that it had there.
    fn attach_first(&mut self, link: &Link, direction: TcAttachType) -> Result<(), KernelError> {
        let name = program_name(link, direction);
        let program = self.bpf.program(name).ok_or(KernelError::Missing(name))?;
        let interface = self.attached.interfaces.get_mut(&link.index);
        let links = interface.into_iter().flat_map(|known| &mut known.links);
        for (_, hold) in links.filter(|(there, _)| *there == direction) {
            // A pinned link stays until the new one exists, and both judge for a moment. Without
            // pins there are no maps on which to load the programs a second time: for a moment no
            // program of ours is attached, but before that another one already took precedence.
            if let Hold::Open(link) = hold {
                let _ = calls::detach_link(link);
            }
            attach_tcx(program, link, direction, None)
                .and_then(|new| Ok(hold.replace(new)?))
                .map_err(|source| failed(name, &link.name, source))?;
        }
        Ok(())
    }

    /// Whether an interface has lost its programs, as far as links tell: it may have been recreated
    /// with the same name and index.
    pub fn has_lost_links(&self) -> bool {
        let mut interfaces = self.attached.interfaces.values();
        interfaces.any(|interface| !interface.is_alive(&self.attached.filters))
    }

    /// Forgets interfaces that are gone, or were replaced by others with the same name and index.
    fn forget_interfaces(&mut self, links: &[(Link, Role)]) -> Vec<String> {
        let wanted: BTreeMap<u32, &(Link, Role)> = links
            .iter()
            .map(|wanted| (wanted.0.index, wanted))
            .collect();
        let gone = |interface: &&Interface| {
            !wanted.contains_key(&interface.link.index)
                || !interface.is_alive(&self.attached.filters)
        };
        let interfaces = self.attached.interfaces.values();
        let gone: Vec<u32> = interfaces.filter(gone).map(|i| i.link.index).collect();
        let mut messages = Vec::new();
        for index in gone {
            let Some(interface) = self.attached.interfaces.remove(&index) else {
                continue;
            };
            let _ = self.attached.roles.remove(index);
            detach_classifiers(&interface.link, interface.links);
            messages.push(format!(
                "{} is no longer {}",
                interface.link.name,
                interface.role.word()
            ));
        }
        // Of interfaces that disappeared while no agent ran, only the role is left.
        for index in self.attached.roles.interfaces() {
            if !wanted.contains_key(&index) {
                let _ = self.attached.roles.remove(index);
            }
        }
        messages
    }

    /// Writes the role of an interface for the programs to look up.
    fn set_role(&mut self, link: &Link, role: Role) -> Result<(), KernelError> {
        let fallback = self.attached.fallback_roles.get(&link.index);
        let other = link.role_word(*fallback.unwrap_or(&role));
        let upper = self.slots.current.upper_roles;
        let both = Role::with_half(0, !upper, other);
        let both = Role::with_half(both, upper, link.role_word(role));
        self.attached.roles.set(link.index, both)
    }

    /// Sets the roles of interfaces under the policy that the programs may fall back to; empty if
    /// there is no such policy. Must be called before [`Self::attach_interfaces`].
    pub fn set_fallback_roles(&mut self, roles: &[(Link, Role)]) {
        let roles = roles.iter();
        self.attached.fallback_roles = roles.map(|(link, role)| (link.index, *role)).collect();
    }

    /// Where programs are attached to an interface: wherever either of its two roles needs them,
    /// while it has two.
    fn directions(&self, link: &Link, role: Role) -> Vec<TcAttachType> {
        let mut wanted = directions(link, role).to_vec();
        if let Some(fallback) = self.attached.fallback_roles.get(&link.index) {
            let more = directions(link, *fallback).iter();
            wanted.extend(more.filter(|more| !directions(link, role).contains(more)));
        }
        wanted
    }

    /// Records a change of an interface that does not affect its programs, such as its name or the
    /// bridge that it is a port of.
    fn update_link(&mut self, link: &Link, role: Role) -> Result<(), KernelError> {
        if let Some(known) = self.attached.interfaces.get_mut(&link.index)
            && known.link != *link
        {
            known.link = link.clone();
        }
        self.set_role(link, role)
    }

    /// Attaches to an interface what its role needs. What is attached already stays, without a gap.
    /// After an error, a new interface has nothing attached; a known one keeps its role for now.
    fn attach_interface(
        &mut self,
        link: &Link,
        role: Role,
        mode: TcMode,
    ) -> Result<(), KernelError> {
        // The role must be in place when the first packet arrives.
        self.set_role(link, role)?;
        let wanted = self.directions(link, role);
        let known = self.attached.interfaces.remove(&link.index);
        let is_new = known.is_none();
        let mut interface = known.unwrap_or_else(|| Interface {
            link: link.clone(),
            role,
            links: Vec::new(),
        });
        let mut result = Ok(());
        for direction in &wanted {
            if interface.links.iter().any(|(there, _)| there == direction) {
                continue;
            }
            match self.attach_classifier(link, *direction, mode) {
                Ok(hold) => interface.links.push((*direction, hold)),
                Err(error) if is_new => {
                    // The interface may be gone by now, and nothing would remove its role later.
                    let _ = self.attached.roles.remove(link.index);
                    detach_classifiers(link, interface.links);
                    return Err(error);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        if result.is_ok() {
            (interface.link, interface.role) = (link.clone(), role);
            let links = std::mem::take(&mut interface.links).into_iter();
            let (keep, too_many) = links.partition(|(direction, _)| wanted.contains(direction));
            interface.links = keep;
            detach_classifiers(link, too_many);
            self.drop_directions(link, &wanted);
        }
        self.attached.interfaces.insert(link.index, interface);
        result
    }

    /// Detaches what a previous agent attached to an interface and is no longer wanted.
    fn drop_directions(&mut self, link: &Link, wanted: &[TcAttachType]) {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            if wanted.contains(&direction) {
                continue;
            }
            if let Some(pinned) = &self.pinned {
                let _ = pins::remove_link(&pinned.instance.interface(link.index, direction));
            }
            if self.attached.filters.remove(&key(link, direction)) {
                let _ = remove_leftover(&link.name, direction, program_name(link, direction));
            }
        }
    }

    /// Attaches the program for a direction, replacing one that is there.
    fn attach_classifier(
        &mut self,
        link: &Link,
        direction: TcAttachType,
        mode: TcMode,
    ) -> Result<Hold, KernelError> {
        let name = program_name(link, direction);
        let program = self
            .bpf
            .program_mut(name)
            .ok_or(KernelError::Missing(name))?;
        let pin = |instance: &super::pins::Instance| instance.interface(link.index, direction);
        let has_filter = self.attached.filters.contains(&key(link, direction));
        if mode != TcMode::Clsact {
            if let Some(pinned) = &self.pinned
                && let target = LinkTarget::Interface(link.index)
                && let Some(hold) = pinned.take_over(pin, target, program)
            {
                return Ok(hold);
            }
            let pin = self.pinned.as_ref().map(|pinned| pin(&pinned.instance));
            match attach_tcx(program, link, direction, pin) {
                Err(error) if mode == TcMode::Auto && lacks_tcx(&error) => {}
                Err(error) => return Err(failed(name, &link.name, error)),
                Ok(hold) => {
                    if has_filter {
                        let _ = remove_leftover(&link.name, direction, name);
                        self.attached.filters.remove(&key(link, direction));
                    }
                    return Ok(hold);
                }
            }
        }
        attach_filter(
            classifier(program, name)?,
            name,
            link,
            direction,
            has_filter,
        )
        .map_err(|error| failed(name, &link.name, error))?;
        if let Some(pinned) = &self.pinned {
            // A previous agent may have attached it by a link.
            let _ = pins::remove_link(&pin(&pinned.instance));
        }
        self.attached.filters.insert(key(link, direction));
        Ok(Hold::Filter)
    }

    /// How many times programs are attached.
    pub fn count_attachments(&self) -> usize {
        let of_interfaces = self.attached.interfaces.values();
        let of_interfaces: usize = of_interfaces.map(|interface| interface.links.len()).sum();
        usize::from(self.sees_all_options()) + self.attached.cgroups.len() + of_interfaces
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
            for (direction, hold) in links {
                let program = program_name(link, *direction);
                let how = match hold {
                    Hold::Open(_) | Hold::Pinned(_) => AttachMethod::Tcx,
                    Hold::Filter => AttachMethod::Clsact,
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

    /// The role of an interface, if it has one.
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

/// The programs of a removed interface disappeared with it.
fn detach_classifiers(link: &Link, links: Vec<Classifier>) {
    for (direction, hold) in links.into_iter().rev() {
        hold.detach(link, direction);
    }
}

/// The message about an interface that is new or whose role has changed.
fn change(link: &Link, before: Option<Role>, now: Role) -> Option<String> {
    let (name, now) = (&link.name, now.word());
    match before.map(Role::word) {
        None => Some(format!("{name} is {now}")),
        Some(before) => (before != now).then(|| format!("{name} is {now}, no longer {before}")),
    }
}

fn key(link: &Link, direction: TcAttachType) -> (u32, bool) {
    (link.index, direction == TcAttachType::Ingress)
}

fn attach_to_cgroup(
    name: &'static str,
    program: &Program,
    (directory, id): (&File, u64),
    pinned: Option<&Pinned>,
) -> Result<Hold, ProgramError> {
    let pin = |instance: &super::pins::Instance| instance.cgroup(name);
    if let Some(pinned) = pinned
        && let Some(hold) = pinned.take_over(pin, LinkTarget::Cgroup(id), program)
    {
        return Ok(hold);
    }
    let program = program.fd()?;
    let attach_type = attach_type(name).ok_or(ProgramError::UnexpectedProgramType)?;
    let link = calls::attach_to_cgroup(program, directory, attach_type).map_err(link_refused)?;
    Ok(Hold::of(link, pinned.map(|pinned| pin(&pinned.instance)))?)
}

/// Removes the filters of an agent that was killed: unlike links, filters stay when the process
/// ends. Returns how many there were.
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

/// Where a packet enters or leaves this host: at every interface, since a sender with a packet
/// socket can choose any.
fn directions(link: &Link, role: Role) -> &'static [TcAttachType] {
    match role {
        // A bridge of pods' ports has a role but no programs: its ports have them.
        Role::Pod if link.controls_pods => &[],
        // What arrives through a port of a bridge or a bond either arrives through the bridge, and
        // is judged there, or is not for this host.
        Role::Undeclared if link.is_port => &[TcAttachType::Egress],
        // What leaves through lo must be marked before the ingress program there checks for the
        // mark.
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
    program: &'a mut Program,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    match program {
        Program::SchedClassifier(program) => Ok(program),
        _ => Err(KernelError::Missing(name)),
    }
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
