//! The emulator: the system's own, or else Debian's, unpacked below `target/tools` if it cannot be
//! installed alongside what is installed already (for example because of another version of one of
//! its parts).

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::packages::{Kernel, files};
use crate::{bpf_toolchain::tools_path, setup::apt, shell};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// The program that starts machines.
pub struct Emulator {
    /// Where it is unpacked; `None` for the system's own.
    root: Option<PathBuf>,
}

impl Emulator {
    /// The installed emulator, or one that is installed now, with the program that packs its file
    /// systems.
    pub fn install() -> Result<Self> {
        if shell::which("cpio").is_none() {
            println!("installing cpio");
            apt::install(&["cpio"])?;
        }
        if shell::which(PROGRAM).is_some() {
            return Ok(Self { root: None });
        }
        let root = tools_path(shell::workspace()).join("qemu");
        if root.join("usr/bin").join(PROGRAM).is_file() {
            return Ok(Self { root: Some(root) });
        }
        println!("installing qemu");
        match apt::install(&[PACKAGE]) {
            Ok(()) => Ok(Self { root: None }),
            Err(refused) => unpack(&root)
                .with_context(|| format!("it cannot be installed either: {refused:#}"))
                .map(|()| Self { root: Some(root) }),
        }
    }

    /// Starts a machine with one processor. Its console goes to the log; `options` are for its
    /// kernel.
    pub fn start(
        &self,
        kernel: &Kernel,
        image: &Path,
        options: &str,
        log: PathBuf,
    ) -> Result<Machine> {
        let output =
            File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        let child = self
            .command()
            // KVM inside of a virtual machine may hang; emulation is slow and always there.
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "3072"])
            .args(["-nographic", "-no-reboot", "-nic", "none", "-kernel"])
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 quiet panic=-1 random.trust_cpu=on {options}"
            ))
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("failed to share the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("failed to start {PROGRAM}"))?;
        Ok(Machine {
            child,
            log,
            began: Instant::now(),
        })
    }

    fn command(&self) -> Command {
        let Some(root) = &self.root else {
            return Command::new(PROGRAM);
        };
        let libraries = [format!("usr/lib/{MULTIARCH}"), format!("lib/{MULTIARCH}")];
        let libraries = libraries.map(|below| root.join(below));
        let mut command = Command::new(root.join("usr/bin").join(PROGRAM));
        command
            .env(
                "LD_LIBRARY_PATH",
                // None of these contains a colon, unless the clone's path does: then nothing is
                // found.
                env::join_paths(&libraries).unwrap_or_default(),
            )
            .env("QEMU_MODULE_DIR", libraries[0].join("qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        command
    }
}

/// A running machine. Dropping it stops it, so that none keeps running if another could not be
/// started.
pub struct Machine {
    child: Child,
    log: PathBuf,
    began: Instant,
}

impl Machine {
    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Where its console's output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its console's output so far.
    pub fn text(&self) -> Result<String> {
        let text = fs::read(&self.log).context("failed to read a machine's log")?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until it powers off, and stops it when the time is over. The end of its log shows how
    /// far it got.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        while self
            .child
            .try_wait()
            .context("failed to wait for a machine")?
            .is_none()
        {
            if self.age() > limit {
                self.child.kill().context("failed to stop a machine")?;
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where Debian has the libraries of x86-64, the only architecture that this supports.
const MULTIARCH: &str = "x86_64-linux-gnu";

/// Downloads the emulator with all its dependencies, and unpacks them.
fn unpack(root: &Path) -> Result<()> {
    println!("unpacking qemu below target/tools instead");
    let _ = fs::remove_dir_all(root);
    let downloads = root.join("packages");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("failed to create {}", downloads.display()))?;
    let log = shell::log_path("setup-qemu")?;
    let plan = shell::output_of(Command::new("apt-get").env("LC_ALL", "C").args([
        "install",
        "--simulate",
        "--no-install-recommends",
        PACKAGE,
    ]))
    .with_context(|| format!("apt-get does not say what {PACKAGE} needs"))?;
    let names = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
    let mut download = Command::new("apt-get");
    download
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(names)
        .current_dir(&downloads);
    if !shell::run_logged(&mut download, &log)? {
        bail!("failed to download {PACKAGE}:\n{}", shell::failure(&log));
    }
    for package in files(&downloads) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(&package).arg(root);
        if !shell::run_logged(&mut unpack, &log)? {
            bail!("failed to unpack {}", package.display());
        }
    }
    fs::remove_dir_all(&downloads)
        .with_context(|| format!("failed to remove {}", downloads.display()))
}
