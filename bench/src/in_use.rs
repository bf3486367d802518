//! What programs take where they are used, by the kernel's own account (`BPF_ENABLE_STATS`, Linux 5.8). In a loop by itself a
//! program has the processor's caches and branch predictors for itself; here the kernel and two processes have had
//! them in between.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use crate::measure::Measures;

pub const GROUP: &str = "Programs while connections are made";

/// How often a program ran, and how long in all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Runs {
    count: u64,
    time: Duration,
}

/// Does some work with the account on, and returns for each program name how often the programs ran meanwhile. Their
/// time includes the cost of the account. The benchmark's own empty programs have no name.
pub fn counted<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, BTreeMap<String, Runs>)> {
    let account =
        enable_stats(Stats::RunTime).context("the kernel keeps no account of programs")?;
    let before = all();
    let done = work()?;
    let after = all();
    drop(account);
    let mut runs: BTreeMap<String, Runs> = BTreeMap::new();
    for (program, now) in after {
        let then = before.get(&program).copied().unwrap_or_default();
        let Some(count @ 1..) = now.count.checked_sub(then.count) else {
            continue;
        };
        let (_, name) = program;
        let entry = runs.entry(name).or_default();
        entry.count += count;
        entry.time += now.time.saturating_sub(then.time);
    }
    Ok((done, runs))
}

/// All programs of this machine, by their ids and names.
fn all() -> BTreeMap<(u32, String), Runs> {
    loaded_programs()
        // One that goes meanwhile is none that is measured.
        .flatten()
        .map(|program| {
            let name = program.name_as_str().unwrap_or_default().to_owned();
            let runs = Runs {
                count: program.run_count(),
                time: program.run_time(),
            };
            ((program.id(), name), runs)
        })
        .collect()
}

/// Whether the program that the kernel calls so is the one of a name, of which it keeps the first bytes.
pub fn is_called(program: &str, name: &str) -> bool {
    !program.is_empty() && name.starts_with(program)
}

/// Adds a program's row: how often it ran for each connection, and how long each time.
pub fn record(measures: &mut Measures, route: &str, program: &str, runs: Runs, connections: f64) {
    let count = runs.count as f64;
    for (what, unit, value) in [
        ("runs for each", "", count / connections),
        ("a run", "ns", runs.time.as_nanos() as f64 / count),
    ] {
        measures.add(GROUP, program, &format!("{route}: {what}"), unit, value);
    }
}
