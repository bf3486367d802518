//! For tests that move into a network namespace of their own and load the programs there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use enforcer::kernel::Link;
use nix::net::if_::if_nametoindex;

/// Runs `ip` in this process's network namespace.
pub fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(line.contains("::").then_some("-6"))
        .args(line.split_whitespace())
        .output()
        .context("failed to run ip")?;
    ensure!(
        output.status.success(),
        "ip {line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// An interface of this process's network namespace, as the kernel module takes it.
pub fn link(name: &str, layer: u16) -> Result<Link> {
    Ok(Link {
        index: if_nametoindex(name)?,
        name: name.to_owned(),
        layer,
        controller: None,
        is_port: false,
        controls_pods: false,
        peer_namespace: None,
    })
}
