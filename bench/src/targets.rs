//! What the product promises of its speed, and whether this run kept it.

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use crate::connections::{self, Route, rate_row};
use crate::filter::Filter;
use crate::life;
use crate::load::Work;
use crate::measure::{Measure, Measures, rounded};
use crate::policy::Family;
use crate::receive::{self, accepted_row, denied_row, paths_row};
use crate::scale;

/// A promise and what was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Judged {
    /// What is promised.
    pub promise: String,
    /// The bound.
    pub bound: f64,
    /// What it is.
    pub measured: f64,
    /// Whether it is kept.
    pub kept: bool,
}

/// Which way a bound holds.
#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}
use Bound::{AtLeast, AtMost};

/// All promises of which the run has measured both sides.
pub fn judge(measures: &Measures) -> Vec<Judged> {
    let mut all = Vec::new();
    let mut promise = |promise: &str, bound: Bound, measured: Option<f64>| {
        let Some(measured) = measured.filter(|value| value.is_finite()) else {
            return;
        };
        let (bound, kept) = match bound {
            AtMost(bound) => (bound, measured <= bound),
            AtLeast(bound) => (bound, measured >= bound),
        };
        all.push(Judged {
            promise: promise.to_owned(),
            bound,
            measured,
            kept,
        });
    };
    let ours = Filter::Enforcer.name();
    let denied = |addresses, random, filter: Filter| {
        let row = denied_row(Family::V4, addresses, random);
        measures.get(receive::DENIED, &row, filter.name())
    };
    let ratio = |a: Option<&Measure>, b: Option<&Measure>| Some(a?.ratio(b?));
    let big = 100_000;
    promise(
        "denied, 100000 addresses: times the empty program, at most",
        AtMost(1.15),
        ratio(
            denied(big, false, Filter::Enforcer),
            denied(big, false, Filter::EmptyTc),
        ),
    );
    promise(
        "the same, random sources, at most",
        AtMost(1.5),
        ratio(
            denied(big, true, Filter::Enforcer),
            denied(big, true, Filter::EmptyTc),
        ),
    );
    for (sources, random) in [("one source", false), ("random sources", true)] {
        for (peer, filter, bound) in [
            ("nftables with conntrack", Filter::NftInput, 4.0),
            ("nftables at its best", Filter::NftIngress, 1.1),
        ] {
            promise(
                &format!(
                    "denied, 100000 addresses, {sources}: {peer} takes times as long, at least"
                ),
                AtLeast(bound),
                ratio(
                    denied(big, random, filter),
                    denied(big, random, Filter::Enforcer),
                ),
            );
        }
    }
    let six = |random| measures.get(receive::DENIED, &denied_row(Family::V6, big, random), ours);
    promise(
        "IPv6: times IPv4, at most",
        AtMost(1.25),
        ratio(six(false), denied(big, false, Filter::Enforcer)),
    );
    promise(
        "100000 addresses: times 10, at most",
        AtMost(1.1),
        ratio(
            denied(big, false, Filter::Enforcer),
            denied(10, false, Filter::Enforcer),
        ),
    );
    let by_paths = |paths| measures.get(receive::PATHS, &paths_row(paths), ours);
    promise(
        "1000 paths: times one, at most",
        AtMost(1.05),
        ratio(by_paths(1000), by_paths(1)),
    );
    for kind in [receive::TCP, receive::UDP] {
        let row = accepted_row(kind, Family::V4);
        let cost = |filter: Filter| measures.get(receive::ACCEPTED, &row, filter.name());
        let adds = |filter| Some(cost(filter)?.excess(cost(Filter::Nothing)?));
        let share = || Some(adds(Filter::Enforcer)? / adds(Filter::NftInput)?);
        promise(
            &format!("accepted, {kind}: times what nftables with conntrack adds, at most"),
            AtMost(0.25),
            share(),
        );
    }
    let rate = |route, work, filter: Filter| {
        measures.get(connections::GROUP, &rate_row(route, work), filter.name())
    };
    for (route, work, text, bound) in [
        (
            Route::Loopback,
            Work::Requests,
            "requests on loopback: times those without, at least",
            0.97,
        ),
        (
            Route::Loopback,
            Work::Connections,
            "new connections on loopback: times those without, at least",
            0.95,
        ),
        (
            Route::BetweenNodes,
            Work::Connections,
            "new connections between nodes: times those without, at least",
            0.95,
        ),
    ] {
        let without = rate(route, work, Filter::Nothing);
        promise(
            text,
            AtLeast(bound),
            ratio(rate(route, work, Filter::Enforcer), without),
        );
    }
    promise(
        "new connections between nodes: times those with nftables and conntrack, at least",
        AtLeast(1.0),
        ratio(
            rate(Route::BetweenNodes, Work::Connections, Filter::Enforcer),
            rate(Route::BetweenNodes, Work::Connections, Filter::NftInput),
        ),
    );
    let policy = |what: &str, subject: &str| {
        measures.get(life::POLICY, &format!("{what}, 100000 addresses"), subject)
    };
    promise(
        "100000 addresses from YAML to enforced: times `nft -f`, at most",
        AtMost(0.5),
        ratio(
            policy("first policy", ours),
            policy("first policy", Filter::NftInput.name()),
        ),
    );
    let agent = |what: &str, subject: &str| {
        let measure = measures.get(life::AGENT, what, subject);
        measure.map(Measure::median)
    };
    promise(
        "agent, 10 addresses: MiB resident, under",
        AtMost(15.0),
        agent("resident memory", "10 addresses"),
    );
    promise(
        "agent, 100000 addresses: MiB resident, under",
        AtMost(64.0),
        agent("resident memory", "100000 addresses"),
    );
    promise(
        "agent idle: % of a processor, at most",
        AtMost(0.2),
        agent("processor, idle for 5 s", "100000 addresses"),
    );
    let of_many = |what: &str, nodes: &str| {
        let measure = measures.get(scale::EVERYTHING, what, nodes);
        measure.map(Measure::median)
    };
    let many = "5000 nodes";
    promise(
        "5000 nodes, 1000 paths, 100000 addresses, checked for all: ms, under",
        AtMost(5000.0),
        of_many("`enforcer check`, for all nodes", many),
    );
    promise(
        "the same, read and compiled for one: ms, under",
        AtMost(1000.0),
        of_many("read", many)
            .zip(of_many("compile for one node", many))
            .map(|(a, b)| a + b),
    );
    promise(
        "the same, the agent: MiB resident, under",
        AtMost(64.0),
        of_many("the agent's resident memory", many),
    );
    let tables = |nodes: &str| of_many("sets of endpoints", nodes);
    promise(
        "sets of endpoints for 5000 nodes: times those for 100, at most",
        AtMost(1.0),
        tables(many)
            .zip(tables("100 nodes"))
            .map(|(many, few)| many / few),
    );
    all
}

/// For people.
pub fn table(all: &[Judged]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["promise", "bound", "measured", ""]);
    for judged in all {
        let kept = if judged.kept { "kept" } else { "MISSED" };
        table.add_row([
            judged.promise.clone(),
            rounded(judged.bound),
            rounded(judged.measured),
            kept.to_owned(),
        ]);
    }
    format!("\n### Promises\n\n{table}\n")
}
