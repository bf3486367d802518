//! SSH between the hosts of a cluster: a real server on each node, and its client. It uses nothing
//! of this machine's own SSH: keys are in the lab's directory, and the server sees a list of users
//! in which root's home is there as well.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::plan::{ADMIN, Party, port};
use crate::process::{Ran, Running};
use crate::servers::wait_for_listener;
use crate::workload::Workload;

/// Mounts the list of users so that only the server sees it, then becomes the server.
const WITH_OWN_USERS: &str = "mount --bind \"$0\" /etc/passwd && exec \"$@\"";

/// Creates the administrators' key, and the home directory that authorizes it. Must be called once
/// per lab, before the first [`start`].
pub fn prepare(lab: &Lab) -> Result<()> {
    let known = home(lab).join(".ssh");
    fs::create_dir_all(&known).with_context(|| format!("failed to make {}", known.display()))?;
    let public = make_key(&lab.login(ADMIN.name), &admin_key(lab))?;
    let keys = known.join("authorized_keys");
    write(&keys, &public)?;
    // The server trusts no file that others could have written.
    for (path, mode) in [(home(lab), 0o755), (known, 0o700), (keys, 0o600)] {
        fs::set_permissions(&path, Permissions::from_mode(mode))
            .with_context(|| format!("failed to set the mode of {}", path.display()))?;
    }
    let root = format!("root:x:0:0:root:{}:/bin/sh\n", home(lab).display());
    write(&users(lab), &root)
}

/// Starts a node's server.
pub fn start(lab: &Lab, node: &Party) -> Result<Running> {
    let workload = lab.daemon(node.name, "ssh");
    let key = directory(lab).join(format!("{}.key", node.name));
    make_key(&workload, &key)?;
    let server = crate::tools::find("dropbear")?;
    let mut running = workload
        .command("unshare")?
        .args(["--mount", "sh", "-c", WITH_OWN_USERS])
        .arg(users(lab))
        .arg(&server.path)
        .args(["-F", "-E", "-s", "-P", "", "-r"])
        .arg(&key)
        .args(["-p", &format!("0.0.0.0:{}", port::SSH)])
        .args(["-p", &format!("[::]:{}", port::SSH)])
        .with_libraries_of(&server)?
        .spawn()?;
    wait_for_listener(&mut running, &workload, node.at(port::SSH))?;
    Ok(running)
}

/// Logs in with the administrators' key and runs a command there: its output and its exit code.
pub fn run(lab: &Lab, from: &Workload, to: SocketAddr, command: &str) -> Result<Ran> {
    run_with_key(lab, &admin_key(lab), from, to, command)
}

/// The same with a key that no server knows.
pub fn run_as_stranger(lab: &Lab, from: &Workload, to: SocketAddr, command: &str) -> Result<Ran> {
    let key = directory(lab).join("stranger.key");
    if !key.exists() {
        make_key(&lab.neighbour(), &key)?;
    }
    run_with_key(lab, &key, from, to, command)
}

fn run_with_key(
    lab: &Lab,
    key: &Path,
    from: &Workload,
    to: SocketAddr,
    command: &str,
) -> Result<Ran> {
    from.command("dbclient")?
        // It would record known hosts in the home directory.
        .env("HOME", home(lab))
        .args(["-y", "-y", "-T", "-l", "root", "-i"])
        .arg(key)
        .args(["-p", &to.port().to_string(), &to.ip().to_string(), command])
        .run()
}

/// Creates a key and returns its public half, in the format of `authorized_keys`.
fn make_key(workload: &Workload, file: &Path) -> Result<String> {
    let args = ["-t", "ed25519", "-f"].map(OsStr::new);
    let ran = workload
        .run("dropbearkey", args.into_iter().chain([file.as_os_str()]))?
        .checked()
        .with_context(|| format!("failed to make the key {}", file.display()))?;
    let public = ran.stdout.lines().find(|line| line.starts_with("ssh-"));
    let public = public.with_context(|| format!("dropbearkey tells no public key: {ran}"))?;
    Ok(format!("{public}\n"))
}

fn directory(lab: &Lab) -> PathBuf {
    lab.directory().join("ssh")
}

fn home(lab: &Lab) -> PathBuf {
    directory(lab).join("home")
}

fn users(lab: &Lab) -> PathBuf {
    directory(lab).join("passwd")
}

fn admin_key(lab: &Lab) -> PathBuf {
    directory(lab).join("admin.key")
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))
}
