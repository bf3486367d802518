//! What goes over the control socket beside status and events: requests, and their other answers.

use enforcer_policy::{model::Mode, text, vocabulary::Word};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Kind,
    error::{Error, ErrorCode},
    head::{OWN, Version, object},
    preflight::{Ends, Preflight},
};

/// What can be asked for: one object in a line. The answer is a document in a line, or one for each event.
///
/// `apiVersion`, `kind` and `enforcerVersion` may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "request", rename_all = "camelCase")]
pub enum Request {
    /// The answer is a `Status`.
    Status {},
    /// The answers are `Event`s, and empty lines now and then while there is nothing new.
    Events {
        /// Not only those there are: new ones, too.
        #[serde(default)]
        follow: bool,
        /// Only what was denied, and nothing that dry-run let pass.
        #[serde(default)]
        denied: bool,
    },
    /// The answer is a `Sources`.
    Sources {},
    /// Puts in force what the policy's files hold now. The answer is an `Applied`.
    Apply {
        /// Go back to the policy before unless `confirm` comes within so many milliseconds. Missing: it need not be
        /// confirmed.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            rename = "confirmWithinMs"
        )]
        confirm_within_ms: Option<u64>,
        /// Have it confirmed by something else than `confirm`. Missing: by `confirm` alone.
        #[serde(default, skip_serializing_if = "Option::is_none", rename = "confirmBy")]
        confirm_by: Option<ConfirmBy>,
        /// Put it in force only if it cuts nothing that is open.
        #[serde(
            default,
            skip_serializing_if = "std::ops::Not::not",
            rename = "requireClean"
        )]
        require_clean: bool,
        /// Put it in force although it cuts one of the connections in `session`.
        #[serde(
            default,
            skip_serializing_if = "std::ops::Not::not",
            rename = "allowSessionCut"
        )]
        allow_session_cut: bool,
        /// The connections over which the person works who asks.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        session: Vec<Ends>,
    },
    /// Keeps the policy that has to be confirmed. The answer is an `Applied`.
    Confirm {},
    /// Goes back to the policy before. The answer is an `Applied`.
    Rollback {},
    /// Ends the agent. The answer is a `DetachResult`. Understood whatever the version.
    Detach {},
}

/// What confirms a policy by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ConfirmBy {
    /// What was alive before the switch is alive after it.
    Probes,
}

impl Kind for Request {
    const KIND: &'static str = "Request";
}

/// The requests that this version knows, by name.
pub const UNDERSTOOD: [&str; 7] = [
    "status", "events", "sources", "apply", "confirm", "rollback", "detach",
];

/// What every request has had, and will have, in every version.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Asked {
    api_version: Option<Version>,
    enforcer_version: Option<String>,
    request: Option<String>,
}

/// Reads a request. Fields that this version does not know are ignored.
///
/// # Errors
///
/// It is none, or one of another version: the answer to give.
pub fn read_request(line: &str) -> Result<Request, Box<Error>> {
    let bad = |error: serde_json::Error| {
        let message = format!("this agent (enforcer {OWN}) cannot read the request: {error}");
        Box::new(Error::new(ErrorCode::BadRequest, message))
    };
    let asked: Asked = object(line).map_err(bad)?;
    let request = asked.request.unwrap_or_default();
    if request == "detach" {
        // Whoever wants it off must not have to look for another version first.
        return Ok(Request::Detach {});
    }
    if let Some(version) = asked.api_version.filter(|version| !version.is_own()) {
        let by = asked.enforcer_version.unwrap_or_default();
        let message = format!(
            "this agent is enforcer {OWN} and speaks {}; the request is of enforcer {} and in {version}",
            Version::own(),
            text::shown(&by),
        );
        return Err(Box::new(Error::new(ErrorCode::VersionMismatch, message)));
    }
    if !UNDERSTOOD.contains(&request.as_str()) {
        return Err(Box::new(unknown(&request)));
    }
    serde_json::from_str(line).map_err(bad)
}

fn unknown(request: &str) -> Error {
    // A line is long enough for one that nobody wants to read.
    let short: String = request.chars().take(40).collect();
    let message = format!(
        "this agent (enforcer {OWN}) does not know the request `{}`; it knows {}",
        text::shown(&short),
        UNDERSTOOD.join(", ")
    );
    Error::new(ErrorCode::UnknownRequest, message)
}

/// What a running agent was given: only over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    /// The node that this is.
    pub node: String,
    /// `DryRun` where the agent was started to drop nothing, whatever the policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_override: Option<Word<Mode>>,
    /// The policy in force.
    pub sources: Vec<Source>,
}

impl Kind for Sources {
    const KIND: &'static str = "Sources";
}

/// A file of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it held when it was read.
    pub text: String,
}

/// What is in force after a policy was applied, confirmed or taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Name of the policy in force.
    pub policy: String,
    /// Its generation.
    pub generation: u32,
    /// When the policy before is in force again unless `enforcer confirm` comes (RFC 3339, UTC); missing if that need not
    /// come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<String>,
    /// What was open when it was applied, held against it; missing in dry-run, and where nothing was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
}

impl Kind for Applied {
    const KIND: &'static str = "Applied";
}

/// What `detach` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetachResult {
    /// Nothing is enforced on this node any more.
    pub detached: bool,
}

impl Kind for DetachResult {
    const KIND: &'static str = "DetachResult";
}
