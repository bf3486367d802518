//! Explanations compared with the shipped policies and with what a node does.

use std::{fs, path::Path};

use super::*;
use crate::{
    PolicyErrors, SourceText, cases,
    compile::{PathNumbers, compile},
    from_texts, render,
};

fn read(file: &Path) -> SourceText {
    SourceText {
        name: file.display().to_string(),
        text: fs::read_to_string(file).unwrap(),
    }
}

fn read_cases(file: &Path) -> Result<Vec<PathCases>, PolicyErrors> {
    cases::from_texts(&[read(file)])
}

/// There is a policy for each profile, and it gives the verdicts of the cases beside it; those of
/// `NAME.drop.cases.yaml` with all other traffic dropped.
#[test]
fn shipped_policies_hold_their_cases() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let names = Catalogue::builtin().profiles().iter();
    for (name, drop) in names.flat_map(|p| [(&p.name, false), (&p.name, true)]) {
        let mut source = read(&directory.join(format!("{name}.yaml")));
        let mut cases = "cases";
        if drop {
            let text = &mut source.text;
            assert!(text.contains("otherTraffic: Allow"), "{name}");
            *text = text.replace("otherTraffic: Allow", "otherTraffic: Drop");
            cases = "drop.cases";
        }
        let policy = from_texts(&[source]).unwrap();
        for file in read_cases(&directory.join(format!("{name}.{cases}.yaml"))).unwrap() {
            file.check(&policy, &reason_names()).unwrap();
            let node = &file.node.value;
            let compiled = compile(&policy, node, None, &mut PathNumbers::default()).unwrap();
            let results = run_cases(&policy, &compiled, &file);
            assert!(results.len() >= 8, "{name} has few cases");
            for result in results {
                assert!(result.passed, "{result:?}");
            }
        }
    }
}

/// The first comment of its policy says what a folder of `tests/situations` is about. `cases.yaml` has the expected
/// verdicts, and each line of `says.txt` must be in the output of `check`: an error, a note or a broad sender.
#[test]
fn situations_come_out_right() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/situations");
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let folder = entry.unwrap().path();
        count += 1;
        if let Err(failure) = situation(&folder) {
            failures.push(format!("{}: {failure}", folder.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count >= 30, "{count} situations");
}

fn situation(folder: &Path) -> Result<(), String> {
    let (cases, says) = (folder.join("cases.yaml"), folder.join("says.txt"));
    if !cases.exists() && !says.exists() {
        return Err("nothing is expected of it".to_owned());
    }
    let loaded = from_texts(&[read(&folder.join("policy.yaml"))]);
    let said = match &loaded {
        Ok(policy) => render::brief(policy),
        Err(error) => error.to_string(),
    };
    if says.exists() {
        let expected = fs::read_to_string(&says).map_err(|error| error.to_string())?;
        for line in expected.lines() {
            if !said.contains(line) {
                return Err(format!("check does not say `{line}` but:\n{said}"));
            }
        }
    }
    if !cases.exists() {
        // Without cases, the situation is about the policy being refused.
        return loaded.map_or(Ok(()), |_| Err("it is not refused".to_owned()));
    }
    let policy = loaded.map_err(|error| error.to_string())?;
    for file in read_cases(&cases).map_err(|error| error.to_string())? {
        let checked = file.check(&policy, &reason_names());
        checked.map_err(|error| error.to_string())?;
        let compiled = compile(&policy, &file.node.value, None, &mut PathNumbers::default());
        let compiled = compiled.map_err(|error| error.to_string())?;
        let results = run_cases(&policy, &compiled, &file);
        if let Some(failed) = results.iter().find(|result| !result.passed) {
            return Err(format!("{failed:?}"));
        }
    }
    Ok(())
}

const SHARED: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: shared }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11], roles: [control-plane, etcd], podNetworks: [10.244.0.0/24] }
    w1: { addresses: [10.0.0.21], roles: [worker], podNetworks: [10.244.1.0/24] }
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/16]
  services: { 'apiserver:secure': ['10.96.0.1:443'] }
  components:
    apiserver: { cgroups: [/apiserver] }
    etcd: { cgroups: [/etcd] }
    kubelet: { cgroups: [/kubelet] }
    pods: { cgroups: [/pods] }
    load-balancer: { addresses: [10.0.0.5] }
    admin: { addresses: [192.0.2.7] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: shared }
spec: { profile: control-plane-stacked-etcd, options: [load-balancer], mode: Enforce, otherTraffic: Allow }
";

/// What a node's socket receives counts as the node's, whatever the address is declared as. A policy does not say who
/// has a shared address or a service's, so both verdicts are given.
#[test]
fn an_address_that_the_node_may_have_is_answered_both_ways() {
    let source = SourceText {
        name: "p.yaml".to_owned(),
        text: SHARED.to_owned(),
    };
    let policy = from_texts(&[source]).unwrap();
    let compiled = |node| compile(&policy, node, None, &mut PathNumbers::default()).unwrap();
    let (cp1, w1) = (compiled("cp1"), compiled("w1"));
    let ask = |compiled: &Compiled, from: &str, to: &str, at| {
        let from = match from.split_once(' ') {
            Some(("pod", address)) => Sender::Pod(address.parse().unwrap()),
            Some(("address", address)) => Sender::Remote(address.parse().unwrap()),
            _ => Sender::Process {
                cgroup: from.to_owned(),
                address: None,
            },
        };
        let to = cases::target(to).unwrap();
        let found = explain(&policy, compiled, &from, Attempt::Send(to), at).unwrap();
        let verdict = found.reason.map(|reason| reason.to_string()).or(found.path);
        let said = verdict.unwrap_or_else(|| "other".to_owned());
        (
            said,
            found.endpoints.join(","),
            found.note.unwrap_or_default(),
        )
    };
    use At::{Elsewhere, ThisNode};
    for (from, to, at, verdict, endpoint, note) in [
        (
            "pod 10.244.0.9",
            "10.0.0.5:2379/tcp",
            None,
            "NoPath",
            "etcd:client",
            "10.0.0.5 is not an address of cp1 itself: allowed as other traffic",
        ),
        (
            "address 203.0.113.7",
            "10.0.0.5:2379/tcp",
            None,
            "NoPath",
            "etcd:client",
            "allowed as other traffic",
        ),
        (
            "/pods/x",
            "10.0.0.5:2379/tcp",
            None,
            "WrongProcess",
            "etcd:client",
            "allowed as other traffic",
        ),
        (
            "pod 10.244.0.9",
            "10.0.0.5:2379/tcp",
            Some(ThisNode),
            "NoPath",
            "etcd:client",
            "",
        ),
        (
            "pod 10.244.0.9",
            "10.0.0.5:2379/tcp",
            Some(Elsewhere),
            "other",
            "",
            "",
        ),
        (
            "pod 10.244.0.9",
            "10.0.0.5:6443/tcp",
            None,
            "client-to-load-balancer",
            "load-balancer:api",
            "",
        ),
        // Not an address of a particular host: this node forwards at most.
        (
            "pod 10.244.0.9",
            "192.0.2.7:2379/tcp",
            None,
            "other",
            "",
            "",
        ),
        (
            "pod 10.244.0.9",
            "10.96.44.4:2379/tcp",
            None,
            "pod-to-pod",
            "world:any,pods:any",
            "10.96.44.4 is an address of cp1 itself: denied: NoPath",
        ),
        (
            "pod 10.244.0.9",
            "10.96.44.4:2379/tcp",
            Some(ThisNode),
            "NoPath",
            "etcd:client",
            "",
        ),
    ] {
        let found = ask(&cp1, from, to, at);
        assert_eq!(found.0, verdict, "{from} to {to} {at:?}: {found:?}");
        assert!(
            endpoint.is_empty() || found.1 == endpoint,
            "{from} to {to} {at:?}: {found:?}"
        );
        assert!(found.2.contains(note), "{from} to {to} {at:?}: {found:?}");
        assert_eq!(
            note.is_empty(),
            !found.2.contains("itself"),
            "{from} to {to} {at:?}: {found:?}"
        );
    }
    // Packets that this node never sees.
    for (node, from, to, note) in [
        (
            &cp1,
            "pod 10.244.1.9",
            "10.0.0.11:6443/tcp",
            "pods of w1 have their addresses there",
        ),
        (
            &cp1,
            "address 10.244.0.9",
            "10.0.0.11:6443/tcp",
            "pods of cp1 itself",
        ),
        (
            &cp1,
            "address 10.96.0.1",
            "10.0.0.11:6443/tcp",
            "nobody sends from there",
        ),
        (
            &cp1,
            "address 10.0.0.21",
            "203.0.113.9:443/tcp",
            "only if it forwards it",
        ),
        (
            &w1,
            "/etcd",
            "10.0.0.11:6443/tcp",
            "that of etcd, which does not run on w1",
        ),
    ] {
        let found = ask(node, from, to, None);
        assert!(found.2.contains(note), "{from} to {to}: {found:?}");
    }
}

/// An undeclared process does not mean that a component is missing.
#[test]
fn what_needs_a_cgroup_is_nobody_before_it_has_one() {
    let judge = |text: &str, from: &str, to: &str| {
        let source = SourceText {
            name: "p.yaml".to_owned(),
            text: text.to_owned(),
        };
        let policy = from_texts(&[source]).unwrap();
        let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
        let from = Sender::Process {
            cgroup: from.to_owned(),
            address: None,
        };
        let to = Attempt::Send(cases::target(to).unwrap());
        let found = explain(&policy, &compiled, &from, to, None).unwrap();
        found
            .reason
            .map(|reason| reason.to_string())
            .or(found.path)
            .unwrap_or_default()
    };
    let unit = "/system.slice/x.service";
    // An undeclared controller manager and scheduler: a node can not do without them.
    assert_eq!(
        judge(SHARED, unit, "127.0.0.1:6443/tcp"),
        "controller-manager-to-apiserver"
    );
    let declared = SHARED.replace(
        "    pods:",
        "    controller-manager: { cgroups: [/kcm] }\n    scheduler: { cgroups: [/ks] }\n    pods:",
    );
    assert_eq!(judge(&declared, unit, "127.0.0.1:6443/tcp"), "WrongProcess");
    assert_eq!(judge(&declared, unit, "10.0.0.5:6443/tcp"), "WrongProcess");
    let ccm = declared.replace(
        "    pods:",
        "    cloud-controller-manager: { cgroups: [/system.slice/x.service] }\n    pods:",
    );
    assert_eq!(
        judge(&ccm, unit, "127.0.0.1:6443/tcp"),
        "cloud-controller-manager-to-apiserver"
    );
    let open = declared.replace(
        "    pods:",
        "    kube-proxy: { needsCgroup: false }\n    pods:",
    );
    assert_eq!(
        judge(&open, unit, "127.0.0.1:6443/tcp"),
        "kube-proxy-to-apiserver"
    );
    // Node ports on loopback, which kube-proxy may serve itself, are the node's as before.
    let ports = declared.replace(
        "options: [load-balancer]",
        "options: [load-balancer, node-ports]",
    );
    assert_eq!(judge(&ports, unit, "127.0.0.1:30080/tcp"), "node-ports");
    assert_eq!(
        judge(&ports, unit, "10.244.1.9:8080/tcp"),
        "service-forwarding"
    );
}

/// A case that expects something else fails: the test above can fail.
#[test]
fn a_wrong_expectation_is_found() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let policy = from_texts(&[read(&directory.join("control-plane-stacked-etcd.yaml"))]).unwrap();
    let text = "apiVersion: enforcer.dev/v1alpha1\nkind: PathCases\nmetadata: { name: x }\nspec:\n  \
                    node: cp1\n  cases:\n    - name: wrong\n      from: { pod: 10.244.1.5 }\n      \
                    to: 10.0.0.11:2379/tcp\n      expect: { allowed: pod-to-apiserver }\n";
    let source = SourceText {
        name: "x".to_owned(),
        text: text.to_owned(),
    };
    let files = cases::from_texts(&[source]).unwrap();
    let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
    let results = run_cases(&policy, &compiled, &files[0]);
    assert!(!results[0].passed, "{results:?}");
}
