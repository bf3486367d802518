//! The agent's log: lines on standard error.

use std::io::Write as _;

use enforcer_policy::text;

/// A line of the log, or several. Nobody may be reading, and enforcement goes on.
pub(super) fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "enforcer: {}", text::lines(line));
}
