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
mod print;
mod printing;
mod privileges;
mod reader;
mod scrape;
mod serve;
mod start;
mod status;
mod warnings;
mod watch;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::kernel::{LinkEvents, Pins, attach};

pub use crate::kernel::{TcMode, pins::PIN_DIR};
pub use error::AgentError;
pub use node::own_addresses;

use crate::api::{
    Event, Listener, PathCount, Problem, ReasonCount, Repaired, Source, Sources, Status, Subject,
    SubjectKind,
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
    /// Where to serve metrics for Prometheus; `None` to serve none.
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

/// Ends the enforcement that an agent left behind: detaches what is pinned, whatever version pinned
/// it, and removes filters. Returns at how many places programs were attached.
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
    Ok(pinned? + filters)
}

fn runtime() -> Result<tokio::runtime::Runtime, AgentError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::system("start the runtime"))
}
