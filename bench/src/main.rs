//! `cargo xtask bench`: the product beside its peers in one run, in labs of network namespaces.

mod beside;
mod bpf;
mod chart;
mod connections;
mod established;
mod filter;
mod frames;
mod in_use;
mod life;
mod load;
mod measure;
mod policy;
mod receive;
mod report;
mod scale;
mod targets;
mod veth;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use enforcer_tests::sweep;

use beside::Build;
use filter::Filter;
use load::Work;
use measure::Measures;
use policy::Family;

/// How much is done.
#[derive(Debug)]
pub struct Effort {
    /// How often each thing is measured, all of them in turn.
    pub rounds: usize,
    /// The same for received packets, of which one measurement is short: many short ones in turn see the same
    /// machine, whatever else it does.
    pub packet_rounds: usize,
    /// Frames of one measurement.
    pub frames: u32,
    /// As for packets, of loads.
    pub load_rounds: usize,
    /// Time of a load.
    pub load: Duration,
    /// Scales.
    pub addresses: &'static [u32],
    /// Of addresses.
    pub families: &'static [Family],
    /// Scales.
    pub paths: &'static [u16],
    /// Scales.
    pub nodes: &'static [u16],
    /// Other builds of the product that are measured with it.
    pub beside: Vec<Build>,
}

impl Effort {
    /// The same for a comparison with other builds, if there are any: more rounds, one scale, one family.
    fn beside(self, beside: Vec<Build>) -> Self {
        if beside.is_empty() {
            return self;
        }
        let last = self.addresses.len() - 1;
        Self {
            addresses: &self.addresses[last..],
            families: &[Family::V4],
            packet_rounds: self.packet_rounds * 8,
            beside,
            ..self
        }
    }

    /// The filters to compare: all of them, or the product and the other builds, with what costs least.
    pub fn filters(&self, all: &[Filter]) -> Vec<Filter> {
        if self.beside.is_empty() {
            return all.to_vec();
        }
        let own = all.iter().copied().filter(|filter| !filter.is_peer());
        let others = self.beside.iter().map(|build| Filter::Beside(*build));
        own.chain(others).collect()
    }
}

const FULL: Effort = Effort {
    rounds: 7,
    packet_rounds: 25,
    frames: 20_000,
    load_rounds: 25,
    load: Duration::from_millis(280),
    addresses: &[10, 1000, 100_000],
    families: &[Family::V4, Family::V6],
    paths: &[1, 30, 1000],
    nodes: &[100, 1000, 5000, 15_000],
    beside: Vec::new(),
};

const QUICK: Effort = Effort {
    rounds: 2,
    packet_rounds: 3,
    frames: 20_000,
    load_rounds: 5,
    load: Duration::from_millis(100),
    addresses: &[10, 100_000],
    families: &[Family::V4, Family::V6],
    paths: &[1, 1000],
    nodes: &[100, 5000],
    beside: Vec::new(),
};

/// Measures the product beside its peers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    /// Less of everything, in less than two minutes: for a look while something is changed.
    #[arg(long)]
    quick: bool,
    /// Measures this part only.
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Writes the tables, the charts and the figures into this directory, and adds the run to the
    /// history there.
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
    /// Measures another build of `enforcer` in the same rounds, as a column of its own. May be given several times. Peers,
    /// smaller policies and IPv6 are left out, for more rounds.
    #[arg(long, value_name = "PATH")]
    beside: Vec<PathBuf>,
    #[command(subcommand)]
    end: Option<End>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Packets that are dropped.
    Denied,
    /// Packets of open connections.
    Accepted,
    /// New connections, requests, a stream.
    Connections,
    /// Programs, policies, memory, processor, start.
    Life,
    /// Policies for many nodes.
    Scale,
}

/// What is a process of its own: the ends of a connection, and one with little memory.
#[derive(Debug, clap::Subcommand)]
enum End {
    /// Answers.
    #[command(hide = true)]
    Serve { at: SocketAddr },
    /// Asks.
    #[command(hide = true)]
    Ask {
        to: SocketAddr,
        work: Work,
        #[arg(long)]
        ms: u64,
    },
    /// Checks a policy, and prints how long that took and how much memory.
    #[command(hide = true)]
    Weigh { policy: PathBuf },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.end {
        Some(End::Serve { at }) => return load::serve(*at).map(|()| ExitCode::SUCCESS),
        Some(End::Ask { to, work, ms }) => {
            let outcome = load::ask(*to, *work, Duration::from_millis(*ms))?;
            println!("{}", serde_json::to_string(&outcome)?);
            return Ok(ExitCode::SUCCESS);
        }
        Some(End::Weigh { policy }) => {
            return scale::weigh(policy).map(|()| ExitCode::SUCCESS);
        }
        None => {}
    }
    let missing = filter::missing();
    if !missing.is_empty() {
        bail!(
            "not on this machine: {}; run `cargo xtask setup`",
            missing.join(", ")
        );
    }
    sweep::sweep()?;
    let builds = cli.beside.iter().map(|file| Build::of(file));
    let effort = if cli.quick { QUICK } else { FULL };
    let effort = &effort.beside(builds.collect::<Result<_>>()?);
    let wanted = |part: Part| cli.only.is_none_or(|only| only == part);
    let began = Instant::now();
    let mut measures = Measures::default();
    let step = |what: &str| eprintln!("bench: {what} ({} s so far)", began.elapsed().as_secs());
    if wanted(Part::Denied) {
        step("denied packets");
        receive::denied(&mut measures, effort)?;
        if effort.beside.is_empty() {
            receive::denied_by_paths(&mut measures, effort)?;
        }
    }
    if wanted(Part::Accepted) {
        step("packets of open connections");
        receive::accepted(&mut measures, effort)?;
    }
    if wanted(Part::Connections) {
        step("connections");
        connections::connections(&mut measures, effort)?;
    }
    if wanted(Part::Life) {
        step("programs, policies, memory, start");
        life::life(&mut measures, effort)?;
    }
    if wanted(Part::Scale) {
        step("policies for many nodes");
        scale::scale(&mut measures, effort)?;
    }
    let machine = report::Machine::here(began.elapsed());
    print!("{machine}\n{}", measures.tables());
    let others: Vec<&str> = effort.beside.iter().map(|build| build.name).collect();
    print!("{}", measures.beside(Filter::Enforcer.name(), &others));
    let verdicts = targets::judge(&measures);
    print!("{}", targets::table(&verdicts));
    if let Some(directory) = &cli.write {
        report::write(directory, &machine, &measures, &verdicts)?;
    }
    Ok(ExitCode::SUCCESS)
}
