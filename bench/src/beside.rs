//! Other builds of the product, in force at sites of their own: what a change costs by itself.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use enforcer_tests::process::Running;
use enforcer_tests::{Lab, Workload};

/// How long one may take until it answers.
const START: Duration = Duration::from_secs(20);

/// Another build of the product. Its texts live as long as the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Build {
    /// As the tables call it.
    pub name: &'static str,
    path: &'static str,
}

impl Build {
    /// The program in a file, with the file's name.
    pub fn of(file: &Path) -> Result<Self> {
        let path = file
            .canonicalize()
            .with_context(|| format!("failed to find {}", file.display()))?;
        ensure!(path.is_file(), "{} is no file", path.display());
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: format!("enforcer, {stem}").leak(),
            path: path.to_string_lossy().into_owned().leak(),
        })
    }
}

/// An agent of another build, and what it enforces until this is dropped.
#[derive(Debug)]
pub struct OtherAgent {
    // First: it ends before what it left in force is taken off.
    _running: Running,
    _in_force: InForce,
}

#[derive(Debug)]
struct InForce(Workload, Build);

impl Drop for InForce {
    fn drop(&mut self) {
        // The lab may be gone already.
        let _ = self.0.run(self.1.path, ["detach"]);
    }
}

impl OtherAgent {
    /// Starts it on the node and waits until it answers.
    pub fn start(build: Build, lab: &Lab, policy: &Path) -> Result<Self> {
        let workload = lab.daemon("cp1", "enforcer");
        let action = workload.command(build.path)?;
        let running = action.args(["run", "--node", "cp1", "-p"]).arg(policy);
        let mut running = running.spawn()?;
        let in_force = InForce(workload.clone(), build);
        let deadline = Instant::now() + START;
        while !workload.run(build.path, ["status"])?.ok() {
            if running.exited()?.is_some() || Instant::now() > deadline {
                bail!("{} does not answer: {}", build.path, running.stderr());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            _running: running,
            _in_force: in_force,
        })
    }
}
