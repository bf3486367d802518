//! Identities that come and go: a restarted unit or static pod has a new cgroup each time, and is
//! recognized at once; a policy file, however it is replaced, is in force at once. The owner of a
//! raw socket is known as well.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use enforcer_tests::arrivals::Arrivals;
use enforcer_tests::packet::{Content, Forged};
use enforcer_tests::plan::{CP1, LOOPBACK, W1, port};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome};

/// Much longer than an event takes, and much shorter than the periodic check.
const AT_ONCE: Duration = Duration::from_millis(700);

#[test]
fn a_restarted_static_pod_is_recognized_at_once() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let to = LOOPBACK.at(port::INSECURE);
    let slice = lab
        .host("cp1")
        .cgroup_root()
        .join(enforcer_tests::cgroup::static_pod_slice("scheduler"));
    let mut worst = Duration::ZERO;
    for round in 0..12 {
        // A container runtime removes the pod's slice and recreates it.
        let _ = fs::remove_dir(slice.join("cri-scheduler.scope"));
        fs::remove_dir(&slice).with_context(|| format!("failed to remove {}", slice.display()))?;
        let made = Instant::now();
        let workload = lab.scheduler();
        loop {
            match workload.connect(to)? {
                Outcome::Connected => break,
                outcome => ensure!(made.elapsed() < AT_ONCE, "round {round}: {outcome}"),
            }
        }
        worst = worst.max(made.elapsed());
        let stranger =
            lab.workload_in("cp1", "kubepods.slice/kubepods-burstable.slice/other.slice")?;
        ensure!(
            stranger.connect(to)? == Outcome::Eperm,
            "any cgroup will do"
        );
    }
    println!(
        "at worst {worst:?} from the cgroup to an allowed connection, the process's start included"
    );
    drop(agent);
    lab.close()
}

#[test]
fn a_cgroup_that_is_gone_is_forgotten() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let known = |wanted: bool| -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let notes = agent.status()?["notes"].to_string();
            if notes.contains("podscheduler.slice") != wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{notes}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    known(true)?;
    let slice = lab
        .host("cp1")
        .cgroup_root()
        .join(enforcer_tests::cgroup::static_pod_slice("scheduler"));
    let before = agent.status()?["cgroups"]
        .as_u64()
        .context("no number of cgroups")?;
    let _ = fs::remove_dir(slice.join("cri-scheduler.scope"));
    fs::remove_dir(&slice)?;
    known(false)?;
    let after = agent.status()?["cgroups"]
        .as_u64()
        .context("no number of cgroups")?;
    ensure!(after + 1 == before, "{before} cgroups, then {after}");
    lab.close()
}

#[test]
fn a_policy_is_in_force_however_its_file_is_replaced() -> Result<()> {
    let lab = Lab::builder().apiserver().build()?;
    let directory = lab.directory().join("config");
    fs::create_dir(&directory)?;
    let [open, closed] = [vec!["insecure-port"], vec![]].map(|options| PolicyText {
        options,
        ..PolicyText::default()
    });
    for (name, policy) in [("..1", &open), ("..2", &closed)] {
        fs::create_dir(directory.join(name))?;
        fs::write(directory.join(name).join("policy.yaml"), policy.yaml(&lab))?;
    }
    symlink("..1", directory.join("..data"))?;
    let file = directory.join("policy.yaml");
    symlink("..data/policy.yaml", &file)?;
    let agent = Agent::start_on_file(&lab, "cp1", &file)?;
    let in_force = |generation: u64, how: &str| -> Result<()> {
        let started = Instant::now();
        while agent.generation()? != generation {
            ensure!(started.elapsed() < AT_ONCE, "{how}: not in force");
        }
        println!("{how}: in force after {:?}", started.elapsed());
        Ok(())
    };
    // As the kubelet swaps a ConfigMap.
    symlink("..2", directory.join("..next"))?;
    fs::rename(directory.join("..next"), directory.join("..data"))?;
    in_force(2, "a link that is swapped")?;
    // As an editor does, replacing the link.
    fs::write(directory.join("policy.yaml~"), open.yaml(&lab))?;
    fs::rename(directory.join("policy.yaml~"), &file)?;
    in_force(3, "a file that is renamed")?;
    fs::write(&file, closed.yaml(&lab))?;
    in_force(4, "a file that is written")?;
    // A broken policy changes nothing, and is reported.
    fs::write(&file, "kind: nonsense")?;
    thread::sleep(AT_ONCE);
    let status = agent.status()?;
    ensure!(
        status["generation"] == 4 && status["lastError"].is_string(),
        "{status}"
    );
    drop(agent);
    lab.close()
}

/// The kernel's own resets come from a raw TCP socket that is never connected: a connected one
/// belongs to a process, which is known by its cgroup.
#[test]
fn a_connected_raw_socket_belongs_to_its_process() -> Result<()> {
    let lab = Lab::builder().build()?;
    let intruder = lab.login("cp1");
    let at = lab.login("w1");
    let both = [
        (CP1.at(40_000), W1.at(port::KUBELET)),
        (CP1.at6(40_000), W1.at6(port::KUBELET)),
    ];
    let arrivals = both.map(|(source, to)| Arrivals::count(&at, source.ip(), to));
    let arrivals = arrivals.into_iter().collect::<Result<Vec<_>>>()?;
    let arrived = || -> Result<Vec<u64>> { arrivals.iter().map(Arrivals::so_far).collect() };
    let send = |connected| -> Result<()> {
        for (source, destination) in both {
            let acknowledgement = Forged {
                source,
                destination,
                content: Content::Tcp {
                    flags: 0x10,
                    payload: Vec::new(),
                },
            };
            intruder.raw_tcp(&acknowledgement, connected)?;
        }
        Ok(())
    };
    send(false)?;
    send(true)?;
    ensure!(arrived()? == [2, 2], "twin: {:?} arrived", arrived()?);
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    // As if from any process of this node, such as the apiserver.
    send(false)?;
    ensure!(arrived()? == [3, 3], "{:?} arrived", arrived()?);
    send(true)?;
    for (_, to) in both {
        // Resets are received by that socket, and are denied there as well.
        let event = agent.event(|event| {
            event.hook == "cgroup/egress" && event.destination == Some(to.ip().to_string())
        })?;
        ensure!(event.reason == "WrongProcess", "{event:?}");
    }
    ensure!(arrived()? == [3, 3], "{:?} arrived", arrived()?);
    Ok(())
}
