//! What connections cost: new ones, requests over one, and a stream; within the node and between two.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use enforcer::kernel::Kernel;
use enforcer_tests::process::Running;
use enforcer_tests::{Lab, Workload};

use crate::Effort;
use crate::filter::{Empty, Filter, Site};
use crate::in_use;
use crate::load::{Outcome, Work};
use crate::measure::Measures;
use crate::policy::{Family, GUARDED, Scale};

pub const GROUP: &str = "Connections";

/// Where the two ends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Loopback,
    BetweenNodes,
}

impl Route {
    /// Its name in the rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::BetweenNodes => "between nodes",
        }
    }

    const fn server(self) -> SocketAddr {
        match self {
            Self::Loopback => SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), GUARDED),
            Self::BetweenNodes => Family::V4.guarded(),
        }
    }

    fn client(self, lab: &Lab) -> Workload {
        match self {
            Self::Loopback => lab.login("cp1"),
            Self::BetweenNodes => lab.login("w1"),
        }
    }
}

/// All of them, in turn.
pub fn connections(measures: &mut Measures, effort: &Effort) -> Result<()> {
    let scale = Scale {
        family: Family::V4,
        addresses: 1000,
        paths: 30,
    };
    let mut sites = Vec::new();
    for filter in effort.filters(&[
        Filter::Nothing,
        Filter::EmptyHooks,
        Filter::Enforcer,
        Filter::NftInput,
        Filter::Iptables,
    ]) {
        let site = Site::build(filter, scale, Empty::LetsPass)?;
        let servers = [Route::Loopback, Route::BetweenNodes].map(|route| server(&site.lab, route));
        let [here, there] = servers;
        sites.push((site, [here?, there?]));
    }
    for route in [Route::Loopback, Route::BetweenNodes] {
        for work in [Work::Connections, Work::Requests, Work::Stream] {
            for _ in 0..effort.load_rounds {
                for (site, _servers) in &sites {
                    let outcome = client(&site.lab, route, work, effort.load)
                        .with_context(|| format!("{}, {}", site.filter.name(), route.name()))?;
                    record(measures, route, work, site.filter, outcome);
                }
            }
        }
    }
    for _ in 0..effort.rounds {
        for (site, _servers) in &sites {
            if !matches!(
                site.filter,
                Filter::EmptyHooks | Filter::Enforcer | Filter::Beside(_)
            ) {
                continue;
            }
            for route in [Route::Loopback, Route::BetweenNodes] {
                let (outcome, programs) =
                    in_use::counted(|| client(&site.lab, route, Work::Connections, effort.load))?;
                let connections = outcome.rate * effort.load.as_secs_f64();
                for (program, runs) in programs {
                    let row = match site.filter {
                        // So much of each figure is what keeping the account takes.
                        Filter::EmptyHooks => program.is_empty().then_some("empty programs"),
                        _ => Kernel::program_names().find(|name| in_use::is_called(&program, name)),
                    };
                    let Some(row) = row else { continue };
                    let route = match site.filter {
                        Filter::Beside(build) => &format!("{}, {}", build.name, route.name()),
                        _ => route.name(),
                    };
                    in_use::record(measures, route, row, runs, connections);
                }
            }
        }
    }
    Ok(())
}

/// The row of a rate.
pub fn rate_row(route: Route, work: Work) -> String {
    let what = match work {
        Work::Connections => "new connections",
        Work::Requests => "requests over one connection",
        Work::Stream => "one stream",
    };
    format!("{what}, {}", route.name())
}

fn record(measures: &mut Measures, route: Route, work: Work, filter: Filter, outcome: Outcome) {
    let row = rate_row(route, work);
    let name = filter.name();
    if work == Work::Stream {
        measures.add(GROUP, &row, name, "MB/s", outcome.rate / 1e6);
        return;
    }
    measures.add(GROUP, &row, name, "/s", outcome.rate);
    measures.add(
        GROUP,
        &format!("{row}, median"),
        name,
        "µs",
        outcome.median_us,
    );
    measures.add(
        GROUP,
        &format!("{row}, 99 of 100"),
        name,
        "µs",
        outcome.p99_us,
    );
}

fn server(lab: &Lab, route: Route) -> Result<Running> {
    let place = lab.daemon("cp1", "bench");
    let at = route.server().to_string();
    let running = place
        .command(std::env::current_exe()?)?
        .args(["serve", &at])
        .spawn()?;
    running.wait_for_line(|line| line == "ready", Duration::from_secs(5))?;
    Ok(running)
}

fn client(lab: &Lab, route: Route, work: Work, time: Duration) -> Result<Outcome> {
    let work = match work {
        Work::Connections => "connections",
        Work::Requests => "requests",
        Work::Stream => "stream",
    };
    let ran = route
        .client(lab)
        .command(std::env::current_exe()?)?
        .args(["ask", &route.server().to_string(), work])
        .args(["--ms", &time.as_millis().to_string()])
        .run_within(time + Duration::from_secs(10))?
        .checked()?;
    serde_json::from_str(&ran.stdout).context("a client said no outcome")
}
