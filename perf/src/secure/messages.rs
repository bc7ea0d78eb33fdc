//! CPU per SIP message on connections that are up, by transport of callers and of nodes.

use std::time::Duration;

use protocols::sip::Transport;
use tools::caller::Pace;

use super::balancer::{Balancer, PORTS};
use super::talk::{Scene, Talk};
use super::{Arguments, Bench, note};
use crate::compare::table::median;

/// Callers' transport, nodes' transport. The first of each pair of legs with TCP inside is the yardstick.
const ROWS: &[(Transport, Transport)] = &[
    (Transport::Tcp, Transport::Tcp),
    (Transport::Tls, Transport::Tcp),
    (Transport::Ws, Transport::Tcp),
    (Transport::Wss, Transport::Tcp),
    (Transport::Tls, Transport::Tls),
    (Transport::Ws, Transport::Ws),
    (Transport::Wss, Transport::Wss),
];

/// Calls per second at a steady load, and calls in progress at the maximum.
const LOADS: &[(&str, Pace)] =
    &[("1 000 calls/s", Pace::Open(1_000.0)), ("maximum", Pace::Closed(64))];

#[derive(Clone, Copy)]
struct Sample {
    cpu_micros: f64,
    user_micros: f64,
    messages_per_second: f64,
    failed: u64,
}

pub(super) fn run(arguments: &Arguments, bench: &Bench) -> std::io::Result<String> {
    let mut samples = vec![vec![Vec::new(); LOADS.len()]; ROWS.len()];
    for round in 1..=arguments.rounds {
        for ((outer, inner), row) in ROWS.iter().zip(&mut samples) {
            let forced = (*inner == Transport::Tcp).then_some("sip.internalTransport=tcp\n");
            let balancer = Balancer::start(arguments, bench, forced.unwrap_or_default())?;
            for ((name, pace), cell) in LOADS.iter().zip(row) {
                let sample = measure(arguments, bench, &balancer, (*outer, *inner), *pace)?;
                note(&format!(
                    "round {round} {} to {} {name}: {:.2} us/message ({:.2} user), {:.0}/s, {} failed",
                    outer.as_param(),
                    inner.as_param(),
                    sample.cpu_micros,
                    sample.user_micros,
                    sample.messages_per_second,
                    sample.failed
                ));
                cell.push(sample);
            }
        }
    }
    Ok(table(&samples))
}

fn measure(
    arguments: &Arguments,
    bench: &Bench,
    balancer: &Balancer,
    (outer, inner): (Transport, Transport),
    pace: Pace,
) -> std::io::Result<Sample> {
    let scene = Scene {
        target: balancer.external(outer),
        outer,
        inner,
        heartbeat_to: balancer.heartbeats(),
        nodes: PORTS.nodes.map(super::loopback).to_vec(),
        lines: LINES,
        pace,
    };
    let mut talk = Talk::start(&scene, bench.terms.clone())?;
    talk.run(WARM_UP)?;
    let (before, calls) = (balancer.cpu(), talk.caller.calls.completed);
    talk.run(Duration::from_secs(arguments.seconds))?;
    let used = balancer.cpu().since(before);
    #[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
    let messages = ((talk.caller.calls.completed - calls).max(1) * MESSAGES_PER_CALL) as f64;
    talk.finish()?;
    let user_share = used.user.as_secs_f64() / used.ticks().as_secs_f64().max(f64::EPSILON);
    let cpu_micros = used.run.as_secs_f64() * 1e6 / messages;
    #[expect(clippy::cast_precision_loss, reason = "a handful of seconds")]
    let seconds = arguments.seconds as f64;
    Ok(Sample {
        cpu_micros,
        user_micros: cpu_micros * user_share,
        messages_per_second: messages / seconds,
        failed: talk.caller.calls.failed_total(),
    })
}

fn table(samples: &[Vec<Vec<Sample>>]) -> String {
    let mut text = String::from("| callers | nodes |");
    for (name, _) in LOADS {
        text.push_str(&format!(" CPU per message, {name} | of TCP to TCP | messages/s |"));
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(LOADS.len() * 3));
    text.push('\n');
    for ((outer, inner), row) in ROWS.iter().zip(samples) {
        text.push_str(&format!("| {} | {} |", outer.as_via(), inner.as_via()));
        for (load, cell) in row.iter().enumerate() {
            let of = |cell: &[Sample], figure: fn(&Sample) -> f64| median(cell.iter().map(figure));
            let yardstick =
                samples.first().and_then(|it| it.get(load)).map_or(&[][..], |it| it.as_slice());
            let cpu = of(cell, |it| it.cpu_micros);
            text.push_str(&format!(
                " {cpu:.2} us ({:.2} user) | {:.2} | {:.0} |",
                of(cell, |it| it.user_micros),
                cpu / of(yardstick, |it| it.cpu_micros),
                of(cell, |it| it.messages_per_second),
            ));
        }
        text.push('\n');
    }
    text
}

/// INVITE, 100, 180, 200, ACK, BYE, 200.
const MESSAGES_PER_CALL: u64 = 7;
const LINES: usize = 64;
const WARM_UP: Duration = Duration::from_millis(700);
