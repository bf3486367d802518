//! Pictures of a run.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::filter::Filter;
use crate::measure::Measures;
use crate::policy::Family;
use crate::receive::{DENIED, denied_row};

const SIZE: (u32, u32) = (860, 420);
const FONT: (&str, u32) = ("sans-serif", 14);

/// Name of the file, title, and content.
pub fn all(measures: &Measures) -> Result<Vec<(String, &'static str, String)>> {
    let mut charts = Vec::new();
    for (name, title, random) in [
        (
            "denied-one.svg",
            "A denied packet from one source, ns",
            false,
        ),
        (
            "denied-random.svg",
            "A denied packet from random sources, ns",
            true,
        ),
    ] {
        if let Some(svg) = growth(measures, title, random)? {
            charts.push((name.to_owned(), title, svg));
        }
    }
    Ok(charts)
}

/// How the cost of a denied packet grows with the addresses, a line for each filter.
fn growth(measures: &Measures, title: &str, random: bool) -> Result<Option<String>> {
    let mut lines = Vec::new();
    for filter in [
        Filter::EmptyTc,
        Filter::OneLine,
        Filter::Enforcer,
        Filter::NftIngress,
        Filter::NftInput,
        Filter::IptablesSet,
        Filter::Iptables,
    ] {
        let point = |addresses: u32| {
            let row = denied_row(Family::V4, addresses, random);
            Some((
                f64::from(addresses),
                measures.get(DENIED, &row, filter.name())?.median(),
            ))
        };
        let points: Vec<(f64, f64)> = [10, 1000, 100_000].into_iter().filter_map(point).collect();
        if points.len() > 1 {
            lines.push((filter, points));
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, title, &lines).map_err(|error| anyhow!("no chart: {error}"))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    title: &str,
    lines: &[(Filter, Vec<(f64, f64)>)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let all = || {
        lines
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(_, ns)| *ns)
    };
    let lowest = all().fold(f64::INFINITY, f64::min);
    // The legend is above the lines.
    let (lowest, highest) = (lowest * 0.8, all().fold(0.0, f64::max) * 4.0);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((8.0..120_000.0).log_scale(), (lowest..highest).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("addresses in the policy")
        .y_desc("nanoseconds")
        .label_style(FONT)
        .x_label_formatter(&|addresses| format!("{addresses:.0}"))
        .y_label_formatter(&|ns| format!("{ns:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (number, (filter, points)) in lines.iter().enumerate() {
        let color = Palette99::pick(number);
        let style = color.stroke_width(if *filter == Filter::Enforcer { 3 } else { 1 });
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(filter.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .label_font(FONT)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    area.present()?;
    Ok(())
}
