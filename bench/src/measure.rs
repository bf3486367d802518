//! Measurements, and how they are printed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One thing, measured several times.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measure {
    /// Which table it belongs to.
    pub group: String,
    /// The row.
    pub what: String,
    /// The column: a filter, or what else is compared.
    pub subject: String,
    /// What the numbers are.
    pub unit: String,
    /// One for each round.
    pub values: Vec<f64>,
}

impl Measure {
    /// The one in the middle.
    pub fn median(&self) -> f64 {
        median(self.values.clone())
    }

    /// How many times another's: the ratio in the middle of those of each round. What disturbs a round disturbs both.
    pub fn ratio(&self, other: &Self) -> f64 {
        self.by_round(other, |mine, others| mine / others)
    }

    /// The same, with the quarters of the rounds below and above.
    fn ratio_and_quartiles(&self, other: &Self) -> [f64; 3] {
        let pairs = self.values.iter().zip(&other.values);
        let mut ratios: Vec<f64> = pairs.map(|(mine, others)| mine / others).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |quarter: usize| ratios.get(ratios.len() * quarter / 4).copied();
        [2, 1, 3].map(|quarter| at(quarter).unwrap_or(f64::NAN))
    }

    /// What is more than another's, likewise.
    pub fn excess(&self, other: &Self) -> f64 {
        self.by_round(other, |mine, others| mine - others)
    }

    fn by_round(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> f64 {
        if self.values.len() != other.values.len() {
            return of(self.median(), other.median());
        }
        let pairs = self.values.iter().zip(&other.values);
        median(pairs.map(|(mine, others)| of(*mine, *others)).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// All of a run.
#[derive(Debug, Default)]
pub struct Measures(pub Vec<Measure>);

impl Measures {
    /// Adds a value to the measure of that name, which is made where there is none.
    pub fn add(&mut self, group: &str, what: &str, subject: &str, unit: &str, value: f64) {
        let same = |m: &&mut Measure| m.group == group && m.what == what && m.subject == subject;
        if let Some(measure) = self.0.iter_mut().find(same) {
            measure.values.push(value);
            return;
        }
        self.0.push(Measure {
            group: group.to_owned(),
            what: what.to_owned(),
            subject: subject.to_owned(),
            unit: unit.to_owned(),
            values: vec![value],
        });
    }

    /// One of them.
    pub fn get(&self, group: &str, what: &str, subject: &str) -> Option<&Measure> {
        self.0
            .iter()
            .find(|m| m.group == group && m.what == what && m.subject == subject)
    }

    /// A table for each group: medians, and in brackets how many times the first column's, in the middle of all rounds.
    pub fn tables(&self) -> String {
        let mut groups: Vec<&str> = Vec::new();
        for measure in &self.0 {
            if !groups.contains(&measure.group.as_str()) {
                groups.push(&measure.group);
            }
        }
        groups.iter().map(|group| self.table(group)).collect()
    }

    /// How many times the product's each other build's figures are, in the middle of all rounds, and between which two ratios
    /// the middle half of the rounds is.
    pub fn beside(&self, product: &str, others: &[&str]) -> String {
        if others.is_empty() {
            return String::new();
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([&["", product], others].concat());
        for measure in self.0.iter().filter(|measure| measure.subject == product) {
            let Measure {
                group, what, unit, ..
            } = measure;
            let ratios = others.iter().map(|other| {
                self.get(group, what, other)
                    .map_or_else(String::new, |other| {
                        let [middle, low, high] = other.ratio_and_quartiles(measure);
                        format!("{middle:.3} ({low:.2}–{high:.2})")
                    })
            });
            let own = format!("{} {unit}", rounded(measure.median()));
            let row = [format!("{group}: {what}"), own].into_iter().chain(ratios);
            table.add_row(row);
        }
        format!("\n### Builds beside each other\n\n{table}\n")
    }

    fn table(&self, group: &str) -> String {
        let of_group: Vec<&Measure> = self.0.iter().filter(|m| m.group == group).collect();
        let (mut rows, mut columns): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut cells = BTreeMap::new();
        for measure in &of_group {
            if !rows.contains(&measure.what.as_str()) {
                rows.push(&measure.what);
            }
            if !columns.contains(&measure.subject.as_str()) {
                columns.push(&measure.subject);
            }
            cells.insert((measure.what.as_str(), measure.subject.as_str()), measure);
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        let head = std::iter::once("").chain(columns.iter().copied());
        table.set_header(head.map(str::to_owned).collect::<Vec<_>>());
        for row in rows {
            let base = columns
                .first()
                .and_then(|column| cells.get(&(row, *column)));
            let mut line = vec![row.to_owned()];
            for (number, column) in columns.iter().enumerate() {
                let Some(measure) = cells.get(&(row, *column)) else {
                    line.push(String::new());
                    continue;
                };
                let median = measure.median();
                // What is counted is not compared: it has no unit.
                let base = base.filter(|base| base.unit == measure.unit && !base.unit.is_empty());
                let ratio = base.map_or(f64::NAN, |base| measure.ratio(base));
                let ratio = if number > 0 && ratio.is_finite() {
                    format!(" ({ratio:.2})")
                } else {
                    String::new()
                };
                let figure = format!("{} {}{ratio}", rounded(median), measure.unit);
                line.push(figure.trim_end().to_owned());
            }
            table.add_row(line);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("\n### {group}\n\n{table}\n")
    }
}

/// Three digits, or all before the point.
pub fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// Keeps this thread on the first core, the same for all that is compared.
pub fn stay_on_one_core() -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("failed to stay on one core")
}
