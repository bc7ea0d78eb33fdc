//! wrk as the client: how it is called and what it says.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::compare::loopback;

/// How requests follow each other.
#[derive(Clone, Copy)]
pub(super) enum Pace {
    /// Each connection asks again at once.
    FlatOut,
    /// So many a second over all connections, at random distances.
    Rate(u32),
    /// At once, on a new connection.
    Close,
}

/// What connections are inside.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Security {
    Plain,
    /// TLS. wrk resumes the session of an earlier connection where there is one.
    Tls,
    /// TLS, and every handshake is a full one.
    TlsAnew,
}

/// One run.
pub(super) struct Ask {
    pub(super) path: &'static str,
    pub(super) security: Security,
    pub(super) pace: Pace,
    pub(super) connections: u32,
    pub(super) seconds: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) requests: u64,
    pub(super) per_second: f64,
    pub(super) p99_micros: f64,
    /// Socket errors and statuses other than 2xx and 3xx.
    pub(super) failed: u64,
}

pub(super) fn run(cpu: usize, directory: &Path, ask: &Ask) -> std::io::Result<Answer> {
    let (scheme, to) = match ask.security {
        Security::Plain => ("http", PLAIN),
        Security::Tls | Security::TlsAnew => ("https", SECURE),
    };
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string(), "wrk", "--latency", "-t", "1", "-s", "http.lua"]);
    command.args(["-c", &ask.connections.to_string(), "-d", &format!("{}s", ask.seconds)]);
    command.arg(format!("{scheme}://{to}{}", ask.path));
    match ask.pace {
        Pace::FlatOut => {}
        Pace::Rate(rate) => {
            command.args(["--", &rate.to_string(), &ask.connections.to_string()]);
        }
        Pace::Close => {
            command.args(["--", "close"]);
        }
    }
    if ask.security == Security::TlsAnew {
        command.env("OPENSSL_CONF", "wrk-anew.cnf");
    }
    let output = command.current_dir(directory).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let unread = || std::io::Error::other(format!("wrk says: {text}"));
    read(&text).filter(|it| it.requests > 0).ok_or_else(unread)
}

fn read(text: &str) -> Option<Answer> {
    let mut answer = Answer::default();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [count, "requests", "in", ..] => answer.requests = count.parse().ok()?,
            ["Requests/sec:", rate] => answer.per_second = rate.parse().ok()?,
            ["99%", time] => answer.p99_micros = micros(time)?,
            ["Socket", "errors:", rest @ ..] => {
                let counts =
                    rest.iter().filter_map(|it| it.trim_end_matches(',').parse::<u64>().ok());
                answer.failed += counts.sum::<u64>();
            }
            ["Non-2xx", .., count] => answer.failed += count.parse::<u64>().ok()?,
            _ => {}
        }
    }
    Some(answer)
}

/// `1.50ms` and the like.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|it: char| it.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at_checked(unit)?;
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|it| it * scale)
}

/// Where every balancer listens.
pub(super) const PLAIN: SocketAddr = loopback(16_080);
const SECURE: SocketAddr = loopback(16_443);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let text = "  Latency Distribution\n     50%  610.00us\n     99%    1.20ms\n  \
            90 requests in 3.00s, 30.00KB read\n  Socket errors: connect 0, read 1, write 0, timeout 2\n  \
            Non-2xx or 3xx responses: 4\nRequests/sec:     30.00\n";
        let want = Answer { requests: 90, per_second: 30.0, p99_micros: 1200.0, failed: 7 };
        assert_eq!(read(text), Some(want));
    }
}
