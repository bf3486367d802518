//! What a policy would cut is named before it cuts it, and somebody who would cut himself off has to say that he means it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use enforcer_tests::plan::{CP1, LOOPBACK, W1, port};
use enforcer_tests::probe::{Hold, Serve};
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, ssh, tools};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let place = lab.daemon("cp1", "enforcer");
    place.command_of(&tools::enforcer()?)?.args(args).run()
}

fn json(ran: &Ran) -> Result<Value> {
    serde_json::from_str(&ran.stdout).with_context(|| format!("no JSON: {ran}"))
}

/// A file that holds the policy.
fn written(lab: &Lab, policy: &PolicyText) -> Result<String> {
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, policy.yaml(lab))?;
    Ok(file.to_string_lossy().into_owned())
}

fn preflight_of(lab: &Lab, about: &[&str]) -> Result<Value> {
    let ran = enforcer(lab, &[&["preflight", "-o", "json"], about].concat())?;
    json(&ran.checked()?)
}

fn findings(preflight: &Value) -> Vec<Value> {
    preflight["findings"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

#[test]
fn what_would_be_cut_is_named_and_is_what_is_cut() -> Result<()> {
    let lab = Lab::builder().apiserver().bystanders().build()?;
    let insecure = LOOPBACK.at(port::INSECURE);
    let etcd = lab.etcd().serve(Serve {
        tcp: vec![CP1.at(port::ETCD_CLIENT)],
        ..Serve::default()
    })?;
    let allowed = lab.controller_manager().hold(Hold::http(insecure))?;
    let other = lab.pod("pod-b").hold(Hold::to(CP1.at(port::ECHO)))?;
    let by_process = lab.hostnet("cp1").hold(Hold::http(insecure))?;
    let by_pod = lab.pod("pod-a").hold(Hold::to(CP1.at(port::ETCD_CLIENT)))?;
    let by_node = lab.login("w1").hold(Hold::to(CP1.at(port::ETCD_CLIENT)))?;

    let policy = PolicyText::default();
    let file = written(&lab, &policy)?;
    let about = ["--node", "cp1", "-p", &file];
    let preflight = preflight_of(&lab, &about)?;
    let found = findings(&preflight);
    let find = |source: &str, port: u16| {
        let mut matching = found
            .iter()
            .filter(|f| f["source"] == source && f["port"] == port);
        let first = matching.next().cloned();
        ensure!(matching.next().is_none(), "twice: {preflight:#}");
        first.with_context(|| format!("{source} to {port} is not in {preflight:#}"))
    };
    let process = find("127.0.0.1", port::INSECURE)?;
    ensure!(
        process["effect"] == "cut"
            && process["openedByProcess"] == true
            && process["cgroup"]
                .as_str()
                .is_some_and(|c| c.contains("hostnet"))
            && process["comm"] == "lab-probe"
            && process["count"] == 1,
        "{process:#}"
    );
    let pod = lab.pod("pod-a").party();
    let pod = find(&pod.v4.to_string(), port::ETCD_CLIENT)?;
    ensure!(
        pod["networkNamespace"].is_u64() && pod["comm"] == "lab-probe",
        "{pod:#}"
    );
    let node = find(&W1.v4.to_string(), port::ETCD_CLIENT)?;
    ensure!(
        node["openedByProcess"] == false
            && node["endpoints"][0] == "etcd:client"
            && node["networkNamespace"].is_null(),
        "{node:#}"
    );
    ensure!(found.len() == 3, "{preflight:#}");
    ensure!(preflight["namespaces"].as_u64() >= Some(1), "{preflight:#}");

    // The same for people, and as an error.
    let said = enforcer(
        &lab,
        &[&["preflight", "--require-clean"][..], &about].concat(),
    )?;
    ensure!(
        said.code() == Some(1) && said.stdout.contains("3 open connections would be cut"),
        "{said}"
    );
    let refused = enforcer(
        &lab,
        &[&["run", "--require-clean", "-o", "json"][..], &about].concat(),
    )?;
    let error: Value = serde_json::from_str(refused.stderr.lines().last().unwrap_or_default())?;
    ensure!(
        refused.code() == Some(2)
            && error["code"] == "WouldCut"
            && findings(&error["preflight"]).len() == 3,
        "{refused}"
    );
    // Nothing was changed so far, and dry-run changes nothing.
    let dry_run = Agent::start_with(&lab, "cp1", &policy, &["--dry-run", "--require-clean"])?;
    dry_run.stop()?.checked()?;
    for held in [&allowed, &other, &by_process, &by_pod, &by_node] {
        ensure!(held.is_alive(), "before the policy: {held:?}");
    }

    let agent = Agent::start(&lab, "cp1", &policy)?;
    for held in [by_process, by_pod, by_node] {
        held.wait_for_end(SOON)?;
    }
    for held in [&allowed, &other] {
        ensure!(held.is_alive(), "cut, and not named: {held:?}");
    }
    let said = agent.stop()?.checked()?;
    ensure!(
        said.stderr.contains("3 open connections would be cut"),
        "{said}"
    );
    drop(etcd);
    lab.close()
}

/// A socket that has a port which the policy would not let it bind is in the list, too; and on a node that keeps to its
/// policy the list is empty.
#[test]
fn ports_that_are_taken_are_named() -> Result<()> {
    let lab = Lab::builder().build()?;
    let policy = PolicyText::default();
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let clean = enforcer(&lab, &["preflight", "--require-clean"])?.checked()?;
    ensure!(
        clean
            .stdout
            .contains("nothing that is open now would be cut"),
        "{clean}"
    );
    agent.stop()?.checked()?;
    let squatter = lab.login("cp1").serve(Serve {
        tcp: vec![CP1.at(port::ETCD_CLIENT)],
        ..Serve::default()
    })?;
    let file = written(&lab, &policy)?;
    let about = ["--node", "cp1", "-p", &file];
    let preflight = preflight_of(&lab, &about)?;
    let listeners = preflight["listeners"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    ensure!(
        listeners.len() == 1
            && listeners[0]["port"] == port::ETCD_CLIENT
            && listeners[0]["willBeRefused"] == true,
        "{preflight:#}"
    );
    let refused = enforcer(&lab, &[&["run", "--require-clean"][..], &about].concat())?;
    ensure!(
        refused.code() == Some(2)
            && refused
                .stderr
                .contains("1 socket would not get its port again"),
        "{refused}"
    );
    drop(squatter);
    lab.close()
}

/// Over a real SSH server: the policy is refused; with the flag it cuts the session, and the deadline brings it back.
#[test]
fn who_cuts_himself_off_has_to_say_so() -> Result<()> {
    let lab = Lab::builder().cluster().services().build()?;
    let admin = lab.login("admin");
    let to = W1.at(port::SSH);
    let policy = PolicyText::default();
    let agent = Agent::start_with(&lab, "w1", &policy, &["--manual"])?;
    let cutting = PolicyText {
        other_traffic: "Drop",
        disable: vec!["admin-to-node"],
        ..policy
    };
    fs::write(agent.policy(), cutting.yaml(&lab))?;
    let enforcer = tools::enforcer()?.path;
    let over_ssh = |arguments: &str| {
        let command = format!("{} {arguments}", enforcer.display());
        ssh::run(&lab, &admin, to, &command)
    };
    let generation = agent.generation()?;
    let refused = over_ssh("apply")?;
    ensure!(
        refused.code() == Some(2) && refused.stderr.contains("--allow-session-cut"),
        "{refused}"
    );
    ensure!(agent.generation()? == generation, "it was applied");
    let seen = over_ssh(&format!(
        "preflight --node w1 -p {} -o json",
        agent.policy().display()
    ))?;
    let own = findings(&json(&seen.checked()?)?);
    ensure!(own.iter().any(|found| found["session"] == true), "{own:#?}");
    // Where the end that opened it is visible as well, in a pod's namespace, it is still one's own.
    let command = format!("{} apply", enforcer.display());
    let from_pod = ssh::run(&lab, lab.pod("pod-b"), to, &command)?;
    ensure!(
        from_pod.code() == Some(2) && from_pod.stderr.contains("--allow-session-cut"),
        "{from_pod}"
    );
    // With the flag, the answer comes when the policy before is in force again.
    let cut = over_ssh("apply --allow-session-cut --confirm-within 3s")?.checked()?;
    ensure!(
        cut.stdout.contains("unless `enforcer confirm` comes"),
        "{cut}"
    );
    let denial = agent.event(|event| event.port == Some(port::SSH))?;
    ensure!(denial.verdict == "denied", "{denial:?}");
    ensure!(over_ssh("status")?.ok(), "after the deadline");
    agent.stop()?.checked()?;
    lab.close()
}
