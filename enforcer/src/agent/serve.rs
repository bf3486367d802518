//! The agent's life: begin, turn after turn, and an end that leaves nothing behind.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
    mem,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use enforcer_common::{limits, record::RecordKey, tables::Party};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, mpsc},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    AgentError, AgentOptions, Event, Output,
    control::{Ask, Control, Farewell},
    events::Teller,
    memory,
    start::{self, Lock, Ready},
    watch::{self, Watch},
};
use crate::{
    compile::PathNumbers,
    kernel::{
        CgroupPaths, Kernel, KernelError, KnownCgroup, Link, LinkEvents, Wakes, attach, cgroups,
        load::KernelLog,
    },
    policy,
};

/// Everything that lives as long as the agent.
pub struct Agent {
    pub(super) options: AgentOptions,
    pub(super) kernel: Kernel,
    pub(super) ready: Ready,
    pub(super) generation: u32,
    pub(super) since: SystemTime,
    pub(super) evicted: u64,
    pub(super) last_error: Option<String>,
    /// Why an interface is without its programs, if one is.
    pub(super) not_attached: Option<String>,
    cgroup_root: PathBuf,
    cgroups: HashMap<u64, Party>,
    paths: CgroupPaths,
    links: Vec<Link>,
    news: broadcast::Sender<Event>,
    ticks: u32,
    /// Whether there may be more records than when they were last counted.
    has_new_records: bool,
}

/// What the agent waits for.
struct Inbox {
    wakes: Wakes,
    links: LinkEvents,
    cgroups: Watch,
    files: Watch,
    log: Option<KernelLog>,
    asks: mpsc::Receiver<Ask>,
    tick: Interval,
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

/// One of the things that happen.
enum Turn {
    Denied(Vec<RecordKey>),
    Links,
    Cgroups,
    Files,
    Tick,
    Reload,
    Ask(Ask),
    Stop,
}

/// How often what nobody announces is looked after: room for records, the kernel's log.
const TICK: Duration = Duration::from_secs(1);
/// In how many ticks cgroups and files are looked at, whose news may have been lost, or which could not
/// be watched.
const LOOK: u32 = 5;
/// Records are removed when there are more than this, until there are at most [`RECORDS_KEPT`].
const RECORDS_FULL: usize = limits::MAX_RECORDS as usize / 4 * 3;
const RECORDS_KEPT: usize = limits::MAX_RECORDS as usize / 2;

/// Runs an agent to its end.
pub async fn run(options: AgentOptions) -> Result<(), AgentError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AgentError::NotRoot);
    }
    let texts = policy::read_sources(&options.inputs)?;
    let ready = start::prepare(&options, texts, &PathNumbers::default())?;
    let lock = start::lock(&options.run_dir)?;
    let (control, asks) = Control::open(&options.run_dir)?;
    let (mut agent, mut inbox) = begin(options, ready, asks).await?;
    agent.tell_begin();
    let farewell = agent.live(&mut inbox).await;
    // From here on nothing may fail, and all of it goes, in this order.
    agent.tell_end();
    drop((agent.kernel, inbox, control));
    drop::<Lock>(lock);
    if let Some(Farewell { done, written }) = farewell? {
        let _ = done.send(());
        let _ = tokio::time::timeout(Duration::from_secs(1), written).await;
    }
    Ok(())
}

/// Loads, applies and attaches. On failure, what was attached goes with the kernel handle.
async fn begin(
    options: AgentOptions,
    ready: Ready,
    asks: mpsc::Receiver<Ask>,
) -> Result<(Agent, Inbox), AgentError> {
    // From now on a signal is a wish to end, not a sudden death half-way.
    let hangup = listen(SignalKind::hangup())?;
    let interrupt = listen(SignalKind::interrupt())?;
    let terminate = listen(SignalKind::terminate())?;
    let links = LinkEvents::open()?;
    let there = links.list().await?;
    ready.selectors.check(&there)?;
    let cgroup_root = cgroups::root(&ready.cgroup_root)?;
    let mut kernel = Kernel::load(options.kernel_log)?;
    if attach::remove_leftovers(&there) > 0 {
        say("removed the filters of an agent that did not end by itself");
    }
    let known = cgroups::resolve(&cgroup_root, &ready.compiled.cgroups);
    // The policy must be there before the first packet is judged.
    kernel.apply(&ready.compiled, 1, &pairs(&known))?;
    let mut inbox = Inbox {
        wakes: kernel.wakes()?,
        links,
        cgroups: Watch::for_directories().map_err(AgentError::system("watch cgroups"))?,
        files: Watch::for_files().map_err(AgentError::system("watch the policy's files"))?,
        log: None,
        asks,
        tick: interval(TICK),
        hangup,
        interrupt,
        terminate,
    };
    inbox
        .tick
        .set_missed_tick_behavior(MissedTickBehavior::Delay);
    if options.kernel_log {
        match kernel.log() {
            Ok(log) => inbox.log = Some(log),
            Err(error) => say(&format!("no log of the kernel programs: {error}")),
        }
    }
    kernel.attach_interfaces(&ready.selectors.roles(&there), options.tc_mode)?;
    kernel.attach_cgroup(&cgroup_root)?;
    let mut agent = Agent {
        paths: CgroupPaths::new(&cgroup_root),
        cgroups: pairs(&known).into_iter().collect(),
        options,
        kernel,
        ready,
        generation: 1,
        since: SystemTime::now(),
        evicted: 0,
        last_error: None,
        not_attached: None,
        cgroup_root,
        links: there,
        news: broadcast::channel(1024).0,
        ticks: 0,
        has_new_records: true,
    };
    agent.learn_cgroups(&mut inbox.cgroups);
    inbox.files.only(watch::of_files(&agent.options.inputs));
    memory::give_back();
    Ok((agent, inbox))
}

impl Inbox {
    async fn next(&mut self) -> Result<Turn, AgentError> {
        let turn = tokio::select! {
            keys = self.wakes.next() => Turn::Denied(keys?),
            () = self.links.changed() => Turn::Links,
            () = self.cgroups.changed() => Turn::Cgroups,
            () = self.files.changed() => Turn::Files,
            _ = self.tick.tick() => Turn::Tick,
            _ = self.hangup.recv() => Turn::Reload,
            _ = self.interrupt.recv() => Turn::Stop,
            _ = self.terminate.recv() => Turn::Stop,
            Some(ask) = self.asks.recv() => Turn::Ask(ask),
        };
        Ok(turn)
    }
}

impl Agent {
    /// Until somebody ends it; by request, with whom to tell.
    async fn live(&mut self, inbox: &mut Inbox) -> Result<Option<Farewell>, AgentError> {
        loop {
            match inbox.next().await? {
                Turn::Denied(keys) => {
                    self.has_new_records = true;
                    self.tell(&keys);
                }
                Turn::Links => self.look_at_links(&inbox.links).await,
                Turn::Cgroups => self.learn_cgroups(&mut inbox.cgroups),
                Turn::Files => self.reload(false, inbox),
                Turn::Tick => {
                    if let Some(log) = &mut inbox.log {
                        log.flush();
                    }
                    self.ticks = self.ticks.wrapping_add(1);
                    // To count them takes a walk through all of their table.
                    if mem::take(&mut self.has_new_records) {
                        self.make_room();
                    }
                    if self.ticks.is_multiple_of(LOOK) {
                        self.learn_cgroups(&mut inbox.cgroups);
                        self.reload(false, inbox);
                        if self.not_attached.is_some() {
                            self.attach_interfaces();
                        }
                    }
                }
                Turn::Reload => self.reload(true, inbox),
                Turn::Stop => return Ok(None),
                Turn::Ask(Ask::Detach(farewell)) => return Ok(Some(farewell)),
                Turn::Ask(ask) => self.answer(ask),
            }
        }
    }

    fn answer(&mut self, ask: Ask) {
        // Whoever asked may have gone.
        match ask {
            Ask::Status(reply) => drop(reply.send(self.status().map_err(|e| e.to_string()))),
            Ask::Sources(reply) => drop(reply.send(self.sources())),
            Ask::Events(reply) => {
                // Subscribed first, so that none is missed between.
                let new = self.news.subscribe();
                let events = self.events().map(|events| (events, new));
                drop(reply.send(events.map_err(|e| e.to_string())));
            }
            Ask::Detach(_) => {}
        }
    }

    /// Tells new denials.
    fn tell(&mut self, keys: &[RecordKey]) {
        let mut teller = Teller::new(&self.ready, &self.kernel, &mut self.paths);
        for key in keys {
            let Some(value) = self.kernel.record(key) else {
                continue;
            };
            let event = teller.event(key, &value);
            print_event(self.options.output, &event);
            // Nobody may be listening.
            let _ = self.news.send(event);
        }
    }

    /// All denials there are, in the order of their last time.
    fn events(&mut self) -> Result<Vec<Event>, KernelError> {
        let mut records = self.kernel.records()?;
        records.sort_by_key(|(_, value)| value.last_ns);
        let mut teller = Teller::new(&self.ready, &self.kernel, &mut self.paths);
        Ok(records
            .iter()
            .map(|(key, value)| teller.event(key, value))
            .collect())
    }

    async fn look_at_links(&mut self, events: &LinkEvents) {
        match events.list().await {
            Ok(links) if links == self.links => {}
            Ok(links) => {
                self.links = links;
                self.attach_interfaces();
            }
            Err(error) => say(&error.to_string()),
        }
    }

    fn attach_interfaces(&mut self) {
        let roles = self.ready.selectors.roles(&self.links);
        match self.kernel.attach_interfaces(&roles, self.options.tc_mode) {
            Ok(changes) => {
                changes.iter().for_each(|change| say(change));
                self.not_attached = None;
            }
            Err(error) => {
                let error = error.to_string();
                if self.not_attached.as_deref() != Some(&error) {
                    say(&format!("{error}\ntried again until it works"));
                }
                self.not_attached = Some(error);
            }
        }
    }

    /// A declared cgroup may come at any time, with a new id each time, and go.
    fn learn_cgroups(&mut self, watch: &mut Watch) {
        self.paths.retry();
        let rules = &self.ready.compiled.cgroups;
        // What came before its parent was under watch is found by looking again.
        while watch.only(watch::of_cgroups(&self.cgroup_root, rules)) {}
        let known = cgroups::resolve(&self.cgroup_root, rules);
        for cgroup in &known {
            if self.cgroups.get(&cgroup.id) == Some(&cgroup.party) {
                continue;
            }
            match self.kernel.learn_cgroup(cgroup.id, cgroup.party) {
                Ok(()) => drop(self.cgroups.insert(cgroup.id, cgroup.party)),
                Err(error) => self.fail(error.to_string()),
            }
        }
        let gone: Vec<u64> = self
            .cgroups
            .keys()
            .filter(|id| !known.iter().any(|cgroup| cgroup.id == **id))
            .copied()
            .collect();
        for id in gone {
            match self.kernel.forget_cgroup(id) {
                Ok(()) => drop(self.cgroups.remove(&id)),
                Err(error) => self.fail(error.to_string()),
            }
        }
    }

    /// Removes the oldest records when they are many; what they counted is added up.
    fn make_room(&mut self) {
        let Ok(mut records) = self.kernel.records() else {
            return;
        };
        if records.len() <= RECORDS_FULL {
            return;
        }
        records.sort_by_key(|(_, value)| value.last_ns);
        for (key, value) in &records[..records.len() - RECORDS_KEPT] {
            // The count may have grown since it was read: what is removed is what counts.
            let count = self
                .kernel
                .record(key)
                .map_or(value.count, |value| value.count);
            if self.kernel.delete_record(key).is_ok() {
                self.evicted += count;
            }
        }
    }

    /// Puts the policy in force if its files changed. One that is broken is told once.
    fn reload(&mut self, asked: bool, inbox: &mut Inbox) {
        inbox.files.only(watch::of_files(&self.options.inputs));
        match self.changed_policy() {
            Ok(None) if asked => say("the policy is unchanged"),
            Ok(None) => self.last_error = None,
            Ok(Some(ready)) => match self.replace(ready) {
                Ok(()) => {
                    self.learn_cgroups(&mut inbox.cgroups);
                    say(&format!(
                        "policy `{}` is in force, generation {}",
                        self.ready.policy.name, self.generation
                    ));
                }
                Err(error) => self.fail(error.to_string()),
            },
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn changed_policy(&self) -> Result<Option<Ready>, AgentError> {
        if policy::is_unchanged(&self.options.inputs, &self.ready.texts) {
            return Ok(None);
        }
        let texts = policy::read_sources(&self.options.inputs)?;
        let ready = start::prepare(&self.options, texts, &self.ready.numbers)?;
        ready.selectors.check(&self.links)?;
        Ok(Some(ready))
    }

    fn replace(&mut self, ready: Ready) -> Result<(), AgentError> {
        // The programs stay attached where they are: the root itself can not change.
        let known = cgroups::resolve(&self.cgroup_root, &ready.compiled.cgroups);
        let generation = self.generation.checked_add(1).unwrap_or(1);
        self.kernel
            .apply(&ready.compiled, generation, &pairs(&known))?;
        self.cgroups = pairs(&known).into_iter().collect();
        self.generation = generation;
        self.since = SystemTime::now();
        self.ready = ready;
        self.last_error = None;
        self.attach_interfaces();
        memory::give_back();
        Ok(())
    }

    /// Tells an error, once.
    fn fail(&mut self, error: String) {
        if self.last_error.as_deref() != Some(&error) {
            say(&format!("{error}\nwhat was in force stays in force"));
            self.last_error = Some(error);
        }
    }

    /// How many declared cgroups the kernel knows.
    pub(super) fn known_cgroups(&self) -> u64 {
        self.cgroups.len() as u64
    }

    /// Declared, and of no effect at present.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.ready.policy.notes.clone();
        notes.extend(policy::notes_for_node(
            &self.ready.policy,
            &self.ready.compiled.node,
        ));
        notes.extend(self.ready.selectors.notes(&self.links));
        for rule in &self.ready.compiled.cgroups {
            if !rule.components.is_empty()
                && cgroups::expand(&self.cgroup_root, &rule.pattern).is_empty()
            {
                let components = rule.components.join(", ");
                notes.push(format!(
                    "cgroup `{}` of {components} does not exist yet",
                    rule.pattern
                ));
            }
        }
        notes
    }

    fn tell_begin(&self) {
        let Ok(status) = self.status() else { return };
        say(&format!(
            "policy `{}` is in force on node `{}`: {}, other traffic {}, {} attachments",
            status.policy,
            status.node,
            status.mode,
            status.other_traffic,
            status.attachments.len()
        ));
        status
            .notes
            .iter()
            .for_each(|note| say(&format!("note: {note}")));
    }

    /// A table of all denials, the most frequent first.
    fn tell_end(&mut self) {
        let Ok(events) = self.events() else { return };
        if events.is_empty() || self.options.output == Output::Json {
            return;
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::TableStyle::new());
        table.set_header(["COUNT", "VERDICT", "FROM", "TO", "REASON"]);
        let mut rows: BTreeMap<[String; 4], u64> = BTreeMap::new();
        for event in events {
            let verdict = if event.is_dropped() {
                "dropped"
            } else {
                "would drop"
            };
            let to = match event.endpoint.as_str() {
                "" => event.target(),
                endpoint => format!("{} ({endpoint})", event.target()),
            };
            let row = [verdict.to_owned(), event.sender(), to, event.reason];
            *rows.entry(row).or_default() += event.count;
        }
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for ([verdict, from, to, reason], count) in rows {
            table.add_row([count.to_string(), verdict, from, to, reason]);
        }
        let _ = writeln!(std::io::stdout(), "{table}");
    }
}

fn print_event(output: Output, event: &Event) {
    let line = match output {
        Output::Text => event.to_string(),
        Output::Json => serde_json::to_string(event).unwrap_or_default(),
    };
    // Enforcement goes on, whether somebody reads or not.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "enforcer: {text}");
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
