//! What holds the guarded ports where the kernel refuses the programs: rules for nftables, which know addresses alone.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
};

use enforcer_common::tables::Role;
use enforcer_policy::{
    fallback::{Rules, Strictness, TABLE, removal, rules},
    text,
};

use super::{AgentError, start::Ready};
use crate::kernel::{KernelError, Link};

/// What to do where the kernel refuses the programs, and nothing is in force from an agent before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IfRefused {
    /// nftables lets in to guarded ports what the policy allows by address. The default: it keeps strangers and pods out, and
    /// breaks no documented path, so neither choice that an attacker or an update forces is the worse one.
    #[default]
    Guard,
    /// nftables closes guarded ports to everything but lo.
    Close,
    /// Nothing: the ports are as open as without an agent.
    Leave,
}

/// Holds the guarded ports as well as can be, and says how in the error that ends this agent.
pub(super) fn instead(
    ready: &Ready,
    links: &[Link],
    wanted: IfRefused,
    refused: KernelError,
) -> AgentError {
    let strictness = match wanted {
        IfRefused::Guard => Strictness::ByAddress,
        IfRefused::Close => Strictness::Closed,
        IfRefused::Leave => {
            let held = "The guarded ports are open (--if-refused leave)".to_owned();
            return AgentError::ProgramsRefused {
                held,
                source: refused,
            };
        }
    };
    if ready.compiled.settings.dry_run != 0 {
        // Dry-run drops nothing, and neither does what stands in for it.
        return refused.into();
    }
    let roles = ready.selectors.roles(links);
    let uplinks: Vec<String> = roles
        .into_iter()
        .filter(|(_, role)| *role == Role::Uplink)
        .map(|(link, _)| link.name)
        .collect();
    let Rules { script, ports } = rules(&ready.policy, &ready.compiled, &uplinks, strictness);
    let held = match run(&["-f", "-"], &script).and_then(succeeded) {
        Ok(()) => format!(
            "Until they can be loaded, nftables holds {} (table inet {TABLE}): {}. It judges neither what processes of this \
             node send, nor TLS, nor bind, nor other traffic. `enforcer detach` removes the table",
            ports.join(", "),
            match strictness {
                Strictness::ByAddress => "open to the addresses that the policy allows",
                Strictness::Closed => "closed to everything but lo",
            }
        ),
        Err(error) => format!(
            "The guarded ports are OPEN, as nftables could not hold them either ({}): is nftables installed?",
            text::chain(&error)
        ),
    };
    AgentError::ProgramsRefused {
        held,
        source: refused,
    }
}

/// Removes the rules, if there are any. Whether there were.
pub(super) fn remove() -> io::Result<bool> {
    if !is_there() {
        return Ok(false);
    }
    run(&["-f", "-"], &removal()).and_then(succeeded)?;
    Ok(true)
}

/// Whether there are such rules. Where there is no nftables, there are none.
pub(super) fn is_there() -> bool {
    let listed = run(&["list", "table", "inet", TABLE], "");
    listed.is_ok_and(|output| output.status.success())
}

/// Whether an error means that the kernel takes no programs, and not that another agent or a wrong option is in the way.
pub(super) const fn is_for(error: &KernelError) -> bool {
    matches!(
        error,
        KernelError::Refused { .. }
            | KernelError::Load(_)
            | KernelError::NoBtf
            | KernelError::UnknownLayout
            | KernelError::NotAllowed { .. }
    )
}

fn run(arguments: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // What it does not read it complains about itself.
        let _ = input.write_all(script.as_bytes());
    }
    child.wait_with_output()
}

/// A user's shell may not have the directories where nft is.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn succeeded(output: Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = text::of_bytes(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    Err(io::Error::other(format!("nft: {first}")))
}
