//! The agent's log: messages on standard error, denials on standard output. If one of them is the
//! journal, each line starts with its priority, as sd-daemon(3) describes, and contains nothing
//! that the journal records anyway.

use std::{env, fmt, io::Write as _, os::fd::AsFd, sync::LazyLock};

use enforcer_policy::text;
use nix::sys::stat::fstat;

/// How important a line is, as a syslog priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// Something does not work.
    Error = 3,
    /// Something was denied, or does not match the policy.
    Warning = 4,
    /// Something would have been denied.
    Notice = 5,
    /// What the agent does.
    Info = 6,
}

/// Prints one or more lines to the log. Nobody may be reading, and enforcement continues
/// regardless.
pub(super) fn print(line: &str) {
    print_as(Priority::Info, line);
}

/// The same, with another priority.
pub(super) fn print_as(priority: Priority, line: &str) {
    static JOURNAL: LazyLock<bool> = LazyLock::new(|| is_journal(std::io::stderr()));
    let line = text::lines(line);
    let _ = match *JOURNAL {
        true => write!(std::io::stderr(), "{}", Marked(priority, &line)),
        false => writeln!(std::io::stderr(), "enforcer: {line}"),
    };
}

/// Prints a denial to standard output.
pub(super) fn print_result(priority: Priority, line: &str) {
    let line = text::lines(line);
    let _ = match stdout_is_journal() {
        true => write!(std::io::stdout(), "{}", Marked(priority, &line)),
        false => writeln!(std::io::stdout(), "{line}"),
    };
}

/// Whether standard output is the journal.
pub(super) fn stdout_is_journal() -> bool {
    static JOURNAL: LazyLock<bool> = LazyLock::new(|| is_journal(std::io::stdout()));
    *JOURNAL
}

/// Lines, each with its priority and a line end: each becomes a journal entry.
struct Marked<'a>(Priority, &'a str);

impl fmt::Display for Marked<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(priority, lines) = self;
        let priority = *priority as u8;
        lines
            .lines()
            .try_for_each(|line| writeln!(to, "<{priority}>{line}"))
    }
}

/// Whether a stream is the one with which systemd connected this process to the journal. A process
/// started with another output has the variable, too.
fn is_journal(stream: impl AsFd) -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(stream).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        let marked = Marked(Priority::Warning, "one\n<0>two").to_string();
        assert_eq!(marked, "<4>one\n<4><0>two\n");
    }
}
