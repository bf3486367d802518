//! Reads the policy's files on a thread of its own. A file system may take its time, or never answer, and a large
//! policy takes seconds to compile: the agent is there for everything else meanwhile.

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

/// A look that takes longer is told.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The thread, as the agent sees it.
pub(super) struct Reader {
    jobs: mpsc::Sender<Job>,
    outcomes: news::UnboundedReceiver<Outcome>,
    /// Since when it has been at it.
    busy: Option<Instant>,
    again: Option<Asked>,
}

/// Who wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// A person, by a signal.
    ByPerson,
    /// Something may have changed, or some time is over.
    ByAgent,
    /// A person, to have what they hold put in force, whatever was said of it before.
    ToApply(ToApply),
}

/// What the files hold.
pub(super) enum Change {
    /// What is in force.
    Same,
    /// What is put in force on request only.
    Waiting,
    /// Something else, and what was open held against it.
    New(Box<Ready>, Option<Preflight>),
}

/// What is known of the files.
pub(super) struct Seen<'a> {
    /// What is in force.
    pub ready: &'a Ready,
    /// Digests of what is not put in force by itself.
    pub waiting: Vec<&'a str>,
}

/// What is in force, to be compared.
struct Job {
    texts: Arc<[SourceText]>,
    numbers: PathNumbers,
    waiting: Vec<String>,
    asked: Asked,
    /// Where the files are is watched from now on.
    directories: Option<Directories>,
}

/// What came of a look.
pub(super) struct Outcome {
    pub asked: Asked,
    /// What the files hold.
    pub changed: Result<Change, AgentError>,
    /// Whether the kernel's limit of watches left some of them out.
    pub has_no_room: bool,
}

impl Reader {
    /// Starts the thread. It ends with this handle, or when it gets its answer after that.
    pub fn start(options: AgentOptions) -> Result<Self, AgentError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (done, outcomes) = news::unbounded_channel();
        thread::Builder::new()
            .name("policy-reader".to_owned())
            .spawn(move || {
                let mut watched = None;
                for job in todo {
                    if done.send(look(&options, job, &mut watched)).is_err() {
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

    /// Has the files looked at, or once more if that is being done.
    pub fn look(&mut self, asked: Asked, seen: Seen<'_>, directories: Option<Directories>) {
        if self.busy.is_some() && directories.is_none() {
            // Who waits for an answer comes first.
            let is_less = matches!(self.again, None | Some(Asked::ByAgent));
            if is_less || matches!(asked, Asked::ToApply(_)) {
                self.again = Some(asked);
            }
            return;
        }
        let Seen { ready, waiting } = seen;
        let is_wanted = !matches!(asked, Asked::ByAgent);
        let job = Job {
            texts: Arc::clone(&ready.texts),
            numbers: ready.numbers.clone(),
            waiting: match is_wanted {
                true => Vec::new(),
                false => waiting.into_iter().map(str::to_owned).collect(),
            },
            asked,
            directories,
        };
        // The thread ends only with this handle.
        if self.jobs.send(job).is_ok() {
            self.busy.get_or_insert_with(Instant::now);
        }
    }

    /// Waits for what came of it. Never ends if nothing was asked for.
    pub async fn outcome(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => {
                self.busy = None;
                outcome
            }
            None => std::future::pending().await,
        }
    }

    /// Who asked meanwhile.
    pub fn again(&mut self) -> Option<Asked> {
        self.again.take()
    }

    /// Whether it takes longer than it should.
    pub fn is_late(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() > LIMIT)
    }
}

fn look(options: &AgentOptions, job: Job, watched: &mut Option<Directories>) -> Outcome {
    let Job {
        texts,
        numbers,
        waiting,
        asked,
        directories,
    } = job;
    if directories.is_some() {
        *watched = directories;
    }
    let mut has_no_room = false;
    if let Some(watched) = watched {
        watched.only(watch::of_files(&options.inputs));
        has_no_room = watched.has_no_room();
    }
    Outcome {
        changed: changed(options, &texts, &waiting, &numbers, &asked),
        asked,
        has_no_room,
    }
}

fn changed(
    options: &AgentOptions,
    in_force: &[SourceText],
    waiting: &[String],
    numbers: &PathNumbers,
    asked: &Asked,
) -> Result<Change, AgentError> {
    if files::is_unchanged(&options.inputs, in_force) {
        return Ok(Change::Same);
    }
    let texts = files::read_settled(&options.inputs, || thread::sleep(files::QUIET))?;
    if texts == in_force {
        // It was only half written before.
        return Ok(Change::Same);
    }
    if !waiting.is_empty() && waiting.contains(&text_digest(&texts)) {
        return Ok(Change::Waiting);
    }
    let ready = start::prepare(options, texts, numbers)?;
    // What is put in force on request only is held against what is open when it is requested.
    if options.manual && *asked == Asked::ByAgent {
        return Ok(Change::New(Box::new(ready), None));
    }
    let mut conditions = match asked {
        Asked::ToApply(ToApply { conditions, .. }) => conditions.clone(),
        Asked::ByPerson | Asked::ByAgent => Conditions::default(),
    };
    conditions.requires_clean |= options.requires_clean;
    let preflight = preflight::before(&ready, &conditions)?;
    Ok(Change::New(Box::new(ready), preflight))
}
