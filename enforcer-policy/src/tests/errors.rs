//! One row per error: what is written, and the message and location that are reported.

use super::{Row, SMALL, check_rows, read, said};
use crate::read::limits::{LIMITS, Limits};
use crate::validate::from_texts_within;
use crate::{Paint, SourceText, from_texts};

#[test]
fn yaml_and_shape() {
    check_rows(SMALL, SHAPE, |text| read(text).map(drop));
}

#[test]
fn nodes_and_addresses() {
    check_rows(SMALL, NODES, |text| read(text).map(drop));
    let start = SMALL.find("  nodes:").unwrap();
    let end = SMALL.find("  podNetworks:").unwrap();
    let text = format!("{}  nodes: {{}}\n{}", &SMALL[..start], &SMALL[end..]);
    check_text(
        &text,
        "5:3",
        &["an inventory without nodes", "write `nodes:"],
    );
}

#[test]
fn components_and_services() {
    check_rows(SMALL, COMPONENTS, |text| read(text).map(drop));
}

#[test]
fn policies_and_paths() {
    check_rows(SMALL, PATHS, |text| read(text).map(drop));
    let end = SMALL.find("  paths:").unwrap();
    let text = SMALL[..end].replace("  profile: control-plane-stacked-etcd\n", "");
    check_text(
        &text,
        "18:1",
        &["a policy without any path", "choose a `profile`"],
    );
}

#[test]
fn documents() {
    let second = |kind: &str| {
        let mut documents = SMALL.split("---\n");
        let inventory = documents.next().unwrap();
        let policy = documents.next().unwrap();
        if kind == "Inventory" {
            inventory
        } else {
            policy
        }
    };
    let twice = |kind: &str| format!("{SMALL}---\n{}", second(kind));
    check_text(
        &twice("Inventory"),
        "29:7",
        &["a second Inventory", "not merged"],
    );
    check_text(
        &twice("PathPolicy"),
        "29:7",
        &["a second PathPolicy", "not merged"],
    );
    check_text(
        second("Inventory"),
        "-",
        &["there is no PathPolicy in the input"],
    );
    check_text(
        second("PathPolicy"),
        "-",
        &["there is no Inventory in the input"],
    );
    check_text(
        "",
        "-",
        &[
            "there is no document in this file",
            "apiVersion: enforcer.dev/v1alpha1",
        ],
    );
    check_text("# a comment\n---\n", "-", &["there is no document"]);
    check_text("just text", "1:1", &["expected names with values"]);
    check_text("- a\n- b\n", "1:1", &["expected names with values"]);
    check_text(
        "kind: Catalogue\nspec: {roles: {}, components: {}, paths: [], groups: {}, options: {}, profiles: {}}",
        "1:7",
        &["the catalogue is built in"],
    );
    check_text(
        "kind: PathCases\nspec: { node: a }",
        "1:7",
        &["no part of it", "NAME.cases.yaml"],
    );
    check_text(
        "spec: { nodes: {} }\nkind: Inventory\n",
        "1:1",
        &["`spec` stands before `kind`"],
    );
    check_text("kind: Inventory\n", "1:7", &["spec is missing"]);
    let errors = from_texts(&[]).expect_err("nothing");
    assert!(said(&errors).contains("there is no"), "{errors}");
}

#[test]
fn all_errors_come_at_once_in_the_order_of_the_file() {
    let text = SMALL
        .replace("10.0.0.21", "10.0.0.333")
        .replace("10.244.0.0/16", "10.244.0.1/16")
        .replace("mode: DryRun", "mode: Dry")
        .replace("etcd:client", "etcd:clients");
    let errors = read(&text).expect_err("four errors");
    let lines: Vec<u32> = errors.iter().filter_map(|error| error.line).collect();
    assert_eq!(lines, [7, 8, 20, 25], "{errors}");
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let text = SMALL
        .replace("podNetworks:", "podNets:")
        .replace("  mode:", "  moode:");
    let errors = said(&read(&text).expect_err("two errors"));
    assert!(
        errors.contains("8:3") && errors.contains("20:3"),
        "{errors}"
    );
    assert!(!errors.contains("there is no"), "{errors}");
}

#[test]
fn an_error_shows_the_line_and_points_at_the_value() {
    let text = SMALL.replace("etcd:client", "etdc:client");
    let errors = read(&text).expect_err("an error");
    let expected = "\
error: no component is called `etdc`
  --> p.yaml:25:11
   |
25 |       to: etdc:client
   |           ^^^^^^^^^^^
   |
   = help: did you mean `etcd`?";
    assert_eq!(errors.to_string(), expected);
    assert!(
        errors.render(Paint::Coloured).contains("\u{1b}["),
        "coloured for a terminal"
    );
    let json = serde_json::to_value(&errors).unwrap();
    assert_eq!(
        json,
        serde_json::json!([{
            "file": "p.yaml", "line": 25, "column": 11,
            "message": "no component is called `etdc`", "help": "did you mean `etcd`?",
        }])
    );
}

#[test]
fn an_error_names_its_file() {
    let (inventory, policy) = SMALL.split_once("---\n").unwrap();
    let source = |name: &str, text: &str| SourceText {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let sources = [
        source("a.yaml", inventory),
        source("b.yaml", &policy.replace("etcd:client", "etdc:client")),
    ];
    let errors = from_texts(&sources).expect_err("an error");
    let error = errors.iter().next().unwrap();
    assert_eq!((error.file.as_str(), error.line), ("b.yaml", Some(11)));
}

#[test]
fn a_terminal_is_safe_from_what_is_quoted() {
    let text = SMALL.replace("etcd:client", "\"\\e[31m:x\"");
    let errors = read(&text).expect_err("an error").to_string();
    assert!(
        !errors.contains('\u{1b}') && errors.contains("\\u{1b}[31m"),
        "{errors}"
    );
}

#[test]
fn very_long_values_are_cut() {
    let text = SMALL.replace("etcd:client", &format!("{}:x", "y".repeat(100_000)));
    assert!(read(&text).expect_err("an error").to_string().len() < 1000);
}

/// Each is refused by a limit that is reached early, and the message is bounded as well.
#[test]
fn bombs_are_refused() {
    let mut laughs = "a: &a0 [x]\n".to_owned();
    for level in 1..40 {
        let alias = format!("*a{},", level - 1).repeat(9);
        laughs += &format!("b{level}: &a{level} [{alias}]\n");
    }
    let deep = format!("spec: {}{}", "[".repeat(5000), "]".repeat(5000));
    let block: String = (0..200)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    for (text, fragment) in [
        (laughs, "too much, or too deeply nested"),
        (deep, "not readable as YAML"),
        (block, "too much, or too deeply nested"),
        ("a: 1\n---\n".repeat(5000), "more than 1024 documents"),
        ("a: 1\n...\n".repeat(5000), "more than 1024 documents"),
        ("---\n".repeat(5000), "more than 1024 documents"),
    ] {
        let errors = read(&text).expect_err("refused");
        assert_eq!(errors.iter().count(), 1, "{errors}");
        assert!(errors.to_string().contains(fragment), "{errors}");
    }
    // At most a thousand errors are reported.
    let networks: Vec<String> = (0..3000).map(|number| format!("x{number}")).collect();
    let text = SMALL.replace("10.244.0.0/16", &networks.join(", "));
    let errors = read(&text).expect_err("refused");
    assert_eq!(errors.iter().count(), 1000);
    assert!(errors.to_string().contains("and 950 more errors"));
}

/// A limit allows exactly what it says, and an error says how much there is.
#[test]
fn each_kind_has_its_limits() {
    let read = |text: &str, limits: Limits| {
        let text = text.to_owned();
        let name = "p.yaml".to_owned();
        from_texts_within(&[SourceText { name, text }], &limits).map(drop)
    };
    // A second path, so that each of the numbers is 2 or more.
    let path = SMALL.find("    - name: backup-to-etcd").unwrap();
    let text = format!(
        "{SMALL}{}",
        SMALL[path..].replace("backup-to-etcd", "again")
    );
    type With = fn(usize) -> Limits;
    let with_values: With = |values| Limits { values, ..LIMITS };
    let values = (1..200)
        .find(|most| read(&text, with_values(*most)).is_ok())
        .unwrap();
    let rows: [(With, usize, &[&str]); 6] = [
        (
            |nodes| Limits { nodes, ..LIMITS },
            2,
            &["an Inventory of 2 nodes; 1 is the most", "p.yaml:7:5"],
        ),
        (
            |components| Limits {
                components,
                ..LIMITS
            },
            2,
            &["an Inventory of 2 components; 1 is the most", "p.yaml:13:5"],
        ),
        (
            |paths| Limits { paths, ..LIMITS },
            2,
            &["a PathPolicy of 2 paths; 1 is the most", "p.yaml:27:13"],
        ),
        (
            |names| Limits { names, ..LIMITS },
            2,
            &["a PathPolicy with 2 names in `options`", "; 1 is the most"],
        ),
        (
            |documents| Limits {
                documents,
                ..LIMITS
            },
            1,
            &["more than 0 documents in one file", "p.yaml:14:1"],
        ),
        (
            with_values,
            values,
            &[
                "texts, lists and mappings",
                "65536 nodes",
                "4096 paths",
                "10000 cases",
            ],
        ),
    ];
    for (with, most, fragments) in rows {
        if let Err(errors) = read(&text, with(most)) {
            panic!("{most}: {errors}");
        }
        let errors = read(&text, with(most - 1))
            .expect_err("one too many")
            .to_string();
        for fragment in fragments {
            assert!(errors.contains(fragment), "no {fragment:?} in {errors}");
        }
        assert!(!errors.contains("there is no"), "{errors}");
    }
}

fn check_text(text: &str, place: &str, fragments: &[&str]) {
    let errors = read(text).expect_err(text);
    super::expect(&errors, place, fragments, text);
}

#[rustfmt::skip]
const SHAPE: &[Row] = &[
    ("  podNetworks:", "  »podNetwork:", "unknown field … did you mean `podNetworks`?"),
    ("roles: [worker]", "»role: [worker]", "unknown field … `roles`"),
    ("  mode: DryRun", "  »Mode: DryRun", "unknown field … `mode`"),
    ("      because:", "      »flavour: x\n      because:", "unknown field … `flavour` … known: "),
    ("      because:", "      tls: »Yes\n      because:", "is no tls; it is one of `Optional` … `Required`"),
    ("  mode: DryRun", "  tlsLock: »Off\n  mode: DryRun", "is no tlsLock; it is one of `DryRun`"),
    ("      because:", "      »becuase:", "did you mean `because`?"),
    ("pods: { cgroups", "pods: { »cgroup", "did you mean `cgroups`?"),
    ("{ agent: 9000/tcp }", "{ agent: { »mach: 9000/tcp } }", "did you mean `match`?"),
    ("spec:\n  nodes", "»status: x\nspec:\n  nodes", "unknown field `status` … known: `apiVersion`"),
    ("metadata: { name: test }", "metadata: { »nam: test }", "did you mean `name`?"),
    ("metadata: { name: test }", "metadata: »{}", "field `name` is missing"),
    ("metadata: { name: test }", "metadata: { name: test, »label: { a: b } }", "did you mean `labels`?"),
    ("{ agent: 9000/tcp }", "{ agent: { match: 9000/tcp, denial: ask the team, »not the list } }", "`not the list` has no value: the comma before it ended `ask the team` … quote the whole text: `\"ask the team, not the list\"`"),
    ("{ agent: 9000/tcp }", "{ agent: { match: 9000/tcp, denial: 'ask the team, not the list', »loopback: true } }", "did you mean `loopbackOnly`?"),
    ("metadata: { name: test }", "metadata: { name: »' ' }", "the name is empty"),
    ("metadata: { name: test }\n", "", "2:7 … metadata is missing"),
    ("apiVersion: enforcer.dev/v1alpha1\n", "", "1:7 … apiVersion is missing … enforcer.dev/v1alpha1"),
    ("enforcer.dev/v1alpha1", "»enforcer.dev/v1", "unknown apiVersion `enforcer.dev/v1`"),
    ("kind: Inventory", "kind: »Inventori", "unknown kind … did you mean `Inventory`?"),
    ("kind: Inventory\n", "", "3:1 … kind is missing … `PathPolicy`"),
    ("kind: Inventory", "kind: Catalogue", "5:3 … unknown field … `nodes`"),
    ("    w1:", "    »cp1:", "`cp1` is here twice"),
    ("  mode: DryRun", "  mode: DryRun\n  »mode: Enforce", "`mode` is here twice"),
    ("    backup: {", "    »pods: {", "`pods` is here twice"),
    ("ports: { agent: 9000/tcp }", "guard: »yes", "write `true` or `false`"),
    ("from: [backup]", "from: »backup", "expected a list … write `[a, b]`"),
    ("addresses: [10.0.0.21]", "addresses: [»[10.0.0.21]]", "single text"),
    ("podNetworks: [10.244.0.0/16]", "podNetworks: [»~]", "there is no value"),
    ("pods: { cgroups: [/kubepods.slice] }", "pods: »[]", "expected names with values"),
    ("  podNetworks: [10.244.0.0/16]", "  podNetworks: [10.244.0.0/16", "9:11 … not readable as YAML"),
    ("[10.244.0.0/16]", "»*nets", "not readable as YAML"),
    ("[10.244.0.0/16]", "!!nets »[10.244.0.0/16]", "not readable as YAML … tag"),
    ("9000/tcp", "»1.5", "`1.5` is no port … write `2379/tcp`"),
    ("      to: etcd:client\n", "", "23:13 … path `backup-to-etcd` leads nowhere … write `to: component:port`"),
];

#[rustfmt::skip]
const NODES: &[Row] = &[
    ("addresses: [10.0.0.21], ", "", "7:5 … node `w1` has no address … addresses: [10.0.0.11"),
    ("[10.0.0.21]", "[]", "7:5 … node `w1` has no address"),
    ("[10.0.0.21]", "[»10.0.0.300]", "`10.0.0.300` is not an IP address"),
    ("[10.0.0.21]", "[»10.0.0.0/24]", "is a network … write `10.0.0.0`"),
    ("[10.0.0.21]", "[»10.0.0.11]", "is an address of node `cp1`, too"),
    ("[10.0.0.21]", "[10.0.0.21, »10.0.0.21]", "`10.0.0.21` is here twice"),
    ("[10.0.0.21]", "[»'FD00::11']", "is an address of node `cp1`, too"),
    ("[10.0.0.21]", "[»127.0.0.1]", "a loopback address"),
    ("[10.0.0.21]", "[»0.0.0.0]", "no host's address"),
    ("[10.0.0.21]", "[»'ff02::1']", "many hosts"),
    ("[10.0.0.21]", "[»'::ffff:10.0.0.21']", "IPv4 in the form of IPv6 … `10.0.0.21`"),
    ("[10.0.0.21]", "[»'fe80::1%eth0']", "names an interface"),
    ("roles: [worker]", "roles: [»wroker]", "role `wroker` … did you mean `worker`?"),
    ("roles: [worker]", "roles: [»xyzzy]", "no component runs on a node for its role … known: "),
    ("roles: [worker]", "roles: [worker, »worker]", "is here twice"),
    ("    w1:", "    »W1:", "`W1` is no name for a node"),
    ("uplinks: [eth0]", "uplinks: [»eth0123456789abcdef]", "no name of an interface … 15 characters"),
    ("uplinks: [eth0]", "uplinks: [»'a/b']", "no name of an interface"),
    ("podInterfaces: ['cali*']", "podInterfaces: [»eth0]", "is an uplink and a pod's interface"),
    ("uplinks: [eth0], podInterfaces: ['cali*']", "uplinks: ['e*0'], podInterfaces: [»'eth*']", "`eth*` and the uplinks' `e*0` both match `eth0`, and neither is narrower … the narrower wins"),
    ("uplinks: [eth0], podInterfaces: ['cali*']", "uplinks: ['?*'], podInterfaces: [»'*?']", "both match … neither is narrower"),
    ("uplinks: [eth0]", "uplinks: [»'eth**']", "`**` means the same as `*` here … write one `*`"),
    ("roles: [worker]", "cgroupRoot: »kube", "is not an absolute path … write `/kube`"),
    ("roles: [worker]", "cgroupRoot: »'/kube*'", "a root has no globs"),
    ("[10.244.0.0/16]", "[»10.244.1.0/16]", "bits set beyond its prefix … write `10.244.0.0/16` … `10.244.1.0`"),
    ("[10.244.0.0/16]", "[»'fd01::1/56']", "write `fd01::/56`"),
    ("[10.244.0.0/16]", "[»10.244.0.0/33]", "is not a network"),
    ("[10.244.0.0/16]", "[»10.244.0.1]", "is one address … `10.244.0.1/32`"),
    ("[10.244.0.0/16]", "[»0.0.0.0/0]", "would make everybody a pod"),
    ("[10.244.0.0/16]", "[10.244.0.0/16, »10.244.0.0/16]", "is here twice"),
];

#[rustfmt::skip]
const COMPONENTS: &[Row] = &[
    ("[192.0.2.7]", "[»192.0.2.7/24]", "bits set beyond its prefix … write `192.0.2.0/24`"),
    ("[192.0.2.7]", "[»192.0.2]", "is not an IP address"),
    ("[192.0.2.7]", "[»127.0.0.0/8]", "is on every host … cgroup"),
    ("[192.0.2.7]", "[»'::ffff:192.0.2.0/120']", "IPv4 in the form of IPv6"),
    ("[/kubepods.slice]", "[»kubepods.slice]", "is not an absolute path … write `/kubepods.slice`"),
    ("[/kubepods.slice]", "[»/kubepods.slice/]", "ends in a slash … write `/kubepods.slice`"),
    ("[/kubepods.slice]", "[»/kubepods.slice/../x]", "no path of a cgroup"),
    ("[/kubepods.slice]", "[»/sys/fs/cgroup/kubepods.slice]", "starts with the mount point"),
    ("[/kubepods.slice]", "[/a, »/a]", "`/a` is here twice"),
    ("[/kubepods.slice]", "[»'/kubepods[.slice']", "is no pattern: `[` begins a set"),
    ("[/kubepods.slice]", "[»'/kubepods**']", "`**` means the same as `*` here"),
    ("    backup: { ", "    etcd: { cgroups: ['/s/a*', '/s/x'] }\n    backup: { cgroups: [»'/s/*b'], ", "`/s/*b` of `backup` and `/s/a*` of `etcd` (line 13) both match a cgroup such as `/s/ab`, and neither is narrower … of two patterns at one depth"),
    ("    backup: { ", "    etcd: { cgroups: ['/?*/x'] }\n    backup: { cgroups: [»'/*?/x'], ", "both match a cgroup such as … neither is narrower"),
    ("    backup: {", "    apiserver: { addresses: [»0.0.0.0/0] }\n    backup: {", "`0.0.0.0/0` would make everybody `apiserver` … `from: [world]` … `apiserver: { outside: true }`"),
    ("9000/tcp", "9000/tcp, »other: null", "component `backup` has no port `other`"),
    ("pods: { cgroups: [/kubepods.slice] }", "pods: { runsOn: [»'Role'] }", "no name for a role"),
    ("    backup:", "    »Backup:", "`Backup` is no name for a component"),
    ("9000/tcp", "»9000", "`9000` is no port … `9000/tcp`"),
    ("9000/tcp", "»70000/tcp", "out of range"),
    ("9000/tcp", "9/tcp, b: »9/tcp", "9/tcp is port `agent` of `backup` already"),
    ("9000/tcp", "»90-80/tcp", "ends before it starts … write `80-90`"),
    ("9000/tcp", "»80/tpc", "unknown protocol `tpc` … did you mean `tcp`?"),
    ("9000/tcp", "»[]", "port `agent` matches nothing"),
    ("9000/tcp", "»{ match: [] }", "port `agent` matches nothing"),
    ("9000/tcp", "[9/tcp, »9/tcp]", "is here twice"),
    ("9000/tcp", "{ match: »9000 }", "`9000/tcp`"),
    ("agent:", "»Agent:", "no name for a port"),
    ("ports: { agent", "partOf: [»nodes], ports: { agent", "no component is called `nodes` … did you mean `node`?"),
    ("ports: { agent", "partOf: [»backup], ports: { agent", "would be part of itself"),
    ("ports: { agent: 9000/tcp }", "runsOn: [control-plane], ports: { web: 8080/tcp }", "13:5 … `apiserver:insecure` and `backup:web` are both 8080/tcp on one node … loopback only"),
    ("apiserver:secure:", "»apiservr:secure:", "no component is called `apiservr` … did you mean `apiserver`?"),
    ("apiserver:secure:", "»apiserver:https:", "component `apiserver` has no port `https` … known: `secure`"),
    ("apiserver:secure:", "»apiserver:", "`apiserver` is no endpoint"),
    ("apiserver:secure:", "»apiserver:insecure:", "is loopback only, and a service address is not"),
    ("apiserver:secure:", "»world:arp:", "has neither TCP nor UDP ports"),
    ("['10.96.0.1:443']", "[]", "10:5 … service `apiserver:secure` has no address"),
    ("['10.96.0.1:443']", "[»10.96.0.1]", "not an address with a port … `10.96.0.1:443`"),
    ("['10.96.0.1:443']", "[»'fd10::1']", "`[fd10::1]:443`"),
    ("['10.96.0.1:443']", "[»'10.96.0.1:0']", "port 0 is no port"),
    ("['10.96.0.1:443']", "[»'10.0.0.11:443']", "is an address of node `cp1`"),
    ("['10.96.0.1:443']", "[»'127.0.0.1:443']", "a loopback address"),
    ("['10.96.0.1:443']", "['10.96.0.1:443', »'10.96.0.1:443']", "is here twice"),
    ("['10.96.0.1:443']", "['10.96.0.1:443']\n    backup:agent: [»'10.96.0.1:443']", "leads to `apiserver:secure` already"),
    ("podNetworks: [10.244.0.0/16]", "podNetworks: [10.244.0.0/16]\n  serviceNetworks: [»10.244.3.0/24]", "`10.244.3.0/24` overlaps the pod network 10.244.0.0/16"),
    ("podNetworks: [10.244.0.0/16]", "podNetworks: [10.244.0.0/16]\n  serviceNetworks: [»10.0.0.0/24]", "`10.0.0.0/24` holds 10.0.0.11 of node `cp1`"),
    ("podNetworks: [10.244.0.0/16]", "podNetworks: [10.244.0.0/16]\n  serviceNetworks: [»0.0.0.0/0]", "would make everybody a service"),
    ("roles: [worker] }", "roles: [worker], podNetworks: [»10.245.0.0/24] }", "`10.245.0.0/24` is in none of the `podNetworks` of the cluster … a part of 10.244.0.0/16"),
    ("roles: [worker] }", "roles: [worker], podNetworks: [10.244.1.0/24] }\n    w2: { addresses: [10.0.0.22], podNetworks: [»10.244.1.128/25] }", "`10.244.1.128/25` overlaps 10.244.1.0/24 of node `w1`"),
    ("roles: [worker] }", "roles: [worker], podNetworks: [10.244.1.0/24] }\n    w2: { addresses: [»10.244.1.1] }", "`10.244.1.1` is in 10.244.1.0/24, where the pods of node `w1` are"),
    ("['10.96.0.1:443']", "[»'10.244.0.1:443']", "is in the pod network 10.244.0.0/16"),
    ("    backup: {", "    node: { partOf: [»etcd] }\n    backup: {", "`node` would be part of itself"),
];

#[rustfmt::skip]
const PATHS: &[Row] = &[
    ("  mode: DryRun\n", "", "18:1 … mode is missing … write `mode: DryRun` or `mode: Enforce`"),
    ("  otherTraffic: Allow\n", "", "18:1 … otherTraffic is missing … `otherTraffic: Drop`"),
    ("mode: DryRun", "mode: »dryrun", "`dryrun` is no mode … did you mean `DryRun`?"),
    ("mode: DryRun", "mode: »Enforced", "did you mean `Enforce`?"),
    ("otherTraffic: Allow", "otherTraffic: »Deny", "`Deny` is no otherTraffic … `Allow` and `Drop`"),
    ("profile: control-plane-stacked-etcd", "profile: »control-plane-staked-etcd", "no profile is called … did you mean `control-plane-stacked-etcd`?"),
    ("profile: control-plane-stacked-etcd", "options: [»insecure-port]", "belongs to a profile, and there is none"),
    ("profile: control-plane-stacked-etcd", "disable: [»dns]", "belongs to a profile, and there is none"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-single\n  options: [»load-balancer]", "profile `control-plane-single` has no option `load-balancer` … it has `insecure-port`, … `control-plane-stacked-etcd`, `control-plane-external-etcd`, `worker` have `load-balancer`"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  options: [»konnectivity]", "option `konnectivity` needs `konnectivity-agent`, which is nowhere … write `konnectivity-agent: { addresses: [ADDRESS] }`, or `cgroups: [PATH]`"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  enable: [»pod-to-outsid]", "the catalogue has no path `pod-to-outsid` … did you mean `pod-to-outside`?"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  enable: [»dns]", "path `dns` is on already"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  enable: [»dns]\n  disable: [dns]", "path `dns` is enabled and disabled"),
    ("because: nightly", "since: »'1'\n      because: nightly", "`1` is no version of Kubernetes … `\"1.20\"`"),
    ("because: nightly", "since: '1.20'\n      until: »'1.9'\n      because: nightly", "the path ends before it begins"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  options: [»insecure]", "profile `control-plane-stacked-etcd` has no option `insecure` … `insecure-port`"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  options: [insecure-port, »insecure-port]", "is here twice"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  disable: [»insecure-port]", "path `insecure-port` is not in profile `control-plane-stacked-etcd`"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  disable: [»nds]", "did you mean `dns`?"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  disable: [dns, »dns]", "is here twice"),
    ("profile: control-plane-stacked-etcd", "profile: control-plane-stacked-etcd\n  options: [»join-srver]", "`join-server`"),
    ("name: backup-to-etcd", "name: »dns", "path `dns` is in the profile already … disable: [dns]"),
    ("name: backup-to-etcd", "name: »Backup", "`Backup` is no name for a path"),
    ("name: backup-to-etcd", "name: »''", "no name for a path"),
    ("  paths:\n", "  paths:\n    - { name: backup-to-etcd, from: [backup], to: 'backup:agent', because: x }\n", "24:13 … a second path is called `backup-to-etcd`"),
    ("from: [backup]", "from: []", "23:13 … path `backup-to-etcd` is for nobody"),
    ("      from: [backup]\n", "", "23:13 … is for nobody … write `from: [component]`"),
    ("from: [backup]", "from: [»backups]", "no component is called `backups` … did you mean `backup`?"),
    ("from: [backup]", "from: [»xyzzyx]", "known: `world` … declare it in the Inventory"),
    ("from: [backup]", "from: [»'']", "no component is called ``"),
    ("from: [backup]", "from: [backup, »backup]", "is here twice"),
    ("to: etcd:client", "to: »etdc:client", "no component is called `etdc` … did you mean `etcd`?"),
    ("to: etcd:client", "to: »etcd:clinet", "component `etcd` has no port `clinet` … did you mean `client`?"),
    ("to: etcd:client", "to: dns:dns\n      tls: Required", "23:13 … asks for TLS, and `dns:dns` is … https: 443/tcp"),
    ("to: etcd:client", "to: »etcd", "`etcd` is no endpoint … write `etcd:client` or `etcd:peer`"),
    ("to: etcd:client", "to: »''", "is no endpoint … `etcd:client`"),
    ("to: etcd:client", "to: »admin:ssh", "component `admin` has no port `ssh`"),
    ("      because: nightly snapshot\n", "", "23:13 … does not say why it is there"),
    ("because: nightly snapshot", "because: »''", "does not say why it is there"),
    ("because: nightly", "locality: »Samenode\n      because: nightly", "is no locality … did you mean `SameNode`?"),
    ("because: nightly", "mode: »Enforcing\n      because: nightly", "is no mode"),
    ("because: nightly", "loopback: true\n      because: nightly", "23:13 … can never be used … is no process of a node"),
    ("etcd:client", "apiserver:insecure", "23:13 … can never be used … apiserver: { ports: { insecure:"),
    ("etcd:client", "world:any\n      loopback: true", "23:13 … goes over loopback, and `world` runs on no node"),
    ("because: nightly", "mode: DryRun\n      because: a\n    - name: »b\n      from: [pods]\n      to: etcd:client\n      mode: Enforce\n      because: nightly", "Enforce for `etcd:client`, and path `backup-to-etcd` says DryRun for it"),
];
