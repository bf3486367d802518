//! The agent's log: lines on standard error, and denials on standard output. Where one of them is the journal, each line
//! has its priority in front, as sd-daemon(3) says, and nothing that the journal knows by itself.

use std::{env, fmt, io::Write as _, os::fd::AsFd, sync::LazyLock};

use enforcer_policy::text;
use nix::sys::stat::fstat;

/// How important a line is: the priorities of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// Something does not work.
    Error = 3,
    /// Something was denied, or is not as the policy has it.
    Warning = 4,
    /// Something would have been denied.
    Notice = 5,
    /// What the agent does.
    Info = 6,
}

/// A line of the log, or several. Nobody may be reading, and enforcement goes on.
pub(super) fn print(line: &str) {
    print_as(Priority::Info, line);
}

/// The same, of another importance.
pub(super) fn print_as(priority: Priority, line: &str) {
    static JOURNAL: LazyLock<bool> = LazyLock::new(|| is_journal(std::io::stderr()));
    let line = text::lines(line);
    let _ = match *JOURNAL {
        true => write!(std::io::stderr(), "{}", Marked(priority, &line)),
        false => writeln!(std::io::stderr(), "enforcer: {line}"),
    };
}

/// A denial on standard output.
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

/// Lines, each with its priority and its end: to the journal each is an entry.
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

/// Whether a stream is the journal that systemd connected this process to. A process that it started with another
/// output has the variable, too.
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
