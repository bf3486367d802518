use std::{fs, path::Path, time::Duration};

use enforcer_common::record::subject;
use zerocopy::FromZeros as _;

use super::*;

fn snapshot() -> Snapshot {
    let since = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
    Snapshot {
        version: "1.2.3",
        layout: 0xabc,
        totals: Totals {
            started: since,
            rolled_back_unconfirmed: 2,
            ..Totals::new()
        },
        policy: PolicyInForce {
            name: "prod \"a\"\\b".to_owned(),
            digest: "d1".to_owned(),
            dry_run: false,
            other_traffic: "Allow",
            generation: 7,
            since,
            confirm_by: None,
            is_of_files: true,
        },
        paths: vec![("apiserver-to-etcd".to_owned(), 3, 4)],
        reasons: vec![(Reason::NoPath, 5, 6)],
        other_traffic: 8,
        later_fragments: 0,
        cut: 0,
        kept_verdicts: 0,
        records_lost: 9,
        records_evicted: 0,
        wakes_lost: 0,
        events_suppressed: 0,
        is_attached: true,
        attachments: BTreeMap::from([(("tc/ingress".to_owned(), "tcx".to_owned()), 2)]),
        interfaces: 3,
        interfaces_unattached: 0,
        problems: vec![("interfaces", false)],
        tables: vec![
            Table {
                name: "cgroups".to_owned(),
                entries: Some(1),
                capacity: 10,
                when_full: String::new(),
            },
            Table {
                name: "udp_flows".to_owned(),
                entries: None,
                capacity: 20,
                when_full: String::new(),
            },
        ],
    }
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|is| is == line), "{line}\nin {text}");
}

#[test]
fn a_snapshot_is_written_in_both_formats() {
    let text = TextFormat::Prometheus.encode(snapshot()).unwrap();
    for line in [
        "# TYPE enforcer_path_packets_total counter",
        r#"enforcer_path_packets_total{path="apiserver-to-etcd",direction="forward"} 3"#,
        r#"enforcer_path_packets_total{path="apiserver-to-etcd",direction="reply"} 4"#,
        r#"enforcer_denials_total{reason="NoPath",mode="denied"} 5"#,
        r#"enforcer_denials_total{reason="NoPath",mode="would_deny"} 6"#,
        r#"enforcer_build_info{version="1.2.3",layout="0000000000000abc"} 1"#,
        r#"enforcer_policy_info{policy="prod \"a\"\\b",digest="d1",other_traffic="Allow"} 1"#,
        "enforcer_policy_generation 7",
        "enforcer_policy_applied_timestamp_seconds 1700000000.25",
        "enforcer_enforced 1",
        "enforcer_policy_pending_confirmation 0",
        r#"enforcer_policy_rollbacks_total{cause="unconfirmed"} 2"#,
        r#"enforcer_new_denials_total{hook="cgroup/connect",mode="denied"} 0"#,
        r#"enforcer_attachments{hook="tc/ingress",method="tcx"} 2"#,
        r#"enforcer_table_entries{table="cgroups"} 1"#,
        r#"enforcer_table_capacity{table="udp_flows"} 20"#,
        "enforcer_records_lost_total 9",
    ] {
        has(&text, line);
    }
    for absent in [
        "enforcer_table_entries{table=\"udp_flows\"",
        "\nenforcer_policy_confirmation_deadline_timestamp_seconds ",
        "SockCreate",
        "# EOF",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
    let open = TextFormat::OpenMetrics.encode(snapshot()).unwrap();
    has(&open, "# TYPE enforcer_path_packets counter");
    has(&open, "# TYPE enforcer_build info");
    has(
        &open,
        "# UNIT enforcer_policy_applied_timestamp_seconds seconds",
    );
    assert!(open.ends_with("# EOF\n"), "{open}");
    let samples = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(samples(&text), samples(&open));
}

#[test]
fn absent_states_are_exported_as_zero() {
    let mut snapshot = snapshot();
    snapshot.is_attached = false;
    has(
        &TextFormat::Prometheus.encode(snapshot.clone()).unwrap(),
        "enforcer_enforced 0",
    );
    snapshot.is_attached = true;
    snapshot.policy.dry_run = true;
    snapshot.policy.confirm_by = Some(UNIX_EPOCH + Duration::from_secs(10));
    let text = TextFormat::Prometheus.encode(snapshot).unwrap();
    for line in [
        "enforcer_enforced 0",
        "enforcer_dry_run 1",
        "enforcer_policy_pending_confirmation 1",
        "enforcer_policy_confirmation_deadline_timestamp_seconds 10.0",
    ] {
        has(&text, line);
    }
}

#[test]
fn new_denials_are_counted_by_hook() {
    let mut totals = Totals::new();
    let mut key = RecordKey::new_zeroed();
    key.subject_kind = subject::CGROUP;
    for (hook, dry_run) in [(Hook::Connect as u8, 0), (Hook::Connect as u8, 1), (255, 0)] {
        (key.hook, key.dry_run) = (hook, dry_run);
        totals.count_new_denial(&key);
    }
    assert_eq!(totals.new_denials(Hook::Connect), [1, 1]);
    assert_eq!(totals.new_denials(Hook::Bind), [0, 0]);
    assert!(Hook::ALL.into_iter().all(|hook| (hook as usize) < HOOKS));
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let mut names = Vec::new();
    for family in &FAMILIES {
        let name = full_name(family);
        let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.starts_with("enforcer_"), "{name}");
        assert!(name.chars().all(is_plain), "{name}");
        assert!(!family.name.ends_with("_total"), "{name}");
        let is_time = family.kind == Kind::Timestamp;
        assert_eq!(name.contains("timestamp"), is_time, "{name}");
        assert!(
            family.help.len() > 10 && !family.help.ends_with('.'),
            "{name}"
        );
        for label in family.labels {
            let forbidden = [
                "address",
                "ip",
                "pid",
                "cgroup",
                "interface",
                "node",
                "port",
            ];
            assert!(!forbidden.contains(label), "{name}: {label}");
        }
        names.push(name);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), FAMILIES.len());
}

#[test]
fn the_accept_header_chooses_the_format() {
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    assert_eq!(TextFormat::of(prometheus), TextFormat::OpenMetrics);
    assert_eq!(TextFormat::of("*/*"), TextFormat::Prometheus);
    assert_eq!(TextFormat::of(""), TextFormat::Prometheus);
}

fn full_name(family: &Family) -> String {
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Gauge => "",
        Kind::Timestamp => "_seconds",
        Kind::Info => "_info",
    };
    format!("{}{suffix}", family.name)
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).unwrap()
}

const BEGIN: &str = "<!-- metrics:begin -->\n";
const END: &str = "<!-- metrics:end -->\n";

/// The table on the page is the one in this module.
#[test]
fn the_page_lists_every_metric() {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in &FAMILIES {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Timestamp | Kind::Info => "gauge",
        };
        let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
        let (name, labels, help) = (full_name(family), labels.join(", "), family.help);
        table.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    }
    let page = read("docs/metrics.md");
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let wanted = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        fs::write(path, &wanted).unwrap();
        return;
    }
    assert!(
        page == wanted,
        "docs/metrics.md is out of date: run this test with ENFORCER_WRITE_DOCS=1"
    );
}

/// Rules and the page name only metrics that exist, and the page names every alert.
#[test]
fn rules_name_only_exported_metrics() {
    let names: Vec<String> = FAMILIES.iter().map(full_name).collect();
    let (rules, page) = (
        read("packaging/prometheus/enforcer.rules.yaml"),
        read("docs/metrics.md"),
    );
    for text in [&rules, &page, &read("docs/guide.md")] {
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        for word in
            words.filter(|word| word.starts_with("enforcer_") && word.len() > "enforcer_".len())
        {
            // These names of chains, programs and labels belong to others.
            assert!(
                names.iter().any(|name| name == word),
                "{word} is not exported"
            );
        }
    }
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 6, "{alerts:?}");
    for alert in alerts {
        assert!(
            page.contains(&format!("`{alert}`")),
            "{alert} is not in the page"
        );
    }
}

/// The port collides with nothing that a node usually runs.
#[test]
fn the_port_is_free() {
    let port = super::super::METRICS.port();
    assert!(!read("policies/catalogue.yaml").contains(&port.to_string()));
    assert!(super::super::METRICS.ip().is_loopback());
    // The ports of exporters, NodePorts and ephemeral ports.
    assert!(!(9100..10_000).contains(&port) && port < 30_000);
}
