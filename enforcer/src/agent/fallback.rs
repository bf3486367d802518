//! Protects the guarded ports with nftables where the kernel refuses the programs. The rules know only addresses.

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

/// What to do if the kernel refuses the programs and no previous agent left any in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IfRefused {
    /// nftables admits to the guarded ports the addresses that the policy allows. The default, because an update that makes the
    /// kernel refuse the programs then neither opens the ports to pods and strangers nor stops the control plane.
    #[default]
    Guard,
    /// nftables closes the guarded ports except over lo.
    Close,
    /// The ports stay as open as without an agent.
    Leave,
}

/// Protects the guarded ports as far as nftables can. The returned error, with which the agent ends, says how far.
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
            return without_rules("The guarded ports are open (--if-refused leave)", refused);
        }
    };
    if ready.compiled.settings.dry_run != 0 {
        // Dry-run drops nothing, so its substitute must not either.
        return without_rules("It is in dry-run, so nothing takes their place", refused);
    }
    let Rules { script, ports } = rules(
        &ready.policy,
        &ready.compiled,
        &uplinks(ready, links),
        strictness,
    );
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

/// Removes what an earlier policy or option had nftables hold.
fn without_rules(what: &str, refused: KernelError) -> AgentError {
    let held = match remove() {
        Ok(_) => what.to_owned(),
        Err(error) => format!(
            "{what}; but table inet {TABLE} of nftables still drops what it held ({})",
            text::chain(&error)
        ),
    };
    AgentError::ProgramsRefused {
        held,
        source: refused,
    }
}

/// The uplinks that exist, and those that are declared by name and may come later: nobody adds them then.
fn uplinks(ready: &Ready, links: &[Link]) -> Vec<String> {
    let roles = ready.selectors.roles(links).into_iter();
    let existing = roles
        .filter(|(_, role)| *role == Role::Uplink)
        .map(|(link, _)| link.name);
    let mut names: Vec<String> = existing.chain(ready.selectors.named_uplinks()).collect();
    names.sort();
    names.dedup();
    // nftables has no escape for it. Such an interface is held like a pod's.
    names.retain(|name| !name.contains('"'));
    names
}

/// Removes the rules. Returns whether there were any.
pub(super) fn remove() -> io::Result<bool> {
    if !is_there() {
        return Ok(false);
    }
    run(&["-f", "-"], &removal()).and_then(succeeded)?;
    Ok(true)
}

/// Whether the rules exist. Without nftables they do not.
pub(super) fn is_there() -> bool {
    let listed = run(&["list", "table", "inet", TABLE], "");
    listed.is_ok_and(|output| output.status.success())
}

/// Whether an error means that the kernel refuses the programs, rather than a conflict with another agent or a wrong option.
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
        // If nft does not read all of it, it reports the reason itself.
        let _ = input.write_all(script.as_bytes());
    }
    child.wait_with_output()
}

/// `PATH` with the directories where nft usually is, which a user's shell may lack.
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
