//! The agent as its service runs it: a user of its own with exactly the capabilities of the unit,
//! and what it reports to the service manager.

use std::os::unix::{fs::PermissionsExt as _, net::UnixDatagram};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, port};
use enforcer_tests::process::{Ran, Running};
use enforcer_tests::product::PolicyText;
use enforcer_tests::{Lab, Outcome, tools};
use nix::sys::signal::Signal;

/// A user id that nothing else on the machine has.
const USER: &str = "54321";
/// The unit, from which the capabilities are read.
const UNIT: &str = include_str!("../../packaging/enforcer.service");

/// The service manager, as far as an agent sees it.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(lab: &Lab) -> Result<Self> {
        fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755))?;
        let path = lab.directory().join("notify");
        let socket = UnixDatagram::bind(&path).context("failed to bind")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(Self {
            socket,
            path: path.to_string_lossy().into_owned(),
        })
    }

    /// Waits for this notification.
    fn reported(&self, wanted: &str) -> Result<String> {
        let deadline = Instant::now() + patient(Duration::from_secs(15));
        let mut all = String::new();
        while Instant::now() < deadline {
            let mut buffer = [0; 4096];
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            all.push_str(&message);
            if message.contains(wanted) {
                return Ok(message.into_owned());
            }
        }
        bail!("no `{wanted}`, but {all}")
    }
}

/// The capabilities of the unit, in the format of setpriv.
fn capabilities() -> Result<String> {
    let line = |key: &str| UNIT.lines().find_map(|line| line.strip_prefix(key));
    let ambient = line("AmbientCapabilities=").context("no ambient capabilities")?;
    ensure!(Some(ambient) == line("CapabilityBoundingSet="));
    let names = ambient
        .split(' ')
        .filter_map(|name| name.strip_prefix("CAP_"));
    let names = names.map(|name| format!("+{}", name.to_lowercase()));
    Ok(names.collect::<Vec<_>>().join(","))
}

fn shell(lab: &Lab, line: &str) -> Result<Ran> {
    let workload = lab.daemon("cp1", "enforcer");
    workload.run("/bin/sh", ["-euc", line])?.checked()
}

/// Starts an agent as the unit does, with these capabilities.
fn start(lab: &Lab, manager: &Manager, capabilities: &str, policy: &str) -> Result<Running> {
    let workload = lab.daemon("cp1", "enforcer");
    workload
        .command("setpriv")?
        .args([
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(format!("--inh-caps=-all,{capabilities}"))
        .arg(format!("--ambient-caps=-all,{capabilities}"))
        .arg(format!("--bounding-set=-all,{capabilities}"))
        .args([
            "/run/program",
            "run",
            "--node",
            "cp1",
            "--state-dir",
            "/run/state",
            "-p",
            policy,
        ])
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "60000000")
        .spawn()
}

fn is_enforced(lab: &Lab, when: &str) -> Result<()> {
    let at = CP1.at(port::ETCD_CLIENT);
    for (workload, wanted) in [
        (lab.hostnet("cp1"), Outcome::Eperm),
        (lab.pod("pod-a").clone(), Outcome::Timeout),
        (lab.apiserver(), Outcome::Connected),
    ] {
        let outcome = workload.connect(at)?;
        ensure!(outcome == wanted, "{when}: {outcome}, not {wanted}");
    }
    Ok(())
}

#[test]
fn the_units_capabilities_suffice_and_the_manager_is_notified() -> Result<()> {
    let lab = Lab::builder().etcd().apiserver().build()?;
    let at = CP1.at(port::ETCD_CLIENT);
    let outcome = lab.hostnet("cp1").connect(at)?;
    ensure!(outcome == Outcome::Connected, "twin: {outcome}");
    let manager = Manager::new(&lab)?;
    let file = lab.directory().join("service.yaml");
    fs::write(&file, PolicyText::default().yaml(&lab))?;
    let policy = file.to_string_lossy().into_owned();
    let program = tools::enforcer()?.path;
    shell(
        &lab,
        &format!(
            "install -m 755 {} /run/program; chmod 755 /run; \
             install -d -m 700 -o {USER} -g {USER} /run/enforcer /run/state /sys/fs/bpf/enforcer",
            program.display()
        ),
    )?;

    // Each of them is needed, and the error names the missing one.
    let all = capabilities()?;
    for missing in all.split(',') {
        let others: Vec<&str> = all.split(',').filter(|one| *one != missing).collect();
        let refused = start(&lab, &manager, &others.join(","), &policy)?;
        let refused = refused.finish(patient(Duration::from_secs(10)))?;
        let name = format!("lacks CAP_{} (", missing[1..].to_uppercase());
        ensure!(
            refused.code() == Some(2) && refused.stderr.contains(&name),
            "{refused}"
        );
    }

    let agent = start(&lab, &manager, &all, &policy)?;
    let ready = manager
        .reported("READY=1")
        .with_context(|| agent.stderr())?;
    ensure!(
        ready.contains("STATUS=generation 1, ") && ready.contains(" attachments"),
        "{ready}"
    );
    ensure!(!ready.contains("problem"), "{ready}: {}", agent.stderr());
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    ensure!(status.contains(&format!("Uid:\t{USER}")), "{status}");
    ensure!(status.contains("CapEff:\t000000c000001000"), "{status}");
    is_enforced(&lab, "with the agent")?;
    manager.reported("WATCHDOG=1")?;

    // Root can query it as usual, and its pins are its own.
    let ran = shell(
        &lab,
        "/run/program status; stat -c %u /sys/fs/bpf/enforcer/*/maps/*",
    )?;
    ensure!(ran.stdout.contains("cp1"), "{ran}");
    let owners = ran.stdout.lines().filter(|line| *line == USER);
    ensure!(owners.count() > 5, "{ran}");

    // A reload reports its beginning, its end, and a failure.
    let good = fs::read_to_string(&file)?;
    fs::write(&file, format!("{good}nonsense: true\n"))?;
    agent.signal(Signal::SIGHUP)?;
    let reloading = manager.reported("RELOADING=1")?;
    ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = manager.reported("READY=1")?;
    ensure!(ready.contains("1 problem"), "{ready}");
    fs::write(&file, good)?;
    agent.signal(Signal::SIGHUP)?;
    manager.reported("RELOADING=1")?;
    let ready = manager.reported("READY=1")?;
    ensure!(!ready.contains("problem"), "{ready}");

    // Its end does not end enforcement, and another agent takes over.
    agent.signal(Signal::SIGTERM)?;
    let stopping = manager.reported("STOPPING=1")?;
    ensure!(stopping.contains("stays in force"), "{stopping}");
    agent.finish(patient(Duration::from_secs(10)))?.checked()?;
    is_enforced(&lab, "without an agent")?;
    // Root trusts no other user's pins.
    let workload = lab.daemon("cp1", "enforcer");
    let refused = workload
        .command("/run/program")?
        .args(["run", "--node", "cp1", "-p", &policy])
        .run()?;
    ensure!(refused.code() == Some(2), "{refused}");
    ensure!(
        refused.stderr.contains("could remove enforcement"),
        "{refused}"
    );
    let agent = start(&lab, &manager, &all, &policy)?;
    let ready = manager
        .reported("READY=1")
        .with_context(|| agent.stderr())?;
    ensure!(ready.contains("STATUS=generation 1, "), "{ready}");
    is_enforced(&lab, "with the next agent")?;

    shell(&lab, "/run/program detach")?;
    manager.reported("detaches everything")?;
    agent.finish(patient(Duration::from_secs(10)))?.checked()?;
    thread::sleep(Duration::from_millis(50));
    let outcome = lab.hostnet("cp1").connect(at)?;
    ensure!(outcome == Outcome::Connected, "after detach: {outcome}");
    Ok(())
}

#[test]
fn an_uplink_may_appear_after_the_agent() -> Result<()> {
    let lab = Lab::builder().etcd().build()?;
    let inventory = lab
        .inventory_yaml()
        .replace("uplinks: [", "uplinks: [later0, ");
    ensure!(inventory.contains("later0"), "{inventory}");
    let policy = PolicyText {
        inventory: Some(inventory),
        ..PolicyText::default()
    };
    let start =
        |more: &[&str]| enforcer_tests::product::Agent::start_with(&lab, "cp1", &policy, more);
    let refused = start(&[]).err().context("a missing uplink is no error")?;
    ensure!(
        format!("{refused:#}").contains("no interface `later0`"),
        "{refused:#}"
    );
    let agent = start(&["--allow-missing-uplinks"])?;
    shell(&lab, "ip link add later0 type veth peer name later1")?;
    let deadline = Instant::now() + patient(Duration::from_secs(8));
    loop {
        let status = agent.status()?;
        let attachments = status["attachments"].as_array().into_iter().flatten();
        let mut here = attachments.filter(|one| one["where"] == "later0");
        if here.any(|one| one["role"] == "uplink") {
            break;
        }
        ensure!(Instant::now() < deadline, "{status:#}");
        thread::sleep(Duration::from_millis(100));
    }
    shell(&lab, "ip link del later0")?;
    agent.stop()?.checked()?;
    Ok(())
}
