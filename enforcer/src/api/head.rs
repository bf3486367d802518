//! What every document begins with, and whether two versions understand each other.

use std::fmt;

use enforcer_policy::text;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Kind, error::Error};

/// A version of the interface: `api.enforcer.dev/v1`. Within one, documents only gain fields, words and kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    const GROUP: &'static str = "api.enforcer.dev/v";
    const NUMBER: u32 = 1;

    /// That of this program.
    pub fn own() -> Self {
        Self(format!("{}{}", Self::GROUP, Self::NUMBER))
    }

    /// Its number; nothing where this is a version of something else.
    fn number(&self) -> Option<u32> {
        self.0.strip_prefix(Self::GROUP)?.parse().ok()
    }

    /// Whether it is that of this program.
    pub fn is_own(&self) -> bool {
        self.number() == Some(Self::NUMBER)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::shown(&self.0))
    }
}

/// The first fields of every document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Version of the interface.
    pub api_version: Version,
    /// What the document is.
    pub kind: String,
    /// Version of the program that made the document.
    pub enforcer_version: String,
}

impl Head {
    /// Of a document that this program makes.
    pub fn of<T: Kind>() -> Self {
        Self {
            api_version: Version::own(),
            kind: T::KIND.to_owned(),
            enforcer_version: OWN.to_owned(),
        }
    }
}

/// The version of this program.
pub(super) const OWN: &str = env!("CARGO_PKG_VERSION");

/// A document, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Document<T> {
    /// Its first fields.
    #[serde(flatten)]
    pub head: Head,
    /// Its others.
    #[serde(flatten)]
    pub body: T,
}

impl<T: Kind> Document<T> {
    /// A document that this program makes.
    pub fn new(body: T) -> Self {
        Self {
            head: Head::of::<T>(),
            body,
        }
    }
}

/// The head of something that may be none of ours.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AnyHead {
    api_version: Option<Version>,
    kind: Option<String>,
    enforcer_version: Option<String>,
    /// See [`super::DetachResult`], which is the same in all versions.
    detached: bool,
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no JSON object.
    #[error("the agent's answer is no JSON object (does something else listen there?)")]
    NoDocument(#[source] serde_json::Error),
    /// It is of another version.
    #[error("{0}")]
    Version(Box<Difference>),
    /// It is an error.
    #[error("the agent says: {}", .0)]
    Refused(Box<Error>),
    /// It is something else than what was asked for.
    #[error(
        "the agent's answer is of kind `{}`, and not `{expected}`: the agent is {by}, this is enforcer {OWN}",
        text::shown(kind)
    )]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What came.
        kind: String,
        /// Who sent it.
        by: Box<Side>,
    },
    /// It lacks something, or something in it is not what it should be.
    #[error("the agent's answer cannot be read: the agent is {by}, this is enforcer {OWN}")]
    Shape {
        /// Who sent it.
        by: Box<Side>,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Reads a document.
///
/// # Errors
///
/// It is of another version or kind, or it is an error.
pub fn read<T: Kind + DeserializeOwned>(line: &str) -> Result<Document<T>, ReadError> {
    let any: AnyHead = object(line).map_err(ReadError::NoDocument)?;
    let by = || Side {
        api: any.api_version.clone(),
        program: any.enforcer_version.clone(),
    };
    if any.api_version.as_ref().is_none_or(|v| !v.is_own()) {
        return Err(ReadError::Version(Box::new(Difference {
            agent: by(),
            is_detached: any.detached,
        })));
    }
    let shape = |source| ReadError::Shape {
        by: Box::new(by()),
        source,
    };
    match any.kind.as_deref() {
        Some(kind) if kind == T::KIND => {}
        Some(kind) if kind == Error::KIND => {
            let error = serde_json::from_str(line).map_err(shape)?;
            return Err(ReadError::Refused(Box::new(error)));
        }
        kind => {
            return Err(ReadError::Kind {
                expected: T::KIND,
                kind: kind.unwrap_or_default().to_owned(),
                by: Box::new(by()),
            });
        }
    }
    Ok(Document {
        head: serde_json::from_str(line).map_err(shape)?,
        body: serde_json::from_str(line).map_err(shape)?,
    })
}

/// Reads a JSON object: serde takes an array for one, too.
pub(super) fn object<T: DeserializeOwned>(line: &str) -> Result<T, serde_json::Error> {
    if line.trim_start().starts_with('{') {
        serde_json::from_str(line)
    } else {
        Err(serde::de::Error::custom("it is no JSON object"))
    }
}

/// A program at one end of the control socket, as it names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    api: Option<Version>,
    program: Option<String>,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => write!(f, "enforcer {}", text::shown(program))?,
            None => f.write_str("an enforcer that names no version")?,
        }
        match &self.api {
            Some(api) => write!(f, " ({api})"),
            None => Ok(()),
        }
    }
}

/// An agent of another version of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    agent: Side,
    is_detached: bool,
}

impl Difference {
    /// Whether it says that it has detached everything, which is said in the same way in all versions.
    pub fn is_detached(&self) -> bool {
        self.is_detached
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = &self.agent;
        let own = Side {
            api: Some(Version::own()),
            program: Some(OWN.to_owned()),
        };
        write!(
            f,
            "the agent is {agent}, this is {own}, and they do not understand each other"
        )?;
        // Before there were versions, answers had none.
        let number = agent.api.as_ref().map_or(Some(0), Version::number);
        match number {
            Some(number) if number < Version::NUMBER => f.write_str(
                ": the agent is older; start it again with this version, or ask it with its own",
            ),
            Some(_) => f.write_str(": this one is older; ask the agent with its own version"),
            None => Ok(()),
        }
    }
}
