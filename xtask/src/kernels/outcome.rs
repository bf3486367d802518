//! Parses the output of a machine's console.

use std::{fmt, path::PathBuf, time::Duration};

use crate::shell;

/// The results on a kernel.
pub struct Outcome {
    release: String,
    /// Programs, and how many instructions the verifier processed for each.
    programs: Vec<(String, u64)>,
    /// The features that the kernel offers to the programs.
    features: Vec<String>,
    /// Steps, and how each ended: `12s passed`.
    steps: Vec<(String, String)>,
    failures: Vec<String>,
    done: bool,
    log: PathBuf,
    took: Duration,
}

impl Outcome {
    /// Reads the console's log.
    pub fn read(release: String, text: &str, log: PathBuf, took: Duration) -> Self {
        let mut outcome = Self {
            release,
            programs: Vec::new(),
            features: Vec::new(),
            steps: Vec::new(),
            failures: Vec::new(),
            done: false,
            log,
            took,
        };
        text.lines().for_each(|line| outcome.line(line.trim()));
        outcome
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("verifier: ") {
            if let Some((name, count)) = rest.split_once(' ')
                && let Ok(count) = count.parse()
            {
                self.programs.push((name.to_owned(), count));
            }
        } else if let Some(feature) = line.strip_prefix("feature: ") {
            self.features.push(feature.to_owned());
        } else if let Some(rest) = line.strip_prefix("@@ end ") {
            let (name, how) = rest.split_once(' ').unwrap_or((rest, ""));
            self.steps.push((name.to_owned(), how.to_owned()));
        } else if line.starts_with("@@ failed") || line.contains("FAILED") {
            self.failures.push(line.to_owned());
        } else if line == "@@ done" {
            self.done = true;
        }
    }

    /// Whether everything was tried, and passed.
    pub fn is_good(&self) -> bool {
        self.done
            && self.failures.is_empty()
            && (!self.programs.is_empty() || self.steps.iter().all(|(name, _)| name != "cases"))
            && !self.steps.is_empty()
            && self.steps.iter().all(|(_, how)| how.ends_with(" passed"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_good() { "passed" } else { "FAILED" };
        writeln!(
            f,
            "\nkernel {}: {verdict} in {} s (log: {})",
            self.release,
            self.took.as_secs(),
            self.log.display()
        )?;
        for feature in &self.features {
            writeln!(f, "  {feature}")?;
        }
        for (name, how) in &self.steps {
            writeln!(f, "  {name:18} {how}")?;
        }
        for (name, count) in &self.programs {
            writeln!(f, "  {name:18} {count:>8} instructions verified")?;
        }
        for failure in &self.failures {
            writeln!(f, "  {failure}")?;
        }
        if !self.done {
            writeln!(f, "  the machine did not come to its end:")?;
            let tail = shell::failure(&self.log);
            let lines: Vec<&str> = tail.lines().collect();
            for line in &lines[lines.len().saturating_sub(15)..] {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

/// The document that `--write` writes: what was tested where, and how close each program is to the
/// verifier's limit.
pub fn document(tried: &[Outcome], here: &Outcome) -> String {
    let all: Vec<&Outcome> = tried.iter().chain([here]).collect();
    let row = |first: &str, cell: &dyn Fn(&Outcome) -> String| {
        let cells: Vec<String> = all.iter().map(|outcome| cell(outcome)).collect();
        format!("| {first} | {} |\n", cells.join(" | "))
    };
    let mut text = String::from(
        "# Kernels\n\nMade by `cargo xtask kernels --write`; the tests run the same machines, without the last column, which is the \
         kernel\nthat all other tests run on. The machines are emulated and take Debian's newest cloud kernel of the series.\n\
         `options` and `enforcement` run there with a hardened JIT compiler (`net.core.bpf_jit_harden=2`).\n\n",
    );
    text += &row("kernel", &|outcome| outcome.release.clone());
    text += &row("---", &|_| "---".to_owned());
    for name in [
        "options",
        "cases",
        "tls",
        "confirm",
        "preflight",
        "enforcement",
    ] {
        text += &row(&format!("test `{name}`"), &|outcome| {
            let step = outcome.steps.iter().find(|(step, _)| step == name);
            step.map_or("passed", |(_, how)| how.rsplit(' ').next().unwrap_or(how))
                .to_owned()
        });
    }
    text += &row("namespace of packets at sockets", &|outcome| {
        let stamp = outcome
            .features
            .iter()
            .any(|feature| feature.contains("stamp"));
        if stamp { "by stamp" } else { "from the kernel" }.to_owned()
    });
    text += "\nInstructions that the verifier went through; its limit is 1,000,000.\n\n";
    text += &row("program", &|outcome| outcome.release.clone());
    text += &row("---", &|_| "---:".to_owned());
    for (name, _) in &here.programs {
        text += &row(&format!("`{name}`"), &|outcome| {
            let found = outcome.programs.iter().find(|(known, _)| known == name);
            found.map_or(String::new(), |(_, count)| count.to_string())
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome {
        Outcome::read("6.1".to_owned(), text, PathBuf::new(), Duration::ZERO)
    }

    #[test]
    fn only_complete_runs_are_good() {
        let good = "verifier: enforcer_tc_in 100\n@@ end cases 3s passed\r\n@@ done\n";
        assert!(read(good).is_good());
        for bad in [
            "",
            "@@ done",
            "verifier: enforcer_tc_in 100\n@@ end cases 3s passed\n",
            "verifier: enforcer_tc_in 100\n@@ end cases 3s failed exit status: 1\n@@ done\n",
            "verifier: x 1\n@@ failed no module\n@@ end cases 3s passed\n@@ done\n",
        ] {
            assert!(!read(bad).is_good(), "{bad}");
        }
    }
}
