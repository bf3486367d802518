//! The agent's life cycle: start, event loop, and an end that leaves nothing behind.

use std::{io, mem, path::PathBuf, sync::Arc, time::Duration};

use enforcer_common::{limits, record::RecordKey};
use enforcer_policy::{text, text_digest};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, mpsc},
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use super::{
    AgentError, AgentOptions, Event, Listener, SubjectKind,
    control::{Answer, Command, Conditions, Control, ShutdownAck},
    descriptors::DescriptorReserve,
    fallback,
    faults::{Faults, Kind, PolicyFault},
    flood,
    history::History,
    interfaces::list_at_start,
    ledger::{InForce, Ledger, boot_time},
    listeners,
    manager::Manager,
    memory,
    metrics::Totals,
    preflight,
    print::{Priority, print, print_as},
    privileges,
    probes::{Activity, Probes},
    reader::{Change, Outcome, Reader, Trigger},
    scrape::Endpoint,
    start::{self, CHANGED, InitialPolicy, Lock, Ready, UNCONFIRMED},
    watch::{self, Directories},
};
use crate::api::Applied;
use crate::kernel::{
    CgroupPaths, Kernel, KernelError, Link, LinkEvents, PinnedState, Pins, Wakes, cgroups, filters,
    load::KernelLog,
};

/// Everything that lives as long as the agent.
pub struct Agent {
    pub(super) options: AgentOptions,
    pub(super) kernel: Kernel,
    pub(super) ready: Arc<Ready>,
    /// The previous policy, while the one in force is unconfirmed.
    pub(super) unconfirmed: Option<Arc<Ready>>,
    /// What has to be alive again, where that confirms the policy.
    pub(super) probes: Option<Probes>,
    /// Which paths were used in the last minute.
    pub(super) activity: Activity,
    /// What was taken back last, in a sentence.
    pub(super) rolled_back: Option<String>,
    pub(super) history: History,
    /// Digest of the files' contents, if they are put in force only on request.
    pub(super) waiting: Option<String>,
    /// Clients that wait for the result of the read in progress.
    pub(super) applying: Vec<Answer<Applied>>,
    /// What does not work at present.
    pub(super) faults: Faults,
    /// Whether the newest policy could be put in force.
    pub(super) policy_fault: PolicyFault,
    pub(super) reserve: DescriptorReserve,
    pub(super) cgroup_root: PathBuf,
    /// The inode of the cgroup root, once all programs that the kernel accepts are attached to it.
    pub(super) attached_root: Option<u64>,
    /// Reports where declared cgroups come and go; `None` if the kernel has no more watches.
    pub(super) directories: Option<Directories>,
    pub(super) ledger: Ledger,
    pub(super) links: Vec<Link>,
    pub(super) news: broadcast::Sender<Event>,
    pub(super) budget: flood::Budget,
    pub(super) manager: Manager,
    pub(super) totals: Totals,
    /// The listener for Prometheus; `None` if it is switched off or does not work at present.
    metrics: Option<Endpoint>,
    commands: mpsc::Sender<Command>,
    ticks: u32,
    /// Whether nothing is left of previous agents.
    pub(super) has_retired_others: bool,
    /// Whether there may be more records than when they were last counted.
    has_new_records: bool,
}

/// What the agent waits for.
struct EventSources {
    wakes: Option<Wakes>,
    links: LinkEvents,
    cgroups: Option<watch::Events>,
    files: Option<watch::Events>,
    reader: Reader,
    log: Option<KernelLog>,
    commands: mpsc::Receiver<Command>,
    tick: Interval,
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

/// One event.
enum AgentEvent {
    Denied(Result<Vec<RecordKey>, KernelError>),
    Links,
    Cgroups,
    Files,
    Read(Outcome),
    Tick,
    Reload,
    Command(Command),
    Stop,
}

/// How often to check what nothing announces: the number of records, the kernel programs' log.
const TICK: Duration = Duration::from_secs(1);
/// Every how many ticks to check interfaces, cgroups and files, since their events may have been
/// lost or could not be watched, and to retry what did not work.
const LOOK: u32 = 5;
/// When there are more records than this, some are removed, until at most [`RECORDS_KEPT`] are
/// left.
const RECORDS_FULL: usize = limits::MAX_RECORDS as usize / 4 * 3;
const RECORDS_KEPT: usize = limits::MAX_RECORDS as usize / 2;

/// Runs an agent to its end.
pub async fn run(options: AgentOptions) -> Result<(), AgentError> {
    privileges::of_agent()?;
    let state_dir = options.pin.then_some(options.state_dir.as_path());
    let history = History::open(state_dir, &options.inputs);
    if let Some(problem) = history.problem() {
        print_as(
            Priority::Warning,
            &format!(
                "{problem}\nwhich policies were confirmed is not known: what the policy's files hold is put in force, and counts \
                 as confirmed"
            ),
        );
    }
    // If the policy is not valid and there is no other, report that before touching anything.
    let mut first = start::initial_policy(&options, &history, None)?;
    let lock = start::lock(&options.run_dir)?;
    let found = find_pins(&options)?;
    let kept = found.as_ref().map(PinnedState::kept);
    if let Some(kept) = kept.filter(|kept| kept.last != 0) {
        first = start::initial_policy(&options, &history, Some(kept))?;
    }
    let reserve = DescriptorReserve::set_aside();
    let (control, commands) = Control::open(&options.run_dir, reserve)?;
    let commands = (control.commands(), commands);
    let (mut agent, mut sources) = begin(options, history, first, found, commands, reserve).await?;
    agent.print_start();
    let status = agent.status_line();
    agent.reserve.within(|| agent.manager.ready(status));
    let shutdown = agent.run(&mut sources).await;
    agent.manager.stopping(match shutdown {
        None if agent.kernel.pinned_at().is_some() => "ends, and what is in force stays in force",
        _ => "ends, and detaches everything",
    });
    // From here on nothing may fail, and everything is removed, in this order.
    agent.print_summary();
    match (&shutdown, agent.kernel.pinned_at()) {
        (None, Some(_)) => print(
            "the agent ends, and what is in force stays in force without it: `enforcer detach` ends that, and \
             `enforcer run` takes over",
        ),
        _ => {
            if let Err(error) = agent.kernel.detach() {
                print_as(Priority::Error, &text::chain(&error));
            }
        }
    }
    drop((agent.kernel, sources, control));
    drop::<Lock>(lock);
    if let Some(ShutdownAck { done, written }) = shutdown {
        let _ = done.send(());
        let _ = timeout(Duration::from_secs(1), written).await;
    }
    Ok(())
}

/// What a previous agent left pinned; `None` if enforcement should end with this agent.
fn find_pins(options: &AgentOptions) -> Result<Option<PinnedState>, AgentError> {
    let pins = Pins::new(&options.pin_dir);
    if options.pin {
        let found = PinnedState::find(&pins)?;
        return Ok(Some(found));
    }
    if pins.is_empty() {
        return Ok(None);
    }
    let path = options.pin_dir.clone();
    Err(KernelError::PinsLeft { path }.into())
}

/// Loads, applies and attaches. What cannot be attached is retried later. On failure, dropping the
/// kernel handle detaches what was attached.
async fn begin(
    options: AgentOptions,
    history: History,
    first: InitialPolicy,
    found: Option<PinnedState>,
    (to_agent, commands): (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    reserve: DescriptorReserve,
) -> Result<(Agent, EventSources), AgentError> {
    // From now on a signal is a request to stop, instead of killing the process halfway.
    let hangup = listen(SignalKind::hangup())?;
    let interrupt = listen(SignalKind::interrupt())?;
    let terminate = listen(SignalKind::terminate())?;
    let links = LinkEvents::open()?;
    let there = list_at_start(&links).await?;
    let InitialPolicy {
        mut ready,
        mut unconfirmed,
        mut why,
    } = first;
    if !options.allows_missing_uplinks {
        ready.selectors.check(&there)?;
    }
    let cgroup_root = cgroups::root(&ready.cgroup_root)?;
    if let Some(what) = found.as_ref().and_then(PinnedState::describe) {
        print(&what);
    }
    let is_held = found.as_ref().is_some_and(|found| found.kept().last != 0);
    let mut kernel = match Kernel::load(found, options.kernel_log) {
        Ok(kernel) => kernel,
        // What is pinned is in force still, and better.
        Err(error) if fallback::is_for(&error) && !is_held => {
            return Err(fallback::instead(&ready, &there, options.if_refused, error));
        }
        Err(error) => return Err(error.into()),
    };
    kernel.set_filters(&filters::leftovers().await?);
    // The policy must be there before the first packet is judged.
    let mut totals = Totals::new();
    let mut resumed = kernel.resume(ready.as_new(&[]))?;
    if !(resumed && unconfirmed.is_some() && kernel.deadline().is_some()) {
        // Nothing waits to be confirmed, or it is too late, or this agent cannot confirm what
        // waits, for example because it is of another version whose maps this agent does not adopt.
        if kernel.fall_back()? || unconfirmed.is_some() {
            totals.rolled_back_unconfirmed += 1;
        }
        if let Some(before) = unconfirmed.take() {
            (ready, why) = (before, Some(UNCONFIRMED.to_owned()));
        }
        resumed = kernel.resume(ready.as_new(&[]))?;
    }
    if !resumed {
        let conditions = Conditions {
            requires_clean: options.requires_clean,
            allows_session_cut: options.allows_session_cut,
            session: preflight::session(),
        };
        if let Some(preflight) = preflight::before(&ready, &conditions)? {
            preflight::report(&preflight);
        }
        let known = cgroups::resolve(&cgroup_root, &ready.compiled.cgroups);
        let roles = ready.selectors.roles(&there);
        kernel.apply(ready.as_new(&roles), &cgroups::pairs(&known), None)?;
        totals.applied += 1;
    }
    let mut sources = EventSources {
        wakes: Some(kernel.wakes()?),
        links,
        cgroups: None,
        files: None,
        reader: Reader::start(options.clone())?,
        log: None,
        commands,
        tick: interval(TICK),
        hangup,
        interrupt,
        terminate,
    };
    sources
        .tick
        .set_missed_tick_behavior(MissedTickBehavior::Delay);
    if options.kernel_log {
        match kernel.log() {
            Ok(log) => sources.log = Some(log),
            Err(error) => print_as(
                Priority::Warning,
                &format!("no log of the kernel programs: {error}"),
            ),
        }
    }
    let mut agent = Agent {
        ledger: Ledger::new(CgroupPaths::new(&cgroup_root)),
        directories: None,
        options,
        kernel,
        ready: Arc::new(ready),
        unconfirmed: unconfirmed.map(Arc::new),
        probes: None,
        activity: Activity::default(),
        rolled_back: None,
        history,
        waiting: None,
        applying: Vec::new(),
        faults: Faults::default(),
        policy_fault: PolicyFault::default(),
        reserve,
        cgroup_root,
        attached_root: None,
        links: there,
        news: broadcast::channel(1024).0,
        budget: flood::Budget::default(),
        manager: Manager::new(),
        totals,
        metrics: None,
        commands: to_agent,
        ticks: 0,
        has_retired_others: false,
        has_new_records: true,
    };
    match why {
        Some(why) => _ = agent.policy_fault.set(why),
        None if agent.unconfirmed.is_none() => agent.remember(),
        None => {}
    }
    agent.attach_interfaces(&sources.links).await;
    agent.attach_root();
    agent.move_to_front();
    agent.retire_others();
    agent.remove_fallback();
    agent.watch(&mut sources);
    agent.serve_metrics();
    agent.refresh_cgroups();
    // Once more, now that the files are watched.
    sources
        .reader
        .request(Trigger::Check, agent.baseline(), None);
    memory::give_back();
    Ok((agent, sources))
}

impl EventSources {
    async fn next(&mut self) -> AgentEvent {
        tokio::select! {
            keys = denied(&mut self.wakes) => AgentEvent::Denied(keys),
            () = self.links.changed() => AgentEvent::Links,
            () = changed(&mut self.cgroups) => AgentEvent::Cgroups,
            () = changed(&mut self.files) => AgentEvent::Files,
            outcome = self.reader.outcome() => AgentEvent::Read(outcome),
            _ = self.tick.tick() => AgentEvent::Tick,
            _ = self.hangup.recv() => AgentEvent::Reload,
            _ = self.interrupt.recv() => AgentEvent::Stop,
            _ = self.terminate.recv() => AgentEvent::Stop,
            Some(command) = self.commands.recv() => AgentEvent::Command(command),
        }
    }
}

async fn denied(wakes: &mut Option<Wakes>) -> Result<Vec<RecordKey>, KernelError> {
    match wakes {
        Some(wakes) => wakes.next().await,
        None => std::future::pending().await,
    }
}

async fn changed(events: &mut Option<watch::Events>) {
    match events {
        Some(events) => events.changed().await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// Handles events until somebody stops the agent. Returns the acknowledgement to send if that
    /// was a request.
    async fn run(&mut self, sources: &mut EventSources) -> Option<ShutdownAck> {
        loop {
            match sources.next().await {
                AgentEvent::Denied(Ok(keys)) => {
                    self.has_new_records = true;
                    self.report_denials(&keys);
                }
                AgentEvent::Denied(Err(error)) => {
                    sources.wakes = None;
                    self.faults.set(Kind::Records, text::chain(&error));
                }
                AgentEvent::Links => self.refresh_links(&sources.links).await,
                AgentEvent::Cgroups => self.refresh_cgroups(),
                AgentEvent::Files => sources
                    .reader
                    .request(Trigger::Check, self.baseline(), None),
                AgentEvent::Read(outcome) => self.read(outcome, sources).await,
                AgentEvent::Tick => self.tick(sources).await,
                AgentEvent::Reload => {
                    self.reserve.within(|| self.manager.reloading());
                    sources
                        .reader
                        .request(Trigger::Signal, self.baseline(), None);
                }
                AgentEvent::Stop => return None,
                AgentEvent::Command(Command::Detach(shutdown)) => return Some(shutdown),
                AgentEvent::Command(command) => self.execute(command, sources).await,
            }
        }
    }

    async fn tick(&mut self, sources: &mut EventSources) {
        if let Some(log) = &mut sources.log {
            log.flush();
        }
        self.ticks = self.ticks.wrapping_add(1);
        match self.budget.next() {
            0 => {}
            left => print_as(
                Priority::Warning,
                &format!(
                    "{left} new denials of this second are left out here: see `enforcer events`"
                ),
            ),
        }
        self.settle(&sources.links).await;
        self.probe(&sources.links).await;
        if self.ledger.is_unsettled() {
            let records = self.kernel.records().unwrap_or_default();
            self.ledger.settle(&records);
            memory::give_back();
        }
        // Counting them takes a walk through the whole table.
        if mem::take(&mut self.has_new_records) {
            self.make_room();
        }
        if sources.reader.is_late() {
            self.policy_fault.set(
                "reading the policy's files has taken more than 10 s: does their file system answer?"
                    .to_owned(),
            );
        }
        if self.ticks.is_multiple_of(LOOK) {
            self.watch(sources);
            self.serve_metrics();
            self.refresh_links(&sources.links).await;
            if self.faults.get(Kind::Interfaces).is_some() {
                self.attach_interfaces(&sources.links).await;
            }
            self.attach_root();
            self.move_to_front();
            self.retire_others();
            self.sample_activity();
            sources
                .reader
                .request(Trigger::Check, self.baseline(), None);
        }
        if self.ticks.is_multiple_of(LOOK) || self.directories.is_none() {
            self.refresh_cgroups();
        }
        self.report_alive();
    }

    async fn execute(&mut self, command: Command, sources: &mut EventSources) {
        match command {
            Command::Apply(to_apply, reply) => {
                self.settle(&sources.links).await;
                self.applying.push(reply);
                self.reserve.within(|| self.manager.reloading());
                sources
                    .reader
                    .request(Trigger::Apply(to_apply), self.baseline(), None);
            }
            Command::Confirm(reply) => {
                let confirmed = self.confirm(&sources.links).await;
                self.reply_applied(reply, confirmed);
            }
            Command::Rollback(reply) => {
                let rolled_back = self.roll_back(&sources.links).await;
                self.reply_applied(reply, rolled_back);
            }
            question => self.answer(question),
        }
    }

    fn answer(&mut self, command: Command) {
        // The client may be gone.
        match command {
            Command::Status(reply) => drop(reply.send(self.status().map_err(|e| text::chain(&e)))),
            Command::Sources(reply) => drop(reply.send(self.sources())),
            Command::Metrics(reply) => {
                drop(reply.send(self.metrics().map_err(|e| text::chain(&e))));
            }
            Command::Events(reply) => {
                // Subscribe first, so that no event is missed in between.
                let new = self.news.subscribe();
                let events = self.events().map(|events| (events, new));
                drop(reply.send(events.map_err(|e| text::chain(&e))));
            }
            Command::Apply(..)
            | Command::Confirm(_)
            | Command::Rollback(_)
            | Command::Detach(_) => {}
        }
    }

    /// All recorded denials, ordered by when they last happened. If there are many, one of each
    /// sender and endpoint comes first.
    pub(super) fn events(&mut self) -> Result<Vec<Event>, KernelError> {
        let mut records = self.kernel.records()?;
        records.sort_by_key(|(_, value)| value.last_ns);
        let boot = boot_time();
        let in_force = InForce {
            generation: self.kernel.generation(),
            ready: &self.ready,
        };
        let ledger = &mut self.ledger;
        let events = records.iter();
        let events = events.map(|(key, value)| ledger.event(in_force, key, value, boot));
        Ok(flood::order_to_list(events.collect()))
    }

    /// Sets up the watches that are missing. Without them, directories are checked periodically.
    fn watch(&mut self, sources: &mut EventSources) {
        let without = |what: &str, error: &io::Error| {
            let error = text::chain(error);
            format!(
                "{what} ({error}): the kernel's limit of inotify instances is reached; more: \
                 sysctl -w fs.inotify.max_user_instances=…"
            )
        };
        if self.directories.is_none() {
            match self.reserve.within(watch::for_directories) {
                Ok((events, directories)) => {
                    (sources.cgroups, self.directories) = (Some(events), Some(directories));
                    self.faults.clear(Kind::CgroupWatch);
                }
                Err(error) => self.faults.set(
                    Kind::CgroupWatch,
                    without(
                        "declared cgroups are looked for once a second instead of at once",
                        &error,
                    ),
                ),
            }
        }
        if sources.files.is_none() {
            match self.reserve.within(watch::for_files) {
                Ok((events, directories)) => {
                    sources.files = Some(events);
                    let watched = Some(directories);
                    sources
                        .reader
                        .request(Trigger::Check, self.baseline(), watched);
                    self.faults.clear(Kind::FileWatch);
                }
                Err(error) => self.faults.set(
                    Kind::FileWatch,
                    without(
                        "the policy's files are looked at every five seconds instead of at once",
                        &error,
                    ),
                ),
            }
        }
    }

    /// Removes records when there are many, and adds up their counts. Something of each sender is
    /// kept.
    fn make_room(&mut self) {
        let Ok(mut records) = self.kernel.records() else {
            return;
        };
        if records.len() > RECORDS_FULL {
            flood::order_to_keep(&mut records);
            let mut evicted = 0;
            for (key, value) in records.drain(RECORDS_KEPT..) {
                // The count may have grown since it was read: what counts is the value at removal.
                let count = self
                    .kernel
                    .record(&key)
                    .map_or(value.count, |value| value.count);
                if self.kernel.delete_record(&key).is_ok() {
                    self.ledger.forget(&key);
                    evicted += count;
                }
            }
            self.kernel.count_evicted(evicted);
        }
        let of_links = self.links.iter();
        let of_links = of_links.map(|link| (SubjectKind::Interface, link.index.into()));
        let keys = records.iter().map(|(key, _)| key);
        self.ledger.keep_names(keys, of_links);
    }

    /// Puts the policy in force if its files changed. A broken policy is reported once.
    async fn read(&mut self, outcome: Outcome, sources: &mut EventSources) {
        let Outcome {
            trigger,
            changed,
            exceeds_limit,
        } = outcome;
        match changed {
            Ok(Change::Same) => {
                self.policy_fault.clear();
                if trigger == Trigger::Signal {
                    print("the policy is unchanged");
                }
                self.answer_applied(&trigger, Ok(None));
            }
            Ok(Change::Waiting) => {
                if self.policy_fault.error().is_none() {
                    self.policy_fault.set(UNCONFIRMED.to_owned());
                }
            }
            Ok(Change::New(ready, _)) if self.options.manual && trigger == Trigger::Check => {
                self.waiting = Some(text_digest(&ready.texts));
                self.policy_fault.set(CHANGED.to_owned());
            }
            Ok(Change::New(ready, preflight)) => {
                let applied = self.follow(*ready, &trigger, &sources.links).await;
                if let (Ok(()), Some(preflight)) = (&applied, &preflight) {
                    preflight::report(preflight);
                }
                if let Err(error) = &applied {
                    self.not_put_in_force(text::chain(error), &trigger);
                }
                self.answer_applied(&trigger, applied.map(|()| preflight));
            }
            Err(error) => {
                self.not_put_in_force(text::chain(&error), &trigger);
                self.answer_applied(&trigger, Err(error));
            }
        }
        if trigger != Trigger::Check {
            self.report_reloaded();
        }
        if sources.files.is_some() {
            match exceeds_limit {
                true => self.faults.set(
                    Kind::FileWatch,
                    "the policy's files are looked at every five seconds instead of at once: the kernel's \
                     limit of inotify watches is reached; more: sysctl -w fs.inotify.max_user_watches=…"
                        .to_owned(),
                ),
                false => self.faults.clear(Kind::FileWatch),
            }
        }
        if let Some(trigger) = sources.reader.again() {
            sources.reader.request(trigger, self.baseline(), None);
        }
    }

    /// A policy is not put in force. One that is read again and again is told and counted once.
    fn not_put_in_force(&mut self, error: String, trigger: &Trigger) {
        if self.policy_fault.set(error) || *trigger != Trigger::Check {
            self.totals.failed += 1;
        }
    }

    /// Listens for Prometheus, if that is wanted and not done yet: an address may be added after
    /// the agent has started.
    fn serve_metrics(&mut self) {
        let Some(at) = self.options.metrics else {
            return;
        };
        if self.metrics.is_some() {
            return;
        }
        match Endpoint::open(at, self.reserve, self.commands.clone()) {
            Ok(endpoint) => {
                self.metrics = Some(endpoint);
                self.faults.clear(Kind::Metrics);
            }
            Err(error) => {
                let error = text::chain(&error);
                let error = format!("metrics cannot be served at {at}: {error}");
                self.faults.set(Kind::Metrics, error);
            }
        }
    }

    /// Removes the rules that held guarded ports while the kernel refused the programs: the programs do now.
    fn remove_fallback(&mut self) {
        match self.reserve.within(fallback::remove) {
            Ok(false) => {}
            Ok(true) => print(
                "the kernel takes the programs again: the rules of nftables that held the guarded ports are removed",
            ),
            Err(error) => print_as(
                Priority::Warning,
                &format!(
                    "the rules of nftables that held the guarded ports are still there: {}",
                    text::chain(&error)
                ),
            ),
        }
    }

    /// Sockets that have a port which the policy would not let them bind.
    pub(super) fn refused_listeners(&mut self) -> Vec<Listener> {
        let root = cgroups::below_mount(&self.cgroup_root);
        let (compiled, paths) = (&self.ready.compiled, &mut self.ledger.paths);
        let found = self
            .reserve
            .within(|| listeners::refused(compiled, paths, &root));
        match found {
            Ok(found) => {
                self.faults.clear(Kind::Sockets);
                found
            }
            Err(error) => {
                self.faults.set(Kind::Sockets, text::chain(&error));
                Vec::new()
            }
        }
    }

    /// What is declared but has no effect at present.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.ready.policy.warnings.clone();
        notes.extend(enforcer_policy::warnings_for_node(
            &self.ready.policy,
            &self.ready.compiled.node,
        ));
        notes.extend(self.ready.selectors.notes(&self.links));
        for rule in &self.ready.compiled.cgroups {
            let expand = || cgroups::expand(&self.cgroup_root, &rule.pattern);
            // The rule for the node's own init has no component, and its cgroup need not exist.
            if !rule.components.is_empty() && self.reserve.within(expand).is_empty() {
                let components = rule.components.join(", ");
                notes.push(format!(
                    "cgroup `{}` of {components} does not exist yet",
                    rule.pattern
                ));
            }
        }
        notes
    }
}

fn listen(kind: SignalKind) -> Result<Signal, AgentError> {
    signal(kind).map_err(AgentError::system("listen for signals"))
}
