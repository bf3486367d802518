//! A workload of the lab: a network namespace together with a cgroup, where processes run.
//! Everything that a test does in the lab, it does as a workload.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getppid, setgroups, setresgid, setresuid};

use crate::certs::{Certs, Identity};
use crate::cgroup::Cgroup;
use crate::namespace::Namespace;
use crate::patience::patient;
use crate::plan::{self, POD_GATEWAY_MAC, Party};
use crate::process::{Ran, Running, spawn};
use crate::tools::{self, Tool};

/// Longer than anything that works takes, shorter than a test waits.
const RUN_AT_MOST: Duration = Duration::from_secs(20);

/// What all workloads of a lab share.
#[derive(Debug)]
pub(crate) struct Kit {
    /// The lab's certificates.
    pub certs: Certs,
    /// The helper program, where every user can run it.
    pub probe: PathBuf,
}

/// A network namespace, a cgroup and, if it is not root, a user. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workload {
    pub(crate) party: Party,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) kit: Arc<Kit>,
    cgroup: Cgroup,
    behind_gateway: bool,
    user: Option<u32>,
}

impl Workload {
    pub(crate) fn on_host(
        party: Party,
        namespace: Arc<Namespace>,
        kit: Arc<Kit>,
        cgroup: Cgroup,
    ) -> Self {
        Self {
            party,
            namespace,
            kit,
            cgroup,
            behind_gateway: false,
            user: None,
        }
    }

    pub(crate) fn in_pod(
        party: Party,
        namespace: Arc<Namespace>,
        kit: Arc<Kit>,
        cgroup: Cgroup,
    ) -> Self {
        Self {
            behind_gateway: true,
            ..Self::on_host(party, namespace, kit, cgroup)
        }
    }

    /// The same workload as an unprivileged user.
    pub fn as_user(&self, user: u32) -> Self {
        Self {
            user: Some(user),
            ..self.clone()
        }
    }

    /// The same network namespace, in another cgroup.
    pub fn in_cgroup(&self, cgroup: &Cgroup) -> Self {
        Self {
            cgroup: cgroup.clone(),
            ..self.clone()
        }
    }

    /// The host or pod that owns the network namespace, with its addresses.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// The network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A command that will run here. A bare name is looked up among the machine's tools.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Action> {
        let program = program.as_ref();
        let tool = match program.to_str() {
            Some(name) if !name.contains('/') => tools::find(name)?,
            _ => Tool {
                path: program.into(),
                libraries: Vec::new(),
            },
        };
        self.command_of(&tool)
    }

    /// The same for a tool that was already found.
    pub fn command_of(&self, tool: &Tool) -> Result<Action> {
        let mut command = Command::new(&tool.path);
        command.stdin(Stdio::null());
        command.envs(libraries_of(tool)?);
        // For the product: on a file system that belongs to the host alone.
        command.env("ENFORCER_STATE_DIR", "/run/enforcer-state");
        self.enter_before_exec(&mut command)?;
        Ok(Action {
            what: format!("{} in {}", tool.path.display(), self.party.name),
            command,
        })
    }

    /// Runs a command to its end.
    pub fn run<I, A>(&self, program: impl AsRef<OsStr>, args: I) -> Result<Ran>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        self.command(program)?.args(args).run()
    }

    /// `etcdctl` against one endpoint, with a client certificate or without.
    pub fn etcdctl<I, A>(
        &self,
        endpoint: SocketAddr,
        identity: Option<&Identity>,
        args: I,
    ) -> Result<Ran>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        self.etcdctl_command(endpoint, identity)?.args(args).run()
    }

    /// The same, but only prepared, to add arguments and start it: for `watch`.
    pub fn etcdctl_command(
        &self,
        endpoint: SocketAddr,
        identity: Option<&Identity>,
    ) -> Result<Action> {
        let action = self
            .command("etcdctl")?
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=https://{endpoint}"))
            .args(["--dial-timeout=1s", "--command-timeout=2s"]);
        Ok(self.with_certificates(action, identity))
    }

    /// `curl` for a URL, with a client certificate or without; the body is in `stdout`. Fails like
    /// curl itself: status 7 for a refused or forbidden connection, 28 for a time-out.
    pub fn curl(&self, url: &str, identity: Option<&Identity>) -> Result<Ran> {
        let action = self.command("curl")?.args([
            "-sS",
            "--fail",
            "--noproxy",
            "*",
            "-m",
            "2",
            "--connect-timeout",
            "0.8",
        ]);
        self.with_certificates(action, identity).arg(url).run()
    }

    fn with_certificates(&self, action: Action, identity: Option<&Identity>) -> Action {
        let action = action.arg("--cacert").arg(self.kit.certs.authority());
        match identity {
            Some(identity) => action
                .arg("--cert")
                .arg(&identity.certificate)
                .arg("--key")
                .arg(&identity.key),
            None => action,
        }
    }

    /// The hardware address to which a frame for `destination` goes from here: the gateway's in a
    /// pod, the destination host's on the segment.
    pub fn next_hop(&self, destination: IpAddr) -> [u8; 6] {
        if self.behind_gateway {
            return POD_GATEWAY_MAC;
        }
        let is_at = |party: &Party| party.like(destination) == destination;
        // The small lab is part of the large one.
        let all = plan::Topology::CLUSTER;
        let host_of_pod = all
            .pods
            .iter()
            .find(|pod| is_at(&pod.party))
            .and_then(|pod| all.hosts.iter().find(|host| host.name == pod.host));
        let host = all.hosts.iter().find(|host| is_at(host)).or(host_of_pod);
        host.unwrap_or(&plan::ROUTER).mac
    }

    /// A shell command that enters this workload from a person's terminal while the lab exists.
    pub fn shell_line(&self) -> String {
        use std::os::fd::AsRawFd;
        let own = std::process::id();
        let mounts = self.namespace.mounts().map_or(String::new(), |mounts| {
            format!(" --mount=/proc/{own}/fd/{}", mounts.as_raw_fd())
        });
        format!(
            "sh -c 'echo $$ >{}/cgroup.procs && exec nsenter --net={}/{}{mounts} bash'",
            self.cgroup.directory().display(),
            crate::net::NAMESPACES,
            self.namespace.name(),
        )
    }

    fn enter_before_exec(&self, command: &mut Command) -> Result<()> {
        let directory = std::env::current_dir().context("failed to read the working directory")?;
        let entry = Entry {
            cgroup: self.cgroup.procs().with_context(|| {
                format!(
                    "failed to open cgroup.procs in {}",
                    self.cgroup.directory().display()
                )
            })?,
            namespace: Arc::clone(&self.namespace),
            directory: c_path(&directory)?,
            user: self.user,
            parent: Pid::this(),
        };
        // SAFETY: between fork and exec, `Entry::enter` only makes system calls; it allocates
        // nothing and takes no lock.
        unsafe { command.pre_exec(move || entry.enter()) };
        Ok(())
    }
}

/// A command that will run as a workload.
#[derive(Debug)]
pub struct Action {
    what: String,
    command: Command,
}

impl Action {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Lets the processes that it starts find the libraries of a tool.
    pub fn with_libraries_of(mut self, tool: &Tool) -> Result<Self> {
        self.command.envs(libraries_of(tool)?);
        Ok(self)
    }

    /// Makes the kernel refuse it a system call, as if a resource for it had run out.
    pub fn refused(mut self, call: libc::c_long, error: Errno) -> Self {
        let refusal = Refusal::of(call, None, error);
        // SAFETY: between fork and exec it makes one system call with what was made before the fork.
        unsafe { self.command.pre_exec(move || refusal.install()) };
        self
    }

    /// Has the kernel refuse it a system call whose first argument is this.
    pub fn refused_with(mut self, call: libc::c_long, first: u32, error: Errno) -> Self {
        let refusal = Refusal::of(call, Some(first), error);
        // SAFETY: as above.
        unsafe { self.command.pre_exec(move || refusal.install()) };
        self
    }

    /// Gives it a file to read from standard input.
    pub fn input(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Runs it to its end, or kills it if it takes unreasonably long.
    pub fn run(self) -> Result<Ran> {
        self.run_within(patient(RUN_AT_MOST))
    }

    /// Runs it to its end, or kills it after this time.
    pub fn run_within(self, at_most: Duration) -> Result<Ran> {
        self.spawn()?.finish(at_most)
    }

    /// Starts it, with its output collected.
    pub fn spawn(self) -> Result<Running> {
        Running::start(self.what, self.command)
    }

    /// Runs it with the terminal as its input and output.
    pub fn interactive(mut self) -> Result<ExitStatus> {
        self.command.stdin(Stdio::inherit());
        let mut child =
            spawn(self.command).with_context(|| format!("failed to start {}", self.what))?;
        child
            .wait()
            .with_context(|| format!("failed to wait for {}", self.what))
    }
}

/// A filter of system calls that refuses one of them.
struct Refusal(Vec<libc::sock_filter>);

impl Refusal {
    fn of(call: libc::c_long, first: Option<u32>, error: Errno) -> Self {
        let statement = |code: u32, k: u32| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        };
        // In `struct seccomp_data` the number of the call comes first, and the first argument after 16 bytes.
        let wanted = [(0, call as u32)]
            .into_iter()
            .chain(first.map(|first| (16, first)));
        let wanted: Vec<(u32, u32)> = wanted.collect();
        let finish = |action| statement(libc::BPF_RET | libc::BPF_K, action);
        let mut filter = Vec::new();
        for (number, (offset, value)) in wanted.iter().enumerate() {
            filter.push(statement(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                *offset,
            ));
            let mut is_it = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *value);
            // Over what is still to be compared, and over the refusal.
            is_it.jf = (2 * (wanted.len() - number - 1) + 1) as u8;
            filter.push(is_it);
        }
        filter.push(finish(libc::SECCOMP_RET_ERRNO | error as u32));
        filter.push(finish(libc::SECCOMP_RET_ALLOW));
        Self(filter)
    }

    fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.0.len() as u16,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies the program, which lives as long as the call.
        let result = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }
}

/// Everything that a child needs to enter the workload; prepared before the fork.
struct Entry {
    cgroup: File,
    namespace: Arc<Namespace>,
    directory: CString,
    user: Option<u32>,
    parent: Pid,
}

impl Entry {
    /// Runs in the child. The cgroup comes first: a socket belongs to the cgroup in which it was
    /// created.
    fn enter(&self) -> io::Result<()> {
        nix::unistd::write(&self.cgroup, b"0")?;
        if let Some(mounts) = self.namespace.mounts() {
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
            // Entering another mount namespace changes the working directory to its root.
            nix::unistd::chdir(self.directory.as_c_str())?;
        }
        setns(self.namespace.net(), CloneFlags::CLONE_NEWNET)?;
        if let Some(user) = self.user {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
            setgroups(&[])?;
            setresgid(group, group, group)?;
            setresuid(user, user, user)?;
        }
        // Last, because changing the user clears it.
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid() == self.parent {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

/// The variable that tells a tool where its libraries are; `None` if it finds them itself.
fn libraries_of(tool: &Tool) -> Result<Option<(&'static str, OsString)>> {
    if tool.libraries.is_empty() {
        return Ok(None);
    }
    let libraries = std::env::join_paths(&tool.libraries)
        .context("a library directory's name holds a colon")?;
    Ok(Some(("LD_LIBRARY_PATH", libraries)))
}

fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).context("a directory's name holds a zero byte")
}
