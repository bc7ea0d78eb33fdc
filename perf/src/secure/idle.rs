//! Memory and CPU of clients on WSS that are connected and say nothing.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use protocols::sip::Transport;

use super::balancer::Balancer;
use super::wire::Wire;
use super::{Arguments, Bench, note};

pub(super) fn run(arguments: &Arguments, bench: &Bench) -> std::io::Result<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let room = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(DESCRIPTORS_SPARE);
    let clients = arguments.clients.min(room);
    if clients < arguments.clients {
        note(&format!("only {clients} clients: a process may open {hard} files"));
    }
    let balancer = Balancer::start(arguments, bench, "")?;
    let empty = balancer.resident_kib();
    let mut held = Vec::with_capacity(clients);
    for _ in 0..clients {
        let target = balancer.external(Transport::Wss);
        let mut wire = Wire::connect(Transport::Wss, target, &bench.terms.client)?;
        // One message each way, as a client that has registered: buffers were needed once.
        wire.queue(b"\r\n\r\n");
        wire.flush()?;
        held.push(wire);
    }
    std::thread::sleep(SETTLE);
    for wire in &mut held {
        let mut pongs = 0;
        while pongs == 0 {
            wire.receive(|message| pongs += usize::from(message == b"\r\n"))?;
        }
    }
    std::thread::sleep(SETTLE);
    let resident = balancer.resident_kib();
    let before = balancer.cpu();
    std::thread::sleep(IDLE);
    let idle = balancer.cpu().since(before).run.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    // As RFC 5626 §4.4.1 has them: everyone once in two minutes.
    let before = balancer.cpu();
    let began = std::time::Instant::now();
    let interval = KEEP_ALIVE.div_f64(held.len().max(1) as f64);
    for wire in &mut held {
        if began.elapsed() >= IDLE {
            break;
        }
        wire.queue(b"\r\n\r\n");
        wire.flush()?;
        std::thread::sleep(interval);
    }
    let elapsed = began.elapsed().as_secs_f64();
    let kept = balancer.cpu().since(before).run.as_secs_f64() / elapsed * 100.0;
    let mib = resident as f64 / 1024.0;
    Ok(format!(
        "| idle clients on WSS | resident | per client | CPU, silent | CPU, a keep-alive each in two minutes \
         |\n|---|---|---|---|---|\n| {clients} | {mib:.0} MiB | {:.1} KiB | {idle:.2} % | {kept:.2} % |\n",
        resident.saturating_sub(empty) as f64 / held.len().max(1) as f64,
    ))
}

/// For everything that is no client.
const DESCRIPTORS_SPARE: usize = 100;
const SETTLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(120);
