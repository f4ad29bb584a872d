//! Pictures of the tables, as SVG that is readable on light and on dark pages.

use std::fmt::Write as _;

use crate::latency::PERCENTILES;
use crate::report::{short, throughput_rows};
use crate::results::Results;
use crate::rows::Peer;

const WIDTH: f64 = 860.0;
/// Left of the bars: what is measured.
const LEFT: f64 = 150.0;
/// Right of the bars: the number of the longest.
const RIGHT: f64 = 76.0;
const TOP: f64 = 76.0;
const BAR: f64 = 15.0;
const GAP: f64 = 3.0;

/// Colours by class, twice: for light and for dark surroundings.
const STYLE: &str = "
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 } .faint { fill: #59636e } .strong { font-weight: 600 }
  .page { fill: #ffffff; stroke: #d1d9e0 } .axis { stroke: #d1d9e0; stroke-width: 1 }
  .bare-reader { fill: #8c959f } .keepup { fill: #d1541f } .plain-loop { fill: #2f6fb7 } .stream { fill: #7fb0e6 }
  .java { fill: #7a5fb8 }
  polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round }
  polyline.keepup { fill: none; stroke: #d1541f } polyline.java { fill: none; stroke: #7a5fb8 }
  polyline.sent { stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .faint { fill: #9198a1 }
    .page { fill: #0d1117; stroke: #3d444d } .axis { stroke: #3d444d }
    .bare-reader { fill: #7d8590 } .keepup { fill: #f0803c } .plain-loop { fill: #4a90d9 } .stream { fill: #9cc7f2 }
    .java { fill: #a58be0 }
    polyline.keepup { stroke: #f0803c } polyline.java { stroke: #a58be0 }
  }
";

struct Picture(String);

impl Picture {
    fn new(height: f64, title: &str, about: &str) -> Self {
        let mut body = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n<rect class=\"page\" x=\"0.5\" y=\"0.5\" \
             width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
            WIDTH - 1.0,
            height - 1.0
        );
        let _ = writeln!(
            body,
            "<text class=\"title\" x=\"20\" y=\"30\">{title}</text>"
        );
        let _ = writeln!(
            body,
            "<text class=\"faint\" x=\"{}\" y=\"30\" text-anchor=\"end\">{about}</text>",
            WIDTH - 20.0
        );
        Self(body)
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let _ = writeln!(
            self.0,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        let _ = writeln!(
            self.0,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\"/>"
        );
    }

    fn axis(&mut self, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.0,
            "<line class=\"axis\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.0,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        );
    }

    /// Names of colours, from the left.
    fn legend(&mut self, peers: &[Peer]) {
        let mut x = 20.0;
        for peer in peers {
            self.bar(x, 47.0, 11.0, 11.0, peer.name());
            let class = if *peer == Peer::Keepup {
                "strong"
            } else {
                "faint"
            };
            self.text(x + 17.0, 57.0, class, "start", peer.title());
            x += 40.0 + 7.2 * peer.title().len() as f64;
        }
    }

    fn done(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

pub(crate) fn cpu(results: &Results) -> String {
    bars(
        results,
        "CPU per record, nanoseconds",
        "shorter is better; each group has its own scale",
        "cpu_ns_per_record",
        |value| format!("{value:.0}"),
    )
}

pub(crate) fn records(results: &Results) -> String {
    bars(
        results,
        "Records per second, millions",
        "longer is better; each group has its own scale",
        "records_per_s",
        |value| short(value / 1e6),
    )
}

fn bars(
    results: &Results,
    title: &str,
    about: &str,
    metric: &str,
    word: impl Fn(f64) -> String,
) -> String {
    let groups: Vec<(&str, Vec<(Peer, f64)>)> = throughput_rows(results)
        .map(|row| {
            let value = |peer: Peer| Some((peer, results.cell(row.name, peer)?.median(metric)?));
            (row.title, Peer::ALL.into_iter().filter_map(value).collect())
        })
        .collect();
    let height: f64 = groups
        .iter()
        .map(|(_, group)| group.len() as f64 * (BAR + GAP) + 14.0)
        .sum();
    let mut picture = Picture::new(TOP + height + 6.0, title, about);
    picture.legend(&Peer::ALL);
    let mut y = TOP;
    for (title, group) in groups {
        let most = group.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let middle = y + group.len() as f64 * (BAR + GAP) / 2.0 + 3.0;
        picture.text(LEFT - 14.0, middle, "", "end", title);
        picture.axis(
            (LEFT - 4.0, y),
            (LEFT - 4.0, y + group.len() as f64 * (BAR + GAP) - GAP),
        );
        for (peer, value) in group {
            let width = (WIDTH - LEFT - RIGHT) * value / most;
            picture.bar(LEFT, y, width, BAR, peer.name());
            let class = if peer == Peer::Keepup {
                "strong"
            } else {
                "faint"
            };
            picture.text(
                LEFT + width + 6.0,
                y + BAR - 3.0,
                class,
                "start",
                &word(value),
            );
            y += BAR + GAP;
        }
        y += 14.0;
    }
    picture.done()
}

/// Shares and what they are below, in order.
type Curve = Vec<(f64, f64)>;

/// Percentiles on an axis that gives each nine the same room.
pub(crate) fn latency(results: &Results) -> String {
    const HEIGHT: f64 = 330.0;
    const BOTTOM: f64 = HEIGHT - 44.0;
    let peers = [Peer::Keepup, Peer::Java];
    let curve = |peer: Peer, from: &str| -> Curve {
        let Some(cell) = results.cell("latency", peer) else {
            return Vec::new();
        };
        PERCENTILES
            .iter()
            .filter_map(|(name, share)| Some((*share, cell.median(&format!("{from}_us_{name}"))?)))
            .collect()
    };
    let curves: Vec<(Peer, &str, Curve)> = peers
        .into_iter()
        .flat_map(|peer| ["acked", "sent"].map(|from| (peer, from, curve(peer, from))))
        .collect();
    let values = || {
        curves
            .iter()
            .flat_map(|(.., curve)| curve.iter().map(|point| point.1))
    };
    let step = nice(values().fold(1.0, f64::max) / 4.0);
    let most = (values().fold(1.0, f64::max) / step).ceil() * step;
    let least = (values().fold(0.0, f64::min) / step).floor() * step;
    let x = |share: f64| 80.0 + (WIDTH - 110.0) * -(1.0 - share).log10() / 3.0;
    let y = |us: f64| BOTTOM - (BOTTOM - TOP) * (us - least) / (most - least);
    let mut picture = Picture::new(
        HEIGHT,
        "Latency to the handler at 1,000 records per second, microseconds",
        "lower is better",
    );
    picture.legend(&peers);
    picture.text(
        WIDTH - 20.0,
        57.0,
        "faint",
        "end",
        "solid: from acknowledged; dashed: from sent",
    );
    let mut at = least;
    while at <= most + step / 2.0 {
        picture.axis((80.0, y(at)), (WIDTH - 30.0, y(at)));
        picture.text(72.0, y(at) + 4.0, "faint", "end", &format!("{at:.0}"));
        at += step;
    }
    for (share, name) in [
        (0.0, "0"),
        (0.5, "50 %"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
    ] {
        picture.text(x(share), BOTTOM + 20.0, "faint", "middle", name);
    }
    for (peer, from, curve) in &curves {
        let points: Vec<(f64, f64)> = curve
            .iter()
            .map(|(share, us)| (x(*share), y(*us)))
            .collect();
        picture.line(&format!("{} {from}", peer.name()), &points);
    }
    picture.done()
}

/// 1, 2 or 5 times a power of ten, at least that much.
fn nice(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|times| times * power)
        .into_iter()
        .find(|step| *step >= least)
        .unwrap_or(power)
}
