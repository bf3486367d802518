//! One of each document, for tests and for the page.

use enforcer_common::{packet::PortKind, record::Hook, tables::Role, verdict::Reason};
use enforcer_policy::{
    Policy, SourceText, cases,
    compile::{PathNumbers, compile},
    explain::{explain, reason_names, run_cases},
    from_texts,
    model::{Mode, OtherTraffic},
    render,
};
use serde::Serialize;

use crate::api::{
    Advice, Applied, AttachMethod, Attachment, Catalog, CheckResult, ComponentListing, Decision,
    DetachResult, Document, Effect, Error, ErrorCode, Event, Explanation, GroupListing, Kind,
    Listener, Lock, NodeReport, OpenConnection, OptionListing, PathCount, PathListing,
    PolicyProblem, PortListing, Preflight, Probing, Problem, ProfileListing, ReasonCount, Repaired,
    Request, RoleListing, Source, Sources, Status, Subject, SubjectKind, Table,
};

/// All documents in the order of the page, each as it is written.
pub fn all() -> Vec<(&'static str, String)> {
    fn written<T: Kind + Serialize>(body: T) -> (&'static str, String) {
        let document = serde_json::to_string_pretty(&Document::new(body));
        (T::KIND, document.unwrap())
    }
    let names: [String; 2] = ["controller-manager".to_owned(), "scheduler".to_owned()];
    vec![
        written(status()),
        written(event()),
        written(explanation()),
        written(check_result()),
        written(catalog(&names)),
        written(preflight()),
        written(Applied {
            policy: "control-plane".to_owned(),
            generation: 4,
            confirm_by: Some("2026-01-01T00:01:00.000Z".to_owned()),
            preflight: None,
        }),
        written(DetachResult { detached: true }),
        written(error()),
        written(Request::Events {
            follow: true,
            denied: false,
        }),
        written(sources()),
    ]
}

fn preflight() -> Preflight {
    Preflight {
        policy: "control-plane".to_owned(),
        node: "cp1".to_owned(),
        connections: 41,
        namespaces: 3,
        unseen: Vec::new(),
        findings: vec![OpenConnection {
            effect: Effect::Cut.into(),
            protocol: PortKind::Tcp.into(),
            source: "10.0.0.11".to_owned(),
            source_port: 41000,
            destination: "10.0.0.11".to_owned(),
            port: 2379,
            opened_by_process: true,
            pid: Some(42),
            comm: Some("etcdctl".to_owned()),
            cgroup: Some("/system.slice/backup.service".to_owned()),
            network_namespace: None,
            count: 1,
            source_components: vec!["node".to_owned()],
            endpoints: vec!["etcd:client".to_owned()],
            reason: Reason::WrongProcess.into(),
            sentence: Reason::WrongProcess.sentence().to_owned(),
            hook: Hook::CgroupEgress.into(),
            advice: Vec::new(),
            session: false,
        }],
        listeners: Vec::new(),
    }
}

/// The denial of a process.
/// One that says most of what an event can say.
pub fn event() -> Event {
    Event {
        verdict: Decision::Denied.into(),
        reason: Reason::NoPath.into(),
        sentence: "no path from this sender to this endpoint".to_owned(),
        endpoints: vec!["etcd:client".to_owned()],
        denial: String::new(),
        advice: Vec::new(),
        hook: Hook::Connect.into(),
        source: None,
        source_port: None,
        source_components: vec!["pods".to_owned()],
        destination: Some("127.0.0.1".to_owned()),
        port: Some(2379),
        protocol: Some(PortKind::Tcp.into()),
        reply: false,
        subject: Subject {
            kind: SubjectKind::Cgroup.into(),
            id: 7,
            name: "/kubepods.slice/a".to_owned(),
        },
        pid: Some(42),
        comm: Some("curl".to_owned()),
        count: 1,
        first_seen: "2026-01-01T00:00:00.000Z".to_owned(),
        last_seen: "2026-01-01T00:00:00.000Z".to_owned(),
        generation: 1,
    }
}

const POLICY: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: prod }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11], roles: [control-plane, etcd], uplinks: [eth0], podInterfaces: ['cali*'] }
  podNetworks: [10.244.0.0/16]
  components:
    backup: { addresses: [192.0.2.7/32] }
    etcd: { cgroups: [/system.slice/etcd.service] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: control-plane }
spec:
  mode: Enforce
  otherTraffic: Allow
  paths:
    - { name: backup-to-etcd, from: [backup], to: 'etcd:client', tls: Required, because: nightly snapshot }
";

const CASES: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: PathCases
metadata: { name: control-plane }
spec:
  node: cp1
  cases:
    - name: the backup reaches etcd
      from: { address: 192.0.2.7 }
      to: 10.0.0.11:2379/tcp
      expect: { allowed: backup-to-etcd }
";

fn source(text: &str) -> SourceText {
    SourceText {
        name: "policy.yaml".to_owned(),
        text: text.to_owned(),
    }
}

fn policy() -> Policy {
    from_texts(&[source(POLICY)]).unwrap_or_else(|errors| panic!("{errors}"))
}

fn explanation() -> Explanation {
    let policy = policy();
    let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
    let from = cases::Sender::Pod([10, 244, 0, 5].into());
    let to = cases::target("10.0.0.11:2379/tcp").unwrap();
    let mut explanation =
        explain(&policy, &compiled, &from, cases::Attempt::Send(to), None).unwrap();
    explanation.advice = vec![advice()];
    explanation
}

fn check_result() -> CheckResult {
    let policy = policy();
    let compiled = compile(&policy, "cp1", None, &mut PathNumbers::default()).unwrap();
    let cases = cases::from_texts(&[source(CASES)]).unwrap();
    cases[0].check(&policy, &reason_names()).unwrap();
    // As it is, without most of what the catalogue adds.
    let mut summary = render::summary(&policy);
    summary.digest = "0f5d".to_owned();
    summary
        .components
        .retain(|c| ["etcd", "backup"].contains(&c.name.as_str()));
    for node in &mut summary.nodes {
        node.components.truncate(3);
        node.processes_without_cgroup.truncate(2);
    }
    summary.wide_senders.truncate(1);
    summary.notes.truncate(1);
    CheckResult {
        valid: true,
        errors: Vec::new(),
        nodes: vec![NodeReport {
            node: compiled.node.clone(),
            prefixes: 21,
            parties: 14,
            port_classes: 19,
            targets: 17,
            notes: Vec::new(),
        }],
        cases: run_cases(&policy, &compiled, &cases[0]),
        policy: Some(summary),
    }
}

fn advice() -> Advice {
    Advice {
        path: "backup-to-etcd".to_owned(),
        symptom: "no snapshot is taken".to_owned(),
        remedy: "It is off: `enable: [backup-to-etcd]`.".to_owned(),
        wide: false,
    }
}

/// An agent with a bit of everything.
pub fn status() -> Status {
    let attachment = |hook: Hook, program: &str, place: &str, how: AttachMethod, role| Attachment {
        hook: hook.into(),
        program: program.to_owned(),
        place: place.to_owned(),
        how: how.into(),
        role,
    };
    Status {
        confirm_by: Some("2026-01-01T00:01:00.000Z".to_owned()),
        probing: Some(Probing {
            expected: 5,
            silent: vec!["replies on path kubelet-to-apiserver".to_owned()],
        }),
        rolled_back: Some(
            "generation 2 was taken back by request; generation 1 is in force again".to_owned(),
        ),
        node: "cp1".to_owned(),
        mode: Mode::Enforce.into(),
        other_traffic: OtherTraffic::Allow.into(),
        policy: "control-plane".to_owned(),
        digest: "0f5d".to_owned(),
        generation: 2,
        since: "2026-01-01T00:00:00.000Z".to_owned(),
        pid: 815,
        pinned_at: Some("/sys/fs/bpf/enforcer/5f3a90c1d2e4b607-1".to_owned()),
        attachments: vec![
            attachment(
                Hook::Connect,
                "enforcer_conn4",
                "/sys/fs/cgroup",
                AttachMethod::CgroupLink,
                None,
            ),
            attachment(
                Hook::TcIngress,
                "enforcer_tc_in",
                "eth0",
                AttachMethod::Tcx,
                Some(Role::Uplink.into()),
            ),
        ],
        cgroups: 7,
        notes: vec!["cgroup `/system.slice/x.service` of admin does not exist yet".to_owned()],
        warnings: Vec::new(),
        listeners: vec![Listener {
            protocol: PortKind::Tcp.into(),
            address: "0.0.0.0:10257".to_owned(),
            port: 10257,
            endpoints: vec!["controller-manager:secure".to_owned()],
            pid: Some(42),
            comm: Some("kube-controller".to_owned()),
            cgroup: "/kubepods.slice/a".to_owned(),
            reason: Reason::BindNotLoopback.into(),
            sentence: Reason::BindNotLoopback.sentence().to_owned(),
            will_be_refused: true,
        }],
        problems: vec![Problem {
            since: "2026-01-01T00:00:00.000Z".to_owned(),
            what: "interfaces cannot be listed".to_owned(),
        }],
        paths: vec![PathCount {
            name: "apiserver-to-etcd".to_owned(),
            forward: 1200,
            reply: 1180,
            elsewhere: false,
        }],
        reasons: vec![ReasonCount {
            reason: Reason::NoPath.into(),
            denied: 3,
            would_deny: 0,
        }],
        other_traffic_packets: 4711,
        later_fragments: 0,
        kept_verdicts: 12,
        cut_packets: 0,
        records_lost: 0,
        tables: vec![Table {
            name: "cgroups".to_owned(),
            entries: Some(7),
            capacity: 16_384,
            when_full: "a policy with more is refused".to_owned(),
        }],
        records_evicted: 0,
        last_error: None,
        last_error_since: None,
        repaired: Some(Repaired {
            broken_since: "2026-01-01T00:00:00.000Z".to_owned(),
            repaired_at: "2026-01-01T00:01:00.000Z".to_owned(),
            error: "unknown field `pots`".to_owned(),
        }),
        not_attached: None,
        kernel: vec!["TCX".to_owned()],
    }
}

fn error() -> Error {
    Error {
        errors: vec![PolicyProblem {
            file: "policy.yaml".to_owned(),
            line: Some(12),
            column: Some(7),
            message: "unknown field `pots`".to_owned(),
            help: Some("did you mean `ports`?".to_owned()),
        }],
        ..Error::new(ErrorCode::InvalidPolicy, "unknown field `pots`")
    }
}

fn sources() -> Sources {
    Sources {
        node: "cp1".to_owned(),
        mode_override: Some(Mode::DryRun.into()),
        sources: vec![Source {
            name: "policy.yaml".to_owned(),
            text: "apiVersion: …".to_owned(),
        }],
    }
}

fn catalog(names: &[String]) -> Catalog<'_> {
    Catalog {
        paths: vec![PathListing {
            name: "insecure-port",
            from: names,
            to: "apiserver:insecure".to_owned(),
            ports: vec!["8080/tcp".to_owned()],
            locks: vec![Lock::Loopback.into()],
            profiles: Vec::new(),
            enabled_by: vec!["insecure-port"],
            disabled_by: Vec::new(),
            because: "old components use it",
            document: "https://kubernetes.io/docs/",
            symptom: "they cannot reach the apiserver",
            since: "",
            until: "1.20",
        }],
        profiles: vec![ProfileListing {
            name: "worker",
            description: "A worker.",
            groups: &names[..0],
            paths: &names[..0],
            options: vec!["node-ports"],
            requires: &names[..0],
        }],
        options: vec![OptionListing {
            name: "insecure-port",
            description: "The apiserver's port 8080.",
            profiles: vec!["control-plane-single"],
            enable: &names[..0],
            disable: &names[..0],
            guard: &names[..0],
            outside: &names[..0],
            requires: &names[..0],
        }],
        groups: vec![GroupListing {
            name: "node",
            description: "What every node needs.",
            paths: &names[..0],
        }],
        components: vec![ComponentListing {
            name: "apiserver",
            description: "The apiserver.",
            r#where: "nodes of role control-plane".to_owned(),
            guard: true,
            needs_cgroup: false,
            programs: &names[..0],
            ports: vec![PortListing {
                name: "insecure",
                matches: vec!["8080/tcp".to_owned()],
                loopback_only: true,
                denial: "whoever reaches it owns the cluster",
            }],
        }],
        roles: vec![RoleListing {
            name: "worker",
            description: "A node that runs pods.",
        }],
    }
}
