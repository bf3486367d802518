//! The product in the lab: agents on its hosts, and what they report.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::patience::patient;
use crate::tools::Tool;
use crate::{Lab, Ran, Running, Workload, tools};

/// How long an agent may take from its start until it answers, on a busy machine.
const START: Duration = Duration::from_secs(20);
/// How long it may take until the agent's answers reflect the kernel's state.
const SOON: Duration = Duration::from_secs(3);

/// The policy for a lab: together with the inventory, two documents.
#[derive(Debug, Clone)]
pub struct PolicyText {
    /// The profile.
    pub profile: &'static str,
    /// Options of the profile.
    pub options: Vec<&'static str>,
    /// Additional documented paths.
    pub enable: Vec<&'static str>,
    /// An inventory to use instead of the lab's own.
    pub inventory: Option<String>,
    /// `DryRun` or `Enforce`.
    pub mode: &'static str,
    /// `Allow` or `Drop`.
    pub other_traffic: &'static str,
    /// Paths of the profile that are left out.
    pub disable: Vec<&'static str>,
    /// More of `spec`, indented by two.
    pub more: String,
}

impl Default for PolicyText {
    fn default() -> Self {
        let (disable, more) = (Vec::new(), String::new());
        Self {
            profile: "control-plane-stacked-etcd",
            options: vec!["insecure-port"],
            enable: Vec::new(),
            inventory: None,
            mode: "Enforce",
            other_traffic: "Allow",
            disable,
            more,
        }
    }
}

impl PolicyText {
    /// The same, with nothing dropped.
    pub fn dry_run() -> Self {
        Self {
            mode: "DryRun",
            ..Self::default()
        }
    }

    /// Both documents.
    pub fn yaml(&self, lab: &Lab) -> String {
        let Self {
            profile,
            options,
            enable,
            inventory,
            mode,
            other_traffic,
            disable,
            more,
        } = self;
        format!(
            "{}---\napiVersion: enforcer.dev/v1alpha1\nkind: PathPolicy\nmetadata: {{ name: lab }}\n\
             spec:\n  profile: {profile}\n  options: [{}]\n  enable: [{}]\n  mode: {mode}\n  \
             otherTraffic: {other_traffic}\n  disable: [{}]\n{more}",
            inventory.clone().unwrap_or_else(|| lab.inventory_yaml()),
            options.join(", "),
            enable.join(", "),
            disable.join(", "),
        )
    }
}

/// What an agent reports of a denial: the fields that tests check.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `denied` or `wouldDeny`.
    pub verdict: String,
    /// The reason's name.
    pub reason: String,
    /// `component:port`, if it is an endpoint; several in one text.
    #[serde(rename = "endpoints", deserialize_with = "joined")]
    pub endpoint: Option<String>,
    /// Where it was judged.
    pub hook: String,
    /// Source address; `None` for calls.
    pub source: Option<String>,
    /// Destination address.
    pub destination: Option<String>,
    /// Destination port, type or protocol.
    pub port: Option<u16>,
    /// Components that the sender counts as.
    pub source_components: Vec<String>,
    /// The sender.
    pub subject: Subject,
    /// The process, if the hook knows it.
    pub comm: Option<String>,
    /// How often it was denied.
    pub count: u64,
    /// The generation of the policy that denied the first one.
    pub generation: u64,
}

fn joined<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let endpoints = Vec::<String>::deserialize(deserializer)?;
    Ok((!endpoints.is_empty()).then(|| endpoints.join(", ")))
}

/// The reported sender.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// `cgroup` or `interface`.
    pub kind: String,
    /// The cgroup's path or the interface's name.
    pub name: String,
}

/// What an agent has in force, which outlives it. Dropping it detaches everything.
#[derive(Debug)]
struct InForce(Option<Workload>);

impl InForce {
    /// Leaves it in force.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        let Some(workload) = &self.0 else {
            return;
        };
        // Nothing may exist any more, not even the lab.
        let command = tools::enforcer().and_then(|tool| workload.command_of(&tool));
        let _ = command.map(|command| command.arg("detach").run());
    }
}

/// An agent on a host of the lab. Dropping it ends the agent and its enforcement.
#[derive(Debug)]
pub struct Agent {
    // First: the agent ends before what it left in force is detached.
    running: Running,
    in_force: InForce,
    workload: Workload,
    policy: PathBuf,
    node: String,
}

impl Agent {
    /// Starts one and waits until it answers.
    pub fn start(lab: &Lab, node: &str, policy: &PolicyText) -> Result<Self> {
        Self::start_with(lab, node, policy, &[])
    }

    /// The same with more arguments.
    pub fn start_with(lab: &Lab, node: &str, policy: &PolicyText, more: &[&str]) -> Result<Self> {
        let file = lab.directory().join(format!("{node}.yaml"));
        fs::write(&file, policy.yaml(lab)).context("failed to write the policy")?;
        Self::launch(lab, node, file, more, &tools::enforcer()?)
    }

    /// The same with another build of the product.
    pub fn start_of(lab: &Lab, node: &str, policy: &PolicyText, build: &Tool) -> Result<Self> {
        let file = lab.directory().join(format!("{node}.yaml"));
        fs::write(&file, policy.yaml(lab)).context("failed to write the policy")?;
        Self::launch(lab, node, file, &[], build)
    }

    /// The same with an existing policy file.
    pub fn start_on_file(lab: &Lab, node: &str, file: &Path) -> Result<Self> {
        Self::launch(lab, node, file.to_owned(), &[], &tools::enforcer()?)
    }

    fn launch(lab: &Lab, node: &str, file: PathBuf, more: &[&str], build: &Tool) -> Result<Self> {
        let workload = lab.daemon(node, "enforcer");
        // On a node these are there before the agent is; in the lab they come with their first use,
        // and what the agent learns late it denies meanwhile.
        for daemon in ["etcd", "kubelet", "ssh", "kube-proxy", "containerd"] {
            lab.daemon(node, daemon).cgroup().id()?;
        }
        for pod in [
            "apiserver",
            "controller-manager",
            "scheduler",
            "cloud-controller-manager",
            "konnectivity-server",
            "konnectivity-agent",
            "node-local-dns",
        ] {
            lab.static_pod(node, pod).cgroup().id()?;
        }
        lab.session(node).cgroup().id()?;
        let running = workload
            .command_of(build)?
            .args(["run", "--node", node, "-p"])
            .arg(&file)
            .args(more)
            .spawn()?;
        let mut agent = Self {
            running,
            in_force: InForce(Some(workload.clone())),
            workload,
            policy: file,
            node: node.to_owned(),
        };
        let deadline = Instant::now() + patient(START);
        while agent.status().is_err() {
            if let Some(status) = agent.running.exited()? {
                bail!(
                    "the agent on {node} ended with {status}: {}",
                    agent.running.stderr()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent on {node} does not answer: {}",
                    agent.running.stderr()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(agent)
    }

    /// Agents on all nodes.
    pub fn on_all(lab: &Lab, policy: &PolicyText) -> Result<Vec<Self>> {
        let nodes = lab.topology().nodes.iter();
        nodes
            .map(|node| Self::start(lab, node.name, policy))
            .collect()
    }

    /// Agents on both nodes.
    pub fn on_both(lab: &Lab, policy: &PolicyText) -> Result<[Self; 2]> {
        Ok([
            Self::start(lab, "cp1", policy)?,
            Self::start(lab, "w1", policy)?,
        ])
    }

    /// The node that it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Its policy file.
    pub fn policy(&self) -> &Path {
        &self.policy
    }

    /// Runs the product's command line on the same node.
    pub fn command(&self, args: &[&str]) -> Result<Ran> {
        self.workload
            .command_of(&tools::enforcer()?)?
            .args(args)
            .run()
    }

    /// Its status.
    pub fn status(&self) -> Result<Value> {
        let ran = self.command(&["status", "-o", "json"])?.checked()?;
        serde_json::from_str(&ran.stdout).context("status is no JSON")
    }

    /// All denials so far.
    pub fn events(&self) -> Result<Vec<Event>> {
        let ran = self.command(&["events", "-o", "json"])?.checked()?;
        let lines = ran.stdout.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("no event: {line}")))
            .collect()
    }

    /// Waits for a matching denial; the error lists all denials.
    pub fn event(&self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + patient(SOON);
        loop {
            let events = self.events()?;
            if let Some(event) = events.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() > deadline {
                bail!("{} tells no such denial, but {events:#?}", self.node);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Packets along a path and back, as `(forward, reply)`.
    pub fn path_packets(&self, name: &str) -> Result<(u64, u64)> {
        let status = self.status()?;
        let paths = status["paths"].as_array().context("status has no paths")?;
        let path = paths.iter().find(|path| path["name"] == name);
        let path = path.with_context(|| format!("{} has no path {name}", self.node))?;
        let packets = |key: &str| path[key].as_u64().context("no number of packets");
        Ok((packets("forward")?, packets("reply")?))
    }

    /// How many packets and calls were denied for a reason: dropped, and only reported.
    pub fn denied(&self, reason: &str) -> Result<(u64, u64)> {
        let status = self.status()?;
        let reasons = status["reasons"]
            .as_array()
            .context("status has no reasons")?;
        let found = reasons.iter().find(|entry| entry["reason"] == reason);
        let count = |key: &str| found.and_then(|entry| entry[key].as_u64()).unwrap_or(0);
        Ok((count("denied"), count("wouldDeny")))
    }

    /// Gives it another policy and waits until that is in force.
    pub fn replace_policy(&self, lab: &Lab, policy: &PolicyText) -> Result<()> {
        let before = self.generation()?;
        self.write_policy(&policy.yaml(lab))?;
        let deadline = Instant::now() + patient(SOON);
        while self.generation()? == before {
            if Instant::now() > deadline {
                bail!(
                    "the agent on {} keeps its old policy: {}",
                    self.node,
                    self.running.stderr()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Writes its policy file, with any content, and sends it the reload signal.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        fs::write(&self.policy, text).context("failed to write the policy")?;
        self.running.signal(Signal::SIGHUP)
    }

    /// Increases with every policy that is put in force.
    pub fn generation(&self) -> Result<u64> {
        self.status()?["generation"]
            .as_u64()
            .context("status has no generation")
    }

    /// Ends it and its enforcement, as an operator would.
    pub fn stop(self) -> Result<Ran> {
        self.command(&["detach"])?.checked()?;
        self.in_force.leave();
        self.running.finish(Duration::from_secs(10))
    }

    /// Ends it by SIGTERM: its policy stays in force.
    pub fn leave(self) -> Result<Ran> {
        self.in_force.leave();
        self.running.signal(Signal::SIGTERM)?;
        self.running.finish(Duration::from_secs(10))
    }

    /// Ends it by SIGKILL: its policy stays in force.
    pub fn kill(self) -> Result<()> {
        self.in_force.leave();
        self.running.signal(Signal::SIGKILL)?;
        let _ = self.running.finish(Duration::from_secs(10));
        Ok(())
    }
}
