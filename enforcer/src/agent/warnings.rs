//! What about this node and its kernel weakens the policy. Each warning says what to do.
//!
//! [`of_node`] collects all of them; a new kind is a function of its own and a line there.

use std::{fs, net::IpAddr, path::Path};

use enforcer_common::{
    addr::Ip,
    decide,
    packet::PortKind,
    tables::{NOBODY, Party, Tables as _},
    verdict::Verdict,
};
use enforcer_policy::compile::{Compiled, Simulator};

/// All warnings, for the status and the log.
///
/// `sees_all_options`: whether the programs see every `setsockopt` call.
pub(super) fn of_node(compiled: &Compiled, sees_all_options: bool) -> Vec<String> {
    let mut warnings: Vec<String> = ephemeral_ports(compiled).into_iter().collect();
    if !sees_all_options && takes_32_bit_calls() {
        warnings.push(BYPASS_BY_32_BIT_CALLS.to_owned());
    }
    warnings
}

const BYPASS_BY_32_BIT_CALLS: &str = "a process with CAP_NET_RAW in this node's network namespace can send frames \
    that bypass every hook: the kernel hides 32-bit setsockopt calls (PACKET_QDISC_BYPASS, XDP_TX_RING) from cgroup \
    programs. Such frames are dropped on lo; those that leave by an uplink are seen by nobody here. Boot with `bpf` in \
    the list of security modules (lsm=…,bpf; CONFIG_BPF_LSM), or without 32-bit system calls (ia32_emulation=0, Linux 6.7)";

/// Whether this kernel accepts system calls of 32-bit programs, as far as that can be seen.
fn takes_32_bit_calls() -> bool {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    // The file exists if IA32 emulation was built in (arch/x86/entry/vdso/vdso32-setup.c).
    Path::new("/proc/sys/abi/vsyscall32").exists() && !is_emulation_off(&command_line)
}

/// Whether the boot parameters switch IA32 emulation off. The last one counts.
fn is_emulation_off(command_line: &str) -> bool {
    let last = command_line
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("ia32_emulation="));
    last.is_some_and(|value| matches!(value, "0" | "n" | "N" | "no" | "off" | "false"))
}

/// Ports that a component of this node binds, but that the kernel may already have assigned to a
/// socket that did not ask for a specific one.
fn ephemeral_ports(compiled: &Compiled) -> Option<String> {
    let read = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let reserved = read("ip_local_reserved_ports");
    let found = unreserved(compiled, &read("ip_local_port_range"), &reserved);
    let ports = [(PortKind::Udp, "udp"), (PortKind::Tcp, "tcp")].map(|(port_kind, name)| {
        let ports = found.iter().filter(|(found, _)| *found == port_kind);
        let ranges = ranges(ports.map(|(_, port)| *port));
        (!ranges.is_empty()).then(|| format!("{name} {ranges}"))
    });
    let ports = ports
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" and ");
    if ports.is_empty() {
        return None;
    }
    let mut all: Vec<u16> = found.into_iter().map(|(_, port)| port).collect();
    all.sort_unstable();
    all.dedup();
    let all = ranges(all.into_iter());
    let reserved = match reserved.trim() {
        "" => all,
        before => format!("{before},{all}"),
    };
    Some(format!(
        "the kernel may give {ports} to any socket as an ephemeral port, and what is sent to a component of this \
         node would reach it: reserve it (sysctl -w net.ipv4.ip_local_reserved_ports={reserved})"
    ))
}

/// Guarded ports of this node that are in the ephemeral range.
fn unreserved(compiled: &Compiled, range: &str, reserved: &str) -> Vec<(PortKind, u16)> {
    let mut range = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (range.next(), range.next()) else {
        return Vec::new();
    };
    let reserved = parsed(reserved);
    let is_reserved = |port: u16| reserved.iter().any(|(a, b)| (*a..=*b).contains(&port));
    let tables = Simulator::new(compiled);
    let settings = &compiled.settings;
    // Party numbers, widened for the kernel's sake.
    let (anybody, own) = (settings.undeclared_process as Party, settings.own as Party);
    let every_address = Ip::from(IpAddr::from([0, 0, 0, 0]));
    // Not everybody may bind it; or, if nobody knows who binds it, not everybody may send there.
    let is_guarded = |port_kind, port| {
        let target = tables
            .class(port_kind, port)
            .and_then(|class| tables.target(settings, own, class));
        let packet = target.and_then(|target| tables.entry(settings, NOBODY, target));
        packet.is_some_and(Verdict::is_guarded_denial)
            || decide::binding(&tables, anybody, &every_address, port_kind, port)
                .is_guarded_denial()
    };
    let ports = (first..=last).filter(|port| !is_reserved(*port));
    ports
        .flat_map(|port| [(PortKind::Udp, port), (PortKind::Tcp, port)])
        .filter(|(port_kind, port)| is_guarded(*port_kind, *port))
        .collect()
}

/// Parses `8080,9148-9150` into pairs.
fn parsed(list: &str) -> Vec<(u16, u16)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    list.split(',').filter_map(range).collect()
}

/// The reverse, for ports in ascending order.
fn ranges(ports: impl Iterator<Item = u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use enforcer_policy::{
        SourceText,
        compile::{PathNumbers, compile},
        from_texts,
    };

    #[test]
    fn the_last_boot_parameter_decides_about_emulation() {
        for (line, off) in [
            ("quiet ia32_emulation=0", true),
            ("ia32_emulation=off ia32_emulation=on", false),
            ("ia32_emulation=on ia32_emulation=false quiet", true),
            ("quiet", false),
            ("xia32_emulation=0", false),
        ] {
            assert_eq!(is_emulation_off(line), off, "{line}");
        }
    }

    #[test]
    fn guarded_ephemeral_ports_are_reported() {
        let text = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    n1: { addresses: [10.0.0.1], roles: [worker] }
  podNetworks: [10.244.0.0/16]
  serviceNetworks: [10.96.0.0/16]
  services:
    apiserver:secure: ['10.96.0.1:443']
  components:
    wireguard:
      partOf: [node]
      runsOn: [worker]
      guard: true
      ports: { tunnel: 51820/udp }
    agent:
      partOf: [node]
      runsOn: [worker]
      guard: true
      cgroups: [/system.slice/agent.service]
      ports: { api: 40000/tcp }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: test }
spec:
  profile: worker
  mode: Enforce
  otherTraffic: Allow
  paths:
    - { name: wg, from: [wireguard], to: wireguard:tunnel, because: of it }
";
        let source = SourceText {
            name: "p.yaml".to_owned(),
            text: text.to_owned(),
        };
        let policy = from_texts(&[source]).unwrap_or_else(|errors| panic!("{errors}"));
        let compiled = compile(&policy, "n1", None, &mut PathNumbers::default()).unwrap();
        let of = |range, reserved| unreserved(&compiled, range, reserved);
        let [udp, tcp] = [(PortKind::Udp, 51820), (PortKind::Tcp, 40000)];
        assert_eq!(of("32768\t60999\n", "\n"), [tcp, udp]);
        assert_eq!(of("32768\t60999\n", "51000-52000,8080\n"), [tcp]);
        assert_eq!(of("52000 60999", ""), []);
        assert_eq!(of("", ""), []);
    }

    #[test]
    fn ports_are_written_as_the_kernel_takes_them() {
        let ports = [1, 2, 3, 7, 9, 10, u16::MAX];
        assert_eq!(ranges(ports.into_iter()), "1-3,7,9-10,65535");
        assert_eq!(parsed("1-3,7,9-10\n"), [(1, 3), (7, 7), (9, 10)]);
        assert_eq!(ranges([].into_iter()), "");
    }
}
