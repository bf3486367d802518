//! The run as files: the tables, the figures, the charts, and a history that shows what got slower.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::chart;
use crate::measure::{Measure, Measures, rounded};
use crate::targets::{self, Judged};

/// How much slower a row must have become to be reported: less is noise on a busy machine.
const NOTABLE: f64 = 1.10;

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Year, month and day.
    pub date: String,
    /// The processor's name, and how many of it.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// What was measured, as git calls it.
    pub version: String,
    /// How long the run took, in seconds.
    pub seconds: u64,
}

impl Machine {
    /// This one.
    pub fn here(took: Duration) -> Self {
        let said = |program: &str, args: &[&str]| {
            let output = std::process::Command::new(program)
                .args(args)
                .output()
                .ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let cores = info
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            date: said("date", &["+%Y-%m-%d"]).unwrap_or_default(),
            processor: format!("{model}, {cores} of them"),
            // What a builder adds to the number says nothing of the kernel.
            kernel: release
                .split(['-', '\n', '+'])
                .next()
                .unwrap_or_default()
                .to_owned(),
            version: said("git", &["describe", "--always", "--dirty"]).unwrap_or_default(),
            seconds: took.as_secs(),
        }
    }

    /// Whether figures from there can be compared with those from here.
    fn is_like(&self, other: &Self) -> bool {
        self.processor == other.processor && self.kernel == other.kernel
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, Linux {}, enforcer {}, {} s",
            self.date, self.processor, self.kernel, self.version, self.seconds
        )
    }
}

/// A run in the history: medians alone.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    machine: Machine,
    medians: Vec<(String, String, String, f64)>,
}

/// Writes everything.
pub fn write(
    directory: &Path,
    machine: &Machine,
    measures: &Measures,
    judged: &[Judged],
) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to make {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let file = directory.join(name);
        fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))
    };
    let figures =
        serde_json::json!({ "machine": machine, "measures": measures.0, "promises": judged });
    put("figures.json", &format!("{figures:#}\n"))?;
    let mut charts = String::new();
    for (name, title, svg) in chart::all(measures)? {
        put(&name, &svg)?;
        charts.push_str(&format!("\n![{title}]({name})\n"));
    }
    let text = format!(
        "# Measured\n\nMade by `cargo xtask bench --write docs/bench`. Medians of interleaved rounds in one run, in labs of \
         network namespaces; in brackets, times the first column, in the middle of all rounds. {machine}.\n\n\
         What each table means, and what was tried: [notes.md](notes.md).\n{charts}{}{}",
        targets::table(judged),
        measures.tables()
    );
    put("README.md", &text)?;
    let history = directory.join("history.jsonl");
    let run = Run {
        machine: machine.clone(),
        medians: measures.0.iter().map(median).collect(),
    };
    let before = fs::read_to_string(&history).unwrap_or_default();
    let mut earlier = before
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Run>(line).ok());
    match earlier.find(|earlier| earlier.machine.is_like(machine)) {
        Some(last) => regressions(&last, &run),
        None => println!("the history has no run on such a machine"),
    }
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&history)
        .with_context(|| format!("failed to open {}", history.display()))?;
    writeln!(file, "{}", serde_json::to_string(&run)?).context("failed to write the history")
}

fn median(measure: &Measure) -> (String, String, String, f64) {
    let Measure {
        group,
        what,
        subject,
        ..
    } = measure;
    (
        group.clone(),
        what.clone(),
        subject.clone(),
        measure.median(),
    )
}

/// Tells what is slower than in the last run on such a machine.
fn regressions(last: &Run, run: &Run) {
    for (group, what, subject, value) in &run.medians {
        let same =
            |m: &&(String, String, String, f64)| (&m.0, &m.1, &m.2) == (group, what, subject);
        let Some((.., before)) = last.medians.iter().find(same) else {
            continue;
        };
        // Of rates, more is better.
        let is_rate = what.starts_with("new connections")
            || what.starts_with("requests")
            || what.starts_with("one stream");
        let is_rate = is_rate && !what.contains("median") && !what.contains("99 of");
        let times = if is_rate {
            before / value
        } else {
            value / before
        };
        if times > NOTABLE && subject.starts_with("enforcer") {
            println!(
                "slower than on {} ({}): {group}, {what}: {} instead of {}",
                last.machine.date,
                last.machine.version,
                rounded(*value),
                rounded(*before)
            );
        }
    }
}
