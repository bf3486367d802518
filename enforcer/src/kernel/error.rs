//! What can go wrong at the kernel's border, in the words of who has to repair it.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, links::LinkError},
};

use crate::api::ErrorCode;

/// Why something with the kernel failed. None says its cause itself: [`enforcer_policy::text::chain`] does.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Loading needs more rights.
    #[error(
        "the kernel refused to {action} (it takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
    )]
    NotAllowed {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no BTF (no /sys/kernel/btf/vmlinux): one built with CONFIG_DEBUG_INFO_BTF is needed"
    )]
    NoBtf,
    /// The kernel's packets are laid out in another way than on any kernel that is known.
    #[error(
        "this kernel's type information does not say where a packet (struct sk_buff) has its checksum: please report the kernel's version"
    )]
    UnknownLayout,
    /// The object can not be loaded.
    #[error("failed to load the kernel programs")]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel refused the program `{program}`: {cause}\n{log}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What the kernel said. No source: its place is before the log.
        cause: io::Error,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// The object does not hold what this version needs.
    #[error("the built-in kernel object has no {0}: it was built from another version")]
    Missing(&'static str),
    /// A map could not be made, read or written.
    #[error("failed to {action}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<MapError>,
    },
    /// A program could not be attached.
    #[error("failed to attach `{program}` to {place}")]
    Attach {
        /// The program.
        program: &'static str,
        /// An interface or a cgroup.
        place: String,
        /// Why it failed.
        source: Box<ProgramError>,
    },
    /// The kernel's list of interfaces could not be read.
    #[error("failed to list the network interfaces: {0}")]
    Links(String),
    /// A link handle was refused.
    #[error("failed to keep an attachment")]
    Link(#[from] Box<LinkError>),
    /// No cgroup v2.
    #[error("no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup)")]
    NoCgroup2,
    /// The cgroup root is not there.
    #[error(
        "the cgroup root {} can not be opened (see cgroupRoot in the inventory, or --cgroup-root)",
        enforcer_policy::text::path(path)
    )]
    CgroupRoot {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory of pins is elsewhere.
    #[error(
        "{} is not on a BPF file system, where enforcement could outlive the agent: mount one (mount -t bpf bpf /sys/fs/bpf), name a directory on one (--pin-dir), or let enforcement end with the agent (--no-pin)",
        enforcer_policy::text::path(path)
    )]
    NoBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else could exchange what is pinned.
    #[error(
        "{} is not a directory that only root, or the user of this agent, can write: whoever can could take enforcement off. If the service's agent left it, start the service or `enforcer detach`; else remove it, or name another one (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsOfOthers {
        /// The directory.
        path: PathBuf,
    },
    /// What is pinned is enforced in another network namespace.
    #[error(
        "what is pinned in {} is enforced in another network namespace than this one: name another directory (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsElsewhere {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent works with what is pinned.
    #[error(
        "another agent works with what is pinned in {}: end it first, or name another directory (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsInUse {
        /// The directory.
        path: PathBuf,
    },
    /// Enforcement was to end with the agent, and there is some that does not.
    #[error(
        "an agent before this one left enforcement in {}, which would go on beside: remove it first (`enforcer detach`), or take it over (without --no-pin)",
        enforcer_policy::text::path(path)
    )]
    PinsLeft {
        /// The directory.
        path: PathBuf,
    },
    /// Something could not be done with a pin.
    #[error("failed to {action} {}", enforcer_policy::text::path(path))]
    Pins {
        /// What was tried.
        action: &'static str,
        /// The pin or a directory of them.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another policy can not be put in force before the last one is confirmed.
    #[error(
        "generation {generation} waits to be confirmed: `enforcer confirm` or `enforcer rollback` first"
    )]
    Unconfirmed {
        /// It.
        generation: u32,
    },
    /// There is no deadline.
    #[error("nothing waits to be confirmed")]
    NothingToConfirm,
    /// The deadline has passed.
    #[error(
        "it is too late: generation {generation} was not confirmed in time, and the policy before is in force again"
    )]
    TooLate {
        /// It.
        generation: u32,
    },
    /// A system call failed.
    #[error("failed to {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Too many interfaces with roles have numbers that are too much alike.
    #[error(
        "there is no room for the role of the interface with index {index}: all {} places where it may stand are taken by others; remove and add it again to give it another index",
        enforcer_common::interfaces::REACH
    )]
    NoRoomForInterface {
        /// The interface.
        index: u32,
    },
    /// The policy does not fit.
    #[error("{count} cgroups match the declared ones, more than {max}: use fewer globs")]
    TooManyCgroups {
        /// How many there are.
        count: usize,
        /// The limit.
        max: u32,
    },
}

impl KernelError {
    /// What it is, for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoBpfFs { .. } => ErrorCode::NoBpfFs,
            Self::PinsOfOthers { .. } => ErrorCode::PinsOfOthers,
            Self::PinsElsewhere { .. } => ErrorCode::PinsElsewhere,
            Self::PinsLeft { .. } => ErrorCode::PinsLeft,
            Self::PinsInUse { .. } => ErrorCode::PinsInUse,
            Self::Pins { .. } => ErrorCode::Pins,
            Self::Unconfirmed { .. } => ErrorCode::Unconfirmed,
            Self::NothingToConfirm => ErrorCode::NothingToConfirm,
            Self::TooLate { .. } => ErrorCode::TooLate,
            _ => ErrorCode::Kernel,
        }
    }

    /// For a map operation.
    pub(super) fn map(action: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map {
            action,
            source: Box::new(source),
        }
    }

    /// For a load error of a program.
    pub(super) fn program(program: &'static str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError { io_error, .. }
                if io_error.raw_os_error() == Some(libc::EPERM) =>
            {
                Self::NotAllowed {
                    action: format!("load `{program}`"),
                    source: io_error,
                }
            }
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => {
                let log = last_lines(&verifier_log.to_string(), 12);
                Self::Refused {
                    program,
                    cause: io_error,
                    log,
                }
            }
            source => Self::Attach {
                program,
                place: "the kernel".to_owned(),
                source: Box::new(source),
            },
        }
    }

    /// For the load of the whole object.
    pub(super) fn load(error: EbpfError) -> Self {
        match os_error(&error) {
            Some(code) if code == libc::EPERM => Self::NotAllowed {
                action: "create BPF maps".to_owned(),
                source: io::Error::from_raw_os_error(code),
            },
            _ => Self::Load(Box::new(error)),
        }
    }
}

/// The code of the system call at the bottom of an error.
fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(code);
        }
        cause = error.source();
    }
    None
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
