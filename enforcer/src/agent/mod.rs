//! The running agent: keeps a policy in force on this node, reports what it denies, and answers
//! requests.
//!
//! [`run`] is the agent; [`client`] talks to a running one over its control socket.

mod attaching;
mod cgroups;
pub mod client;
mod control;
mod descriptors;
mod error;
mod fallback;
mod faults;
mod flood;
mod history;
mod interfaces;
mod ledger;
mod lifecycle;
mod listeners;
mod manager;
mod measure;
mod memory;
mod metrics;
mod names;
mod node;
mod preflight;
mod print;
mod printing;
mod privileges;
mod probes;
mod probing;
mod reader;
mod scrape;
mod serve;
mod start;
mod status;
mod tables;
mod warnings;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use enforcer_policy::{SourceText, compile::PathNumbers, model::Mode};

use crate::kernel::{LinkEvents, Pins, attach};

pub use crate::kernel::{TcMode, pins::PIN_DIR};
pub use control::{Conditions, ToApply};
pub use error::AgentError;
pub use fallback::IfRefused;
pub use node::own_addresses;
pub use preflight::session;

use crate::api::{
    Ends, Event, Listener, PathCount, Preflight, Problem, ReasonCount, Repaired, Source, Sources,
    Status, Subject, SubjectKind,
};

/// Default directory of the lock and the control socket.
pub const RUN_DIR: &str = "/run/enforcer";

/// Default directory of the confirmed policies.
pub const STATE_DIR: &str = "/var/lib/enforcer";

/// Default address of the metrics. The port is below the ranges of ephemeral ports and NodePorts,
/// and is used neither by Kubernetes, nor by a common network plug-in, nor in Prometheus' list of
/// exporters.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11_910);

/// How to print new denials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// One line of text for each.
    #[default]
    Text,
    /// One JSON object in a line for each.
    Json,
}

/// What an agent should do.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Files and directories of the policy.
    pub inputs: Vec<PathBuf>,
    /// Which node of the inventory this is; if not given, found by address or host name.
    pub node: Option<String>,
    /// Drop nothing, whatever the policy's mode.
    pub dry_run: bool,
    /// Directory of the lock and the control socket.
    pub run_dir: PathBuf,
    /// Whether enforcement outlives the agent, by pins.
    pub pin: bool,
    /// Where the programs' maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Where confirmed policies are kept.
    pub state_dir: PathBuf,
    /// Whether changes of the policy's files are put in force only on request.
    pub manual: bool,
    /// How long a changed policy may wait to be confirmed; `None` if it need not be.
    pub confirm_within: Option<Duration>,
    /// What to do where the kernel refuses the programs.
    pub if_refused: IfRefused,
    /// Whether a policy that would cut an open connection, or refuse a port that is taken, is not put in force.
    pub requires_clean: bool,
    /// Whether the agent may start with a policy that would cut the connection over which it is started.
    pub allows_session_cut: bool,
    /// Where Prometheus may ask for metrics; nowhere if not given.
    pub metrics: Option<SocketAddr>,
    /// How programs are attached to interfaces.
    pub tc_mode: TcMode,
    /// Uplinks, as names or globs, instead of the inventory's.
    pub uplinks: Option<Vec<String>>,
    /// Pod interfaces, as names or globs, instead of the inventory's.
    pub pod_interfaces: Option<Vec<String>>,
    /// The cgroup root, below the cgroup2 mount or as a directory in it, instead of the
    /// inventory's.
    pub cgroup_root: Option<PathBuf>,
    /// How to print new denials.
    pub output: Output,
    /// Whether the agent starts although an uplink declared by name is missing. Such an uplink is
    /// judged as soon as it appears.
    pub allows_missing_uplinks: bool,
    /// Print the kernel programs' own log.
    pub kernel_log: bool,
}

impl AgentOptions {
    /// Default options for a policy.
    pub fn new(inputs: Vec<PathBuf>) -> Self {
        Self {
            inputs,
            node: None,
            dry_run: false,
            run_dir: PathBuf::from(RUN_DIR),
            pin: true,
            pin_dir: PathBuf::from(PIN_DIR),
            state_dir: PathBuf::from(STATE_DIR),
            manual: false,
            confirm_within: None,
            if_refused: IfRefused::Guard,
            requires_clean: false,
            allows_session_cut: false,
            metrics: None,
            tc_mode: TcMode::Auto,
            uplinks: None,
            pod_interfaces: None,
            cgroup_root: None,
            output: Output::Text,
            allows_missing_uplinks: false,
            kernel_log: false,
        }
    }
}

/// Runs an agent until it is stopped by a signal or by `detach`.
///
/// # Errors
///
/// The agent could not start. Whatever was in force before still is.
pub fn run(options: AgentOptions) -> Result<(), AgentError> {
    runtime()?.block_on(serve::run(options))
}

/// Holds what is open on this node against a policy, as if that were enforced: the one in the options' files, or, if there are
/// none, the one that the agent has in force. `session` are the connections over which it is to be put in force.
///
/// # Errors
///
/// The policy is not valid, or the kernel does not list sockets or interfaces.
pub fn preflight(options: &AgentOptions, session: &[Ends]) -> Result<Preflight, AgentError> {
    let (texts, node) = if options.inputs.is_empty() {
        let Sources { node, sources, .. } = client::sources(&options.run_dir)?;
        let texts = sources.into_iter().map(|source| SourceText {
            name: source.name,
            text: source.text,
        });
        (texts.collect(), options.node.clone().or(Some(node)))
    } else {
        let texts = crate::files::read_sources(&options.inputs)?;
        (texts, options.node.clone())
    };
    let options = AgentOptions {
        node,
        ..options.clone()
    };
    let numbers = PathNumbers::default();
    let ready = start::prepare_for(&options, texts, &numbers, Some(Mode::Enforce))?;
    preflight::look(&ready, session)
}

/// Ends the enforcement that an agent left behind: detaches what is pinned, by whatever version, and removes filters. Says
/// at how many places programs were attached.
///
/// # Errors
///
/// An agent runs there, this process lacks capabilities, or something could not be removed.
pub fn remove_leftovers(run_dir: &Path, pin_dir: &Path) -> Result<usize, AgentError> {
    privileges::of_agent()?;
    let _lock = start::lock(run_dir)?;
    let pinned = Pins::new(pin_dir).remove();
    let filters = runtime()?.block_on(async {
        let links = LinkEvents::open()?.list().await?;
        Ok::<_, AgentError>(attach::remove_leftovers(&links))
    })?;
    let fallback = fallback::remove().map_err(AgentError::system(
        "remove the rules of nftables that hold guarded ports",
    ))?;
    Ok(pinned? + filters + usize::from(fallback))
}

fn runtime() -> Result<tokio::runtime::Runtime, AgentError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::system("start the runtime"))
}
