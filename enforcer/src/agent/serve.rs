//! The agent's life: begin, turn after turn, and an end that leaves nothing behind.

use std::{
    fs::File,
    io, mem,
    path::{Path, PathBuf},
    time::Duration,
};

use enforcer_common::{limits, record::RecordKey, tables::Party};
use enforcer_policy::{compile::PathNumbers, text};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, mpsc},
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use super::{
    AgentError, AgentOptions, Event, Listener, SubjectKind,
    control::{Command, Control, ShutdownAck},
    faults::{Faults, Kind, PolicyFault},
    flood,
    interfaces::list_at_start,
    ledger::{InForce, Ledger, boot_time},
    listeners, memory,
    print::print,
    reader::{Asked, Outcome, Reader},
    room::Room,
    start::{self, Lock, Ready},
    watch::{self, Directories},
};
use crate::{
    files,
    kernel::{
        CgroupPaths, Found, Kernel, KernelError, KnownCgroup, Link, LinkEvents, Pins, Wakes,
        cgroups, filters, load::KernelLog,
    },
};

/// Everything that lives as long as the agent.
pub struct Agent {
    pub(super) options: AgentOptions,
    pub(super) kernel: Kernel,
    pub(super) ready: Ready,
    /// What does not work at present.
    pub(super) faults: Faults,
    /// What became of the newest policy.
    pub(super) policy_fault: PolicyFault,
    pub(super) room: Room,
    pub(super) cgroup_root: PathBuf,
    /// The inode of the cgroup root that programs are attached to, or as many of them as can be.
    pub(super) attached_root: Option<u64>,
    /// What tells where declared cgroups come and go; nothing where the kernel has no more of them.
    directories: Option<Directories>,
    pub(super) ledger: Ledger,
    pub(super) links: Vec<Link>,
    pub(super) news: broadcast::Sender<Event>,
    pub(super) budget: flood::Budget,
    ticks: u32,
    /// Whether nothing is left of agents before this one.
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

/// One of the things that happen.
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

/// How often what nobody announces is looked after: room for records, the kernel's log.
const TICK: Duration = Duration::from_secs(1);
/// In how many ticks interfaces, cgroups and files are looked at, whose news may have been lost, or which could
/// not be watched, and what did not work is tried again.
const LOOK: u32 = 5;
/// Records are removed when there are more than this, until there are at most [`RECORDS_KEPT`].
const RECORDS_FULL: usize = limits::MAX_RECORDS as usize / 4 * 3;
const RECORDS_KEPT: usize = limits::MAX_RECORDS as usize / 2;

/// Runs an agent to its end.
pub async fn run(options: AgentOptions) -> Result<(), AgentError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    let texts = files::read_again_and_again(&options.inputs)?;
    // A policy that is not valid is told before anything is touched.
    let numbers = PathNumbers::default();
    let mut ready = start::prepare(&options, texts, &numbers)?;
    let lock = start::lock(&options.run_dir)?;
    let found = look_for_pins(&options)?;
    if let Some(found) = &found
        && !found.kept().names.is_empty()
    {
        // Paths keep the numbers that they have in what is pinned.
        let numbers = PathNumbers::from_names(found.kept().names.iter().cloned());
        ready = start::prepare(&options, ready.texts.to_vec(), &numbers)?;
    }
    let room = Room::reserve();
    let (control, commands) = Control::open(&options.run_dir, room)?;
    let (mut agent, mut sources) = begin(options, ready, found, commands, room).await?;
    agent.print_start();
    let shutdown = agent.live(&mut sources).await;
    // From here on nothing may fail, and all of it goes, in this order.
    agent.print_summary();
    match (&shutdown, agent.kernel.pinned_at()) {
        (None, Some(_)) => print(
            "the agent ends, and what is in force stays in force without it: `enforcer detach` ends that, and \
             `enforcer run` takes over",
        ),
        _ => {
            if let Err(error) = agent.kernel.detach() {
                print(&text::chain(&error));
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

/// What an agent before this one left pinned; nothing where enforcement is to end with this one.
fn look_for_pins(options: &AgentOptions) -> Result<Option<Found>, AgentError> {
    let pins = Pins::new(&options.pin_dir);
    if options.pin {
        let found = Found::look(&pins)?;
        return Ok(Some(found));
    }
    if pins.is_empty() {
        return Ok(None);
    }
    let path = options.pin_dir.clone();
    Err(KernelError::PinsLeft { path }.into())
}

/// Loads, applies and attaches. What can not be attached is tried again later; on failure, what was attached goes
/// with the kernel handle.
async fn begin(
    options: AgentOptions,
    ready: Ready,
    found: Option<Found>,
    commands: mpsc::Receiver<Command>,
    room: Room,
) -> Result<(Agent, EventSources), AgentError> {
    // From now on a signal is a wish to end, not a sudden death half-way.
    let hangup = listen(SignalKind::hangup())?;
    let interrupt = listen(SignalKind::interrupt())?;
    let terminate = listen(SignalKind::terminate())?;
    let links = LinkEvents::open()?;
    let there = list_at_start(&links).await?;
    ready.selectors.check(&there)?;
    let cgroup_root = cgroups::root(&ready.cgroup_root)?;
    if let Some(what) = found.as_ref().and_then(Found::describe) {
        print(&what);
    }
    let mut kernel = Kernel::load(found, options.kernel_log)?;
    kernel.know_filters(&filters::leftovers().await?);
    // The policy must be there before the first packet is judged.
    if !kernel.resume(ready.as_new())? {
        let known = cgroups::resolve(&cgroup_root, &ready.compiled.cgroups);
        kernel.apply(ready.as_new(), &pairs(&known))?;
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
            Err(error) => print(&format!("no log of the kernel programs: {error}")),
        }
    }
    let mut agent = Agent {
        ledger: Ledger::new(CgroupPaths::new(&cgroup_root)),
        directories: None,
        options,
        kernel,
        ready,
        faults: Faults::default(),
        policy_fault: PolicyFault::default(),
        room,
        cgroup_root,
        attached_root: None,
        links: there,
        news: broadcast::channel(1024).0,
        budget: flood::Budget::default(),
        ticks: 0,
        has_retired_others: false,
        has_new_records: true,
    };
    agent.attach_interfaces(&sources.links).await;
    agent.attach_root();
    agent.retire_others();
    agent.watch(&mut sources);
    agent.learn_cgroups();
    // Once more, now that it is watched.
    sources.reader.look(Asked::ByAgent, &agent.ready, None);
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
            Some(ask) = self.commands.recv() => AgentEvent::Command(ask),
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
    /// Until somebody ends it; by request, with whom to tell.
    async fn live(&mut self, sources: &mut EventSources) -> Option<ShutdownAck> {
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
                AgentEvent::Links => self.look_at_links(&sources.links).await,
                AgentEvent::Cgroups => self.learn_cgroups(),
                AgentEvent::Files => sources.reader.look(Asked::ByAgent, &self.ready, None),
                AgentEvent::Read(outcome) => self.read(outcome, sources).await,
                AgentEvent::Tick => self.tick(sources).await,
                AgentEvent::Reload => sources.reader.look(Asked::ByPerson, &self.ready, None),
                AgentEvent::Stop => return None,
                AgentEvent::Command(Command::Detach(shutdown)) => return Some(shutdown),
                AgentEvent::Command(ask) => self.answer(ask),
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
            left => print(&format!(
                "{left} new denials of this second are left out here: see `enforcer events`"
            )),
        }
        if self.ledger.is_unsettled() {
            let records = self.kernel.records().unwrap_or_default();
            self.ledger.settle(&records);
            memory::give_back();
        }
        // To count them takes a walk through all of their table.
        if mem::take(&mut self.has_new_records) {
            self.make_room();
        }
        if sources.reader.is_late() {
            self.policy_fault.set(
                "the policy's files are being read for more than 10 s: does their file system answer?"
                    .to_owned(),
            );
        }
        if self.ticks.is_multiple_of(LOOK) {
            self.watch(sources);
            self.look_at_links(&sources.links).await;
            if self.faults.get(Kind::Interfaces).is_some() {
                self.attach_interfaces(&sources.links).await;
            }
            self.attach_root();
            self.retire_others();
            sources.reader.look(Asked::ByAgent, &self.ready, None);
        }
        if self.ticks.is_multiple_of(LOOK) || self.directories.is_none() {
            self.learn_cgroups();
        }
    }

    fn answer(&mut self, ask: Command) {
        // Whoever asked may have gone.
        match ask {
            Command::Status(reply) => drop(reply.send(self.status().map_err(|e| text::chain(&e)))),
            Command::Sources(reply) => drop(reply.send(self.sources())),
            Command::Events(reply) => {
                // Subscribed first, so that none is missed between.
                let new = self.news.subscribe();
                let events = self.events().map(|events| (events, new));
                drop(reply.send(events.map_err(|e| text::chain(&e))));
            }
            Command::Detach(_) => {}
        }
    }

    /// All denials there are, in the order of their last time; if they are many, one of each sender and endpoint
    /// comes first.
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

    /// Has directories watched, unless that is done. Without that, they are looked at by the clock.
    fn watch(&mut self, sources: &mut EventSources) {
        let without = |what: &str, error: &io::Error| {
            let error = text::chain(error);
            format!(
                "{what} ({error}): the kernel's limit of inotify instances is reached; more: \
                 sysctl -w fs.inotify.max_user_instances=…"
            )
        };
        if self.directories.is_none() {
            match self.room.within(watch::for_directories) {
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
            match self.room.within(watch::for_files) {
                Ok((events, directories)) => {
                    sources.files = Some(events);
                    let look = Some(directories);
                    sources.reader.look(Asked::ByAgent, &self.ready, look);
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

    /// A declared cgroup may come at any time, with a new id each time, and go.
    fn learn_cgroups(&mut self) {
        self.ledger.paths.retry();
        // What can not be looked at is not taken for gone.
        let looked = self.room.within(|| {
            let root = File::open(&self.cgroup_root);
            if let Err(error) = root
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            Ok(look_at_cgroups(
                &self.cgroup_root,
                &self.ready,
                &mut self.directories,
            ))
        });
        let known = match looked {
            Ok(known) => known,
            Err(error) => {
                let error = text::chain(&error);
                let error = format!("failed to look for the declared cgroups: {error}");
                return self.faults.set(Kind::Cgroups, error);
            }
        };
        let mut result = Ok(());
        for cgroup in &known {
            if self.kernel.cgroups().get(&cgroup.id) == Some(&cgroup.party) {
                continue;
            }
            result = result.and(self.kernel.learn_cgroup(cgroup.id, cgroup.party));
        }
        let gone: Vec<u64> = self
            .kernel
            .cgroups()
            .keys()
            .filter(|id| !known.iter().any(|cgroup| cgroup.id == **id))
            .copied()
            .collect();
        for id in gone {
            result = result.and(self.kernel.forget_cgroup(id));
        }
        let has_no_room = self
            .directories
            .as_ref()
            .is_some_and(Directories::has_no_room);
        match result {
            Err(error) => self.faults.set(Kind::Cgroups, text::chain(&error)),
            Ok(()) if has_no_room => self.faults.set(
                Kind::Cgroups,
                "some directories of declared cgroups are looked at every five seconds instead of at once: \
                 the kernel's limit of inotify watches is reached; more: sysctl -w \
                 fs.inotify.max_user_watches=…"
                    .to_owned(),
            ),
            Ok(()) => self.faults.clear(Kind::Cgroups),
        }
    }

    /// Removes records when they are many; what they counted is added up. Of each sender something is kept.
    fn make_room(&mut self) {
        let Ok(mut records) = self.kernel.records() else {
            return;
        };
        if records.len() > RECORDS_FULL {
            flood::order_to_keep(&mut records);
            let mut evicted = 0;
            for (key, value) in records.drain(RECORDS_KEPT..) {
                // The count may have grown since it was read: what is removed is what counts.
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

    /// Puts the policy in force if its files changed. One that is broken is told once.
    async fn read(&mut self, outcome: Outcome, sources: &mut EventSources) {
        let Outcome {
            asked,
            changed,
            has_no_room,
        } = outcome;
        match changed {
            Ok(None) => {
                self.policy_fault.clear();
                if asked == Asked::ByPerson {
                    print("the policy is unchanged");
                }
            }
            Ok(Some(ready)) => match self.replace(*ready, &sources.links).await {
                Ok(()) => {
                    self.learn_cgroups();
                    print(&format!(
                        "policy `{}` is in force, generation {}",
                        self.ready.policy.name,
                        self.kernel.generation()
                    ));
                    self.policy_fault.clear();
                    self.print_warnings();
                }
                Err(error) => self.policy_fault.set(text::chain(&error)),
            },
            Err(error) => self.policy_fault.set(text::chain(&error)),
        }
        if sources.files.is_some() {
            match has_no_room {
                true => self.faults.set(
                    Kind::FileWatch,
                    "the policy's files are looked at every five seconds instead of at once: the kernel's \
                     limit of inotify watches is reached; more: sysctl -w fs.inotify.max_user_watches=…"
                        .to_owned(),
                ),
                false => self.faults.clear(Kind::FileWatch),
            }
        }
        if let Some(asked) = sources.reader.again() {
            sources.reader.look(asked, &self.ready, None);
        }
    }

    async fn replace(&mut self, ready: Ready, links: &LinkEvents) -> Result<(), AgentError> {
        ready.selectors.check(&self.links)?;
        // The programs stay attached where they are: the root itself can not change.
        let resolve = || cgroups::resolve(&self.cgroup_root, &ready.compiled.cgroups);
        let known = self.room.within(resolve);
        let generation = self.kernel.generation();
        self.kernel.apply(ready.as_new(), &pairs(&known))?;
        let before = mem::replace(&mut self.ready, ready);
        // Without them, what nobody has named keeps its addresses alone.
        let records = self.kernel.records().unwrap_or_default();
        self.ledger.succeed(generation, before, &records);
        self.attach_interfaces(links).await;
        memory::give_back();
        Ok(())
    }

    /// Sockets that have a port which the policy would not let them bind.
    pub(super) fn refused_listeners(&mut self) -> Vec<Listener> {
        let root = cgroups::below_mount(&self.cgroup_root);
        let (compiled, paths) = (&self.ready.compiled, &mut self.ledger.paths);
        let found = self
            .room
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

    /// How many declared cgroups the kernel knows.
    pub(super) fn known_cgroups(&self) -> u64 {
        self.kernel.cgroups().len() as u64
    }

    /// Declared, and of no effect at present.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.ready.policy.warnings.clone();
        notes.extend(enforcer_policy::warnings_for_node(
            &self.ready.policy,
            &self.ready.compiled.node,
        ));
        notes.extend(self.ready.selectors.notes(&self.links));
        for rule in &self.ready.compiled.cgroups {
            let expand = || cgroups::expand(&self.cgroup_root, &rule.pattern);
            // That of the node's own init has no component, and need not be there.
            if !rule.components.is_empty() && self.room.within(expand).is_empty() {
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

/// The declared cgroups that are there, with all directories watched in which one may come.
fn look_at_cgroups(
    root: &Path,
    ready: &Ready,
    directories: &mut Option<Directories>,
) -> Vec<KnownCgroup> {
    let rules = &ready.compiled.cgroups;
    if let Some(directories) = directories {
        // What came before its parent was under watch is found by looking again.
        while directories.only(watch::of_cgroups(root, rules)) {}
    }
    cgroups::resolve(root, rules)
}

fn pairs(known: &[KnownCgroup]) -> Vec<(u64, Party)> {
    known
        .iter()
        .map(|cgroup| (cgroup.id, cgroup.party))
        .collect()
}

fn listen(kind: SignalKind) -> Result<Signal, AgentError> {
    signal(kind).map_err(AgentError::system("listen for signals"))
}
