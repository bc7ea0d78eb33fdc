//! The table that `perf/README.md` shows.

use std::fmt::Write;
use std::path::Path;

use super::{Arguments, Load, Row, Sample};

/// The table of medians as Markdown, with how and where it was made.
pub(crate) fn markdown(
    rows: &[Row],
    loads: &[&Load],
    machine: &str,
    arguments: &Arguments,
) -> String {
    let mut text = String::new();
    let Arguments { rounds, seconds, .. } = arguments;
    let option = |name: &str, list: &Option<String>| {
        list.as_deref().map_or(String::new(), |list| format!(" --{name} {list}"))
    };
    let chosen = option("only", &arguments.only) + &option("loads", &arguments.loads);
    let _ = writeln!(
        text,
        "Made by `cargo run --release -p perf -- compare --rounds {rounds} --seconds {seconds}{chosen}`, {machine}.\n\
         Medians of {rounds} interleaved rounds. CPU in microseconds per call (of these in user space); latency \
         INVITE to 180 in microseconds, p50 / p99.\n"
    );
    text.push_str("| |");
    for load in loads {
        let _ = write!(text, " CPU per call, {} | latency | calls/s | failed |", load.title);
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(loads.len() * 4));
    text.push('\n');
    for row in rows {
        let _ = write!(text, "| {} |", row.contender.title);
        for samples in &row.samples {
            let median = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure));
            let limit = samples.iter().filter(|sample| sample.generator_limit).count() * 2;
            let mark = if limit > samples.len() { " (generator's limit)" } else { "" };
            let _ = write!(
                text,
                " {:.1} ({:.1}) | {:.0} / {:.0} | {:.0}{mark} | {:.3} % |",
                median(|sample| sample.cpu_micros),
                median(|sample| sample.user_micros),
                median(|sample| sample.p50),
                median(|sample| sample.p99),
                median(|sample| sample.calls_per_second),
                median(|sample| sample.failed) * 100.0,
            );
        }
        text.push('\n');
    }
    text.push_str(&ratios(rows, loads));
    text
}

/// How ours compares, load by load; empty without it.
fn ratios(rows: &[Row], loads: &[&Load]) -> String {
    let mut text = String::new();
    let of = |name: &str| rows.iter().find(|row| row.contender.name == name);
    let Some(own) = of("trunkline") else { return text };
    text.push('\n');
    for name in ["kamailio", "nginx"] {
        let Some(peer) = of(name) else { continue };
        for ((load, own), peer) in loads.iter().zip(&own.samples).zip(&peer.samples) {
            let ratio = |figure: fn(&Sample) -> f64| {
                median(own.iter().map(figure)) / median(peer.iter().map(figure))
            };
            let _ = writeln!(
                text,
                "* {} against {name}: {:.2} of its CPU per call, {:.2} times its calls/s",
                load.title,
                ratio(|sample| sample.cpu_micros),
                ratio(|sample| sample.calls_per_second)
            );
        }
    }
    text
}

/// The middle one; zero of none.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Puts text between the marks `<!-- name -->` and `<!-- end of name -->` of a file.
///
/// # Errors
/// The file cannot be read or written, or has no such marks.
pub(crate) fn write(file: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let old = std::fs::read_to_string(file)?;
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- end of {name} -->"));
    let marks = old
        .split_once(&begin)
        .and_then(|(before, rest)| rest.split_once(&end).map(|(_, after)| (before, after)));
    let (before, after) = marks.ok_or_else(|| {
        std::io::Error::other(format!("{}: no marks {begin} and {end}", file.display()))
    })?;
    std::fs::write(file, format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
