//! The tables of limited size: what each holds, how much, and what happens when it is full. `docs/limits.md` lists them.

use enforcer_common::{
    interfaces,
    limits::{
        MAX_CELLS, MAX_CGROUPS, MAX_CLASSES, MAX_PAIRS, MAX_PARTIES, MAX_PATHS, MAX_PREFIXES,
        MAX_RECORDS, MAX_TARGETS, MAX_TLS_ACCEPTED, MAX_TLS_STREAMS, MAX_TRANSLATED, MAX_UDP_FLOWS,
    },
};

use super::serve::Agent;
use crate::api::Table;

/// A table of the kernel programs or of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limited {
    /// Its name, in status and metrics.
    pub name: &'static str,
    /// What an entry is.
    pub holds: &'static str,
    /// How many entries there is room for.
    pub capacity: u32,
    /// What happens to one more.
    pub when_full: &'static str,
    entries: Entries,
}

/// How its entries are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entries {
    Cgroups,
    Interfaces,
    Records,
    Paths,
    Prefixes,
    Parties,
    Classes,
    Targets,
    TargetCells,
    VerdictCells,
    /// Only a walk through the table could tell.
    Unknown,
}

const REFUSED: &str = "the policy is refused before anything changes, by `check`, too";

/// All of them.
pub(super) const ALL: [Limited; 14] = [
    Limited {
        name: "cgroups",
        holds: "cgroups that exist and match a declared one",
        capacity: MAX_CGROUPS,
        when_full: "a policy with more is refused; a cgroup that comes later counts as one that nobody declared, and `status` reports it",
        entries: Entries::Cgroups,
    },
    Limited {
        name: "interfaces",
        holds: "interfaces with a role",
        capacity: interfaces::SLOTS,
        when_full: "an interface counts as undeclared: guarded endpoints are checked there, as is everything at the receiving socket; `status` reports it",
        entries: Entries::Interfaces,
    },
    Limited {
        name: "records",
        holds: "distinct denials that `events` lists",
        capacity: MAX_RECORDS + MAX_PAIRS,
        when_full: "a denial is counted and not listed; from three quarters on the agent removes old records and adds up what they counted",
        entries: Entries::Records,
    },
    Limited {
        name: "paths",
        holds: "names of paths since enforcement began, as each keeps its number and counter",
        capacity: MAX_PATHS,
        when_full: "the policy is refused before anything changes; after `enforcer detach`, numbers begin anew",
        entries: Entries::Paths,
    },
    Limited {
        name: "prefixes",
        holds: "addresses and networks of the policy",
        capacity: MAX_PREFIXES,
        when_full: REFUSED,
        entries: Entries::Prefixes,
    },
    Limited {
        name: "parties",
        holds: "distinct sets of components at an address, a cgroup or an interface",
        capacity: MAX_PARTIES,
        when_full: REFUSED,
        entries: Entries::Parties,
    },
    Limited {
        name: "port_classes",
        holds: "distinct classes of ports",
        capacity: MAX_CLASSES,
        when_full: REFUSED,
        entries: Entries::Classes,
    },
    Limited {
        name: "targets",
        holds: "distinct sets of endpoints",
        capacity: MAX_TARGETS,
        when_full: REFUSED,
        entries: Entries::Targets,
    },
    Limited {
        name: "target_cells",
        holds: "cells of the table of parties by port classes",
        capacity: MAX_CELLS,
        when_full: REFUSED,
        entries: Entries::TargetCells,
    },
    Limited {
        name: "verdict_cells",
        holds: "cells of the table of parties by targets",
        capacity: MAX_CELLS,
        when_full: REFUSED,
        entries: Entries::VerdictCells,
    },
    Limited {
        name: "udp_flows",
        holds: "UDP flows, remembered for their replies",
        capacity: MAX_UDP_FLOWS,
        when_full: "the flow that was used longest ago is forgotten: its replies are judged by themselves until its opener sends again",
        entries: Entries::Unknown,
    },
    Limited {
        name: "translated_flows",
        holds: "connections whose addresses are translated, remembered for their replies",
        capacity: MAX_TRANSLATED,
        when_full: "as for udp_flows",
        entries: Entries::Unknown,
    },
    Limited {
        name: "tls_streams",
        holds: "forwarded connections on paths that require TLS, until their first bytes are checked",
        capacity: MAX_TLS_STREAMS,
        when_full: "the one that was used longest ago is forgotten, and its first bytes are not checked by the node that forwards it",
        entries: Entries::Unknown,
    },
    Limited {
        name: "tls_accepted",
        holds: "accepted connections on such paths, until their first bytes are checked",
        capacity: MAX_TLS_ACCEPTED,
        when_full: "the one that was used longest ago is forgotten: if the last packet of its handshake carries data, the connection is denied (NotTls)",
        entries: Entries::Unknown,
    },
];

impl Agent {
    /// How full each of them is.
    pub(super) fn tables(&self) -> Vec<Table> {
        let compiled = &self.ready.compiled;
        let settings = &compiled.settings;
        let entries = |table: &Limited| {
            Some(match table.entries {
                Entries::Cgroups => self.known_cgroups(),
                Entries::Interfaces => self.kernel.interfaces_held(),
                Entries::Records => self.kernel.records_held(),
                Entries::Paths => self.ready.numbers.names().len() as u64,
                Entries::Prefixes => compiled.prefixes.len() as u64,
                Entries::Parties => settings.parties.into(),
                Entries::Classes => settings.classes.into(),
                Entries::Targets => settings.targets.into(),
                Entries::TargetCells => compiled.targets.len() as u64,
                Entries::VerdictCells => compiled.entries.len() as u64,
                Entries::Unknown => return None,
            })
        };
        let all = ALL.iter().map(|table| Table {
            name: table.name.to_owned(),
            entries: entries(table),
            capacity: table.capacity.into(),
            when_full: table.when_full.to_owned(),
        });
        all.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const BEGIN: &str = "<!-- limits:begin -->\n";
    const END: &str = "<!-- limits:end -->\n";

    fn thousands(number: u32) -> String {
        let digits = number.to_string();
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        text
    }

    #[test]
    fn the_page_lists_every_table() {
        let mut table =
            "| table | what it holds | room for | when it is full |\n|---|---|---|---|\n"
                .to_owned();
        for limited in ALL {
            let Limited {
                name,
                holds,
                capacity,
                when_full,
                ..
            } = limited;
            let capacity = thousands(capacity);
            table.push_str(&format!(
                "| `{name}` | {holds} | {capacity} | {when_full} |\n"
            ));
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
        let page = fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        let wanted = format!("{before}{BEGIN}{table}{END}{after}");
        if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
            fs::write(path, wanted).unwrap();
            return;
        }
        assert!(
            page == wanted,
            "docs/limits.md is out of date: run this test with ENFORCER_WRITE_DOCS=1"
        );
    }
}
