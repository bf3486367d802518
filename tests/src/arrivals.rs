//! Counts what TC lets through to a host: after TC, before sockets and their cgroups.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::net;
use crate::packet::{Content, Forged};
use crate::process::run_tool;
use crate::workload::Workload;

const TABLE: &str = "lab-arrivals";

/// A counter of certain packets, at one of nftables' hooks.
#[derive(Debug)]
pub struct Arrivals {
    workload: Workload,
    family: &'static str,
    chain: String,
}

impl Arrivals {
    /// Starts to count packets from an address to an address and port, of TCP or UDP.
    pub fn count(workload: &Workload, from: IpAddr, to: SocketAddr) -> Result<Self> {
        let chain = format!("from-{}-{}", from, to).replace(['.', ':', '[', ']'], "-");
        let family = if to.is_ipv4() { "ip" } else { "ip6" };
        let rules = format!(
            "table inet {TABLE} {{ chain {chain} {{ type filter hook input priority -300;
               {family} saddr {from} {family} daddr {} th dport {} counter\n}}\n}}\n",
            to.ip(),
            to.port()
        );
        Self::with(workload, "inet", chain, &rules)
    }

    /// Starts to count packets with the addresses and protocol of this one, before the host decides
    /// whether they are for it, including those to groups that it is not in.
    pub fn like(workload: &Workload, packet: &Forged) -> Result<Self> {
        let (from, to) = (packet.source.ip(), packet.destination.ip());
        let protocol = match &packet.content {
            Content::Protocol(number) => *number,
            Content::Udp { .. } => 17,
            Content::Tcp { .. } => 6,
            Content::Echo | Content::Message(_) if to.is_ipv4() => 1,
            Content::Echo | Content::Message(_) => 58,
        };
        let chain = format!("like-{protocol}-{from}-{to}").replace(['.', ':'], "-");
        let family = if to.is_ipv4() { "ip" } else { "ip6" };
        // Created anew, so that it counts from zero.
        let rules = format!(
            "add table inet {TABLE}
             add chain inet {TABLE} {chain} {{ type filter hook prerouting priority -300; }}
             flush chain inet {TABLE} {chain}
             add rule inet {TABLE} {chain} {family} saddr {from} {family} daddr {to} meta l4proto {protocol} counter\n"
        );
        Self::with(workload, "inet", chain, &rules)
    }

    /// Starts to count what an nftables expression matches, at the input hook: packets that the
    /// host accepts as its own, reassembled if they were fragmented.
    pub fn matching(workload: &Workload, name: &str, expression: &str) -> Result<Self> {
        let chain = format!("input-{name}");
        let rules = format!(
            "table inet {TABLE} {{ chain {chain} {{ type filter hook input priority -300;
               {expression} counter\n}}\n}}\n"
        );
        Self::with(workload, "inet", chain, &rules)
    }

    /// The same, right after TC ingress of an interface: frames as they are, including those that
    /// the kernel would discard later.
    pub fn on_device(
        workload: &Workload,
        device: &str,
        name: &str,
        expression: &str,
    ) -> Result<Self> {
        let chain = format!("device-{name}");
        let rules = format!(
            "table netdev {TABLE} {{ chain {chain} {{ type filter hook ingress device \"{device}\" priority 0;
               {expression} counter\n}}\n}}\n"
        );
        Self::with(workload, "netdev", chain, &rules)
    }

    fn with(workload: &Workload, family: &'static str, chain: String, rules: &str) -> Result<Self> {
        net::nft(workload.namespace().name(), rules)?;
        Ok(Self {
            workload: workload.clone(),
            family,
            chain,
        })
    }

    /// How many packets arrived so far.
    pub fn so_far(&self) -> Result<u64> {
        let mut command = net::command("nft")?;
        command.args(["-j", "list", "chain", self.family, TABLE, &self.chain]);
        let listing = self
            .workload
            .namespace()
            .within(|| run_tool(command, ""))??;
        let listing: Value = serde_json::from_str(&listing).context("nft wrote no JSON")?;
        find_counter(&listing).context("nft's listing holds no counter")
    }
}

fn find_counter(value: &Value) -> Option<u64> {
    match value {
        Value::Object(fields) => fields
            .get("counter")
            .and_then(|counter| counter.get("packets")?.as_u64())
            .or_else(|| fields.values().find_map(find_counter)),
        Value::Array(items) => items.iter().find_map(find_counter),
        _ => None,
    }
}
