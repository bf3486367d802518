//! What the agent prints: a start message, each new denial, and a table at the end.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use enforcer_common::record::RecordKey;
use enforcer_policy::text;

use super::{
    Event, Output,
    ledger::{InForce, boot_time},
    print::{Priority, print, print_as, print_result, stdout_is_journal},
    serve::Agent,
};
use crate::api::Document;

/// As many rows as anybody reads at the end.
const ROWS: usize = 200;

impl Agent {
    /// Reports new denials.
    pub(super) fn report_denials(&mut self, keys: &[RecordKey]) {
        let is_followed = self.news.receiver_count() > 0;
        let boot = boot_time();
        for key in keys {
            self.totals.count_new_denial(key);
            let is_written = self.budget.allows(key);
            if !is_written && !is_followed {
                self.ledger.learn(key);
                continue;
            }
            let Some(value) = self.kernel.record(key) else {
                continue;
            };
            let in_force = InForce {
                generation: self.kernel.generation(),
                ready: &self.ready,
            };
            let event = self.ledger.event(in_force, key, &value, boot);
            if is_written {
                print_event(self.options.output, &event);
            }
            // There may be no receiver.
            let _ = self.news.send(event);
        }
    }

    pub(super) fn print_start(&mut self) {
        let Ok(status) = self.status() else { return };
        print(&format!(
            "policy `{}` is in force on node `{}`: {}, other traffic {}, {} attachments",
            status.policy,
            status.node,
            status.mode,
            status.other_traffic,
            status.attachments.len()
        ));
        status
            .notes
            .iter()
            .for_each(|note| print_as(Priority::Notice, &format!("note: {note}")));
        self.print_warnings();
    }

    /// Prints what about the node does not fit the policy.
    pub(super) fn print_warnings(&mut self) {
        for warning in self.warnings() {
            print_as(Priority::Warning, &format!("warning: {warning}"));
        }
        for listener in self.refused_listeners() {
            print_as(Priority::Warning, &format!("warning: {listener}"));
        }
    }

    /// Prints a table of all denials, the most frequent first.
    pub(super) fn print_summary(&mut self) {
        let Ok(events) = self.events() else { return };
        // The journal already has each denial as an entry.
        if events.is_empty() || self.options.output == Output::Json || stdout_is_journal() {
            return;
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::TableStyle::new());
        table.set_header(["COUNT", "VERDICT", "FROM", "TO", "REASON"]);
        let mut rows: BTreeMap<[String; 4], u64> = BTreeMap::new();
        for event in events {
            let mut to = event.target();
            if !event.endpoints.is_empty() {
                to = format!("{to} ({})", event.endpoints.join(", "));
            }
            let (verdict, reason) = (event.verdict.to_string(), event.reason.to_string());
            let row = [verdict, event.sender(), to, reason];
            *rows.entry(row).or_default() += event.count;
        }
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let left_out = rows.len().saturating_sub(ROWS);
        rows.truncate(ROWS);
        for ([verdict, from, to, reason], count) in rows {
            table.add_row([count.to_string(), verdict, from, to, reason]);
        }
        let _ = writeln!(io::stdout(), "{}", text::lines(&table.to_string()));
        if left_out > 0 {
            let _ = writeln!(io::stdout(), "and {left_out} more");
        }
    }
}

fn print_event(output: Output, event: &Event) {
    let json;
    let line = match output {
        Output::Text => event.to_string(),
        Output::Json => {
            json = serde_json::to_string(&Document::new(event)).unwrap_or_default();
            text::json(&json).into_owned()
        }
    };
    let priority = match event.is_denied() {
        true => Priority::Warning,
        false => Priority::Notice,
    };
    // Enforcement continues whether anybody reads or not.
    print_result(priority, &line);
}
