//! Files to a policy.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::error::{PolicyError, PolicyErrors, Problem, Report};
use super::model::Policy;
use super::span::Span;
use super::{validate, yaml};

/// A file's name and text: what a policy was made of, to be shown and read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The file, as errors name it.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Files that are longer are refused before they are parsed.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// What stands for standard input where a file is wanted.
pub const STANDARD_INPUT: &str = "-";

/// How the files with a policy's own tests end.
pub const CASES_SUFFIX: &str = ".cases.yaml";

/// Reads and checks a policy from files and directories. Of a directory, every `*.yaml` and `*.yml` in the
/// order of their names, but no `*.cases.yaml`, and no directory below it.
pub fn load(inputs: &[PathBuf]) -> Result<Policy, PolicyErrors> {
    from_texts(&read_sources(inputs)?)
}

/// Checks a policy that has been read, from [`read_sources`] or from elsewhere.
pub fn from_texts(sources: &[SourceText]) -> Result<Policy, PolicyErrors> {
    let mut report = Report::new(sources);
    let mut documents = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        if source.text.len() as u64 > MAX_FILE_BYTES {
            return Err(too_long(&source.name).into());
        }
        for document in yaml::documents(source, file, &mut report) {
            yaml::check_object(&document, file, &mut report);
            documents.push((file, document));
        }
    }
    // In a folder, a file of comments alone is none of the policy's.
    if documents.is_empty() && !sources.is_empty() && report.is_clean() {
        yaml::no_document(&mut report);
    }
    let policy = validate::policy(sources, documents, &mut report);
    report.finish(policy)
}

/// Reads the files that [`load`] would read.
pub fn read_sources(inputs: &[PathBuf]) -> Result<Vec<SourceText>, PolicyErrors> {
    files(inputs)?
        .iter()
        .map(|file| read_source(file).map_err(PolicyErrors::from))
        .collect()
}

/// Whether [`read_sources`] would read the same again. Nothing is kept in memory for it, so that it may be asked often; what
/// can not be read is not the same.
pub fn is_unchanged(inputs: &[PathBuf], sources: &[SourceText]) -> bool {
    let Ok(files) = files(inputs) else {
        return false;
    };
    files.len() == sources.len()
        && files.iter().zip(sources).all(|(file, source)| {
            file.display().to_string() == source.name && holds(file, &source.text).unwrap_or(false)
        })
}

/// Whether a file holds just that.
fn holds(path: &Path, text: &str) -> io::Result<bool> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut rest = text.as_bytes();
    loop {
        let part = file.fill_buf()?;
        if part.is_empty() {
            return Ok(rest.is_empty());
        }
        let Some(behind) = rest.strip_prefix(part) else {
            return Ok(false);
        };
        rest = behind;
        let length = part.len();
        file.consume(length);
    }
}

/// The files that inputs are, or that are in them.
fn files(inputs: &[PathBuf]) -> Result<Vec<PathBuf>, PolicyErrors> {
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            files.extend(policy_files(input)?);
        } else {
            files.push(input.clone());
        }
    }
    // A file that is named twice, say by itself and by its directory, is one file.
    let mut seen = HashSet::new();
    files.retain(|file| seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
    Ok(files)
}

/// Reads one file, or standard input for `-`, within the limits.
pub fn read_source(path: &Path) -> Result<SourceText, PolicyError> {
    let mut bytes = Vec::new();
    let name = if path == Path::new(STANDARD_INPUT) {
        let name = "standard input".to_owned();
        io::stdin()
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| cannot_read(&name, &error))?;
        name
    } else {
        let name = path.display().to_string();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| cannot_read(&name, &error))?;
        name
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_long(&name));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceText { name, text }),
        Err(error) => Err(not_utf8(name, &error)),
    }
}

fn policy_files(directory: &Path) -> Result<Vec<PathBuf>, PolicyErrors> {
    let name = directory.display().to_string();
    let entries: Result<Vec<_>, io::Error> = fs::read_dir(directory).and_then(Iterator::collect);
    let mut files: Vec<PathBuf> = entries
        .map_err(|error| cannot_read(&name, &error))?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| is_policy_file(path))
        .collect();
    files.sort();
    if files.is_empty() {
        let help = "a policy's files end in .yaml or .yml".to_owned();
        let message = "there is no policy in this directory".to_owned();
        return Err(PolicyError::about_file(&name, message, Some(help)).into());
    }
    Ok(files)
}

fn is_policy_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Editors leave `.#policy.yaml` and the like behind.
    (name.ends_with(".yaml") || name.ends_with(".yml"))
        && !name.ends_with(CASES_SUFFIX)
        && !name.starts_with('.')
        && path.is_file()
}

fn cannot_read(name: &str, error: &io::Error) -> PolicyError {
    PolicyError::about_file(name, format!("failed to read: {error}"), None)
}

fn too_long(name: &str) -> PolicyError {
    PolicyError::about_file(
        name,
        format!("the file is longer than {} MiB", MAX_FILE_BYTES >> 20),
        Some("split it: -p takes several files, or a directory".to_owned()),
    )
}

fn not_utf8(name: String, error: &std::string::FromUtf8Error) -> PolicyError {
    let offset = error.utf8_error().valid_up_to();
    let valid = String::from_utf8_lossy(&error.as_bytes()[..offset]).into_owned();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let last_line = valid.rsplit('\n').next().unwrap_or_default();
    let span = Span {
        line: count(valid.matches('\n').count() + 1),
        column: count(last_line.chars().count() + 1),
        length: 1,
    };
    let problem = Problem::new(
        format!("byte {offset} is not UTF-8"),
        "save the file as UTF-8 text",
    );
    PolicyError::at(&SourceText { name, text: valid }, span, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unchanged_is_what_would_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let inputs = [directory.path().to_owned()];
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        assert!(!is_unchanged(&inputs, &[]), "nothing there is an error");
        // Longer than what is read at a time.
        let long = "# a policy\n".repeat(20_000);
        write("a.yaml", &long);
        write("b.yaml", "");
        let sources = read_sources(&inputs).unwrap();
        assert!(is_unchanged(&inputs, &sources));
        for (name, changed, before) in [
            ("a.yaml", format!("{long}#"), &*long),
            ("a.yaml", long[1..].to_owned(), &long),
            ("a.yaml", long.replacen('p', "P", 1), &long),
            ("b.yaml", "#".to_owned(), ""),
        ] {
            write(name, &changed);
            assert!(!is_unchanged(&inputs, &sources), "{name}");
            write(name, before);
            assert!(is_unchanged(&inputs, &sources), "{name}");
        }
        write("c.yaml", "");
        assert!(!is_unchanged(&inputs, &sources), "one more");
        fs::remove_file(directory.path().join("c.yaml")).unwrap();
        fs::remove_file(directory.path().join("a.yaml")).unwrap();
        assert!(!is_unchanged(&inputs, &sources), "one less");
    }
}
