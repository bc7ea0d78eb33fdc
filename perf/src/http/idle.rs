//! Connections that were used once and wait: what each costs in resident memory.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Opens them, and returns bytes of the balancer's resident memory for each.
#[expect(clippy::cast_precision_loss, reason = "figures are printed with three digits")]
pub(super) fn bytes_each(balancer: u32) -> std::io::Result<f64> {
    // What a process takes for its first connections is no cost of the others.
    let mut open = (0..FIRST).map(|_| connection()).collect::<Result<Vec<_>, _>>()?;
    let before = resident(balancer);
    for _ in 0..COUNT {
        open.push(connection()?);
    }
    let after = resident(balancer);
    Ok(after.saturating_sub(before) as f64 / COUNT as f64)
}

/// One that has had an answer.
fn connection() -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(super::wrk::PLAIN)?;
    stream.write_all(b"GET /small HTTP/1.1\r\nHost: perf\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(BODY.len()).any(|it| it == BODY) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(std::io::Error::other("no answer"));
        }
        answer.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    Ok(stream)
}

/// Of a process and its children.
fn resident(process: u32) -> u64 {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    let all = children.split_whitespace().filter_map(|it| it.parse().ok());
    all.map(resident).sum::<u64>() + own_resident(process)
}

fn own_resident(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|it| it.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

const FIRST: usize = 1_000;
const COUNT: usize = 5_000;
const BODY: &[u8] = b"....................";
const PAGE_BYTES: u64 = 4096;
