//! What keeps a program attached: a link, pinned or open, or a filter at the clsact qdisc. Creates
//! it, takes it over from a previous agent, and checks it.

use std::{io, os::fd::OwnedFd, path::PathBuf};

use aya::{
    programs::{
        Program, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
        tc::{
            NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle,
            qdisc_add_clsact, qdisc_detach_program,
        },
    },
    sys::SyscallError,
};
use nix::net::if_::if_nametoindex;

use super::{
    Link,
    calls::{self, LinkTarget},
    pins,
    programs::{TCX_EGRESS, TCX_INGRESS},
    state::{Hold, Pinned},
};

impl Hold {
    /// A new link: pinned, or open as long as this process keeps it.
    pub(super) fn of(link: OwnedFd, pin: Option<PathBuf>) -> io::Result<Self> {
        let Some(path) = pin else {
            return Ok(Self::Open(link));
        };
        // Whatever was there is of no use, or it would have been taken over.
        pins::remove_link(&path).map_err(io::Error::other)?;
        if let Some(directory) = path.parent() {
            pins::make_directory(directory)?;
        }
        calls::pin(&link, &path)?;
        Ok(Self::Pinned(path))
    }

    /// Replaces a link by a new one for the same program, without a gap.
    pub(super) fn replace(&mut self, new: Self) -> io::Result<()> {
        match (&*self, new) {
            (Self::Pinned(path), Self::Open(link)) => {
                // If this process dies in between, both links exist, and the next agent removes
                // this one.
                let replacement = pins::replacement(path);
                let _ = pins::remove_link(&replacement);
                calls::pin(&link, &replacement)?;
                std::fs::rename(&replacement, path)
            }
            (_, new) => {
                *self = new;
                Ok(())
            }
        }
    }

    /// The id of the link's program.
    pub(super) fn program(&self) -> Option<u32> {
        match self {
            Self::Open(link) => calls::program_of(link).ok(),
            Self::Pinned(path) => calls::program_of(&calls::open_pin(path).ok()?).ok(),
            Self::Filter => None,
        }
    }

    /// Whether a link is still attached to an interface. A filter has no link.
    pub(super) fn is_alive(&self, index: u32) -> bool {
        let target = match self {
            Self::Open(link) => calls::target_of(link),
            Self::Pinned(path) => {
                calls::open_pin(path).and_then(|link: OwnedFd| calls::target_of(&link))
            }
            Self::Filter => return true,
        };
        // Without a spare file descriptor, nothing is known, and nothing is done.
        target.map_or_else(
            |error| error.kind() != io::ErrorKind::NotFound,
            |target| target == LinkTarget::Interface(index),
        )
    }

    /// Detaches it, unless it is gone.
    pub(super) fn detach(self, link: &Link, direction: TcAttachType) {
        match self {
            Self::Open(link) => {
                let _ = calls::detach_link(&link);
            }
            Self::Pinned(path) => {
                let _ = pins::remove_link(&path);
            }
            // The name alone could be another interface's by now. If the interface is gone, so is
            // the filter.
            Self::Filter if if_nametoindex(link.name.as_str()) != Ok(link.index) => {}
            Self::Filter => {
                let attached = SchedClassifierLink::attached(
                    &link.name,
                    direction,
                    CLSACT_PRIORITY,
                    CLSACT_HANDLE,
                    None,
                );
                // Dropping it detaches it.
                drop(attached);
            }
        }
    }
}

impl Pinned {
    /// Takes over a pinned link, of this or another instance, if it is attached to the right
    /// target, by replacing its program in place. Other links are left alone; they are removed once
    /// there is a replacement.
    pub(super) fn take_over(
        &self,
        pin: impl Fn(&super::pins::Instance) -> PathBuf,
        target: LinkTarget,
        program: &Program,
    ) -> Option<Hold> {
        let here = pin(&self.instance);
        for instance in std::iter::once(&self.instance).chain(&self.others) {
            let path = pin(instance);
            // From an agent that died while replacing one link by another: the new one comes first.
            let _ = std::fs::rename(pins::replacement(&path), &path);
            let Ok(link) = calls::open_pin(&path) else {
                continue;
            };
            let is_it = calls::target_of(&link).is_ok_and(|found| found == target);
            let program = program.fd().ok()?;
            if !is_it || calls::update_link(&link, program).is_err() {
                continue;
            }
            if path != here {
                let directory = here.parent()?;
                pins::make_directory(directory).ok()?;
                // A link may have several pins. If it cannot get another, it keeps the one that it
                // has.
                if calls::pin(&link, &here).is_err() {
                    return Some(Hold::Pinned(path));
                }
                let _ = std::fs::remove_file(&path);
                pins::remove_directory_of(&path);
            }
            return Some(Hold::Pinned(here));
        }
        None
    }
}

/// Identifies our filters at an interface. All have one priority and handle, so that there are
/// never two.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x0e_f0);

pub(super) fn attach_tcx(
    program: &Program,
    link: &Link,
    direction: TcAttachType,
    pin: Option<PathBuf>,
) -> Result<Hold, ProgramError> {
    let attach_type = match direction {
        TcAttachType::Ingress => TCX_INGRESS,
        _ => TCX_EGRESS,
    };
    let link = calls::attach_to_interface(program.fd()?, link.index, attach_type);
    let link = link.map_err(link_refused)?;
    Ok(Hold::of(link, pin)?)
}

pub(super) fn link_refused(io_error: io::Error) -> ProgramError {
    SyscallError {
        call: "bpf_link_create",
        io_error,
    }
    .into()
}

/// Adds our filter at the clsact qdisc, or replaces its program in place.
pub(super) fn attach_filter(
    program: &mut SchedClassifier,
    name: &str,
    link: &Link,
    direction: TcAttachType,
    is_there: bool,
) -> Result<(), ProgramError> {
    let (priority, handle) = (CLSACT_PRIORITY, CLSACT_HANDLE);
    if is_there {
        let there = SchedClassifierLink::attached(&link.name, direction, priority, handle, None)?;
        if let Ok(replaced) = program.attach_to_link(there) {
            return keep_filter(program, replaced);
        }
        // It is gone, or of another kind.
        let _ = remove_leftover(&link.name, direction, name);
    }
    // The qdisc may exist already, for other filters; what matters is whether ours can be added.
    let _ = qdisc_add_clsact(&link.name);
    let options = NlOptions {
        priority,
        handle,
        classid: None,
    };
    let options = TcAttachOptions::Netlink(options);
    let added = program.attach_with_options(&link.name, direction, options)?;
    keep_filter(program, added)
}

/// Takes a filter out of aya's management, which would remove it when this process ends.
fn keep_filter(
    program: &mut SchedClassifier,
    link: SchedClassifierLinkId,
) -> Result<(), ProgramError> {
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

/// The name of a program that runs before ours, if there is one.
pub(super) fn runs_before(own: u32, link: &Link, direction: TcAttachType) -> Option<String> {
    let (_, programs) = SchedClassifier::query_tcx(&link.name, direction).ok()?;
    let first = programs.first()?;
    // If ours is not among them, it was detached, not displaced.
    let has_ours = programs.iter().any(|program| program.id() == own);
    (first.id() != own && has_ours).then(|| described(first))
}

/// The name of the first TCX program at an interface that is not ours, if there is one. It runs before every filter at
/// clsact.
pub(super) fn first_by_tcx(link: &Link, direction: TcAttachType) -> Option<String> {
    let (_, programs) = SchedClassifier::query_tcx(&link.name, direction).ok()?;
    programs.first().map(described)
}

fn described(program: &ProgramInfo) -> String {
    let name = program.name_as_str().unwrap_or_default();
    let name = enforcer_policy::text::shown(name);
    format!("program `{name}` (id {})", program.id())
}

/// Removes a leftover filter. Returns whether there was one.
pub(super) fn remove_leftover(interface: &str, direction: TcAttachType, name: &str) -> bool {
    // Usually there is none, which is an error as well.
    qdisc_detach_program(interface, direction, name).is_ok()
}
