//! What can go wrong between the agent and the kernel, in the words of whoever has to fix it.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, links::LinkError},
};

use crate::api::ErrorCode;

/// Why something with the kernel failed. No message includes its cause:
/// [`enforcer_policy::text::chain`] adds it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Loading takes more privileges.
    #[error(
        "the kernel refused to {action} (it takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
    )]
    NotAllowed {
        /// What was tried.
        action: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no BTF (no /sys/kernel/btf/vmlinux): one built with CONFIG_DEBUG_INFO_BTF is needed"
    )]
    NoBtf,
    /// The layout of the kernel's packets differs from every known kernel's.
    #[error(
        "this kernel's type information does not say where a packet (struct sk_buff) has its checksum: please report the kernel's version"
    )]
    UnknownLayout,
    /// The object cannot be loaded.
    #[error("failed to load the kernel programs")]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel refused the program `{program}`: {cause}\n{log}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The kernel's error. Not a source, since it has to be printed before the log.
        cause: io::Error,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// The object lacks something that this version needs.
    #[error("the built-in kernel object has no {0}: it was built from another version")]
    Missing(&'static str),
    /// A map could not be created, read or written.
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
    /// The cgroup root does not exist.
    #[error(
        "the cgroup root {} cannot be opened (see cgroupRoot in the inventory, or --cgroup-root)",
        enforcer_policy::text::path(path)
    )]
    CgroupRoot {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory of pins is on another file system.
    #[error(
        "{} is not on a BPF file system, where enforcement could outlive the agent: mount one (mount -t bpf bpf /sys/fs/bpf), name a directory on one (--pin-dir), or let enforcement end with the agent (--no-pin)",
        enforcer_policy::text::path(path)
    )]
    NoBpfFs {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else could replace what is pinned.
    #[error(
        "{} is not a directory that only root, or the user of this agent, can write: whoever can write it could remove enforcement. If the service's agent left it, start the service or `enforcer detach`; else remove it, or name another one (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsOfOthers {
        /// The directory.
        path: PathBuf,
    },
    /// The pinned programs enforce in another network namespace.
    #[error(
        "what is pinned in {} is enforced in another network namespace than this one: name another directory (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsElsewhere {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent uses the pins.
    #[error(
        "another agent works with what is pinned in {}: end it first, or name another directory (--pin-dir)",
        enforcer_policy::text::path(path)
    )]
    PinsInUse {
        /// The directory.
        path: PathBuf,
    },
    /// Enforcement should end with the agent, but a previous agent left some that does not.
    #[error(
        "a previous agent left enforcement in {}, which would stay in force: remove it first (`enforcer detach`), or take it over (without --no-pin)",
        enforcer_policy::text::path(path)
    )]
    PinsLeft {
        /// The directory.
        path: PathBuf,
    },
    /// An operation on a pin failed.
    #[error("failed to {action} {}", enforcer_policy::text::path(path))]
    Pins {
        /// What was tried.
        action: &'static str,
        /// The pin or a directory of them.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another policy cannot be put in force before the last one is confirmed.
    #[error(
        "generation {generation} waits to be confirmed: `enforcer confirm` or `enforcer rollback` first"
    )]
    Unconfirmed {
        /// The unconfirmed generation.
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
        /// The generation that was not confirmed.
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
    /// Too many interfaces with roles have indices that hash to the same places.
    #[error(
        "there is no room for the role of the interface with index {index}: all {} places where it may stand are taken by others; remove and add it again to give it another index",
        enforcer_common::interfaces::REACH
    )]
    NoRoomForInterface {
        /// The interface.
        index: u32,
    },
    /// The policy exceeds a limit.
    #[error("{count} cgroups match the declared ones, more than {max}: use fewer globs")]
    TooManyCgroups {
        /// How many there are.
        count: usize,
        /// The limit.
        max: u32,
    },
}

impl KernelError {
    /// The error's code, for programs.
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

    /// For an error when loading a program.
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

    /// For an error when loading the whole object.
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

/// The error code of the system call that caused an error.
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
