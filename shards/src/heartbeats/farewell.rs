//! The last word of a balancer that stops, to nodes that listen for it by HTTP: they look for it anew
//! (`http-smpp-registry.md` 3.5, LB to node).
//!
//! On a thread of its own beside the rest of the stop, all nodes at once, never longer than
//! [`TIME_MAX`]: a node that is gone, too, holds nothing up.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, info};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocols::heartbeat::{json, post};
use socket2::{Domain, Socket, Type};

/// Farewells on their way.
#[derive(Debug)]
pub struct Farewell(Option<JoinHandle<()>>);

impl Farewell {
    /// Tells every one of `nodes` that the balancer stops that they know as `own`.
    pub fn say(own: SocketAddr, nodes: Vec<SocketAddr>) -> Farewell {
        if nodes.is_empty() {
            return Farewell(None);
        }
        let thread = std::thread::Builder::new().name("farewell".to_owned());
        let spawned = thread.spawn(move || {
            let all = nodes.len();
            let heard = tell(own, nodes, Instant::now() + TIME_MAX);
            info!("{heard} of {all} nodes have heard that the balancer stops");
        });
        Farewell(spawned.ok())
    }

    /// Waits for the end of it.
    pub fn wait(self) {
        if let Some(thread) = self.0 {
            let _ = thread.join(); // What it has to say it has logged.
        }
    }
}

/// How many nodes have answered until the deadline.
fn tell(own: SocketAddr, mut nodes: Vec<SocketAddr>, deadline: Instant) -> usize {
    let Ok(epoll) = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC) else { return 0 };
    let mut under_way: BTreeMap<u64, (TcpStream, Vec<u8>)> = BTreeMap::new();
    let (mut number, mut heard) = (0, 0);
    let mut events = [EpollEvent::empty(); 64];
    loop {
        while under_way.len() < AT_ONCE_MAX
            && let Some(node) = nodes.pop()
        {
            number += 1;
            let Ok(stream) = connect(node) else { continue };
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
            if epoll.add(&stream, EpollEvent::new(flags, number)).is_ok() {
                // Where we listen on every address, a node knows us by the one that it sees.
                let seen = stream.local_addr().map_or(own.ip(), |it| it.ip());
                let ip = if own.ip().is_unspecified() { seen } else { own.ip() };
                let (mut body, mut request) = (Vec::new(), Vec::new());
                json::stop(ip, own.port(), &mut body);
                post::request(node, &body, &mut request);
                under_way.insert(number, (stream, request));
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if under_way.is_empty() || left.is_zero() {
            return heard;
        }
        // Rounded up: waking before the time would be a busy loop.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let count = epoll.wait(&mut events, EpollTimeout::from(millis)).unwrap_or(0);
        for event in events.iter().take(count) {
            let token = event.data();
            let Some((stream, request)) = under_way.get_mut(&token) else { continue };
            let step = advance(stream, request);
            match step {
                Step::Write => continue,
                Step::Read => {
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, token);
                    if epoll.modify(stream.as_fd(), &mut event).is_ok() {
                        continue;
                    }
                }
                Step::Heard => heard += 1,
                Step::Failed(why) => debug!("A node did not hear that the balancer stops: {why}"),
            }
            under_way.remove(&token);
        }
    }
}

enum Step {
    Write,
    Read,
    Heard,
    Failed(std::io::Error),
}

/// Any answer will do: that there is one says that the node has read the request.
fn advance(stream: &mut TcpStream, request: &mut Vec<u8>) -> Step {
    while !request.is_empty() {
        match stream.write(request) {
            Ok(count) => drop(request.drain(..count)),
            Err(error) if is_not_yet(&error) => return Step::Write,
            Err(error) => return Step::Failed(error),
        }
    }
    match stream.read(&mut [0; 512]) {
        Ok(0) => Step::Failed(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Step::Heard,
        Err(error) if is_not_yet(&error) => Step::Read,
        Err(error) => Step::Failed(error),
    }
}

fn is_not_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected)
}

/// Begins to connect.
fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.cloexec(), None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// For all nodes together.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Descriptors.
const AT_ONCE_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use tools::ports;

    #[test]
    fn all_nodes_hear_it_at_once_and_dead_ones_hold_nothing_up() {
        let (silent, gone) = (listener(), SocketAddr::from(([127, 0, 0, 1], ports::free())));
        let mut nodes = vec![address(&silent), gone];
        let listening: Vec<TcpListener> = (0..5).map(|_| listener()).collect();
        nodes.extend(listening.iter().map(address));
        let threads: Vec<_> = listening
            .into_iter()
            .map(|it| {
                std::thread::spawn(move || {
                    let (mut stream, _) = it.accept().unwrap();
                    let mut request = Vec::new();
                    while !request.ends_with(b"}}") {
                        let mut buffer = [0; 100];
                        let count = stream.read(&mut buffer).unwrap();
                        request.extend_from_slice(&buffer[..count]);
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                    String::from_utf8(request).unwrap()
                })
            })
            .collect();
        let own = "0.0.0.0:2610".parse().unwrap();
        // Who is silent is waited for until the end, which is when all others have heard it.
        let requests = std::thread::spawn(move || {
            let requests: Vec<String> = threads.into_iter().map(|it| it.join().unwrap()).collect();
            drop(silent);
            requests
        });
        assert_eq!(tell(own, nodes, Instant::now() + Duration::from_secs(10)), 5);
        for request in requests.join().unwrap() {
            let want = "{\"stop\":{\"ipAddress\":\"127.0.0.1\",\"port\":2610}}";
            assert!(request.starts_with("POST / ") && request.ends_with(want), "{request}");
        }
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn address(it: &TcpListener) -> SocketAddr {
        it.local_addr().unwrap()
    }
}
