//! Why an agent does not run, or does not answer.

use std::{io, path::PathBuf, time::Duration};

use enforcer_policy::{PolicyErrors, compile::CompileError, error::some, vocabulary::Word};

use crate::{
    api::{self, ErrorCode, Leftover, Preflight, ReadError, Unattended},
    kernel::KernelError,
};

/// Why an agent does not run, or does not answer. No message includes its cause:
/// [`enforcer_policy::text::chain`] adds it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The process runs neither as root nor with the capabilities it needs.
    #[error(
        "this process lacks {}: run it as root, or as a service with these capabilities",
        missing.join(", ")
    )]
    MissingCapabilities {
        /// The missing capabilities, each with its purpose.
        missing: Vec<String>,
    },
    /// Another agent runs.
    #[error(
        "an agent runs here already (pid {pid}): end it first with `enforcer detach`, or give this one another --run-dir and node"
    )]
    Running {
        /// Its process id.
        pid: String,
    },
    /// Nobody answers at the control socket.
    #[error(
        "no agent runs here ({}): start one with `enforcer run -p …`",
        enforcer_policy::text::path(socket)
    )]
    NoAgent {
        /// The control socket's path.
        socket: PathBuf,
    },
    /// No agent runs, but filters of a previous one are still attached.
    #[error(
        "no agent runs here, and the filters of one that was killed still judge packets at {}: `enforcer detach` removes them, and `enforcer run` replaces them",
        crate::kernel::filters::list(filters)
    )]
    Leftovers {
        /// The filters.
        filters: Vec<Leftover>,
    },
    /// No agent runs, but a previous one's policy is still in force.
    #[error(
        "no agent runs here, and policy `{}` ({}), generation {}, is in force without one (pinned in {}). Cgroups and interfaces that come now are not known to it, and denials are recorded but not reported. `enforcer run -p …` takes over, `enforcer detach` ends it",
        enforcer_policy::text::shown(&_0.policy),
        _0.mode,
        _0.generation,
        enforcer_policy::text::shown(&_0.pin_dir)
    )]
    Unattended(Box<Unattended>),
    /// The kernel takes no programs, and nothing else is in force.
    #[error("the kernel refuses the programs, and the policy is not enforced. {held}")]
    ProgramsRefused {
        /// What holds the guarded ports instead, or that nothing does.
        held: String,
        /// What the kernel refuses.
        source: KernelError,
    },
    /// Nobody runs, and rules hold guarded ports in place of programs.
    #[error(
        "no agent runs here, and the policy is not enforced: the kernel refused the programs, and rules of nftables (table inet {}) hold the guarded ports by address. `enforcer run -p …` tries again and says why, `enforcer detach` removes the rules",
        enforcer_policy::fallback::TABLE
    )]
    FallbackOnly,
    /// The person who applies a policy would cut himself off.
    #[error(
        "the policy is not put in force: it would cut the connection over which it is applied\n  {}\nallow that connection by a path, or apply the policy all the same with --allow-session-cut, best together with --confirm-within",
        .0.session().map(ToString::to_string).unwrap_or_default()
    )]
    WouldCutSession(Box<Preflight>),
    /// Something that is open would be cut, and is not to be.
    #[error("the policy is not put in force (--require-clean): {}\n  {}", .0.summary(), .0.lines(10).join("\n  "))]
    NotClean(Box<Preflight>),
    /// Probes would confirm anything.
    #[error(
        "no path and no connection of this node was alive in the last minute, so probes would confirm any policy: apply it with --confirm-within alone, and confirm it yourself"
    )]
    NothingAlive,
    /// There is no policy to go back to.
    #[error("no policy was confirmed before the one in force")]
    NothingBefore,
    /// An agent runs, but does not answer in time.
    #[error("the agent here{} does not answer within {} s: {state}", of(*pid), limit.as_secs())]
    Silent {
        /// Its process id, if known.
        pid: Option<u32>,
        /// How long the client waited.
        limit: Duration,
        /// What is known about the process.
        state: &'static str,
    },
    /// The policy is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyErrors),
    /// The policy exceeds a limit.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// An error from the kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It is unclear which node this is.
    #[error(
        "which node is this? {why}; the inventory has {}: say --node NAME",
        some(nodes)
    )]
    Node {
        /// What was found.
        why: String,
        /// The nodes of the inventory.
        nodes: Vec<String>,
    },
    /// An uplink does not exist.
    #[error("there is no interface `{name}`, which is to be an uplink; there are {}", there.join(", "))]
    NoInterface {
        /// The declared name.
        name: String,
        /// The interfaces that exist.
        there: Vec<String>,
    },
    /// An interface pattern is not valid.
    #[error("`{pattern}` is no interface name or glob: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// A system call failed.
    #[error("failed to {action}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The agent ended before it answered.
    #[error("the agent ended before it answered")]
    Ended,
    /// The agent refuses, or answers with something that this version does not understand.
    #[error(transparent)]
    Answer(#[from] ReadError),
}

impl AgentError {
    /// The error's code, for programs.
    pub fn code(&self) -> Word<ErrorCode> {
        let code = match self {
            Self::MissingCapabilities { .. } => ErrorCode::MissingCapabilities,
            Self::Running { .. } => ErrorCode::AgentRunning,
            Self::NoAgent { .. } => ErrorCode::NoAgent,
            Self::Leftovers { .. } => ErrorCode::Leftovers,
            Self::Unattended(_) => ErrorCode::Unattended,
            Self::NothingBefore => ErrorCode::NothingBefore,
            Self::NothingAlive => ErrorCode::NothingAlive,
            Self::ProgramsRefused { .. } => ErrorCode::ProgramsRefused,
            Self::FallbackOnly => ErrorCode::FallbackOnly,
            Self::WouldCutSession(_) | Self::NotClean(_) => ErrorCode::WouldCut,
            Self::Silent { .. } => ErrorCode::AgentSilent,
            Self::Policy(errors) if errors.is_unreadable() => ErrorCode::UnreadableFile,
            Self::Policy(_) => ErrorCode::InvalidPolicy,
            Self::Compile(error) => error.into(),
            Self::Kernel(error) => error.code(),
            Self::Node { .. } => ErrorCode::UnknownNode,
            Self::NoInterface { .. } | Self::Pattern { .. } => ErrorCode::UnknownInterface,
            Self::System { .. } => ErrorCode::System,
            Self::Answer(ReadError::Refused(error)) => return error.code.clone(),
            Self::Answer(_) => ErrorCode::VersionMismatch,
            Self::Ended => ErrorCode::Failed,
        };
        code.into()
    }

    /// What would be cut, where that is why.
    pub const fn preflight(&self) -> Option<&Preflight> {
        match self {
            Self::WouldCutSession(preflight) | Self::NotClean(preflight) => Some(preflight),
            _ => None,
        }
    }

    /// As it goes over the control socket.
    pub fn document(&self) -> api::Error {
        match self {
            Self::Policy(errors) => errors.into(),
            error => api::Error {
                preflight: error.preflight().cloned().map(Box::new),
                code: error.code(),
                ..api::Error::new(ErrorCode::Failed, enforcer_policy::text::chain(error))
            },
        }
    }

    /// For a system call.
    pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System {
            action: action.into(),
            source,
        }
    }
}

fn of(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}
