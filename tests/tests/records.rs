//! A record says what was decided: the sender, the target, and the policy. It does not change when
//! the policy, the cgroup and the interface are gone.

use std::fs;

use anyhow::{Result, ensure};
use enforcer_tests::plan::{CP1, port};
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::{Lab, Outcome};

const CGROUP: &str = "kubepods.slice/visitor";

/// The policy with a component of that name for the visitor's cgroup.
fn policy(lab: &Lab, name: &str) -> String {
    let component = format!("  components:\n    {name}:\n      cgroups: [/{CGROUP}]\n");
    PolicyText::default()
        .yaml(lab)
        .replacen("  components:\n", &component, 1)
}

#[test]
fn a_denial_keeps_the_names_of_the_policy_that_made_it() -> Result<()> {
    let lab = Lab::builder().build()?;
    let visitor = lab.workload_in("cp1", CGROUP)?;
    let (client, peer) = (CP1.at(port::ETCD_CLIENT), CP1.at(port::ETCD_PEER));
    for to in [client, peer] {
        let outcome = visitor.connect(to)?;
        ensure!(outcome == Outcome::Refused, "twin: {outcome}");
    }
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, policy(&lab, "visitor"))?;
    let agent = Agent::start_on_file(&lab, "cp1", &file)?;
    ensure!(visitor.connect(client)? == Outcome::Eperm);
    let to = |port: u16| move |event: &Event| event.port == Some(port);
    let first = agent.event(to(port::ETCD_CLIENT))?;
    ensure!(
        first.source_components == ["world", "visitor"] && first.generation == 1,
        "{first:?}"
    );

    agent.write_policy(&policy(&lab, "guest"))?;
    while agent.generation()? == 1 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    ensure!(visitor.connect(client)? == Outcome::Eperm);
    ensure!(visitor.connect(peer)? == Outcome::Eperm);
    let second = agent.event(to(port::ETCD_PEER))?;
    ensure!(
        second.source_components == ["world", "guest"] && second.generation == 2,
        "{second:?}"
    );
    // Then a policy without the component and the endpoint, with the cgroup removed.
    agent.write_policy(&PolicyText::default().yaml(&lab))?;
    while agent.generation()? == 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::remove_dir(visitor.cgroup().directory())?;
    for (before, name) in [(first, "visitor"), (second, "guest")] {
        let port = before.port.unwrap_or_default();
        let now = agent.event(to(port))?;
        ensure!(
            now.source_components == ["world", name]
                && now.endpoint == before.endpoint
                && now.generation == before.generation
                && now.subject.name == format!("/{CGROUP}"),
            "{before:?}: {now:?}"
        );
    }
    let listed = agent.command(&["events"])?.checked()?.stdout;
    ensure!(
        !listed.contains("gone") && listed.contains("(etcd:client)"),
        "{listed}"
    );
    agent.stop()?.checked()?;
    lab.close()
}
