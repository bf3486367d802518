//! Metrics: what the agent exports is what happened, Prometheus understands it and its alerts fire,
//! and the metrics are reachable only on loopback unless configured otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, LOOPBACK, port};
use enforcer_tests::probe::Serve;
use enforcer_tests::process::{Ran, Running};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, tools};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const METRICS: u16 = 11_910;
const PROMETHEUS: u16 = 9090;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn url(at: SocketAddr) -> String {
    format!("http://{at}/metrics")
}

fn curl(from: &Workload, args: &[&str]) -> Result<Ran> {
    let command = from.command("curl")?;
    let command = command.args(["-sS", "--fail", "--noproxy", "*", "-m", "15"]);
    command.args(["--connect-timeout", "2"]).args(args).run()
}

/// All samples of a scrape, by name and labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let value = value.parse().with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value))
        });
        samples.collect::<Result<_>>().map(Self)
    }

    fn from(workload: &Workload) -> Result<Self> {
        Self::of(&text_from(workload)?)
    }

    fn get(&self, name: &str) -> Result<f64> {
        let found = self.0.get(name).copied();
        found.with_context(|| format!("no {name} in {:#?}", self.0))
    }

    fn is(&self, name: &str, value: f64) -> Result<()> {
        let is = self.get(name)?;
        ensure!(is == value, "{name} is {is}, not {value}");
        Ok(())
    }

    /// By how much a counter has grown.
    fn since(&self, before: &Self, name: &str) -> Result<f64> {
        Ok(self.get(name)? - before.get(name)?)
    }

    fn families(&self) -> BTreeSet<&str> {
        let names = self.0.keys();
        names.filter_map(|name| name.split('{').next()).collect()
    }
}

fn text_from(workload: &Workload) -> Result<String> {
    Ok(curl(workload, &[&url(LOOPBACK.at(METRICS))])?
        .checked()?
        .stdout)
}

/// Waits until a sample has a value. The agent repeats its last answer for a tenth of a second.
fn wait_for(workload: &Workload, name: &str, value: f64) -> Result<Scrape> {
    let end = Instant::now() + patient(SOON);
    loop {
        let scrape = Scrape::from(workload)?;
        if scrape.0.get(name) == Some(&value) {
            return Ok(scrape);
        }
        ensure!(
            Instant::now() < end,
            "{name} stays {:?}, not {value}",
            scrape.0.get(name)
        );
        thread::sleep(Duration::from_millis(120));
    }
}

fn with_metrics(lab: &Lab, policy: &PolicyText, more: &[&str]) -> Result<Agent> {
    Agent::start_with(lab, "cp1", policy, &[&["--metrics"], more].concat())
}

fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.command_of(&tools::enforcer()?)?.args(args).run()
}

const DENIED: &str = r#"enforcer_denials_total{reason="WrongProcess",mode="denied"}"#;
const WOULD_DENY: &str = r#"enforcer_denials_total{reason="WrongProcess",mode="would_deny"}"#;
const ALLOWED: &str = r#"enforcer_path_packets_total{path="insecure-port",direction="forward"}"#;
const ANSWERED: &str = r#"enforcer_path_packets_total{path="insecure-port",direction="reply"}"#;

#[test]
fn what_happens_is_counted() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let node = lab.login("cp1");
    let to = LOOPBACK.at(port::INSECURE);
    ensure!(
        lab.hostnet("cp1").connect(to)? == Outcome::Connected,
        "no policy"
    );
    let agent = with_metrics(&lab, &PolicyText::default(), &[])?;
    let begin = Scrape::from(&node)?;
    for (name, value) in [
        (DENIED, 0.0),
        (WOULD_DENY, 0.0),
        (ALLOWED, 0.0),
        ("enforcer_enforced", 1.0),
        ("enforcer_dry_run", 0.0),
        ("enforcer_policy_from_files", 1.0),
        ("enforcer_interfaces_unattached", 0.0),
        (r#"enforcer_policy_swaps_total{result="applied"}"#, 1.0),
        (r#"enforcer_policy_swaps_total{result="failed"}"#, 0.0),
    ] {
        begin.is(name, value)?;
    }

    // A denied connection counts as denied and not as allowed, and the other way round.
    ensure!(lab.hostnet("cp1").connect(to)? == Outcome::Eperm, "denied");
    let denied = wait_for(&node, DENIED, 1.0)?;
    denied.is(ALLOWED, 0.0)?;
    let by_hook = r#"enforcer_new_denials_total{hook="cgroup/connect",mode="denied"}"#;
    wait_for(&node, by_hook, 1.0)?;
    ensure!(
        lab.controller_manager().connect(to)? == Outcome::Connected,
        "allowed"
    );
    thread::sleep(Duration::from_millis(200));
    let allowed = Scrape::from(&node)?;
    allowed.is(DENIED, 1.0)?;
    ensure!(
        allowed.get(ALLOWED)? >= 2.0 && allowed.get(ANSWERED)? >= 1.0,
        "{}",
        allowed.get(ALLOWED)?
    );

    // The status says the same.
    let status = agent.status()?;
    let scrape = Scrape::from(&node)?;
    let count = |value: &Value| value.as_u64().unwrap_or(0) as f64;
    let paths = status["paths"].as_array().context("paths")?;
    // A scrape's own packets use that one.
    for path in paths.iter().filter(|path| path["name"] != "node-loopback") {
        for (direction, key) in [("forward", "forward"), ("reply", "reply")] {
            let name = path["name"].as_str().context("name")?;
            let name =
                format!("enforcer_path_packets_total{{path=\"{name}\",direction=\"{direction}\"}}");
            scrape.is(&name, count(&path[key]))?;
        }
    }
    let attached: f64 = scrape
        .0
        .iter()
        .filter(|(name, _)| name.starts_with("enforcer_attachments{"))
        .map(|(_, n)| n)
        .sum();
    ensure!(
        attached
            == status["attachments"]
                .as_array()
                .context("attachments")?
                .len() as f64,
        "{attached}"
    );
    scrape.is("enforcer_policy_generation", count(&status["generation"]))?;
    scrape.is(
        r#"enforcer_table_entries{table="cgroups"}"#,
        count(&status["cgroups"]),
    )?;
    scrape.is(
        r#"enforcer_table_entries{table="records"}"#,
        agent.events()?.len() as f64,
    )?;

    // Dry-run: the same attempt succeeds and is counted as such; a broken policy changes nothing.
    agent.replace_policy(&lab, &PolicyText::dry_run())?;
    let before = wait_for(&node, "enforcer_dry_run", 1.0)?;
    before.is("enforcer_enforced", 0.0)?;
    ensure!(
        lab.hostnet("cp1").connect(to)? == Outcome::Connected,
        "dry-run"
    );
    thread::sleep(Duration::from_millis(200));
    let after = Scrape::from(&node)?;
    ensure!(
        after.since(&before, WOULD_DENY)? >= 1.0,
        "{}",
        after.get(WOULD_DENY)?
    );
    after.is(DENIED, 1.0)?;
    ensure!(
        after.since(&scrape, "enforcer_policy_generation")? == 1.0,
        "generation"
    );
    ensure!(
        after.since(&scrape, "enforcer_policy_applied_timestamp_seconds")? > 0.0,
        "applied"
    );
    after.is(r#"enforcer_policy_swaps_total{result="applied"}"#, 2.0)?;
    agent.write_policy("kind: Nonsense\n")?;
    let broken = wait_for(&node, "enforcer_policy_from_files", 0.0)?;
    broken.is(r#"enforcer_policy_swaps_total{result="failed"}"#, 1.0)?;
    broken.is(
        "enforcer_policy_generation",
        after.get("enforcer_policy_generation")?,
    )?;
    agent.write_policy(&PolicyText::default().yaml(&lab))?;
    wait_for(&node, "enforcer_policy_from_files", 1.0)?.is("enforcer_enforced", 1.0)?;

    // Another agent continues where this one ended.
    agent.kill()?;
    let down = curl(&node, &[&url(LOOPBACK.at(METRICS))])?;
    ensure!(down.code() == Some(7), "{down}");
    let agent = with_metrics(&lab, &PolicyText::default(), &[])?;
    let scrape = Scrape::from(&node)?;
    scrape.is(DENIED, 1.0)?;
    scrape.is(r#"enforcer_policy_swaps_total{result="applied"}"#, 0.0)?;
    agent.stop()?.checked()?;
    lab.close()
}

/// Every metric is on the page and is exported, no label value is an address, and promtool has no
/// objections.
#[test]
fn the_page_and_promtool_accept_every_metric() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.login("cp1");
    let agent = with_metrics(&lab, &PolicyText::default(), &["--manual"])?;
    fs::write(agent.policy(), PolicyText::dry_run().yaml(&lab))?;
    // So that the deadline is exported as well.
    enforcer(&lab, &["apply", "--confirm-within", "10m"])?.checked()?;
    wait_for(&node, "enforcer_policy_pending_confirmation", 1.0)?;
    let text = text_from(&node)?;
    let scrape = Scrape::of(&text)?;
    let page = fs::read_to_string(repository("docs/metrics.md"))?;
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `enforcer_"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(format!("enforcer_{}", row.split_once('`')?.0)))
        .collect();
    let exported: BTreeSet<String> = scrape.families().into_iter().map(str::to_owned).collect();
    ensure!(documented == exported, "{documented:#?}\n{exported:#?}");
    for name in scrape.0.keys() {
        for value in name.split('"').skip(1).step_by(2) {
            ensure!(value.parse::<IpAddr>().is_err(), "{name}");
            ensure!(
                !value.contains(".slice") && !value.contains("eth0"),
                "{name}"
            );
        }
    }
    let file = lab.directory().join("metrics.txt");
    fs::write(&file, &text)?;
    let promtool = |args: &[&str]| {
        lab.login("cp1")
            .command("promtool")?
            .args(args)
            .input(File::open(&file)?)
            .run()
    };
    let ran = promtool(&["check", "metrics"])?.checked()?;
    ensure!(ran.stdout.is_empty() && ran.stderr.is_empty(), "{ran}");
    // It would complain about this.
    fs::write(&file, "# TYPE enforcer_bad counter\nenforcer_bad 1\n")?;
    ensure!(
        !promtool(&["check", "metrics"])?.ok(),
        "promtool accepts anything"
    );
    let rules = repository("packaging/prometheus/enforcer.rules.yaml");
    let tests = repository("packaging/prometheus/enforcer.rules.test.yaml");
    promtool(&["check", "rules", &rules.to_string_lossy()])?.checked()?;
    promtool(&["test", "rules", &tests.to_string_lossy()])?.checked()?;
    // OpenMetrics has the same samples, and is marked as complete.
    let open = curl(
        &node,
        &[
            "-i",
            "-H",
            "Accept: application/openmetrics-text; version=1.0.0",
            &url(LOOPBACK.at(METRICS)),
        ],
    )?
    .checked()?;
    ensure!(
        open.stdout
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{open}"
    );
    ensure!(open.stdout.trim_end().ends_with("# EOF"), "{open}");
    agent.stop()?.checked()?;
    lab.close()
}

/// The agent listens only if asked to, and then only on loopback. On other addresses, paths decide
/// who reaches it, if the policy guards it.
#[test]
fn metrics_are_served_only_on_loopback_by_default() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (node, neighbour, pod) = (lab.login("cp1"), lab.neighbour(), lab.pod("pod-a"));
    let outside = [&neighbour, pod, &lab.login("w1")];
    let (loopback, own) = (url(LOOPBACK.at(METRICS)), url(CP1.at(METRICS)));
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let refused = curl(&node, &[&loopback])?;
    ensure!(refused.code() == Some(7), "without --metrics: {refused}");
    agent.stop()?.checked()?;

    let agent = with_metrics(&lab, &policy, &[])?;
    curl(&node, &[&loopback])?.checked()?;
    // Other traffic passes, so it is the listener that does not exist.
    for workload in outside.into_iter().chain([&node]) {
        let refused = curl(workload, &[&own])?;
        ensure!(refused.code() == Some(7), "by default: {refused}");
    }
    agent.stop()?.checked()?;

    // The twin: if configured, everybody reaches it.
    let address = CP1.at(METRICS).to_string();
    let agent = Agent::start_with(&lab, "cp1", &policy, &["--metrics", &address])?;
    for workload in outside {
        curl(workload, &[&own])?.checked()?;
    }
    ensure!(curl(&node, &[&loopback])?.code() == Some(7), "there only");
    // As the page shows: the policy guards the agent's own port.
    let inventory = lab.inventory_yaml();
    let components = format!(
        "  components:\n    enforcer: {{ runsOn: ['*'], cgroups: [/system.slice/enforcer.service], ports: {{ metrics: {METRICS}/tcp }} }}\n    \
         prometheus: {{ addresses: [{}/32] }}\n",
        neighbour.party().v4
    );
    ensure!(inventory.contains("  components:\n"), "{inventory}");
    let guarded = PolicyText {
        inventory: Some(inventory.replacen("  components:\n", &components, 1)),
        more: "  paths:\n    - { name: prometheus-to-enforcer, from: [prometheus], to: 'enforcer:metrics', because: scrapes }\n".to_owned(),
        ..policy
    };
    agent.replace_policy(&lab, &guarded)?;
    curl(&neighbour, &[&own])?.checked()?;
    let scrape = curl(&neighbour, &[&own])?.checked()?;
    let name = r#"enforcer_path_packets_total{path="prometheus-to-enforcer",direction="forward"}"#;
    ensure!(Scrape::of(&scrape.stdout)?.get(name)? > 0.0, "its own path");
    for workload in [pod, &lab.login("w1")] {
        let denied = curl(workload, &[&own])?;
        ensure!(matches!(denied.code(), Some(7 | 28)), "guarded: {denied}");
    }
    agent.event(|event| event.endpoint.as_deref() == Some("enforcer:metrics"))?;
    agent.stop()?.checked()?;
    lab.close()
}

/// A port that is in use does not prevent enforcement, and is retried.
#[test]
fn enforcement_does_not_wait_for_a_listener() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let node = lab.login("cp1");
    let squatter = node.serve(Serve {
        tcp: vec![LOOPBACK.at(METRICS)],
        ..Serve::default()
    })?;
    let agent = with_metrics(&lab, &PolicyText::default(), &[])?;
    let denied = lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(denied == Outcome::Eperm, "{denied}");
    let problems = agent.status()?["problems"].to_string();
    ensure!(
        problems.contains("metrics cannot be served at 127.0.0.1:11910"),
        "{problems}"
    );
    drop(squatter);
    let end = Instant::now() + patient(2 * SOON);
    while text_from(&node).is_err() {
        ensure!(Instant::now() < end, "{:#}", agent.status()?);
        thread::sleep(Duration::from_millis(100));
    }
    Scrape::from(&node)?.is(r#"enforcer_problem{kind="metrics"}"#, 0.0)?;
    agent.stop()?.checked()?;
    lab.close()
}

/// Many silent connections take few descriptors: the agent can still be queried, scraped and
/// stopped.
#[test]
fn no_client_exhausts_the_agent() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.login("cp1");
    let agent = with_metrics(&lab, &PolicyText::default(), &[])?;
    let descriptors = format!("/proc/{}/fd", agent.running().pid());
    let open = || Ok::<_, anyhow::Error>(fs::read_dir(&descriptors)?.count());
    let before = open()?;
    let script = format!(
        "for i in $(seq 100); do exec {{descriptor}}<>/dev/tcp/127.0.0.1/{METRICS}; done; echo open; sleep 600"
    );
    let silent = node.command("bash")?.args(["-c", &script]).spawn()?;
    silent.wait_for_line(|line| line == "open", patient(6 * SOON))?;
    ensure!(
        open()? <= before + 10,
        "{} descriptors, {before} before",
        open()?
    );
    let began = Instant::now();
    agent.status()?;
    Scrape::from(&node)?;
    ensure!(began.elapsed() < patient(SOON), "{:?}", began.elapsed());
    // Frequent requests get a recent snapshot.
    let again = "for i in $(seq 200); do echo url=http://127.0.0.1:11910/metrics; echo output=/dev/null; done | curl -sS -f -K -";
    node.command("bash")?
        .args(["-c", again])
        .run_within(patient(2 * SOON))?
        .checked()?;
    agent.status()?;
    drop(silent);
    agent.stop()?.checked()?;
    lab.close()
}

#[test]
fn confirmations_and_rollbacks_are_counted() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.login("cp1");
    let agent = with_metrics(&lab, &PolicyText::default(), &["--manual"])?;
    let deadline = "enforcer_policy_confirmation_deadline_timestamp_seconds";
    let pending = "enforcer_policy_pending_confirmation";
    let [by_request, in_time] = ["request", "unconfirmed"]
        .map(|cause| format!("enforcer_policy_rollbacks_total{{cause=\"{cause}\"}}"));
    let first = Scrape::from(&node)?;
    first.is(pending, 0.0)?;
    first.is(&by_request, 0.0)?;
    first.is(&in_time, 0.0)?;
    ensure!(!first.0.contains_key(deadline), "no deadline");

    fs::write(agent.policy(), PolicyText::dry_run().yaml(&lab))?;
    enforcer(&lab, &["apply", "--confirm-within", "10m"])?.checked()?;
    let waits = wait_for(&node, pending, 1.0)?;
    let left = waits.get(deadline)? - waits.get("enforcer_policy_applied_timestamp_seconds")?;
    ensure!((599.0..601.0).contains(&left), "{left}");
    enforcer(&lab, &["rollback"])?.checked()?;
    let back = wait_for(&node, &by_request, 1.0)?;
    back.is(pending, 0.0)?;
    back.is(
        "enforcer_policy_generation",
        first.get("enforcer_policy_generation")?,
    )?;
    back.is("enforcer_policy_from_files", 0.0)?;

    enforcer(&lab, &["apply", "--confirm-within", "10m"])?.checked()?;
    enforcer(&lab, &["confirm"])?.checked()?;
    wait_for(&node, "enforcer_policy_confirmations_total", 1.0)?.is(pending, 0.0)?;
    fs::write(agent.policy(), PolicyText::default().yaml(&lab))?;
    enforcer(&lab, &["apply", "--confirm-within", "1s"])?.checked()?;
    wait_for(&node, &in_time, 1.0)?.is(&by_request, 1.0)?;
    agent.stop()?.checked()?;
    lab.close()
}

/// Prometheus in the lab, with the shipped rules except for their waiting times.
struct Prometheus {
    workload: Workload,
    _running: Running,
}

impl Prometheus {
    fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("prometheus");
        fs::create_dir_all(&directory)?;
        let rules = fs::read_to_string(repository("packaging/prometheus/enforcer.rules.yaml"))?;
        let hasty: String = rules
            .split_inclusive('\n')
            .map(|line| match line.trim().starts_with("for: ") {
                true => "        for: 1s\n",
                false => line,
            })
            .collect();
        fs::write(directory.join("enforcer.rules.yaml"), hasty)?;
        let configuration = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [enforcer.rules.yaml]\nscrape_configs:\n  - job_name: enforcer\n    \
             static_configs: [{{ targets: ['127.0.0.1:{METRICS}'] }}]\n"
        );
        let file = directory.join("prometheus.yaml");
        fs::write(&file, configuration)?;
        let workload = lab.login("cp1");
        workload
            .command("promtool")?
            .args(["check", "config"])
            .arg(&file)
            .run()?
            .checked()?;
        let running = workload
            .command("prometheus")?
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"))
            .spawn()?;
        Ok(Self {
            workload,
            _running: running,
        })
    }

    fn ask(&self, what: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:{PROMETHEUS}/api/v1/{what}");
        let ran = curl(&self.workload, &["-g", &url])?.checked()?;
        Ok(serde_json::from_str::<Value>(&ran.stdout)?["data"].clone())
    }

    /// Waits until an answer is as wanted.
    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + patient(3 * SOON);
        loop {
            let answer = self.ask(what).unwrap_or(Value::Null);
            if wanted(&answer) {
                return Ok(answer);
            }
            ensure!(Instant::now() < end, "{what}: {answer:#}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until exactly these alerts fire.
    fn fires(&self, wanted: &[&str]) -> Result<()> {
        self.wait("alerts", |answer| {
            let Some(alerts) = answer["alerts"].as_array() else {
                return false;
            };
            let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
            let firing: BTreeSet<&str> = firing
                .filter_map(|alert| alert["labels"]["alertname"].as_str())
                .collect();
            firing == wanted.iter().copied().collect()
        })
        .map(drop)
    }
}

#[test]
fn prometheus_scrapes_and_its_alerts_fire() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = with_metrics(&lab, &PolicyText::default(), &["--manual"])?;
    let prometheus = Prometheus::start(&lab)?;
    let targets = prometheus.wait("targets", |answer| {
        answer["activeTargets"][0]["health"] == "up"
    })?;
    ensure!(
        targets["activeTargets"][0]["lastError"] == "",
        "{targets:#}"
    );
    // It returns types as in OpenMetrics.
    let metadata = prometheus.wait("metadata?metric=enforcer_denials", |answer| {
        answer["enforcer_denials"].is_array()
    })?;
    ensure!(
        metadata["enforcer_denials"][0]["type"] == "counter",
        "{metadata:#}"
    );
    thread::sleep(Duration::from_secs(3));
    prometheus.fires(&[])?;

    // A denial is there, and its twin is not.
    ensure!(
        lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))? == Outcome::Eperm,
        "denied"
    );
    let query = "query?query=enforcer_denials_total{mode=\"denied\"}>0";
    let answer = prometheus.wait(query, |answer| {
        answer["result"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    })?;
    let result = answer["result"].as_array().context("no result")?;
    ensure!(
        result.len() == 1
            && result[0]["metric"]["reason"] == "WrongProcess"
            && result[0]["value"][1] == "1",
        "{answer:#}"
    );

    // Each alert fires when it should, alone, and stops when the condition is over.
    fs::write(agent.policy(), PolicyText::dry_run().yaml(&lab))?;
    prometheus.fires(&["EnforcerPolicyNotFromFiles"])?;
    enforcer(&lab, &["apply", "--confirm-within", "10m"])?.checked()?;
    prometheus.fires(&["EnforcerNotEnforced", "EnforcerPolicyUnconfirmed"])?;
    enforcer(&lab, &["rollback"])?.checked()?;
    prometheus.fires(&["EnforcerPolicyNotFromFiles", "EnforcerPolicyRolledBack"])?;
    agent.stop()?.checked()?;
    // That one covers the last hour, whatever happened to the agent.
    prometheus.fires(&["EnforcerNoAgent", "EnforcerPolicyRolledBack"])?;
    lab.close()
}
