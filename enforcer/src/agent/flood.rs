//! Which denials are reported first and which are kept when there are many: something of every
//! sender, and one of each kind that the sender tried, however many other denials there are.

use std::{cmp::Reverse, collections::HashMap};

use enforcer_common::record::{RecordKey, RecordValue};

use super::{Event, Subject, names, names::SubjectId};

/// What repeats with different addresses: sender, kind of port, port and reason.
type Kind = (SubjectId, u8, u16, u8);

fn kind(key: &RecordKey) -> Kind {
    (names::subject(key), key.port_kind, key.port, key.reason)
}

/// Sorts records into the order in which to keep them. Senders take turns, and each turn of a
/// sender goes to a kind that has not had one yet, as long as there is one. The newest of each kind
/// comes first.
pub(super) fn order_to_keep(records: &mut [(RecordKey, RecordValue)]) {
    records.sort_by_key(|(_, value)| Reverse(value.last_ns));
    let mut of_kind: HashMap<Kind, u32> = HashMap::new();
    // How many records of its kind, and then of its sender, come before it.
    let mut ranks: HashMap<RecordKey, (u32, u32)> = HashMap::with_capacity(records.len());
    for (key, _) in records.iter() {
        let count = of_kind.entry(kind(key)).or_default();
        ranks.insert(*key, (*count, 0));
        *count += 1;
    }
    records.sort_by_key(|(key, _)| ranks[key].0);
    let mut of_sender: HashMap<SubjectId, u32> = HashMap::new();
    for (key, _) in records.iter() {
        let count = of_sender.entry(names::subject(key)).or_default();
        if let Some(rank) = ranks.get_mut(key) {
            rank.1 = *count;
        }
        *count += 1;
    }
    records.sort_by_key(|(key, value)| (ranks[key].1, Reverse(value.last_ns)));
}

/// Fits on a screen or two, in chronological order.
const SCREENFUL: usize = 100;

/// Sorts events, given in chronological order, for listing: if there are many, the newest between
/// each sender and each endpoint comes first.
pub(super) fn order_to_list(events: Vec<Event>) -> Vec<Event> {
    if events.len() <= SCREENFUL {
        return events;
    }
    let mut newest: HashMap<_, usize> = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        // The address does not matter if it belongs to no endpoint.
        let port = event.endpoints.is_empty();
        let port = port.then_some((event.port, &event.protocol));
        let Subject { kind, id, .. } = &event.subject;
        newest.insert((kind, *id, &event.endpoints, port, &event.reason), at);
    }
    let mut is_first = vec![false; events.len()];
    newest.into_values().for_each(|at| is_first[at] = true);
    let (first, rest): (Vec<_>, Vec<_>) = events
        .into_iter()
        .zip(is_first)
        .partition(|(_, first)| *first);
    first
        .into_iter()
        .chain(rest)
        .map(|(event, _)| event)
        .collect()
}

/// How many lines about new denials are written per second: in total, for one sender, and for one
/// kind.
const LINES: [u32; 3] = [30, 15, 5];

/// What has been written in this second, and what has been left out.
#[derive(Debug, Default)]
pub(super) struct Budget {
    all: u32,
    of_sender: HashMap<SubjectId, u32>,
    of_kind: HashMap<Kind, u32>,
    left_out: u64,
    /// Since the agent started.
    left_out_in_total: u64,
}

impl Budget {
    /// Whether to write a line about a record. If not, the record is counted.
    pub fn allows(&mut self, key: &RecordKey) -> bool {
        // During a flood, no memory is spent on lines that will not be written.
        let is_over = self.all >= LINES[0];
        let sender = self
            .of_sender
            .get(&names::subject(key))
            .copied()
            .unwrap_or(0);
        let of_kind = self.of_kind.get(&kind(key)).copied().unwrap_or(0);
        if is_over || sender >= LINES[1] || of_kind >= LINES[2] {
            self.left_out += 1;
            self.left_out_in_total += 1;
            return false;
        }
        self.all += 1;
        self.of_sender.insert(names::subject(key), sender + 1);
        self.of_kind.insert(kind(key), of_kind + 1);
        true
    }

    /// How many lines were left out since the agent started.
    pub fn left_out_in_total(&self) -> u64 {
        self.left_out_in_total
    }

    /// Starts the next second. Returns how many lines were left out in the last one.
    pub fn next(&mut self) -> u64 {
        self.all = 0;
        self.of_sender.clear();
        self.of_kind.clear();
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use enforcer_common::{addr::Ip, record::subject};
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::api::tests::event;

    fn record(sender: u64, source: u32, port: u16, last_ns: u64) -> (RecordKey, RecordValue) {
        let mut key = RecordKey::new_zeroed();
        (key.subject, key.subject_kind, key.port) = (sender, subject::INTERFACE, port);
        key.src = Ip::v4(source.to_be_bytes());
        let mut value = RecordValue::new_zeroed();
        value.last_ns = last_ns;
        (key, value)
    }

    #[test]
    fn a_flood_evicts_no_rare_record() {
        // One sender floods one port from many addresses, one floods all ports, and one tried
        // something once, long ago.
        let mut records: Vec<_> = (0..1000)
            .map(|n| record(1, n, 2379, 1000 + u64::from(n)))
            .collect();
        records.extend((0..1000).map(|n| record(2, 1, n, 3000 + u64::from(n))));
        records.push(record(1, 1, 10250, 5));
        records.push(record(3, 1, 2379, 1));
        order_to_keep(&mut records);
        let kept = &records[..6];
        let place = |sender, port| {
            kept.iter()
                .position(|(k, _)| (k.subject, k.port) == (sender, port))
        };
        assert!(
            place(3, 2379).is_some() && place(1, 10250).is_some(),
            "{kept:?}"
        );
        let (_, first) = kept[place(1, 2379).unwrap()];
        assert_eq!(first.last_ns, 1999, "the newest of its kind");
        assert_eq!(records.len(), 2002);
    }

    #[test]
    fn the_newest_event_of_each_pair_is_listed_first() {
        let of = |id, endpoint: &str, source: u64| Event {
            source: Some(source.to_string()),
            endpoints: vec![endpoint.to_owned()],
            subject: Subject {
                id,
                ..event().subject
            },
            ..event()
        };
        let few: Vec<Event> = (0..100).map(|n| of(1, "etcd:client", n)).collect();
        assert_eq!(order_to_list(few.clone()), few);
        let mut many = vec![of(2, "etcd:client", 0), of(1, "kubelet:api", 0)];
        many.extend(few.clone());
        many.extend(few);
        let listed = order_to_list(many.clone());
        assert_eq!(listed.len(), many.len());
        assert_eq!(listed[..2], many[..2]);
        assert_eq!(listed[2].source.as_deref(), Some("99"), "its newest");
        assert_eq!(listed[3].source.as_deref(), Some("0"), "the others by time");
    }

    #[test]
    fn lines_are_limited_and_omitted_ones_counted() {
        let mut budget = Budget::default();
        let mut written = |keys: Vec<(RecordKey, RecordValue)>| {
            keys.iter().filter(|(key, _)| budget.allows(key)).count()
        };
        assert_eq!(written((0..100).map(|n| record(1, n, 1, 0)).collect()), 5);
        assert_eq!(written((0..100).map(|n| record(1, 0, n, 0)).collect()), 10);
        assert_eq!(written(vec![record(2, 0, 1, 0)]), 1, "another sender");
        assert_eq!(written((3..100).map(|n| record(n, 0, 1, 0)).collect()), 14);
        assert_eq!(budget.next(), 297 - 30 + 1);
        assert_eq!(budget.next(), 0);
        assert_eq!(budget.left_out_in_total(), 297 - 30 + 1);
        assert!(budget.allows(&record(1, 0, 1, 0).0));
    }
}
