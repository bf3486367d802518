//! Errors, as programs read them.

use std::fmt;

use enforcer_common::record::Hook;
use enforcer_policy::{
    PolicyErrors,
    compile::CompileError,
    model::Mode,
    text,
    vocabulary::{Vocabulary, Word},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kind, preflight::Preflight};

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Error {
    /// What went wrong, for programs.
    pub code: Word<ErrorCode>,
    /// What went wrong, for people.
    pub message: String,
    /// What to do instead, where it is not part of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// What is wrong with a policy (`InvalidPolicy`, `UnreadableFile`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<PolicyProblem>,
    /// Filters that still judge packets (`Leftovers`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<Leftover>,
    /// What is in force without an agent (`Unattended`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unattended: Option<Unattended>,
    /// What the policy would cut or refuse (`WouldCut`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Box<Preflight>>,
}

impl Kind for Error {
    const KIND: &'static str = "Error";
}

impl Error {
    /// An error that is said in a sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            help: None,
            errors: Vec::new(),
            leftovers: Vec::new(),
            unattended: None,
            preflight: None,
        }
    }
}

/// The message, and where each error of a policy is.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for problem in &self.errors {
            write!(f, "\n  {}", text::shown(&problem.file))?;
            if let Some(line) = problem.line {
                write!(f, ":{line}:{}", problem.column.unwrap_or(1))?;
            }
            write!(f, ": {}", problem.message)?;
            if let Some(help) = &problem.help {
                write!(f, " ({help})")?;
            }
        }
        Ok(())
    }
}

impl From<&PolicyErrors> for Error {
    fn from(errors: &PolicyErrors) -> Self {
        let code = if errors.is_unreadable() {
            ErrorCode::UnreadableFile
        } else {
            ErrorCode::InvalidPolicy
        };
        let first = errors
            .iter()
            .next()
            .map_or("", |error| error.message.as_str());
        let message = match errors.iter().len() {
            0 | 1 => first.to_owned(),
            many => format!("{first}, and {} more errors", many - 1),
        };
        Self {
            errors: PolicyProblem::all(errors),
            ..Self::new(code, message)
        }
    }
}

/// An error in a policy or a file of cases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyProblem {
    /// The file, as it was given.
    pub file: String,
    /// Line, from 1; missing where it is about the file as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in characters, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl PolicyProblem {
    /// All errors of a policy.
    pub fn all(errors: &PolicyErrors) -> Vec<Self> {
        let one = |error: &enforcer_policy::PolicyError| Self {
            file: error.file.clone(),
            line: error.line,
            column: error.column,
            message: error.message.clone(),
            help: error.help.clone(),
        };
        errors.iter().map(one).collect()
    }
}

/// A filter at an interface that an agent left which was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// The interface.
    pub interface: String,
    /// Its index.
    #[serde(skip)]
    pub index: u32,
    /// The hook.
    pub hook: Word<Hook>,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", text::shown(&self.interface), self.hook)
    }
}

/// A policy that an agent left in force, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unattended {
    /// Name of the policy.
    pub policy: String,
    /// How many policies have been in force, this one included.
    pub generation: u32,
    /// What happens to what is denied.
    pub mode: Word<Mode>,
    /// Since when the policy is in force (RFC 3339, UTC).
    pub since: String,
    /// The node of the inventory that it was compiled for.
    pub node: String,
    /// The release of the agent that put it in force.
    pub agent_version: String,
    /// The directory in which it is pinned (`--pin-dir`).
    pub pin_dir: String,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The arguments.
    Usage,
    /// A policy, or a file of cases.
    InvalidPolicy,
    /// A file.
    UnreadableFile,
    /// The policy's size.
    PolicyTooLarge,
    /// The question.
    BadQuestion,
    /// The name.
    UnknownName,
    /// No agent.
    NoAgent,
    /// Filters of one that was killed.
    Leftovers,
    /// What one left is in force.
    Unattended,
    /// An agent does not answer.
    AgentSilent,
    /// One runs already.
    AgentRunning,
    /// Another version.
    VersionMismatch,
    /// Not understood.
    UnknownRequest,
    /// Not readable.
    BadRequest,
    /// Too many followers.
    TooManyFollowers,
    /// Neither root nor its capabilities.
    MissingCapabilities,
    /// Which node.
    UnknownNode,
    /// An interface.
    UnknownInterface,
    /// The kernel.
    Kernel,
    /// Nothing can be pinned in the directory of pins.
    NoBpfFs,
    /// Others can write there.
    PinsOfOthers,
    /// What is pinned is of another network namespace.
    PinsElsewhere,
    /// What is pinned would go on beside.
    PinsLeft,
    /// Another agent works with what is pinned.
    PinsInUse,
    /// A pin.
    Pins,
    /// The policy in force has to be confirmed first.
    Unconfirmed,
    /// Nothing has to be confirmed.
    NothingToConfirm,
    /// Not confirmed in time.
    TooLate,
    /// No policy before.
    NothingBefore,
    /// Nothing to probe.
    NothingAlive,
    /// Something that is open now.
    WouldCut,
    /// The kernel takes no programs.
    ProgramsRefused,
    /// No agent, and no programs.
    FallbackOnly,
    /// A system call.
    System,
    /// The result cannot be written.
    Output,
    /// Anything else.
    Failed,
}

impl From<&CompileError> for ErrorCode {
    fn from(error: &CompileError) -> Self {
        match error {
            CompileError::UnknownNode { .. } => Self::UnknownNode,
            CompileError::TooMany { .. } => Self::PolicyTooLarge,
        }
    }
}

impl Vocabulary for ErrorCode {
    const TITLE: &'static str = "ErrorCode";
    const ABOUT: &'static str = "What went wrong.";
    const WORDS: &'static [Self] = &[
        Self::Usage,
        Self::InvalidPolicy,
        Self::UnreadableFile,
        Self::PolicyTooLarge,
        Self::BadQuestion,
        Self::UnknownName,
        Self::NoAgent,
        Self::Leftovers,
        Self::Unattended,
        Self::AgentSilent,
        Self::AgentRunning,
        Self::VersionMismatch,
        Self::UnknownRequest,
        Self::BadRequest,
        Self::TooManyFollowers,
        Self::MissingCapabilities,
        Self::UnknownNode,
        Self::UnknownInterface,
        Self::Kernel,
        Self::NoBpfFs,
        Self::PinsOfOthers,
        Self::PinsElsewhere,
        Self::PinsLeft,
        Self::PinsInUse,
        Self::Pins,
        Self::Unconfirmed,
        Self::NothingToConfirm,
        Self::TooLate,
        Self::NothingBefore,
        Self::NothingAlive,
        Self::WouldCut,
        Self::ProgramsRefused,
        Self::FallbackOnly,
        Self::System,
        Self::Output,
        Self::Failed,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Usage => "Usage",
            Self::InvalidPolicy => "InvalidPolicy",
            Self::UnreadableFile => "UnreadableFile",
            Self::PolicyTooLarge => "PolicyTooLarge",
            Self::BadQuestion => "BadQuestion",
            Self::UnknownName => "UnknownName",
            Self::NoAgent => "NoAgent",
            Self::Leftovers => "Leftovers",
            Self::Unattended => "Unattended",
            Self::AgentSilent => "AgentSilent",
            Self::AgentRunning => "AgentRunning",
            Self::VersionMismatch => "VersionMismatch",
            Self::UnknownRequest => "UnknownRequest",
            Self::BadRequest => "BadRequest",
            Self::TooManyFollowers => "TooManyFollowers",
            Self::MissingCapabilities => "MissingCapabilities",
            Self::UnknownNode => "UnknownNode",
            Self::UnknownInterface => "UnknownInterface",
            Self::Kernel => "Kernel",
            Self::NoBpfFs => "NoBpfFs",
            Self::PinsOfOthers => "PinsOfOthers",
            Self::PinsElsewhere => "PinsElsewhere",
            Self::PinsLeft => "PinsLeft",
            Self::PinsInUse => "PinsInUse",
            Self::Pins => "Pins",
            Self::Unconfirmed => "Unconfirmed",
            Self::NothingToConfirm => "NothingToConfirm",
            Self::TooLate => "TooLate",
            Self::NothingBefore => "NothingBefore",
            Self::NothingAlive => "NothingAlive",
            Self::WouldCut => "WouldCut",
            Self::ProgramsRefused => "ProgramsRefused",
            Self::FallbackOnly => "FallbackOnly",
            Self::System => "System",
            Self::Output => "Output",
            Self::Failed => "Failed",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Usage => "the arguments are wrong",
            Self::InvalidPolicy => "a policy or a file of cases is invalid; `errors` says where",
            Self::UnreadableFile => "a file cannot be read; `errors` names it",
            Self::PolicyTooLarge => "the policy is valid, and exceeds what can be compiled",
            Self::BadQuestion => {
                "`explain` was asked something that makes no sense with this policy"
            }
            Self::UnknownName => "nothing has the name that was given",
            Self::NoAgent => "no agent runs here",
            Self::Leftovers => {
                "no agent runs here, and filters of one that was killed still judge packets; `leftovers` lists them"
            }
            Self::Unattended => {
                "no agent runs here, and what one left is in force without one; `unattended` says what"
            }
            Self::AgentSilent => "an agent runs here and does not answer",
            Self::AgentRunning => "an agent runs here already",
            Self::VersionMismatch => {
                "the agent and the command line are of two versions that do not understand each other"
            }
            Self::UnknownRequest => {
                "the agent does not know the request: it is older than the command line"
            }
            Self::BadRequest => "the agent cannot read the request",
            Self::TooManyFollowers => "no more may follow the agent's events",
            Self::MissingCapabilities => {
                "the process lacks capabilities that the command needs; the message names them"
            }
            Self::UnknownNode => "which node of the inventory this is cannot be determined",
            Self::UnknownInterface => "an interface is missing, or its pattern is wrong",
            Self::Kernel => "the kernel refuses a program, a map or an attachment",
            Self::NoBpfFs => {
                "the directory of pins is not on a BPF file system, so enforcement could not outlive the agent"
            }
            Self::PinsOfOthers => {
                "others than root and the agent's user can write the directory of pins"
            }
            Self::PinsElsewhere => {
                "what is pinned in the directory of pins is enforced in another network namespace"
            }
            Self::PinsLeft => {
                "enforcement that an agent left pinned would go on beside what is to end with the agent (`--no-pin`)"
            }
            Self::PinsInUse => "another agent works with what is pinned in the directory of pins",
            Self::Pins => "a pin, or the directory of pins, cannot be made or removed",
            Self::Unconfirmed => "the policy in force has to be confirmed or taken back first",
            Self::NothingToConfirm => "no policy has to be confirmed",
            Self::TooLate => {
                "the policy was not confirmed in time, and the one before is in force again"
            }
            Self::NothingBefore => "no policy was confirmed before the one in force",
            Self::NothingAlive => {
                "no path and no connection was alive in the last minute, so probes could not confirm a policy"
            }
            Self::WouldCut => {
                "the policy is not put in force, as it would cut what is open now; `preflight` lists it"
            }
            Self::ProgramsRefused => {
                "the kernel refuses the programs, and the policy is not enforced; the message says what holds the guarded ports instead"
            }
            Self::FallbackOnly => {
                "no agent runs here, and rules of nftables hold the guarded ports in place of programs that the kernel refused"
            }
            Self::System => "a system call failed",
            Self::Output => "the result cannot be written",
            Self::Failed => "anything else; the message says what",
        }
    }
}
