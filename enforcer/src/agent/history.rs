//! The policies that may be put in force again: the last confirmed one and the one before it. They
//! are kept on disk because they are needed after a reboot, when the policy's files may hold a
//! policy that nobody has confirmed.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use enforcer_policy::{SourceText, text, text_digest};
use serde::{Deserialize, Serialize};

use super::AgentError;

/// The file's name in the state directory.
const FILE: &str = "policies.json";

/// What is known, and where it is written.
pub(super) struct History {
    /// `None` if enforcement ends with the agent: then nobody needs it.
    directory: Option<PathBuf>,
    /// Why nothing is known of previous policies, although something was written.
    problem: Option<String>,
    known: Known,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Known {
    /// Where the agent reads its policy from. A history of other inputs is not this agent's.
    inputs: Vec<PathBuf>,
    confirmed: Vec<File>,
    previous: Vec<File>,
    /// Digest of the files' contents that were put in force with a deadline, or were rolled back.
    unconfirmed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    name: String,
    text: String,
}

impl History {
    /// Reads what a previous agent wrote, if that agent read its policy from the same files.
    pub fn open(directory: Option<&Path>, inputs: &[PathBuf]) -> Self {
        let inputs: Vec<PathBuf> = inputs
            .iter()
            .map(|input| std::path::absolute(input).unwrap_or_else(|_| input.clone()))
            .collect();
        let (known, problem) = match directory.map(read) {
            None => (None, None),
            Some(Ok(known)) => (known, None),
            Some(Err(error)) => (None, Some(text::chain(&error))),
        };
        Self {
            directory: directory.map(Path::to_owned),
            problem,
            known: known
                .filter(|known| known.inputs == inputs)
                .unwrap_or(Known {
                    inputs,
                    ..Known::default()
                }),
        }
    }

    /// Why what was written cannot be used. Then the policy's files count as confirmed, as without it.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The policy that was confirmed last.
    pub fn confirmed(&self) -> Option<Vec<SourceText>> {
        texts(&self.known.confirmed)
    }

    /// The one before it.
    pub fn previous(&self) -> Option<Vec<SourceText>> {
        texts(&self.known.previous)
    }

    /// Whether files hold a policy that was not confirmed or was rolled back. Such a policy is put
    /// in force only on request.
    pub fn is_unconfirmed(&self, texts: &[SourceText]) -> bool {
        let digest = self.known.unconfirmed.as_deref();
        digest.is_some_and(|digest| digest == text_digest(texts))
    }

    /// The digest of the policy that is put in force only on request.
    pub fn unconfirmed(&self) -> Option<&str> {
        self.known.unconfirmed.as_deref()
    }

    /// A policy is about to be put in force with a deadline, or was rolled back. From now on it is
    /// put in force only on request, and `in_force` counts as the confirmed policy.
    ///
    /// # Errors
    ///
    /// The file cannot be written. After a reboot, the policy would count like any other.
    pub fn begin(
        &mut self,
        in_force: &[SourceText],
        texts: &[SourceText],
    ) -> Result<(), AgentError> {
        let known = Known {
            unconfirmed: Some(text_digest(texts)),
            ..self.with_confirmed(in_force)
        };
        self.write(known)
    }

    /// The policy was not put in force after all.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn cancel(&mut self) -> Result<(), AgentError> {
        let known = Known {
            unconfirmed: None,
            ..self.known.clone()
        };
        self.write(known)
    }

    /// A policy is in force for good.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn confirm(&mut self, texts: &[SourceText]) -> Result<(), AgentError> {
        let known = Known {
            unconfirmed: None,
            ..self.with_confirmed(texts)
        };
        self.write(known)
    }

    /// With another policy as the last confirmed one.
    fn with_confirmed(&self, texts: &[SourceText]) -> Known {
        let confirmed = files(texts);
        if self.known.confirmed == confirmed {
            return self.known.clone();
        }
        Known {
            inputs: self.known.inputs.clone(),
            previous: self.known.confirmed.clone(),
            confirmed,
            unconfirmed: self.known.unconfirmed.clone(),
        }
    }

    /// Writes what is known now, so that the file is complete at any time.
    fn write(&mut self, known: Known) -> Result<(), AgentError> {
        if known == self.known {
            return Ok(());
        }
        if let Some(directory) = &self.directory {
            let file = directory.join(FILE);
            let action = format!("write {}", text::path(&file));
            write(directory, &file, &known).map_err(AgentError::system(action))?;
        }
        self.known = known;
        Ok(())
    }
}

/// What was written; `None` if nothing was.
fn read(directory: &Path) -> Result<Option<Known>, AgentError> {
    let file = directory.join(FILE);
    let action = format!("read {}", text::path(&file));
    let json = match fs::read(&file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AgentError::system(action)(error)),
    };
    let known = serde_json::from_slice(&json).map_err(io::Error::from);
    let known = known.and_then(|known: Known| match known.inputs.is_empty() {
        // Every history names the files that it is about.
        true => Err(io::Error::other("it names no files")),
        false => Ok(Some(known)),
    });
    known.map_err(AgentError::system(action))
}

fn write(directory: &Path, file: &Path, known: &Known) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    new.write_all(&serde_json::to_vec(known)?)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    fs::File::open(directory)?.sync_all()
}

fn files(texts: &[SourceText]) -> Vec<File> {
    let file = |text: &SourceText| File {
        name: text.name.clone(),
        text: text.text.clone(),
    };
    texts.iter().map(file).collect()
}

fn texts(files: &[File]) -> Option<Vec<SourceText>> {
    let text = |file: &File| SourceText {
        name: file.name.clone(),
        text: file.text.clone(),
    };
    (!files.is_empty()).then(|| files.iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<SourceText> {
        vec![SourceText {
            name: "a.yaml".to_owned(),
            text: text.to_owned(),
        }]
    }

    #[test]
    fn confirmed_policies_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let inputs = [PathBuf::from("/etc/a.yaml")];
        let open = || History::open(Some(&state), &inputs);
        let mut history = open();
        assert_eq!(history.confirmed(), None);
        history.confirm(&text("first")).unwrap();
        history.begin(&text("first"), &text("second")).unwrap();
        assert_eq!(open().confirmed(), Some(text("first")));
        assert!(open().is_unconfirmed(&text("second")));
        assert!(!open().is_unconfirmed(&text("first")));
        history.confirm(&text("second")).unwrap();
        history.confirm(&text("second")).unwrap();
        assert_eq!(open().confirmed(), Some(text("second")));
        assert_eq!(open().previous(), Some(text("first")));
        assert!(!open().is_unconfirmed(&text("second")));
        // The policy in force counts as confirmed, whatever was written before.
        history.begin(&text("third"), &text("fourth")).unwrap();
        assert_eq!(open().confirmed(), Some(text("third")));
        assert!(open().is_unconfirmed(&text("fourth")));
        history.cancel().unwrap();
        assert!(!open().is_unconfirmed(&text("fourth")));
        let elsewhere = History::open(Some(&state), &[PathBuf::from("/etc/b.yaml")]);
        assert_eq!(elsewhere.confirmed(), None, "of another agent");
        assert_eq!(elsewhere.problem(), None);
        for broken in ["", "{", "[]", r#"{"confirmed":[{"name":1}]}"#] {
            fs::write(state.join(FILE), broken).unwrap();
            assert_eq!(open().confirmed(), None, "{broken}");
            let problem = open().problem().map(str::to_owned).unwrap();
            assert!(problem.contains("policies.json"), "{problem}");
        }
        let mut nowhere = History::open(None, &inputs);
        nowhere.confirm(&text("first")).unwrap();
        assert_eq!(nowhere.confirmed(), Some(text("first")));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut unwritable = History::open(Some(&file), &inputs);
        assert!(unwritable.begin(&text("first"), &text("second")).is_err());
        assert_eq!(unwritable.unconfirmed(), None, "it did not begin");
    }
}
