//! Bytes from people who mean harm: nothing panics, nothing leaks, nothing is smuggled.

use std::time::Duration;

use protocols::bytes::Edits;
use protocols::http::body::Body;
use protocols::http::head::{Request, Scan};

use super::harness::{World, get, post, web_nodes};
use crate::balance::testing::Numbers;
use crate::relay::stream::{Conn, Gone};

/// Changes a few bytes; what HTTP is made of is put in more often than noise.
fn mutated(numbers: &mut Numbers, bytes: &[u8]) -> Vec<u8> {
    const PIECES: &[&[u8]] = &[
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b":",
        b"\0",
        b"\xff",
        b"\r\n ",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"HTTP/1.0",
        b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"99999999999999999999",
        b"Expect: 100-continue\r\n",
    ];
    let mut out = bytes.to_vec();
    for _ in 0..numbers.next() % 4 {
        let below = |numbers: &mut Numbers, bound: usize| {
            usize::try_from(numbers.next() % bound.max(1) as u64).unwrap()
        };
        let at = below(numbers, out.len());
        match below(numbers, 4) {
            0 | 1 => {
                let piece = PIECES[below(numbers, PIECES.len())];
                out.splice(at..at, piece.iter().copied());
            }
            2 if !out.is_empty() => out[at] = numbers.next().to_le_bytes()[0],
            _ => {
                let end = (at + below(numbers, 12)).min(out.len());
                out.drain(at..end);
            }
        }
    }
    out
}

fn requests() -> Vec<u8> {
    [
        get("/1?jsessionid=a.b"),
        post("/2", "hello"),
        "POST /3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            .to_owned(),
        get("http://h/4").replace("Host", "Connection: x\r\nCookie: JSESSIONID=c.d\r\nHost"),
    ]
    .concat()
    .into_bytes()
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\n\r\nok";

/// The bytes on a connection to a node are whole requests, but for the last.
fn assert_well_formed(bytes: &[u8], is_tunnel: bool, case: &str) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = match Scan::NEW.clone().head(rest) {
            Ok(Some(length)) => length,
            other => panic!("{case}: {other:?} in {}", rest.escape_ascii()),
        };
        let (head, behind) = rest.split_at(length);
        let mut edits = Edits::new();
        let request = Request::parse(head, &mut edits)
            .unwrap_or_else(|it| panic!("{case}: {it:?} in {}", head.escape_ascii()));
        assert!(request.upgrade.is_some() || edits.is_empty(), "{case}: hop-by-hop lines are left");
        let mut body = Body::new(request.framing);
        let taken = body.take(behind).unwrap_or_else(|_| panic!("{case}: a broken body"));
        rest = &behind[taken.bytes..];
        if is_tunnel || !body.is_done() {
            return;
        }
    }
}

#[test]
fn whatever_clients_send_nodes_see_whole_requests() {
    let script = requests();
    let mut answered = 0;
    for seed in 1..6_000u64 {
        let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let bytes = mutated(&mut numbers, &script);
        let mut world = World::new("httpReplayBytesMax=1024", web_nodes(2));
        let client = world.open();
        let mut seen: Vec<(Conn, Vec<u8>)> = Vec::new();
        let cuts = 1 + numbers.next() % 3;
        let step = bytes.len() / usize::try_from(cuts).unwrap() + 1;
        for part in bytes.chunks(step) {
            if world.is_gone(client) {
                break;
            }
            world.send(client, part);
            for _ in 0..8 {
                let mut is_quiet = true;
                let nodes: Vec<Conn> = world
                    .wire
                    .sockets
                    .iter()
                    .filter(|(_, it)| it.to.is_some() && !it.sent.is_empty())
                    .map(|(conn, _)| *conn)
                    .collect();
                for node in nodes {
                    let sent = std::mem::take(&mut world.wire.sockets.get_mut(&node).unwrap().sent);
                    match seen.iter_mut().find(|(it, _)| *it == node) {
                        Some((_, all)) => all.extend(sent),
                        None => seen.push((node, sent)),
                    }
                    if !world.is_gone(node) && world.http.counters().tunnels == 0 {
                        world.send(node, ANSWER);
                        answered += 1;
                        is_quiet = false;
                    }
                }
                if is_quiet {
                    break;
                }
            }
        }
        let is_tunnel = world.http.counters().tunnels > 0;
        for (_, all) in &seen {
            assert_well_formed(all, is_tunnel, &format!("seed {seed}"));
        }
        world.pass(Duration::from_secs(300));
        world.assert_empty(&format!("seed {seed}"));
    }
    assert!(answered > 5_000, "{answered}");
}

#[test]
fn whatever_nodes_answer_clients_are_never_left_hanging() {
    let answers = [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=9\r\n\r\nhello"[..],
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
    ];
    for seed in 1..4_000u64 {
        let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let answer = answers[usize::try_from(numbers.next() % 4).unwrap()];
        let bytes = mutated(&mut numbers, answer);
        let mut world = World::new("", web_nodes(2));
        let client = world.open();
        let request = match numbers.next() % 3 {
            0 => get("/"),
            1 => post("/", "abc"),
            _ => get("/").replace("1.1", "1.0"),
        };
        let node = world.ask(client, request);
        let step = bytes.len() / 2 + 1;
        for part in bytes.chunks(step) {
            if !world.is_gone(node) {
                world.send(node, part);
            }
        }
        if !world.is_gone(node) {
            match numbers.next() % 3 {
                0 => world.end(node),
                1 => world.gone(node, Gone::Reset),
                _ => {}
            }
        }
        world.pass(Duration::from_secs(400));
        assert!(world.is_gone(client), "seed {seed}: nothing lasts for ever");
        world.assert_empty(&format!("seed {seed}"));
    }
}
