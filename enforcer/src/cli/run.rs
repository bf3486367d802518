//! `enforcer run`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use super::{AgentArguments, Failure, Format, NodeArguments, Outcome, PolicyArguments};
use crate::{
    agent::{AgentOptions, IfRefused, METRICS, Output, STATE_DIR, TcMode},
    api::ErrorCode,
    files::STANDARD_INPUT,
};

/// Put a policy in force on this node, and report what it denies
///
/// Puts a policy in force on this node and stays in the foreground. Each new denial is reported
/// once, with its reason; its repeats are counted. If there are many at once, the log holds some of
/// them; `enforcer events` has all.
///
/// The policy is read again when a file changes and on SIGHUP. A broken one changes nothing. What
/// cannot be attached is reported, and tried again until it can.
///
/// What is in force stays in force when the agent ends, however it ends, until `enforcer detach`;
/// another agent takes over without a gap. With --no-pin it ends with the agent.
///
/// Example: enforcer run -p policies/control-plane-stacked-etcd.yaml --dry-run
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    policy: PolicyArguments,
    #[command(flatten)]
    agent: AgentArguments,
    /// Attach, judge and report, but drop nothing, whatever the policy's mode
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    node: NodeArguments,
    /// How programs are attached to interfaces
    #[arg(long, value_enum, default_value_t = Tc::Auto)]
    tc: Tc,
    /// End enforcement with the agent, instead of leaving it in force; for trials
    #[arg(long)]
    no_pin: bool,
    /// Directory of the confirmed policies
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, env = "ENFORCER_STATE_DIR")]
    state_dir: PathBuf,
    /// Put changes of the policy's files in force only on `enforcer apply` or SIGHUP, not
    /// automatically
    #[arg(long)]
    manual: bool,
    /// Whenever the policy's files change: go back to the previous policy unless `enforcer confirm`
    /// comes within this time
    #[arg(long, value_name = "DURATION", value_parser = super::apply::limited)]
    confirm_within: Option<humantime::Duration>,
    /// Start although an uplink that is declared by name does not exist yet, as when the machine
    /// boots; it is judged from the moment it appears
    #[arg(long)]
    allow_missing_uplinks: bool,
    /// What protects the guarded ports if the kernel refuses the programs and no previous agent left any in force
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Refused::Guard)]
    if_refused: Refused,
    /// Put a policy in force only if it cuts no open connection and refuses no port that is in use (see `enforcer preflight`)
    #[arg(long)]
    require_clean: bool,
    /// Start although the policy would cut the connection over which you run this command
    #[arg(long)]
    allow_session_cut: bool,
    /// Serve metrics for Prometheus over HTTP, at 127.0.0.1:11910 unless an address is given; anyone who reaches the
    /// address can read them
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1)]
    metrics: Option<Option<SocketAddr>>,
    /// Print what each kernel program returns, for debugging
    #[arg(long)]
    kernel_log: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Refused {
    /// nftables, which admits the addresses that the policy allows
    Guard,
    /// nftables, which closes them except over lo
    Close,
    /// Nothing: they stay open
    Leave,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tc {
    /// TCX where the kernel has it (Linux 6.6), else clsact
    Auto,
    /// TCX or nothing
    Tcx,
    /// Filters at the clsact qdisc
    Clsact,
}

pub fn run(arguments: Arguments, format: Format) -> Outcome {
    let Arguments {
        policy,
        agent,
        dry_run,
        node,
        tc,
        no_pin,
        state_dir,
        manual,
        confirm_within,
        allow_missing_uplinks,
        if_refused,
        require_clean,
        allow_session_cut,
        metrics,
        kernel_log,
    } = arguments;
    if kernel_log {
        env_logger::Builder::new()
            .filter_module("enforcer", log::LevelFilter::Debug)
            .init();
    }
    if policy
        .policy
        .iter()
        .any(|file| file == Path::new(STANDARD_INPUT))
    {
        return Err(Failure::cannot(
            ErrorCode::Usage,
            "a policy in force is read again when it changes, and standard input cannot be: give a file",
        ));
    }
    crate::agent::run(AgentOptions {
        dry_run,
        pin: !no_pin,
        state_dir,
        manual,
        confirm_within: confirm_within.map(Into::into),
        allows_missing_uplinks: allow_missing_uplinks,
        if_refused: match if_refused {
            Refused::Guard => IfRefused::Guard,
            Refused::Close => IfRefused::Close,
            Refused::Leave => IfRefused::Leave,
        },
        requires_clean: require_clean,
        allows_session_cut: allow_session_cut,
        metrics: metrics.map(|at| at.unwrap_or(METRICS)),
        tc_mode: match tc {
            Tc::Auto => TcMode::Auto,
            Tc::Tcx => TcMode::Tcx,
            Tc::Clsact => TcMode::Clsact,
        },
        output: match format {
            Format::Text => Output::Text,
            Format::Json => Output::Json,
        },
        kernel_log,
        ..node.options(policy.policy, agent)
    })?;
    Ok(())
}
