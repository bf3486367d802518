//! Processes of the lab: started by one thread that never ends, watched, and ended with their
//! owner.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit status; `None` if it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Whether it ended on its own and with status 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its exit code; `None` if a signal or the time limit ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Returns itself if it succeeded, otherwise an error with all of its output.
    pub fn checked(self) -> Result<Self> {
        if self.ok() {
            Ok(self)
        } else {
            Err(anyhow!("{self}"))
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => writeln!(formatter, "{status} after {:?}", self.took)?,
            None => writeln!(formatter, "still running after {:?}, killed", self.took)?,
        }
        write!(
            formatter,
            "stdout: {}\nstderr: {}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// How long it may take to read the rest of an ended process's output on a busy machine.
const DRAIN: Duration = Duration::from_secs(3);

/// A running process; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    started: Instant,
    output: Arc<Output>,
}

impl Running {
    /// Starts a command with its output collected. The command's standard input is left as it was
    /// set.
    pub(crate) fn start(what: String, mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command).with_context(|| format!("failed to start {what}"))?;
        let output = Arc::new(Output::default());
        if let Some(stream) = child.stdout.take() {
            collect(stream, Arc::clone(&output), |text| &mut text.stdout);
        }
        if let Some(stream) = child.stderr.take() {
            collect(stream, Arc::clone(&output), |text| &mut text.stderr);
        }
        Ok(Self {
            what,
            child,
            started: Instant::now(),
            output,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        // The kernel's limit for pids is 4194304.
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.output.lock().stdout.clone()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.output.lock().stderr.clone()
    }

    /// Waits for a whole line on either stream, and returns it.
    pub fn wait_for_line(
        &self,
        mut wanted: impl FnMut(&str) -> bool,
        at_most: Duration,
    ) -> Result<String> {
        let find = |text: &Text| {
            let lines = whole_lines(&text.stdout).chain(whole_lines(&text.stderr));
            lines.filter(|line| wanted(line)).map(str::to_owned).next()
        };
        self.output.wait_for(find, at_most).with_context(|| {
            let (out, err) = (self.stdout(), self.stderr());
            format!(
                "{} did not say what was awaited within {at_most:?}:\n{out}{err}",
                self.what
            )
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("failed to send {signal} to {}", self.what))
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("failed to wait for {}", self.what))
    }

    /// Waits for its end, or kills it after this time.
    pub fn finish(mut self, at_most: Duration) -> Result<Ran> {
        let deadline = self.started.max(Instant::now()) + at_most;
        let mut status = self.exited()?;
        while status.is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
            status = self.exited()?;
        }
        if status.is_none() {
            self.end();
        }
        let took = self.started.elapsed();
        // A remaining child may keep the pipe open: then the output so far has to do.
        self.output
            .wait_for(|text| (text.open == 0).then_some(()), DRAIN);
        Ok(Ran {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            took,
        })
    }

    /// Kills it and waits for its end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a tool of the machine outside the lab's namespaces, and fails unless the tool succeeds.
pub(crate) fn run_tool(mut command: Command, input: &str) -> Result<String> {
    use std::io::Write;
    let what = format!("`{}`", command.get_program().to_string_lossy());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("failed to start {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that stops reading early says why, below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("failed to wait for {what}"))?;
    if !output.status.success() {
        bail!(
            "{what} failed: {}\non {input}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

type Job = (Command, Sender<io::Result<Child>>);

/// Starts a process from the one thread that lives as long as this program: the kernel sends the
/// parent-death signal when the *thread* that started a process ends, and test threads end early.
pub(crate) fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Sending fails only if the requesting thread is gone.
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, result) = channel();
    spawner
        .send((command, answer))
        .context("the thread that starts processes has ended")?;
    Ok(result
        .recv()
        .context("the thread that starts processes has ended")??)
}

#[derive(Debug, Default)]
struct Output {
    text: Mutex<Text>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    stdout: String,
    stderr: String,
    open: u8,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Text> {
        // If a reader panicked, its text is still worth showing.
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is found; `None` if the time is over or nothing more can arrive.
    fn wait_for<T>(
        &self,
        mut find: impl FnMut(&Text) -> Option<T>,
        at_most: Duration,
    ) -> Option<T> {
        let deadline = Instant::now() + at_most;
        let mut text = self.lock();
        loop {
            if let Some(found) = find(&text) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.open == 0 {
                return None;
            }
            let woken = self.news.wait_timeout(text, left);
            text = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn collect(
    stream: impl Read + Send + 'static,
    output: Arc<Output>,
    part: fn(&mut Text) -> &mut String,
) {
    output.lock().open += 1;
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            part(&mut output.lock()).push_str(&String::from_utf8_lossy(&line));
            line.clear();
            output.news.notify_all();
        }
        output.lock().open -= 1;
        output.news.notify_all();
    });
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}
