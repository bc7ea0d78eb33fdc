//! WebSocket messages there and back: a node that returns what it gets, and clients that wait for it.
//!
//! No balancer may look into frames, so the node does not either: it answers the handshake and echoes bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::compare::loopback;

/// The node; it lives as long as the process.
pub(super) struct Server;

impl Server {
    pub(super) fn start(cpu: usize) -> io::Result<Server> {
        let listener = TcpListener::bind(ADDRESS)?;
        listener.set_nonblocking(true)?;
        std::thread::Builder::new().name("echo".into()).spawn(move || {
            let _ = tools::process::pin(cpu);
            serve(&listener)
        })?;
        Ok(Server)
    }
}

fn serve(listener: &TcpListener) -> io::Result<()> {
    let mut open: Vec<(TcpStream, bool)> = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut watched = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        watched.extend(open.iter().map(|(it, _)| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        poll(&mut watched, PollTimeout::NONE)?;
        let mut ready: Vec<bool> = watched.iter().map(|it| it.any().unwrap_or(false)).collect();
        drop(watched);
        let has_newcomer = ready.remove(0);
        let mut at = 0;
        open.retain_mut(|(stream, is_up)| {
            let is_ready = ready.get(at).copied().unwrap_or(false);
            at += 1;
            if !is_ready {
                return true;
            }
            let Ok(count @ 1..) = stream.read(&mut buffer) else { return false };
            let came = buffer.get(..count).unwrap_or_default();
            let answer = if *is_up { came } else { UPGRADED };
            *is_up = true;
            stream.write_all(answer).is_ok()
        });
        if has_newcomer && let Ok((stream, _)) = listener.accept() {
            stream.set_nodelay(true)?;
            open.push((stream, false));
        }
    }
}

/// Sends and awaits messages on some connections for this long; returns how many came back.
pub(super) fn exchange(cpu: usize, time: Duration) -> io::Result<u64> {
    let client = std::thread::spawn(move || {
        tools::process::pin(cpu)?;
        let mut open = (0..CONNECTIONS).map(|_| connection()).collect::<io::Result<Vec<_>>>()?;
        for stream in &mut open {
            stream.write_all(&MESSAGE)?;
        }
        let mut came = vec![0; open.len()];
        let mut buffer = [0; 16 * 1024];
        let (mut messages, end) = (0, Instant::now() + time);
        while Instant::now() < end {
            let watched = open.iter().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN));
            let mut watched: Vec<PollFd<'_>> = watched.collect();
            poll(&mut watched, 1_000u16)?;
            let ready: Vec<bool> = watched.iter().map(|it| it.any().unwrap_or(false)).collect();
            for ((stream, came), _) in
                open.iter_mut().zip(&mut came).zip(ready).filter(|(_, is_ready)| *is_ready)
            {
                *came += stream.read(&mut buffer)?;
                if *came >= MESSAGE.len() {
                    *came -= MESSAGE.len();
                    messages += 1;
                    stream.write_all(&MESSAGE)?;
                }
            }
        }
        Ok(messages)
    });
    client.join().unwrap_or_else(|_| Err(io::Error::other("the client failed")))
}

fn connection() -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(super::wrk::PLAIN)?;
    stream.set_nodelay(true)?;
    stream.write_all(HANDSHAKE)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        answer.extend_from_slice(&byte);
    }
    let is_up = answer.starts_with(b"HTTP/1.1 101 ");
    is_up.then_some(stream).ok_or_else(|| io::Error::other(String::from_utf8_lossy(&answer)))
}

pub(super) const ADDRESS: SocketAddr = loopback(17_103);
const CONNECTIONS: usize = 64;
/// A masked text frame of 125 bytes.
const MESSAGE: [u8; 131] = {
    let mut frame = [b'm'; 131];
    frame[0] = 0x81;
    frame[1] = 0x80 | 125;
    frame
};
const HANDSHAKE: &[u8] = b"GET /ws HTTP/1.1\r\nHost: perf\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n";
const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: sip\r\n\r\n";
