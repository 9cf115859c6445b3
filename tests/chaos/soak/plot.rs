//! The course of a long run, as a picture: a panel for each of what it held, over the same time, with a line for each fault.

use std::fmt::Write;

use super::{Course, Sample};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 150.0;
const TOP: f64 = 40.0;
const HEIGHT: f64 = 90.0;
const GAP: f64 = 28.0;

/// What a panel shows.
struct Panel {
    title: &'static str,
    /// Of the numbers at its border.
    unit: &'static str,
    values: Vec<(f64, f64)>,
}

pub(super) fn svg(course: &Course) -> String {
    let panels = panels(&course.samples);
    let end = course.samples.last().map_or(1.0, |last| last.seconds.max(1.0));
    let bottom = TOP + panels.len() as f64 * (HEIGHT + GAP);
    let mut out = String::new();
    for fault in &course.faults {
        let x = LEFT + WIDTH * (fault.seconds / end).min(1.0);
        let line = format!("x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"", bottom - GAP);
        write!(out, "<line {line} stroke=\"#d2a8a0\" stroke-width=\"0.7\"><title>{}</title></line>", fault.what)
            .expect("text can be written");
    }
    for (panel, y) in panels.iter().zip((0..).map(|at| TOP + f64::from(at) * (HEIGHT + GAP))) {
        draw(&mut out, panel, y, end);
    }
    let minutes = (end / 60.0).round();
    for minute in (0..=minutes as u32).step_by((minutes as usize / 6).max(1)) {
        let x = LEFT + WIDTH * f64::from(minute) * 60.0 / end;
        let at = format!("x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\"", bottom - 8.0);
        write!(out, "<text {at}>{minute} min</text>").expect("text can be written");
    }
    let title = format!(
        "walhouse over {minutes} minutes: {} commits, {} faults (a line each)",
        course.samples.last().map_or(0, |last| last.commits),
        course.faults.len()
    );
    let (width, height) = (LEFT + WIDTH + 20.0, bottom + 8.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"10\" y=\"22\" \
         font-size=\"15\">{title}</text>{out}</svg>\n"
    )
}

fn panels(samples: &[Sample]) -> Vec<Panel> {
    let rate = samples.windows(2).map(|pair| {
        let seconds = (pair[1].seconds - pair[0].seconds).max(0.001);
        (pair[1].seconds, (pair[1].commits.saturating_sub(pair[0].commits)) as f64 / seconds)
    });
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        Panel {
            title: "anonymous memory",
            unit: "MiB",
            values: course(samples, |sample| Some(mib(sample.anonymous_bytes))),
        },
        Panel {
            title: "file descriptors",
            unit: "",
            values: course(samples, |sample| Some(sample.descriptors as f64)),
        },
        Panel { title: "threads", unit: "", values: course(samples, |sample| Some(sample.threads as f64)) },
        Panel { title: "WAL behind", unit: "MiB", values: course(samples, |sample| sample.lag_bytes.map(mib)) },
        Panel { title: "commits a second", unit: "", values: rate.collect() },
    ]
}

fn course(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    samples.iter().filter_map(|sample| Some((sample.seconds, value(sample)?))).collect()
}

fn draw(out: &mut String, panel: &Panel, y: f64, end: f64) {
    let most = panel.values.iter().map(|&(_, value)| value).fold(1.0, f64::max);
    let points: Vec<String> = panel
        .values
        .iter()
        .map(|(at, value)| format!("{:.1},{:.1}", LEFT + WIDTH * at / end, y + HEIGHT * (1.0 - value / most)))
        .collect();
    let frame = format!("x=\"{LEFT}\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\"");
    write!(
        out,
        "<rect {frame} fill=\"none\" stroke=\"#bbb\"/><polyline points=\"{}\" fill=\"none\" stroke=\"#1f5f8b\"/>\
         <text x=\"10\" y=\"{:.1}\">{}</text><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{most:.0} {}</text>\
         <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">0</text>",
        points.join(" "),
        y + HEIGHT / 2.0,
        panel.title,
        LEFT - 6.0,
        y + 10.0,
        panel.unit,
        LEFT - 6.0,
        y + HEIGHT,
    )
    .expect("text can be written");
}
