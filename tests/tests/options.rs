//! Socket options that would let a socket bypass every hook: which hooks see that they are set.

use anyhow::{Result, ensure};
use enforcer_tests::probe::{Call, Probe, Ring};
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload};

fn asks(workload: &Workload, call: Call) -> Result<Outcome> {
    let report = workload.probe(&Probe::Ring(Ring { call }))?;
    Ok(report.outcome)
}

/// The cgroup hook does not see 32-bit calls. If the kernel has BPF among its security modules,
/// such a call is refused like any other; if not, the status warns about it.
#[test]
fn a_32_bit_setsockopt_call_is_refused_or_warned_about() -> Result<()> {
    let lab = Lab::builder().build()?;
    let intruder = lab.hostnet("cp1");
    ensure!(asks(&intruder, Call::Native)?.worked(), "without a policy");
    if !asks(&intruder, Call::Compat)?.worked() {
        eprintln!("skipped: this kernel takes no 32-bit system calls");
        return lab.close();
    }
    let agent = Agent::start(&lab, "cp1", &PolicyText::default())?;
    let status = agent.status()?;
    let texts = |field: &str| -> Vec<String> {
        let all = status[field].as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let features = texts("kernel");
    for feature in &features {
        println!("\nfeature: {feature}");
    }
    let sees_all = features.iter().any(|text| text.contains("(BPF LSM)"));
    let warned = texts("warnings")
        .iter()
        .any(|text| text.contains("32-bit setsockopt calls"));
    ensure!(sees_all != warned, "{status:#}");
    ensure!(asks(&intruder, Call::Native)? == Outcome::Eperm, "native");
    let compat = asks(&intruder, Call::Compat)?;
    if sees_all {
        ensure!(compat == Outcome::Eperm, "{compat:?}");
    } else {
        ensure!(compat.worked(), "{compat:?}: then the warning is wrong");
    }
    let event = agent.event(|event| event.reason == "BypassesHooks")?;
    ensure!(event.subject.name.ends_with("hostnet"), "{event:?}");
    let asked = if sees_all { 2 } else { 1 };
    ensure!(agent.denied("BypassesHooks")? == (asked, 0), "{event:?}");
    // Whatever a pod's own socket sends leaves through the pod's interface.
    for call in [Call::Native, Call::Compat] {
        ensure!(asks(lab.pod("pod-a"), call)?.worked(), "a pod, {call:?}");
    }
    lab.close()
}
