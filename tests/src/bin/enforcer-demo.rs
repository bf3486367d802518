//! The product's main job on real traffic, in the lab: without a policy, in dry-run, enforced.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use enforcer_tests::Lab;
use enforcer_tests::product::{Agent, Event, PolicyText};
use enforcer_tests::scenario::{Expected, Family, Row, Tried, rows};

/// Shows connections in a lab without policy, in dry-run, and enforced
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Use IPv6 addresses
    #[arg(long)]
    ipv6: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A row's outcomes in the three rounds.
struct Line {
    row: Row,
    rounds: Vec<Tried>,
    named: String,
    as_expected: bool,
}

fn run(arguments: &Arguments) -> Result<bool> {
    let started = Instant::now();
    let family = if arguments.ipv6 {
        Family::V6
    } else {
        Family::V4
    };
    let mut lab = Lab::builder().full().build()?;
    lab.expose_insecure_port()?;
    lab.expose_loopback()?;
    println!(
        "lab     cp1 (apiserver, etcd with mutual TLS), w1 (worker), a pod on each, a neighbour: up after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    println!(
        "        the apiserver's insecure port is open on cp1's own address, and pods hold the apiserver's etcd certificate"
    );
    let mut lines: Vec<Line> = rows(&lab, family)
        .into_iter()
        .map(|row| Line {
            row,
            rounds: Vec::new(),
            named: String::new(),
            as_expected: true,
        })
        .collect();
    println!("\n1. without a policy: {} connections", lines.len());
    attempt(&lab, &mut lines)?;

    println!("2. dry-run: enforcer run -p lab.yaml --dry-run, on cp1 and w1");
    let agents = ["cp1", "w1"]
        .map(|node| Agent::start_with(&lab, node, &PolicyText::default(), &["--dry-run"]));
    let agents = agents.into_iter().collect::<Result<Vec<_>>>()?;
    attempt(&lab, &mut lines)?;
    let reported = reported(&agents)?;
    for agent in agents {
        agent
            .stop()?
            .checked()
            .context("the agent did not stop cleanly")?;
    }

    println!("3. enforced: enforcer run -p lab.yaml, on cp1 and w1\n");
    let agents = Agent::on_both(&lab, &PolicyText::default())?;
    attempt(&lab, &mut lines)?;
    let denied = self::reported(&agents)?;
    for line in &mut lines {
        line.judge(&reported, &denied, &agents)?;
    }
    print_table(&lines);
    println!("\nwhat cp1's agent says was denied, and why (enforcer events):\n");
    let ran = agents[0].command(&["events"])?.checked()?;
    for line in ran.stdout.lines().take(12) {
        println!("  {line}");
    }
    let fine = lines.iter().all(|line| line.as_expected);
    println!(
        "\n{} connections, {} as the policy says; {:.1} s",
        lines.len(),
        if fine { "all" } else { "NOT all" },
        started.elapsed().as_secs_f64()
    );
    lab.close()?;
    Ok(fine)
}

fn attempt(lab: &Lab, lines: &mut [Line]) -> Result<()> {
    for line in lines {
        let tried = line.row.run(lab).with_context(|| line.row.name())?;
        line.rounds.push(tried);
    }
    Ok(())
}

fn reported(agents: &[Agent]) -> Result<Vec<(String, Event)>> {
    let mut all = Vec::new();
    for agent in agents {
        all.extend(
            agent
                .events()?
                .into_iter()
                .map(|event| (agent.node().to_owned(), event)),
        );
    }
    ensure!(!all.is_empty(), "the agents report no denial at all");
    Ok(all)
}

impl Line {
    fn judge(
        &mut self,
        dry_run: &[(String, Event)],
        enforced: &[(String, Event)],
        agents: &[Agent],
    ) -> Result<()> {
        let worked: Vec<bool> = self.rounds.iter().map(|tried| tried.worked).collect();
        match self.row.expected {
            Expected::Denied(reason) => {
                let is_told = |events: &[(String, Event)]| {
                    events.iter().any(|(node, event)| {
                        node == self.row.judge && event.reason == reason && self.row.is_about(event)
                    })
                };
                self.as_expected =
                    worked == [true, true, false] && is_told(dry_run) && is_told(enforced);
                self.named = format!("denied: {reason}");
            }
            Expected::Path(path) => {
                let agent = agents.iter().find(|agent| agent.node() == self.row.judge);
                let agent = agent.context("no agent judges this")?;
                self.as_expected = worked == [true; 3] && agent.path_packets(path)?.0 > 0;
                self.named = format!("path {path}");
            }
            Expected::Other => {
                self.as_expected = worked == [true; 3];
                self.named = "other traffic".to_owned();
            }
        }
        Ok(())
    }
}

fn print_table(lines: &[Line]) {
    let heads = [
        "who",
        "to what",
        "no policy",
        "dry-run",
        "enforced",
        "path or reason",
    ];
    let mut cells: Vec<[String; 6]> = vec![heads.map(str::to_owned)];
    for line in lines {
        let round = |index: usize| {
            line.rounds.get(index).map_or(String::new(), |tried| {
                let mark = if tried.worked { "works" } else { "fails" };
                format!("{mark} ({})", tried.how)
            })
        };
        let mark = if line.as_expected {
            ""
        } else {
            "  <- NOT AS EXPECTED"
        };
        cells.push([
            line.row.who.to_owned(),
            line.row.what.to_owned(),
            round(0),
            round(1),
            round(2),
            format!("{}{mark}", line.named),
        ]);
    }
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    for (index, row) in cells.iter().enumerate() {
        let padded = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
        if index == 0 {
            println!(
                "{}",
                widths
                    .iter()
                    .map(|w| "-".repeat(*w))
                    .collect::<Vec<_>>()
                    .join("  ")
            );
        }
    }
}
