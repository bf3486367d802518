//! The results of the checks: a line for each, and the sum at the end.

use std::{
    io::Write as _,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::shell;

/// The checks so far.
#[derive(Debug, Default)]
pub struct Report {
    total: Counts,
    failures: Vec<String>,
    missed: Vec<String>,
    /// How many seconds each step took.
    times: Vec<(String, u64)>,
}

/// How many tests had which result. A check that runs no tests counts as one test.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    /// Runs a command as a check; returns whether it passed.
    pub fn command(&mut self, name: &str, command: &mut Command) -> bool {
        let by_hand = shell::display(command);
        self.run(name, Some(&by_hand), || {
            let log = shell::log_path(name)?;
            let succeeded = shell::run_logged(command, &log)?;
            let text = std::fs::read(&log).context("failed to read the log")?;
            let counts = Counts::read(&String::from_utf8_lossy(&text));
            let shown = format!("{}\nall of it: {}", shell::failure(&log), log.display());
            Ok(if succeeded {
                Ok(counts)
            } else {
                Err((counts, shown))
            })
        })
    }

    /// Runs a function as a check.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        self.run(name, None, || check().map(|()| Ok(Counts::default())));
    }

    /// Records a check that was left out on purpose.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.total.skipped += 1;
        println!("test: {name} … not run: {why}");
    }

    /// Records a check that should have run and could not, which makes the whole run fail.
    pub fn miss(&mut self, name: &str, why: &str, by_hand: &Command) {
        self.skip(name, why);
        self.missed.push(format!(
            "{name} did not run: {why}. By hand:\n    {}",
            shell::display(by_hand)
        ));
    }

    /// Prints the sum, in the last line.
    pub fn finish(self) -> ExitCode {
        let Self {
            total,
            failures,
            missed,
            times,
        } = self;
        println!("\ntime of each step:");
        let all: u64 = times.iter().map(|(_, seconds)| seconds).sum();
        let sum = ("all".to_owned(), all);
        for (name, seconds) in times.iter().chain([&sum]) {
            println!("{seconds:>6} s  {name}");
        }
        println!();
        for line in failures.iter().chain(&missed) {
            println!("{line}");
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = total;
        print!("{passed} passed, {failed} failed");
        if skipped > 0 {
            print!(", {skipped} skipped");
        }
        println!();
        if failures.is_empty() && missed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn run(
        &mut self,
        name: &str,
        by_hand: Option<&str>,
        check: impl FnOnce() -> Result<Result<Counts, (Counts, String)>>,
    ) -> bool {
        print!("test: {name} … ");
        // Only for display while the check runs.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let outcome =
            check().unwrap_or_else(|error| Err((Counts::default(), format!("{error:#}"))));
        let seconds = start.elapsed().as_secs();
        self.times.push((name.to_owned(), seconds));
        let (counts, shown) = match outcome {
            Ok(counts) => {
                println!("ok{} ({seconds} s)", counts.in_words());
                self.total.add(counts.or_one_passed());
                return true;
            }
            Err(failure) => failure,
        };
        println!("FAILED{} ({seconds} s)\n{shown}\n", counts.in_words());
        self.total.add(counts.with_a_failure());
        let by_hand = by_hand
            .map(|line| format!(". By hand:\n    {line}"))
            .unwrap_or_default();
        self.failures.push(format!("{name} failed{by_hand}"));
        false
    }
}

impl Counts {
    /// Adds up the final lines of test binaries: `test result: ok. 5 passed; 0 failed; 0 ignored;
    /// …`.
    fn read(log: &str) -> Self {
        let mut sum = Self::default();
        for line in log
            .lines()
            .filter_map(|line| line.strip_prefix("test result: "))
        {
            let number = |label: &str| {
                let before = line
                    .split(label)
                    .next()
                    .filter(|before| before.len() < line.len());
                before.and_then(|before| before.split_whitespace().last()?.parse().ok())
            };
            sum.add(Self {
                passed: number(" passed").unwrap_or(0),
                failed: number(" failed").unwrap_or(0),
                skipped: number(" ignored").unwrap_or(0),
            });
        }
        sum
    }

    fn add(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skipped,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    fn or_one_passed(self) -> Self {
        if self == Self::default() {
            Self { passed: 1, ..self }
        } else {
            self
        }
    }

    /// A command can fail without a failed test, for example when it does not compile.
    fn with_a_failure(self) -> Self {
        Self {
            failed: self.failed.max(1),
            ..self
        }
    }

    fn in_words(self) -> String {
        match self {
            Self {
                passed: 0,
                failed: 0,
                ..
            } => String::new(),
            Self {
                passed, failed: 0, ..
            } => format!(", {passed} passed"),
            Self { passed, failed, .. } => format!(", {passed} passed, {failed} failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_are_added_up() {
        let log = "running 2 tests\n\
                   test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; x\n\
                   noise\n\
                   test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(
            Counts::read(log),
            Counts {
                passed: 15,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(Counts::read("nothing"), Counts::default());
    }

    #[test]
    fn a_failure_without_a_failed_test_counts() {
        let counts = Counts {
            passed: 3,
            ..Counts::default()
        };
        assert_eq!(counts.with_a_failure().failed, 1);
        let counts = Counts {
            failed: 3,
            ..Counts::default()
        };
        assert_eq!(counts.with_a_failure().failed, 3);
    }
}
