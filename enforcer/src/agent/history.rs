//! The policies that may be put in force again: the one that was confirmed last, and the one before. On disk, as they are
//! needed after a restart of the machine, when the files may hold one that nobody has confirmed.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use enforcer_policy::{SourceText, text, text_digest};
use serde::{Deserialize, Serialize};

use super::AgentError;

/// The file in the state directory.
const FILE: &str = "policies.json";

/// What is known, and where it is written.
pub(super) struct History {
    /// Nothing where enforcement ends with the agent: nobody needs it then.
    directory: Option<PathBuf>,
    known: Known,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Known {
    /// Where the agent reads its policy: what was read elsewhere is no policy of this agent.
    inputs: Vec<PathBuf>,
    confirmed: Vec<File>,
    previous: Vec<File>,
    /// Digest of what the files held when it was put in force with a deadline, or was taken back.
    unconfirmed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    name: String,
    text: String,
}

impl History {
    /// What an agent before this one wrote, if it read its policy from the same files.
    pub fn open(directory: Option<&Path>, inputs: &[PathBuf]) -> Self {
        let inputs: Vec<PathBuf> = inputs
            .iter()
            .map(|input| std::path::absolute(input).unwrap_or_else(|_| input.clone()))
            .collect();
        let read = directory.and_then(|directory| fs::read(directory.join(FILE)).ok());
        let known = read.and_then(|json| serde_json::from_slice::<Known>(&json).ok());
        Self {
            directory: directory.map(Path::to_owned),
            known: known
                .filter(|known| known.inputs == inputs)
                .unwrap_or(Known {
                    inputs,
                    ..Known::default()
                }),
        }
    }

    /// The policy that was confirmed last.
    pub fn confirmed(&self) -> Option<Vec<SourceText>> {
        texts(&self.known.confirmed)
    }

    /// The one before.
    pub fn previous(&self) -> Option<Vec<SourceText>> {
        texts(&self.known.previous)
    }

    /// Whether files hold what was not confirmed, or was taken back: they are not put in force unless somebody asks for it.
    pub fn is_unconfirmed(&self, texts: &[SourceText]) -> bool {
        let digest = self.known.unconfirmed.as_deref();
        digest.is_some_and(|digest| digest == text_digest(texts))
    }

    /// The digest of what is not to be put in force by itself.
    pub fn unconfirmed(&self) -> Option<&str> {
        self.known.unconfirmed.as_deref()
    }

    /// A policy is about to be put in force with a deadline, or was taken back: it is not put in force by itself, and the one
    /// in force is what there is instead.
    ///
    /// # Errors
    ///
    /// It can not be written: after a restart of the machine it would count as any other.
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

    /// It was not put in force after all.
    ///
    /// # Errors
    ///
    /// It can not be written.
    pub fn give_up(&mut self) -> Result<(), AgentError> {
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
    /// It can not be written.
    pub fn confirm(&mut self, texts: &[SourceText]) -> Result<(), AgentError> {
        let known = Known {
            unconfirmed: None,
            ..self.with_confirmed(texts)
        };
        self.write(known)
    }

    /// With another policy as the one that was confirmed last.
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

    /// What is known now, in a file that is whole at any time.
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
    fn what_was_confirmed_is_there_again() {
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
        // What is in force counts as confirmed, whatever could be written before.
        history.begin(&text("third"), &text("fourth")).unwrap();
        assert_eq!(open().confirmed(), Some(text("third")));
        assert!(open().is_unconfirmed(&text("fourth")));
        history.give_up().unwrap();
        assert!(!open().is_unconfirmed(&text("fourth")));
        let elsewhere = History::open(Some(&state), &[PathBuf::from("/etc/b.yaml")]);
        assert_eq!(elsewhere.confirmed(), None, "of another agent");
        for broken in ["", "{", "[]", r#"{"confirmed":[{"name":1}]}"#] {
            fs::write(state.join(FILE), broken).unwrap();
            assert_eq!(open().confirmed(), None, "{broken}");
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
