//! Full TLS handshakes per second of CPU, ours and HAProxy's, by version and kind of key.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use protocols::sip::Transport;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};
use tools::process::pin;

use super::balancer::{Balancer, HAPROXY, PORTS};
use super::{Arguments, Bench, loopback, note};
use crate::compare::table::median;

const VERSIONS: &[(&str, &SupportedProtocolVersion)] =
    &[("TLS 1.3", &rustls::version::TLS13), ("TLS 1.2", &rustls::version::TLS12)];

pub(super) fn run(arguments: &Arguments) -> std::io::Result<String> {
    let keys = [("ECDSA P-256", Bench::ecdsa()?), ("RSA 2048", Bench::rsa()?)];
    let contenders: &[&str] = if Path::new(HAPROXY).exists() {
        &["Trunkline", "HAProxy"]
    } else {
        note("HAProxy: left out, it is not there");
        &["Trunkline"]
    };
    let mut samples = vec![vec![Vec::new(); contenders.len()]; keys.len() * VERSIONS.len()];
    for round in 1..=arguments.rounds {
        for (at, (key, bench)) in keys.iter().enumerate() {
            for (who, contender) in contenders.iter().enumerate() {
                let is_ours = *contender == "Trunkline";
                let balancer = if is_ours {
                    Balancer::start(arguments, bench, "")?
                } else {
                    Balancer::haproxy(arguments, bench)?
                };
                let target =
                    if is_ours { balancer.external(Transport::Tls) } else { loopback(PORTS.peer) };
                for (version, (name, terms)) in VERSIONS.iter().enumerate() {
                    let (done, cpu) = measure(arguments, &balancer, target, terms)?;
                    note(&format!(
                        "round {round} {contender} {name} {key}: {:.0} per CPU second, {done} done",
                        done / cpu
                    ));
                    if let Some(cell) = samples
                        .get_mut(at * VERSIONS.len() + version)
                        .and_then(|it| it.get_mut(who))
                    {
                        cell.push(done / cpu);
                    }
                }
            }
        }
    }
    let mut text = format!("| full handshakes per CPU second | {} | |\n", contenders.join(" | "));
    text.push_str(&"|---".repeat(contenders.len() + 2));
    text.push_str("|\n");
    for (at, row) in samples.iter().enumerate() {
        let (key, version) = (keys.get(at / VERSIONS.len()), VERSIONS.get(at % VERSIONS.len()));
        let (Some((key, _)), Some((version, _))) = (key, version) else { continue };
        text.push_str(&format!("| {version}, {key} |"));
        let medians: Vec<f64> = row.iter().map(|it| median(it.iter().copied())).collect();
        medians.iter().for_each(|it| text.push_str(&format!(" {it:.0} |")));
        match medians.as_slice() {
            [ours, theirs] => text.push_str(&format!(" {:.2} times |\n", ours / theirs)),
            _ => text.push_str(" |\n"),
        }
    }
    Ok(text)
}

/// Handshakes done, and seconds of CPU that they took.
fn measure(
    arguments: &Arguments,
    balancer: &Balancer,
    target: SocketAddr,
    version: &'static SupportedProtocolVersion,
) -> std::io::Result<(f64, f64)> {
    let mut terms = tests::keys().client_of(None, &[version]);
    terms.resumption = Resumption::disabled();
    let terms = Arc::new(terms);
    let (done, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> std::io::Result<()> {
                    pin(arguments.generator_cpu)?;
                    while !is_over.load(Ordering::Relaxed) {
                        shake_hands(&terms, target)?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(WARM_UP);
        let (cpu, count) = (balancer.cpu(), done.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_secs(arguments.seconds));
        let used = balancer.cpu().since(cpu).run.as_secs_f64();
        let count = done.load(Ordering::Relaxed) - count;
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| std::io::Error::other("a client panicked"))??;
        }
        #[expect(clippy::cast_precision_loss, reason = "figures are printed with four digits")]
        Ok((count as f64, used))
    })
}

fn shake_hands(terms: &Arc<ClientConfig>, target: SocketAddr) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(target)?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("lb.test").map_err(std::io::Error::other)?;
    let mut connection =
        ClientConnection::new(Arc::clone(terms), name).map_err(std::io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(())
}

/// Enough that the balancer never waits for one of them.
const CLIENTS: usize = 8;
const WARM_UP: Duration = Duration::from_millis(300);
