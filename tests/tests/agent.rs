//! The agent keeps running whatever happens around it: files that never answer, interfaces that
//! vanish, no file descriptors, names that were chosen to deceive. And it reports the problem.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::holder::Holder;
use enforcer_tests::patience::patient;
use enforcer_tests::plan::{CP1, LOOPBACK, POD_A, port};
use enforcer_tests::probe::Serve;
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::{Lab, Outcome, Ran, Running, net, tools};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

/// How long the agent may take, on a busy machine, for anything that it does at once or in its
/// periodic checks.
const SOON: Duration = Duration::from_secs(40);
/// Characters that must not affect a line of output: each occurs in names that others chose.
const HARMFUL: &[char] = &[
    '\u{1b}', '\r', '\u{7}', '\u{202e}', '\u{2028}', '\u{200b}', '\u{85}',
];

/// Polls until something is there.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patient(SOON);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(50));
    }
}

fn status_with(agent: &Agent, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for("the status", || {
        Ok(Some(agent.status()?).filter(|status| wanted(status)))
    })
}

/// The product's command line on cp1.
fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    lab.daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .args(args)
        .run()
}

/// An agent on cp1 that is started by a shell, after some other commands.
fn start_after(lab: &Lab, commands: &str, policy: &PolicyText, more: &str) -> Result<Running> {
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, policy.yaml(lab))?;
    let workload = lab.daemon("cp1", "enforcer");
    workload
        .command("sh")?
        .arg("-c")
        .arg(format!(
            "{commands}; exec \"$0\" run --node cp1 {more} -p \"$1\""
        ))
        .arg(tools::enforcer()?.path)
        .arg(&file)
        .spawn()
}

fn status(lab: &Lab) -> Result<Value> {
    let ran = enforcer(lab, &["status", "-o", "json"])?.checked()?;
    serde_json::from_str(&ran.stdout).context("status is no JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn a_pipe_is_refused_as_a_policy_without_waiting() -> Result<()> {
    let lab = Lab::builder().build()?;
    let policy = PolicyText::default();
    let pipe = lab.directory().join("pipe.yaml");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    for input in [pipe.as_path(), Path::new("/dev/zero"), Path::new("-")] {
        let ran = enforcer(
            &lab,
            &["run", "--node", "cp1", "-p", &input.to_string_lossy()],
        )?;
        ensure!(
            ran.code() == Some(2) && ran.stderr.contains("give a file"),
            "{}: {ran}",
            input.display()
        );
    }
    // Nor if it replaces a file.
    let agent = Agent::start(&lab, "cp1", &policy)?;
    fs::rename(&pipe, agent.policy())?;
    let broken = status_with(&agent, |status| status["lastError"].is_string())?;
    ensure!(
        text(&broken["lastError"]).contains("a named pipe"),
        "{broken:#}"
    );
    ensure!(broken["lastErrorSince"].is_string(), "{broken:#}");
    fs::remove_file(agent.policy())?;
    fs::write(agent.policy(), policy.yaml(&lab))?;
    let repaired = status_with(&agent, |status| status["lastError"].is_null())?;
    let reported = &repaired["repaired"];
    ensure!(
        reported["brokenSince"] == broken["lastErrorSince"],
        "{repaired:#}"
    );
    ensure!(repaired["generation"] == 1, "{repaired:#}");
    let shown = agent.command(&["status"])?.checked()?.stdout;
    ensure!(
        shown.contains("repaired  the policy was broken from "),
        "{shown}"
    );
    let log = agent.stop()?.checked()?.stderr;
    ensure!(log.contains("the policy is repaired"), "{log}");
    lab.close()
}

/// A file system that never answers, because no server is behind it.
struct Silent {
    at: PathBuf,
    // Closing it releases the waiting processes.
    _device: File,
}

impl Silent {
    fn mount(at: &Path) -> Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("silent"),
            at,
            Some("fuse"),
            flags,
            Some(options.as_str()),
        )?;
        Ok(Self {
            at: at.to_owned(),
            _device: device,
        })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_unresponsive_file_system_blocks_nothing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Before the lab: its hosts have their own mounts.
    let silent = Silent::mount(directory.path())?;
    let lab = Lab::builder().build()?;
    let policy = PolicyText::default();
    let (good, file) = (
        lab.directory().join("good.yaml"),
        lab.directory().join("p.yaml"),
    );
    fs::write(&good, policy.yaml(&lab))?;
    symlink(&good, &file)?;
    let agent = Agent::start_on_file(&lab, "cp1", &file)?;
    let next = lab.directory().join("next.yaml");
    symlink(directory.path().join("policy.yaml"), &next)?;
    fs::rename(&next, &file)?;
    agent.running().signal(Signal::SIGHUP)?;
    let deadline = Instant::now() + patient(Duration::from_secs(30));
    let reported = loop {
        let asked = Instant::now();
        let status = agent.status()?;
        ensure!(
            asked.elapsed() < patient(Duration::from_secs(3)),
            "{:?}",
            asked.elapsed()
        );
        if status["lastError"].is_string() {
            break status;
        }
        ensure!(Instant::now() < deadline, "nothing is reported: {status:#}");
        thread::sleep(Duration::from_millis(100));
    };
    ensure!(
        text(&reported["lastError"]).contains("has taken more than"),
        "{reported:#}"
    );
    // Everything else continues: a new cgroup is recognized, and the agent can be stopped.
    let apiserver = lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(apiserver == Outcome::Eperm, "{apiserver}");
    let node = lab.host("cp1").namespace().name();
    net::ip(
        Some(node),
        "link add cali-late type veth peer name late-peer\n",
    )?;
    status_with(&agent, |status| {
        status["attachments"].to_string().contains("cali-late")
    })?;
    let asked = Instant::now();
    agent.running().signal(Signal::SIGTERM)?;
    agent.stop()?.checked()?;
    ensure!(asked.elapsed() < patient(SOON), "{:?}", asked.elapsed());
    drop(silent);
    lab.close()
}

#[test]
fn without_inotify_the_agent_polls_and_reports_it() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, PolicyText::default().yaml(&lab))?;
    lab.static_pod("cp1", "scheduler").cgroup().id()?;
    let agent = lab
        .daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .args(["run", "--node", "cp1", "-p"])
        .arg(&file)
        .refused(libc::SYS_inotify_init1, Errno::EMFILE)
        .spawn()?;
    let reported = wait_for("the status", || Ok(status(&lab).ok()))?;
    let problems = reported["problems"].to_string();
    ensure!(
        problems.contains("declared cgroups are looked for once a second")
            && problems.contains("files are looked at every five seconds")
            && problems.contains("fs.inotify.max_user_instances"),
        "{reported:#}"
    );
    // A recreated static pod is recognized, a little later.
    let slice = lab
        .host("cp1")
        .cgroup_root()
        .join(enforcer_tests::cgroup::static_pod_slice("scheduler"));
    let to = LOOPBACK.at(port::INSECURE);
    let _ = fs::remove_dir(slice.join("cri-scheduler.scope"));
    fs::remove_dir(&slice)?;
    wait_for("the scheduler", || {
        Ok((lab.scheduler().connect(to)? == Outcome::Connected).then_some(()))
    })?;
    // And so is another policy.
    fs::write(&file, PolicyText::dry_run().yaml(&lab))?;
    wait_for("the policy", || {
        Ok((status(&lab)?["generation"] == 2).then_some(()))
    })?;
    agent.signal(Signal::SIGTERM)?;
    agent.finish(SOON)?.checked()?;
    lab.close()
}

#[test]
fn without_file_descriptors_it_answers_and_reports_what_is_unenforced() -> Result<()> {
    // Enough to start, but not for all interfaces: without pins, each interface takes one
    // descriptor for each program.
    const LIMIT: usize = 150;
    const MANY: usize = 100;
    let lab = Lab::builder().build()?;
    let node = lab.host("cp1").namespace().name().to_owned();
    lab.static_pod("cp1", "scheduler").cgroup().id()?;
    let limited = format!("ulimit -n {LIMIT}");
    let policy = PolicyText::default();
    let agent = start_after(&lab, &limited, &policy, "--no-pin")?;
    wait_for("the agent", || Ok(status(&lab).ok()))?;
    let add: String = (0..MANY)
        .map(|n| format!("link add cali-x{n} type veth peer name peer-x{n}\n"))
        .collect();
    net::ip(Some(&node), &add)?;
    // Only the first interface without programs is reported.
    let reported = wait_for("the status", || {
        let all_told = |status: &Value| {
            text(&status["notAttached"]).contains("; without their programs: cali-x")
        };
        Ok(Some(status(&lab)?).filter(all_told))
    })?;
    let error = text(&reported["notAttached"]);
    ensure!(
        error.contains("no file can be opened") && error.contains("Too many open files"),
        "{error}"
    );
    ensure!(
        error.matches("os error 24").count() == 1,
        "reported twice: {error}"
    );
    // Followers do not block other requests.
    let followers: Vec<Running> = (0..4)
        .map(|_| {
            let workload = lab.daemon("cp1", "enforcer");
            workload
                .command_of(&tools::enforcer()?)?
                .args(["events", "--follow"])
                .spawn()
        })
        .collect::<Result<_>>()?;
    let attached = |status: &Value| status["attachments"].as_array().map_or(0, Vec::len);
    ensure!(attached(&status(&lab)?) > 20, "{reported:#}");
    // A declared cgroup still counts as existing.
    ensure!(
        !reported["notes"].to_string().contains("podscheduler"),
        "{reported:#}"
    );
    drop(followers);
    let gone: String = (0..MANY - 10)
        .map(|n| format!("link del cali-x{n}\n"))
        .collect();
    net::ip(Some(&node), &gone)?;
    let reported = wait_for("the attachments", || {
        Ok(Some(status(&lab)?).filter(|status| status["notAttached"].is_null()))
    })?;
    let here = reported["attachments"].as_array().into_iter().flatten();
    let here = here.filter(|a| text(&a["where"]).starts_with("cali-x"));
    ensure!(here.count() == 20, "{reported:#}");
    let ran = enforcer(&lab, &["detach"])?.checked()?;
    ensure!(ran.stdout.contains("detached"), "{ran}");
    agent.finish(SOON)?.checked()?;
    lab.close()
}

#[test]
fn the_agent_starts_while_interfaces_come_and_go() -> Result<()> {
    const STARTS: usize = 8;
    let lab = Lab::builder().build()?;
    let node = lab.host("cp1").namespace().name().to_owned();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let churn = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                for n in 0..8 {
                    net::ip(
                        Some(&node),
                        &format!("link add cali-c{n} type veth peer name p{n}\n"),
                    )?;
                }
                for n in 0..8 {
                    net::ip(Some(&node), &format!("link del cali-c{n}\n"))?;
                }
            }
            Ok(())
        });
        let starts = (0..STARTS).try_for_each(|start| -> Result<()> {
            let policy = if start % 2 == 0 {
                PolicyText::default()
            } else {
                PolicyText::dry_run()
            };
            let agent =
                Agent::start(&lab, "cp1", &policy).with_context(|| format!("start {start}"))?;
            status_with(&agent, |status| {
                let attachments = status["attachments"].to_string();
                attachments.contains("eth0") && attachments.contains(&POD_A.host_interface())
            })?;
            agent.stop()?.checked()?;
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let churned = churn
            .join()
            .map_err(|_panic| anyhow::anyhow!("the churn panicked"))?;
        starts.and(churned)
    })?;
    lab.close()
}

#[test]
fn a_recreated_cgroup_root_is_enforced_again() -> Result<()> {
    let lab = Lab::builder().build()?;
    let to = CP1.at(port::ETCD_CLIENT);
    let root = lab.host("cp1").cgroup_root().join("kubepods.slice");
    let connect = || lab.hostnet("cp1").connect(to);
    ensure!(connect()? == Outcome::Refused, "twin: {}", connect()?);
    let more = ["--cgroup-root", &*root.to_string_lossy()];
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &more)?;
    ensure!(connect()? == Outcome::Eperm, "{}", connect()?);
    enforcer_tests::cgroup::remove_tree(&root)?;
    let status = status_with(&agent, |status| {
        status["problems"]
            .to_string()
            .contains("no process is held to the policy")
    })?;
    ensure!(status["problems"][0]["since"].is_string(), "{status:#}");
    let attached = status["attachments"].clone();
    // The first process in the new cgroup is not judged by it yet, but soon will be.
    wait_for("a denial", || {
        Ok((connect()? == Outcome::Eperm).then_some(()))
    })?;
    let status = status_with(&agent, |status| status["problems"] == serde_json::json!([]))?;
    ensure!(status["attachments"] == attached, "{status:#}");
    let log = agent.stop()?.checked()?.stderr;
    ensure!(
        log.contains("works again, after it had failed since"),
        "{log}"
    );
    lab.close()
}

/// Another program holds a hook exclusively when the agent starts: the other programs are attached,
/// once, and the one for that hook as soon as it is free.
#[test]
fn an_occupied_cgroup_hook_is_attached_once_it_is_free() -> Result<()> {
    let lab = Lab::builder().build()?;
    let to = CP1.at(port::ETCD_CLIENT);
    let connect = || lab.hostnet("cp1").connect(to);
    ensure!(connect()? == Outcome::Refused, "twin: {}", connect()?);
    let holder = Holder::take(lab.host("cp1").cgroup_root())?;
    ensure!(connect()? == Outcome::Refused, "twin: {}", connect()?);
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let hooks = |status: &Value| -> Vec<String> {
        let all = status["attachments"].as_array().into_iter().flatten();
        all.filter(|attachment| attachment["how"] == "cgroupLink")
            .map(|attachment| text(&attachment["program"]).to_owned())
            .collect()
    };
    let held = agent.status()?;
    let reported = text(&held["problems"][0]["what"]);
    ensure!(
        reported.contains("not all that processes do is held to the policy")
            && reported.contains("enforcer_conn4"),
        "{held:#}"
    );
    let early = hooks(&held);
    ensure!(
        early.contains(&"enforcer_conn6".to_owned())
            && early.contains(&"enforcer_skb_in".to_owned())
            && !early.contains(&"enforcer_conn4".to_owned()),
        "{early:?}"
    );
    // Its packets are judged all the same, later.
    let outcome = connect()?;
    ensure!(
        !outcome.worked() && outcome != Outcome::Refused,
        "{outcome}"
    );
    agent.event(|event| event.reason == "WrongProcess" && event.hook == "cgroup/egress")?;
    drop(holder);
    let free = status_with(&agent, |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    })?;
    let mut late = hooks(&free);
    late.retain(|hook| !early.contains(hook));
    ensure!(late == ["enforcer_conn4"], "{free:#}");
    ensure!(hooks(&free).len() == early.len() + 1, "{free:#}");
    ensure!(connect()? == Outcome::Eperm, "{}", connect()?);
    agent.event(|event| event.reason == "WrongProcess" && event.hook == "cgroup/connect")?;
    agent.stop()?.checked()?;
    lab.close()
}

#[test]
fn hostile_names_forge_no_output() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.host("cp1").namespace().name().to_owned();
    let chosen = "x\u{1b}[2J\rFAKE\u{202e}\u{2028}\u{200b}";
    let interface = "cali\u{1b}[31m\u{85}X";
    // A pod's interface that exists before the agent starts.
    net::ip(
        Some(&node),
        &format!("link add \"{interface}\" type veth peer name nobody\n"),
    )?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    status_with(&agent, |status| {
        status["attachments"].to_string().contains("[31m")
    })?;
    let program = lab.directory().join("a\nok: x\u{1b}[m\u{7}");
    let curl = tools::find("curl")?;
    fs::copy(&curl.path, &program)?;
    let to = CP1.at(port::ETCD_CLIENT);
    let bytes = std::ffi::OsStr::from_bytes(b"bad\xff\xfename").to_owned();
    for cgroup in [chosen.into(), bytes] {
        let root = lab
            .host("cp1")
            .cgroup_root()
            .join("kubepods.slice")
            .join(&cgroup);
        fs::create_dir_all(&root)?;
        let workload = match cgroup.to_str() {
            Some(name) => lab.workload_in("cp1", &format!("kubepods.slice/{name}"))?,
            None => continue,
        };
        let ran = workload
            .command(&program)?
            .with_libraries_of(&curl)?
            .args(["-sS", "-m", "20", &format!("http://{to}/")])
            .run()?;
        ensure!(ran.code() == Some(7), "{ran}");
    }
    let event = agent.event(|event: &Event| event.subject.name.ends_with(chosen))?;
    ensure!(
        event.comm.as_deref() == Some("a\nok: x\u{1b}[m\u{7}"),
        "{event:?}"
    );
    let listed = agent.command(&["events"])?.checked()?.stdout;
    let json = agent.command(&["events", "-o", "json"])?.checked()?.stdout;
    let shown = agent.command(&["status"])?.checked()?.stdout;
    let shown_json = agent.command(&["status", "-o", "json"])?.checked()?.stdout;
    ensure!(shown.contains("cali\\u{1b}[31m\\u{85}X"), "{shown}");
    ensure!(
        shown_json.contains("cali\\u001b[31m\\u0085X"),
        "{shown_json}"
    );
    let log = agent.stop()?.checked()?;
    for text in [
        &listed,
        &json,
        &shown,
        &shown_json,
        &log.stdout,
        &log.stderr,
    ] {
        let found = text.chars().find(|c| HARMFUL.contains(c));
        ensure!(found.is_none(), "{found:?} in {text:?}");
    }
    for text in [&listed, &log.stdout] {
        let line = text
            .lines()
            .find(|line| line.contains("FAKE"))
            .context("no line")?;
        let expected = "denied \"a\\nok: x\\u{1b}[m\\u{7}\" (in /kubepods.slice/x\\u{1b}[2J\\rFAKE\\u{202e}\
                        \\u{2028}\\u{200b}, pid ";
        ensure!(line.starts_with(expected), "{line}");
        ensure!(
            !text.lines().any(|line| line.starts_with("ok:")),
            "a forged line: {text}"
        );
    }
    lab.close()
}

#[test]
fn removed_interfaces_and_cgroups_keep_their_names() -> Result<()> {
    let lab = Lab::builder().build()?;
    let node = lab.host("cp1").namespace().name().to_owned();
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let to = CP1.at(port::ETCD_CLIENT);
    let pod = lab.pod("pod-a");
    ensure!(pod.connect(to)? == Outcome::Timeout, "the pod reaches etcd");
    let workload = lab.workload_in("cp1", "kubepods.slice/short-lived")?;
    ensure!(
        workload.connect(to)? == Outcome::Eperm,
        "the process reaches etcd"
    );
    let interface = POD_A.host_interface();
    let of_pod =
        |event: &Event| event.subject.kind == "interface" && event.subject.name == interface;
    let of_process = |event: &Event| event.subject.name.ends_with("/short-lived");
    let (first, second) = (agent.event(of_pod)?, agent.event(of_process)?);
    net::ip(Some(&node), &format!("link del {interface}\n"))?;
    fs::remove_dir(workload.cgroup().directory())?;
    status_with(&agent, |status| {
        !status["attachments"].to_string().contains(&interface)
    })?;
    let (first_again, second_again) = (agent.event(of_pod)?, agent.event(of_process)?);
    ensure!(first_again.source == first.source && second_again.count >= second.count);
    let listed = agent.command(&["events"])?.checked()?.stdout;
    ensure!(!listed.contains("gone"), "{listed}");
    agent.stop()?.checked()?;
    lab.close()
}

#[test]
fn holders_of_guarded_ports_are_reported() -> Result<()> {
    let lab = Lab::builder().build()?;
    let manager = lab.controller_manager();
    let everywhere = "0.0.0.0:10257".parse()?;
    let serve = |tcp| Serve {
        tcp: vec![tcp],
        ..Serve::default()
    };
    for (policy, next) in [
        (
            PolicyText::dry_run(),
            "would be refused if the policy were enforced",
        ),
        (PolicyText::default(), "will be refused"),
    ] {
        // If all is well, nothing is reported; nor is a process with a port that belongs to no
        // component.
        let _stranger = lab.hostnet("cp1").serve(serve(CP1.at(9999)))?;
        let right = manager.serve(serve(LOOPBACK.at(port::CONTROLLER_MANAGER)))?;
        let agent = Agent::start(&lab, "cp1", &policy)?;
        ensure!(
            agent.status()?["listeners"] == serde_json::json!([]),
            "{:#}",
            agent.status()?
        );
        drop(right);
        agent.stop()?.checked()?;

        let _wrong = manager.serve(serve(everywhere))?;
        let _squatter = lab.hostnet("cp1").serve(Serve {
            tcp: vec![CP1.at(port::ETCD_PEER)],
            ..Serve::default()
        })?;
        let agent = Agent::start(&lab, "cp1", &policy)?;
        let status = agent.status()?;
        let listeners = status["listeners"].as_array().context("no listeners")?;
        ensure!(listeners.len() == 2, "{status:#}");
        let of = |port: u16| {
            let found = listeners.iter().find(|listener| listener["port"] == port);
            found.with_context(|| format!("not {port}: {status:#}"))
        };
        let reported = of(port::CONTROLLER_MANAGER)?;
        ensure!(
            reported["reason"] == "BindNotLoopback" && reported["comm"] == "lab-probe",
            "{reported:#}"
        );
        let endpoints = &reported["endpoints"];
        ensure!(
            *endpoints == serde_json::json!(["controller-manager:secure"]),
            "{reported:#}"
        );
        ensure!(
            reported["willBeRefused"] == (policy.mode == "Enforce"),
            "{reported:#}"
        );
        ensure!(
            text(&reported["cgroup"]).contains("podcontroller"),
            "{reported:#}"
        );
        ensure!(
            of(port::ETCD_PEER)?["reason"] == "BindForeignPort",
            "{status:#}"
        );
        let shown = agent.command(&["status"])?.checked()?.stdout;
        // And that is what happens.
        let again = manager.bind(everywhere)?;
        ensure!(
            if policy.mode == "Enforce" {
                again == Outcome::Eperm
            } else {
                again != Outcome::Eperm
            },
            "{again}"
        );
        let log = agent.stop()?.checked()?.stderr;
        for text in [shown, log] {
            let line = text
                .lines()
                .find(|line| line.contains(":10257/tcp"))
                .context("not reported")?;
            ensure!(
                line.contains("listens on 0.0.0.0:10257/tcp (controller-manager:secure): ")
                    && line.ends_with(&format!(
                        "bound already, the next bind {next} (BindNotLoopback)"
                    )),
                "{line}"
            );
        }
    }
    lab.close()
}

#[test]
fn filters_of_a_killed_agent_are_reported() -> Result<()> {
    let lab = Lab::builder().build()?;
    let args = ["--tc", "clsact", "--no-pin"];
    let agent = Agent::start_with(&lab, "cp1", &PolicyText::default(), &args)?;
    agent.kill()?;
    let pod = lab.pod("pod-a");
    let to = CP1.at(port::ETCD_CLIENT);
    ensure!(pod.connect(to)? == Outcome::Timeout, "nothing is left");
    let ran = enforcer(&lab, &["status"])?;
    ensure!(ran.code() == Some(2), "{ran}");
    for part in [
        "no agent runs here",
        "eth0 (tc/ingress)",
        "`enforcer detach` removes them",
    ] {
        ensure!(ran.stderr.contains(part), "{ran}");
    }
    let ran = enforcer(&lab, &["status", "-o", "json"])?;
    let json: Value = serde_json::from_str(&ran.stderr)?;
    ensure!(
        ran.code() == Some(2)
            && ran.stdout.is_empty()
            && json["code"] == "Leftovers"
            && json["leftovers"][0]["hook"] == "tc/ingress",
        "{ran}"
    );
    enforcer(&lab, &["detach"])?.checked()?;
    ensure!(pod.connect(to)? == Outcome::Refused, "something is left");
    let ran = enforcer(&lab, &["status"])?;
    ensure!(
        ran.code() == Some(2)
            && ran.stderr.contains("start one with")
            && !ran.stderr.contains("eth0"),
        "{ran}"
    );
    lab.close()
}

#[test]
fn a_stopped_agent_is_reported_and_not_waited_for() -> Result<()> {
    let lab = Lab::builder().build()?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    agent.running().signal(Signal::SIGSTOP)?;
    let ran = lab
        .daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .arg("status")
        .run_within(patient(Duration::from_secs(40)))?;
    agent.running().signal(Signal::SIGCONT)?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("its process is stopped"),
        "{ran}"
    );
    agent.status()?;
    agent.stop()?.checked()?;
    lab.close()
}

/// The exit status says what happened, and nothing is printed twice.
#[test]
fn the_command_line_exits_as_other_tools_do() -> Result<()> {
    let lab = Lab::builder().build()?;
    let workload = lab.daemon("cp1", "enforcer");
    let missing = enforcer(&lab, &["check", "-p", "/missing.yaml"])?;
    ensure!(
        missing.code() == Some(2) && missing.stderr.matches("os error 2").count() == 1,
        "{missing}"
    );
    let json = enforcer(&lab, &["check", "-p", "/missing.yaml", "-o", "json"])?;
    ensure!(json.code() == Some(2), "{json}");
    serde_json::from_str::<Value>(&json.stderr)?;
    let policy = lab.directory().join("broken.yaml");
    fs::write(&policy, "kind: nonsense")?;
    let invalid = enforcer(&lab, &["check", "-p", &policy.to_string_lossy()])?;
    ensure!(invalid.code() == Some(1), "{invalid}");
    let shell = |command: &str| -> Result<Ran> {
        let shell = workload.command("sh")?.arg("-c").arg(command);
        shell.arg(tools::enforcer()?.path).run()
    };
    for command in [
        "\"$0\" schema >/dev/full",
        "\"$0\" --help >/dev/full",
        "\"$0\" --version >/dev/full",
    ] {
        let full = shell(command)?;
        ensure!(
            full.code() == Some(2)
                && full
                    .stderr
                    .contains("failed to write the result: No space left on device"),
            "{command}: {full}"
        );
    }
    // The reader is gone: the command ends silently, as other programs do.
    let closed = shell("{ \"$0\" schema; echo $? >&2; } | true; sleep 0.2")?;
    let quiet = ["141", "0"].contains(&closed.stderr.trim());
    ensure!(closed.ok() && quiet, "{closed}");
    let closed = shell("exec 3>&1; (sleep 0.2; exec \"$0\" schema; ) | exec true")?;
    ensure!(closed.stderr.is_empty(), "{closed}");
    let twice = enforcer(&lab, &["status", "--run-dir", "/proc/1/mem/x"])?;
    ensure!(
        twice.code() == Some(2) && twice.stderr.matches("os error").count() == 1,
        "{twice}"
    );
    ensure!(ExitStatusExt::signal(&twice.status.context("killed")?).is_none());
    lab.close()
}
