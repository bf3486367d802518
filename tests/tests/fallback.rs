//! A kernel that refuses the programs: rules of nftables hold the guarded ports by address, and it is said what they do not hold.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use enforcer_tests::plan::{CP1, LOOPBACK, W1, port};
use enforcer_tests::process::Ran;
use enforcer_tests::product::{Agent, PolicyText};
use enforcer_tests::{Lab, Outcome, Workload, tools};
use nix::errno::Errno;

/// `BPF_PROG_LOAD` of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const PROG_LOAD: u32 = 5;

fn enforcer(lab: &Lab, args: &[&str]) -> Result<Ran> {
    let place = lab.daemon("cp1", "enforcer");
    place.command_of(&tools::enforcer()?)?.args(args).run()
}

/// An agent on cp1 whose programs the verifier refuses. It ends.
fn refused_agent(lab: &Lab, policy: &PolicyText, more: &[&str]) -> Result<Ran> {
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, policy.yaml(lab))?;
    let ran = lab
        .daemon("cp1", "enforcer")
        .command_of(&tools::enforcer()?)?
        .args(["run", "--node", "cp1", "-p"])
        .arg(&file)
        .args(more)
        .refused_with(libc::SYS_bpf, PROG_LOAD, Errno::EACCES)
        .run()?;
    ensure!(ran.code() == Some(2), "{ran}");
    Ok(ran)
}

/// Who tries what, and whether the rules may let it through.
fn tries(lab: &Lab) -> Vec<(&'static str, Workload, SocketAddr, bool)> {
    let (etcd, secure) = (CP1.at(port::ETCD_CLIENT), CP1.at(port::APISERVER));
    let kubelet = W1.at(port::KUBELET);
    vec![
        ("a pod to etcd", lab.pod("pod-a").clone(), etcd, false),
        (
            "a pod to etcd, IPv6",
            lab.pod("pod-a").clone(),
            CP1.at6(port::ETCD_CLIENT),
            false,
        ),
        (
            "a pod of another node to etcd",
            lab.pod("pod-b").clone(),
            etcd,
            false,
        ),
        ("a worker to etcd", lab.login("w1"), etcd, false),
        ("a neighbour to etcd", lab.neighbour(), etcd, false),
        (
            "a neighbour to etcd, IPv6",
            lab.neighbour(),
            CP1.at6(port::ETCD_CLIENT),
            false,
        ),
        (
            "a pod to the apiserver",
            lab.pod("pod-a").clone(),
            secure,
            true,
        ),
        ("a worker to the apiserver", lab.login("w1"), secure, true),
        ("the apiserver to etcd", lab.apiserver(), etcd, true),
        ("the apiserver to a kubelet", lab.apiserver(), kubelet, true),
        (
            "a pod through this node to a kubelet",
            lab.pod("pod-a").clone(),
            kubelet,
            false,
        ),
        (
            "a worker to another port",
            lab.login("w1"),
            CP1.at(port::ECHO),
            true,
        ),
    ]
}

fn all(lab: &Lab, is_held: bool) -> Result<()> {
    for (who, place, to, allowed) in tries(lab) {
        let outcome = place.connect(to)?;
        let wanted = if allowed || !is_held {
            Outcome::Connected
        } else {
            Outcome::Timeout
        };
        ensure!(outcome == wanted, "{who}: {outcome}, held: {is_held}");
    }
    Ok(())
}

#[test]
fn guarded_ports_are_held_by_address() -> Result<()> {
    let lab = Lab::builder().full().build()?;
    let policy = PolicyText::default();
    // Without rules all of them get through, so what fails below fails by them.
    all(&lab, false)?;
    for (mode, held) in [("--dry-run", false), ("--if-refused=leave", false)] {
        let ran = refused_agent(&lab, &policy, &[mode])?;
        ensure!(
            ran.stderr.contains("failed to load the kernel programs"),
            "{ran}"
        );
        all(&lab, held)?;
    }
    let ran = refused_agent(&lab, &policy, &[])?;
    for part in [
        "the policy is not enforced",
        "nftables holds",
        "2379/tcp",
        "6443/tcp",
        "neither what processes of this node send",
        "failed to load the kernel programs",
    ] {
        ensure!(ran.stderr.contains(part), "{part} is not in {ran}");
    }
    all(&lab, true)?;
    // Once more, as systemd does: the same.
    refused_agent(&lab, &policy, &[])?;
    all(&lab, true)?;
    // What was held is not, once the policy or the option says so.
    for option in ["--dry-run", "--if-refused=leave"] {
        refused_agent(&lab, &policy, &[option])?;
        all(&lab, false)?;
        refused_agent(&lab, &policy, &[])?;
        all(&lab, true)?;
    }
    // What it does not hold, it says; and it is so.
    let process = lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(process == Outcome::Connected, "{process}");
    let status = enforcer(&lab, &["status", "-o", "json"])?;
    ensure!(
        status.code() == Some(2) && status.stderr.contains("FallbackOnly"),
        "{status}"
    );

    // The programs are taken again: they hold the ports, and the rules go.
    let agent = Agent::start(&lab, "cp1", &policy)?;
    let process = lab.hostnet("cp1").connect(LOOPBACK.at(port::INSECURE))?;
    ensure!(process == Outcome::Eperm, "{process}");
    all(&lab, true)?;
    let tables = lab.login("cp1").run("nft", ["list", "tables"])?.checked()?;
    ensure!(!tables.stdout.contains("enforcer"), "{tables}");
    // Pinned programs are better than rules: what is in force stays, and there are no rules beside it.
    agent.kill()?;
    fs::remove_file(lab.directory().join("policy.yaml"))?;
    let other = PolicyText {
        disable: vec!["insecure-port"],
        ..policy
    };
    let ran = refused_agent(&lab, &other, &[])?;
    ensure!(!ran.stderr.contains("nftables"), "{ran}");
    all(&lab, true)?;
    enforcer(&lab, &["detach"])?.checked()?;
    all(&lab, false)?;
    lab.close()
}

#[test]
fn they_can_be_closed_to_everybody_and_detach_opens_them() -> Result<()> {
    let lab = Lab::builder().full().build()?;
    let policy = PolicyText::default();
    let secure = CP1.at(port::APISERVER);
    ensure!(
        lab.login("w1").connect(secure)? == Outcome::Connected,
        "before"
    );
    refused_agent(&lab, &policy, &["--if-refused", "close"])?;
    let outcome = lab.login("w1").connect(secure)?;
    ensure!(outcome == Outcome::Timeout, "closed: {outcome}");
    // Over lo, and where nothing is guarded.
    for (place, to) in [
        (lab.apiserver(), CP1.at(port::ETCD_CLIENT)),
        (lab.login("w1"), CP1.at(port::ECHO)),
    ] {
        let outcome = place.connect(to)?;
        ensure!(outcome == Outcome::Connected, "{to}: {outcome}");
    }
    let said = enforcer(&lab, &["detach"])?.checked()?;
    ensure!(said.stdout.contains("detached"), "{said}");
    ensure!(
        lab.login("w1").connect(secure)? == Outcome::Connected,
        "detached"
    );
    let said = enforcer(&lab, &["status"])?;
    ensure!(said.stderr.contains("no agent runs here (/"), "{said}");
    lab.close()
}

/// Hides nftables from what it starts, in its own view of the file system.
const WITHOUT_NFT: &str = "mount --bind /dev/null \"$(command -v nft)\" && exec \"$@\"";

/// Without nftables nothing holds the ports, and that is said.
#[test]
fn without_nftables_it_says_that_they_are_open() -> Result<()> {
    let lab = Lab::builder().build()?;
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, PolicyText::default().yaml(&lab))?;
    let ran = lab
        .daemon("cp1", "enforcer")
        .command("unshare")?
        .args(["--mount", "sh", "-c", WITHOUT_NFT, "sh"])
        .arg(tools::enforcer()?.path)
        .args(["run", "--node", "cp1", "-p"])
        .arg(&file)
        .refused_with(libc::SYS_bpf, PROG_LOAD, Errno::EACCES)
        .run()?;
    ensure!(
        ran.code() == Some(2) && ran.stderr.contains("The guarded ports are OPEN"),
        "{ran}"
    );
    lab.close()
}
