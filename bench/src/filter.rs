//! What is between the wire and a socket: nothing, the product, and its peers.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enforcer_tests::cgroup::mount_point;
use enforcer_tests::product::Agent;
use enforcer_tests::{Lab, net, tools};
use nix::net::if_::if_nametoindex;

use crate::beside::{Build, OtherAgent};
use crate::bpf::{Kind, Lines, Program};
use crate::frames;
use crate::policy::{Family, Scale};
use crate::veth;

/// A way to filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    Nothing,
    /// A TC program that has one answer for everything: the floor of this hook.
    EmptyTc,
    /// A TC program that drops everything after one load from a table of the size of the product's: the floor of any
    /// look-up.
    OneLine,
    /// Programs that let everything pass, at all hooks where the product judges packets: the floor of these.
    EmptyHooks,
    Enforcer,
    /// Another build of the product.
    Beside(Build),
    NftIngress,
    NftInput,
    IptablesSet,
    Iptables,
}

impl Filter {
    /// Whether it is another product.
    pub const fn is_peer(self) -> bool {
        matches!(
            self,
            Self::NftIngress | Self::NftInput | Self::IptablesSet | Self::Iptables
        )
    }

    /// As the tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::EmptyTc => "empty TC program",
            Self::OneLine => "one line of a table",
            Self::EmptyHooks => "empty programs",
            Self::Enforcer => "enforcer",
            Self::Beside(build) => build.name,
            Self::NftIngress => "nftables, ingress, no conntrack",
            Self::NftInput => "nftables, conntrack",
            Self::IptablesSet => "iptables, conntrack, ipset",
            Self::Iptables => "iptables, conntrack, rules",
        }
    }
}

/// A filter in force on the node of a lab of its own.
#[derive(Debug)]
pub struct Site {
    pub filter: Filter,
    /// The product, where it is that.
    pub agent: Option<Agent>,
    _other: Option<OtherAgent>,
    /// How long it took to put the rules in force, programs' start included.
    pub took: Duration,
    _links: Vec<OwnedFd>,
    pub lab: Lab,
}

/// The answer of the empty program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    Drops,
    LetsPass,
}

impl Site {
    /// Makes a lab and puts the filter in force there.
    pub fn build(filter: Filter, scale: Scale, empty: Empty) -> Result<Self> {
        let lab = Lab::builder().build()?;
        let namespace = lab.host("cp1").namespace().name().to_owned();
        receive_offload(&lab)?;
        // The lab translates service addresses, and so tracks connections on every node: that is no part of
        // what is compared.
        for node in ["cp1", "w1"] {
            net::nft(lab.host(node).namespace().name(), "flush ruleset")?;
        }
        let (mut agent, mut other, mut links) = (None, None, Vec::new());
        let mut took = Duration::ZERO;
        let mut clocked = |work: &mut dyn FnMut() -> Result<()>| {
            let began = Instant::now();
            work()?;
            took = began.elapsed();
            anyhow::Ok(())
        };
        match filter {
            Filter::Nothing => {}
            Filter::EmptyTc => {
                let answer = if empty == Empty::Drops { 2 } else { -1 };
                let program = Program::load(Kind::TcIngress, &frames::answer(answer))?;
                let attached = lab
                    .host("cp1")
                    .namespace()
                    .within(|| program.attach(if_nametoindex("eth0")?))?;
                links.push(attached?);
            }
            Filter::OneLine => {
                let lines = scale.lines();
                let table = Lines::create(lines)?;
                let is_v4 = scale.family == Family::V4;
                let program = frames::one_line(table.descriptor(), lines, is_v4);
                let program = Program::load(Kind::TcIngress, &program)?;
                let node = lab.host("cp1").namespace();
                links.push(node.within(|| program.attach(if_nametoindex("eth0")?))??);
            }
            Filter::EmptyHooks => links = empty_hooks(&lab)?,
            Filter::Enforcer => {
                let file = policy(scale, &lab)?;
                clocked(&mut || {
                    agent = Some(Agent::start_on_file(&lab, "cp1", &file)?);
                    Ok(())
                })?;
            }
            Filter::Beside(build) => {
                let file = policy(scale, &lab)?;
                other = Some(OtherAgent::start(build, &lab, &file)?);
            }
            Filter::NftIngress => {
                let rules = scale.nft_ingress();
                clocked(&mut || net::nft(&namespace, &rules))?;
            }
            Filter::NftInput => {
                let rules = scale.nft_input();
                clocked(&mut || net::nft(&namespace, &rules))?;
            }
            Filter::IptablesSet => {
                let (set, rules) = (scale.ipset(), scale.iptables_with_set());
                clocked(&mut || {
                    restore(&lab, "ipset", &["restore"], &set)?;
                    restore(&lab, iptables(scale.family), &[], &rules)
                })?;
            }
            Filter::Iptables => {
                let rules = scale.iptables();
                clocked(&mut || restore(&lab, iptables(scale.family), &[], &rules))?;
            }
        }
        Ok(Self {
            filter,
            agent,
            _other: other,
            took,
            _links: links,
            lab,
        })
    }
}

/// The product's policy, in a file.
fn policy(scale: Scale, lab: &Lab) -> Result<PathBuf> {
    let file = lab.directory().join("policy.yaml");
    fs::write(&file, scale.yaml(&lab.id().lab_name())).context("failed to write the policy")?;
    Ok(file)
}

/// Empty programs where the product has its own for packets of the node: at lo, at the uplink, and at its sockets.
fn empty_hooks(lab: &Lab) -> Result<Vec<OwnedFd>> {
    const CONTINUE: i32 = -1;
    const ALLOW: i32 = 1;
    let mut links = Vec::new();
    for (interface, kind) in [
        ("lo", Kind::TcEgress),
        ("eth0", Kind::TcIngress),
        ("eth0", Kind::TcEgress),
    ] {
        let program = Program::load(kind, &frames::answer(CONTINUE))?;
        let node = lab.host("cp1").namespace();
        links.push(node.within(|| program.attach(if_nametoindex(interface)?))??);
    }
    let cgroup = mount_point()?.join(lab.id().lab_name()).join("cp1");
    let cgroup = File::open(&cgroup).with_context(|| format!("no {}", cgroup.display()))?;
    for kind in [Kind::CgroupIngress, Kind::CgroupEgress] {
        let program = Program::load(kind, &frames::answer(ALLOW))?;
        // A descriptor is no negative number.
        links.push(program.attach(cgroup.as_raw_fd() as u32)?);
    }
    Ok(links)
}

/// The old interface of iptables is the faster one.
fn iptables(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-legacy-restore",
        Family::V6 => "ip6tables-legacy-restore",
    }
}

/// Whether all peers are on this machine; what is missing, if not.
pub fn missing() -> Vec<&'static str> {
    ["nft", "ipset", iptables(Family::V4), iptables(Family::V6)]
        .into_iter()
        .filter(|name| tools::find(name).is_err())
        .collect()
}

/// Feeds rules to a peer's own program, on the node.
fn restore(lab: &Lab, program: &str, args: &[&str], rules: &str) -> Result<()> {
    let file = lab.directory().join(program);
    fs::write(&file, rules).context("failed to write rules")?;
    let input = File::open(&file).context("failed to open rules")?;
    let place = lab.daemon("cp1", "bench");
    let ran = place
        .command(program)?
        .args(args)
        .input(input)
        .run_within(Duration::from_secs(120))?;
    ran.checked().map(drop)
}

/// A veth takes frames that are sent into it by BPF only where it has a queue of its own to receive
/// them by, which comes with generic receive offload.
fn receive_offload(lab: &Lab) -> Result<()> {
    lab.host("cp1")
        .namespace()
        .within(|| veth::receive_offload("eth0"))??;
    // Sources without a route back, so that nothing is answered.
    lab.host("cp1").namespace().set_sysctls(&[
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/eth0/rp_filter", "0"),
        ("ipv4/ip_local_port_range", "10000 65000"),
        ("ipv4/icmp_ratelimit", "1000"),
    ])?;
    Ok(())
}
