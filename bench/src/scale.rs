//! What more nodes cost: from a policy's text to the tables of one node and of all, and the agent's memory.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use enforcer_policy::compile::{Compiler, PathNumbers};
use enforcer_tests::plan::CP1;
use enforcer_tests::product::Agent;
use enforcer_tests::{Lab, tools};

use crate::Effort;
use crate::life::{memory, ms, read};
use crate::measure::Measures;
use crate::policy::Family;

pub const NODES: &str = "A policy for many nodes";
pub const EVERYTHING: &str = "The same, with 1,000 paths of its own and 100,000 addresses";

/// A cluster of so many nodes, each with addresses of both families and networks of its own for its pods.
#[derive(Debug, Clone, Copy)]
struct Cluster {
    nodes: u16,
    paths: u16,
    addresses: u32,
}

impl Cluster {
    /// Its policy. The first node is the lab's `cp1`.
    fn yaml(self, lab: &str) -> String {
        let mut text = String::from(
            "apiVersion: enforcer.dev/v1alpha1\nkind: Inventory\nmetadata: { name: many }\nspec:\n  nodes:\n",
        );
        for number in 0..self.nodes {
            let (mut name, mut more) = (format!("n{number}"), String::new());
            let mut v4 =
                Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + u32::from(number));
            let mut v6 = Ipv6Addr::new(0xfd50, 0, 0, 0, 0, 0, 0, number);
            if number == 0 {
                name = "cp1".to_owned();
                more = format!(", cgroupRoot: /{lab}/cp1");
                (v4, v6) = (CP1.v4, CP1.v6);
            }
            let roles = if number < 3 {
                "control-plane, etcd"
            } else {
                "worker"
            };
            let [high, low] = number.to_be_bytes();
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "    {name}: {{ addresses: [{v4}, \"{v6}\"], roles: [{roles}], uplinks: [eth0], podInterfaces: ['cali*'], \
                 podNetworks: [100.{}.{low}.0/24, \"fd51:0:0:{number:x}::/64\"]{more} }}",
                64 + high
            );
        }
        text.push_str(
            "  podNetworks: [100.64.0.0/10, \"fd51::/32\"]
  serviceNetworks: [10.96.0.0/12]
  services: { \"apiserver:secure\": [\"10.96.0.1:443\"], \"dns:dns\": [\"10.96.0.10:53\"] }
  components:
    etcd: { cgroups: [/system.slice/etcd.service] }
    kubelet: { cgroups: [/system.slice/kubelet.service] }
    pods: { cgroups: [/kubepods.slice] }
    admin: { addresses: [198.51.100.0/24] }
    server:
      runsOn: [worker]
      ports:
        any: any/tcp
",
        );
        for number in 0..self.paths {
            let _ = writeln!(text, "        p{number}: {}/tcp", 20_000 + number);
        }
        text.push_str("    many:\n      addresses:\n      - 198.51.100.1\n");
        for number in 0..self.addresses {
            let _ = writeln!(text, "      - {}", Family::V4.one_of_many(number));
        }
        text.push_str(
            "---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: many }
spec:
  profile: control-plane-stacked-etcd
  mode: Enforce
  otherTraffic: Allow
  paths:
  - { name: all, from: [many], to: 'server:any', because: measured }
",
        );
        for number in 0..self.paths {
            let from = if number % 2 == 0 { "admin" } else { "many" };
            let _ = writeln!(
                text,
                "  - {{ name: path-{number}, from: [{from}], to: 'server:p{number}', because: measured }}"
            );
        }
        text
    }
}

/// All of that.
pub fn scale(measures: &mut Measures, effort: &Effort) -> Result<()> {
    let lab = Lab::builder().build()?;
    let file = lab.directory().join("many.yaml");
    for &nodes in effort.nodes {
        for (group, paths, addresses) in [(NODES, 0, 0), (EVERYTHING, 1000, 100_000)] {
            let cluster = Cluster {
                nodes,
                paths,
                addresses,
            };
            let text = cluster.yaml(&lab.id().lab_name());
            fs::write(&file, &text).context("failed to write the policy")?;
            let subject = format!("{nodes} nodes");
            let mut add = |what: &str, unit: &str, value: f64| {
                measures.add(group, what, &subject, unit, value);
            };
            for _ in 0..effort.rounds.min(3) {
                of_text(text.clone(), &mut add)?;
                let (took, most) = checked(&file)?;
                add("`enforcer check`, for all nodes", "ms", took);
                add("its memory at most", "MiB", most);
            }
            let agent = Agent::start_on_file(&lab, "cp1", &file)?;
            let (resident, maps) = memory(agent.running().pid())?;
            add("the agent's resident memory", "MiB", resident);
            add("memory of its maps", "MiB", maps);
            agent.stop()?.checked()?;
        }
    }
    Ok(())
}

/// From a text to tables, within this process.
fn of_text(text: String, add: &mut dyn FnMut(&str, &str, f64)) -> Result<()> {
    let began = Instant::now();
    let policy = read(text)?;
    add("read", "ms", ms(began));
    let began = Instant::now();
    let compiler = Compiler::new(&policy)?;
    let compiled = compiler.compile("cp1", None, &mut PathNumbers::default())?;
    add("compile for one node", "ms", ms(began));
    let began = Instant::now();
    for (node, first) in compiler.alike().into_iter().enumerate() {
        if node == first {
            let name = &policy.nodes[node].name;
            compiler.compile(name, None, &mut PathNumbers::default())?;
        }
    }
    add("and then for all", "ms", ms(began));
    let settings = compiled.settings;
    for (what, count) in [
        ("sets of components", settings.parties),
        ("sets of endpoints", settings.targets),
        ("classes of ports", settings.classes),
    ] {
        add(what, "", f64::from(count));
    }
    Ok(())
}

/// How long a check for all nodes takes, in milliseconds, and what it has in memory at most, in MiB.
fn checked(file: &Path) -> Result<(f64, f64)> {
    // The kernel takes what a process had before it ran a program for a part of the program's most: so one asks that has
    // nothing.
    let output = Command::new(env::current_exe()?)
        .arg("weigh")
        .arg(file)
        .output()
        .context("failed to weigh the check")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "failed to weigh the check: {said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs a check, and prints how long it took and its memory.
pub fn weigh(file: &Path) -> Result<()> {
    let began = Instant::now();
    let child = Command::new(tools::enforcer()?.path)
        .args(["check", "-p"])
        .arg(file)
        .stdout(Stdio::null())
        .spawn()
        .context("failed to run the check")?;
    let mut status = 0;
    // SAFETY: a structure of numbers, for which zeroes are as good as any.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id().cast_signed();
    // SAFETY: the kernel writes into both, which live on. The child is waited for here and nowhere else.
    let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let took = ms(began);
    ensure!(ended == pid && status == 0, "the check failed: {status:#x}");
    // The kernel reports it in KiB.
    let most = usage.ru_maxrss as f64 / 1024.0;
    println!("{}", serde_json::to_string(&(took, most))?);
    Ok(())
}
