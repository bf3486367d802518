//! Reads the policy's files on a separate thread. A file system may be slow or never answer, and a
//! large policy takes seconds to compile. Meanwhile, the agent can do everything else.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use enforcer_policy::{SourceText, compile::PathNumbers, text_digest};
use tokio::sync::mpsc as news;

use super::{
    AgentError, AgentOptions, Preflight,
    control::{Conditions, ToApply},
    preflight,
    start::{self, Ready},
    watch::{self, Directories},
};
use crate::files;

/// A read that takes longer is reported.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The agent's handle to the thread.
pub(super) struct Reader {
    jobs: mpsc::Sender<Job>,
    outcomes: news::UnboundedReceiver<Outcome>,
    /// Since when the thread has been reading.
    busy: Option<Instant>,
    again: Option<Trigger>,
}

/// Who asked to have the files read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trigger {
    /// A person, by a signal.
    Signal,
    /// The agent, because something may have changed or a timer expired.
    Check,
    /// A person, to have the files' contents put in force, even if they are otherwise put in force
    /// only on request.
    Apply(ToApply),
}

/// What the files hold, compared with what is known.
pub(super) enum Change {
    /// The policy in force.
    Same,
    /// A policy that is put in force only on request.
    Waiting,
    /// Something else, and what was open held against it.
    New(Box<Ready>, Option<Preflight>),
}

/// What is already known about the files.
pub(super) struct Baseline<'a> {
    /// The policy in force.
    pub ready: &'a Ready,
    /// Digests of what is put in force only on request.
    pub waiting: Vec<&'a str>,
}

/// What to compare the files with.
struct Job {
    texts: Arc<[SourceText]>,
    numbers: PathNumbers,
    waiting: Vec<String>,
    trigger: Trigger,
    /// The watch, which is extended to where the files are.
    directories: Option<Directories>,
}

/// The result of a read.
pub(super) struct Outcome {
    pub trigger: Trigger,
    /// What the files hold.
    pub changed: Result<Change, AgentError>,
    /// Whether some files are not watched because of the kernel's limit on watches.
    pub exceeds_limit: bool,
}

impl Reader {
    /// Starts the thread. It ends when this handle is dropped, after a read that is in progress.
    pub fn start(options: AgentOptions) -> Result<Self, AgentError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (done, outcomes) = news::unbounded_channel();
        thread::Builder::new()
            .name("policy-reader".to_owned())
            .spawn(move || {
                let mut watched = None;
                for job in todo {
                    if done.send(read(&options, job, &mut watched)).is_err() {
                        break;
                    }
                }
            })
            .map_err(AgentError::system("start a thread"))?;
        Ok(Self {
            jobs,
            outcomes,
            busy: None,
            again: None,
        })
    }

    /// Requests a read of the files, or another one if a read is in progress.
    pub fn request(
        &mut self,
        trigger: Trigger,
        baseline: Baseline<'_>,
        directories: Option<Directories>,
    ) {
        if self.busy.is_some() && directories.is_none() {
            // A client that waits for an answer takes precedence.
            let is_replaceable = matches!(self.again, None | Some(Trigger::Check));
            if is_replaceable || matches!(trigger, Trigger::Apply(_)) {
                self.again = Some(trigger);
            }
            return;
        }
        let Baseline { ready, waiting } = baseline;
        let is_wanted = !matches!(trigger, Trigger::Check);
        let job = Job {
            texts: Arc::clone(&ready.texts),
            numbers: ready.numbers.clone(),
            waiting: match is_wanted {
                true => Vec::new(),
                false => waiting.into_iter().map(str::to_owned).collect(),
            },
            trigger,
            directories,
        };
        // The thread ends only with this handle.
        if self.jobs.send(job).is_ok() {
            self.busy.get_or_insert_with(Instant::now);
        }
    }

    /// Waits for the result. Never completes if no read was requested.
    pub async fn outcome(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => {
                self.busy = None;
                outcome
            }
            None => std::future::pending().await,
        }
    }

    /// The request that arrived during the last read.
    pub fn again(&mut self) -> Option<Trigger> {
        self.again.take()
    }

    /// Whether the read takes longer than it should.
    pub fn is_late(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() > LIMIT)
    }
}

fn read(options: &AgentOptions, job: Job, watched: &mut Option<Directories>) -> Outcome {
    let Job {
        texts,
        numbers,
        waiting,
        trigger,
        directories,
    } = job;
    if directories.is_some() {
        *watched = directories;
    }
    let mut exceeds_limit = false;
    if let Some(watched) = watched {
        watched.only(watch::of_files(&options.inputs));
        exceeds_limit = watched.exceeds_limit();
    }
    Outcome {
        changed: changed(options, &texts, &waiting, &numbers, &trigger),
        trigger,
        exceeds_limit,
    }
}

fn changed(
    options: &AgentOptions,
    in_force: &[SourceText],
    waiting: &[String],
    numbers: &PathNumbers,
    trigger: &Trigger,
) -> Result<Change, AgentError> {
    if files::is_unchanged(&options.inputs, in_force) {
        return Ok(Change::Same);
    }
    let texts = files::read_settled(&options.inputs, || thread::sleep(files::QUIET))?;
    if texts == in_force {
        // The file was only partly written at the first read.
        return Ok(Change::Same);
    }
    if !waiting.is_empty() && waiting.contains(&text_digest(&texts)) {
        return Ok(Change::Waiting);
    }
    let ready = start::prepare(options, texts, numbers)?;
    // What is put in force on request only is held against what is open when it is requested.
    if options.manual && *trigger == Trigger::Check {
        return Ok(Change::New(Box::new(ready), None));
    }
    let mut conditions = match trigger {
        Trigger::Apply(ToApply { conditions, .. }) => conditions.clone(),
        Trigger::Signal | Trigger::Check => Conditions::default(),
    };
    conditions.requires_clean |= options.requires_clean;
    let preflight = preflight::before(&ready, &conditions)?;
    Ok(Change::New(Box::new(ready), preflight))
}
