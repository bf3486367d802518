//! A policy's own tests.

use std::net::IpAddr;

use super::{Row, SMALL, check_rows, good, said};
use crate::cases::{
    Attempt, Expect, PathCases, Sender, What, from_texts, from_texts_within, target,
};
use crate::read::limits::{LIMITS, Limits};
use crate::{PolicyErrors, SourceText};

/// Every form a case can have.
pub(super) const GOOD: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: PathCases
metadata: { name: small }
spec:
  node: cp1
  cases:
    - name: a pod to etcd
      from: { pod: 10.244.0.5 }
      to: 10.0.0.11:2379/tcp
      expect: { denied: NoPath, endpoint: etcd:client }
      because: no pod reaches etcd
    - name: backup
      from: { address: 192.0.2.7 }
      to: 10.0.0.11:2379/tcp
      expect: { allowed: backup-to-etcd }
    - name: own socket
      from: { cgroup: /kubepods.slice/x, address: fd00::11 }
      to: '[fd00::11]:53/udp'
      expect: { allowed: otherTraffic }
    - name: binding
      from: { cgroup: /kubepods.slice }
      bind: 0.0.0.0:8080/tcp
      expect: { denied: BindNotLoopback }
    - name: ping
      from: { address: 10.0.0.21 }
      to: 10.0.0.11 echo
      at: ThisNode
      expect: { allowed: echo-from-node }
";

fn read(text: &str) -> Result<Vec<PathCases>, PolicyErrors> {
    from_texts(&[SourceText {
        name: "p.cases.yaml".to_owned(),
        text: text.to_owned(),
    }])
}

#[test]
fn a_document_has_room_for_so_many_cases() {
    let read = |cases| {
        let text = GOOD.to_owned();
        let name = "p.cases.yaml".to_owned();
        from_texts_within(&[SourceText { name, text }], &Limits { cases, ..LIMITS })
    };
    assert!(read(5).is_ok());
    let errors = said(&read(4).expect_err("one too many"));
    assert!(
        errors.starts_with("24:13 PathCases of 5 cases; 4 is the most"),
        "{errors}"
    );
}

#[test]
fn every_form_is_understood() {
    let cases = read(GOOD)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .remove(0);
    assert_eq!(
        (cases.name.as_str(), cases.node.value.as_str()),
        ("small", "cp1")
    );
    assert_eq!(cases.cases.len(), 5);
    let pod: IpAddr = "10.244.0.5".parse().unwrap();
    assert_eq!(cases.cases[0].from, Sender::Pod(pod));
    assert_eq!(
        cases.cases[0].because.as_deref(),
        Some("no pod reaches etcd")
    );
    assert_eq!(cases.cases[0].attempt_span.line, 9);
    let Expect::Denied { reason, endpoint } = &cases.cases[0].expect else {
        panic!("denied")
    };
    assert_eq!((reason.value.as_str(), reason.span.line), ("NoPath", 10));
    assert_eq!(
        endpoint.as_ref().unwrap().value,
        ("etcd".to_owned(), "client".to_owned())
    );
    let Sender::Process { cgroup, address } = &cases.cases[2].from else {
        panic!("a process")
    };
    assert_eq!(
        (cgroup.as_str(), address.is_some()),
        ("/kubepods.slice/x", true)
    );
    assert_eq!(cases.cases[2].expect, Expect::OtherTraffic);
    assert!(matches!(cases.cases[3].attempt, Attempt::Bind(bind) if bind.what == What::Tcp(8080)));
    assert!(matches!(cases.cases[4].attempt, Attempt::Send(ping) if ping.what == What::Icmp(8)));
    cases
        .check(&good(SMALL), &["NoPath", "BindNotLoopback"])
        .unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn targets_read_and_print() {
    for (text, what) in [
        ("10.0.0.11:2379/tcp", What::Tcp(2379)),
        ("0.0.0.0:8080/tcp", What::Tcp(8080)),
        ("[fd00::11]:53/udp", What::Udp(53)),
        ("10.0.0.11 echo", What::Icmp(8)),
        ("fd00::11 echo", What::Icmp6(128)),
        ("10.0.0.11 3/icmp", What::Icmp(3)),
        ("fd00::11 135/icmpv6", What::Icmp6(135)),
        ("10.0.0.11 112/ip", What::Protocol(112)),
        ("10.0.0.11 arp", What::Arp),
    ] {
        let read = target(text).unwrap_or_else(|problem| panic!("{text}: {problem:?}"));
        assert_eq!((read.what, read.to_string().as_str()), (what, text));
    }
}

#[test]
fn errors() {
    check_rows(GOOD, ERRORS, |text| read(text).map(drop));
    let none = GOOD.split_once("  cases:\n").unwrap().0;
    assert!(said(&read(none).unwrap_err()).contains("4:1 there are no cases"));
    assert!(
        said(&read(SMALL).unwrap_err()).contains("2:7 a file of cases holds nothing but PathCases")
    );
}

#[test]
fn names_are_checked_against_the_policy() {
    let policy = good(SMALL);
    check_rows(GOOD, NAMES, |text| {
        read(text)?
            .remove(0)
            .check(&policy, &["NoPath", "BindNotLoopback"])
    });
}

#[rustfmt::skip]
const ERRORS: &[Row] = &[
    ("kind: PathCases", "kind: »PathCase", "did you mean `PathCases`?"),
    ("node: cp1", "»nodes: cp1", "did you mean `node`?"),
    ("node: cp1", "node: »CP", "no name for a node"),
    ("name: backup\n", "name: binding\n", "20:13 … a second case is called `binding`"),
    ("name: backup\n", "name: »''\n", "the name is empty"),
    ("{ pod: 10.244.0.5 }", "»{}", "a case has one sender … { pod: IP }"),
    ("{ pod: 10.244.0.5 }", "»{ pod: 10.244.0.5, cgroup: /a }", "a case has one sender"),
    ("{ pod: 10.244.0.5 }", "{ pod: »10.244.0 }", "is not an IP address"),
    ("{ pod: 10.244.0.5 }", "{ »pods: 10.244.0.5 }", "did you mean `pod`?"),
    ("cgroup: /kubepods.slice/x", "cgroup: »kubepods.slice", "is not an absolute path"),
    ("      to: 10.0.0.11:2379/tcp\n", "", "7:13 … a case tries one thing … write `to`, or `bind`"),
    ("to: 10.0.0.11:2379/tcp", "to: 10.0.0.11:2379/tcp\n      bind: »0.0.0.0:1/tcp", "one thing"),
    ("to: 10.0.0.11:2379/tcp", "to: »10.0.0.11:2379", "is no target … `10.0.0.11:2379/tcp`"),
    ("to: 10.0.0.11:2379/tcp", "to: »10.0.0.11:0/tcp", "out of range"),
    ("to: 10.0.0.11:2379/tcp", "to: »fd00::11:2379/tcp", "is no target … [fd00::11]:53/udp"),
    ("to: 10.0.0.11:2379/tcp", "to: »'[fd00::11]:2379/tcp'", "one is IPv4 and one IPv6"),
    ("to: 10.0.0.11:2379/tcp", "to: »'[::ffff:10.0.0.11]:2379/tcp'", "IPv4 in the form of IPv6"),
    ("10.0.0.11 echo", "»10.0.0.11 135/icmpv6", "does not go with 10.0.0.11"),
    ("10.0.0.11 echo", "»10.0.0.11 pong", "write `echo`"),
    ("10.0.0.11 echo", "»10.0.0.11 6/ip", "has a name of its own"),
    ("bind: 0.0.0.0:8080/tcp", "bind: »10.0.0.11 echo", "what is bound is a TCP or UDP port"),
    ("from: { cgroup: /kubepods.slice }", "from: »{ pod: 10.244.0.5 }", "only a process"),
    ("at: ThisNode", "at: »Here", "`Here` is no at; it is one of `ThisNode` and `Elsewhere`"),
    ("{ denied: BindNotLoopback }", "»{}", "a case expects one verdict"),
    ("{ denied: BindNotLoopback }", "»{ denied: A, allowed: b }", "a case expects one verdict"),
    ("{ allowed: otherTraffic }", "{ allowed: »OtherTraffic }", "no name for a path"),
    ("endpoint: etcd:client", "endpoint: »etcd", "`etcd` is no endpoint"),
];

#[rustfmt::skip]
const NAMES: &[Row] = &[
    ("node: cp1", "node: »cp2", "no node is called `cp2` … did you mean `cp1`?"),
    ("backup-to-etcd", "»backup-to-etc", "the policy has no path … did you mean `backup-to-etcd`?"),
    ("denied: NoPath", "denied: »Nopath", "no reason is called `Nopath` … did you mean `NoPath`?"),
    ("etcd:client", "»etdc:client", "did you mean `etcd`?"),
    ("etcd:client", "»etcd:cleint", "did you mean `client`?"),
];
