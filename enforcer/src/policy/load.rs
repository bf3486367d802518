//! Files to a policy.

use std::collections::HashSet;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::error::{PolicyError, PolicyErrors, Problem, Report};
use super::limits::{LIMITS, Limits};
use super::model::Policy;
use super::span::Span;
use super::{validate, yaml};
use crate::text;

/// A file's name and text: what a policy was made of, to be shown and read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The file, as errors name it.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Files that are longer are refused before they are parsed.
pub const MAX_FILE_BYTES: u64 = 32 << 20;

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
    from_texts_within(sources, &LIMITS)
}

/// The same, with other limits.
pub(crate) fn from_texts_within(
    sources: &[SourceText],
    limits: &Limits,
) -> Result<Policy, PolicyErrors> {
    let mut report = Report::new(sources);
    let mut documents = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        if source.text.len() as u64 > MAX_FILE_BYTES {
            return Err(too_long(&source.name).into());
        }
        for mut document in yaml::documents(source, file, limits, &mut report) {
            yaml::check_object(&document, file, &mut report);
            limits.check(&mut document, file, &mut report);
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
        .map(|file| {
            let source = match file.origin {
                Origin::Named => read_source(&file.path),
                Origin::InDirectory => read_regular(&file.path),
            };
            source.map_err(PolicyErrors::from)
        })
        .collect()
}

/// Reads the files that [`load`] would read, if each of them can be read as often as wanted: what is no
/// regular file is refused, and never waited for. (A file system that does not answer is.)
pub fn read_again_and_again(inputs: &[PathBuf]) -> Result<Vec<SourceText>, PolicyErrors> {
    files(inputs)?
        .iter()
        .map(|file| read_regular(&file.path).map_err(PolicyErrors::from))
        .collect()
}

/// Whether [`read_again_and_again`] would read the same again. Nothing is kept in memory for it, so that
/// it may be asked often; what can not be read is not the same.
pub fn is_unchanged(inputs: &[PathBuf], sources: &[SourceText]) -> bool {
    let Ok(files) = files(inputs) else {
        return false;
    };
    files.len() == sources.len()
        && files.iter().zip(sources).all(|(file, source)| {
            text::path(&file.path) == source.name
                && holds(&file.path, &source.text).unwrap_or(false)
        })
}

/// Whether a file holds just that.
fn holds(path: &Path, text: &str) -> io::Result<bool> {
    let Ok(file) = open_regular(path)? else {
        return Ok(false);
    };
    let mut file = BufReader::with_capacity(1 << 16, file);
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

/// A file of a policy.
struct Found {
    path: PathBuf,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Origin {
    /// It was named itself, and may be a pipe.
    Named,
    /// It is in a directory that was named.
    InDirectory,
}

/// The files that inputs are, or that are in them.
fn files(inputs: &[PathBuf]) -> Result<Vec<Found>, PolicyErrors> {
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let origin = Origin::InDirectory;
            let inside = policy_files(input)?.into_iter();
            files.extend(inside.map(|path| Found { path, origin }));
        } else {
            files.push(Found {
                path: input.clone(),
                origin: Origin::Named,
            });
        }
    }
    // A file that is named twice, say by itself and by its directory, is one file.
    let mut seen = HashSet::new();
    files.retain(|Found { path, .. }| {
        seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
    });
    Ok(files)
}

/// Opens a regular file without ever waiting for somebody at its other end; else says what it is.
fn open_regular(path: &Path) -> io::Result<Result<File, FileType>> {
    // To open a device may do something already, so it is looked at first; and once more when it is open,
    // as it may have been replaced between.
    let kind = fs::metadata(path)?.file_type();
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    if kind.is_fifo() {
        // Whoever waits for a reader is told that there is none, instead of waiting for ever.
        drop(open());
    }
    if !kind.is_file() {
        return Ok(Err(kind));
    }
    let file = open()?;
    let kind = file.metadata()?.file_type();
    Ok(if kind.is_file() { Ok(file) } else { Err(kind) })
}

fn read_regular(path: &Path) -> Result<SourceText, PolicyError> {
    let name = text::path(path);
    match open_regular(path) {
        Ok(Ok(file)) => read(name, file),
        Ok(Err(kind)) => {
            let message = format!("{} is no file to read again and again", kind_name(kind));
            let help = "the agent reads its policy again when it changes: give a file, or a \
                        directory of files";
            Err(PolicyError::unreadable(
                &name,
                message,
                Some(help.to_owned()),
            ))
        }
        Err(error) => Err(cannot_read(&name, &error)),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a device"
    }
}

/// Reads one file, or standard input for `-`, within the limits.
pub fn read_source(path: &Path) -> Result<SourceText, PolicyError> {
    if path == Path::new(STANDARD_INPUT) {
        return read("standard input".to_owned(), io::stdin());
    }
    let name = text::path(path);
    match File::open(path) {
        Ok(file) => read(name, file),
        Err(error) => Err(cannot_read(&name, &error)),
    }
}

fn read(name: String, from: impl io::Read) -> Result<SourceText, PolicyError> {
    let mut bytes = Vec::new();
    if let Err(error) = from.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes) {
        return Err(cannot_read(&name, &error));
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_long(&name));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceText { name, text }),
        Err(error) => Err(not_utf8(name, &error)),
    }
}

fn policy_files(directory: &Path) -> Result<Vec<PathBuf>, PolicyErrors> {
    let name = text::path(directory);
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
        // Whatever else is no file is refused when it is read: a policy without one of its parts is another.
        && !path.is_dir()
}

fn cannot_read(name: &str, error: &io::Error) -> PolicyError {
    PolicyError::unreadable(name, format!("failed to read: {error}"), None)
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
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.yaml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let link = directory.path().join("loop.yaml");
        std::os::unix::fs::symlink("loop.yaml", &link).unwrap();
        for (input, expected) in [
            (pipe.as_path(), "a named pipe is no file"),
            (
                directory.path(),
                "failed to read: Too many levels of symbolic links",
            ),
            (Path::new("/dev/zero"), "a device is no file"),
            (
                link.as_path(),
                "failed to read: Too many levels of symbolic links",
            ),
        ] {
            let inputs = [input.to_owned()];
            let errors = read_again_and_again(&inputs).unwrap_err();
            assert!(errors.is_unreadable());
            let said = errors.to_string();
            assert!(said.contains(expected), "{said}");
            let source = SourceText {
                name: text::path(input),
                text: String::new(),
            };
            assert!(!is_unchanged(&inputs, &[source]));
        }
        // Nor is a pipe in a directory waited for by those who read once.
        fs::remove_file(&link).unwrap();
        let said = read_sources(&[directory.path().to_owned()])
            .unwrap_err()
            .to_string();
        assert!(said.contains("a named pipe is no file"), "{said}");
    }

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
