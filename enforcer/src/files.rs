//! Reads the files of policies and cases. No other module does.

use std::collections::HashSet;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_policy::{
    Policy, PolicyError, PolicyErrors, SourceText, Span,
    cases::{self, PathCases},
    error::Problem,
    from_texts, text,
};

/// Stands for standard input in place of a file name.
pub const STANDARD_INPUT: &str = "-";

/// The suffix of files with a policy's own tests.
pub const CASES_SUFFIX: &str = ".cases.yaml";

/// Reads and checks a policy from files and directories. A directory stands for every `*.yaml` and
/// `*.yml` directly in it, except `*.cases.yaml`, ordered by name.
pub fn load(inputs: &[PathBuf]) -> Result<Policy, PolicyErrors> {
    from_texts(&read_sources(inputs)?)
}

/// Reads and checks files of cases.
pub fn load_cases(files: &[PathBuf]) -> Result<Vec<PathCases>, PolicyErrors> {
    let sources: Result<Vec<SourceText>, _> = files.iter().map(|file| read_source(file)).collect();
    cases::from_texts(&sources?)
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

/// Reads the files that [`load`] would read, provided that each can be read any number of times:
/// anything but a regular file is refused, without waiting for it. (A file system that does not
/// answer is waited for.)
pub fn read_repeatable(inputs: &[PathBuf]) -> Result<Vec<SourceText>, PolicyErrors> {
    files(inputs)?
        .iter()
        .map(|file| read_regular(&file.path).map_err(PolicyErrors::from))
        .collect()
}

/// How long files must stay unchanged before a change counts. An editor that writes a file in place
/// truncates it first, and the first half of a policy may be a valid policy, too.
pub const QUIET: Duration = Duration::from_millis(100);
/// After this many changes, one after another, the files are not read.
const MAX_CHANGES: u32 = 100;

/// [`read_repeatable`] once nobody is writing: the files must be the same before `pause` (of
/// [`QUIET`]), after it, and once all of them have been read.
pub fn read_settled(
    inputs: &[PathBuf],
    mut pause: impl FnMut(),
) -> Result<Vec<SourceText>, PolicyErrors> {
    for _ in 0..MAX_CHANGES {
        let before = stamps(inputs);
        pause();
        if stamps(inputs) != before {
            continue;
        }
        let texts = read_repeatable(inputs);
        if stamps(inputs) == before {
            return texts;
        }
    }
    let name = inputs
        .first()
        .map(|input| text::path(input))
        .unwrap_or_default();
    let message = "the policy's files keep changing, and are not read until they stay unchanged";
    Err(PolicyError::unreadable(&name, message.to_owned(), None).into())
}

/// What changes when a file is written or replaced: device, inode, size, and the time of the last
/// change in nanoseconds.
type Stamp = (PathBuf, Option<[i128; 5]>);

fn stamps(inputs: &[PathBuf]) -> Vec<Stamp> {
    const NANOSECONDS: i128 = 1_000_000_000;
    let found = files(inputs).unwrap_or_default().into_iter();
    let stamp = |path: &Path| {
        let of = fs::metadata(path).ok()?;
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * NANOSECONDS + i128::from(nanoseconds)
        };
        Some([
            of.dev().into(),
            of.ino().into(),
            of.size().into(),
            time(of.mtime(), of.mtime_nsec()),
            time(of.ctime(), of.ctime_nsec()),
        ])
    };
    found
        .map(|file| (file.path.clone(), stamp(&file.path)))
        .collect()
}

/// Whether [`read_repeatable`] would read the same again. Uses no memory that grows with the
/// files, so it may be called often. A file that cannot be read is not the same.
pub fn is_unchanged(inputs: &[PathBuf], sources: &[SourceText]) -> bool {
    let Ok(files) = files(inputs) else {
        return false;
    };
    files.len() == sources.len()
        && files.iter().zip(sources).all(|(file, source)| {
            text::path(&file.path) == source.name
                && has_text(&file.path, &source.text).unwrap_or(false)
        })
}

/// Whether a file holds exactly this text.
fn has_text(path: &Path, text: &str) -> io::Result<bool> {
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
struct PolicyFile {
    path: PathBuf,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Origin {
    /// It was given by name, and may be a pipe.
    Named,
    /// It is in a directory that was given by name.
    InDirectory,
}

/// The files that the inputs are or contain.
fn files(inputs: &[PathBuf]) -> Result<Vec<PolicyFile>, PolicyErrors> {
    let mut files = Vec::new();
    for input in inputs {
        if input.is_dir() {
            let origin = Origin::InDirectory;
            let inside = policy_files(input)?.into_iter();
            files.extend(inside.map(|path| PolicyFile { path, origin }));
        } else {
            files.push(PolicyFile {
                path: input.clone(),
                origin: Origin::Named,
            });
        }
    }
    // A file given twice, for example by its own name and by its directory, counts once.
    let mut seen = HashSet::new();
    files.retain(|PolicyFile { path, .. }| {
        seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone()))
    });
    Ok(files)
}

/// Opens a regular file, without ever waiting for a peer; for anything else, returns its type.
fn open_regular(path: &Path) -> io::Result<Result<File, FileType>> {
    // Opening a device may already have an effect, so the type is checked first, and again once the
    // file is open, as it may have been replaced in between.
    let kind = fs::metadata(path)?.file_type();
    let open = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
    };
    if kind.is_fifo() {
        // Lets a writer that waits for a reader get an error instead of waiting forever.
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
            let message = format!(
                "{} is not a file that can be read repeatedly",
                kind_name(kind)
            );
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
fn read_source(path: &Path) -> Result<SourceText, PolicyError> {
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
    if let Err(error) = from.take(SourceText::MAX_BYTES + 1).read_to_end(&mut bytes) {
        return Err(cannot_read(&name, &error));
    }
    if bytes.len() as u64 > SourceText::MAX_BYTES {
        return Err(PolicyError::too_long(&name));
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
    // Editors leave files such as `.#policy.yaml` behind.
    (name.ends_with(".yaml") || name.ends_with(".yml"))
        && !name.ends_with(CASES_SUFFIX)
        && !name.starts_with('.')
        // Anything else that is no regular file is refused when it is read: without one of its
        // parts, a policy would be a different one.
        && !path.is_dir()
}

fn cannot_read(name: &str, error: &io::Error) -> PolicyError {
    PolicyError::unreadable(name, format!("failed to read: {error}"), None)
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
mod tests;
