//! Probes against pretend nodes on loopback.

use super::*;
use engine::config::Probe;
use engine::lifecycle::Pulse;
use nix::sys::epoll::EpollCreateFlags;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tools::ports;

/// The response to a request, as a SIP server makes it.
fn answer(request: &str, status: &str) -> String {
    let mut lines = vec![format!("SIP/2.0 {status}")];
    lines.extend(
        request
            .lines()
            .filter(|it| {
                ["Via:", "From:", "To:", "Call-ID:", "CSeq:"]
                    .iter()
                    .any(|name| it.starts_with(name))
            })
            .map(str::to_owned),
    );
    lines.join("\r\n") + "\r\nContent-Length: 0\r\n\r\n"
}

/// Probes one node until it has been told alive or dead.
fn pulse(to: SocketAddr, transport: Transport, timeout: Duration) -> Option<Pulse> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mut sockets = Sockets::open(None, &epoll);
    let local = sockets.local(Some(to));
    assert!(local.v4.ip().is_loopback(), "{local:?}");
    let probe = Probe { interval: timeout, timeout, rise: 1, fall: 1 };
    let mut prober = Prober::new(7, local, probe);
    prober.configure(Time::ZERO, probe, std::iter::once((NodeKey(1), to, transport)));
    let tls = Tls { security: None, gateway: false };
    let start = Instant::now();
    while start.elapsed() < 2 * PATIENCE {
        let now = Time::ZERO + start.elapsed();
        while let Some(action) = prober.poll_action(now) {
            sockets.send(now, action, tls, &mut prober, &epoll);
        }
        let mut events = [EpollEvent::empty(); 8];
        let count = epoll.wait(&mut events, 10_u16).unwrap();
        for event in &events[..count] {
            assert!(Sockets::owns(event.data()));
            sockets.handle_ready(now, event.data(), &mut prober, &epoll);
        }
        if let Some((_, pulse)) = prober.poll_pulse() {
            return Some(pulse);
        }
    }
    None
}

/// Longer than a busy machine lets anybody wait.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn nodes_are_told_alive_full_or_dead_over_udp() {
    for (status, want) in [("200 OK", Pulse::Live), ("503 Busy", Pulse::Full)] {
        let node = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = node.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            let (count, from) = node.recv_from(&mut buffer).unwrap();
            let request = std::str::from_utf8(&buffer[..count]).unwrap();
            assert!(request.starts_with("OPTIONS "), "{request}");
            node.send_to(answer(request, status).as_bytes(), from).unwrap();
        });
        assert_eq!(pulse(to, Transport::Udp, PATIENCE), Some(want), "{status}");
        thread.join().unwrap();
    }
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let told = pulse(silent.local_addr().unwrap(), Transport::Udp, Duration::from_millis(200));
    assert_eq!(told, Some(Pulse::Dead));
}

#[test]
fn nodes_are_told_alive_or_dead_over_tcp() {
    let node = TcpListener::bind(("127.0.0.1", ports::free())).unwrap();
    let to = node.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = node.accept().unwrap();
        let mut buffer = [0; 2048];
        let count = stream.read(&mut buffer).unwrap();
        let request = std::str::from_utf8(&buffer[..count]).unwrap();
        // A provisional response is none, and what else it says is not for us.
        let response = ["100 Trying", "200 OK"].map(|it| answer(request, it)).join("\r\n\r\n");
        for piece in response.as_bytes().chunks(100) {
            stream.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert_eq!(pulse(to, Transport::Tcp, PATIENCE), Some(Pulse::Live));
    thread.join().unwrap();
    // Nobody listens there any more.
    assert_eq!(pulse(to, Transport::Tcp, PATIENCE), Some(Pulse::Dead));
}
