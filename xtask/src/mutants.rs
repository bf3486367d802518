//! `cargo xtask mutants`: breaks the product's behaviour in small ways, one at a time and in a copy, and checks that
//! the tests notice. If none notices a change, a test is missing.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{copy::copy_tree, setup, shell};

/// A small change: the file, the text to replace, and its replacement.
struct Mutant {
    what: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const DECIDE: &str = "enforcer-common/src/decide.rs";
const PARSE: &str = "enforcer-common/src/parse.rs";
const JUDGE: &str = "enforcer-common/src/judge.rs";
const VANTAGE: &str = "enforcer-common/src/vantage.rs";
const DENIAL: &str = "enforcer-common/src/denial.rs";
const CACHE: &str = "enforcer-common/src/cache.rs";
const TLS: &str = "enforcer-common/src/tls.rs";
const OFFLOAD: &str = "enforcer-common/src/offload.rs";
const MARK: &str = "enforcer-common/src/mark.rs";
const VERDICTS: &str = "enforcer-policy/src/compile/verdicts.rs";
const PARTIES: &str = "enforcer-policy/src/compile/parties.rs";
const GROUND: &str = "enforcer-policy/src/compile/ground.rs";

#[rustfmt::skip]
const MUTANTS: [Mutant; 51] = [
    Mutant { what: "a neighbour may use this node's address", file: JUDGE, from: "Role::Uplink => src.is(AddressInfo::OWN),", to: "Role::Uplink => false," },
    Mutant { what: "a record names the client for who holds its port", file: DENIAL, from: "        View::Received { receiver, .. } if key.reason == Reason::ForeignListener.code() => receiver,\n", to: "" },
    Mutant { what: "a record takes an answer for one to this node", file: DENIAL, from: "matches!(role, Role::Loopback) || !is_reply", to: "true" },
    Mutant { what: "a pod may use a node's address", file: JUDGE, from: "Role::Pod if src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE) => true,", to: "Role::Pod if src.is(AddressInfo::OWN) => true," },
    Mutant { what: "loopback addresses come over the wire", file: JUDGE, from: "    if packet.src.is_loopback() || packet.dst.is_loopback() {\n        return denied(Reason::LoopbackOffLo);\n    }\n", to: "" },
    Mutant { what: "a stolen pod address counts", file: JUDGE, from: "src.is(AddressInfo::NAMED) && is_route_back()", to: "src.is(AddressInfo::NAMED)" },
    Mutant { what: "the kernel's replies count as a process's", file: JUDGE, from: "Origin::KernelSocket => settings.local as Party,", to: "Origin::KernelSocket => cgroup," },
    Mutant { what: "another namespace's socket may use a node's address", file: JUDGE, from: "    if src.is(AddressInfo::OWN | AddressInfo::OTHER_NODE) {\n        return denied(settings, Reason::ForgedSource);\n    }\n    let from = sender_by_cgroup", to: "    let from = sender_by_cgroup" },
    Mutant { what: "anybody listens on a component's port", file: JUDGE, from: "    is_foreign.then(", to: "    (is_foreign && ports.destination == 0).then(" },
    Mutant { what: "a packet from an uplink is never checked for an offload", file: JUDGE, from: "!carried.is_judged() || matches!(entered, Entered::ByUplink(_))", to: "!carried.is_judged() && matches!(entered, Entered::FromPod)" },
    Mutant { what: "data comes through with a SYN", file: JUDGE, from: "matches!(vantage.view(), View::Left { .. }) && carried.is_fast_open()", to: "false" },
    Mutant { what: "a lock is checked in either direction", file: JUDGE, from: "View::Left { .. } => matches!(verdict.direction(), Direction::Reply),", to: "View::Left { .. } => true," },
    Mutant { what: "dry-run reports twice", file: JUDGE, from: "matches!(role, Role::Loopback) || carried.is_reported()", to: "matches!(role, Role::Loopback)" },
    Mutant { what: "dry-run reports what is forwarded twice", file: JUDGE, from: "(verdict.passes() && carried.is_reported()),", to: "(verdict.passes() && !carried.is_judged())," },
    Mutant { what: "a packet is judged twice at its socket", file: VANTAGE, from: "judged: facts & 4 != 0,", to: "judged: false," },
    Mutant { what: "lo is any interface", file: VANTAGE, from: "on_lo: facts & 8 != 0,", to: "on_lo: false," },
    Mutant { what: "a verdict holds at every hook", file: CACHE, from: "u16::from(vantage.head()) << 8", to: "u16::from(vantage.head() >> 7) << 8" },
    Mutant { what: "UDP is refused at once like TCP", file: DECIDE, from: "PortKind::Udp => verdict.is_guarded_denial(),", to: "PortKind::Udp => verdict.is_denied()," },
    Mutant { what: "a SYN may match a path backwards", file: DECIDE, from: "    if matches!(phase, Phase::Opening) {\n        return forward;\n    }\n", to: "    if matches!(phase, Phase::Opening) {\n        let approach = Approach { from: ends.to, at: ends.src, port_kind, number: source };\n        return either(forward, toward(tables, settings, &approach).back());\n    }\n" },
    Mutant { what: "a segment must match a path forwards", file: DECIDE, from: "Phase::Following => either(forward, back),", to: "Phase::Following => forward," },
    Mutant { what: "an echo reply is a request", file: DECIDE, from: "Phase::Answer => back,", to: "Phase::Answer => forward," },
    Mutant { what: "a wide path makes anything a reply", file: DECIDE, from: "    if forward.is_guarded_denial() || back.is_guarded_denial() {", to: "    if forward.is_guarded_denial() && back.is_guarded_denial() {" },
    Mutant { what: "later fragments always pass", file: DECIDE, from: "if tables.related(settings, from, to) || tables.related(settings, to, from) {", to: "if true || tables.related(settings, from, to) || tables.related(settings, to, from) {" },
    Mutant { what: "a process may use another node's address", file: JUDGE, from: "    if src.is(AddressInfo::OTHER_NODE) {\n        return denied(settings, Reason::ForgedSource);\n    }\n", to: "" },
    Mutant { what: "a wildcard is no address of this node", file: DECIDE, from: "        settings.own as Party\n    } else {\n        received_at(", to: "        tables.address_info(addr).party\n    } else {\n        received_at(" },
    Mutant { what: "a wide path opens guarded ports", file: VERDICTS, from: "            endpoints.retain(|e| self.component(*e).guard);\n", to: "" },
    Mutant { what: "loopback only is for everybody", file: VERDICTS, from: "        target.loopback || !(route.path.loopback || self.port(route.to).loopback_only)", to: "        let _ = (route, target);\n        true" },
    Mutant { what: "a service may be on the same node", file: VERDICTS, from: "(Locality::SameNode, _, Unknown) => !target.is_virtual,", to: "(Locality::SameNode, _, Unknown) => true," },
    Mutant { what: "anybody may take a component's port", file: VERDICTS, from: "            } else if foreign {", to: "            } else if foreign && by.process && !by.process {" },
    Mutant { what: "outside is everywhere", file: PARTIES, from: "        if crowd.is_outside(declared) {", to: "        if !loopback {" },
    Mutant { what: "a TCP fragment may write over the flags", file: PARSE, from: "if network.protocol == TCP && network.fragment_offset == 1 {", to: "if network.protocol == TCP && network.fragment_offset == 9999 {" },
    Mutant { what: "one extension header less is read", file: PARSE, from: "if position == MAX_EXTENSION_HEADERS ||", to: "if position == MAX_EXTENSION_HEADERS - 1 ||" },
    Mutant { what: "an authentication header has the length of others", file: PARSE, from: "AUTHENTICATION => (usize::from(len) + 2) * 4,", to: "AUTHENTICATION => (usize::from(len) + 1) * 8," },
    Mutant { what: "three VLAN tags are read", file: PARSE, from: "for _ in 0..2 {", to: "for _ in 0..3 {" },
    Mutant { what: "a mapped address may be a destination", file: PARSE, from: "if src.is_v4() || dst.is_v4() {", to: "if src.is_v4() {" },
    Mutant { what: "a source quench is no error", file: PARSE, from: "ICMP => matches!(kind, 3 | 4 | 11 | 12),", to: "ICMP => matches!(kind, 3 | 11 | 12)," },
    Mutant { what: "ports may be in the padding", file: PARSE, from: "if network.offset + N > network.end {", to: "if network.offset > network.end {" },
    Mutant { what: "SYN and ACK opens", file: PARSE, from: "flags & (TCP_SYN | TCP_ACK) == TCP_SYN;", to: "flags & TCP_SYN == TCP_SYN;" },
    Mutant { what: "an error may quote what its receiver never sent", file: PARSE, from: "if source != packet.dst {", to: "if source == packet.quoted_dst {" },
    Mutant { what: "a lock counts though another path has none", file: VERDICTS, from: "as_narrow.find(|r| !r.path.tls).or(Some(first))", to: "as_narrow.find(|r| r.path.tls).or(Some(first))" },
    Mutant { what: "a ServerHello opens a stream", file: TLS, from: "5 => byte == 1,", to: "5 => matches!(byte, 1 | 2)," },
    Mutant { what: "urgent data is read with the rest", file: TLS, from: "    if segment.is_urgent() {\n        return false;\n    }\n", to: "" },
    Mutant { what: "a checksum may be written anywhere", file: OFFLOAD, from: "PortKind::Tcp => start == transport && field == transport + TCP,", to: "PortKind::Tcp => start == transport," },
    Mutant { what: "what nobody judged came by an uplink", file: MARK, from: "        if !self.is_judged() {\n            return Entered::FromPod;\n        }\n", to: "" },
    Mutant { what: "the mark forgets the path", file: MARK, from: "Some(path) if self.0 & Self::KNOWN == 0 && path < Self::NUMBER => {", to: "Some(path) if self.0 & Self::KNOWN != 0 && path < Self::NUMBER => {" },
    Mutant { what: "a verdict outlives its policy", file: CACHE, from: "            && self.epoch == key.stamp.epoch\n            && self.src", to: "            && self.src" },
    Mutant { what: "a verdict outlives its tick", file: CACHE, from: "self.tick == key.stamp.tick\n            && self.how", to: "self.how" },
    Mutant { what: "a cached verdict is used for another key", file: CACHE, from: "            && self.number_and_ports == key.number_and_ports\n", to: "" },
    Mutant { what: "nobody counts as what he is part of", file: GROUND, from: "            if all.insert(index) {", to: "            if all.insert(index) && index > self.wholes.len() {" },
    Mutant { what: "two other nodes are one node", file: VERDICTS, from: "(Locality::Any, ..) | (Locality::SameNode, Here, Here) => true,", to: "(Locality::Any, ..) | (Locality::SameNode, Here, Here) | (Locality::SameNode, OtherNode, OtherNode) => true," },
    Mutant { what: "another node's pods are here", file: PARTIES, from: "                Some(_) => Whereabouts::OtherNode,", to: "                Some(_) => Whereabouts::Here," },
];

/// Options of `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those with this text in their description or in the path of the file that they change
    #[arg(value_name = "TEXT")]
    only: Option<String>,
}

impl Args {
    fn wants(&self, mutant: &Mutant) -> bool {
        let wanted = self.only.as_deref().unwrap_or_default();
        mutant.what.contains(wanted) || mutant.file.contains(wanted)
    }
}

/// Breaks, tests and reports. Fails if a change goes unnoticed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(|one| args.wants(one)).collect();
    ensure!(!mutants.is_empty(), "there is no such mutant");
    setup::ensure(&[setup::Part::Toolchain])?;
    let tree = shell::target_dir().join("mutants").join("tree");
    copy_tree(&tree)?;
    ensure!(
        is_noticed(&tree)?.is_none(),
        "the tests fail on the unchanged tree"
    );
    let mut missed = 0;
    for &mutant in &mutants {
        let file = tree.join(mutant.file);
        let text = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
        if !text.contains(mutant.from) {
            bail!(
                "`{}` is not in {} any more: change the mutant `{}` with it",
                mutant.from,
                mutant.file,
                mutant.what
            );
        }
        fs::write(&file, text.replacen(mutant.from, mutant.to, 1))
            .with_context(|| format!("failed to write {}", file.display()))?;
        let noticed = is_noticed(&tree)?;
        fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))?;
        match noticed {
            Some(by) => println!("mutant: {} … noticed by {by}", mutant.what),
            None => {
                missed += 1;
                println!("mutant: {} … MISSED", mutant.what);
            }
        }
    }
    println!("{} mutants, {missed} missed", mutants.len());
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The first of the fast tests that fails, if any.
fn is_noticed(tree: &Path) -> Result<Option<&'static str>> {
    let log = shell::log_path("mutants")?;
    for (name, arguments) in [
        // First those that build without the kernel programs: they take seconds, the last one a
        // minute.
        (
            "the reader's and the lock's own tests",
            &["test", "-p", "enforcer-common"][..],
        ),
        (
            "the policy's own tests",
            &["test", "-p", "enforcer-policy"][..],
        ),
        (
            "the oracle",
            &["test", "-p", "enforcer-tests", "--test", "oracle"][..],
        ),
    ] {
        let mut cargo = shell::cargo();
        cargo.current_dir(tree).args(arguments).env(
            "CARGO_TARGET_DIR",
            shell::target_dir().join("mutants").join("target"),
        );
        if !shell::run_logged(&mut cargo, &log)? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            ensure!(
                text.contains("test result: FAILED"),
                "a mutant does not build:\n{}",
                shell::failure(&log)
            );
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text to replace must occur exactly once.
    #[test]
    fn each_text_to_replace_occurs_once() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for mutant in &MUTANTS {
            let text = fs::read_to_string(tree.join(mutant.file)).unwrap();
            let places = text.matches(mutant.from).count();
            assert_eq!(places, 1, "{}: {}", mutant.what, mutant.file);
        }
    }
}
