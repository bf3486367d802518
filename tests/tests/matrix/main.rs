//! Every documented path in every profile, with all other traffic dropped: what it allows works and
//! increments its counter, and the nearest thing that it does not allow is denied for the expected
//! reason; without a policy, both work. `explain` says the same. The documentation's table is made
//! from the same rows.

mod rows;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use enforcer_policy::catalogue::Catalogue;
use enforcer_policy::{SourceText, from_texts};
use enforcer_tests::plan::{CP1, CP2, CP3, Party, W1, W2, port};
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::{Lab, cluster};
use rows::{Row, What, Who};

/// How many rows are tried at once: most of them wait.
const WORKERS: usize = 8;

fn lab() -> Result<Lab> {
    Lab::builder().full().cluster().services().build()
}

fn policy(profile: &'static str, options: &[&'static str]) -> PolicyText {
    PolicyText {
        profile,
        options: options.to_vec(),
        other_traffic: "Drop",
        ..PolicyText::default()
    }
}

/// Names of the paths that a policy has.
fn paths(lab: &Lab, policy: &PolicyText) -> Result<BTreeSet<String>> {
    let source = SourceText {
        name: "lab.yaml".to_owned(),
        text: policy.yaml(lab),
    };
    let policy = from_texts(&[source]).map_err(|errors| anyhow!("{errors}"))?;
    Ok(policy.paths.into_iter().map(|path| path.name).collect())
}

/// Runs a check for each row, several at once, and returns all failures.
fn for_each(rows: &[Row], work: impl Fn(&Row) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(row)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(format!("{}: {error:#}", row.path));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Without a policy, both connections of a row work.
fn works_without(lab: &Lab, row: &Row) -> Result<()> {
    for (who, what) in [row.allowed, row.forbidden] {
        let outcome = what.attempt(&who.workload(lab))?;
        ensure!(
            outcome.is_none_or(|outcome| outcome.worked()),
            "without a policy: {} to {}: {outcome:?}",
            who.words(),
            what.to()
        );
    }
    Ok(())
}

fn agent_of<'a>(agents: &'a [Agent], node: &str) -> Option<&'a Agent> {
    agents.iter().find(|agent| agent.node() == node)
}

/// Rows whose path is in the policy and whose nodes have agents.
fn chosen(rows: Vec<Row>, paths: &BTreeSet<String>, agents: &[Agent]) -> Vec<Row> {
    let judged = |(who, what): (Who, What)| agent_of(agents, who.judge(what)).is_some();
    rows.into_iter()
        .filter(|row| paths.contains(row.path) && judged(row.allowed) && judged(row.forbidden))
        .collect()
}

fn holds(lab: &Lab, agents: &[Agent], row: &Row) -> Result<()> {
    let (who, what) = row.allowed;
    let agent = agent_of(agents, who.judge(what)).context("no agent judges this")?;
    let (before, _) = agent.path_packets(row.path)?;
    let outcome = what.attempt(&who.workload(lab))?;
    ensure!(
        outcome.is_none_or(|outcome| outcome.worked()),
        "{} to {}: {outcome:?}; reported: {:#?}",
        who.words(),
        what.to(),
        agent
            .events()?
            .iter()
            .filter(|e| about(lab, who, what, e))
            .collect::<Vec<_>>()
    );
    let (after, _) = agent.path_packets(row.path)?;
    ensure!(
        after > before,
        "{} to {} moves no counter of the path; explain: {}",
        who.words(),
        what.to(),
        explain(lab, agent, who, what)?
    );
    let ran = explain(lab, agent, who, what)?;
    ensure!(
        ran.contains(row.path),
        "explain of what is allowed says {ran}"
    );

    let (who, what) = row.forbidden;
    let agent = agent_of(agents, who.judge(what)).context("no agent judges this")?;
    let outcome = what.attempt(&who.workload(lab))?;
    ensure!(
        outcome.is_none_or(|outcome| !outcome.worked()),
        "{} to {} works",
        who.words(),
        what.to()
    );
    let event = agent.event(|event| about(lab, who, what, event))?;
    ensure!(event.reason == row.reason, "not {}: {event:?}", row.reason);
    let ran = explain(lab, agent, who, what)?;
    ensure!(
        ran.contains(row.reason),
        "explain of what is denied says {ran}"
    );
    Ok(())
}

fn explain(lab: &Lab, agent: &Agent, who: Who, what: What) -> Result<String> {
    let (from, to) = (who.from(lab, what.ip().is_ipv6()), what.to());
    let ran = agent.command(&["explain", "--from", &from, "--to", &to])?;
    Ok(ran.stdout)
}

fn about(lab: &Lab, who: Who, what: What, event: &Event) -> bool {
    if event.destination != Some(what.ip().to_string()) || event.port != Some(what.number()) {
        return false;
    }
    match who.from(lab, what.ip().is_ipv6()).split_once(':') {
        Some(("cgroup", path)) => event.subject.name.ends_with(path),
        Some((_, address)) => event.source.as_deref() == Some(address),
        None => false,
    }
}

/// Runs the rows of a round, after putting the policy in force.
fn round(lab: &Lab, agents: &[Agent], policy: &PolicyText, rows: Vec<Row>) -> Result<Vec<Row>> {
    let rows = chosen(rows, &paths(lab, policy)?, agents);
    ensure!(!rows.is_empty(), "no row for {:?}", policy.options);
    for_each(&rows, |row| holds(lab, agents, row))?;
    Ok(rows)
}

fn replace(lab: &Lab, agents: &[Agent], policy: &PolicyText) -> Result<()> {
    agents
        .iter()
        .try_for_each(|agent| agent.replace_policy(lab, policy))
}

const ADDED: [&str; 4] = [
    "load-balancer",
    "node-local-dns",
    "monitoring",
    "insecure-port",
];

/// Every path of a policy has had a row, except those that no packet of a test can show.
fn all_were_there(lab: &Lab, policy: &PolicyText, rows: &[Row]) -> Result<()> {
    // ARP is used whenever anything is; its denial has a test of its own.
    let shown: BTreeSet<&str> = rows.iter().map(|row| row.path).chain(["arp"]).collect();
    let missing: Vec<String> = paths(lab, policy)?
        .into_iter()
        .filter(|path| !shown.contains(path.as_str()))
        .collect();
    ensure!(missing.is_empty(), "no row shows {missing:?}");
    Ok(())
}

#[test]
fn every_path_of_a_stacked_control_plane() -> Result<()> {
    let lab = lab()?;
    lab.claim(&CP1, &enforcer_tests::plan::VIP)?;
    let all = rows::rows(CP2, CP3);
    let pod = lab.pod("agent").clone();
    let own = lab.static_pod("w1", "konnectivity-agent");
    let _tunnels = [
        cluster::start_tunnel(&lab, &CP1, &own, W1.at(port::KUBELET))?,
        cluster::start_tunnel(&lab, &CP2, &pod, W2.at(port::KUBELET))?,
    ];
    let others = [
        rows::konnectivity(),
        rows::ssh_tunnels(),
        rows::narrow(),
        rows::wide(),
    ];
    for_each(&[all.clone(), others.concat()].concat(), |row| {
        works_without(&lab, row)
    })?;
    let base = policy("control-plane-stacked-etcd", &ADDED);
    let agents = Agent::on_all(&lab, &base)?;
    let shown = round(&lab, &agents, &base, all)?;
    all_were_there(&lab, &base, &shown)?;

    let konnectivity = policy("control-plane-stacked-etcd", &["konnectivity"]);
    replace(&lab, &agents, &konnectivity)?;
    round(&lab, &agents, &konnectivity, rows::konnectivity())?;
    for node in [CP1, CP2] {
        let url = format!(
            "https://{}/",
            enforcer_tests::plan::LOOPBACK.at(port::KONNECTIVITY)
        );
        let page = lab
            .static_pod(node.name, "apiserver")
            .curl(&url, None)?
            .checked()?;
        ensure!(
            page.stdout == "kubelet",
            "through the tunnel of {}: {}",
            node.name,
            page.stdout
        );
    }

    let tunnels = policy("control-plane-stacked-etcd", &["ssh-tunnels"]);
    replace(&lab, &agents, &tunnels)?;
    round(&lab, &agents, &tunnels, rows::ssh_tunnels())?;

    let narrow = PolicyText {
        enable: vec![
            "etcd-to-apiserver",
            "apiserver-to-webhook-url",
            "apiserver-to-identity-provider",
        ],
        ..policy(
            "control-plane-stacked-etcd",
            &[
                "joining-nodes",
                "joining-control-plane",
                "metrics-server",
                "separate-controllers",
                "node-ports",
                "plain-etcd",
            ],
        )
    };
    replace(&lab, &agents, &narrow)?;
    round(&lab, &agents, &narrow, rows::narrow())?;
    node_ports_are_forwarded(&lab)?;

    let wide = PolicyText {
        enable: vec![
            "apiserver-proxy",
            "apiserver-proxy-to-nodes",
            "node-to-key-service",
            "pod-to-outside",
            "node-to-outside",
        ],
        ..policy("control-plane-stacked-etcd", &[])
    };
    replace(&lab, &agents, &wide)?;
    round(&lab, &agents, &wide, rows::wide())?;
    lab.close()
}

/// A node that has no pod of the service forwards to the one that has, with its own address as the
/// source: over UDP, only the forwarded request identifies the answer.
fn node_ports_are_forwarded(lab: &Lab) -> Result<()> {
    let at = CP3.at(port::NODE_PORT);
    ensure!(lab.neighbour().udp(at)?.worked(), "no UDP node port");
    ensure!(lab.neighbour().connect(at)?.worked(), "no TCP node port");
    Ok(())
}

#[test]
fn every_path_of_a_single_control_plane() -> Result<()> {
    let lab = lab()?;
    let inventory = lab.inventory().with_roles("cp2", "").with_roles("cp3", "");
    let options = ["node-local-dns", "monitoring", "insecure-port"];
    let policy = PolicyText {
        inventory: Some(inventory.without("load-balancer").yaml()),
        ..policy("control-plane-single", &options)
    };
    let mut all = rows::rows(CP1, CP1);
    all.retain(|row| row.path != "kube-proxy-health");
    let health = (
        Who::Host(enforcer_tests::plan::METRICS),
        What::Tcp(W1.at(port::KUBE_PROXY)),
    );
    all.push(Row {
        path: "kube-proxy-health",
        allowed: health,
        forbidden: (Who::Host(enforcer_tests::plan::OUT), health.1),
        reason: "OtherTraffic",
    });
    for_each(&all, |row| works_without(&lab, row))?;
    let agents = start_on(&lab, &["cp1", "w1", "w2"], &policy)?;
    let shown = round(&lab, &agents, &policy, all)?;
    all_were_there(&lab, &policy, &shown)?;
    // The peer port, which a single member does not need, is closed even to itself.
    let peer = CP1.at(port::ETCD_PEER);
    ensure!(
        !lab.etcd().connect(peer)?.worked(),
        "etcd's peer port is open"
    );
    agents[0].event(|event| event.reason == "ClosedPort" && event.port == Some(port::ETCD_PEER))?;
    lab.close()
}

#[test]
fn every_path_of_an_external_etcd_and_its_control_plane() -> Result<()> {
    let lab = lab()?;
    let inventory = lab
        .inventory()
        .with_roles("cp1", "control-plane")
        .with_roles("cp2", "etcd")
        .with_roles("cp3", "etcd")
        .yaml();
    let with = |profile, options: &[&'static str]| PolicyText {
        inventory: Some(inventory.clone()),
        ..policy(profile, options)
    };
    let control_plane = with("control-plane-external-etcd", &ADDED);
    let etcd = with("etcd", &["monitoring"]);
    for_each(&on_etcd_node(), |row| works_without(&lab, row))?;
    let agents = start_on(&lab, &["cp1", "w1", "w2"], &control_plane)?;
    let members = start_on(&lab, &["cp2", "cp3"], &etcd)?;
    let all = rows::rows(CP2, CP3);
    let shown = round(&lab, &agents, &control_plane, all.clone())?;
    all_were_there(&lab, &control_plane, &shown)?;
    let mut on_members = round(&lab, &members, &etcd, all)?;
    on_members.extend(round(&lab, &members, &etcd, on_etcd_node())?);
    // What the option allows on other nodes.
    let elsewhere = ["monitoring-to-apiserver", "monitoring-to-dns"];
    let others = rows::rows(CP2, CP3).into_iter();
    on_members.extend(others.filter(|row| elsewhere.contains(&row.path)));
    all_were_there(&lab, &etcd, &on_members)?;
    lab.close()
}

/// On a node with only etcd: what comes from the control plane, and what every node has.
#[rustfmt::skip]
fn on_etcd_node() -> Vec<Row> {
    use enforcer_tests::plan::{ADMIN, INFRA, LOOPBACK, METADATA, METRICS, OUT, W2};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    let kubelet = Who::Daemon("cp2", "kubelet");
    let chrony = Who::Daemon("cp2", "chrony");
    let (pod, out) = (Who::Hostnet("cp2"), Who::Host(OUT));
    let at = |to: Party, port: u16| What::Tcp(to.at(port));
    let row = |path, allowed, forbidden, reason| Row { path, allowed, forbidden, reason };
    let metadata = What::Tcp(SocketAddr::new(IpAddr::V4(METADATA), port::HTTP));
    let groups = Ipv4Addr::new(224, 0, 0, 22);
    vec![
        row("apiserver-to-etcd", (Who::Apiserver(CP1), at(CP2, port::ETCD_CLIENT)), (out, at(CP2, port::ETCD_CLIENT)), "NoPath"),
        row("kubelet-local", (kubelet, at(LOOPBACK, port::KUBELET_HEALTH)), (pod, at(LOOPBACK, port::KUBELET_HEALTH)), "WrongProcess"),
        row("kubelet-streaming", (kubelet, at(LOOPBACK, port::STREAMING)), (pod, at(LOOPBACK, port::STREAMING)), "OtherTraffic"),
        row("kubelet-probes", (kubelet, What::Protocol(Ipv4Addr::new(10, 78, 3, 9), 132)), (kubelet, at(enforcer_tests::plan::POD_C.party, port::ECHO)), "OtherNode"),
        row("kubelet-probes-host-network", (kubelet, at(CP2, port::ECHO)), (kubelet, at(W2, port::ECHO)), "OtherNode"),
        row("kube-proxy-health", (Who::Host(METRICS), at(CP2, port::KUBE_PROXY)), (out, at(CP2, port::KUBE_PROXY)), "OtherTraffic"),
        row("kube-proxy-metrics", (kubelet, at(LOOPBACK, port::KUBE_PROXY_METRICS)), (pod, at(LOOPBACK, port::KUBE_PROXY_METRICS)), "OtherTraffic"),
        row("admin-to-node", (Who::Host(ADMIN), at(CP2, port::SSH)), (out, at(CP2, port::SSH)), "OtherTraffic"),
        row("monitoring-to-kubelet", (Who::Host(METRICS), at(CP2, port::KUBELET)), (out, at(CP2, port::KUBELET)), "NoPath"),
        row("dns", (chrony, What::Name(enforcer_tests::plan::DNS_SERVICE.at(port::DNS))), (pod, at(W2, port::ECHO)), "OtherTraffic"),
        row("dns-upstream", (chrony, What::Name(INFRA.at(port::DNS))), (pod, What::Name(INFRA.at(port::DNS))), "OtherTraffic"),
        row("node-loopback", (chrony, at(LOOPBACK, port::STREAMING)), (chrony, at(LOOPBACK, port::KUBELET)), "NoPath"),
        row("dhcp", (chrony, What::Udp(INFRA.at(port::DHCP_SERVER))), (pod, What::Udp(INFRA.at(port::DHCP_SERVER))), "OtherTraffic"),
        row("dhcp-answer", (out, What::Udp(CP2.at(port::DHCP_CLIENT))), (out, What::Udp(CP2.at(port::ECHO))), "OtherTraffic"),
        row("ntp", (chrony, What::Udp(INFRA.at(port::NTP))), (pod, What::Udp(INFRA.at(port::NTP))), "OtherTraffic"),
        row("node-to-registry", (chrony, at(INFRA, port::SERVICE)), (pod, at(INFRA, port::SERVICE)), "OtherTraffic"),
        row("node-to-cloud-metadata", (kubelet, metadata), (pod, metadata), "OtherTraffic"),
        row("neighbour-discovery", (out, What::Message(CP2.v6, 135)), (out, What::Message(CP2.v6, 139)), "OtherTraffic"),
        row("multicast-membership", (chrony, What::Protocol(groups, 2)), (chrony, What::Protocol(groups, 3)), "OtherTraffic"),
        row("echo-from-node", (Who::Session("cp2"), What::Ping(INFRA.v4)), (pod, What::Ping(INFRA.v4)), "OtherTraffic"),
        row("echo-to-node", (Who::Host(ADMIN), What::Ping(CP2.v4)), (out, What::Ping(CP2.v4)), "OtherTraffic"),
    ]
}

#[test]
fn every_path_of_a_worker() -> Result<()> {
    let lab = lab()?;
    let policy = policy("worker", &["load-balancer", "node-local-dns", "monitoring"]);
    let mut all = rows::rows(CP1, CP1);
    let swap = |all: &mut Vec<Row>, row: Row| {
        all.retain(|known| known.path != row.path);
        all.push(row);
    };
    // What the control plane opens is judged where it arrives, and rows that have another twin
    // there.
    let here = |path, allowed, forbidden, reason| Row {
        path,
        allowed,
        forbidden,
        reason,
    };
    use enforcer_tests::plan::{ADMIN, LB, METRICS, OUT, POD_B, POD_C};
    let kubelet = What::Tcp(W1.at(port::KUBELET));
    let webhook = What::Tcp(enforcer_tests::plan::WEBHOOK.party.at(port::WEBHOOK));
    for row in [
        here(
            "apiserver-to-kubelet",
            (Who::Host(CP1), kubelet),
            (Who::Host(OUT), kubelet),
            "NoPath",
        ),
        here(
            "apiserver-to-webhook",
            (Who::Host(CP1), webhook),
            (Who::Host(OUT), webhook),
            "OtherTraffic",
        ),
        here(
            "kubelet-to-apiserver",
            (
                Who::Daemon("w1", "kubelet"),
                What::Tcp(CP1.at(port::APISERVER)),
            ),
            (
                Who::Daemon("w1", "chrony"),
                What::Tcp(CP1.at(port::APISERVER)),
            ),
            "WrongProcess",
        ),
        here(
            "pod-to-apiserver",
            (
                Who::Pod(POD_B),
                What::Tcp(enforcer_tests::plan::SERVICE.at(port::SERVICE)),
            ),
            (Who::Pod(POD_B), What::Tcp(CP1.at(port::ETCD_CLIENT))),
            "ClosedPort",
        ),
        here(
            "admin-to-apiserver",
            (Who::Session("w1"), What::Tcp(CP1.at(port::APISERVER))),
            (Who::Session("w1"), What::Tcp(CP1.at(port::ETCD_CLIENT))),
            "ClosedPort",
        ),
        here(
            "client-to-load-balancer",
            (Who::Pod(POD_C), What::Tcp(LB.at(port::APISERVER))),
            (
                Who::Daemon("w1", "chrony"),
                What::Tcp(LB.at(port::APISERVER)),
            ),
            "WrongProcess",
        ),
        here(
            "monitoring-to-kubelet",
            (Who::Host(METRICS), kubelet),
            (Who::Host(ADMIN), kubelet),
            "NoPath",
        ),
        here(
            "monitoring-to-apiserver",
            (Who::Host(METRICS), kubelet),
            (Who::Host(ADMIN), kubelet),
            "NoPath",
        ),
    ] {
        swap(&mut all, row);
    }
    // These two are judged only on the control plane.
    all.retain(|row| {
        !["monitoring-to-apiserver", "load-balancer-to-apiserver"].contains(&row.path)
    });
    for_each(&all, |row| works_without(&lab, row))?;
    let agents = start_on(&lab, &["w1", "w2"], &policy)?;
    let mut shown = round(&lab, &agents, &policy, all)?;
    let elsewhere = [
        "monitoring-to-apiserver",
        "load-balancer-to-apiserver",
        "keepalived-to-apiserver",
        "keepalived-to-load-balancer",
        "vrrp",
    ];
    shown.extend(
        rows::rows(CP1, CP1)
            .into_iter()
            .filter(|row| elsewhere.contains(&row.path)),
    );
    all_were_there(&lab, &policy, &shown)?;
    lab.close()
}

fn start_on(lab: &Lab, nodes: &[&str], policy: &PolicyText) -> Result<Vec<Agent>> {
    nodes
        .iter()
        .map(|node| Agent::start(lab, node, policy))
        .collect()
}

/// The documentation's table is what the tests above try.
#[test]
fn the_documented_matrix_is_what_is_tested() -> Result<()> {
    let text = documentation()?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/paths.md");
    if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
        return std::fs::write(&file, text).context("failed to write docs/paths.md");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    ensure!(
        written == text,
        "docs/paths.md is out of date: run this test with ENFORCER_WRITE_DOCS=1"
    );
    Ok(())
}

fn documentation() -> Result<String> {
    let catalogue = Catalogue::builtin();
    let all = [
        rows::rows(CP2, CP3),
        rows::konnectivity(),
        rows::ssh_tunnels(),
        rows::narrow(),
        rows::wide(),
    ]
    .concat();
    let mut text = String::from(HEAD);
    let columns: Vec<&str> = catalogue
        .profiles()
        .iter()
        .map(|p| p.name.as_str())
        .collect();
    writeln!(
        text,
        "| path | {} | works | denied, and why |",
        columns.join(" | ")
    )?;
    writeln!(text, "|---|{}---|---|", "---|".repeat(columns.len()))?;
    for path in catalogue.paths() {
        let cells: Vec<String> = catalogue
            .profiles()
            .iter()
            .map(|profile| {
                if profile.paths.contains(&path.name) {
                    return "on".to_owned();
                }
                let option = profile
                    .options
                    .iter()
                    .find(|o| o.enable.contains(&path.name));
                option.map_or_else(|| "–".to_owned(), |option| format!("`{}`", option.name))
            })
            .collect();
        let row = all.iter().find(|row| row.path == path.name);
        let (works, denied) = match row {
            Some(row) => {
                let say = |(who, what): (Who, What)| format!("{} → {}", who.words(), what.to());
                (
                    say(row.allowed),
                    format!("{}: {}", say(row.forbidden), row.reason),
                )
            }
            None if path.name == "arp" => (
                "whenever anything works".to_owned(),
                "with `disable: [arp]`: everything".to_owned(),
            ),
            None => bail!("no row shows {}", path.name),
        };
        writeln!(
            text,
            "| `{}` | {} | {works} | {denied} |",
            path.name,
            cells.join(" | ")
        )?;
    }
    Ok(text)
}

const HEAD: &str = "\
# Every documented path, and what it is tested with

Generated by the tests (`tests/tests/matrix`), which try each row in a lab of ten machines, with `otherTraffic: Drop`
on every node: the connection that works also moves the path's own counter, the nearest one that must not is
denied for the reason named here, both work without a policy, and `enforcer explain` says the same.

`on`: the profile has it. An option's name: that option turns it on. `–`: off; `enable: [NAME]` turns it on
in any profile. What each path is for: `enforcer catalog NAME`.

";
